package seal

import (
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/signer"
)

// allowClaims holds a payload against what the caller's grants ask of its claims.
//
// Who else aud names is asked of every caller: the client gets a signed token out
// of the encrypted one, and each of those would take it for its own.
func allowClaims(t *token, payload *signer.Payload) error {
	others := payload.OtherAudiences()
	if t.terms.Free() && len(others) == 0 {
		return nil
	}
	claims := authz.Claims{Lifetime: payload.Lifetime(), Given: payload.Given(), Others: others}
	if !t.Kind.ClientBound() {
		claims.Audiences = payload.Audiences()
	}
	return t.terms.Check(claims)
}
