package awskms

import (
	"crypto/elliptic"
	"errors"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

var (
	errNotDER = errors.New("not a DER sequence of two integers (RFC 3279, section 2.2.3)")
	errRange  = errors.New("r or s is not between 1 and the order of the curve")
)

// fixedLength turns an ECDSA signature in DER, an Ecdsa-Sig-Value of RFC 3279,
// section 2.2.3, into r‖s as in RFC 7518, section 3.4. It is strict: nothing
// before, between or after the two integers, each in its shortest form and
// between 1 and the curve's order (FIPS 186-5, section 6.4.2).
func fixedLength(der []byte, curve elliptic.Curve) ([]byte, error) {
	var sequence cryptobyte.String
	r, s := new(big.Int), new(big.Int)
	input := cryptobyte.String(der)
	if !input.ReadASN1(&sequence, asn1.SEQUENCE) || !input.Empty() ||
		!sequence.ReadASN1Integer(r) || !sequence.ReadASN1Integer(s) || !sequence.Empty() {
		return nil, errNotDER
	}
	params := curve.Params()
	for _, n := range []*big.Int{r, s} {
		if n.Sign() <= 0 || n.Cmp(params.N) >= 0 {
			return nil, errRange
		}
	}
	size := (params.N.BitLen() + 7) / 8
	signature := make([]byte, 2*size)
	r.FillBytes(signature[:size])
	s.FillBytes(signature[size:])
	return signature, nil
}
