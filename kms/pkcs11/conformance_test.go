//go:build cgo

package pkcs11

import (
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/kmstest"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// allKeys makes a key for each type and curve, and returns a reference for
// each algorithm.
func allKeys(hsm *softhsmtest.Token) map[kms.Algorithm]string {
	hsm.GenerateKey("rsa", "01", kms.RS256)
	hsm.GenerateKey("p256", "02", kms.ES256)
	hsm.GenerateKey("p384", "03", kms.ES384)
	hsm.GenerateKey("p521", "04", kms.ES512)
	hsm.GenerateKey("ed25519", "05", kms.EdDSA)
	return map[kms.Algorithm]string{
		kms.RS256: "object=rsa", kms.RS384: "id=%01", kms.RS512: "object=rsa;id=%01",
		kms.PS256: "object=rsa", kms.PS384: "object=rsa", kms.PS512: "pkcs11:token=conform;object=rsa;type=private",
		kms.ES256: "object=p256", kms.ES384: "object=p384", kms.ES512: "object=p521",
		kms.EdDSA: "object=ed25519", kms.Ed25519: "id=%05",
	}
}

// ways are the ways to wrap, each forced on SoftHSM by hiding those before it.
var ways = []struct {
	name       string
	method     byte
	hide       []uint
	key, other string
}{
	{"GCM", methodGCM, nil, "object=aes;type=secret-key", "id=%12"},
	{"KeyWrap", methodKW, []uint{ckmAESGCM}, "pkcs11:token=wrap;object=aes", "object=aes128"},
	{"KeyWrapWithPadding", methodKWP, []uint{ckmAESGCM, ckmAESKeyWrap}, "object=aes", "object=aes128"},
	{"RSASignature", methodRSA, nil, "object=rsa", "object=rsa2;type=private"},
}

// wrappingKeys makes keys that can wrap, and the error for each that cannot.
func wrappingKeys(hsm *softhsmtest.Token) (unfit map[string]error) {
	hsm.GenerateWrappingKey("aes", "11")
	hsm.GenerateSecret("AES:16", "aes128", "12", "--sensitive", "--usage-decrypt", "--usage-wrap")
	hsm.GenerateKey("rsa", "13", kms.RS256)
	hsm.GenerateKey("rsa2", "14", kms.RS256)

	hsm.GenerateKey("ec", "21", kms.ES256)
	hsm.GenerateKey("ed", "22", kms.EdDSA)
	hsm.GenerateSecret("AES:32", "readable", "23", "--extractable", "--usage-decrypt", "--usage-wrap")
	hsm.GenerateSecret("GENERIC:32", "hmac", "24", "--sensitive")
	hsm.GenerateWrappingKey("both", "27")
	hsm.GenerateKey("both", "28", kms.ES256)
	hsm.GenerateWrappingKey("twice", "29")
	hsm.GenerateWrappingKey("twice", "2a")
	return map[string]error{
		"object=ec": kms.ErrKeyMismatch, "object=ed": kms.ErrKeyMismatch, "object=hmac": kms.ErrKeyMismatch,
		"object=readable": kms.ErrKeyDisabled,
		"object=both":     kms.ErrReference, "object=twice": kms.ErrReference, "object=both;type=private": kms.ErrKeyMismatch,
		"object=rsa;type=secret-key": kms.ErrKeyNotFound, "object=aes;type=private": kms.ErrKeyNotFound,
	}
}

func TestWrappingConformsOnSoftHSM(t *testing.T) {
	hsm := softhsmtest.New(t, "wrap")
	unfit := wrappingKeys(hsm)
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			lib := &meddler{hide: way.hide}
			modules := meddledModules(lib)
			kmstest.RunWrapper(t, kmstest.WrapperHarness{
				Open: func(t testing.TB) kms.Backend {
					cfg := config(hsm)
					cfg.Modules = modules
					b, err := New(t.Context(), cfg)
					if err != nil {
						t.Fatal(err)
					}
					return b
				},
				Key: way.key, Other: way.other, Signs: way.method == methodRSA,
				Missing:  "object=nobody",
				Nonsense: []string{"object=", "id=%0", "pkcs11:", "pkcs11:object=aes?pin-value=1", "token=other;object=aes", "object=aes;type=public"},
				Unfit:    unfit,
				Patience: 10 * time.Second,
				Down:     func(testing.TB) func() { return hsm.TakeAway() },
				Stall: func(testing.TB) func() {
					release := make(chan struct{})
					lib.set(func(string) error { <-release; return nil })
					return func() { lib.set(nil); close(release) }
				},
			})
		})
	}
}

func TestConformsOnSoftHSM(t *testing.T) {
	hsm := softhsmtest.New(t, "conform")
	keys := allKeys(hsm)
	lib := &meddler{}
	modules := meddledModules(lib)
	kmstest.Run(t, kmstest.Harness{
		Open: func(t testing.TB) kms.Backend {
			cfg := config(hsm)
			cfg.Modules = modules
			b, err := New(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		Keys:     keys,
		Missing:  "object=nobody",
		Nonsense: []string{"object=", "id=%0", "object=a;object=b", "pkcs11:", "pkcs11:token=conform", "pkcs11:object=rsa?pin-value=1", "token=other;object=rsa"},
		Patience: 10 * time.Second,
		Down:     func(testing.TB) func() { return hsm.TakeAway() },
		Stall: func(testing.TB) func() {
			release := make(chan struct{})
			lib.set(func(string) error { <-release; return nil })
			return func() { lib.set(nil); close(release) }
		},
	})
}
