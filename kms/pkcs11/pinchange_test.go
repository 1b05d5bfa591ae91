//go:build cgo

package pkcs11

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

const otherPIN = "735192"

// logOut loses the login, as a token does that was reset.
func (b *bench) logOut(t *testing.T) {
	t.Helper()
	b.alone(t, func(l *link) {
		if err := l.lib.logout(l.login.handle); err != nil {
			t.Fatal(err)
		}
	})
}

// changed wants the token to be in use with the PIN that it was given, without
// a wrong one.
func changed(t *testing.T, hsm *softhsmtest.Token) {
	t.Helper()
	if hsm.PINCountLow() {
		t.Error("the token was sent a PIN that it refused")
	}
}

func TestPINChangedOnTheTokenIsTakenAtTheFirstLogin(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm, func(c *Config) { c.RefusalFile = filepath.Join(t.TempDir(), "refused.json") })
	k := b.key(t, "object=k", kms.ES256)
	hsm.ChangePIN(otherPIN)
	if err := signs(t.Context(), k); err != nil {
		t.Fatalf("with the login that stands: %v", err)
	}
	hsm.SetPIN(otherPIN)
	b.logOut(t)
	// Nobody notices: the callers wait for the login.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := signs(t.Context(), k); err != nil {
				t.Errorf("after the change: %v", err)
			}
		})
	}
	wg.Wait()
	if s := b.Stats(); s.Logins != 2 || s.Restarts != 1 {
		t.Errorf("the change cost %d logins and %d restarts, want 1 of each", s.Logins-1, s.Restarts)
	}
	changed(t, hsm)

	// The same PIN needs no more of that.
	b.logOut(t)
	if err := signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	if s := b.Stats(); s.Logins != 3 || s.Restarts != 1 {
		t.Errorf("a login with the same PIN: %d logins, %d restarts", s.Logins, s.Restarts)
	}
}

func TestPINChangedWhileNoneCouldBeSentIsTakenAtTheFirstLogin(t *testing.T) {
	for name, harm := range map[string]func(*softhsmtest.Token){
		"Refused": func(hsm *softhsmtest.Token) { hsm.SetPIN("111111") },
		"Missing": func(hsm *softhsmtest.Token) { hsm.SetPIN("") },
	} {
		t.Run(name, func(t *testing.T) {
			hsm := softhsmtest.New(t, "bulla")
			hsm.GenerateKey("k", "01", kms.ES256)
			harm(hsm)
			b := start(t, hsm)
			wantErr(t, b.Check(t.Context()), kms.ErrUnavailable)
			sent := b.lib.logins.Load()
			hsm.ChangePIN(otherPIN)
			hsm.SetPIN(otherPIN)
			eventually(t, "signing", func() error { return b.Check(t.Context()) })
			if n := b.lib.logins.Load() - sent; n != 1 {
				t.Errorf("the new PIN was sent %d times", n)
			}
			changed(t, hsm)
		})
	}
}

func TestPINChangedOnTheTokenReachesAWorker(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	out := filepath.Join(t.TempDir(), "out")
	b := start(t, hsm, isolated("logout", out))
	k := b.key(t, "object=k", kms.ES256)
	pid := workerPID(t, b)
	hsm.ChangePIN(otherPIN)
	hsm.SetPIN(otherPIN)
	if err := os.WriteFile(out, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "signing", func() error { return signs(t.Context(), k) })
	if s := b.Stats(); s.Logins != 2 {
		t.Errorf("%d logins, want 2", s.Logins)
	}
	if workerPID(t, b) != pid {
		t.Error("the worker was replaced")
	}
	changed(t, hsm)
	// A new worker knows nothing of the old PIN.
	b.kill(t, syscall.SIGKILL)
	eventually(t, "signing", func() error { return signs(t.Context(), k) })
	if s := b.Stats(); s.Logins != 3 {
		t.Errorf("%d logins, want 3", s.Logins)
	}
}

func TestRestartsSendARefusedPINOnceToATokenThatDoesNotWarn(t *testing.T) {
	for name, isolate := range map[string]bool{"InProcess": false, "Isolated": true} {
		t.Run(name, func(t *testing.T) {
			hsm := softhsmtest.New(t, "bulla")
			hsm.SetPIN("654321")
			file := filepath.Join(t.TempDir(), "refused.json")
			var sent uint64
			life := func(want error) {
				b := start(t, hsm, func(c *Config) {
					c.InsistOnLogin, c.RefusalFile = true, file // as if the token did not warn
					if isolate {
						isolated()(c)
					}
				})
				for range 3 {
					if err := b.Check(t.Context()); !errors.Is(err, want) {
						t.Errorf("Check: %v, want %v", err, want)
					}
					b.Diagnose(t.Context(), nil)
				}
				sent += b.Stats().Logins
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				life(kms.ErrUnavailable)
			}
			if sent != 1 {
				t.Errorf("three starts with a wrong PIN made %d logins, want 1", sent)
			}
			hsm.SetPIN("111111")
			for range 2 {
				life(kms.ErrUnavailable)
			}
			hsm.SetPIN(softhsmtest.PIN)
			life(nil)
			if sent != 3 {
				t.Errorf("two wrong PINs and a right one made %d logins, want 3", sent)
			}
		})
	}
}

func TestSessionsLostOnATokenWithRoomForTwo(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm, func(c *Config) {
		lib := &meddler{room: 2, live: map[uint]bool{}}
		c.Modules = meddledModules(lib)
	})
	k := b.key(t, "object=k", kms.ES256)
	for range 5 {
		b.alone(t, func(l *link) {
			if err := l.lib.(*meddler).closeAll(l.slot); err != nil {
				t.Fatal(err)
			}
			// The pool has grown again since.
			p := l.pool
			p.mu.Lock()
			for p.size < p.full {
				p.size++
				p.rights <- struct{}{}
			}
			p.small.Store(false)
			p.mu.Unlock()
		})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := signs(t.Context(), k); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if _, err := b.CreateKey(t.Context(), kms.KeySpec{Algorithm: kms.ES256}, "tag"); err != nil {
		t.Errorf("a key is made: %v", err)
	}
	if s := b.Stats(); s.InUse != 0 || s.Open > 1 || !s.Up || s.Restarts != 0 {
		t.Errorf("in the end: %+v", s)
	}
}

func TestModuleThatOthersUseIsInitializedAgainWithDoublingPauses(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	p := pacing{last: now}
	var pauses []time.Duration
	for range 14 { // a token that is down asks as often as it may
		begin := now
		for !p.due(now) {
			now = now.Add(defaultRetry)
		}
		p.again(now)
		pauses = append(pauses, now.Sub(begin))
	}
	for i, pause := range pauses[:quickTimes+1] {
		if pause > 2*time.Second {
			t.Errorf("attempt %d came after %v, want 2s at most", i, pause)
		}
	}
	if last := pauses[len(pauses)-1]; last < longestPause || last > longestPause+defaultRetry {
		t.Errorf("the pauses end at %v, want %v: %v", last, longestPause, pauses)
	}
	now = now.Add(2 * longestPause) // up for a while, then lost
	if !p.due(now) {
		t.Error("a token that stayed up has to wait")
	}
	p.again(now)
	if got := p.pause(); got != quickPause {
		t.Errorf("after it stayed up for a while the pause is %v, want %v", got, quickPause)
	}
}

func TestLostTokenBesideAnotherIsBackWithinTwoSeconds(t *testing.T) {
	hsm := softhsmtest.New(t, "one")
	hsm.InitAs("two")
	two := *hsm
	two.Label = "two"
	two.GenerateKey("k", "01", kms.ES256)
	first := start(t, hsm)
	second := start(t, &two, func(c *Config) { c.Modules = first.cfg.Modules })
	k := second.key(t, "object=k", kms.ES256)
	for range 2 {
		mod := mustLink(t, first).mod
		hsm.Delete()
		first.token().lose(mustLink(t, first), &callError{"C_Sign", 0x32}, true)
		eventually(t, "seeing that it is gone", func() error {
			if err := first.Check(t.Context()); err == nil || first.Stats().Reason == "" {
				first.token().lose(mustLink(t, first), &callError{"C_Sign", 0x32}, true)
				return errors.New("not yet")
			}
			return nil
		})
		eventually(t, "initializing the module again in vain", func() error {
			if err := mod.lock(t.Context()); err != nil {
				return err
			}
			defer mod.unlock()
			if mod.pacing.times == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		hsm.Init()
		back := time.Now()
		eventually(t, "the token", func() error { return first.Check(t.Context()) })
		if took := time.Since(back); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		if err := signs(t.Context(), k); err != nil {
			t.Errorf("the other token: %v", err)
		}
	}
}
