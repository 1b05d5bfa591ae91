package pkcs11

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/bulla-project/bulla/kms"
)

// fingerprint is the SHA-256 of a public key's PKIX encoding.
type fingerprint [sha256.Size]byte

func fingerprintOf(pkix []byte) fingerprint { return sha256.Sum256(pkix) }

// kindOf is the JWK name of CKA_KEY_TYPE, "" for a type that cannot sign here.
func kindOf(ckk uint) kms.KeyType {
	switch ckk {
	case ckkRSA:
		return kms.RSA
	case ckkEC:
		return kms.EC
	case ckkECEdwards:
		return kms.OKP
	}
	return ""
}

// ckkOf is the CKA_KEY_TYPE of a JWK key type.
func ckkOf(kind kms.KeyType) uint {
	switch kind {
	case kms.EC:
		return ckkEC
	case kms.OKP:
		return ckkECEdwards
	}
	return ckkRSA
}

// The ways CKA_EC_PARAMS names a curve: an object identifier (RFC 5480,
// section 2.1.1.1; RFC 8410, section 3), or for Ed25519 also the name as a
// PrintableString (PKCS#11 v3.0, section 2.3.10).
var (
	oidP256    = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384    = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	oidP521    = asn1.ObjectIdentifier{1, 3, 132, 0, 35}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
	// oidEd25519Old is what was used before RFC 8410.
	oidEd25519Old = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 15, 1}
)

// rsaPublic makes a key of CKA_MODULUS and CKA_PUBLIC_EXPONENT.
func rsaPublic(modulus, exponent []byte) (crypto.PublicKey, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	switch {
	case n.BitLen() > 4*kms.MaxRSABits:
		return nil, fmt.Errorf("the RSA modulus has %d bits", n.BitLen())
	case n.Sign() == 0 || n.Bit(0) == 0:
		return nil, errors.New("the RSA modulus is even")
	case e.BitLen() > 31 || e.BitLen() < 2 || e.Bit(0) == 0:
		return nil, errors.New("the RSA public exponent is not an odd number from 3 to 2^31-1")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// ecPublic makes a key of CKA_EC_PARAMS and CKA_EC_POINT. The point is an
// uncompressed one in a DER OCTET STRING, as the standard says, or bare, as
// some modules have it.
func ecPublic(params, point []byte) (crypto.PublicKey, error) {
	var oid asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(params, &oid); err != nil || len(rest) != 0 {
		return nil, errors.New("CKA_EC_PARAMS is not the name of a curve")
	}
	var curve elliptic.Curve
	switch {
	case oid.Equal(oidP256):
		curve = elliptic.P256()
	case oid.Equal(oidP384):
		curve = elliptic.P384()
	case oid.Equal(oidP521):
		curve = elliptic.P521()
	default:
		return nil, fmt.Errorf("the curve with the object identifier %v cannot be used: P-256, P-384 and P-521 can", oid)
	}
	// By length, because 0x04 begins both an OCTET STRING and a bare point.
	if size := (curve.Params().BitSize + 7) / 8; len(point) != 1+2*size {
		inner, err := octets(point)
		if err != nil {
			return nil, err
		}
		point = inner
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, fmt.Errorf("CKA_EC_POINT is no point of %s in uncompressed form", curve.Params().Name)
	}
	return pub, nil
}

// edPublic makes an Ed25519 key of CKA_EC_PARAMS and CKA_EC_POINT, the latter
// in a DER OCTET STRING or bare.
func edPublic(params, point []byte) (crypto.PublicKey, error) {
	var oid asn1.ObjectIdentifier
	var name string
	if rest, err := asn1.Unmarshal(params, &oid); err != nil || len(rest) != 0 {
		if rest, err := asn1.Unmarshal(params, &name); err != nil || len(rest) != 0 {
			return nil, errors.New("CKA_EC_PARAMS is not the name of a curve")
		}
	}
	if !oid.Equal(oidEd25519) && !oid.Equal(oidEd25519Old) && name != "edwards25519" && name != "Ed25519" {
		return nil, errors.New("the curve is not Ed25519")
	}
	if len(point) != ed25519.PublicKeySize {
		inner, err := octets(point)
		if err != nil {
			return nil, err
		}
		point = inner
	}
	if len(point) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("CKA_EC_POINT of an Ed25519 key has %d bytes, not %d", len(point), ed25519.PublicKeySize)
	}
	return ed25519.PublicKey(point), nil
}

// octets unwraps a DER OCTET STRING.
func octets(der []byte) ([]byte, error) {
	var inner []byte
	if rest, err := asn1.Unmarshal(der, &inner); err != nil || len(rest) != 0 {
		return nil, errors.New("CKA_EC_POINT is neither a DER OCTET STRING nor a bare point")
	}
	return inner, nil
}

// certificatePublic is the key of an X.509 certificate's CKA_VALUE.
func certificatePublic(der []byte) (crypto.PublicKey, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate cannot be read: %w", err)
	}
	return cert.PublicKey, nil
}

// publicReader reads attributes of one object; a missing or sensitive one is
// an error.
type publicReader func(object, kind uint) ([]byte, error)

// publicOf reads the public key that object holds: a public key object, or an
// RSA private one.
func publicOf(kind kms.KeyType, object uint, read publicReader) (crypto.PublicKey, error) {
	one, two, build := uint(ckaECParams), uint(ckaECPoint), ecPublic
	switch kind {
	case kms.RSA:
		one, two, build = ckaModulus, ckaPublicExponent, rsaPublic
	case kms.OKP:
		build = edPublic
	}
	a, err := read(object, one)
	if err != nil {
		return nil, err
	}
	b, err := read(object, two)
	if err != nil {
		return nil, err
	}
	return build(a, b)
}
