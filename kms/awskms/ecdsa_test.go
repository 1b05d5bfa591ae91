package awskms

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

// value is Ecdsa-Sig-Value for encoding/asn1, a coder of independent make.
type value struct{ R, S *big.Int }

func der(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSignaturesOfTheStandardLibraryVerifyAfterConversion(t *testing.T) {
	for _, alg := range []kms.Algorithm{kms.ES256, kms.ES384, kms.ES512} {
		t.Run(string(alg), func(t *testing.T) {
			private, err := ecdsa.GenerateKey(alg.Curve(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			message := []byte("header.payload")
			n := 20 // with 521 bits, every other r has a leading zero
			if alg == kms.ES256 {
				n = 400 // with 256, one in 256
			}
			for range n {
				in, err := ecdsa.SignASN1(rand.Reader, private, alg.Digest(message))
				if err != nil {
					t.Fatal(err)
				}
				out, err := fixedLength(in, alg.Curve())
				if err != nil {
					t.Fatalf("%x: %v", in, err)
				}
				if err := kms.Verify(alg, private.Public(), message, out); err != nil {
					t.Fatalf("%x became %x: %v", in, out, err)
				}
			}
		})
	}
}

func TestShortIntegersArePadded(t *testing.T) {
	got, err := fixedLength(der(t, value{big.NewInt(1), big.NewInt(0x80)}), elliptic.P256())
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 64)
	want[31], want[63] = 1, 0x80
	if !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestMalformedSignaturesAreRefused(t *testing.T) {
	curve := elliptic.P256()
	n := curve.Params().N
	one := big.NewInt(1)
	good := der(t, value{one, one})
	if _, err := fixedLength(good, curve); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, in := range map[string][]byte{
		"empty":                 {},
		"no DER":                []byte("signature"),
		"r||s already":          make([]byte, 64),
		"trailing byte":         append(bytes.Clone(good), 0),
		"cut short":             good[:len(good)-1],
		"three integers":        der(t, struct{ A, B, C *big.Int }{one, one, one}),
		"one integer":           der(t, struct{ A *big.Int }{one}),
		"octet strings":         der(t, struct{ A, B []byte }{[]byte{1}, []byte{1}}),
		"negative r":            der(t, value{big.NewInt(-1), one}),
		"negative s":            der(t, value{one, big.NewInt(-1)}),
		"zero r":                der(t, value{new(big.Int), one}),
		"zero s":                der(t, value{one, new(big.Int)}),
		"r is the order":        der(t, value{n, one}),
		"s is the order":        der(t, value{one, n}),
		"r too long":            der(t, value{new(big.Int).Lsh(one, 256), one}),
		"s much too long":       der(t, value{one, new(big.Int).Lsh(one, 8000)}),
		"padded integer":        {0x30, 0x07, 0x02, 0x02, 0x00, 0x01, 0x02, 0x01, 0x01},
		"empty integer":         {0x30, 0x05, 0x02, 0x00, 0x02, 0x01, 0x01},
		"long form of length":   {0x30, 0x81, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01},
		"indefinite length":     {0x30, 0x80, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01, 0x00, 0x00},
		"set, not sequence":     {0x31, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01},
		"length beyond the end": {0x30, 0x7f, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01},
	} {
		if out, err := fixedLength(in, curve); err == nil {
			t.Errorf("%s: %x was accepted as %x", name, in, out)
		}
	}
}

// FuzzFixedLength holds that what is accepted is exactly what encoding/asn1
// makes of the result.
func FuzzFixedLength(f *testing.F) {
	f.Add(der(f, value{big.NewInt(1), big.NewInt(1)}))
	f.Add(der(f, value{new(big.Int).Sub(elliptic.P521().Params().N, big.NewInt(1)), big.NewInt(0x80)}))
	f.Add(der(f, value{big.NewInt(-1), elliptic.P256().Params().N}))
	f.Add([]byte{0x30, 0x07, 0x02, 0x02, 0x00, 0x01, 0x02, 0x01, 0x01})
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, alg := range []kms.Algorithm{kms.ES256, kms.ES384, kms.ES512} {
			out, err := fixedLength(in, alg.Curve())
			if err != nil {
				continue
			}
			n := alg.CoordinateSize()
			if len(out) != 2*n {
				t.Fatalf("%s: %x became %d bytes, want %d", alg, in, len(out), 2*n)
			}
			again := der(t, value{new(big.Int).SetBytes(out[:n]), new(big.Int).SetBytes(out[n:])})
			if !bytes.Equal(again, in) {
				t.Fatalf("%s: %x was accepted; its DER is %x", alg, in, again)
			}
		}
	})
}
