package kms

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"
	"testing"
)

// The table as the standards have it, written down a second time.
func TestTableSaysWhatTheStandardsSay(t *testing.T) {
	for name, want := range map[Algorithm]struct {
		standard        string
		keyType         KeyType
		hash, minSecret int // bytes
		fapi            bool
	}{
		"RS256":   {"RFC 7518 section 3.3", "RSA", 32, 0, false},
		"RS384":   {"RFC 7518 section 3.3", "RSA", 48, 0, false},
		"RS512":   {"RFC 7518 section 3.3", "RSA", 64, 0, false},
		"PS256":   {"RFC 7518 section 3.5", "RSA", 32, 0, true},
		"PS384":   {"RFC 7518 section 3.5", "RSA", 48, 0, false},
		"PS512":   {"RFC 7518 section 3.5", "RSA", 64, 0, false},
		"ES256":   {"RFC 7518 section 3.4", "EC", 32, 0, true},
		"ES384":   {"RFC 7518 section 3.4", "EC", 48, 0, false},
		"ES512":   {"RFC 7518 section 3.4", "EC", 64, 0, false},
		"EdDSA":   {"RFC 8037 section 3.1", "OKP", 64, 0, true},
		"Ed25519": {"RFC 9864 section 2.2", "OKP", 64, 0, true},
		"HS256":   {"RFC 7518 section 3.2", "oct", 32, 32, false},
		"HS384":   {"RFC 7518 section 3.2", "oct", 48, 48, false},
		"HS512":   {"RFC 7518 section 3.2", "oct", 64, 64, false},
	} {
		if name.Standard() != want.standard || name.KeyType() != want.keyType || name.Hash().Size() != want.hash ||
			name.MinSecret() != want.minSecret || name.AllowedInFAPI() != want.fapi || !name.AllowedByDefault() {
			t.Errorf("%s: %q, %s, hash %d, secret %d, fapi %t, default %t; want %+v and allowed by default",
				name, name.Standard(), name.KeyType(), name.Hash().Size(), name.MinSecret(), name.AllowedInFAPI(), name.AllowedByDefault(), want)
		}
		symmetric := want.keyType == Oct
		if name.Symmetric() != symmetric || slices.Contains(SecretAlgorithms(), name) != symmetric {
			t.Errorf("%s: Symmetric() = %t, want %t, and the list of them likewise", name, name.Symmetric(), symmetric)
		}
		if name.Known() == symmetric || slices.Contains(Algorithms(), name) == symmetric {
			t.Errorf("%s: Known() = %t, want %t, and the list of them likewise", name, name.Known(), !symmetric)
		}
	}
	if got := len(Algorithms()) + len(SecretAlgorithms()); got != 14 {
		t.Errorf("%d algorithms, want 14: the new ones belong in this test", got)
	}
	for _, name := range []Algorithm{"", "none", "hs256", "HS1", "RS1"} {
		if name.Known() || name.Symmetric() || name.AllowedByDefault() || name.AllowedInFAPI() || name.MinSecret() != 0 || name.Standard() != "" {
			t.Errorf("%q means something", name)
		}
	}
}

// Whoever verifies by the token's own alg with a public key at hand must not
// take HMACs that anybody can make with the bytes of that key.
func TestNoPublicKeyVerifiesASymmetricSignature(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&ec.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("e30.e30")
	for name, pub := range map[string]any{
		"an EC key": &ec.PublicKey, "an RSA key": new(rsa.PublicKey), "an Ed25519 key": ed,
		"bytes": der, "nothing": nil, "text": string(der),
	} {
		mac := hmac.New(sha256.New, der)
		if b, ok := pub.(ed25519.PublicKey); ok {
			mac = hmac.New(sha256.New, b)
		}
		mac.Write(message)
		for _, alg := range SecretAlgorithms() {
			if err := alg.CheckPublic(pub); !errors.Is(err, ErrKeyMismatch) {
				t.Errorf("%s is a key of %s: %v", name, alg, err)
			}
			if err := Verify(alg, pub, message, mac.Sum(nil)); !errors.Is(err, ErrKeyMismatch) {
				t.Errorf("%s verifies %s: %v", name, alg, err)
			}
		}
		for _, alg := range Algorithms() {
			if b, ok := pub.([]byte); ok && alg.CheckPublic(b) == nil {
				t.Errorf("bytes are a key of %s", alg)
			}
		}
	}
}
