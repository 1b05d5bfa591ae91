package jwks

import (
	"math/big"
	"sync"
)

// smallPrimeBound: a modulus must not have a prime factor below it. Real
// factors have a thousand bits; a small one means a corrupted modulus or a
// broken generator.
const smallPrimeBound = 1 << 16

// smallPrimes is the product of all primes below smallPrimeBound, a number of
// 94027 bits that takes two milliseconds to make. It is only read.
var smallPrimes = sync.OnceValue(func() *big.Int {
	composite := make([]bool, smallPrimeBound)
	var list []*big.Int
	for p := 2; p < smallPrimeBound; p++ {
		if composite[p] {
			continue
		}
		for i := p * p; i < smallPrimeBound; i += p {
			composite[i] = true
		}
		list = append(list, big.NewInt(int64(p)))
	}
	// Pairs of numbers of equal length are multiplied fastest.
	for len(list) > 1 {
		half := (len(list) + 1) / 2
		for i := range len(list) - half {
			list[i].Mul(list[i], list[half+i])
		}
		list = list[:half]
	}
	return list[0]
})

// hasSmallFactor tells whether n, longer than smallPrimeBound, has a prime factor
// below it. It takes a tenth of a millisecond for 2048 bits, half a one for 8192.
func hasSmallFactor(n *big.Int) bool {
	rest := new(big.Int).Rem(smallPrimes(), n)
	return rest.GCD(nil, nil, rest, n).Cmp(big.NewInt(1)) != 0
}

// isPrime tells whether n is a prime, by Fermat's test with base 2. The
// composites that pass for primes are so rare that none was ever met by chance.
// It is a full exponentiation: 4 ms for 2048 bits, 30 ms for 4096.
func isPrime(n *big.Int) bool {
	one := big.NewInt(1)
	return new(big.Int).Exp(big.NewInt(2), new(big.Int).Sub(n, one), n).Cmp(one) == 0
}

const (
	// rocaGenerator generates the subgroup in which RSALib drew its primes.
	rocaGenerator = 65537
	// rocaBound: the primorial M is a product of the primes up to 167 for the
	// shortest keys, and of more for longer ones.
	rocaBound = 167
)

// hasROCAFingerprint tells whether n looks like a modulus of Infineon's RSALib
// (Nemec, Sys, Svenda, Klinec, Matyas: "The Return of Coppersmith's Attack",
// CCS 2017, section 2). That library made its primes as k*M + (65537^a mod M),
// M being the product of the first primes, so the modulus too is a power of
// 65537 modulo M. It is one iff it is one modulo each prime of M and the
// discrete logarithms agree wherever the orders have a common divisor; a sound
// modulus passes by chance less than once in 2^100.
func hasROCAFingerprint(n *big.Int) bool {
	type logarithm struct{ value, order uint64 }
	var logs []logarithm
	var rest, divisor big.Int
	for p := uint64(3); p <= rocaBound; p += 2 {
		if !isSmallPrime(p) {
			continue
		}
		target := rest.Rem(n, divisor.SetUint64(p)).Uint64()
		value, order, ok := discreteLog(rocaGenerator%p, target, p)
		if !ok {
			return false
		}
		for _, l := range logs {
			if common := gcd(order, l.order); value%common != l.value%common {
				return false
			}
		}
		logs = append(logs, logarithm{value, order})
	}
	return true
}

// discreteLog finds value with generator^value = target mod p, and the order
// of generator, by trying all powers.
func discreteLog(generator, target, p uint64) (value, order uint64, ok bool) {
	power := uint64(1)
	for {
		if power == target {
			value, ok = order, true
		}
		order++
		power = power * generator % p
		if power == 1 {
			return value, order, ok
		}
	}
}

func isSmallPrime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// fermatRounds is how many steps of Fermat's method a modulus must withstand.
// Primes drawn at random withstand any feasible number; known broken
// generators took the next prime after the first one and fall in round one.
const fermatRounds = 128

// hasClosePrimes runs Fermat's factorization for fermatRounds steps: it looks
// for an a just above the square root of n for which a*a - n is a square b*b,
// for then n = (a-b)(a+b). A modulus that is itself a square is found at once.
func hasClosePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	if new(big.Int).Mul(a, a).Cmp(n) < 0 {
		a.Add(a, big.NewInt(1))
	}
	b2 := new(big.Int).Mul(a, a)
	b2.Sub(b2, n)
	step := new(big.Int).Lsh(a, 1) // (a+1)^2 - a^2 = 2a + 1
	step.Add(step, big.NewInt(1))
	two := big.NewInt(2)
	for range fermatRounds {
		if isSquare(b2) {
			return true
		}
		b2.Add(b2, step)
		step.Add(step, two)
	}
	return false
}

// isSquare sorts out almost all other numbers by their residues, because a
// root of thousands of bits is costly.
func isSquare(x *big.Int) bool {
	if x.Sign() == 0 {
		return true
	}
	switch x.Bits()[0] & 15 {
	case 0, 1, 4, 9:
	default:
		return false
	}
	const product = 3 * 5 * 7 * 11 * 13 * 17 * 19 * 23 * 29 * 31 * 37 * 41 * 43 * 47
	rest := new(big.Int).Rem(x, new(big.Int).SetUint64(product)).Uint64()
	for _, p := range []uint64{3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47} {
		// Euler's criterion.
		if power(rest%p, (p-1)/2, p) == p-1 {
			return false
		}
	}
	root := new(big.Int).Sqrt(x)
	return root.Mul(root, root).Cmp(x) == 0
}

// power is base^exponent mod m for an m below 2^32.
func power(base, exponent, m uint64) uint64 {
	result := uint64(1)
	for ; exponent > 0; exponent >>= 1 {
		if exponent&1 == 1 {
			result = result * base % m
		}
		base = base * base % m
	}
	return result
}
