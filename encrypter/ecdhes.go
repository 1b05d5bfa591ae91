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
	party     party
	otherInfo []byte // of the Concat KDF
}

// party is a recipient's public key on one kind of curve.
type party interface {
	// agree makes a fresh ephemeral key pair, appends its public key to
	// w.header as the member "epk" (RFC 7518 section 4.6.1.1), and returns the
	// shared secret, which the caller owns and clears. An error leaves w.header
	// as it was.
	agree(w *workspace) (secret []byte, err error)
}

// newAgreement prepares agreements with key, which is on one of the curves of
// the table, on keys of size bytes for the algorithm.
func newAgreement(key crypto.PublicKey, algorithm string, size int) (*agreement, error) {
	party, err := newParty(key)
	if err != nil {
		return nil, err
	}
	return &agreement{party, kdfOtherInfo(algorithm, nil, nil, size)}, nil
}

func newParty(key crypto.PublicKey) (party, error) {
	kty, curve, err := keyKind(key)
	switch {
	case err != nil:
		return nil, err
	case curve == curveX25519:
		return newX25519Party(key)
	case curve == curveX448:
		return newX448Party(key)
	case kty == typeEC:
		return newNISTParty(key, curve)
	}
	return nil, fmt.Errorf("%w: no key agreement is known with a %T", ErrKeyUnsuitable, key)
}

// derive agrees upon a key with a fresh ephemeral key pair, fills derived with
// it, and appends the ephemeral public key to the header.
func (a *agreement) derive(derived []byte, w *workspace) error {
	before := len(w.header)
	secret, err := a.party.agree(w)
	if err != nil {
		return err
	}
	defer clear(secret)
	if allZero(secret) {
		// On curves with points of low order a key can force this result,
		// and everybody would know the derived key.
		w.header = w.header[:before]
		return errZeroSecret
	}
	concatKDF(derived, secret, a.otherInfo, w)
	return nil
}

// errZeroSecret: RFC 7748 section 6 and RFC 8037 section 5 want it refused.
var errZeroSecret = fmt.Errorf("%w: key agreement gives the all-zero secret; replace the client's key", ErrKeyUnsuitable)

// nistParty is a public key on a curve of FIPS 186.
type nistParty struct {
	public *ecdh.PublicKey
	curve  string // JWK crv
}

// newNISTParty takes an *ecdsa.PublicKey or *ecdh.PublicKey.
func newNISTParty(key crypto.PublicKey, curve string) (*nistParty, error) {
	public, ok := key.(*ecdh.PublicKey)
	if !ok {
		// Checks that the point is on its curve. An *ecdh.PublicKey was
		// checked when it was made, and cannot be changed.
		var err error
		if public, err = key.(*ecdsa.PublicKey).ECDH(); err != nil {
			return nil, fmt.Errorf("%w: the key is not a point on %s (%w); get the key again from the client", ErrKeyUnsuitable, curve, err)
		}
	}
	return &nistParty{public, curve}, nil
}

func (p *nistParty) agree(w *workspace) ([]byte, error) {
	ephemeral, err := w.entropy.ephemeral(p.public.Curve())
	if err != nil {
		return nil, fmt.Errorf("generate ephemeral key: %w", err)
	}
	secret, err := ephemeral.ECDH(p.public)
	if err != nil {
		return nil, fmt.Errorf("key agreement: %w", err)
	}
	// SEC 1 section 2.3.3: 0x04, then both coordinates in full length, as
	// RFC 7518 section 6.2.1.2 wants them too.
	point := ephemeral.PublicKey().Bytes()[1:]
	x, y := point[:len(point)/2], point[len(point)/2:]
	w.header = append(w.header, `,"epk":{"kty":"EC","crv":"`...)
	w.header = append(w.header, p.curve...)
	w.header = append(w.header, `","x":"`...)
	w.header = appendBase64(w.header, x)
	w.header = append(w.header, `","y":"`...)
	w.header = appendBase64(w.header, y)
	w.header = append(w.header, `"}`...)
	return secret, nil
}

// allZero looks at every byte of b, whatever it finds.
func allZero(b []byte) bool {
	var or byte
	for _, x := range b {
		or |= x
	}
	return or == 0
}
