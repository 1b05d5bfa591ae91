package interop

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"sync"
	"testing"

	"github.com/cloudflare/circl/dh/x448"
	"github.com/go-jose/go-jose/v4"
)

// secret is that of clients that have one: as long as HS512 wants it, and not of
// ASCII alone.
const secret = "a secret of the client that is long enough for HS512, with ☃ and ü in it"

func newEC(curve elliptic.Curve) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// clientKey is the key pair of clients that have one, on some curve, or RSA. Nothing
// of Bulla made it.
type clientKey struct {
	private json.RawMessage // JWK
	public  json.RawMessage // JWK
	key     crypto.PrivateKey
}

func (k clientKey) jwks() []byte {
	return append(append([]byte(`{"keys":[`), k.public...), ']', '}')
}

// clientKeys are made once: by the curve, RSA by "".
var clientKeys = sync.OnceValue(func() map[string]clientKey {
	keys := map[string]clientKey{}
	for curve, key := range map[string]crypto.Signer{
		"": rsaKey(), "P-256": newEC(elliptic.P256()), "P-384": newEC(elliptic.P384()), "P-521": newEC(elliptic.P521()),
	} {
		jwk := jose.JSONWebKey{Key: key, KeyID: kidOf(curve), Use: "enc"}
		keys[curve] = clientKey{private: mustMarshal(jwk), public: mustMarshal(public(jwk)), key: key}
	}

	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	keys["X25519"] = okp("X25519", x25519.PublicKey().Bytes(), x25519.Bytes())

	var pub, private x448.Key
	if _, err := rand.Read(private[:]); err != nil {
		panic(err)
	}
	x448.KeyGen(&pub, &private)
	keys["X448"] = okp("X448", pub[:], private[:])
	return keys
})

// kidOf is the kid of the client's key.
func kidOf(curve string) string { return "client" + curve }

// okp is a key pair that go-jose has no type for.
func okp(curve string, x, d []byte) clientKey {
	jwk := map[string]string{
		"kty": "OKP", "crv": curve, "use": "enc", "kid": kidOf(curve), "x": base64.RawURLEncoding.EncodeToString(x),
	}
	key := clientKey{public: mustMarshal(jwk)}
	jwk["d"] = base64.RawURLEncoding.EncodeToString(d)
	key.private = mustMarshal(jwk)
	return key
}

var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	})
	edKey = sync.OnceValue(func() ed25519.PrivateKey {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		return key
	})
	signingECKeys = sync.OnceValue(func() map[string]*ecdsa.PrivateKey {
		return map[string]*ecdsa.PrivateKey{"ES256": newEC(elliptic.P256()), "ES384": newEC(elliptic.P384()), "ES512": newEC(elliptic.P521())}
	})
)

// signingKey is a key of an issuer in this test, for a signature algorithm.
func signingKey(alg string) jose.JSONWebKey {
	key := jose.JSONWebKey{KeyID: alg, Algorithm: alg, Use: "sig"}
	switch alg {
	case "ES256", "ES384", "ES512":
		key.Key = signingECKeys()[alg]
	case "EdDSA", "Ed25519":
		key.Key = edKey()
	default:
		key.Key = rsaKey()
	}
	return key
}

func public(key jose.JSONWebKey) jose.JSONWebKey {
	key.Key = key.Key.(crypto.Signer).Public()
	return key
}

// ask is what a client is asked that is to open token and may accept nothing but what
// the case names.
func ask(c Case, token string, signers []byte) Request {
	r := Request{
		Token:               token,
		SignersJWKS:         signers,
		KeyAlgorithms:       []string{c.Algorithm},
		ContentEncryptions:  []string{c.ContentEncryption},
		SignatureAlgorithms: []string{c.Signature},
	}
	if c.Symmetric() {
		r.ClientSecret = secret
	} else {
		r.PrivateJWK = clientKeys()[c.Curve].private
	}
	return r
}

func mustMarshal(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // keys that were just made
	}
	return raw
}

func marshal(t testing.TB, v any) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
