package client

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

// The keys of the tests are made once; RSA takes its time.
var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	})
	otherRSAKey = sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	})
	smallRSAKey = sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			panic(err)
		}
		return key
	})
	ecKey = sync.OnceValue(func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
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
)

func ecKeyOn(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// The two parties of most tests: the client "rp" with an EC key, and a signer.
func clientKey() jose.JSONWebKey {
	return jose.JSONWebKey{Key: ecKey(), KeyID: "rp-1", Algorithm: "ECDH-ES", Use: "enc"}
}

func signingKey(t testing.TB, alg string) jose.JSONWebKey {
	t.Helper()
	key := jose.JSONWebKey{KeyID: "sig-" + alg, Algorithm: alg, Use: "sig"}
	switch alg {
	case "ES256":
		key.Key = ecKey()
	case "ES384":
		key.Key = ecKeyOn(t, elliptic.P384())
	case "ES512":
		key.Key = ecKeyOn(t, elliptic.P521())
	case "EdDSA", "Ed25519":
		key.Key = edKey()
	case "HS256", "HS384", "HS512":
		key.Key = []byte(strings.Repeat("secret! ", 8))
	default:
		key.Key = rsaKey()
	}
	return key
}

func public(key jose.JSONWebKey) jose.JSONWebKey {
	if signer, ok := key.Key.(crypto.Signer); ok {
		key.Key = signer.Public()
	}
	return key
}

func anySigner(t testing.TB) []jose.JSONWebKey {
	return []jose.JSONWebKey{public(signingKey(t, "ES256"))}
}

// eddsaByNewName signs as RFC 9864 names it; go-jose has only the older name.
type eddsaByNewName struct{ key jose.JSONWebKey }

func (s eddsaByNewName) Public() *jose.JSONWebKey        { k := public(s.key); return &k }
func (s eddsaByNewName) Algs() []jose.SignatureAlgorithm { return []jose.SignatureAlgorithm{"Ed25519"} }
func (s eddsaByNewName) SignPayload(payload []byte, _ jose.SignatureAlgorithm) ([]byte, error) {
	return ed25519.Sign(s.key.Key.(ed25519.PrivateKey), payload), nil
}

// sign makes a compact JWS with go-jose. extra adds or changes header parameters.
func sign(t testing.TB, key jose.JSONWebKey, payload string, extra map[jose.HeaderKey]any) string {
	t.Helper()
	var with any = key
	if key.Algorithm == "Ed25519" {
		with = eddsaByNewName{key}
	}
	opts := &jose.SignerOptions{ExtraHeaders: extra}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: with}, opts)
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

// seal is how a test has a token encrypted.
type seal struct {
	alg, enc string
	to       jose.JSONWebKey
	zip      bool
	header   map[jose.HeaderKey]any // added; cty is JWT unless changed here
}

func (s seal) encrypt(t testing.TB, plaintext string) string {
	t.Helper()
	opts := &jose.EncrypterOptions{}
	if s.zip {
		opts.Compression = jose.DEFLATE
	}
	opts = opts.WithContentType("JWT")
	for k, v := range s.header {
		opts.ExtraHeaders[k] = v
	}
	encrypter, err := jose.NewEncrypter(jose.ContentEncryption(s.enc), jose.Recipient{Algorithm: jose.KeyAlgorithm(s.alg), Key: public(s.to)}, opts)
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

// nested makes the usual token: ES256 inside, ECDH-ES with A256GCM outside.
func nested(t testing.TB, payload string) string {
	t.Helper()
	return toClient().encrypt(t, sign(t, signingKey(t, "ES256"), payload, nil))
}

func toClient() seal { return seal{alg: "ECDH-ES", enc: "A256GCM", to: clientKey()} }

// newOpener opens what nested makes; change may be nil.
func newOpener(t testing.TB, change func(*OpenConfig)) *Opener {
	t.Helper()
	config := OpenConfig{Keys: []jose.JSONWebKey{clientKey()}, Signers: anySigner(t)}
	if change != nil {
		change(&config)
	}
	o, err := NewOpener(config)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// withPart replaces one part of a compact token.
func withPart(token string, i int, part string) string {
	parts := strings.Split(token, ".")
	parts[i] = part
	return strings.Join(parts, ".")
}

// flip changes one bit in the first byte of a part.
func flip(t testing.TB, token string, i int) string {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[i])
	if err != nil || len(raw) == 0 {
		t.Fatalf("part %d: %v", i, err)
	}
	raw[0] ^= 1
	return withPart(token, i, b64(string(raw)))
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
