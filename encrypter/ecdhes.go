package encrypter

import (
	"crypto"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"fmt"
)

// ecdhDirect is key agreement with an ephemeral key whose result is the CEK
// itself: no encrypted key (RFC 7518 section 4.6, direct key agreement mode).
// The derived key is bound to the enc.
func ecdhDirect(key crypto.PublicKey, enc *contentEncryptionRow) (keyManagement, error) {
	a, err := newAgreement(key, string(enc.name), enc.keySize)
	if err != nil {
		return nil, err
	}
	return func(w *workspace) ([]byte, error) {
		return nil, a.derive(w.cek, w)
	}, nil
}

// ecdhKeyWrap is key agreement with an ephemeral key whose result encrypts a
// fresh CEK with AES Key Wrap (RFC 7518 section 4.6, key agreement with key
// wrapping). The derived key, of size bytes, is bound to the alg.
func ecdhKeyWrap(alg KeyAlgorithm, size int) func(crypto.PublicKey, *contentEncryptionRow) (keyManagement, error) {
	return func(key crypto.PublicKey, _ *contentEncryptionRow) (keyManagement, error) {
		a, err := newAgreement(key, string(alg), size)
		if err != nil {
			return nil, err
		}
		return func(w *workspace) ([]byte, error) {
			kek := w.kek[:size]
			if err := a.derive(kek, w); err != nil {
				return nil, err
			}
			block, err := aes.NewCipher(kek)
			if err != nil {
				return nil, err
			}
			return wrapKey(w.wrapped[:0], block, w.cek)
		}, nil
	}
}

// agreement is the recipient's half of an ECDH-ES key agreement.
type agreement struct {
	public    *ecdh.PublicKey
	curve     string // JWK crv
	otherInfo []byte // of the Concat KDF
}

// newAgreement prepares agreements with key, an *ecdsa.PublicKey or
// *ecdh.PublicKey on a NIST curve, on keys of size bytes for the algorithm.
func newAgreement(key crypto.PublicKey, algorithm string, size int) (*agreement, error) {
	_, curve, err := keyKind(key)
	if err != nil {
		return nil, err
	}
	public, ok := key.(*ecdh.PublicKey)
	if !ok {
		// Checks that the point is on its curve. An *ecdh.PublicKey was
		// checked when it was made, and cannot be changed.
		if public, err = key.(*ecdsa.PublicKey).ECDH(); err != nil {
			return nil, fmt.Errorf("%w: the key is not a point on %s (%w); get the key again from the client", ErrKeyUnsuitable, curve, err)
		}
	}
	return &agreement{
		public:    public,
		curve:     curve,
		otherInfo: kdfOtherInfo(algorithm, nil, nil, size),
	}, nil
}

// derive agrees upon a key with a fresh ephemeral key pair, fills derived with
// it, and appends the ephemeral public key to the header.
func (a *agreement) derive(derived []byte, w *workspace) error {
	ephemeral, err := w.entropy.ephemeral(a.public.Curve())
	if err != nil {
		return fmt.Errorf("generate ephemeral key: %w", err)
	}
	secret, err := ephemeral.ECDH(a.public)
	if err != nil {
		return fmt.Errorf("key agreement: %w", err)
	}
	defer clear(secret)
	if allZero(secret) {
		// On curves with points of low order a key can force this result,
		// and everybody would know the derived key.
		return fmt.Errorf("%w: key agreement gave the all-zero secret; replace the client's key", ErrKeyUnsuitable)
	}
	concatKDF(derived, secret, a.otherInfo, w)
	w.header = appendEPK(w.header, a.curve, ephemeral.PublicKey())
	return nil
}

// appendEPK appends the header parameter "epk" (RFC 7518 section 4.6.1.1): the
// ephemeral public key on a NIST curve as a JWK.
func appendEPK(dst []byte, curve string, public *ecdh.PublicKey) []byte {
	// SEC 1 section 2.3.3: 0x04, then both coordinates in full length, as
	// RFC 7518 section 6.2.1.2 wants them too.
	point := public.Bytes()[1:]
	x, y := point[:len(point)/2], point[len(point)/2:]
	dst = append(dst, `,"epk":{"kty":"EC","crv":"`...)
	dst = append(dst, curve...)
	dst = append(dst, `","x":"`...)
	dst = base64url.AppendEncode(dst, x)
	dst = append(dst, `","y":"`...)
	dst = base64url.AppendEncode(dst, y)
	return append(dst, `"}`...)
}

// allZero looks at every byte of b, whatever it finds.
func allZero(b []byte) bool {
	var or byte
	for _, x := range b {
		or |= x
	}
	return or == 0
}
