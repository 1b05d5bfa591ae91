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
