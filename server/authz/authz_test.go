package authz

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const (
	idp       = "spiffe://example.com/idp"
	registrar = "registrar.example.com"
)

func examplePolicy(t testing.TB) *Policy {
	t.Helper()
	p, err := New([]Grant{
		{Caller: idp, Allow: []Permission{Issue}, Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN", "LOGOUT_TOKEN"}, Clients: []string{"*"}},
		{Caller: idp, Allow: []Permission{SignUnencrypted}, Issuers: []string{"main"}, TokenKinds: []string{"USERINFO"}, Clients: []string{"rp"}},
		{Caller: idp, Allow: []Permission{ReadSigningKeys}, Issuers: []string{"main", "second"}},
		{Caller: "Registrar.Example.com", Allow: []Permission{CreateClientKey, ReadClientKeys}, Issuers: []string{"main"}, Clients: []string{"app-*", "portal"}},
		{Caller: "no-clients", Allow: []Permission{Issue, ReadClientKeys}, Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN"}},
		{Caller: "no-kinds", Allow: []Permission{Issue}, Issuers: []string{"main"}, Clients: []string{"*"}},
		{Caller: "no-issuers", Allow: []Permission{Issue, ReadSigningKeys}, TokenKinds: []string{"ID_TOKEN"}, Clients: []string{"*"}},
		{Caller: "no-permissions", Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN"}, Clients: []string{"*"}},
	})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return p
}

func TestAllow(t *testing.T) {
	p := examplePolicy(t)
	for _, tc := range []struct {
		name   string
		caller string
		req    Request
		want   error
	}{
		{"granted kind and any client", idp, Request{Issue, "main", "ID_TOKEN", "whoever"}, nil},
		{"second kind of the list", idp, Request{Issue, "main", "LOGOUT_TOKEN", "whoever"}, nil},
		{"star covers a request without a client", idp, Request{Issue, "main", "ID_TOKEN", ""}, nil},
		{"kind not listed", idp, Request{Issue, "main", "ACCESS_TOKEN", "whoever"}, ErrNotAllowed},
		{"kind missing", idp, Request{Issue, "main", "", "whoever"}, ErrNotAllowed},
		{"other issuer", idp, Request{Issue, "second", "ID_TOKEN", "whoever"}, ErrNotAllowed},
		{"issuer missing", idp, Request{Issue, "", "ID_TOKEN", "whoever"}, ErrNotAllowed},
		{"grants do not mix: kind of one, permission of the other", idp, Request{SignUnencrypted, "main", "ID_TOKEN", "rp"}, ErrNotAllowed},
		{"second grant of the caller", idp, Request{SignUnencrypted, "main", "USERINFO", "rp"}, nil},
		{"an exact client does not cover no client", idp, Request{SignUnencrypted, "main", "USERINFO", ""}, ErrNotAllowed},
		{"an exact client is no prefix", idp, Request{SignUnencrypted, "main", "USERINFO", "rp2"}, ErrNotAllowed},
		{"permission without clients", idp, Request{ReadSigningKeys, "second", "", ""}, nil},
		{"permission never granted", idp, Request{RotateSigningKeys, "main", "", ""}, ErrNotAllowed},
		{"unknown permission", idp, Request{"everything", "main", "ID_TOKEN", "x"}, ErrNotAllowed},

		{"DNS name in lower case", registrar, Request{CreateClientKey, "main", "", "app-1"}, nil},
		{"prefix itself", registrar, Request{CreateClientKey, "main", "", "app-"}, nil},
		{"prefix is at the start only", registrar, Request{CreateClientKey, "main", "", "my-app-1"}, ErrNotAllowed},
		{"exact client", registrar, Request{ReadClientKeys, "main", "", "portal"}, nil},
		{"a prefix does not cover no client", registrar, Request{ReadClientKeys, "main", "", ""}, ErrNotAllowed},
		{"create does not include replace", registrar, Request{ReplaceClientKey, "main", "", "app-1"}, ErrNotAllowed},
		{"the star is not part of a name", registrar, Request{ReadClientKeys, "main", "", "app*"}, ErrNotAllowed},

		{"empty clients are none", "no-clients", Request{Issue, "main", "ID_TOKEN", "x"}, ErrNotAllowed},
		{"empty clients do not cover no client", "no-clients", Request{ReadClientKeys, "main", "", ""}, ErrNotAllowed},
		{"empty kinds are none", "no-kinds", Request{Issue, "main", "ID_TOKEN", "x"}, ErrNotAllowed},
		{"empty issuers are none", "no-issuers", Request{ReadSigningKeys, "main", "", ""}, ErrNotAllowed},
		{"empty issuers do not match no issuer", "no-issuers", Request{ReadSigningKeys, "", "", ""}, ErrNotAllowed},
		{"empty permissions are none", "no-permissions", Request{Issue, "main", "ID_TOKEN", "x"}, ErrNotAllowed},

		{"stranger", "spiffe://example.com/idp2", Request{Issue, "main", "ID_TOKEN", "x"}, ErrCallerUnknown},
		{"URIs are compared byte for byte", "SPIFFE://example.com/idp", Request{Issue, "main", "ID_TOKEN", "x"}, ErrCallerUnknown},
		{"nobody", "", Request{Issue, "main", "ID_TOKEN", "x"}, ErrCallerUnknown},
		{"development is nobody here", DevelopmentCaller, Request{Issue, "main", "ID_TOKEN", "x"}, ErrCallerUnknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := p.Allow(tc.caller, tc.req); !errors.Is(got, tc.want) {
				t.Errorf("Allow(%q, %+v): got %v, want %v", tc.caller, tc.req, got, tc.want)
			}
		})
	}
}

func TestDenialTellsWhatIsMissingAndNothingOfOtherGrants(t *testing.T) {
	p := examplePolicy(t)
	err := p.Allow(registrar, Request{Issue, "main", "ID_TOKEN", "app-1"})
	want := `caller not allowed: it needs permission "issue" for issuer "main", token kind "ID_TOKEN", client "app-1"; ask the operator of this service for it`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	err = p.Allow("stranger\n", Request{Issue, "main", "ID_TOKEN", "app-1"})
	want = `caller unknown: no grant names "stranger\n"; ask the operator of this service for one`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	for _, secret := range []string{idp, "portal", "second"} {
		if err := p.Allow(registrar, Request{DeleteClientKey, "main", "", "x"}); strings.Contains(err.Error(), secret) {
			t.Errorf("the denial %q shows %q, which the caller did not name", err, secret)
		}
	}
}

func TestAllowSome(t *testing.T) {
	p := examplePolicy(t)
	for _, tc := range []struct {
		caller string
		perm   Permission
		issuer string
		want   error
	}{
		{registrar, ReadClientKeys, "main", nil},
		{registrar, ReadClientKeys, "second", ErrNotAllowed},
		{registrar, DeleteClientKey, "main", ErrNotAllowed},
		{"no-clients", ReadClientKeys, "main", ErrNotAllowed},
		{idp, ReadSigningKeys, "main", nil},
		{"stranger", ReadClientKeys, "main", ErrCallerUnknown},
	} {
		if got := p.AllowSome(tc.caller, tc.perm, tc.issuer); !errors.Is(got, tc.want) {
			t.Errorf("AllowSome(%q, %s, %q): got %v, want %v", tc.caller, tc.perm, tc.issuer, got, tc.want)
		}
	}
}

func TestDevelopmentCallerMayDoEverythingAndIsTheOnlyOne(t *testing.T) {
	p := Development()
	for _, perm := range Permissions() {
		if err := p.Allow(DevelopmentCaller, Request{Permission: perm, Issuer: "any"}); err != nil {
			t.Errorf("%s: got %v, want nil", perm, err)
		}
		if err := p.AllowSome(DevelopmentCaller, perm, "any"); err != nil {
			t.Errorf("%s of some client: got %v, want nil", perm, err)
		}
		if err := p.Allow(idp, Request{Permission: perm, Issuer: "any"}); !errors.Is(err, ErrCallerUnknown) {
			t.Errorf("%s by another caller: got %v, want %v", perm, err, ErrCallerUnknown)
		}
	}
	if err := p.Allow(DevelopmentCaller, Request{Permission: "everything"}); err == nil {
		t.Error("an unknown permission is allowed")
	}
}

func TestZeroPolicyDenies(t *testing.T) {
	var p Policy
	if err := p.Allow(DevelopmentCaller, Request{Permission: Issue}); !errors.Is(err, ErrCallerUnknown) {
		t.Errorf("got %v, want %v", err, ErrCallerUnknown)
	}
}

func TestEachPermissionOpensItselfOnly(t *testing.T) {
	for _, granted := range Permissions() {
		p, err := New([]Grant{{Caller: idp, Allow: []Permission{granted}, Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN"}, Clients: []string{"*"}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, asked := range Permissions() {
			got := p.Allow(idp, Request{asked, "main", "ID_TOKEN", "x"}) == nil
			if want := asked == granted; got != want {
				t.Errorf("granted %s, asked %s: allowed %v, want %v", granted, asked, got, want)
			}
		}
	}
}

func TestNewRefusesWrongGrants(t *testing.T) {
	for _, tc := range []struct {
		grant Grant
		want  string
	}{
		{Grant{}, "has no caller"},
		{Grant{Caller: "x", Allow: []Permission{"isue"}}, `no permission "isue"`},
		{Grant{Caller: "x", Clients: []string{"*-app"}}, "before its end"},
		{Grant{Caller: "x", Clients: []string{"app**"}}, "before its end"},
		{Grant{Caller: "x", Clients: []string{""}}, "is empty"},
	} {
		_, err := New([]Grant{{Caller: "fine"}, tc.grant})
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "grant 1") {
			t.Errorf("New(%+v): got %v, want grant 1 and %q", tc.grant, err, tc.want)
		}
	}
}

func TestPolicyKeepsNothingOfItsInput(t *testing.T) {
	g := Grant{Caller: idp, Allow: []Permission{Issue}, Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN"}, Clients: []string{"a"}}
	p, err := New([]Grant{g})
	if err != nil {
		t.Fatal(err)
	}
	g.TokenKinds[0], g.Clients[0], g.Issuers[0] = "USERINFO", "b", "second"
	if err := p.Allow(idp, Request{Issue, "main", "ID_TOKEN", "a"}); err != nil {
		t.Errorf("after the caller of New changed its slices: %v", err)
	}
}

func TestAllowDoesNotAllocate(t *testing.T) {
	p := examplePolicy(t)
	req := Request{Issue, "main", "LOGOUT_TOKEN", "app-1"}
	if n := testing.AllocsPerRun(100, func() {
		if p.Allow(idp, req) != nil {
			t.Fatal("denied")
		}
	}); n != 0 {
		t.Errorf("Allow allocates %v times a call, want 0", n)
	}
}

func BenchmarkAllow(b *testing.B) {
	grants := []Grant{{Caller: idp, Allow: []Permission{Issue}, Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN", "LOGOUT_TOKEN"}, Clients: []string{"app-*"}}}
	for i := range 1000 {
		grants = append(grants, Grant{Caller: fmt.Sprintf("caller-%d", i), Allow: Permissions(), Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN"}, Clients: []string{"*"}})
	}
	p, err := New(grants)
	if err != nil {
		b.Fatal(err)
	}
	req := Request{Issue, "main", "LOGOUT_TOKEN", "app-1"}
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Allow(idp, req); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAListSeeksOnlyWhatTheCallerMaySee(t *testing.T) {
	p, err := New([]Grant{
		{Caller: "spiffe://a/some", Allow: []Permission{ReadClientKeys}, Issuers: []string{"main"}, Clients: []string{"app-*", "zz", "b"}},
		{Caller: "spiffe://a/all", Allow: []Permission{ReadClientKeys}, Issuers: []string{"main"}, Clients: []string{"*"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		caller, issuer, from, next string
		ok                         bool
	}{
		{"spiffe://a/some", "main", "", "app-", true},
		{"spiffe://a/some", "main", "app-", "app-", true},
		{"spiffe://a/some", "main", "app-7", "app-7", true},
		{"spiffe://a/some", "main", "app.", "b", true},
		{"spiffe://a/some", "main", "b", "b", true},
		{"spiffe://a/some", "main", "b\x00", "zz", true},
		{"spiffe://a/some", "main", "zzz", "", false},
		{"spiffe://a/some", "other", "", "", false},
		{"spiffe://a/all", "main", "", "", true},
		{"spiffe://a/all", "main", "x", "x", true},
		{"spiffe://a/nobody", "main", "", "", false},
	} {
		next, ok := p.NextClient(test.caller, ReadClientKeys, test.issuer, test.from)
		if next != test.next || ok != test.ok {
			t.Errorf("%s from %q: got %q, %v, want %q, %v", test.caller, test.from, next, ok, test.next, test.ok)
		}
	}
}
