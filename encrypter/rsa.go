package encrypter

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"hash"
	"math/big"
)

// Bounds of recipients' RSA keys, in bits. RFC 7518 section 4.3 asks for 2048 at
// least. Above 8192 a single token costs milliseconds; no policy goes further.
const (
	MinRSABits = 2048
	MaxRSABits = 8192
)

// rsaOAEP encrypts a fresh CEK with RSAES-OAEP (RFC 8017 section 7.1), the
// given hash, MGF1 with that hash, and an empty label (RFC 7518 section 4.3).
func rsaOAEP(newHash func() hash.Hash) func(crypto.PublicKey, *contentEncryptionRow) (keyManagement, error) {
	return func(key crypto.PublicKey, _ *contentEncryptionRow) (keyManagement, error) {
		public, err := checkedRSAKey(key)
		if err != nil {
			return nil, err
		}
		return func(w *workspace) ([]byte, error) {
			return rsa.EncryptOAEP(newHash(), rand.Reader, public, w.cek, nil)
		}, nil
	}
}

// rsaPKCS1 encrypts a fresh CEK with RSAES-PKCS1-v1_5 (RFC 7518 section 4.2).
// What makes that dangerous is decryption (RFC 3218); here is none.
func rsaPKCS1(key crypto.PublicKey, _ *contentEncryptionRow) (keyManagement, error) {
	public, err := checkedRSAKey(key)
	if err != nil {
		return nil, err
	}
	return func(w *workspace) ([]byte, error) {
		return rsa.EncryptPKCS1v15(rand.Reader, public, w.cek) //nolint:staticcheck // for clients registered as legacy
	}, nil
}

// checkedRSAKey returns a copy of key, an *rsa.PublicKey, with which an
// encryption cannot fail. Whether the key is a good one is for those to say who
// chose it.
func checkedRSAKey(key crypto.PublicKey) (*rsa.PublicKey, error) {
	public, ok := key.(*rsa.PublicKey)
	if !ok || public == nil || public.N == nil {
		return nil, fmt.Errorf("%w: the RSA key has no modulus", ErrKeyUnsuitable)
	}
	if bits := public.N.BitLen(); bits < MinRSABits || bits > MaxRSABits {
		return nil, fmt.Errorf("%w: the RSA key has %d bits; use one of %d to %d", ErrKeyUnsuitable, bits, MinRSABits, MaxRSABits)
	}
	if public.N.Sign() < 0 || public.N.Bit(0) == 0 {
		return nil, fmt.Errorf("%w: the RSA modulus is even or negative, so it is not a product of two large primes; get the key again from the client", ErrKeyUnsuitable)
	}
	if e := public.E; e < 3 || e > 1<<31-1 || e%2 == 0 {
		return nil, fmt.Errorf("%w: the RSA public exponent must be odd, at least 3 and below 2^31; 65537 is the usual one", ErrKeyUnsuitable)
	}
	return &rsa.PublicKey{N: new(big.Int).Set(public.N), E: public.E}, nil
}
