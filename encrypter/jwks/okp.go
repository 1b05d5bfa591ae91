package jwks

// okpSize is the length of the public key "x" in octets for the curves of
// RFC 8037, section 2; 0 for another.
func okpSize(curve string) int {
	switch curve {
	case "Ed25519", "X25519":
		return 32
	case "X448":
		return 56
	case "Ed448":
		return 57
	}
	return 0
}

// setOKP reads an OKP key (RFC 8037, section 2) as far as it takes to name it
// to an operator: no algorithm here encrypts to one.
func (k *Key) setOKP(m members) {
	if _, ok := m.texts["crv"]; !ok {
		k.reject(`it has no member "crv": add it`)
		return
	}
	size := okpSize(k.Curve)
	if size == 0 {
		k.skip("its crv %s is not one that tokens can be encrypted to here: use P-256, P-384 or P-521", quote(k.Curve))
		return
	}
	x, err := decodeMember(m, "x")
	if err != nil {
		k.reject("%s", err)
		return
	}
	if len(x) != size {
		k.reject(`its member "x" has %d octets where %s needs exactly %d: publish the right key`, len(x), k.Curve, size)
		return
	}
	k.Thumbprint = thumbprint([2]string{"crv", k.Curve}, [2]string{"kty", "OKP"}, [2]string{"x", m.texts["x"]})
	switch k.Curve {
	case "Ed25519", "Ed448":
		k.skip("its crv %s is for signatures only", k.Curve)
	default:
		k.skip("its crv %s is not one that tokens can be encrypted to here: use an EC key on P-256, P-384 or P-521", k.Curve)
	}
}
