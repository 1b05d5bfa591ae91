package client

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // SHA-256, for pss
	_ "crypto/sha512" // SHA-384 and SHA-512, likewise
	"errors"

	"github.com/go-jose/go-jose/v4"
)

// Two signature algorithms are verified with the standard library, through the door
// that go-jose leaves for verifiers of others (jose.OpaqueVerifier).

// verifierFunc is a jose.OpaqueVerifier.
type verifierFunc func(signingInput, signature []byte) error

// VerifyPayload is called by go-jose, which has compared the algorithm with the
// only one that it was allowed.
func (f verifierFunc) VerifyPayload(signingInput, signature []byte, _ jose.SignatureAlgorithm) error {
	return f(signingInput, signature)
}

// pss verifies RSASSA-PSS with a salt of the hash's length, as RFC 7518, section 3.5,
// demands. go-jose lets the signature itself say how long its salt is.
func pss(hash crypto.Hash) func(any) any {
	return func(public any) any {
		return verifierFunc(func(signingInput, signature []byte) error {
			h := hash.New()
			h.Write(signingInput)
			return rsa.VerifyPSS(public.(*rsa.PublicKey), hash, h.Sum(nil), signature,
				&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash})
		})
	}
}

// ed25519ByNewName verifies what RFC 9864 calls Ed25519 and RFC 8037 called EdDSA;
// go-jose knows only the older name.
func ed25519ByNewName(public any) any {
	return verifierFunc(func(signingInput, signature []byte) error {
		if !ed25519.Verify(public.(ed25519.PublicKey), signingInput, signature) {
			return errors.New("ed25519 signature does not verify")
		}
		return nil
	})
}
