package e2e

import (
	"testing"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestNobodyGetsATokenForAnotherClientInPassing: the client opens its token and
// holds a signed one, which must not be worth anything to another.
func TestNobodyGetsATokenForAnotherClientInPassing(t *testing.T) {
	t.Parallel()
	const limited = "spiffe://example.com/limited"
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Grants: []harness.M{
		{"caller": limited, "allow": []string{"issue"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN", "LOGOUT_TOKEN"}, "clients": []string{"aud-*"}},
	}})
	admin, caller := s.Caller(t, harness.Admin), s.Caller(t, limited)
	mustRegister(t, admin, withJWKS("aud-own", harness.JWKS(anyKey())))
	mustRegister(t, admin, withJWKS("victim", harness.JWKS(otherKey())))
	req := func(kind bullav1.TokenKind, claims string) *bullav1.SignAndEncryptRequest {
		return &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: "aud-own", TokenKind: kind, Claims: []byte(claims)}
	}
	_, err := caller.Tokens.SignAndEncrypt(t.Context(), req(kindID, `{"sub":"zoe","aud":["aud-own","victim"]}`))
	mustFail(t, err, "CLAIMS_NOT_ALLOWED", "aud")
	_, err = admin.Tokens.SignAndEncrypt(t.Context(), req(kindLogout, `{"sub":"zoe","aud":["aud-own","victim"]}`))
	mustFail(t, err, "CLAIMS_INVALID", "aud")

	token := mustIssue(t, caller, req(kindID, `{"sub":"zoe","aud":["aud-own","aud-other"]}`)).GetToken()
	if claims := openWith(t, s, token, anyKey().Key, nil); claims["azp"] != "aud-own" {
		t.Errorf("got azp %v, want the client: there are two audiences", claims["azp"])
	}
}
