package jwks

import (
	"crypto/ecdsa"
	"crypto/elliptic"
)

// setEC reads an EC key (RFC 7518, section 6.2.1).
func (k *Key) setEC(m members) {
	if _, ok := m.texts["crv"]; !ok {
		k.reject(`it has no member "crv": add it`)
		return
	}
	curve, ok := k.curveOf()
	if !ok {
		return
	}
	point := []byte{4} // uncompressed
	for _, name := range []string{"x", "y"} {
		coordinate, err := decodeMember(m, name)
		if err != nil {
			k.reject("%s", err)
			return
		}
		// Section 6.2.1.2: the full size of a coordinate, leading zeros kept.
		if len(coordinate) != curve.size {
			k.reject("its member %q has %d octets where %s needs exactly %d: keep leading zeros, add none", name, len(coordinate), k.Curve, curve.size)
			return
		}
		point = append(point, coordinate...)
	}
	k.setPoint(curve.ec, point)
}

// setPoint sets the public key if the point, in its uncompressed form (SEC 1,
// section 2.3.3) of the right length, is on the curve.
func (k *Key) setPoint(curve elliptic.Curve, point []byte) {
	x, y := point[1:1+len(point)/2], point[1+len(point)/2:]
	k.Thumbprint = thumbprint(
		[2]string{"crv", k.Curve}, [2]string{"kty", "EC"},
		[2]string{"x", encode(x)}, [2]string{"y", encode(y)})
	public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		k.reject("its point (x, y) is not on %s: publish the right key", k.Curve)
		return
	}
	k.Public = public
}
