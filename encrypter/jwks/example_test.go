package jwks_test

import (
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// A client's set with a key for encryption and one for signatures, as in
// RFC 7517, appendix A.1.
func Example() {
	set, err := jwks.Parse([]byte(rfc7517A1), jwks.Limits{})
	if err != nil {
		fmt.Println(err)
		return
	}

	key, err := set.Choose(jwks.Want{Algorithm: encrypter.ECDHES})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("encrypt to kid", key.KeyID)

	_, err = set.Choose(jwks.Want{Algorithm: encrypter.RSAOAEP256})
	fmt.Println(errors.Is(err, jwks.ErrNoKey))
	for _, v := range set.Explain(jwks.Want{Algorithm: encrypter.RSAOAEP256}) {
		fmt.Printf("%v: %v, %s\n", v.Key, v.Outcome, v.Reason)
	}
	// Output:
	// encrypt to kid 1
	// true
	// keys[0] (kid "1"): unfit, its kty is "EC", and alg RSA-OAEP-256 needs RSA
	// keys[1] (kid "2011-04-29"): unfit, its alg is "RS256", not "RSA-OAEP-256"
}

// A client registers an elliptic curve key in PEM, as OpenSSL writes it.
func ExampleParsePEM() {
	set, err := jwks.ParsePEM([]byte(`-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqDJcoBCe7Up2lmMcZq+aOoU4lStc
0uDTrEn9hKZeKE+daWgFXvc0Dub3IeY+V9yAm4i4R4OKawZIWY2Rx0Jj7Q==
-----END PUBLIC KEY-----
`), jwks.Limits{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, v := range set.Explain(jwks.Want{Algorithm: encrypter.ECDHES}) {
		fmt.Printf("%v: %v, %s\n", v.Key, v.Outcome, v.Reason)
	}
	for _, v := range set.Explain(jwks.Want{Algorithm: encrypter.RSAOAEP256}) {
		fmt.Printf("%v: %v, %s\n", v.Key, v.Outcome, v.Reason)
	}
	// Output:
	// the PEM key: chosen, it fits
	// the PEM key: unfit, its kty is "EC", and alg RSA-OAEP-256 needs RSA
}
