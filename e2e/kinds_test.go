package e2e

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

const (
	kindLogout        = bullav1.TokenKind_TOKEN_KIND_LOGOUT_TOKEN
	kindAuthorization = bullav1.TokenKind_TOKEN_KIND_AUTHORIZATION_RESPONSE
	kindIntrospection = bullav1.TokenKind_TOKEN_KIND_INTROSPECTION
)

// innerType decrypts a token with a P-256 key and returns the typ of its inside.
func innerType(t testing.TB, key harness.ClientKey, token string) any {
	t.Helper()
	jwe, err := jose.ParseEncryptedCompact(token, []jose.KeyAlgorithm{jose.ECDH_ES_A128KW}, []jose.ContentEncryption{jose.A128GCM})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := jwe.Decrypt(key.Key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := base64.RawURLEncoding.DecodeString(string(inner[:strings.IndexByte(string(inner), '.')]))
	if err != nil {
		t.Fatal(err)
	}
	var h map[string]any
	if err := json.Unmarshal(text, &h); err != nil {
		t.Fatal(err)
	}
	return h["typ"]
}

func TestEveryKindOfTokenHasItsOwnSettingTypeAndClaims(t *testing.T) {
	t.Parallel()
	const id = "kinds"
	admin, key := shared.Caller(t, harness.Admin), anyKey()
	of := func(kind bullav1.TokenKind) *bullav1.ResponseSetting {
		s := setting("ECDH-ES+A128KW", "A128GCM")
		s.TokenKind = kind
		return s
	}
	mustRegister(t, admin, withJWKS(id, harness.JWKS(key),
		of(bullav1.TokenKind_TOKEN_KIND_ID_TOKEN), of(kindUserInfo), of(kindAuthorization), of(kindIntrospection)))
	for _, tc := range []struct {
		kind   bullav1.TokenKind
		claims string
		typ    any
		has    []string
		lacks  []string
	}{
		{bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, `{"sub":"zoe"}`, "JWT", []string{"iss", "aud", "iat", "exp", "sub"}, []string{"events"}},
		{kindLogout, `{"sub":"zoe","sid":"s-1"}`, "logout+jwt", []string{"iss", "aud", "iat", "exp", "jti", "events"}, []string{"nonce"}},
		{kindUserInfo, `{"sub":"zoe","email":"zoe@example.com"}`, nil, []string{"iss", "aud", "sub"}, []string{"exp"}},
		{kindAuthorization, `{"code":"c-1","state":"s"}`, nil, []string{"iss", "aud", "exp", "code"}, []string{"sub"}},
		{kindIntrospection, `{"token_introspection":{"active":true,"sub":"zoe"}}`, "token-introspection+jwt", []string{"iss", "aud", "iat", "token_introspection"}, []string{"sub", "exp"}},
	} {
		req := &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: id, TokenKind: tc.kind, Claims: []byte(tc.claims)}
		token := mustIssue(t, admin, req).GetToken()
		claims := openWith(t, shared.Service, token, key.Key, nil)
		for _, name := range tc.has {
			if _, ok := claims[name]; !ok {
				t.Errorf("%s lacks %s: %v", tc.kind, name, claims)
			}
		}
		for _, name := range tc.lacks {
			if _, ok := claims[name]; ok {
				t.Errorf("%s has %s: %v", tc.kind, name, claims)
			}
		}
		if got := innerType(t, key, token); got != tc.typ {
			t.Errorf("%s: got typ %v, want %v", tc.kind, got, tc.typ)
		}
		wantISS := any(nil)
		if tc.kind == kindLogout {
			wantISS = harness.IssuerURL
		}
		if got := header(t, token)["iss"]; got != wantISS {
			t.Errorf("%s: got iss %v in the JWE header, want %v", tc.kind, got, wantISS)
		}
	}
	for kind, claims := range map[bullav1.TokenKind]string{
		kindLogout:                            `{"sub":"zoe","nonce":"n"}`,
		kindAuthorization:                     `{"sub":"zoe","code":"c"}`,
		kindIntrospection:                     `{"sub":"zoe","token_introspection":{"active":true}}`,
		kindUserInfo:                          `{"sub":"zoe","events":{}}`,
		bullav1.TokenKind_TOKEN_KIND_ID_TOKEN: `{"sub":"zoe","events":{"http://schemas.openid.net/event/backchannel-logout":{}}}`,
	} {
		_, err := admin.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: id, TokenKind: kind, Claims: []byte(claims)})
		mustFail(t, err, "CLAIMS_INVALID")
	}

	_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS("kinds-2", harness.JWKS(key), of(kindLogout)))
	mustBe(t, err, codes.InvalidArgument, "ID_TOKEN")
	mustRegister(t, admin, withJWKS("kinds-3", harness.JWKS(key), of(kindUserInfo)))
	_, err = admin.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: "kinds-3", TokenKind: kindLogout, Claims: []byte(`{"sub":"zoe"}`)})
	mustFail(t, err, "CLIENT_KEY_UNUSABLE")
}
