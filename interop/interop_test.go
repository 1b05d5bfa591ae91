package interop

import (
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The harness is proven with tokens of go-jose, before Bulla's reach it.

const claims = `{"sub":"alice","n":12345678901234567890,"name":"Grüße 😀", "x" : 1.0}`

func TestClientsOpenWhatTheMatrixSays(t *testing.T) {
	for _, client := range Clients {
		t.Run(string(client), func(t *testing.T) {
			t.Parallel()
			o := Start(t, client)
			seen := map[string]int{}
			for _, c := range Cases() {
				o.Check(t, c, request(t, c), claims)
				for _, name := range []string{c.Algorithm, c.Curve, c.ContentEncryption, c.Signature} {
					seen[name]++
				}
			}
			for _, name := range slices.Concat(RSAAlgorithms, ECDHAlgorithms, Curves, ContentEncryptions, SignatureAlgorithms) {
				if seen[name] < 2 {
					t.Errorf("%s occurs %d times in Cases, want at least 2", name, seen[name])
				}
			}
		})
	}
}

func TestEveryExceptionIsMet(t *testing.T) {
	for _, e := range Matrix {
		if e.Reason == "" || e.Error == "" {
			t.Errorf("%+v has no reason or no error text", e)
		}
		if !slices.ContainsFunc(Cases(), func(c Case) bool { _, because := Expect(e.Client, c); return because == e }) {
			t.Errorf("%+v applies to no case", e)
		}
	}
}

// A client that opened anything would prove nothing.
func TestClientsRefuse(t *testing.T) {
	c := Case{Algorithm: "ECDH-ES+A128KW", Curve: "P-256", ContentEncryption: "A128CBC-HS256", Signature: "ES256"}
	inner := sign(t, c, claims)
	parts := func(r *Request) []string { return strings.Split(r.Token, ".") }
	openers := map[Client]*Opener{}
	for _, client := range Clients {
		openers[client] = Start(t, client)
		if _, err := openers[client].Open(request(t, c)); err != nil {
			t.Fatalf("%s: unchanged token: %v", client, err)
		}
	}
	for _, test := range []struct {
		name   string
		want   map[Client]string // in the refusal
		change func(*Request)
	}{
		{"changed tag", map[Client]string{Node: "DECRYPTION_FAILED", Python: "Failed to verify MAC"}, func(r *Request) { r.Token = flip(t, r.Token, 4) }},
		{"changed ciphertext", map[Client]string{Node: "DECRYPTION_FAILED", Python: "Failed to verify MAC"}, func(r *Request) { r.Token = flip(t, r.Token, 3) }},
		{"changed encrypted key", map[Client]string{Node: "DECRYPTION_FAILED", Python: "InvalidUnwrap"}, func(r *Request) { r.Token = flip(t, r.Token, 1) }},
		{"another key of the same kid", map[Client]string{Node: "DECRYPTION_FAILED", Python: "InvalidUnwrap"}, func(r *Request) {
			key := jose.JSONWebKey{Key: newEC(elliptic.P256()), KeyID: clientKID(c)}
			r.PrivateJWK = marshal(t, key)
		}},
		{"key of another kid", map[Client]string{Node: "encrypted to key", Python: "encrypted to key"}, func(r *Request) {
			key := clientKey(c)
			key.KeyID = "other"
			r.PrivateJWK = marshal(t, key)
		}},
		{"alg not listed", map[Client]string{Node: "ALG_NOT_ALLOWED", Python: "not allowed"}, func(r *Request) { r.KeyAlgorithms = []string{"ECDH-ES"} }},
		{"enc not listed", map[Client]string{Node: "ALG_NOT_ALLOWED", Python: "not allowed"}, func(r *Request) { r.ContentEncryptions = []string{"A256GCM"} }},
		{"signature alg not listed", map[Client]string{Node: "ALG_NOT_ALLOWED", Python: "not allowed"}, func(r *Request) { r.SignatureAlgorithms = []string{"ES384"} }},
		{"signer unknown", map[Client]string{Node: "NO_MATCHING_KEY", Python: "0 signers"}, func(r *Request) { r.SignersJWKS = json.RawMessage(`{"keys":[]}`) }},
		{"signer of another alg", map[Client]string{Node: "NO_MATCHING_KEY", Python: "0 signers"}, func(r *Request) {
			r.SignersJWKS = marshal(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(signingKey("PS256"))}})
		}},
		{"another signer of the same kid", map[Client]string{Node: "SIGNATURE_VERIFICATION_FAILED", Python: "InvalidJWSSignature"}, func(r *Request) {
			key := jose.JSONWebKey{Key: newEC(elliptic.P256()).Public(), KeyID: "ES256", Algorithm: "ES256"}
			r.SignersJWKS = marshal(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
		}},
		{"changed signature inside", map[Client]string{Node: "SIGNATURE_VERIFICATION_FAILED", Python: "InvalidJWSSignature"}, func(r *Request) { r.Token = encrypt(t, c, flip(t, inner, 2), "JWT") }},
		{"changed claims inside", map[Client]string{Node: "SIGNATURE_VERIFICATION_FAILED", Python: "InvalidJWSSignature"}, func(r *Request) { r.Token = encrypt(t, c, flip(t, inner, 1), "JWT") }},
		{"alg none inside", map[Client]string{Node: "ERR_JOSE_NOT_SUPPORTED", Python: "0 signers"}, func(r *Request) {
			r.Token = encrypt(t, c, b64(`{"alg":"none","kid":"ES256"}`)+"."+b64(claims)+".", "JWT")
			r.SignatureAlgorithms = append(r.SignatureAlgorithms, "none")
		}},
		{"plain claims inside", map[Client]string{Node: "JWS_INVALID", Python: "not a compact token of 3"}, func(r *Request) { r.Token = encrypt(t, c, `{"sub":"alice"}`, "JWT") }},
		{"JWE inside", map[Client]string{Node: "JWS_INVALID", Python: "not a compact token of 3"}, func(r *Request) { r.Token = encrypt(t, c, r.Token, "JWT") }},
		{"another cty", map[Client]string{Node: "cty is json", Python: "cty is"}, func(r *Request) { r.Token = encrypt(t, c, inner, "json") }},
		{"not encrypted", map[Client]string{Node: "JWE_INVALID", Python: "not a compact token of 5"}, func(r *Request) { r.Token = inner }},
		{"a part missing", map[Client]string{Node: "JWE_INVALID", Python: "not a compact token of 5"}, func(r *Request) { r.Token = strings.Join(parts(r)[:4], ".") }},
		{"empty", map[Client]string{Node: "JWE_INVALID", Python: "not a compact token of 5"}, func(r *Request) { r.Token = "" }},
	} {
		r := request(t, c)
		test.change(&r)
		t.Run(test.name, func(t *testing.T) {
			for _, client := range Clients {
				opened, err := openers[client].Open(r)
				var refusal Refusal
				if !errors.As(err, &refusal) || !strings.Contains(string(refusal), test.want[client]) {
					t.Errorf("%s: got %v, %v, want a refusal with %q", client, opened, err, test.want[client])
				}
			}
		})
	}
}

func TestUnknownClientIsNamed(t *testing.T) {
	if _, err := command("ruby"); err == nil || !strings.Contains(err.Error(), `"ruby" is unknown`) {
		t.Errorf("got error %v", err)
	}
}
