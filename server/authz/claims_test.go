package authz

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"
)

// given yields names as claims of the caller's; "name=null" for one that is null.
func given(names ...string) iter.Seq2[string, bool] {
	return func(yield func(string, bool) bool) {
		for _, n := range names {
			name, null := strings.CutSuffix(n, "=null")
			if !yield(name, null) {
				return
			}
		}
	}
}

// issues is a grant of ID tokens for some clients.
func issues(claims *ClaimPolicy, clients ...string) Grant {
	return Grant{Caller: idp, Allow: []Permission{Issue}, Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN", "ACCESS_TOKEN"}, Clients: clients, Claims: claims}
}

// check asks for an ID token for client, under some grants, and returns the
// fields that are wrong.
func check(t *testing.T, client string, c Claims, grants ...Grant) ([]string, error) {
	t.Helper()
	p, err := New(grants)
	if err != nil {
		t.Fatal(err)
	}
	terms, err := p.Authorize(idp, Request{Issue, "main", "ID_TOKEN", client})
	if err != nil {
		return nil, err
	}
	err = terms.Check(c)
	wrong, ok := errors.AsType[*ClaimsError](err)
	if !ok {
		return nil, err
	}
	if !errors.Is(err, ErrClaimsNotAllowed) {
		t.Errorf("%v does not match ErrClaimsNotAllowed", err)
	}
	var fields []string
	for _, v := range wrong.Violations {
		fields = append(fields, v.Field)
	}
	return fields, err
}

func TestClaimPolicy(t *testing.T) {
	const minute = time.Minute
	longest := &ClaimPolicy{MaxLifetime: minute}
	names := &ClaimPolicy{Allow: []string{"sub", "auth_time"}}
	require := &ClaimPolicy{Require: []string{"auth_time", "acr"}}
	audiences := &ClaimPolicy{Audiences: []string{"https://api", "app-*"}}
	all := &ClaimPolicy{MaxLifetime: minute, Allow: []string{"sub", "acr"}, Require: []string{"acr"}, Audiences: []string{"https://api"}}
	for _, test := range []struct {
		what   string
		grants []Grant
		claims Claims
		want   []string
	}{
		{"a lifetime at the bound", []Grant{issues(longest, "*")}, Claims{Lifetime: minute, Given: given("sub")}, nil},
		{"a lifetime above it", []Grant{issues(longest, "*")}, Claims{Lifetime: minute + time.Second, Given: given("sub")}, []string{"lifetime"}},
		{"an exp above it", []Grant{issues(longest, "*")}, Claims{Lifetime: minute + time.Second, Given: given("exp", "sub")}, []string{"claims.exp"}},
		{"a token without exp", []Grant{issues(longest, "*")}, Claims{Given: given("sub")}, []string{"token_kind"}},
		{"a token without exp, and no bound", []Grant{issues(names, "*")}, Claims{Given: given("sub")}, nil},

		{"listed claims", []Grant{issues(names, "*")}, Claims{Given: given("auth_time", "sub")}, nil},
		{"none at all", []Grant{issues(names, "*")}, Claims{Given: given()}, nil},
		{"those that need no listing", []Grant{issues(names, "*")}, Claims{Given: given(NeverListed()...)}, nil},
		{"another", []Grant{issues(names, "*")}, Claims{Given: given("sub", "email", "acr")}, []string{"claims.email", "claims.acr"}},
		{"another that is null", []Grant{issues(names, "*")}, Claims{Given: given("email=null")}, []string{"claims.email"}},
		{"in another case", []Grant{issues(names, "*")}, Claims{Given: given("Sub")}, []string{"claims.Sub"}},
		{"a jti of the caller's own", []Grant{issues(names, "*")}, Claims{Given: given("jti")}, []string{"claims.jti"}},
		{"without a name", []Grant{issues(names, "*")}, Claims{Given: given("")}, []string{"claims."}},

		{"required claims", []Grant{issues(require, "*")}, Claims{Given: given("sub", "acr", "auth_time")}, nil},
		{"one is missing", []Grant{issues(require, "*")}, Claims{Given: given("acr")}, []string{"claims.auth_time"}},
		{"one is null", []Grant{issues(require, "*")}, Claims{Given: given("acr=null", "auth_time")}, []string{"claims.acr"}},

		{"listed audiences", []Grant{issues(audiences, "*")}, Claims{Given: given(), Others: []string{"https://api", "app-7"}}, nil},
		{"another, though a client of the grant", []Grant{issues(audiences, "*")}, Claims{Given: given(), Others: []string{"https://api", "rp"}}, []string{"claims.aud"}},
		{"a prefix of a listed one", []Grant{issues(audiences, "*")}, Claims{Given: given(), Others: []string{"https://ap"}}, []string{"claims.aud"}},
		{"of a token for no client", []Grant{issues(audiences, "*")}, Claims{Given: given(), Audiences: []string{"https://api"}}, nil},
		{"another of a token for no client", []Grant{issues(audiences, "*")}, Claims{Given: given(), Audiences: []string{"https://api", "https://other"}}, []string{"claims.aud"}},
		{"any of a token for no client", []Grant{issues(names, "*")}, Claims{Given: given(), Audiences: []string{"https://other"}}, nil},

		{"all at once", []Grant{issues(all, "*")}, Claims{Lifetime: minute, Given: given("sub", "acr"), Others: []string{"https://api"}}, nil},
		{"all wrong at once", []Grant{issues(all, "*")}, Claims{Lifetime: time.Hour, Given: given("email"), Others: []string{"https://b"}}, []string{"claims.email", "claims.acr", "lifetime", "claims.aud"}},

		{"a second grant is enough", []Grant{issues(names, "*"), issues(longest, "a-*")}, Claims{Lifetime: minute, Given: given("email")}, nil},
		{"a grant for other clients is not", []Grant{issues(names, "*"), issues(nil, "b-*")}, Claims{Lifetime: minute, Given: given("email")}, []string{"claims.email"}},
		{"a grant without a policy", []Grant{issues(names, "*"), issues(nil, "a-1")}, Claims{Lifetime: time.Hour, Given: given("email")}, nil},
		{"two halves are no whole", []Grant{issues(names, "*"), issues(longest, "*")}, Claims{Lifetime: time.Hour, Given: given("email")}, []string{"claims.email"}},
		{"the nearest is told", []Grant{issues(all, "*"), issues(longest, "*")}, Claims{Lifetime: time.Hour, Given: given("email")}, []string{"lifetime"}},
		{"a policy that bounds nothing", []Grant{issues(&ClaimPolicy{}, "*")}, Claims{Lifetime: time.Hour, Given: given("email")}, nil},
	} {
		t.Run(test.what, func(t *testing.T) {
			if got, err := check(t, "a-1", test.claims, test.grants...); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q: %v", got, test.want, err)
			}
		})
	}
}

// TestAnotherClientInAudNeedsAGrantThatWouldGiveItThisToken: what is refused to a
// client's own token cannot be had in passing, in a token for another client.
func TestAnotherClientInAudNeedsAGrantThatWouldGiveItThisToken(t *testing.T) {
	short := issues(&ClaimPolicy{MaxLifetime: time.Minute}, "bank-*")
	wide := issues(nil, "app-*")
	for _, test := range []struct {
		what     string
		lifetime time.Duration
		others   []string
		want     []string
	}{
		{"a client of the same grant", time.Hour, []string{"app-2"}, nil},
		{"a client of the other, whose policy holds", time.Minute, []string{"app-2", "bank-1"}, nil},
		{"a client of the other, whose policy does not", time.Hour, []string{"app-2", "bank-1"}, []string{"claims.aud"}},
		{"nobody's client", time.Minute, []string{"shop"}, []string{"claims.aud"}},
		{"no client", time.Minute, []string{""}, []string{"claims.aud"}},
	} {
		got, err := check(t, "app-1", Claims{Lifetime: test.lifetime, Given: given("sub"), Others: test.others}, short, wide)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q: %v", test.what, got, test.want, err)
		}
	}
	// Another issuer's or another caller's grant is no grant for it.
	elsewhere, somebody := issues(nil, "bank-*"), issues(nil, "bank-*")
	elsewhere.Issuers, somebody.Caller = []string{"second"}, "somebody"
	if got, _ := check(t, "app-1", Claims{Given: given("sub"), Others: []string{"bank-1"}}, wide, elsewhere, somebody); len(got) != 1 {
		t.Errorf("by other grants: got %q, want claims.aud", got)
	}
}

func TestClaimPolicyIsOfTokensOnly(t *testing.T) {
	p, err := New([]Grant{{
		Caller: idp, Allow: Permissions(), Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN"}, Clients: []string{"*"},
		Claims: &ClaimPolicy{Allow: []string{"sub"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, perm := range Permissions() {
		terms, err := p.Authorize(idp, Request{perm, "main", "ID_TOKEN", "app"})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := terms.Free(), !perm.NeedsTokenKinds(); got != want {
			t.Errorf("%s: free of the claim policy %v, want %v", perm, got, want)
		}
	}
}

func TestTermsThatNobodyGaveAreMetByNothing(t *testing.T) {
	var zero Terms
	if err := zero.Check(Claims{Given: given()}); !errors.Is(err, ErrNotAllowed) || zero.Free() {
		t.Errorf("got %v, free %v; want ErrNotAllowed", err, zero.Free())
	}
	terms, err := Development().Authorize(DevelopmentCaller, Request{Permission: Issue, Issuer: "main", TokenKind: "ID_TOKEN"})
	if err != nil || terms.Check(Claims{Given: given("x"), Others: []string{"anybody"}}) != nil {
		t.Errorf("in development: %v, and the claims are asked of", err)
	}
}

// TestRefusalTellsNoValueAndNoFloods: names come from the caller too.
func TestRefusalTellsNoValueAndNoFloods(t *testing.T) {
	many := []string{strings.Repeat("x", 5000), "with space", "new\nline", "quote\"", "\u202e", "plain-name.1"}
	for i := range 3000 {
		many = append(many, fmt.Sprint("claim-", i))
	}
	_, err := check(t, "a", Claims{Lifetime: time.Hour, Given: given(many...), Others: []string{"the-audience"}}, issues(&ClaimPolicy{Allow: []string{"sub"}, Audiences: []string{"friend"}}, "*"))
	text := fmt.Sprint(err)
	for _, want := range []string{"claims.plain-name.1 is not", `claims["with space"]`, `claims["new\nline"]`, `claims["quote\""]`, `claims["\u202e"]`, `xxx\u2026"]`, "(sub)", "claims are wrong in 2999 more ways"} {
		if !strings.Contains(text, want) {
			t.Errorf("the refusal has no %s:\n%s", want, text)
		}
	}
	if len(text) > 4096 || strings.Contains(text, "the-audience") {
		t.Errorf("a refusal of %d bytes: %s", len(text), text)
	}
}

func TestNewRefusesWrongClaimPolicies(t *testing.T) {
	for _, test := range []struct {
		policy ClaimPolicy
		want   string
	}{
		{ClaimPolicy{MaxLifetime: -time.Second}, "max_lifetime"},
		{ClaimPolicy{MaxLifetime: 1500 * time.Millisecond}, "max_lifetime"},
		{ClaimPolicy{Allow: []string{}}, "is empty"},
		{ClaimPolicy{Require: []string{}}, "is empty"},
		{ClaimPolicy{Audiences: []string{}}, "is empty"},
		{ClaimPolicy{Allow: []string{"sub", ""}}, "a name of a claim is empty"},
		{ClaimPolicy{Require: []string{""}}, "a name of a claim is empty"},
		{ClaimPolicy{Audiences: []string{""}}, "an audience is empty"},
		{ClaimPolicy{Audiences: []string{"*.example.com"}}, "before its end"},
	} {
		if _, err := New([]Grant{issues(nil, "*"), issues(&test.policy, "*")}); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "grant 1") {
			t.Errorf("%+v: got %v, want grant 1 and %q", test.policy, err, test.want)
		}
	}
}

func TestAClaimPolicyIsKeptAsItWas(t *testing.T) {
	policy := &ClaimPolicy{Allow: []string{"sub"}, Require: []string{"sub", "sub"}, Audiences: []string{"a"}}
	p, err := New([]Grant{issues(policy, "*")})
	if err != nil {
		t.Fatal(err)
	}
	policy.Allow[0], policy.Require[0], policy.Audiences[0], policy.MaxLifetime = "x", "y", "b", 1
	terms, err := p.Authorize(idp, Request{Issue, "main", "ID_TOKEN", "c"})
	if err != nil {
		t.Fatal(err)
	}
	if err := terms.Check(Claims{Lifetime: time.Hour, Given: given("sub"), Others: []string{"a"}}); err != nil {
		t.Errorf("after the caller of New changed its lists: %v", err)
	}
}

// TestManyClaimsAndAudiencesCostLittle: what is held against each other comes from
// a caller, up to the size of a request.
func TestManyClaimsAndAudiencesCostLittle(t *testing.T) {
	var names, others []string
	for i := range 4000 {
		names, others = append(names, fmt.Sprint("c", i)), append(others, fmt.Sprint("bank-", i))
	}
	grants := []Grant{issues(nil, "app-*")}
	for range 20 {
		grants = append(grants, issues(&ClaimPolicy{Require: names[:100], Allow: append(names[:2000:2000], "sub")}, "bank-*"))
	}
	began := time.Now()
	got, _ := check(t, "app-1", Claims{Given: given(names...), Others: others}, grants...)
	if took := time.Since(began); !slices.Equal(got, []string{"claims.aud"}) || took > 5*time.Second {
		t.Errorf("got %q after %v, want claims.aud in a moment", got, took)
	}
}
