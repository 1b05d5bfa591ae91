package jwks

import (
	"crypto/ecdh"
	"crypto/elliptic"
	"strings"
)

// curve is a curve that a key can be on: its member "crv" (RFC 7518, section
// 6.2.1.1; RFC 8037, section 2).
type curve struct {
	name, kty string
	size      int            // of x, y and d, in octets
	ec        elliptic.Curve // of kty EC
	group     ecdh.Curve     // where crypto/ecdh has it
	signs     bool           // it is for signatures only
}

// curves is the table of the curves.
func curves() []curve {
	return []curve{
		{name: "P-256", kty: "EC", size: 32, ec: elliptic.P256(), group: ecdh.P256()},
		{name: "P-384", kty: "EC", size: 48, ec: elliptic.P384(), group: ecdh.P384()},
		{name: "P-521", kty: "EC", size: 66, ec: elliptic.P521(), group: ecdh.P521()},
		{name: "X25519", kty: "OKP", size: 32, group: ecdh.X25519()},
		{name: "X448", kty: "OKP", size: 56},
		{name: "Ed25519", kty: "OKP", size: 32, signs: true},
		{name: "Ed448", kty: "OKP", size: 57, signs: true},
	}
}

func curveByName(name string) (curve, bool) {
	for _, c := range curves() {
		if c.name == name {
			return c, true
		}
	}
	return curve{}, false
}

// encryptionCurves names the curves that are not for signatures only, for
// messages.
func encryptionCurves() string {
	var names []string
	for _, c := range curves() {
		if !c.signs {
			names = append(names, c.name)
		}
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// curveOf returns the curve of an EC or OKP key, and skips the key if its crv is
// not known or belongs to another kty.
func (k *Key) curveOf() (curve, bool) {
	c, ok := curveByName(k.Curve)
	switch {
	case !ok:
		k.skip("its crv %s is not one that tokens can be encrypted to here: use %s", quote(k.Curve), encryptionCurves())
	case c.kty != k.Type:
		k.skip("its crv %s belongs to kty %q: correct its kty", k.Curve, c.kty)
	}
	return c, k.State == Usable
}
