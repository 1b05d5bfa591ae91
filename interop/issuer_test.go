package interop

import (
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/encrypter"
)

// ed25519ByNewName signs under the name of RFC 9864, which go-jose does not have.
type ed25519ByNewName struct{ key jose.JSONWebKey }

func (s ed25519ByNewName) Public() *jose.JSONWebKey { k := public(s.key); return &k }

func (s ed25519ByNewName) Algs() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{"Ed25519"}
}

func (s ed25519ByNewName) SignPayload(payload []byte, _ jose.SignatureAlgorithm) ([]byte, error) {
	return ed25519.Sign(s.key.Key.(ed25519.PrivateKey), payload), nil
}

// sign signs by go-jose.
func sign(t testing.TB, c Case, payload string) string {
	t.Helper()
	var with any = signingKey(c.Signature)
	switch {
	case c.Signature == "Ed25519":
		with = ed25519ByNewName{signingKey(c.Signature)}
	case strings.HasPrefix(c.Signature, "HS"):
		with = []byte(secret)
	}
	return signWith(t, jose.SigningKey{Algorithm: jose.SignatureAlgorithm(c.Signature), Key: with}, nil, payload)
}

func signWith(t testing.TB, key jose.SigningKey, options *jose.SignerOptions, payload string) string {
	t.Helper()
	signer, err := jose.NewSigner(key, options)
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

// encrypt encrypts by go-jose, which has no X25519, X448, RSA-OAEP-384, RSA-OAEP-512
// and A128CBC+HS256.
func encrypt(t testing.TB, c Case, plaintext, cty string) string {
	t.Helper()
	to := jose.Recipient{Algorithm: jose.KeyAlgorithm(c.Algorithm)}
	if c.Symmetric() {
		to.Key = derived(t, c)
	} else {
		to.Key, to.KeyID = clientKeys()[c.Curve].key.(crypto.Signer).Public(), kidOf(c.Curve)
	}
	opts := (&jose.EncrypterOptions{}).WithContentType(jose.ContentType(cty))
	encrypter, err := jose.NewEncrypter(jose.ContentEncryption(c.ContentEncryption), to, opts)
	if err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	jwe, err := encrypter.Encrypt([]byte(plaintext))
	if err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	compact, err := jwe.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// derived is the key that the client's secret gives.
func derived(t testing.TB, c Case) []byte {
	t.Helper()
	alg, enc := encrypter.KeyAlgorithm(c.Algorithm), encrypter.ContentEncryption(c.ContentEncryption)
	key, err := encrypter.DeriveSecretKey(secret, alg.SecretSize(enc))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signersJWKS is the issuer's.
func signersJWKS(t testing.TB) []byte {
	t.Helper()
	var signers jose.JSONWebKeySet
	for _, alg := range SignatureAlgorithms {
		if !strings.HasPrefix(alg, "HS") {
			signers.Keys = append(signers.Keys, public(signingKey(alg)))
		}
	}
	return marshal(t, signers)
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
