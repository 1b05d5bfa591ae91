package client

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/cloudflare/circl/dh/x448"
	"github.com/go-json-experiment/json/jsontext"
)

// X448PrivateKey is a private key for key agreement on X448 (RFC 7748), for which the
// standard library has no type. It does not change.
type X448PrivateKey struct {
	// private returns the key. It is held by a function, because whatever is held by
	// a field gets printed by some verb of package fmt.
	private func() x448.Key
	public  x448.Key
}

// NewX448PrivateKey makes a key of its 56 bytes as RFC 7748, section 5, has them,
// which are also a JWK's d (RFC 8037, section 2).
func NewX448PrivateKey(raw []byte) (*X448PrivateKey, error) {
	if len(raw) != x448.Size {
		return nil, fmt.Errorf("an X448 key has %d bytes, not %d", x448.Size, len(raw))
	}
	private := x448.Key(raw)
	k := &X448PrivateKey{private: func() x448.Key { return private }}
	x448.KeyGen(&k.public, &private)
	return k, nil
}

// PublicKey returns the public key's 56 bytes, a JWK's x.
func (k *X448PrivateKey) PublicKey() []byte { return append([]byte(nil), k.public[:]...) }

// String says what it is.
func (k *X448PrivateKey) String() string { return "X448 private key" }

// canAgree tells if a private key is one for ECDH-ES (RFC 7518, section 4.6; RFC 8037,
// section 3.2).
func canAgree(key any, _ contentEncryption) bool {
	switch k := key.(type) {
	case *ecdsa.PrivateKey, *X448PrivateKey:
		return true
	case *ecdh.PrivateKey:
		return k.Curve() == ecdh.X25519()
	}
	return false
}

// agreedKey is ECDH-ES in direct mode: what is agreed on is the content key.
func agreedKey(private any, e *encrypted, enc contentEncryption) ([]byte, error) {
	return e.agree(private, enc.name, enc.keySize)
}

// agreedKeyWrap is ECDH-ES with key wrapping: what is agreed on, size bytes, is the
// key of AES Key Wrap.
func agreedKeyWrap(size int) unwrapper {
	return func(private any, e *encrypted, _ contentEncryption) ([]byte, error) {
		kek, err := e.agree(private, e.header.Algorithm, size)
		if err != nil {
			return nil, err
		}
		return unwrapAES(kek, e.encryptedKey)
	}
}

// agree derives a key of size bytes for an algorithm from a private key and the
// header's epk, apu and apv.
func (e *encrypted) agree(private any, algorithm string, size int) ([]byte, error) {
	epk, err := parseObject(e.header.members["epk"])
	if err != nil {
		return nil, err
	}
	var info [2][]byte
	for i, name := range []string{"apu", "apv"} {
		if e.header.has(name) {
			if info[i], err = e.header.bytes(name); err != nil {
				return nil, err
			}
		}
	}
	secret, err := sharedSecret(private, epk)
	if err != nil {
		return nil, err
	}
	return concatKDF(secret, algorithm, info[0], info[1], size), nil
}

// sharedSecret is the Diffie-Hellman value of a private key and a public JWK, which
// must be on the same curve: the point is checked (RFC 8725, section 3.4), and a value
// of zeros, which a point of low order makes for everybody, is refused (RFC 7748,
// section 6).
func sharedSecret(private any, epk map[string]jsontext.Value) ([]byte, error) {
	kty, _ := stringValue(epk["kty"])
	crv, _ := stringValue(epk["crv"])
	if _, ok := epk["d"]; ok {
		return nil, errUnwrap // somebody's private key
	}
	x, err := stringBytes(epk["x"])
	if err != nil {
		return nil, err
	}
	switch k := private.(type) {
	case *ecdsa.PrivateKey:
		y, err := stringBytes(epk["y"])
		if err != nil {
			return nil, err
		}
		size := (k.Curve.Params().BitSize + 7) / 8
		if kty != "EC" || crv != k.Curve.Params().Name || len(x) != size || len(y) != size {
			return nil, errUnwrap
		}
		own, err := k.ECDH()
		if err != nil {
			return nil, err
		}
		// SEC 1, section 2.3.3: 0x04, x, y.
		return agreeOn(own, append(append([]byte{4}, x...), y...))
	case *ecdh.PrivateKey:
		if kty != "OKP" || crv != "X25519" {
			return nil, errUnwrap
		}
		return agreeOn(k, x)
	case *X448PrivateKey:
		if kty != "OKP" || crv != "X448" || len(x) != x448.Size {
			return nil, errUnwrap
		}
		var secret x448.Key
		private, public := k.private(), x448.Key(x)
		if !x448.Shared(&secret, &private, &public) {
			return nil, errUnwrap
		}
		return secret[:], nil
	}
	return nil, errUnwrap
}

func agreeOn(private *ecdh.PrivateKey, point []byte) ([]byte, error) {
	public, err := private.Curve().NewPublicKey(point)
	if err != nil {
		return nil, err
	}
	return private.ECDH(public)
}

// concatKDF derives a key of size bytes (RFC 7518, section 4.6.2): as many rounds of
// SHA-256 as it takes.
//
//	SHA-256(u32be(round) ‖ secret ‖ u32be(len) ‖ algorithm ‖ u32be(len) ‖ apu ‖ u32be(len) ‖ apv ‖ u32be(bits))
func concatKDF(secret []byte, algorithm string, apu, apv []byte, size int) []byte {
	var key []byte
	for round := uint32(1); len(key) < size; round++ {
		input := binary.BigEndian.AppendUint32(nil, round)
		input = append(input, secret...)
		for _, field := range [][]byte{[]byte(algorithm), apu, apv} {
			input = appendUint32(input, len(field))
			input = append(input, field...)
		}
		sum := sha256.Sum256(appendUint32(input, size*8))
		key = append(key, sum[:]...)
	}
	return key[:size]
}

// appendUint32 appends a length, which is that of a part of a header.
func appendUint32(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(n)) //nolint:gosec // maxHeader bounds it
}
