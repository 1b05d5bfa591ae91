package jwks

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/cloudflare/circl/dh/x448"

	"github.com/bulla-project/bulla/encrypter"
)

// ErrKeySpec: no key is generated as asked. The text says what to ask for.
var ErrKeySpec = errors.New("no such key can be generated")

// KeySpec says which key pair [Generate] makes: either RSABits or Curve.
type KeySpec struct {
	// RSABits is the length of the modulus of an RSA key, from 2048 to 4096 in
	// multiples of 8. Take 2048, 3072 or 4096: other lengths are for those who
	// must match what they have.
	RSABits int
	// Curve is "P-256", "P-384" or "P-521" for an EC key, "X25519" or "X448"
	// for an OKP key.
	Curve string
	// Algorithm is the JWE alg that the key names as the only one that it is
	// for. Default: none.
	Algorithm string
}

// Bounds of a generated modulus.
const (
	maxGeneratedBits = 4096
	generatedStep    = 8
)

// Generate makes a key pair to encrypt tokens with, and returns its public
// half as a JWK Set of one key and its private half as one JWK (RFC 7517,
// sections 5 and 4). Both have the use "enc" and, as their kid, the RFC 7638
// thumbprint. Whoever calls hands the private half to the client and keeps
// nothing of it.
//
// A 4096-bit RSA key takes seconds of CPU time; the others take less. An error
// wraps ErrKeySpec, or says that something is wrong with this machine.
func Generate(spec KeySpec) (public, private []byte, err error) {
	if err := spec.check(); err != nil {
		return nil, nil, err
	}
	var key privateJWK
	switch curve, _ := curveByName(spec.Curve); {
	case spec.Curve == "":
		key, err = generateRSA(spec.RSABits)
	case curve.group == nil:
		key, err = generateX448()
	default:
		key, err = generateECDH(curve)
	}
	if err != nil {
		return nil, nil, err
	}
	key.Use, key.Algorithm = "enc", spec.Algorithm
	key.KeyID = key.thumbprint()
	if public, err = json.Marshal(map[string]any{"keys": []publicJWK{key.publicJWK}}); err != nil {
		return nil, nil, err
	}
	if private, err = json.Marshal(key); err != nil {
		return nil, nil, err
	}
	return public, private, nil
}

func (s KeySpec) check() error {
	kty, curve, ok := "RSA", curve{}, true
	if s.Curve != "" {
		curve, ok = curveByName(s.Curve)
		kty = curve.kty
	}
	switch {
	case s.RSABits != 0 && s.Curve != "":
		return fmt.Errorf("%w: an RSA length and a curve are both given: give one", ErrKeySpec)
	case s.RSABits == 0 && s.Curve == "":
		return fmt.Errorf("%w: neither an RSA length nor a curve is given: give one", ErrKeySpec)
	case s.Curve == "" && (s.RSABits < encrypter.MinRSABits || s.RSABits > maxGeneratedBits || s.RSABits%generatedStep != 0):
		return fmt.Errorf("%w: an RSA length of %d bits: choose 2048, 3072 or 4096 (or another multiple of %d between)", ErrKeySpec, s.RSABits, generatedStep)
	case !ok || curve.signs:
		return fmt.Errorf("%w: the curve %s is not known here: choose %s", ErrKeySpec, quote(s.Curve), encryptionCurves())
	}
	if s.Algorithm == "" {
		return nil
	}
	if reason := unfitType(encrypter.KeyAlgorithm(s.Algorithm), kty, s.Curve); reason != "" {
		return fmt.Errorf("%w: %s", ErrKeySpec, reason)
	}
	return nil
}

// publicJWK and privateJWK are the members of a generated key, in the order in
// which they are written: RFC 7518, sections 6.2 and 6.3, and RFC 8037,
// section 2.
type publicJWK struct {
	Type      string `json:"kty"`
	KeyID     string `json:"kid"`
	Use       string `json:"use"`
	Algorithm string `json:"alg,omitempty"`
	Curve     string `json:"crv,omitempty"`
	X         string `json:"x,omitempty"`
	Y         string `json:"y,omitempty"`
	N         string `json:"n,omitempty"`
	E         string `json:"e,omitempty"`
}

type privateJWK struct {
	publicJWK
	D  string `json:"d"`
	P  string `json:"p,omitempty"`
	Q  string `json:"q,omitempty"`
	DP string `json:"dp,omitempty"`
	DQ string `json:"dq,omitempty"`
	QI string `json:"qi,omitempty"`
}

func (j publicJWK) thumbprint() string {
	switch j.Type {
	case "RSA":
		return thumbprint([2]string{"e", j.E}, [2]string{"kty", j.Type}, [2]string{"n", j.N})
	case "EC":
		return thumbprint([2]string{"crv", j.Curve}, [2]string{"kty", j.Type}, [2]string{"x", j.X}, [2]string{"y", j.Y})
	}
	return thumbprint([2]string{"crv", j.Curve}, [2]string{"kty", j.Type}, [2]string{"x", j.X})
}

func generateRSA(bits int) (privateJWK, error) {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return privateJWK{}, fmt.Errorf("generating an RSA key: %w", err)
	}
	number := func(n *big.Int) string { return encode(n.Bytes()) }
	return privateJWK{
		publicJWK: publicJWK{Type: "RSA", N: number(key.N), E: number(big.NewInt(int64(key.E)))},
		D:         number(key.D),
		P:         number(key.Primes[0]), Q: number(key.Primes[1]),
		DP: number(key.Precomputed.Dp), DQ: number(key.Precomputed.Dq), QI: number(key.Precomputed.Qinv),
	}, nil
}

func generateECDH(c curve) (privateJWK, error) {
	key, err := c.group.GenerateKey(rand.Reader)
	if err != nil {
		return privateJWK{}, fmt.Errorf("generating a key on %s: %w", c.name, err)
	}
	// Bytes has the full length that RFC 7518, section 6.2.2.1 asks of d.
	public, d := key.PublicKey().Bytes(), encode(key.Bytes())
	jwk := privateJWK{publicJWK: publicJWK{Type: c.kty, Curve: c.name, X: encode(public)}, D: d}
	if c.kty == "OKP" {
		return jwk, nil
	}
	x, y := public[1:1+len(public)/2], public[1+len(public)/2:]
	jwk.X, jwk.Y = encode(x), encode(y)
	return jwk, nil
}

func generateX448() (privateJWK, error) {
	var public, secret x448.Key
	if _, err := rand.Read(secret[:]); err != nil {
		return privateJWK{}, fmt.Errorf("generating a key on X448: %w", err)
	}
	x448.KeyGen(&public, &secret)
	return privateJWK{publicJWK: publicJWK{Type: "OKP", Curve: "X448", X: encode(public[:])}, D: encode(secret[:])}, nil
}
