package client

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

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

// Hostile tokens: each kind with what would make it one of another kind added, by its
// own name and by others that are the same to readers who do not mind case. None may
// open as another kind, and those whose claims mean two things not even as their own.
func TestNoKindPassesForAnotherWithClaimsAdded(t *testing.T) {
	parts := map[string]any{
		"iss": "a", "sub": "b", "exp": 4102444800, "iat": 1, "jti": "1", "nonce": "n", "sid": "s", "client_id": "c", "azp": "rp", "at_hash": "h",
		"events":              map[string]any{logoutEvent: map[string]any{}},
		"token_introspection": map[string]any{"active": true},
		"code":                "x", "error": "e", "access_token": "t", "id_token": "t",
	}
	openers := map[TokenKind]*Opener{}
	for _, kind := range TokenKinds() {
		openers[kind] = newOpener(t, func(c *OpenConfig) { c.Kind, c.Audience, c.AllowUnencrypted = kind, "rp", true })
	}
	spellings := map[string]func(string) string{
		"":           func(name string) string { return name },
		"capitals":   strings.ToUpper,
		"one letter": func(name string) string { return strings.ToUpper(name[:1]) + name[1:] },
		"Kelvin and long s": func(name string) string {
			return strings.NewReplacer("k", "\u212a", "s", "\u017f").Replace(name)
		},
	}
	key, tokens := signingKey(t, "ES256"), 0
	for kind, example := range kindExamples {
		for how, spell := range spellings {
			all := map[string]any{}
			changes := []map[string]any{all}
			for name, value := range parts {
				if spell(name) == name && how != "" {
					continue
				}
				all[spell(name)] = value
				changes = append(changes, map[string]any{spell(name): value})
				if how != "" {
					changes = append(changes, map[string]any{spell(name): value, name: nil})
				}
			}
			for _, change := range changes {
				claims := editJSON(t, example.claims, change)
				for typ := range map[string]bool{"": true, "JWT": true, example.typ: true} {
					if kind.typed() && typ != example.typ {
						continue // the issuer's doing, which nobody else can change
					}
					header := map[jose.HeaderKey]any{}
					if typ != "" {
						header["typ"] = typ
					}
					token := sign(t, key, claims, header)
					tokens++
					for as, o := range openers {
						_, err := o.Open(token)
						if as != kind && !errors.Is(err, ErrClaims) {
							t.Errorf("%s with %v opened as %s: got error %v, want ErrClaims", kind, change, as, err)
						}
						if as == kind && how != "" && !onlyFree(change) && !errors.Is(err, ErrClaims) {
							t.Errorf("%s with %v opened: got error %v, want ErrClaims", kind, change, err)
						}
					}
				}
			}
		}
	}
	t.Logf("%d tokens", tokens)
}

// typed tells if the signature's header has a typ of this kind's own.
func (k TokenKind) typed() bool { r, _ := k.rules(); return r != nil && r.typ != "" }

// onlyFree tells if a change adds nothing but what the kind does not care for.
func onlyFree(change map[string]any) bool {
	for name := range change {
		if !slices.ContainsFunc([]string{"code", "error", "access_token", "id_token"}, func(free string) bool { return strings.EqualFold(name, free) }) {
			return false
		}
	}
	return true
}

func TestOtherAudiencesMustBeTrusted(t *testing.T) {
	for _, test := range []struct {
		name    string
		kind    TokenKind
		changes map[string]any
		trusted []string
		text    string // in the error; empty if it opens
	}{
		{"none", IDToken, map[string]any{"aud": []string{"rp"}}, nil, ""},
		{"another", IDToken, map[string]any{"aud": []string{"rp", "x"}, "azp": "rp"}, nil, "aud names others"},
		{"trusted", IDToken, map[string]any{"aud": []string{"x", "rp"}, "azp": "rp"}, []string{"y", "x"}, ""},
		{"one of two trusted", IDToken, map[string]any{"aud": []string{"x", "rp", "y"}, "azp": "rp"}, []string{"x"}, "aud names others"},
		{"trusted, without azp", IDToken, map[string]any{"aud": []string{"x", "rp"}}, []string{"x"}, "azp is missing"},
		{"trusted, with another's azp", IDToken, map[string]any{"aud": []string{"x", "rp"}, "azp": "x"}, []string{"x"}, "azp is not"},
		{"trusted alone", IDToken, map[string]any{"aud": "x"}, []string{"x"}, "does not name"},
		{"twice the same", IDToken, map[string]any{"aud": []string{"rp", "rp"}}, nil, ""},
		{"of a logout token", LogoutToken, map[string]any{"aud": []string{"rp", "x"}}, nil, "aud names others"},
		{"of a UserInfo response", UserInfo, map[string]any{"aud": []string{"rp", "x"}}, nil, "aud names others"},
		{"of an authorization response", AuthorizationResponse, map[string]any{"aud": []string{"rp", "x"}}, nil, "aud names others"},
		{"of an introspection response", Introspection, map[string]any{"aud": []string{"rp", "x"}}, nil, "aud names others"},
		{"of an access token", AccessToken, map[string]any{"aud": []string{"rp", "x"}}, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOpener(t, func(c *OpenConfig) { c.Kind, c.Audience, c.TrustedAudiences = test.kind, "rp", test.trusted })
			example := kindExamples[test.kind]
			_, err := o.Open(tokenOfType(t, example.typ, editJSON(t, example.claims, test.changes)))
			switch {
			case test.text == "" && err != nil:
				t.Error(err)
			case test.text != "" && (!errors.Is(err, ErrClaims) || !strings.Contains(err.Error(), test.text)):
				t.Errorf("got error %v, want ErrClaims with %q", err, test.text)
			}
		})
	}
}

func TestTokenOfTheFutureIsRefused(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for iat, want := range map[string]error{
		"1800000060": nil, "1800000061": ErrClaims, "1.80000006e9": nil, "1e12": ErrClaims,
		`"1800000000"`: ErrClaims, "null": ErrClaims, "1e999": ErrClaims, "[1]": ErrClaims,
	} {
		for _, kind := range []TokenKind{IDToken, UserInfo} {
			o := newOpener(t, func(c *OpenConfig) { c.Kind, c.Clock = kind, func() time.Time { return now } })
			claims := editJSON(t, kindExamples[kind].claims, map[string]any{"iat": json.RawMessage(iat)})
			if strings.Contains(iat, "e999") {
				claims = strings.TrimSuffix(editJSON(t, kindExamples[kind].claims, map[string]any{"iat": nil}), "}") + `,"iat":` + iat + "}"
			}
			if _, err := o.Open(tokenOfType(t, "", claims)); !errors.Is(err, want) {
				t.Errorf("%s with iat %s: got error %v, want %v", kind, iat, err, want)
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

		{"ID token whose aud is an object", IDToken, "", editJSON(t, id, map[string]any{"aud": map[string]any{}}), "aud"},
		{"ID token with an authorization code", IDToken, "", editJSON(t, id, map[string]any{"code": "c"}), "it has code"},
		{"logout token with an introspection", LogoutToken, "logout+jwt", editJSON(t, logout, map[string]any{"token_introspection": map[string]any{}}), "it has token_introspection"},
		{"logout token with a hash", LogoutToken, "logout+jwt", editJSON(t, logout, map[string]any{"at_hash": "h"}), "it has at_hash"},
		{"access token with a code", AccessToken, "at+jwt", editJSON(t, kindExamples[AccessToken].claims, map[string]any{"error": "e"}), "it has error"},
		{"user info with Sub", UserInfo, "", editJSON(t, kindExamples[UserInfo].claims, map[string]any{"Sub": "c"}), "it has sub by a name"},
		{"user info with CODE", UserInfo, "", editJSON(t, kindExamples[UserInfo].claims, map[string]any{"CODE": "c"}), ""},
		{"introspection without active", Introspection, "token-introspection+jwt",
			editJSON(t, kindExamples[Introspection].claims, map[string]any{"token_introspection": map[string]any{"sub": "b"}}), "active"},
		{"introspection that is active by text", Introspection, "token-introspection+jwt",
			editJSON(t, kindExamples[Introspection].claims, map[string]any{"token_introspection": map[string]any{"active": "true"}}), "active"},
		{"introspection that is active twice", Introspection, "token-introspection+jwt",
			editJSON(t, kindExamples[Introspection].claims, map[string]any{"token_introspection": map[string]any{"active": false, "Active": true}}), "active"},
		{"introspection that is not active", Introspection, "token-introspection+jwt",
			editJSON(t, kindExamples[Introspection].claims, map[string]any{"token_introspection": map[string]any{"active": false}}), ""},
		{"introspection with events", Introspection, "token-introspection+jwt",
			editJSON(t, kindExamples[Introspection].claims, map[string]any{"events": map[string]any{}}), "it has events"},
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
