package encrypter

import (
	"crypto"
	"crypto/ecdh"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/dh/x448"
)

// X448PublicKey is a public key for X448: a u-coordinate of 56 bytes, little
// endian, as RFC 7748 section 5 encodes it and as the member "x" of a JWK holds
// it in base64url (RFC 8037 section 2). Keys for X25519 are *ecdh.PublicKey;
// the standard library has no X448.
type X448PublicKey [x448.Size]byte

// maxOKPSize is the size in bytes of an X448 key.
const maxOKPSize = x448.Size

// x25519Party is a public key for X25519.
//
// The scalar multiplications are circl's and not crypto/ecdh's, though the
// public key is of its type: a key pair and an agreement take 79 µs of processor
// time against 122 µs (medians of 15 rounds in turns on an Intel Xeon with
// Go 1.26; 169 µs against 261 µs without assembly), which is nearly all that a
// token costs. circl's runs in constant time too, is needed for X448 in any
// case, and agrees with every vector of Project Wycheproof in this package's
// tests. make bench measures the two again.
type x25519Party x25519.Key

// newX25519Party takes an *ecdh.PublicKey. Points of low order, with which
// every agreement gives zero, are refused.
func newX25519Party(key crypto.PublicKey) (*x25519Party, error) {
	p := x25519Party(key.(*ecdh.PublicKey).Bytes())
	var shared, anything x25519.Key
	if !x25519.Shared(&shared, &anything, (*x25519.Key)(&p)) {
		return nil, errZeroSecret
	}
	return &p, nil
}

func (p *x25519Party) agree(w *workspace) ([]byte, error) {
	private, public := (*x25519.Key)(w.private[:x25519.Size]), new(x25519.Key)
	secret := new(x25519.Key)
	w.entropy.fill(private[:])
	x25519.KeyGen(public, private)
	if !x25519.Shared(secret, private, (*x25519.Key)(p)) {
		return nil, errZeroSecret
	}
	w.header = appendOKP(w.header, curveX25519, public[:])
	return secret[:], nil
}

// x448Party is a public key for X448.
type x448Party x448.Key

// newX448Party takes an X448PublicKey. Points of low order are refused.
func newX448Party(key crypto.PublicKey) (*x448Party, error) {
	p := x448Party(key.(X448PublicKey))
	var shared, anything x448.Key
	if !x448.Shared(&shared, &anything, (*x448.Key)(&p)) {
		return nil, errZeroSecret
	}
	return &p, nil
}

func (p *x448Party) agree(w *workspace) ([]byte, error) {
	private, public := (*x448.Key)(w.private[:x448.Size]), new(x448.Key)
	secret := new(x448.Key)
	w.entropy.fill(private[:])
	x448.KeyGen(public, private)
	if !x448.Shared(secret, private, (*x448.Key)(p)) {
		return nil, errZeroSecret
	}
	w.header = appendOKP(w.header, curveX448, public[:])
	return secret[:], nil
}

// appendOKP appends the header parameter "epk" with a key of RFC 8037 section 2.
func appendOKP(dst []byte, curve string, public []byte) []byte {
	dst = append(dst, `,"epk":{"kty":"OKP","crv":"`...)
	dst = append(dst, curve...)
	dst = append(dst, `","x":"`...)
	dst = appendBase64(dst, public)
	return append(dst, `"}`...)
}
