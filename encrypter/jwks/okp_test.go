package jwks_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/cloudflare/circl/dh/x448"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// littleEndian encodes a u-coordinate as RFC 7748, section 5 does.
func littleEndian(u *big.Int, size int) []byte {
	out := u.FillBytes(make([]byte, size))
	slices.Reverse(out)
	return out
}

// around returns the numbers from n-width to n+width that fit in size octets.
func around(n *big.Int, width int64, size int) []*big.Int {
	var list []*big.Int
	for d := -width; d <= width; d++ {
		if u := new(big.Int).Add(n, big.NewInt(d)); u.Sign() >= 0 && u.BitLen() <= 8*size {
			list = append(list, u)
		}
	}
	return list
}

func number(t *testing.T, text string) *big.Int {
	t.Helper()
	n, ok := new(big.Int).SetString(text, 0)
	if !ok {
		t.Fatal(text)
	}
	return n
}

func lowOrder(t *testing.T, crv string, x []byte) bool {
	t.Helper()
	k := parse(t, jwk{"kty": "OKP", "crv": crv, "use": "enc", "x": b64(x)}).Keys()[0]
	if k.State == jwks.Rejected && !strings.Contains(k.Reason, "low order") || k.State == jwks.Skipped {
		t.Fatalf("%s %x is %v: %s", crv, x, k.State, k.Reason)
	}
	return k.State == jwks.Rejected
}

// TestLowOrderPointsOfX25519 compares with the standard library, whose ECDH
// refuses a result of zero, around every number that could matter.
func TestLowOrderPointsOfX25519(t *testing.T) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	two255 := new(big.Int).Lsh(big.NewInt(1), 255)
	p := new(big.Int).Sub(two255, big.NewInt(19))
	a := number(t, "0x00b8495f16056286fdb1329ceb8d09da6ac49ff1fae35616aeb8413b7c7aebe0")
	b := number(t, "0x57119fd0dd4e22d8868e1c58c45c44045bef839c55b1d0b1248c50a3bc959c5f")
	sum := func(list ...*big.Int) *big.Int {
		s := new(big.Int)
		for _, n := range list {
			s.Add(s, n)
		}
		return s
	}
	var candidates []*big.Int
	for _, n := range []*big.Int{
		new(big.Int), p, sum(p, p), a, b, sum(p, a), sum(p, b),
		two255, sum(two255, a), sum(two255, b), sum(two255, p), sum(two255, two255),
	} {
		candidates = append(candidates, around(n, 40, 32)...)
	}
	// Those of cr.yp.to/ecdh.html that are of low order only to code that reads
	// the top bit.
	only := []*big.Int{sum(p, a), sum(p, b), sum(p, p, big.NewInt(-1)), sum(p, p), sum(p, p, big.NewInt(1))}
	found := map[string]bool{}
	for _, u := range candidates {
		x := littleEndian(u, 32)
		public, err := ecdh.X25519().NewPublicKey(x)
		if err != nil {
			t.Fatal(err)
		}
		_, err = private.ECDH(public)
		zero := err != nil
		listed := slices.ContainsFunc(only, func(n *big.Int) bool { return n.Cmp(u) == 0 })
		if got := lowOrder(t, "X25519", x); got != (zero || listed) {
			t.Errorf("%x is of low order: %v, want %v", x, got, zero || listed)
		}
		if zero {
			found[u.String()] = true
		}
	}
	// 0, 1, -1, p, p+1 and the two of order eight, each with either top bit.
	if len(found) != 14 {
		t.Errorf("%d encodings of low order, want 14", len(found))
	}
}

// TestLowOrderPointsOfX448 compares with circl.
func TestLowOrderPointsOfX448(t *testing.T) {
	var secret, shared x448.Key
	if _, err := rand.Read(secret[:]); err != nil {
		t.Fatal(err)
	}
	two448 := new(big.Int).Lsh(big.NewInt(1), 448)
	p := new(big.Int).Sub(two448, new(big.Int).Lsh(big.NewInt(1), 224))
	p.Sub(p, big.NewInt(1))
	found := 0
	for _, n := range []*big.Int{new(big.Int), p, two448} {
		for _, u := range around(n, 8, 56) {
			x := littleEndian(u, 56)
			public := x448.Key(x)
			zero := !x448.Shared(&shared, &secret, &public)
			if got := lowOrder(t, "X448", x); got != zero {
				t.Errorf("%x is of low order: %v, want %v", x, got, zero)
			}
			if zero {
				found++
			}
		}
	}
	if found != 5 { // 0, 1, p-1, p, p+1
		t.Errorf("%d encodings of low order, want 5", found)
	}
}

// TestKeysOfRFC7748 has the keys of sections 6.1 and 6.2.
func TestKeysOfRFC7748(t *testing.T) {
	raw := func(text string) []byte {
		out, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	k, err := parse(t, with(x25519JWK(), "use", "enc")).Choose(jwks.Want{Algorithm: encrypter.ECDHES})
	if err != nil {
		t.Fatal(err)
	}
	if public, ok := k.Public.(*ecdh.PublicKey); !ok || public.Curve() != ecdh.X25519() ||
		!bytes.Equal(public.Bytes(), raw("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")) {
		t.Errorf("X25519: got a %T, %v", k.Public, k.Public)
	}
	k, err = parse(t, with(x448JWK(), "use", "enc")).Choose(jwks.Want{Algorithm: encrypter.ECDHESA256KW})
	if err != nil {
		t.Fatal(err)
	}
	if public, ok := k.Public.(encrypter.X448PublicKey); !ok ||
		!bytes.Equal(public[:], raw("9b08f7cc31b7e3e67d22d5aea121074a273bd2b83de09c63faa73d2c22c5d9bbc836647241d953d40c5b12da88120d53177f80e532c41fa0")) {
		t.Errorf("X448: got a %T, %v", k.Public, k.Public)
	}
}
