package encrypter

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// testKeys are key pairs of every kind that the table's algorithms take. RSA
// keys take long to make, so that all tests share them.
var testKeys = struct {
	rsa2048, rsa3072 func() *rsa.PrivateKey
	ec               func() map[string]*ecdsa.PrivateKey // by JWK crv
}{
	rsa2048: sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) }),
	rsa3072: sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 3072)) }),
	ec: sync.OnceValue(func() map[string]*ecdsa.PrivateKey {
		return map[string]*ecdsa.PrivateKey{
			"P-256": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
			"P-384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
			"P-521": must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		}
	}),
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// combination is a recipient's key with the algorithms to use with it.
type combination struct {
	alg     KeyAlgorithm
	enc     ContentEncryption
	size    string // curve, or bits of the RSA modulus
	private crypto.Signer
}

func (c combination) String() string {
	return string(c.alg) + "/" + c.size + "/" + string(c.enc)
}

func (c combination) recipient(t testing.TB) *Recipient {
	t.Helper()
	r, err := NewRecipient(RecipientConfig{Key: c.private.Public(), KeyID: "key-1", Algorithm: c.alg, ContentEncryption: c.enc})
	if err != nil {
		t.Fatalf("NewRecipient(%s): %v", c, err)
	}
	return r
}

// combinations returns every algorithm of the table with every size or curve
// of key that it takes; or only with those sizes and curves that are named.
func combinations(t testing.TB, sizes ...string) []combination {
	t.Helper()
	var all []combination
	add := func(c combination) {
		if len(sizes) == 0 || slices.Contains(sizes, c.size) {
			all = append(all, c)
		}
	}
	for _, alg := range KeyAlgorithms() {
		for _, enc := range ContentEncryptions() {
			if alg.KeyTypes()[0] == "RSA" {
				for _, key := range []*rsa.PrivateKey{testKeys.rsa2048(), testKeys.rsa3072()} {
					add(combination{alg, enc, strconv.Itoa(key.N.BitLen()), key})
				}
			}
			for _, curve := range alg.Curves() {
				key, ok := testKeys.ec()[curve]
				if !ok {
					t.Fatalf("%s takes keys on %s, of which the tests have none", alg, curve)
				}
				add(combination{alg, enc, curve, key})
			}
		}
	}
	return all
}

// ecPoint makes a key of any coordinates, as a reader of JWKs would.
func ecPoint(curve elliptic.Curve, x, y *big.Int) *ecdsa.PublicKey {
	return &ecdsa.PublicKey{Curve: curve, X: x, Y: y} //nolint:staticcheck // invalid keys cannot be made in any other way
}

// coordinates returns the coordinates of a key, not copies of them.
func coordinates(k *ecdsa.PublicKey) (x, y *big.Int) {
	return k.X, k.Y //nolint:staticcheck // to make invalid keys of
}

// signedToken has the shape of a JWS, and the given length.
func signedToken(length int) []byte {
	const header, signature = "eyJhbGciOiJFUzI1NiJ9.", ".c2lnbmF0dXJl"
	return []byte(header + strings.Repeat("x", length-len(header)-len(signature)) + signature)
}

// open decrypts a token with go-jose, which is told exactly which algorithms to
// accept.
func open(t testing.TB, token string, private any, alg KeyAlgorithm, enc ContentEncryption) []byte {
	t.Helper()
	parsed, err := jose.ParseEncryptedCompact(token, []jose.KeyAlgorithm{jose.KeyAlgorithm(alg)}, []jose.ContentEncryption{jose.ContentEncryption(enc)})
	if err != nil {
		t.Fatalf("go-jose refuses to parse: %v", err)
	}
	plaintext, err := parsed.Decrypt(private)
	if err != nil {
		t.Fatalf("go-jose refuses to decrypt: %v", err)
	}
	return plaintext
}

// protectedHeader returns the members of a token's header.
func protectedHeader(t testing.TB, token string) map[string]any {
	t.Helper()
	encoded, _, _ := strings.Cut(token, ".")
	var members map[string]any
	if err := json.Unmarshal(unbase64(t, encoded), &members); err != nil {
		t.Fatalf("header is no JSON object: %v", err)
	}
	return members
}

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64url.DecodeString(s)
	if err != nil {
		t.Fatalf("not base64url: %q: %v", s, err)
	}
	return b
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatalf("not hex: %q: %v", s, err)
	}
	return b
}

// fixedEntropy gives out values that a standard's example was made with, each
// once.
type fixedEntropy struct {
	t      testing.TB
	random []byte // CEK ‖ IV
	key    *ecdh.PrivateKey
}

func (f *fixedEntropy) fill(b []byte) {
	f.t.Helper()
	if len(b) != len(f.random) {
		f.t.Fatalf("%d random bytes are drawn, want %d", len(b), len(f.random))
	}
	copy(b, f.random)
	f.random = nil
}

func (f *fixedEntropy) ephemeral(curve ecdh.Curve) (*ecdh.PrivateKey, error) {
	f.t.Helper()
	if f.key == nil || f.key.Curve() != curve {
		f.t.Fatalf("an ephemeral key on %v is drawn, want %v", curve, f.key)
	}
	key := f.key
	f.key = nil
	return key, nil
}
