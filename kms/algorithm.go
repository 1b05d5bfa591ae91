package kms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // SHA-256, for Algorithm.Hash
	_ "crypto/sha512" // SHA-384 and SHA-512, likewise
	"errors"
	"fmt"
	"math/big"
)

// Algorithm is the name of a JWS signature algorithm as RFC 7518, RFC 8037 and
// RFC 9864 register it.
type Algorithm string

// The asymmetric signature algorithms that a backend key can be bound to.
const (
	RS256 Algorithm = "RS256"
	RS384 Algorithm = "RS384"
	RS512 Algorithm = "RS512"
	PS256 Algorithm = "PS256"
	PS384 Algorithm = "PS384"
	PS512 Algorithm = "PS512"
	ES256 Algorithm = "ES256"
	ES384 Algorithm = "ES384"
	ES512 Algorithm = "ES512"

	// EdDSA with an Ed25519 key, by the older name (RFC 8037) and the fully
	// specified one (RFC 9864). The signatures are the same.
	EdDSA   Algorithm = "EdDSA"
	Ed25519 Algorithm = "Ed25519"
)

// The symmetric algorithms: HMAC under a secret that signer and verifier share.
// No backend has keys for them; the secret is an OAuth client's.
const (
	HS256 Algorithm = "HS256"
	HS384 Algorithm = "HS384"
	HS512 Algorithm = "HS512"
)

// KeyType is the kind of key an algorithm needs, by its JWK name (RFC 7518,
// section 6.1; RFC 8037, section 2).
type KeyType string

// The key types of signing keys.
const (
	RSA KeyType = "RSA"
	EC  KeyType = "EC"
	OKP KeyType = "OKP"
	Oct KeyType = "oct" // a secret: the symmetric algorithms only
)

// Bounds on the modulus of an RSA signing key, in bits.
const (
	MinRSABits = 2048
	MaxRSABits = 8192
)

// algorithm is a row of the table: what a name means.
type algorithm struct {
	name      Algorithm
	standard  string // where it is defined
	keyType   KeyType
	hash      crypto.Hash    // of the signing input; for Ed25519 inside the algorithm
	pss       bool           // RSASSA-PSS, salt as long as the hash (RFC 7518, section 3.5)
	curve     elliptic.Curve // of EC keys
	size      int            // bytes of r and of s in an EC signature
	byDefault bool           // allowed where an issuer's policy does not say
	fapi      bool           // allowed by the FAPI 2.0 security profile, section 5.4.1
}

// table has every algorithm, in the order of every list that is shown to
// people. A new one is a new row, and a case in Verify if its key is of a new
// type.
var table = []algorithm{
	{name: RS256, standard: "RFC 7518 section 3.3", keyType: RSA, hash: crypto.SHA256, byDefault: true},
	{name: RS384, standard: "RFC 7518 section 3.3", keyType: RSA, hash: crypto.SHA384, byDefault: true},
	{name: RS512, standard: "RFC 7518 section 3.3", keyType: RSA, hash: crypto.SHA512, byDefault: true},
	{name: PS256, standard: "RFC 7518 section 3.5", keyType: RSA, hash: crypto.SHA256, pss: true, byDefault: true, fapi: true},
	{name: PS384, standard: "RFC 7518 section 3.5", keyType: RSA, hash: crypto.SHA384, pss: true, byDefault: true},
	{name: PS512, standard: "RFC 7518 section 3.5", keyType: RSA, hash: crypto.SHA512, pss: true, byDefault: true},
	{name: ES256, standard: "RFC 7518 section 3.4", keyType: EC, hash: crypto.SHA256, curve: elliptic.P256(), size: 32, byDefault: true, fapi: true},
	{name: ES384, standard: "RFC 7518 section 3.4", keyType: EC, hash: crypto.SHA384, curve: elliptic.P384(), size: 48, byDefault: true},
	{name: ES512, standard: "RFC 7518 section 3.4", keyType: EC, hash: crypto.SHA512, curve: elliptic.P521(), size: 66, byDefault: true},
	{name: EdDSA, standard: "RFC 8037 section 3.1", keyType: OKP, hash: crypto.SHA512, byDefault: true, fapi: true},
	{name: Ed25519, standard: "RFC 9864 section 2.2", keyType: OKP, hash: crypto.SHA512, byDefault: true, fapi: true},
	{name: HS256, standard: "RFC 7518 section 3.2", keyType: Oct, hash: crypto.SHA256, byDefault: true},
	{name: HS384, standard: "RFC 7518 section 3.2", keyType: Oct, hash: crypto.SHA384, byDefault: true},
	{name: HS512, standard: "RFC 7518 section 3.2", keyType: Oct, hash: crypto.SHA512, byDefault: true},
}

// algorithms finds a row by its name.
var algorithms = func() map[Algorithm]algorithm {
	rows := make(map[Algorithm]algorithm, len(table))
	for _, row := range table {
		rows[row.name] = row
	}
	return rows
}()

// Algorithms returns the algorithms that a backend's key can be bound to, the
// asymmetric ones, in the order lists show.
func Algorithms() []Algorithm { return namesOf(false) }

// SecretAlgorithms returns the algorithms that sign with a client's secret, the
// symmetric ones, in the order lists show.
func SecretAlgorithms() []Algorithm { return namesOf(true) }

func namesOf(symmetric bool) []Algorithm {
	var names []Algorithm
	for _, row := range table {
		if (row.keyType == Oct) == symmetric {
			names = append(names, row.name)
		}
	}
	return names
}

// Known reports whether a is one of Algorithms: whether a backend's key can be
// bound to it. It is false for a symmetric algorithm, so that whoever asks it
// before opening or creating a key cannot be talked into one. The other methods
// are only meaningful for known and for symmetric algorithms.
func (a Algorithm) Known() bool {
	row, ok := algorithms[a]
	return ok && row.keyType != Oct
}

// Symmetric reports whether a is one of SecretAlgorithms.
func (a Algorithm) Symmetric() bool { return algorithms[a].keyType == Oct }

// MinSecret is the length in bytes of the shortest secret that a symmetric
// algorithm takes: that of its hash (RFC 7518, section 3.2). It is 0 for an
// asymmetric one.
func (a Algorithm) MinSecret() int {
	if !a.Symmetric() {
		return 0
	}
	return a.Hash().Size()
}

// Standard is where a is defined, such as "RFC 7518 section 3.4".
func (a Algorithm) Standard() string { return algorithms[a].standard }

// KeyType is the type of key a needs.
func (a Algorithm) KeyType() KeyType { return algorithms[a].keyType }

// Hash is the hash function of a. For Ed25519 it is SHA-512, which is applied
// inside the algorithm and gives the hash claims their function.
func (a Algorithm) Hash() crypto.Hash { return algorithms[a].hash }

// PSS reports whether a is RSASSA-PSS.
func (a Algorithm) PSS() bool { return algorithms[a].pss }

// Curve is the curve of a's EC keys, nil for other key types.
func (a Algorithm) Curve() elliptic.Curve { return algorithms[a].curve }

// CoordinateSize is the length in bytes of r and of s in an ECDSA signature,
// 0 for other key types.
func (a Algorithm) CoordinateSize() int { return algorithms[a].size }

// AllowedByDefault reports whether a may be used where an issuer's policy does
// not say which may.
func (a Algorithm) AllowedByDefault() bool { return algorithms[a].byDefault }

// AllowedInFAPI reports whether the FAPI 2.0 security profile (section 5.4.1)
// allows a.
func (a Algorithm) AllowedInFAPI() bool { return algorithms[a].fapi }

// Digest hashes message with a's hash function.
func (a Algorithm) Digest(message []byte) []byte {
	h := a.Hash().New()
	h.Write(message)
	return h.Sum(nil)
}

// CheckPublic reports, wrapping ErrKeyMismatch, why pub cannot be a key of a. No
// public key is one of a symmetric algorithm: a verifier that took the bytes of
// a public key for an HMAC's secret would take everybody's signature.
func (a Algorithm) CheckPublic(pub crypto.PublicKey) error {
	row, ok := algorithms[a]
	if !ok {
		return fmt.Errorf("%w: unknown algorithm %q", ErrKeyMismatch, string(a))
	}
	if row.keyType == Oct {
		return fmt.Errorf("%w: %s signs with a client's secret and has no public key", ErrKeyMismatch, a)
	}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if row.keyType != RSA {
			break
		}
		if n := k.N.BitLen(); n < MinRSABits || n > MaxRSABits {
			return fmt.Errorf("%w: %s needs an RSA key of %d to %d bits, this one has %d", ErrKeyMismatch, a, MinRSABits, MaxRSABits, n)
		}
		return nil
	case *ecdsa.PublicKey:
		if row.keyType != EC {
			break
		}
		if k.Curve != row.curve {
			return fmt.Errorf("%w: %s needs curve %s, this key is on %s", ErrKeyMismatch, a, row.curve.Params().Name, k.Curve.Params().Name)
		}
		return nil
	case ed25519.PublicKey:
		if row.keyType != OKP {
			break
		}
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("%w: an Ed25519 public key has %d bytes, this one has %d", ErrKeyMismatch, ed25519.PublicKeySize, len(k))
		}
		return nil
	}
	return fmt.Errorf("%w: %s needs a key of type %s, this one is a %T", ErrKeyMismatch, a, row.keyType, pub)
}

// errSignature is Verify's one answer to a wrong signature.
var errSignature = errors.New("signature does not verify")

// Verify checks that signature, in JWS form, is a's signature of message by
// the private half of pub. For a symmetric algorithm it is always
// ErrKeyMismatch.
func Verify(a Algorithm, pub crypto.PublicKey, message, signature []byte) error {
	if err := a.CheckPublic(pub); err != nil {
		return err
	}
	ok := false
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if a.PSS() {
			ok = rsa.VerifyPSS(k, a.Hash(), a.Digest(message), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		} else {
			ok = rsa.VerifyPKCS1v15(k, a.Hash(), a.Digest(message), signature) == nil
		}
	case *ecdsa.PublicKey:
		n := a.CoordinateSize()
		if len(signature) == 2*n {
			r, s := new(big.Int).SetBytes(signature[:n]), new(big.Int).SetBytes(signature[n:])
			ok = ecdsa.Verify(k, a.Digest(message), r, s)
		}
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, message, signature)
	}
	if !ok {
		return errSignature
	}
	return nil
}
