//go:build cgo && linux

package pkcs11

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/kmstest"
	"github.com/bulla-project/bulla/kms/pkcs11/tpmtest"
)

// soaks skips a test that is only run at leisure.
func soaks(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("BULLA_SOAK") != "1" {
		t.Skipf("%s; `make soak` runs it, or BULLA_SOAK=1", why)
	}
}

// tpmConfig is for a token, with a short retry time.
func tpmConfig(tpm *tpmtest.Token) Config {
	return Config{Module: tpm.Module, Token: tpm.Label, PINFile: tpm.PINFile, Sessions: 4, RetryAfter: 20 * time.Millisecond}
}

func TestSoakConformsOnTPM(t *testing.T) {
	soaks(t, "a TPM takes 15 ms for a signature")
	tpm := tpmtest.New(t, "bench")
	tpm.GenerateKey("rsa", "01", kms.RS256)
	tpm.GenerateKey("rsa2", "02", kms.RS256)
	tpm.GenerateKey("p256", "03", kms.ES256)
	tpm.GenerateKey("p384", "04", kms.ES384)

	t.Run("Signing", func(t *testing.T) {
		lib := &meddler{}
		kmstest.Run(t, kmstest.Harness{
			Open: opener(tpmConfig(tpm), lib),
			Keys: map[kms.Algorithm]string{
				kms.RS256: "object=rsa", kms.RS384: "id=%01", kms.RS512: "object=rsa;id=%01",
				kms.PS256: "object=rsa", kms.PS384: "object=rsa", kms.PS512: "pkcs11:token=bench;object=rsa;type=private",
				kms.ES256: "object=p256", kms.ES384: "object=p384",
			},
			Missing:    "object=nobody",
			Signatures: 64,
			Patience:   time.Minute,
			Down:       removed(lib),
			Stall:      stalled(lib),
		})
	})
	t.Run("Wrapping", func(t *testing.T) {
		lib := &meddler{}
		kmstest.RunWrapper(t, kmstest.WrapperHarness{
			Open: opener(tpmConfig(tpm), lib),
			Key:  "object=rsa", Other: "object=rsa2;type=private", Signs: true,
			Missing: "object=nobody",
			Unfit: map[string]error{
				"object=p256": kms.ErrKeyMismatch, "object=rsa;type=secret-key": kms.ErrKeyNotFound,
			},
			Slow: true, Patience: time.Minute,
			Down: removed(lib), Stall: stalled(lib),
		})
	})
}

// The token has room for 1024 sessions in a process, and says so. What it does
// not say is that others of the process have taken most of them.
func TestSoakPoolKeepsToTheSessionsOfTPM(t *testing.T) {
	soaks(t, "it needs a TPM")
	tpm := tpmtest.New(t, "crowded")
	tpm.GenerateKey("p256", "03", kms.ES256)
	cfg := tpmConfig(tpm)
	cfg.Sessions = 2000
	b := opener(cfg, &meddler{})(t).(*Backend)
	if got := b.Stats().Limit; got != 1022 {
		t.Errorf("a pool of %d sessions, want 1022: one keeps the login, one is to spare", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	cfg.Sessions = 60
	b = opener(cfg, &meddler{})(t).(*Backend)
	defer b.Close()
	k, err := b.OpenKey(t.Context(), "object=p256", kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	l, err := b.vault.(*token).up(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, err := l.lib.openSession(l.slot); err != nil {
			t.Fatal(err)
		}
	}
	var callers sync.WaitGroup
	for range cfg.Sessions {
		callers.Go(func() {
			if err := signs(t.Context(), k); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	stats := b.Stats()
	if got := stats.Limit; got != 23 || !stats.Up || stats.Errors["CKR_SESSION_COUNT (0xB1)"] == 0 {
		t.Errorf("a pool of %d sessions (up: %v, errors: %v), want 23, all that are left, and CKR_SESSION_COUNT", got, stats.Up, stats.Errors)
	}
}

// A TPM has no P-521, and the module makes a key of it all the same.
func TestSoakKeyThatTPMSpoilsIsRefused(t *testing.T) {
	soaks(t, "it needs a TPM")
	tpm := tpmtest.New(t, "spoiled")
	tpm.Tool("--keypairgen", "--key-type", "EC:secp521r1", "--label", "p521", "--id", "05")
	b := opener(tpmConfig(tpm), &meddler{})(t)
	defer b.Close()
	if k, err := b.OpenKey(t.Context(), "object=p521", kms.ES512); k != nil || !errors.Is(err, kms.ErrKeyMismatch) {
		t.Errorf("got key %v and error %v, want %v", k, err, kms.ErrKeyMismatch)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("the token afterwards: %v", err)
	}
}
