package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

// softKey is a key in memory whose signatures a test may spoil.
type softKey struct {
	alg     kms.Algorithm
	private crypto.Signer
	// spoil, if set, gets every signature before it is returned.
	spoil func([]byte) []byte
	// fail, if set, is returned instead.
	fail       error
	signed     atomic.Int64
	distrusted atomic.Int64
}

func (k *softKey) Algorithm() kms.Algorithm { return k.alg }
func (k *softKey) Public() crypto.PublicKey { return k.private.Public() }
func (k *softKey) Distrust()                { k.distrusted.Add(1) }

func (k *softKey) Sign(ctx context.Context, message []byte) ([]byte, error) {
	k.signed.Add(1)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if k.fail != nil {
		return nil, k.fail
	}
	sig, err := k.sign(message)
	if err == nil && k.spoil != nil {
		sig = k.spoil(sig)
	}
	return sig, err
}

func (k *softKey) sign(message []byte) ([]byte, error) {
	switch private := k.private.(type) {
	case *rsa.PrivateKey:
		if k.alg.PSS() {
			return rsa.SignPSS(rand.Reader, private, k.alg.Hash(), k.alg.Digest(message), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.SignPKCS1v15(nil, private, k.alg.Hash(), k.alg.Digest(message))
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, k.alg.Digest(message))
		if err != nil {
			return nil, err
		}
		n := k.alg.CoordinateSize()
		sig := make([]byte, 2*n)
		r.FillBytes(sig[:n])
		s.FillBytes(sig[n:])
		return sig, nil
	default:
		return k.private.Sign(nil, message, crypto.Hash(0))
	}
}

// testRSA is one RSA key for all tests: making one is slow.
var testRSA = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

// newSoftKey makes a fresh key for alg, except that RSA keys are shared.
func newSoftKey(tb testing.TB, alg kms.Algorithm) *softKey {
	tb.Helper()
	var private crypto.Signer
	var err error
	switch alg.KeyType() {
	case kms.RSA:
		private = testRSA()
	case kms.EC:
		private, err = ecdsa.GenerateKey(alg.Curve(), rand.Reader)
	default:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return &softKey{alg: alg, private: private}
}

func newSigningKey(tb testing.TB, key kms.Key, options Options) *SigningKey {
	tb.Helper()
	k, err := NewSigningKey(key, options)
	if err != nil {
		tb.Fatalf("NewSigningKey: %v", err)
	}
	return k
}
