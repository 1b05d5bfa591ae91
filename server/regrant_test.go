package server

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
)

// liveGrants has the service's grants replaceable, beginning with reads of some
// clients.
func liveGrants(t *testing.T, s *clientKeyService, grants ...authz.Grant) (replace func(...authz.Grant)) {
	t.Helper()
	policy := func(grants []authz.Grant) *authz.Policy {
		p, err := authz.New(grants)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	live := authz.NewLive(policy(grants))
	s.gate.authorizer = live
	return func(grants ...authz.Grant) { live.Replace(policy(grants)) }
}

func mayRead(caller string, clients ...string) authz.Grant {
	return authz.Grant{Caller: caller, Allow: []authz.Permission{authz.ReadClientKeys}, Issuers: []string{"main"}, Clients: clients}
}

// TestAWatchEndsWithTheGrantThatItWasLetInBy: at once, though nothing happens to
// any client, and on record.
func TestAWatchEndsWithTheGrantThatItWasLetInBy(t *testing.T) {
	writes := authz.Grant{Caller: registrar, Allow: []authz.Permission{authz.CreateClientKey}, Issuers: []string{"main"}, Clients: []string{"*"}}
	for _, test := range []struct {
		what   string
		after  []authz.Grant
		reason string
		denied bool
	}{
		{"no grant at all is left", nil, "CALLER_UNKNOWN", true},
		{"none of this permission is left", []authz.Grant{{Caller: reader, Allow: []authz.Permission{authz.ReadSigningKeys}, Issuers: []string{"main"}}}, "CALLER_NOT_ALLOWED", true},
		{"fewer clients", []authz.Grant{mayRead(reader, "app-1")}, "REGISTRY_UNAVAILABLE", false},
		{"more clients", []authz.Grant{mayRead(reader, "app-*", "other-*")}, "REGISTRY_UNAVAILABLE", false},
	} {
		t.Run(test.what, func(t *testing.T) {
			s, record, _ := newClientKeys(t)
			replace := liveGrants(t, s, mayRead(reader, "app-*"), writes)
			w := startWatch(as(t, reader), t, s)
			register(t, s, registration("app-1", "one", ""))
			w.next(t)
			replace(mayRead(reader, "app-*"), mayRead("somebody", "*"), writes)
			register(t, s, registration("app-2", "one", "")) // another's grants are nothing to this watch
			if got := w.next(t); !strings.HasPrefix(got, "app-2") {
				t.Errorf("told %q, want app-2", got)
			}
			replace(append(test.after, writes)...)
			select {
			case err := <-w.ended:
				if got := Reason(err); got != test.reason {
					t.Errorf("ended with %s (%v), want %s", got, err, test.reason)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the watch goes on")
			}
			last := record.events[len(record.events)-1]
			if got := last.Outcome == audit.Denied && last.Caller == reader && last.Permission == "read_client_keys"; got != test.denied {
				t.Errorf("on record: %+v, want a denial: %v", last, test.denied)
			}
		})
	}
}

// TestNothingIsToldByAGrantThatWasTakenAway: not even what was waiting to be told
// when it was.
func TestNothingIsToldByAGrantThatWasTakenAway(t *testing.T) {
	s, _, _ := newClientKeys(t)
	writes := authz.Grant{Caller: registrar, Allow: []authz.Permission{authz.CreateClientKey}, Issuers: []string{"main"}, Clients: []string{"*"}}
	replace := liveGrants(t, s, mayRead(reader, "app-*"), writes)
	e, err := s.gate.enter(as(t, reader), "", "", false)
	if err != nil {
		t.Fatal(err)
	}
	if !e.mayReadNow("app-1") {
		t.Fatal("it may not read what it was granted")
	}
	replace(writes)
	if e.mayReadNow("app-1") {
		t.Error("it may read what it was granted once")
	}
	// The rest of the call goes by what it began with.
	if err := e.allowSome(as(t, reader), authz.ReadClientKeys); err != nil {
		t.Errorf("a call in flight: %v", err)
	}
	ctx, release := e.whileGranted(t.Context(), authz.ReadClientKeys)
	defer release()
	<-ctx.Done()
	if _, err := s.gate.enter(as(t, reader), "nowhere", "", false); !errors.Is(err, authz.ErrCallerUnknown) {
		t.Errorf("the next call: got %v, want ErrCallerUnknown", err)
	}
}
