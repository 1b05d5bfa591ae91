package e2e

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

const (
	kindID       = bullav1.TokenKind_TOKEN_KIND_ID_TOKEN
	kindUserInfo = bullav1.TokenKind_TOKEN_KIND_USERINFO
	kindAccess   = bullav1.TokenKind_TOKEN_KIND_ACCESS_TOKEN
)

func TestAccessTokenIsSignedWithoutAClient(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	res, err := admin.Tokens.Sign(t.Context(), &bullav1.SignRequest{
		Issuer: harness.Issuer, TokenKind: kindAccess, Lifetime: durationpb.New(30 * time.Minute), SigningAlgorithm: "PS384",
		Claims: []byte(`{"sub":"alice","aud":"https://api.example.com","client_id":"sign-at","scope":"read"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := opener(t, shared.Service, harness.ClientKey{}, client.OpenConfig{
		AllowUnencrypted: true, Issuer: harness.IssuerURL, Audience: "https://api.example.com", SignatureAlgorithms: []string{"PS384"},
	}).Open(res.GetToken())
	if err != nil {
		t.Fatal(err)
	}
	if typ := token.SignatureHeader.Type; typ != "at+jwt" {
		t.Errorf("got typ %q, want at+jwt (RFC 9068, section 2.1)", typ)
	}
	if token.SignatureHeader.KeyID != res.GetSigningKeyId() || res.GetSigningAlgorithm() != "PS384" {
		t.Errorf("the reply says %s with %s, the token %s", res.GetSigningKeyId(), res.GetSigningAlgorithm(), token.SignatureHeader.KeyID)
	}
	if life := claim(t, token, "exp").(float64) - claim(t, token, "iat").(float64); life != 1800 {
		t.Errorf("got a lifetime of %v s, want 1800", life)
	}
	if claim(t, token, "jti") == nil {
		t.Error("the access token has no jti")
	}

	_, err = admin.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: "sign-at", TokenKind: kindAccess, Claims: sub})
	mustFail(t, err, "ALGORITHM_NOT_ALLOWED", "ask Sign")
}

func TestHashClaimsAreThoseOfTheSigningAlgorithm(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("sign-hashes", harness.JWKS(anyKey())))
	half := func(sum []byte) string { return base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2]) }
	at256, code256 := sha256.Sum256([]byte("the access token")), sha256.Sum256([]byte("the code"))
	at512, state512 := sha512.Sum512([]byte("the access token")), sha512.Sum512([]byte("state-of-the-request"))
	for _, test := range []struct {
		req  *bullav1.SignAndEncryptRequest
		want map[string]any
	}{
		{
			&bullav1.SignAndEncryptRequest{SigningAlgorithm: "ES256", AccessToken: "the access token", Code: "the code"},
			map[string]any{"at_hash": half(at256[:]), "c_hash": half(code256[:]), "s_hash": nil},
		},
		{
			&bullav1.SignAndEncryptRequest{SigningAlgorithm: "Ed25519", AccessToken: "the access token", State: "state-of-the-request"},
			map[string]any{"at_hash": half(at512[:]), "c_hash": nil, "s_hash": half(state512[:])},
		},
	} {
		test.req.Issuer, test.req.ClientId, test.req.Claims = harness.Issuer, "sign-hashes", sub
		token := open(t, shared.Service, anyKey(), mustIssue(t, admin, test.req).GetToken())
		for name, want := range test.want {
			if got := claim(t, token, name); got != want {
				t.Errorf("%s: got %s %v, want %v", test.req.GetSigningAlgorithm(), name, got, want)
			}
		}
	}
}

// TestPlaintextIsGivenOnlyToThoseWhoMayHaveIt goes through who may get a token
// that is signed only.
func TestPlaintextIsGivenOnlyToThoseWhoMayHaveIt(t *testing.T) {
	admin, plain := shared.Caller(t, harness.Admin), shared.Caller(t, idp)
	// ID tokens encrypted, UserInfo signed only, and the other way round: the
	// setting of one kind says nothing of another.
	userInfo := &bullav1.ResponseSetting{TokenKind: kindUserInfo, SigningAlgorithm: "ES384"}
	mustRegister(t, admin, withJWKS("sign-mixed", harness.JWKS(anyKey()), setting("ECDH-ES", ""), userInfo))
	mustRegister(t, admin, withJWKS("sign-id-only", harness.JWKS(anyKey())))
	mustRegister(t, admin, withJWKS("sign-deleted", harness.JWKS(anyKey()), userInfo))
	if _, err := admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: "sign-deleted"}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what   string
		caller *client.Client
		id     string
		kind   bullav1.TokenKind
		allow  bool
		reason string // empty: a token
		words  string
	}{
		{"registered as signed only", plain, "sign-mixed", kindUserInfo, false, "", ""},
		{"registered as encrypted", plain, "sign-mixed", kindID, false, "ENCRYPTION_REQUIRED", "ask SignAndEncrypt"},
		{"registered as encrypted, asked for it", plain, "sign-mixed", kindID, true, "CALLER_NOT_ALLOWED", "sign_unencrypted"},
		{"registered as encrypted, asked for it with the permission", admin, "sign-mixed", kindID, true, "", ""},
		{"registered as encrypted, with the permission and not asked for it", admin, "sign-mixed", kindID, false, "ENCRYPTION_REQUIRED", ""},
		{"a kind that the registration does not name", plain, "sign-id-only", kindUserInfo, false, "ENCRYPTION_REQUIRED", "USERINFO"},
		{"unknown client", plain, "sign-nobody", kindID, false, "CLIENT_NOT_REGISTERED", "register"},
		{"unknown client, with the permission", admin, "sign-nobody", kindUserInfo, true, "CLIENT_NOT_REGISTERED", "register"},
		{"deleted client", plain, "sign-deleted", kindUserInfo, false, "CLIENT_NOT_REGISTERED", "register"},
		{"deleted client, with the permission", admin, "sign-deleted", kindUserInfo, true, "CLIENT_NOT_REGISTERED", "register"},
		{"an access token for a caller without that kind", plain, "", kindAccess, false, "CALLER_NOT_ALLOWED", "ACCESS_TOKEN"},
	} {
		t.Run(test.what, func(t *testing.T) {
			res, err := test.caller.Tokens.Sign(t.Context(), &bullav1.SignRequest{
				Issuer: harness.Issuer, ClientId: test.id, TokenKind: test.kind, Claims: sub, AllowUnencrypted: test.allow,
			})
			if test.reason != "" {
				mustFail(t, err, test.reason, test.words)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			token, err := opener(t, shared.Service, harness.ClientKey{}, client.OpenConfig{AllowUnencrypted: true, Audience: test.id}).Open(res.GetToken())
			if err != nil {
				t.Fatal(err)
			}
			if token.EncryptionHeader != nil {
				t.Error("the token is encrypted")
			}
			if test.kind == kindUserInfo && res.GetSigningAlgorithm() != "ES384" {
				t.Errorf("signed with %s, want the registered ES384", res.GetSigningAlgorithm())
			}
		})
	}
	_, err := plain.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: "sign-mixed", TokenKind: kindUserInfo, Claims: sub})
	mustFail(t, err, "CLIENT_KEY_UNUSABLE", "ask Sign")
}

func TestSigningAlgorithmIsTheClientsThenTheRequestsThenTheIssuers(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	registered := setting("ECDH-ES", "")
	registered.SigningAlgorithm = "RS512"
	mustRegister(t, admin, withJWKS("alg-registered", harness.JWKS(anyKey()), registered))
	mustRegister(t, admin, withJWKS("alg-open", harness.JWKS(anyKey())))
	mustRegister(t, admin, func() *bullav1.RegisterClientKeyRequest {
		req := withJWKS("alg-narrow", harness.JWKS(rsaKey()), setting("RSA-OAEP-256", "A256GCM"))
		req.Issuer = narrow
		return req
	}())
	for _, test := range []struct {
		issuer, id, ask string
		want, reason    string
	}{
		{harness.Issuer, "alg-registered", "", "RS512", ""},
		{harness.Issuer, "alg-registered", "RS512", "RS512", ""},
		{harness.Issuer, "alg-registered", "ES256", "", "ALGORITHM_NOT_ALLOWED"},
		{harness.Issuer, "alg-open", "", "ES256", ""},
		{harness.Issuer, "alg-open", "EdDSA", "EdDSA", ""},
		{harness.Issuer, "alg-open", "HS256", "", "ALGORITHM_NOT_ALLOWED"},
		{harness.Issuer, "alg-open", "none", "", "ALGORITHM_NOT_ALLOWED"},
		{narrow, "alg-narrow", "", "PS256", ""},
		{narrow, "alg-narrow", "ES256", "", "ALGORITHM_NOT_ALLOWED"},
	} {
		t.Run(test.id+" "+test.ask, func(t *testing.T) {
			req := idToken(test.id)
			req.Issuer, req.SigningAlgorithm = test.issuer, test.ask
			res, err := admin.Tokens.SignAndEncrypt(t.Context(), req)
			if test.reason != "" {
				mustFail(t, err, test.reason)
				return
			}
			if err != nil || res.GetSigningAlgorithm() != test.want {
				t.Errorf("got %s (%v), want %s", res.GetSigningAlgorithm(), err, test.want)
			}
		})
	}
}
