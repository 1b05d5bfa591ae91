package jwks

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"sync"

	"github.com/bulla-project/bulla/encrypter"
)

const (
	// maxExponentBits keeps e within what crypto/rsa and common hardware take.
	maxExponentBits = 31
	usualExponent   = 65537
)

// setRSA reads an RSA key (RFC 7518, section 6.3.1).
func (k *Key) setRSA(m members, maxBits int) {
	n, err := k.unsigned(m, "n")
	if err != nil {
		k.reject("%s", err)
		return
	}
	e, err := k.unsigned(m, "e")
	if err != nil {
		k.reject("%s", err)
		return
	}
	k.setModulus(n, e, maxBits)
}

// setModulus sets the public key if it passes the checks.
func (k *Key) setModulus(n, e *big.Int, maxBits int) {
	k.Thumbprint = thumbprint([2]string{"e", encode(e.Bytes())}, [2]string{"kty", "RSA"}, [2]string{"n", encode(n.Bytes())})
	if err := checkRSA(n, e, maxBits); err != nil {
		k.reject("%s", err)
		return
	}
	if e.Int64() != usualExponent {
		k.warn("its RSA exponent is %d: 65537 is the usual one", e.Int64())
	}
	k.Public = &rsa.PublicKey{N: n, E: int(e.Int64())}
	k.primeModulus = sync.OnceValue(func() bool { return isPrime(n) })
}

// unsigned reads a Base64urlUInt (RFC 7518, section 2). Libraries that encode
// signed integers prefix a zero octet; one such octet is let pass with a
// warning, since it changes nothing of the key.
func (k *Key) unsigned(m members, name string) (*big.Int, error) {
	raw, err := decodeMember(m, name)
	if err != nil {
		return nil, err
	}
	if raw[0] == 0 && len(raw) > 1 {
		if raw[1] == 0 {
			return nil, fmt.Errorf("its member %q has leading zero octets: encode it in as few octets as it needs", name)
		}
		k.warn("its member %q has a leading zero octet: RFC 7518, section 6.3.1 allows none", name)
	}
	return new(big.Int).SetBytes(raw), nil
}

// checkRSA returns why an RSA public key must not be used, or nil. The cheap
// checks come first, so that the costly ones see only numbers of a bounded size.
// The costliest is left to the choice: see Key.primeModulus.
func checkRSA(n, e *big.Int, maxBits int) error {
	bits := n.BitLen()
	switch {
	case bits < encrypter.MinRSABits:
		return fmt.Errorf("its RSA modulus has %d bits, less than the required %d: create a longer key", bits, encrypter.MinRSABits)
	case bits > maxBits:
		return fmt.Errorf("its RSA modulus has %d bits, more than the allowed %d: create a shorter key", bits, maxBits)
	case e.BitLen() > maxExponentBits:
		return errors.New("its RSA exponent is not below 2^31: create a key with the exponent 65537")
	case e.Bit(0) == 0:
		return errors.New("its RSA exponent is even: create a key with the exponent 65537")
	case e.Int64() < 3:
		return errors.New("its RSA exponent is below 3: create a key with the exponent 65537")
	}
	if hasSmallFactor(n) {
		return fmt.Errorf("its RSA modulus has a prime factor below %d, so anybody can break it: create a new key", smallPrimeBound)
	}
	if hasROCAFingerprint(n) {
		return errors.New("its RSA modulus comes from a library that makes factorable keys (ROCA, CVE-2017-15361): create a new key with other software or hardware")
	}
	if hasClosePrimes(n) {
		return errors.New("its RSA primes lie so close together that anybody can find them (Fermat): create a new key with other software")
	}
	return nil
}
