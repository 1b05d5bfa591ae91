package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/interop"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestOthersOpenEveryKindOfToken has npm jose and python3-jwcrypto open what
// the service makes: every key management algorithm on every curve with every
// content encryption, and every signing algorithm, with keys on the token.
func TestOthersOpenEveryKindOfToken(t *testing.T) {
	openers := []*interop.Opener{interop.Start(t, interop.Node), interop.Start(t, interop.Python)}
	admin := shared.Caller(t, harness.Admin)
	issuing := shared.Caller(t, idp)
	jwks := signers(t, shared.Service)

	keys := map[string]harness.ClientKey{}
	for _, curve := range append([]string{""}, interop.Curves...) {
		keys[curve] = harness.NewClientKey(t, curve, strings.TrimSuffix("client-"+curve, "-"))
	}
	signed := map[string]bool{}
	for i, c := range interop.Cases() {
		signed[c.Signature] = true
		key := keys[c.Curve]
		clientID := fmt.Sprintf("interop-%d", i)
		s := setting(c.Algorithm, c.ContentEncryption)
		s.SigningAlgorithm = c.Signature
		req := withJWKS(clientID, harness.JWKS(key), s)
		if i%2 == 1 {
			req = withURI(clientID, shared.host.Serve("/interop"+c.Curve, harness.JWKS(key), time.Hour), s)
		}
		mustRegister(t, admin, req)

		// With everything given nothing is filled in: the payload is these bytes.
		now := time.Now().Unix()
		claims := fmt.Sprintf(`{"exp":%d, "iss":%q,"aud":[%q,"other"],"sub":"zo\u00eb","iat":%d,`+
			`"n":1.0,"big":12345678901234567890,"e":1e+2,"☃":"☃","":{"b":[],"a":null}}`, now+60, harness.IssuerURL, clientID, now)
		res := mustIssue(t, issuing, &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: clientID, Claims: []byte(claims)})
		if res.GetEncryptionAlgorithm() != c.Algorithm || res.GetContentEncryption() != c.ContentEncryption ||
			res.GetSigningAlgorithm() != c.Signature || res.GetEncryptionKeyId() != key.KeyID {
			t.Errorf("%s: the reply says %s, %s, %s to %q", c, res.GetEncryptionAlgorithm(), res.GetContentEncryption(), res.GetSigningAlgorithm(), res.GetEncryptionKeyId())
		}
		for _, o := range openers {
			o.Check(t, c, interop.Request{
				Token: res.GetToken(), PrivateJWK: key.PrivateJWK(), SignersJWKS: jwks,
				KeyAlgorithms: []string{c.Algorithm}, ContentEncryptions: []string{c.ContentEncryption}, SignatureAlgorithms: []string{c.Signature},
			}, claims)
		}
	}
	for _, alg := range interop.SignatureAlgorithms {
		if !signed[alg] {
			t.Errorf("no token was signed with %s", alg)
		}
	}
}

// TestOthersRefuseWhatWasTamperedWith keeps the test above honest: a client that
// opened anything would pass it.
func TestOthersRefuseWhatWasTamperedWith(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("tampered", harness.JWKS(anyKey()), setting("ECDH-ES", "A256GCM")))
	token := mustIssue(t, admin, idToken("tampered")).GetToken()
	c := interop.Case{Algorithm: "ECDH-ES", Curve: "P-256", ContentEncryption: "A256GCM", Signature: "ES256"}
	request := interop.Request{
		PrivateJWK: anyKey().PrivateJWK(), SignersJWKS: signers(t, shared.Service),
		KeyAlgorithms: []string{c.Algorithm}, ContentEncryptions: []string{c.ContentEncryption}, SignatureAlgorithms: []string{c.Signature},
	}
	last := strings.LastIndexByte(token, '.') + 1
	changed := []byte(token)
	changed[last] = 'A' + (changed[last]-'A'+1)%26
	for _, name := range interop.Clients {
		o := interop.Start(t, name)
		for what, token := range map[string]string{"the tag": string(changed), "the end": token[:len(token)-4]} {
			request.Token = token
			if _, err := o.Open(request); err == nil {
				t.Errorf("%s opened a token with another %s", name, what)
			}
		}
		request.Token = token
		request.SignersJWKS = []byte(`{"keys":[]}`)
		if _, err := o.Open(request); err == nil {
			t.Errorf("%s opened a token of an unknown signer", name)
		}
		request.SignersJWKS = signers(t, shared.Service)
		if _, err := o.Open(request); err != nil {
			t.Errorf("%s does not open the token as it is: %v", name, err)
		}
	}
}
