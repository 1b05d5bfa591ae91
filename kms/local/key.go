package local

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
)

// key is one software key, bound to its algorithm.
type key struct {
	backend *Backend
	alg     kms.Algorithm
	private crypto.Signer // *rsa.PrivateKey, *ecdsa.PrivateKey or ed25519.PrivateKey
}

var _ kms.Key = (*key)(nil)

// signerOf returns the private key in k, if it is one of an algorithm's type.
func signerOf(k jose.JSONWebKey) (crypto.Signer, bool) {
	switch private := k.Key.(type) {
	case *rsa.PrivateKey:
		return private, true
	case *ecdsa.PrivateKey:
		return private, true
	case ed25519.PrivateKey:
		return private, true
	}
	return nil, false
}

// newKey binds jwk to alg. Errors wrap kms.ErrKeyMismatch.
func newKey(b *Backend, jwk jose.JSONWebKey, alg kms.Algorithm) (kms.Key, error) {
	private, ok := signerOf(jwk)
	if !ok {
		return nil, fmt.Errorf("%w: key %q is a wrapping key, which signs nothing: name a signing key, or make one", kms.ErrKeyMismatch, jwk.KeyID)
	}
	if err := alg.CheckPublic(private.Public()); err != nil {
		return nil, fmt.Errorf("key %q: %w", jwk.KeyID, err)
	}
	if jwk.Algorithm != "" && jwk.Algorithm != string(alg) {
		return nil, fmt.Errorf("%w: key %q is for %s, as its \"alg\" says, and not for %s", kms.ErrKeyMismatch, jwk.KeyID, jwk.Algorithm, alg)
	}
	k := &key{backend: b, alg: alg, private: private}

	// A JWK states the private and the public half side by side, and anyone
	// can edit a file: only a signature shows that they belong together.
	probe := []byte(kms.ProbePrefix + rand.Text())
	signature, err := k.sign(probe)
	if err == nil {
		err = kms.Verify(alg, k.Public(), probe, signature)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the private half of key %q does not belong to its public half", kms.ErrKeyMismatch, jwk.KeyID)
	}
	return k, nil
}

// Algorithm implements kms.Key.
func (k *key) Algorithm() kms.Algorithm { return k.alg }

// Public implements kms.Key.
func (k *key) Public() crypto.PublicKey {
	return k.private.Public()
}

// Sign implements kms.Key. The signature is computed in this process, within
// milliseconds: a context that ends meanwhile does not cut it short.
func (k *key) Sign(ctx context.Context, message []byte) ([]byte, error) {
	leave, err := k.backend.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return k.sign(message)
}

func (k *key) sign(message []byte) ([]byte, error) {
	switch private := k.private.(type) {
	case *rsa.PrivateKey:
		digest := k.alg.Digest(message)
		if k.alg.PSS() {
			return rsa.SignPSS(rand.Reader, private, k.alg.Hash(), digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.SignPKCS1v15(nil, private, k.alg.Hash(), digest)
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, k.alg.Digest(message))
		if err != nil {
			return nil, err
		}
		n := k.alg.CoordinateSize()
		signature := make([]byte, 2*n)
		r.FillBytes(signature[:n])
		s.FillBytes(signature[n:])
		return signature, nil
	case ed25519.PrivateKey:
		return ed25519.Sign(private, message), nil
	}
	return nil, fmt.Errorf("%w: no key of a known type", kms.ErrKeyMismatch)
}
