package jwks

import (
	"crypto/ecdh"
	"math/big"
	"slices"

	"github.com/bulla-project/bulla/encrypter"
)

// setOKP reads an OKP key (RFC 8037, section 2).
func (k *Key) setOKP(m members) {
	if _, ok := m.texts["crv"]; !ok {
		k.reject(`it has no member "crv": add it`)
		return
	}
	curve, ok := k.curveOf()
	if !ok {
		return
	}
	x, err := decodeMember(m, "x")
	if err != nil {
		k.reject("%s", err)
		return
	}
	if len(x) != curve.size {
		k.reject(`its member "x" has %d octets where %s needs exactly %d: publish the right key`, len(x), k.Curve, curve.size)
		return
	}
	k.setX(x)
}

// setX sets the public key of an OKP key from its encoding, which has the
// length that its curve needs.
func (k *Key) setX(x []byte) {
	k.Thumbprint = thumbprint([2]string{"crv", k.Curve}, [2]string{"kty", "OKP"}, [2]string{"x", encode(x)})
	switch k.Curve {
	case "X25519":
		public, err := ecdh.X25519().NewPublicKey(x)
		if err != nil {
			k.reject("it is not a key on X25519: publish the right key")
			return
		}
		k.Public = public
	case "X448":
		k.Public = encrypter.X448PublicKey(x)
	default:
		k.skip("its crv %s is for signatures only", k.Curve)
		return
	}
	if isLowOrder(k.Curve, x) {
		k.reject("its point has a low order, so anybody knows what is agreed upon with it: publish the right key")
	}
}

// isLowOrder tells whether the key agreement of RFC 7748 with this public key
// gives zero whatever the private key is (sections 6 and 7): whether it is the
// u-coordinate of a point whose order divides the cofactor, on the curve or on
// its twist.
func isLowOrder(curve string, x []byte) bool {
	littleEndian := slices.Clone(x)
	slices.Reverse(littleEndian)
	u := new(big.Int).SetBytes(littleEndian)
	if curve == "X448" {
		return isLowOrderU(u, prime448(), nil)
	}
	// RFC 7748, section 5 ignores the top bit. Code from before it does not,
	// and should not be led to such a point either.
	masked, p, eighth := new(big.Int).SetBit(u, 255, 0), prime25519(), eighthOrder25519() // SetBit leaves u as it is
	return isLowOrderU(masked, p, eighth) || isLowOrderU(u, p, eighth)
}

// isLowOrderU is isLowOrder for a u-coordinate. The same point has several
// encodings, since those above the prime are taken for their value modulo the
// prime (RFC 7748, section 5); hence the reduction.
func isLowOrderU(u, p *big.Int, eighthOrder []string) bool {
	u = new(big.Int).Mod(u, p)
	one := big.NewInt(1)
	// 0 has order two. Of 1 and -1, which have order four, one is on the curve
	// and the other on its twist.
	return u.Sign() == 0 || u.Cmp(one) == 0 || u.Cmp(new(big.Int).Sub(p, one)) == 0 || slices.Contains(eighthOrder, u.String())
}

// prime25519 is 2^255 - 19.
func prime25519() *big.Int {
	p := new(big.Int).Lsh(big.NewInt(1), 255)
	return p.Sub(p, big.NewInt(19))
}

// prime448 is 2^448 - 2^224 - 1.
func prime448() *big.Int {
	p := new(big.Int).Lsh(big.NewInt(1), 448)
	p.Sub(p, new(big.Int).Lsh(big.NewInt(1), 224))
	return p.Sub(p, big.NewInt(1))
}

// eighthOrder25519 are the points of order eight on Curve25519, whose cofactor
// is eight. Those of its twist and of Curve448 and its twist are four.
func eighthOrder25519() []string {
	return []string{
		"325606250916557431795983626356110631294008115727848805560023387167927233504",
		"39382357235489614581723060781553021112529911719440698176882885853963445705823",
	}
}
