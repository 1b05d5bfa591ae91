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
	"strings"
	"sync"
	"testing"

	"github.com/cloudflare/circl/dh/x448"
)

// testKeys are key pairs of every kind that the table's algorithms take. RSA
// keys take long to make, so that all tests share them.
var testKeys = struct {
	rsa2048, rsa3072 func() *rsa.PrivateKey
	ec               func() map[string]*ecdsa.PrivateKey // by JWK crv
	x25519           func() *ecdh.PrivateKey
	x448             func() x448Private
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
	x25519: sync.OnceValue(func() *ecdh.PrivateKey { return must(ecdh.X25519().GenerateKey(rand.Reader)) }),
	x448: sync.OnceValue(func() x448Private {
		var k x448Private
		_, _ = rand.Read(k[:])
		return k
	}),
}

// x448Private is a private key for X448, as RFC 8037 section 2 has it in "d".
type x448Private x448.Key

// public returns the recipient's key that belongs to a private one.
func public(private any) crypto.PublicKey {
	switch k := private.(type) {
	case SecretKey:
		return k
	case x448Private:
		var p x448.Key
		x448.KeyGen(&p, (*x448.Key)(&k))
		return X448PublicKey(p)
	case *ecdh.PrivateKey:
		return k.PublicKey()
	default:
		return k.(crypto.Signer).Public()
	}
}

// secretKey returns a key of the size that the algorithms need.
func secretKey(alg KeyAlgorithm, enc ContentEncryption) SecretKey {
	return must(DeriveSecretKey("correct horse battery staple", alg.SecretSize(enc)))
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
	size    string // curve, bits of the RSA modulus, or "oct"
	private any    // *rsa.PrivateKey, *ecdsa.PrivateKey, *ecdh.PrivateKey, x448Private or SecretKey
}

// oneOfEach are sizes that have every way of managing keys among them.
var oneOfEach = []string{"2048", "P-256", "X25519", "X448", "oct"}

func (c combination) String() string {
	return string(c.alg) + "/" + c.size + "/" + string(c.enc)
}

func (c combination) recipient(t testing.TB) *Recipient {
	t.Helper()
	r, err := NewRecipient(RecipientConfig{Key: public(c.private), KeyID: "key-1", Algorithm: c.alg, ContentEncryption: c.enc})
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
			if CheckPair(alg, enc) != nil {
				continue
			}
			switch alg.KeyTypes()[0] {
			case "RSA":
				add(combination{alg, enc, "2048", testKeys.rsa2048()})
				add(combination{alg, enc, "3072", testKeys.rsa3072()})
			case "oct":
				add(combination{alg, enc, "oct", secretKey(alg, enc)})
			}
			for _, curve := range alg.Curves() {
				switch key, ok := testKeys.ec()[curve]; {
				case curve == "X25519":
					add(combination{alg, enc, curve, testKeys.x25519()})
				case curve == "X448":
					add(combination{alg, enc, curve, testKeys.x448()})
				case ok:
					add(combination{alg, enc, curve, key})
				default:
					t.Fatalf("%s takes keys on %s, of which the tests have none", alg, curve)
				}
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
	random []byte // CEK ‖ IV ‖ what the key management draws
	key    *ecdh.PrivateKey
}

func (f *fixedEntropy) fill(b []byte) {
	f.t.Helper()
	if len(b) > len(f.random) {
		f.t.Fatalf("%d random bytes are drawn, and %d are left", len(b), len(f.random))
	}
	f.random = f.random[copy(b, f.random):]
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

// spent fails the test unless everything was drawn.
func (f *fixedEntropy) spent() {
	f.t.Helper()
	if len(f.random) > 0 || f.key != nil {
		f.t.Errorf("%d random bytes and the ephemeral key %v were not drawn", len(f.random), f.key)
	}
}
