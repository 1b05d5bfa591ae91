package client

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// kindExamples has a good token of each kind.
var kindExamples = map[TokenKind]struct{ typ, claims string }{
	IDToken:               {"", `{"iss":"a","sub":"b","aud":"rp","exp":4102444800,"iat":1}`},
	LogoutToken:           {"logout+jwt", `{"iss":"a","sub":"b","aud":"rp","exp":4102444800,"iat":1,"jti":"1","events":{"http://schemas.openid.net/event/backchannel-logout":{}}}`},
	UserInfo:              {"", `{"iss":"a","sub":"b","aud":"rp"}`},
	AuthorizationResponse: {"", `{"iss":"a","aud":"rp","exp":4102444800,"code":"x"}`},
	Introspection:         {"token-introspection+jwt", `{"iss":"a","aud":"rp","iat":1,"token_introspection":{"active":true,"sub":"b","exp":1}}`},
	AccessToken:           {"at+jwt", `{"iss":"a","sub":"b","aud":"rp","exp":4102444800,"iat":1,"jti":"1","client_id":"c"}`},
}

func tokenOfType(t testing.TB, typ, claims string) string {
	t.Helper()
	var header map[jose.HeaderKey]any
	if typ != "" {
		header = map[jose.HeaderKey]any{"typ": typ}
	}
	return toClient().encrypt(t, sign(t, signingKey(t, "ES256"), claims, header))
}

// Each kind opens as itself, as any, and as nothing else.
func TestNoKindPassesForAnother(t *testing.T) {
	if len(kindExamples) != len(TokenKinds()) {
		t.Fatalf("%d examples of %d kinds", len(kindExamples), len(TokenKinds()))
	}
	for kind, example := range kindExamples {
		token := tokenOfType(t, example.typ, example.claims)
		for _, expected := range append(TokenKinds(), AnyKind) {
			o := newOpener(t, func(c *OpenConfig) { c.Kind, c.Audience = expected, "rp" })
			_, err := o.Open(token)
			if expected == kind || expected == AnyKind {
				if err != nil {
					t.Errorf("%s opened as %q: %v", kind, expected, err)
				}
			} else if !errors.Is(err, ErrClaims) {
				t.Errorf("%s opened as %s: got error %v, want ErrClaims", kind, expected, err)
			}
		}
	}
}

func TestKindsAreChecked(t *testing.T) {
	without := func(claims, member string) string { return editJSON(t, claims, map[string]any{member: nil}) }
	id, logout := kindExamples[IDToken].claims, kindExamples[LogoutToken].claims
	for _, test := range []struct {
		name        string
		kind        TokenKind
		typ, claims string
		text        string // in the error; empty if it opens
	}{
		{"ID token of type JWT", IDToken, "JWT", id, ""},
		{"ID token of type jwt", IDToken, "application/jwt", id, ""},
		{"ID token of another type", IDToken, "at+jwt", id, "typ"},
		{"ID token without sub", IDToken, "", without(id, "sub"), "sub is missing"},
		{"ID token with empty sub", IDToken, "", editJSON(t, id, map[string]any{"sub": ""}), "sub is not a string"},
		{"ID token whose sub is a number", IDToken, "", editJSON(t, id, map[string]any{"sub": 1}), "sub is not a string"},
		{"ID token without exp", IDToken, "", without(id, "exp"), "exp is missing"},
		{"ID token for us by azp", IDToken, "", editJSON(t, id, map[string]any{"azp": "rp"}), ""},
		{"ID token for another by azp", IDToken, "", editJSON(t, id, map[string]any{"azp": "x"}), "azp"},
		{"ID token whose azp is an array", IDToken, "", editJSON(t, id, map[string]any{"azp": []string{"rp"}}), "azp"},

		{"logout token of no type", LogoutToken, "", logout, "typ"},
		{"logout token of type JWT", LogoutToken, "JWT", logout, "typ"},
		{"logout token by its full type", LogoutToken, "application/logout+jwt", logout, ""},
		{"logout token by another case", LogoutToken, "Logout+JWT", logout, ""},
		{"logout token with nonce", LogoutToken, "logout+jwt", editJSON(t, logout, map[string]any{"nonce": "n"}), "nonce"},
		{"logout token without events", LogoutToken, "logout+jwt", without(logout, "events"), "events is missing"},
		{"logout token of another event", LogoutToken, "logout+jwt", editJSON(t, logout, map[string]any{"events": map[string]any{"x": map[string]any{}}}), "logout"},
		{"logout token whose event is true", LogoutToken, "logout+jwt", editJSON(t, logout, map[string]any{"events": map[string]any{logoutEvent: true}}), "logout"},
		{"logout token whose events are text", LogoutToken, "logout+jwt", editJSON(t, logout, map[string]any{"events": logoutEvent}), "logout"},
		{"logout token without jti", LogoutToken, "logout+jwt", without(logout, "jti"), "jti is missing"},
		{"logout token of nobody", LogoutToken, "logout+jwt", without(logout, "sub"), "sub and sid"},
		{"logout token of a session", LogoutToken, "logout+jwt", editJSON(t, logout, map[string]any{"sub": nil, "sid": "s"}), ""},
		{"logout token whose sid is empty", LogoutToken, "logout+jwt", editJSON(t, logout, map[string]any{"sub": nil, "sid": ""}), "sid is not"},

		{"user info that ends", UserInfo, "", editJSON(t, kindExamples[UserInfo].claims, map[string]any{"exp": 4102444800}), "exp"},
		{"introspection of text", Introspection, "token-introspection+jwt",
			editJSON(t, kindExamples[Introspection].claims, map[string]any{"token_introspection": "active"}), "not an object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOpener(t, func(c *OpenConfig) { c.Kind, c.Audience = test.kind, "rp" })
			_, err := o.Open(tokenOfType(t, test.typ, test.claims))
			switch {
			case test.text == "" && err != nil:
				t.Error(err)
			case test.text != "" && (!errors.Is(err, ErrClaims) || !strings.Contains(err.Error(), test.text)):
				t.Errorf("got error %v, want ErrClaims with %q", err, test.text)
			}
		})
	}
}

// The header of an encrypted logout token repeats iss, so that a client of several
// issuers knows whom to ask; it must not lie.
func TestLogoutTokenMustAgreeWithItsHeader(t *testing.T) {
	inner := sign(t, signingKey(t, "ES256"), kindExamples[LogoutToken].claims, map[jose.HeaderKey]any{"typ": "logout+jwt"})
	o := newOpener(t, func(c *OpenConfig) { c.Kind = LogoutToken })
	for iss, want := range map[string]error{"a": nil, "b": ErrClaims} {
		s := toClient()
		s.header = map[jose.HeaderKey]any{"iss": iss}
		if _, err := o.Open(s.encrypt(t, inner)); !errors.Is(err, want) {
			t.Errorf("iss %s: got error %v, want %v", iss, err, want)
		}
	}
}
