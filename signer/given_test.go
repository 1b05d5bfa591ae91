package signer

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/kms"
)

// TestGivenAreTheCallersClaimsAndNotOurs: whatever the caller's own spelling, and
// whatever has been filled in behind.
func TestGivenAreTheCallersClaimsAndNotOurs(t *testing.T) {
	for _, test := range []struct {
		kind   TokenKind
		claims string
		want   []string
	}{
		{IDToken, `{"sub":"a"}`, []string{"sub"}},
		{IDToken, ` { "s\u0075b" : "a" , "x" : {"y":[1,"}"]} , "n" : null } `, []string{"sub", "x", "n=null"}},
		{IDToken, `{"sub":"a","aud":"` + testClient + `","nullable":"null"}`, []string{"sub", "aud", "nullable"}},
		{IDToken, `{"sub":"a","":1,"\"":2}`, []string{"sub", "", `"`}},
		{AuthorizationResponse, `{}`, nil},
		{LogoutToken, `{"sid":"s"}`, []string{"sid"}},
	} {
		p := mustPrepare(t, request(test.kind, test.claims), kms.ES256)
		var got []string
		for name, null := range p.Given() {
			if null {
				name += "=null"
			}
			got = append(got, name)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", test.kind, test.claims, diff)
		}
		if n := strings.Count(string(p.JSON()), `"iss":`); n != 1 {
			t.Errorf("%s: %d iss in %s, want one that was filled in", test.kind, n, p.JSON())
		}
		for range p.Given() {
			break // whoever has seen enough stops
		}
	}
}

func TestLifetimeIsCountedFromIat(t *testing.T) {
	for _, test := range []struct {
		what     string
		kind     TokenKind
		claims   string
		lifetime *time.Duration
		want     time.Duration
	}{
		{"the default", IDToken, `{"sub":"a"}`, nil, 5 * time.Minute},
		{"asked for", IDToken, `{"sub":"a"}`, ptr(90 * time.Second), 90 * time.Second},
		{"an exp alone", IDToken, `{"sub":"a","exp":` + sec(70) + `}`, nil, 70 * time.Second},
		{"iat and exp", IDToken, `{"sub":"a","iat":` + sec(-50) + `,"exp":` + sec(70) + `}`, nil, 120 * time.Second},
		{"iat and a lifetime", IDToken, `{"sub":"a","iat":` + sec(50) + `}`, ptr(time.Minute), time.Minute},
		{"the default of a kind", LogoutToken, `{"sub":"a"}`, nil, 2 * time.Minute},
		{"no iat in it", AuthorizationResponse, `{"code":"c"}`, ptr(time.Minute), time.Minute},
		{"no exp", UserInfo, `{"sub":"a"}`, nil, 0},
		{"no exp, and an iat", Introspection, `{"token_introspection":{"active":true},"iat":` + sec(0) + `}`, nil, 0},
	} {
		req := request(test.kind, test.claims)
		req.Lifetime = test.lifetime
		p := mustPrepare(t, req, kms.ES256)
		if got := p.Lifetime(); got != test.want {
			t.Errorf("%s: got %v, want %v", test.what, got, test.want)
		}
		if (p.Lifetime() > 0) != test.kind.Expires() {
			t.Errorf("%s: a lifetime of %v, and Expires says %v", test.what, p.Lifetime(), test.kind.Expires())
		}
	}
}

func TestAudiencesAreAllThatAudNames(t *testing.T) {
	for _, test := range []struct {
		kind   TokenKind
		claims string
		want   []string
	}{
		{IDToken, `{"sub":"a"}`, []string{testClient}},
		{IDToken, `{"sub":"a","aud":["x","` + testClient + `"]}`, []string{"x", testClient}},
		{AccessToken, `{"sub":"a","aud":"ap\u0069","client_id":"` + testClient + `"}`, []string{"api"}},
		{AccessToken, `{"sub":"a","\u0061ud":["a","b"],"client_id":"` + testClient + `"}`, []string{"a", "b"}},
	} {
		if got := mustPrepare(t, request(test.kind, test.claims), kms.ES256).Audiences(); !slices.Equal(got, test.want) {
			t.Errorf("%s %s: got %q, want %q", test.kind, test.claims, got, test.want)
		}
	}
}

// TestWhatTheTableSaysIsWhatPrepareDoes: what a configuration is told of a kind
// beforehand, a request is held to.
func TestWhatTheTableSaysIsWhatPrepareDoes(t *testing.T) {
	good := map[TokenKind]string{
		IDToken: `{"sub":"a"`, LogoutToken: `{"sub":"a"`, UserInfo: `{"sub":"a"`, AuthorizationResponse: `{"iss":"` + testISS + `"`,
		Introspection: `{"token_introspection":{"active":true}`, AccessToken: `{"sub":"a","aud":"api","client_id":"` + testClient + `"`,
	}
	values := map[string]string{
		"nonce": `"n"`, "code": `"c"`, "id_token": `"t"`, "at_hash": `"h"`, "anything": `1`, "exp": sec(60), "Sub": `"a"`, "CODE": `"c"`, "Unheard": `1`,
	}
	for kind, claims := range good {
		for name, value := range values {
			_, err := Prepare(request(kind, claims+`,"`+name+`":`+value+`}`), kms.ES256, testNow)
			if taken := err == nil; taken != kind.Takes(name) {
				t.Errorf("%s takes %s: said %v, done %v (%v)", kind, name, kind.Takes(name), taken, err)
			}
		}
		_, err := Prepare(request(kind, `{}`), kms.ES256, testNow)
		if needs := kind.Needs(); (err != nil) != (len(needs) > 0) {
			t.Errorf("%s needs %v, and without any claim: %v", kind, needs, err)
		} else if err != nil {
			var want []string
			for _, one := range needs {
				want = append(want, "claims."+one[0])
			}
			if got := fieldsOf(t, err); !slices.Equal(got, want) {
				t.Errorf("%s: without any claim %q is wrong, want %q", kind, got, want)
			}
		}
	}
	if TokenKind("OTHER").Expires() || !IDToken.NamesOthers() || !AccessToken.NamesOthers() || LogoutToken.NamesOthers() {
		t.Error("who names others in aud: got it wrong")
	}
	for name, want := range map[string]string{"Sub": "sub", "AUTH_TIME": "auth_time", "sub": "", "subs": "", "": "", "\u017fub": "sub"} {
		if got := ClaimSpelt(name); got != want {
			t.Errorf("ClaimSpelt(%q): got %q, want %q", name, got, want)
		}
	}
}
