package jwks

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"

	"github.com/bulla-project/bulla/encrypter"
)

// spki is a SubjectPublicKeyInfo (RFC 5280, section 4.1).
type spki struct {
	DER asn1.RawContent
	// Algorithm is the kind of key, with its parameters.
	Algorithm pkix.AlgorithmIdentifier
	// Key is encoded as Algorithm says.
	Key asn1.BitString
}

func parseSPKI(der []byte) (*spki, error) {
	info := new(spki)
	rest, err := asn1.Unmarshal(der, info)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, errors.New("there is more after it")
	}
	return info, nil
}

// Object identifiers of kinds of keys that crypto/x509 does not know (RFC 8410,
// section 3; RFC 4055, section 3.1).
const (
	oidX448   = "1.3.101.111"
	oidEd448  = "1.3.101.113"
	oidRSAPSS = "1.2.840.113549.1.1.10"
)

// x448 returns the key if it is one on X448: 56 octets and no parameters
// (RFC 8410, sections 3 and 4).
func (s *spki) x448() (encrypter.X448PublicKey, bool) {
	if s.Algorithm.Algorithm.String() != oidX448 || len(s.Algorithm.Parameters.FullBytes) != 0 ||
		s.Key.BitLength != 8*len(encrypter.X448PublicKey{}) {
		return encrypter.X448PublicKey{}, false
	}
	return encrypter.X448PublicKey(s.Key.Bytes), true
}

// setSPKI sets Type, Curve and the public key from a SubjectPublicKeyInfo.
func (k *Key) setSPKI(s *spki, maxRSABits int) {
	if public, ok := s.x448(); ok {
		k.Type, k.Curve = "OKP", "X448"
		k.setX(public[:])
		return
	}
	switch s.Algorithm.Algorithm.String() {
	case oidX448:
		k.reject("it is not a key on X448, which has 56 octets and no parameters: register the right key")
		return
	case oidEd448, oidRSAPSS:
		k.skip("it is a key for signatures only: register one for encryption")
		return
	}
	public, err := x509.ParsePKIXPublicKey(s.DER)
	if err != nil {
		k.reject("it is malformed, or of a kind that tokens cannot be encrypted to here: use RSA, %s", encryptionCurves())
		return
	}
	k.setPublic(public, maxRSABits)
}

// setPublic sets Type, Curve and the public key from one that the standard
// library has parsed.
func (k *Key) setPublic(public any, maxRSABits int) {
	switch public := public.(type) {
	case *rsa.PublicKey:
		k.Type = "RSA"
		k.setModulus(public.N, big.NewInt(int64(public.E)), maxRSABits)
	case *ecdsa.PublicKey:
		k.Type, k.Curve = "EC", public.Curve.Params().Name
		curve, ok := k.curveOf()
		if !ok {
			return
		}
		point, err := public.Bytes()
		if err != nil {
			k.reject("its point is not on %s: register the right key", k.Curve)
			return
		}
		k.setPoint(curve.ec, point)
	case *ecdh.PublicKey: // on X25519: others come as *ecdsa.PublicKey
		k.Type, k.Curve = "OKP", "X25519"
		k.setX(public.Bytes())
	default: // ed25519.PublicKey and *dsa.PublicKey
		k.skip("it is a key for signatures only: register one for encryption")
	}
}
