package interop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

var curves = map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}

func newEC(curve elliptic.Curve) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// The keys are made once: one RSA key, one for each curve, one Ed25519.
var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	})
	ecKeys = sync.OnceValue(func() map[string]*ecdsa.PrivateKey {
		keys := map[string]*ecdsa.PrivateKey{}
		for name, curve := range curves {
			keys[name] = newEC(curve)
		}
		return keys
	})
	edKey = sync.OnceValue(func() ed25519.PrivateKey {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		return key
	})
)

func clientKID(c Case) string { return "client" + c.Curve }

// clientKey is the private key of the client that a case's tokens are for.
func clientKey(c Case) jose.JSONWebKey {
	key := jose.JSONWebKey{KeyID: clientKID(c), Use: "enc"}
	if c.Curve == "" {
		key.Key = rsaKey()
	} else {
		key.Key = ecKeys()[c.Curve]
	}
	return key
}

// signingKey is the issuer's key for a signature algorithm.
func signingKey(alg string) jose.JSONWebKey {
	key := jose.JSONWebKey{KeyID: alg, Algorithm: alg, Use: "sig"}
	switch alg {
	case "ES256":
		key.Key = ecKeys()["P-256"]
	case "ES384":
		key.Key = ecKeys()["P-384"]
	case "ES512":
		key.Key = ecKeys()["P-521"]
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

// ed25519ByNewName signs under the name of RFC 9864, which go-jose does not have.
type ed25519ByNewName struct{ key jose.JSONWebKey }

func (s ed25519ByNewName) Public() *jose.JSONWebKey { k := public(s.key); return &k }

func (s ed25519ByNewName) Algs() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{"Ed25519"}
}

func (s ed25519ByNewName) SignPayload(payload []byte, _ jose.SignatureAlgorithm) ([]byte, error) {
	return ed25519.Sign(s.key.Key.(ed25519.PrivateKey), payload), nil
}

func sign(t testing.TB, c Case, payload string) string {
	t.Helper()
	key := signingKey(c.Signature)
	var with any = key
	if c.Signature == "Ed25519" {
		with = ed25519ByNewName{key}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(c.Signature), Key: with}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

func encrypt(t testing.TB, c Case, plaintext, cty string) string {
	t.Helper()
	to := jose.Recipient{Algorithm: jose.KeyAlgorithm(c.Algorithm), Key: public(clientKey(c))}
	opts := (&jose.EncrypterOptions{}).WithContentType(jose.ContentType(cty))
	encrypter, err := jose.NewEncrypter(jose.ContentEncryption(c.ContentEncryption), to, opts)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := encrypter.Encrypt([]byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jwe.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// request asks for a nested token of this case, and allows nothing else. The signers
// are the issuer's for all algorithms.
func request(t testing.TB, c Case) Request {
	t.Helper()
	var signers jose.JSONWebKeySet
	for _, alg := range SignatureAlgorithms {
		signers.Keys = append(signers.Keys, public(signingKey(alg)))
	}
	return Request{
		Token:               encrypt(t, c, sign(t, c, claims), "JWT"),
		PrivateJWK:          marshal(t, clientKey(c)),
		SignersJWKS:         marshal(t, signers),
		KeyAlgorithms:       []string{c.Algorithm},
		ContentEncryptions:  []string{c.ContentEncryption},
		SignatureAlgorithms: []string{c.Signature},
	}
}

func marshal(t testing.TB, v any) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// flip changes one bit in the first byte of a part of a compact token.
func flip(t testing.TB, token string, i int) string {
	t.Helper()
	parts := strings.Split(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[i])
	if err != nil || len(raw) == 0 {
		t.Fatalf("part %d: %v", i, err)
	}
	raw[0] ^= 1
	parts[i] = base64.RawURLEncoding.EncodeToString(raw)
	return strings.Join(parts, ".")
}
