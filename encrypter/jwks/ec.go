package jwks

import (
	"crypto/ecdsa"
	"crypto/elliptic"
)

// curveByName returns the curves of RFC 7518, section 6.2.1.1, or nil.
func curveByName(name string) elliptic.Curve {
	switch name {
	case "P-256":
		return elliptic.P256()
	case "P-384":
		return elliptic.P384()
	case "P-521":
		return elliptic.P521()
	}
	return nil
}

// setEC reads an EC key (RFC 7518, section 6.2.1).
func (k *Key) setEC(m members) {
	if _, ok := m.texts["crv"]; !ok {
		k.reject(`it has no member "crv": add it`)
		return
	}
	curve := curveByName(k.Curve)
	if curve == nil {
		k.skipCurve()
		return
	}
	point := []byte{4} // uncompressed
	size := (curve.Params().BitSize + 7) / 8
	for _, name := range []string{"x", "y"} {
		coordinate, err := decodeMember(m, name)
		if err != nil {
			k.reject("%s", err)
			return
		}
		// Section 6.2.1.2: the full size of a coordinate, leading zeros kept.
		if len(coordinate) != size {
			k.reject("its member %q has %d octets where %s needs exactly %d: keep leading zeros, add none", name, len(coordinate), k.Curve, size)
			return
		}
		point = append(point, coordinate...)
	}
	k.setPoint(curve, point)
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

// skipCurve skips a key for its crv, which may be right for another kty.
func (k *Key) skipCurve() {
	switch {
	case k.Type == "OKP" && curveByName(k.Curve) != nil:
		k.skip(`its crv %s belongs to kty "EC": correct its kty`, k.Curve)
	case k.Type == "EC" && okpSize(k.Curve) != 0:
		k.skip(`its crv %s belongs to kty "OKP": correct its kty`, k.Curve)
	default:
		k.skip("its crv %s is not one that tokens can be encrypted to here: use P-256, P-384, P-521, X25519 or X448", quote(k.Curve))
	}
}
