//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

func TestDeletedKeyIsNotFoundAndSignsAgainWhenPutBack(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	pair := softhsmtest.NewKey(t, kms.ES256)
	hsm.ImportKey("login", "01", pair)
	hsm.GenerateKey("stays", "02", kms.ES256)
	b := start(t, hsm)
	k, stays := b.key(t, "object=login", kms.ES256), b.key(t, "object=stays", kms.ES256)

	hsm.DeleteKey("login")
	wantErr(t, signs(t.Context(), k), kms.ErrKeyNotFound, "object=login")
	if err := signs(t.Context(), stays); err != nil {
		t.Errorf("the key beside it: %v", err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}

	hsm.ImportKey("login", "01", pair)
	eventually(t, "signing with the key put back", func() error { return signs(t.Context(), k) })
	if s := b.Stats(); s.Restarts != 0 || s.Logins != 1 {
		t.Errorf("a missing key cost %d restarts and %d logins, want 0 and 1", s.Restarts, s.Logins)
	}
}

func TestAnotherKeyOfTheSameNameIsNeverUsed(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("login", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=login;id=%01", kms.ES256)

	hsm.DeleteKey("login")
	hsm.GenerateKey("login", "01", kms.ES256)
	for range 3 {
		wantErr(t, signs(t.Context(), k), kms.ErrKeyMismatch, "another key now")
	}
	// Opened anew, it is a key like any other.
	if err := signs(t.Context(), b.key(t, "object=login", kms.ES256)); err != nil {
		t.Error(err)
	}
}

func TestMissingKeyIsNotSearchedForAtEachSignature(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("login", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=login", kms.ES256)
	hsm.DeleteKey("login")
	wantErr(t, signs(t.Context(), k), kms.ErrKeyNotFound)
	var searches atomic.Int64
	b.lib.set(func(call string) error {
		if call == "find" {
			searches.Add(1)
		}
		return nil
	})
	for range 100 {
		wantErr(t, signs(t.Context(), k), kms.ErrKeyNotFound)
	}
	if n := searches.Load(); n > 4 {
		t.Errorf("100 signatures with a missing key made %d searches", n)
	}
}

func TestSignaturesGoOnWhenHandlesGoStale(t *testing.T) {
	for _, tt := range []struct {
		name string
		harm func(*link)
	}{
		{"AllSessionsClosed", func(l *link) {
			c := l.lib.(*meddler).cryptoki.(*binding).c
			if err := c.CloseAllSessions(l.slot); err != nil {
				panic(err)
			}
		}},
		{"LoggedOut", func(l *link) {
			if err := l.lib.logout(l.login.handle); err != nil {
				panic(err)
			}
		}},
		{"LoginSessionClosed", func(l *link) {
			if err := l.lib.closeSession(l.login.handle); err != nil {
				panic(err)
			}
		}},
		{"OperationLeftActive", func(l *link) {
			c := l.lib.(*meddler).cryptoki.(*binding)
			for range cap(l.pool.idle) {
				select {
				case s := <-l.pool.idle:
					for k, at := range l.places {
						if k.kind == kms.EC {
							_ = signInitOnly(c, s.handle, at.object)
						}
					}
					l.pool.idle <- s
				default:
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hsm := softhsmtest.New(t, "bulla")
			hsm.GenerateKey("ec", "01", kms.ES256)
			hsm.GenerateKey("ed", "02", kms.EdDSA)
			b := start(t, hsm)
			keys := []kms.Key{b.key(t, "object=ec", kms.ES256), b.key(t, "object=ed", kms.EdDSA)}

			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			var signed, failed atomic.Int64
			for g := range 8 {
				wg.Go(func() {
					for ctx.Err() == nil {
						if err := signs(t.Context(), keys[g%2]); err != nil {
							failed.Add(1)
							t.Errorf("while signing: %v", err)
							return
						}
						signed.Add(1)
					}
				})
			}
			for range 3 {
				time.Sleep(30 * time.Millisecond)
				b.alone(t, tt.harm)
				before := signed.Load()
				eventually(t, "signing on", func() error {
					if signed.Load() > before+20 || failed.Load() > 0 {
						return nil
					}
					return errors.New("no progress")
				})
				// Nobody but Check looks after the login session as long as
				// the others keep the login.
				if err := b.Check(t.Context()); err != nil {
					t.Errorf("Check: %v", err)
				}
			}
			stop()
			wg.Wait()
			if s := b.Stats(); s.Restarts != 0 || !s.Up {
				t.Errorf("stats after it: %+v", s)
			}
		})
	}
}

func TestTokenMadeAfterTheStartIsFound(t *testing.T) {
	hsm := softhsmtest.Prepare(t, "late")
	b := start(t, hsm)
	_, err := b.OpenKey(t.Context(), "object=k", kms.ES256)
	wantErr(t, err, kms.ErrUnavailable, `no token "late"`, "and no other")
	wantErr(t, b.Check(t.Context()), kms.ErrUnavailable)

	hsm.InitAs("neighbor")
	eventually(t, "naming the tokens there are", func() error {
		err := b.Check(t.Context())
		wantErr(t, err, kms.ErrUnavailable)
		if strings := b.Stats().Reason; !containsAll(strings, `"neighbor"`, "correct the label") {
			return fmt.Errorf("reason is %q", strings)
		}
		return nil
	})

	hsm.Init()
	hsm.GenerateKey("k", "01", kms.ES256)
	eventually(t, "Check", func() error { return b.Check(t.Context()) })
	if err := signs(t.Context(), b.key(t, "object=k", kms.ES256)); err != nil {
		t.Error(err)
	}
}

func TestRemadeTokenIsFoundAgain(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	pair := softhsmtest.NewKey(t, kms.RS256)
	hsm.ImportKey("login", "01", pair)
	b := start(t, hsm)
	k := b.key(t, "object=login", kms.PS256)

	hsm.Delete()
	wantErr(t, signs(t.Context(), k), kms.ErrUnavailable)
	start := time.Now()
	_ = signs(t.Context(), k)
	if took := time.Since(start); took > time.Second {
		t.Errorf("a signature without a token took %v to fail", took)
	}
	hsm.Init()
	eventually(t, "seeing that the key is missing", func() error {
		if err := signs(t.Context(), k); !errors.Is(err, kms.ErrKeyNotFound) {
			return fmt.Errorf("got %w, want key not found", err)
		}
		return nil
	})
	hsm.ImportKey("login", "01", pair)
	eventually(t, "signing", func() error { return signs(t.Context(), k) })
}

// TestWhoFindsTheTokenGoneWhileOpeningWaitsForIt: an owner of keys tries to open
// one now and then; to be the first to look must not cost it a turn.
func TestWhoFindsTheTokenGoneWhileOpeningWaitsForIt(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	if err := b.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(b.cfg.RetryAfter) // so that an attempt is due
	var once sync.Once
	b.lib.set(func(call string) (err error) {
		if call == "find" {
			once.Do(func() { err = &callError{"C_FindObjects", 0x32} })
		}
		return err
	})
	if err := signs(t.Context(), b.key(t, "object=k", kms.ES256)); err != nil {
		t.Error(err)
	}
	if n := b.Stats().Restarts; n != 1 {
		t.Errorf("the module was initialized again %d times, want 1", n)
	}
}

func TestMissingModuleHealsWhenItIsInstalled(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	later := t.TempDir() + "/libhsm.so"
	b := start(t, hsm, func(c *Config) { c.Module = later })
	wantErr(t, b.Check(t.Context()), kms.ErrUnavailable, "no module at "+later, "install")
	write := func(content string) {
		if err := os.WriteFile(later, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("this is no library")
	eventually(t, "seeing a file that is no library", func() error {
		_ = b.Check(t.Context())
		if r := b.Stats().Reason; !containsAll(r, "cannot be loaded", "ldd") {
			return fmt.Errorf("reason is %q", r)
		}
		return nil
	})
	if err := os.Remove(later); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(hsm.Module, later); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Check", func() error { return b.Check(t.Context()) })
}

func TestTwoTokensOfOneModuleAreInitializedOnce(t *testing.T) {
	hsm := softhsmtest.New(t, "one")
	hsm.GenerateKey("k", "01", kms.ES256)
	hsm.InitAs("two")
	two := *hsm
	two.Label = "two"
	two.GenerateKey("k", "01", kms.ES256)

	first := start(t, hsm)
	second := start(t, &two, func(c *Config) { c.Modules, c.Serial = first.cfg.Modules, two.Serial() })
	k1, k2 := first.key(t, "object=k", kms.ES256), second.key(t, "object=k", kms.ES256)
	if n := first.lib.inits.Load(); n != 1 {
		t.Errorf("C_Initialize was called %d times, want once", n)
	}
	for _, k := range []kms.Key{k1, k2} {
		if err := signs(t.Context(), k); err != nil {
			t.Error(err)
		}
	}
	_, err := first.OpenKey(t.Context(), "token=two;object=k", kms.ES256)
	wantErr(t, err, kms.ErrReference, `"two"`, `"one"`)
	_, err = first.OpenKey(t.Context(), "object=k;serial=0000", kms.ES256)
	wantErr(t, err, kms.ErrReference, "serial")

	// One of them is lost: the module is initialized again, and the other's
	// callers notice nothing.
	mod := mustLink(t, first).mod
	if err := mod.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	mod.pacing.last = time.Now().Add(-quickPause)
	mod.unlock()
	first.token().lose(mustLink(t, first), errors.New("test"), true)
	eventually(t, "first", func() error { return first.Check(t.Context()) })
	for range 10 {
		if err := signs(t.Context(), k2); err != nil {
			t.Fatalf("second token while the first is brought up: %v", err)
		}
	}
	if err := signs(t.Context(), k1); err != nil {
		t.Error(err)
	}
	if n := first.lib.inits.Load(); n != 2 {
		t.Errorf("C_Initialize was called %d times, want 2", n)
	}

	// Lost once more so soon after, it does not get that: the other would pay.
	if err := mod.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	mod.pacing.last = time.Now().Add(time.Minute)
	mod.unlock()
	first.token().lose(mustLink(t, first), errors.New("test"), true)
	eventually(t, "first", func() error { return first.Check(t.Context()) })
	if n := first.lib.inits.Load(); n != 2 {
		t.Errorf("C_Initialize was called %d times for a token that was lost twice in a row", n)
	}

	// Closing one leaves the other alone.
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := signs(t.Context(), k2); err != nil {
		t.Error(err)
	}
}

func TestOneTokenUnderTwoNamesIsRefused(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	first := start(t, hsm)
	second := start(t, hsm, func(c *Config) { c.Modules, c.Token, c.Serial = first.cfg.Modules, "", hsm.Serial() })
	wantErr(t, second.Check(t.Context()), kms.ErrUnavailable, "another backend", "once")
	if _, err := New(t.Context(), func() Config { c := first.cfg; c.Sessions = 9; return c }()); err == nil {
		t.Error("New with the same token and other settings: got no error")
	}
	if err := first.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if n := first.Stats().Restarts; n != 0 {
		t.Errorf("the clash cost the first backend %d restarts", n)
	}
}

func mustLink(t testing.TB, b *bench) *link {
	t.Helper()
	l, err := b.token().up(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
