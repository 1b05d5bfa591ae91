package authz

import (
	"errors"
	"sync"
	"testing"
)

func policyOf(t *testing.T, grants ...Grant) *Policy {
	t.Helper()
	p, err := New(grants)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func reads(clients ...string) Grant {
	return Grant{Caller: registrar, Allow: []Permission{ReadClientKeys}, Issuers: []string{"main"}, Clients: clients}
}

// TestAnAnswerIsOfOnePolicy: while policies are replaced all the time, each of
// which gives both of two things or neither, who takes one from Now never has
// half of each.
func TestAnAnswerIsOfOnePolicy(t *testing.T) {
	both := policyOf(t, reads("a", "b"))
	none := policyOf(t, Grant{Caller: registrar, Allow: []Permission{ReadSigningKeys}, Issuers: []string{"main"}})
	live := NewLive(both)
	stop := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				live.Replace([]*Policy{both, none}[i%2])
			}
		}
	})
	for range 20_000 {
		p, _ := live.Now()
		a := p.Allow(registrar, Request{ReadClientKeys, "main", "", "a"})
		b := p.Allow(registrar, Request{ReadClientKeys, "main", "", "b"})
		if (a == nil) != (b == nil) {
			t.Fatalf("half of one policy and half of another: %v, %v", a, b)
		}
		if err := live.Allow(registrar, Request{ReadClientKeys, "main", "", "a"}); err != nil && !errors.Is(err, ErrNotAllowed) {
			t.Fatal(err)
		}
	}
	close(stop)
	work.Wait()
}

func TestWhoHoldsAPolicyIsToldThatItWasReplaced(t *testing.T) {
	first, second := policyOf(t, reads("a")), policyOf(t, reads("b"))
	live := NewLive(first)
	p, replaced := live.Now()
	select {
	case <-replaced:
		t.Error("replaced before anybody has")
	default:
	}
	if p != first {
		t.Error("the first policy is not in force")
	}
	live.Replace(second)
	select {
	case <-replaced:
	default:
		t.Error("nobody is told of the second policy")
	}
	p, replaced = live.Now()
	if p != second {
		t.Error("the second policy is not in force")
	}
	if _, ok := live.NextClient(registrar, ReadClientKeys, "main", "b"); !ok || live.AllowSome(registrar, ReadClientKeys, "main") != nil {
		t.Error("the second policy does not answer")
	}
	select {
	case <-replaced:
		t.Error("the second policy is said to be replaced")
	default:
	}
	if p, replaced := second.Now(); p != second || replaced != nil {
		t.Error("a Policy is not its own")
	}
}

func TestSameClients(t *testing.T) {
	base := policyOf(t, reads("a", "app-*"), Grant{Caller: idp, Allow: []Permission{ReadClientKeys}, Issuers: []string{"main"}, Clients: []string{"*"}})
	for _, test := range []struct {
		what   string
		policy *Policy
		want   bool
	}{
		{"written anew", policyOf(t, Grant{Caller: "REGISTRAR.example.com", Allow: []Permission{ReadClientKeys, DeleteClientKey}, Issuers: []string{"main"}, Clients: []string{"app-*", "a"}}), true},
		{"one more", policyOf(t, reads("a", "app-*", "b")), false},
		{"one less", policyOf(t, reads("app-*")), false},
		{"another prefix", policyOf(t, reads("a", "ap-*")), false},
		{"another grant", policyOf(t, reads("a", "app-*"), reads("b")), false},
		{"none", policyOf(t), false},
	} {
		if got := base.SameClients(test.policy, registrar, ReadClientKeys, "main"); got != test.want {
			t.Errorf("%s: got %v, want %v", test.what, got, test.want)
		}
	}
	everything := Development()
	if base.SameClients(everything, DevelopmentCaller, ReadClientKeys, "main") || !everything.SameClients(everything, DevelopmentCaller, ReadClientKeys, "main") {
		t.Error("everything is not told from nothing")
	}
}
