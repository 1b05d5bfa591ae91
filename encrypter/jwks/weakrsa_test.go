package jwks_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// primesTo multiplies the first primes.
func primesTo(count int) *big.Int {
	product := big.NewInt(1)
	var primes []int64
candidates:
	for n := int64(2); len(primes) < count; n++ {
		for _, p := range primes {
			if p*p > n {
				break
			}
			if n%p == 0 {
				continue candidates
			}
		}
		primes = append(primes, n)
		product.Mul(product, big.NewInt(n))
	}
	return product
}

// roughNumber returns a random odd number of exactly that many bits without
// small factors. It passes for a modulus as far as anybody can tell cheaply.
func roughNumber(t testing.TB, bits int) *big.Int {
	t.Helper()
	for {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
		if err != nil {
			t.Fatal(err)
		}
		n.SetBit(n, bits-1, 1)
		if coprime(n, primesTo(50)) && coprime(n, allSmallPrimes()) {
			return n
		}
	}
}

// allSmallPrimes multiplies the primes below 2^16, of which there are 6542.
var allSmallPrimes = sync.OnceValue(func() *big.Int { return primesTo(6542) })

func coprime(a, b *big.Int) bool { return new(big.Int).GCD(nil, nil, a, b).Cmp(big.NewInt(1)) == 0 }

func prime(t testing.TB, bits int) *big.Int {
	t.Helper()
	p, err := rand.Prime(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func nextPrime(p *big.Int) *big.Int {
	q := new(big.Int).Set(p)
	for {
		q.Add(q, big.NewInt(2))
		if q.ProbablyPrime(20) {
			return q
		}
	}
}

// rocaPrime makes a prime as Infineon's RSALib did for 2048-bit keys:
// k*M + (65537^a mod M), M being the product of the first 71 primes.
func rocaPrime(t testing.TB, bits int) *big.Int {
	t.Helper()
	m := primesTo(71)
	top := new(big.Int).Lsh(big.NewInt(3), uint(bits-2)) // so that products have full length
	span := new(big.Int).Div(new(big.Int).Lsh(big.NewInt(1), uint(bits-2)), m)
	for {
		a, err := rand.Int(rand.Reader, m)
		if err != nil {
			t.Fatal(err)
		}
		k, err := rand.Int(rand.Reader, span)
		if err != nil {
			t.Fatal(err)
		}
		k.Add(k, new(big.Int).Div(top, m))
		p := new(big.Int).Exp(big.NewInt(65537), a, m)
		p.Add(p, k.Mul(k, m))
		if p.BitLen() == bits && p.ProbablyPrime(20) {
			return p
		}
	}
}

func withModulus(n *big.Int) jwk { return with(rsaJWK(), "n", b64(n.Bytes())) }

func withExponent(e uint64) jwk {
	return with(rsaJWK(), "e", b64(new(big.Int).SetUint64(e).Bytes()))
}

func TestWeakRSAKeyIsRejected(t *testing.T) {
	p := prime(t, 1024)
	rough := roughNumber(t, 2040)
	tests := []badKey{
		{"1024 bits", withModulus(roughNumber(t, 1024)), "1024 bits"},
		{"2047 bits", withModulus(roughNumber(t, 2047)), "2047 bits"},
		{"4097 bits", withModulus(roughNumber(t, 4097)), "4097 bits"},
		{"16384 bits", withModulus(roughNumber(t, 16384)), "16384 bits"},
		{"exponent 1", withExponent(1), "below 3"},
		{"exponent 2", withExponent(2), "even"},
		{"exponent 65536", withExponent(65536), "even"},
		{"exponent 2^31", withExponent(1 << 31), "2^31"},
		{"exponent 2^31 + 1", withExponent(1<<31 + 1), "2^31"},
		{"exponent 2^64 + 1", with(rsaJWK(), "e", b64([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1})), "2^31"},
		{"exponent 0", with(rsaJWK(), "e", "AA"), "even"},
		{"even modulus", withModulus(new(big.Int).Lsh(rough, 10)), "prime factor below 65536"},
		{"factor 3", withModulus(new(big.Int).Mul(rough, big.NewInt(3*2039))), "prime factor below 65536"},
		{"factor 2039", withModulus(new(big.Int).Mul(rough, big.NewInt(2039))), "prime factor below 65536"},
		{"factor 2053", withModulus(new(big.Int).Mul(rough, big.NewInt(2053))), "prime factor below 65536"},
		{"factor 65521", withModulus(new(big.Int).Mul(rough, big.NewInt(65521))), "prime factor below 65536"},
		{"square", withModulus(new(big.Int).Mul(p, p)), "Fermat"},
		{"neighboring primes", withModulus(new(big.Int).Mul(p, nextPrime(p))), "Fermat"},
		{"ROCA", withModulus(new(big.Int).Mul(rocaPrime(t, 1024), rocaPrime(t, 1024))), "ROCA"},
	}
	testBadKeys(t, jwks.Rejected, tests)
}

// mersenne is 2^exponent - 1, a prime for the exponents 2203, 2281, 3217 and
// 4253, among others.
func mersenne(exponent uint) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), exponent)
	return n.Sub(n, big.NewInt(1))
}

// TestPrimeModulusIsNotRegistered: whoever knows that n is a prime knows phi(n),
// and with it the private exponent.
func TestPrimeModulusIsNotRegistered(t *testing.T) {
	good := with(rsaJWK(), "kid", "good")
	bad := func(exponent uint, pairs ...any) jwk { return with(withModulus(mersenne(exponent)), pairs...) }
	best := []any{"use", "enc", "alg", "RSA-OAEP-256"}
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	want := jwks.Want{Algorithm: encrypter.RSAOAEP256, CertificateAt: now}

	for _, exponent := range []uint{2203, 2281, 3217} {
		set := parse(t, bad(exponent, best...))
		if got, err := choose(t, set, want); got != -1 || !errors.Is(err, jwks.ErrKeyRejected) || !strings.Contains(err.Error(), "modulus is a prime") {
			t.Errorf("2^%d - 1: chose %d, %v, want ErrKeyRejected", exponent, got, err)
		}
	}
	der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: mersenne(2203), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwks.ParsePEM(block("PUBLIC KEY", der), jwks.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := choose(t, set, want); got != -1 || !errors.Is(err, jwks.ErrKeyRejected) {
		t.Errorf("in PEM: chose %d, %v, want ErrKeyRejected", got, err)
	}
	// The next key is taken in its place, whatever its rank.
	set = parse(t, bad(2203, best...), good, bad(2281, "use", "enc"))
	for range 2 {
		if got, err := choose(t, set, want); got != 1 {
			t.Errorf("chose %d, %v, want the key that is no prime", got, err)
		}
	}
	// After three, no RSA key of the set is.
	set = parse(t, bad(2203, best...), good, bad(2281, best...), bad(3217, best...), with(ecJWK(), "use", "enc"))
	if got, err := choose(t, set, want); got != -1 || !errors.Is(err, jwks.ErrKeyRejected) || !strings.Contains(err.Error(), "modulus of 3 other keys is a prime") {
		t.Errorf("chose %d, %v, want ErrKeyRejected", got, err)
	}
	if got, err := choose(t, set, jwks.Want{Algorithm: encrypter.ECDHES, CertificateAt: now}); got != 4 {
		t.Errorf("chose %d, %v, want the EC key", got, err)
	}
}

// TestFermatFindsWhatIsCloseEnough: after r rounds the method has found all
// pairs of primes whose difference is below about sqrt(8 r sqrt(n)).
func TestFermatFindsWhatIsCloseEnough(t *testing.T) {
	p := prime(t, 1024)
	near := nextPrime(new(big.Int).Add(p, new(big.Int).Lsh(big.NewInt(1), 515)))
	far := nextPrime(new(big.Int).Add(p, new(big.Int).Lsh(big.NewInt(1), 1000)))
	if k := parse(t, withModulus(new(big.Int).Mul(p, near))).Keys()[0]; k.State != jwks.Rejected || !strings.Contains(k.Reason, "Fermat") {
		t.Errorf("primes 2^515 apart: %v (%s), want rejected", k.State, k.Reason)
	}
	if k := parse(t, withModulus(new(big.Int).Mul(p, far))).Keys()[0]; k.State != jwks.Usable {
		t.Errorf("primes 2^1000 apart: %v (%s), want usable", k.State, k.Reason)
	}
}

// TestROCANeedsEveryPrime: one factor of another kind, or a modulus that lies
// in the right subgroup modulo each prime but has no common logarithm, is not
// the library's work.
func TestROCANeedsEveryPrime(t *testing.T) {
	half := new(big.Int).Mul(rocaPrime(t, 1024), prime(t, 1024))
	if k := parse(t, withModulus(half)).Keys()[0]; k.State != jwks.Usable {
		t.Errorf("one ROCA prime: %v (%s), want usable", k.State, k.Reason)
	}
	// By the Chinese remainder theorem: 1 = 65537^0 modulo all primes but 5,
	// and 65537 modulo 5. The orders of 65537 modulo 5 and 7 are both even.
	m := primesTo(39)
	rest := new(big.Int).Div(m, big.NewInt(5))
	n := new(big.Int).Lsh(big.NewInt(1), 2047)
	n.Div(n, m).Add(n, big.NewInt(1)).Mul(n, m).Add(n, big.NewInt(1))
	for new(big.Int).Mod(n, big.NewInt(5)).Int64() != 65537%5 {
		n.Add(n, rest)
	}
	for !coprime(n, allSmallPrimes()) {
		n.Add(n, m) // clear of the primes that follow
	}
	if k := parse(t, withModulus(n)).Keys()[0]; k.State != jwks.Usable {
		t.Errorf("no common logarithm: %v (%s), want usable", k.State, k.Reason)
	}
}

func TestRSASizesAtTheLimits(t *testing.T) {
	for _, tt := range []struct {
		bits, maxBits int
		want          jwks.State
	}{
		{2048, 0, jwks.Usable},
		{2049, 0, jwks.Usable},
		{3072, 0, jwks.Usable},
		{4096, 0, jwks.Usable},
		{4097, 0, jwks.Rejected},
		{4097, 8192, jwks.Usable},
		{8192, 8192, jwks.Usable},
		{8193, 8192, jwks.Rejected},
		{3073, 3072, jwks.Rejected},
	} {
		set, err := jwks.Parse(document(t, withModulus(roughNumber(t, tt.bits))), jwks.Limits{MaxRSABits: tt.maxBits})
		if err != nil {
			t.Fatal(err)
		}
		if k := set.Keys()[0]; k.State != tt.want {
			t.Errorf("%d bits with a limit of %d: %v (%s), want %v", tt.bits, tt.maxBits, k.State, k.Reason, tt.want)
		}
	}
}

// TestSoundRSAKeysPass guards against a check that rejects what it should not.
func TestSoundRSAKeysPass(t *testing.T) {
	for range 200 {
		if k := parse(t, withModulus(roughNumber(t, 2048))).Keys()[0]; k.State != jwks.Usable {
			t.Fatal(k.Reason)
		}
	}
	for _, e := range []uint64{3, 17, 65537, 1<<31 - 1} {
		k := parse(t, with(withExponent(e), "use", "enc")).Keys()[0]
		if k.State != jwks.Usable {
			t.Errorf("exponent %d: %s", e, k.Reason)
		}
		if warned := len(k.Warnings) > 0; warned != (e != 65537) {
			t.Errorf("exponent %d: warnings %q", e, k.Warnings)
		}
	}
}
