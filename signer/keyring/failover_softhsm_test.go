package keyring

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// twoTokens is a keyring over two SoftHSM tokens, in backends "hsm" and "two",
// each with a key pair labeled login.
type twoTokens struct {
	*world
	one, two *softhsmtest.Token
	folder   string // of token one
}

func newTwoTokens(t *testing.T, same bool) *twoTokens {
	t.Helper()
	one := softhsmtest.New(t, "one")
	folders, err := filepath.Glob(filepath.Join(one.Dir, "*"))
	if err != nil || len(folders) != 1 {
		t.Fatalf("token folders %v, %v, want one", folders, err)
	}
	second := *one
	second.Label = "two"
	second.Init()
	key := softhsmtest.NewKey(t, kms.ES256)
	one.ImportKey("login", "01", key)
	if !same {
		key = softhsmtest.NewKey(t, kms.ES256)
	}
	second.ImportKey("login", "01", key)

	w := &twoTokens{
		world: &world{store: newMemStore(), log: &logBook{}},
		one:   one, two: &second, folder: folders[0],
	}
	second.Module = copyOf(t, one.Module)
	cfg := Config{
		Store: w.store, Logger: w.log.logger(), Backends: map[string]kms.Backend{},
		Issuers: []Issuer{{Name: "main", Keys: []Key{listed(kms.ES256, "hsm:object=login", "two:object=login")}}},
	}
	for name, token := range map[string]*softhsmtest.Token{"hsm": one, "two": &second} {
		b, err := pkcs11.New(t.Context(), pkcs11.Config{
			Module: token.Module, Token: token.Label, PINFile: token.PINFile, RetryAfter: 500 * time.Millisecond, Logger: w.log.logger(),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Errorf("close %s: %v", name, err)
			}
		})
		cfg.Backends[name] = b
	}
	k, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Keyring = k
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

// copyOf is the module in another file, which the loader takes for another
// module: as with two HSMs, none has to stop while the other is brought back.
func copyOf(t *testing.T, module string) string {
	t.Helper()
	lib, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "libsofthsm2-copy.so")
	if err := os.WriteFile(path, lib, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// until waits for something to become true.
func (w *twoTokens) until(t *testing.T, limit time.Duration, what string, is func() bool) (took time.Duration) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		took = time.Since(began)
		if is() {
			return took
		}
		if took > limit {
			w.log.mu.Lock()
			defer w.log.mu.Unlock()
			t.Fatalf("not so after %v: %s; the log:\n%s", took, what, bytes.TrimSpace(w.log.buf.Bytes()))
		}
	}
}

// places is what the keyring says of the key's two places.
func (w *twoTokens) places(t *testing.T) (first, second PlaceInfo) {
	t.Helper()
	list, err := w.List("main")
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || len(list[0].Places) != 2 {
		return first, second
	}
	return list[0].Places[0], list[0].Places[1]
}

func TestATokenThatIsTakenAwayFailsNoCall(t *testing.T) {
	w := newTwoTokens(t, true)
	well := func(p PlaceInfo) bool { return p.Open && p.Problem == "" }
	bothWell := func() bool {
		one, two := w.places(t)
		return well(one) && well(two)
	}
	w.until(t, 20*time.Second, "both places are open", bothWell)

	p := payload(t)
	var signed, failed atomic.Int64
	var firstFailure sync.Once
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := w.signOne(t.Context(), p, 10*time.Second); err != nil {
					failed.Add(1)
					firstFailure.Do(func() { t.Errorf("a call failed: %v", err) })
					continue
				}
				signed.Add(1)
			}
		})
	}
	more := func(n int64) {
		t.Helper()
		at := signed.Load()
		w.until(t, 20*time.Second, "more tokens are signed", func() bool { return signed.Load() > at+n })
	}
	more(200)
	away := w.folder + ".away"
	if err := os.Rename(w.folder, away); err != nil {
		t.Fatal(err)
	}
	w.until(t, 10*time.Second, "the first place is sick", func() bool { one, two := w.places(t); return !well(one) && well(two) })
	more(200)
	if ok, reason := w.Healthy("main"); !ok || reason == "" {
		t.Errorf("Healthy = %v (%s), want healthy, and a word about the first place", ok, reason)
	}
	if err := os.Rename(away, w.folder); err != nil {
		t.Fatal(err)
	}
	took := w.until(t, 20*time.Second, "both places are well again", bothWell)
	more(200)
	close(stop)
	callers.Wait()
	t.Logf("%d signatures, %d failed calls; the first token signed again %v after it was back", signed.Load(), failed.Load(), took.Round(time.Millisecond))
	if n := w.log.count("signing key failed over", `from="hsm:object=login"`); n < 1 {
		t.Error("the log does not tell that the key failed over")
	}
	if w.log.count("signing key back at its first location") < 1 {
		t.Error("the log does not tell that the first location signs again")
	}
	if w.log.count("failed its probe") != 0 {
		t.Error("the log says that nobody signed")
	}
}

func TestTokensWithDifferentKeysUnderOneListingAreRefused(t *testing.T) {
	w := newTwoTokens(t, false)
	w.until(t, 20*time.Second, "the listing is refused", func() bool {
		_, err := w.Key("main", kms.ES256)
		return errors.Is(err, kms.ErrKeyMismatch)
	})
	if w.store.written() != 0 {
		t.Error("a ring was written")
	}
	if n := w.log.count("level=ERROR", "listed signing key refused"); n != 1 {
		t.Errorf("the alarm was logged %d times, want once", n)
	}
}
