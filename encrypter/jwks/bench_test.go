package jwks_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// worstSets are the costliest documents that the default limits let in.
func worstSets(t testing.TB) map[string][]byte {
	ec := make([]jwk, 100)
	for i := range ec {
		ec[i] = with(p521JWK(), "kid", fmt.Sprint(i))
	}
	rsa4096 := make([]jwk, 100)
	for i := range rsa4096 {
		rsa4096[i] = with(withModulus(roughNumber(t, 4096)), "kid", fmt.Sprint(i))
	}
	rsa8192 := make([]jwk, 90)
	for i := range rsa8192 {
		rsa8192[i] = with(withModulus(roughNumber(t, 8192)), "kid", fmt.Sprint(i))
	}
	primes := make([]jwk, 100)
	for i := range primes {
		primes[i] = with(withModulus(mersenne(3217)), "kid", fmt.Sprint(i), "use", "enc")
	}
	ops := make([]string, 10_000)
	for i := range ops {
		ops[i] = fmt.Sprint(i)
	}
	return map[string][]byte{
		"100 prime moduli":  document(t, primes...),
		"10000 key_ops":     document(t, with(ecJWK(), "key_ops", ops)),
		"100 P-521 keys":    document(t, ec...),
		"100 RSA-4096 keys": document(t, rsa4096...),
		"90 RSA-8192 keys":  document(t, rsa8192...),
	}
}

// TestWorstSetIsCheap has a bound far above what it takes (milliseconds), so
// that it fails only if a check of another order of cost comes in.
func TestWorstSetIsCheap(t *testing.T) {
	for name, doc := range worstSets(t) {
		for _, maxBits := range []int{4096, 8192} {
			start := time.Now()
			set, err := jwks.Parse(doc, jwks.Limits{MaxRSABits: maxBits})
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", name, len(doc), err)
			}
			for _, alg := range []encrypter.KeyAlgorithm{encrypter.RSAOAEP, encrypter.ECDHES} {
				set.Explain(jwks.Want{Algorithm: alg, CertificateAt: start})
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("%s with a limit of %d bits took %v", name, maxBits, took)
			}
		}
	}
}

func BenchmarkParse(b *testing.B) {
	sets := worstSets(b)
	sets["2 keys"] = []byte(rfc7517A1)
	for name, doc := range sets {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(doc)))
			for b.Loop() {
				if _, err := jwks.Parse(doc, jwks.Limits{MaxRSABits: 8192}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
