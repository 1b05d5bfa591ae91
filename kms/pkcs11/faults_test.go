//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// once makes a hook that answers code to the first n calls of one function.
func times(n int64, function string, code ckr) func(string) error {
	var seen atomic.Int64
	return func(call string) error {
		if call == function && seen.Add(1) <= n {
			return &callError{function, code}
		}
		return nil
	}
}

func TestEachErrorCodeIsTreatedAsItsClassSays(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=k", kms.ES256)

	for code, row := range codes {
		want, retried := sentinels[row.class], row.class == stale || row.class == full
		if retried {
			want = nil
		}
		b.oneFault(t, k, code, want, retried)
	}
	b.oneFault(t, k, 0x80001234, kms.ErrUnavailable, false)
	b.oneFault(t, k, 0x7777, kms.ErrUnavailable, false)
}

// oneFault has C_Sign answer code once and wants what the caller is told, and
// whether it was tried again, and that the session is gone and all is well.
func (b *bench) oneFault(t *testing.T, k kms.Key, code ckr, want error, retried bool) {
	t.Helper()
	t.Run(code.Error(), func(t *testing.T) {
		eventually(t, "being up", func() error { return signs(t.Context(), k) })
		l := mustLink(t, b)
		l.pool.mu.Lock()
		l.pool.changed = time.Now().Add(-2 * maxRegrowPause)
		l.pool.mu.Unlock()
		signed, opened := b.lib.signs.Load(), b.lib.opens.Load()
		b.lib.set(times(1, "sign", code))
		err := signs(t.Context(), k)
		b.lib.set(nil)
		if !errors.Is(err, want) {
			t.Errorf("Sign: got error %v, want %v", err, want)
		}
		if want != nil && !containsAll(err.Error(), code.Error()) {
			t.Errorf("error %q does not name the code", err)
		}
		tries := int64(1)
		if retried {
			tries = 2
		}
		if n := b.lib.signs.Load() - signed; n != tries {
			t.Errorf("C_Sign was called %d times, want %d", n, tries)
		}
		eventually(t, "signing", func() error { return signs(t.Context(), k) })
		for range 4 { // all that are left of the pool
			if err := signs(t.Context(), k); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		}
		if b.lib.opens.Load() == opened && codes[code].class != full {
			t.Error("the session that met the error is still in use")
		}
	})
}

func TestLostTokenFailsFastWhileTheModuleIsInitializedAgain(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=k", kms.ES256)

	var broken atomic.Bool
	broken.Store(true)
	var inits atomic.Int64
	b.lib.set(func(call string) error {
		switch {
		case call == "initialize":
			inits.Add(1)
			time.Sleep(50 * time.Millisecond)
		case broken.Load() && (call == "sign" || call == "tokenInfo"):
			return &callError{call, 0x32}
		}
		return nil
	})
	var wg sync.WaitGroup
	var slowest atomic.Int64
	stop := time.Now().Add(300 * time.Millisecond)
	for range 16 {
		wg.Go(func() {
			for time.Now().Before(stop) {
				begin := time.Now()
				err := signs(t.Context(), k)
				wantErr(t, err, kms.ErrUnavailable)
				if d := time.Since(begin); int64(d) > slowest.Load() {
					slowest.Store(int64(d))
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
	if n := inits.Load(); n < 2 || n > 8 {
		t.Errorf("16 callers for 300 ms: the module was initialized %d times", n)
	}
	if d := time.Duration(slowest.Load()); d > 200*time.Millisecond {
		t.Errorf("the slowest call took %v to fail", d)
	}
	broken.Store(false)
	eventually(t, "signing", func() error { return signs(t.Context(), k) })
	if s := b.Stats(); !s.Up || s.Reason != "" || s.Errors["CKR_DEVICE_REMOVED (0x32)"] == 0 {
		t.Errorf("stats afterwards: %+v", s)
	}
}

func TestStaleErrorsOfATokenThatDoesNotAnswerMeanItIsGone(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=k", kms.ES256)
	b.lib.set(func(call string) error {
		if call == "sign" || call == "tokenInfo" {
			return &callError{call, 0x30}
		}
		return nil
	})
	wantErr(t, signs(t.Context(), k), kms.ErrUnavailable, "does not answer")
	if b.Stats().Up {
		t.Error("the token counts as up")
	}
	b.lib.set(nil)
	eventually(t, "signing", func() error { return signs(t.Context(), k) })
	if n := b.Stats().Restarts; n == 0 {
		t.Error("the module was not initialized again")
	}
}

func TestPoolShrinksToWhatTheTokenHasRoomFor(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm, func(c *Config) { c.Sessions = 8 })
	var open atomic.Int64 // nothing is closed while nothing fails
	b.lib.set(func(call string) error {
		if call == "sign" {
			time.Sleep(time.Millisecond) // so that all sessions are wanted at once
		}
		if call == "openSession" && open.Add(1) > 3 {
			return &callError{"C_OpenSession", 0xB1}
		}
		return nil
	})
	k := b.key(t, "object=k", kms.ES256)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 20 {
				if err := signs(t.Context(), k); err != nil {
					t.Errorf("with fewer sessions: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if s := b.Stats(); s.Limit < 3 || s.Limit > 7 || s.Open > 3 {
		t.Errorf("limit %d, open %d; want at most 3 open and a limit that went down", s.Limit, s.Open)
	}
}

func TestNoRoomForASingleSessionIsThrottled(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	b.lib.set(func(call string) error {
		if call == "openSession" {
			return &callError{"C_OpenSession", 0xB1}
		}
		return nil
	})
	_, err := b.OpenKey(t.Context(), "object=k", kms.ES256)
	wantErr(t, err, kms.ErrThrottled, "CKR_SESSION_COUNT")
	if n := b.Stats().Limit; n != 1 {
		t.Errorf("limit is %d, want 1", n)
	}
	b.lib.set(nil)
	if err := signs(t.Context(), b.key(t, "object=k", kms.ES256)); err != nil {
		t.Error(err)
	}
}

// balanced wants each session of the pool to be idle, a right, or in use.
func (b *bench) balanced(t *testing.T) {
	t.Helper()
	p := mustLink(t, b).pool
	if have, want := len(p.idle)+len(p.rights)+int(p.inUse.Load()), p.limit(); have != want {
		t.Errorf("%d idle, %d rights and %d in use: %d sessions in a pool of %d", len(p.idle), len(p.rights), p.inUse.Load(), have, want)
	}
}

func TestTokenWithoutRoomCostsThePoolNoMoreThanItsRights(t *testing.T) {
	for _, sessions := range []int{1, 3} {
		t.Run(fmt.Sprint(sessions), func(t *testing.T) {
			hsm := softhsmtest.New(t, "bulla")
			hsm.GenerateKey("k", "01", kms.ES256)
			b := start(t, hsm, func(c *Config) { c.Sessions = sessions })
			k := b.key(t, "object=k", kms.ES256)
			k.(kms.Distruster).Distrust()
			eventually(t, "closing of idle sessions", func() error {
				if s := b.Stats(); s.Open != 0 || s.InUse != 0 {
					return fmt.Errorf("%+v", s)
				}
				return nil
			})
			b.balanced(t)

			var room atomic.Bool
			b.lib.set(func(call string) error {
				if call == "openSession" && !room.Load() {
					return &callError{"C_OpenSession", 0xB1}
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			for range 5 {
				wantErr(t, signs(ctx, k), kms.ErrThrottled, "CKR_SESSION_COUNT")
				b.balanced(t)
			}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { wantErr(t, signs(ctx, k), kms.ErrThrottled) })
			}
			wg.Wait()
			b.balanced(t)
			if n := b.Stats().Limit; n != 1 {
				t.Errorf("limit is %d, want 1", n)
			}

			room.Store(true)
			for range 5 {
				if err := signs(ctx, k); err != nil {
					t.Errorf("with room again: %v", err)
				}
				b.balanced(t)
			}
			begin := time.Now()
			if err := b.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("Close took %v", took)
			}
		})
	}
}

func TestFailedFinalizeIsTriedAgain(t *testing.T) {
	for _, failures := range []int64{1, 3} {
		t.Run(fmt.Sprint(failures), func(t *testing.T) {
			hsm := softhsmtest.New(t, "bulla")
			hsm.GenerateKey("k", "01", kms.ES256)
			b := start(t, hsm)
			k := b.key(t, "object=k", kms.ES256)
			finalize := times(failures, "finalize", 0x05)
			var restarted atomic.Bool
			b.lib.set(func(call string) error {
				if call == "initialize" {
					restarted.Store(true)
				}
				if !restarted.Load() && (call == "sign" || call == "tokenInfo") {
					return &callError{call, 0x32}
				}
				return finalize(call)
			})
			wantErr(t, signs(t.Context(), k), kms.ErrUnavailable, "CKR_DEVICE_REMOVED")
			eventually(t, "signing", func() error {
				err := signs(t.Context(), k)
				if err != nil && containsAll(err.Error(), "something else in this process") {
					t.Errorf("false accusation: %v", err)
				}
				return err
			})
			if n := b.lib.inits.Load(); n != 2 {
				t.Errorf("C_Initialize was called %d times, want 2", n)
			}
		})
	}
}

func TestFailedFinalizeAtCloseLeavesAModuleThatCanBeUsed(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	lib := &meddler{}
	cfg := config(hsm)
	cfg.Modules = meddledModules(lib)
	first, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	lib.set(times(1, "finalize", 0x05))
	if err := first.Close(); err == nil || !containsAll(err.Error(), "left as it is", "CKR_GENERAL_ERROR") {
		t.Errorf("Close: got error %v, want that of C_Finalize", err)
	}
	second := start(t, hsm, func(c *Config) { c.Modules = cfg.Modules })
	if err := signs(t.Context(), second.key(t, "object=k", kms.ES256)); err != nil {
		t.Error(err)
	}
}

func TestStuckCallAndALostTokenHaltASiblingOnce(t *testing.T) {
	hsm := softhsmtest.New(t, "one")
	hsm.GenerateKey("k", "01", kms.ES256)
	hsm.InitAs("two")
	two := *hsm
	two.Label = "two"
	two.GenerateKey("k", "01", kms.ES256)

	// In a bubble the pauses cost no time; calls into the module are real.
	synctest.Test(t, func(t *testing.T) {
		first := start(t, hsm)
		second := start(t, &two, func(c *Config) { c.Modules = first.cfg.Modules })
		k1, k2 := first.key(t, "object=k", kms.ES256), second.key(t, "object=k", kms.ES256)
		time.Sleep(2 * stuckPause)

		release := make(chan struct{})
		var stuck atomic.Bool
		first.lib.set(func(call string) error {
			if call == "sign" && stuck.CompareAndSwap(false, true) {
				<-release
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		wantErr(t, signs(ctx, k1), context.DeadlineExceeded)

		// The sibling signs all the time, while the first token is lost again
		// and again.
		var wg sync.WaitGroup
		var halts, signed atomic.Int64
		done := make(chan struct{})
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(100 * time.Millisecond):
				}
				begin := time.Now()
				if err := signs(t.Context(), k2); err != nil {
					t.Errorf("sibling: %v", err)
				}
				signed.Add(1)
				if time.Since(begin) > parkLimit/2 {
					halts.Add(1)
				}
			}
		})
		lose := func() {
			tok := first.token()
			tok.mu.Lock()
			l := tok.link
			tok.mu.Unlock()
			if l != nil {
				tok.lose(l, errors.New("test"), true)
			}
			_ = first.Check(t.Context())
		}
		for begin := time.Now(); time.Since(begin) < stuckPause/2; time.Sleep(time.Second) {
			lose()
		}
		if n := halts.Load(); n != 1 {
			t.Errorf("the sibling was halted %d times in %v, want once", n, stuckPause/2)
		}
		if n := first.lib.inits.Load(); n != 1 {
			t.Errorf("C_Initialize was called %d times with a call in the module", n)
		}

		// The call comes out: when the pause is over the first gets its turn.
		close(release)
		time.Sleep(stuckPause)
		lose()
		if n := first.lib.inits.Load(); n != 2 {
			t.Errorf("C_Initialize was called %d times in the end, want 2", n)
		}
		close(done)
		wg.Wait()
		if halts.Load() != 1 || signed.Load() < 500 {
			t.Errorf("the sibling signed %d times with %d halts", signed.Load(), halts.Load())
		}
		if err := signs(t.Context(), k1); err != nil {
			t.Errorf("the first token in the end: %v", err)
		}
		for _, b := range []*bench{first, second} {
			if err := b.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
}

func TestStragglerOnALostTokenLeavesNoSessionOpen(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=k", kms.ES256)
	hold, held := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	b.lib.set(func(call string) error {
		if call == "sign" && first.CompareAndSwap(false, true) {
			close(held)
			<-hold
			return &callError{"C_Sign", 0x101}
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := signs(t.Context(), k); err != nil && !errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("the straggler: got error %v, want a signature or %v", err, kms.ErrUnavailable)
		}
	})
	<-held
	old := mustLink(t, b)
	b.token().lose(old, errors.New("test"), false)
	eventually(t, "a new login", func() error { return b.Check(t.Context()) })
	eventually(t, "closing of the old login session", func() error {
		if _, err := old.lib.loggedIn(old.login.handle); err == nil {
			return errors.New("open")
		}
		return nil
	})
	close(hold)
	wg.Wait()
	if err := signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if opens, closes := b.lib.opens.Load(), b.lib.closes.Load(); opens != closes {
		t.Errorf("%d sessions were opened and %d closed", opens, closes)
	}
}

func TestStuckCallCostsItsCallerTheDeadlineAndThePoolOneSession(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	// In a bubble the pauses cost no time; calls into the module are real.
	synctest.Test(t, func(t *testing.T) {
		b := start(t, hsm, func(c *Config) { c.Sessions = 2 })
		k := b.key(t, "object=k", kms.ES256)

		release := make(chan struct{})
		var stuck atomic.Int64
		b.lib.set(func(call string) error {
			if call == "sign" && stuck.Add(1) == 1 {
				<-release
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		begin := time.Now()
		wantErr(t, signs(ctx, k), context.DeadlineExceeded)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the caller waited %v", took)
		}
		for range 10 {
			if err := signs(t.Context(), k); err != nil {
				t.Errorf("with the other session: %v", err)
			}
		}
		if s := b.Stats(); s.InUse != 1 {
			t.Errorf("%d sessions in use, want the stuck one", s.InUse)
		}

		// The module cannot be initialized again now, and nothing crashes.
		begin = time.Now()
		b.token().lose(mustLink(t, b), errors.New("test"), true)
		wantErr(t, b.Check(t.Context()), kms.ErrUnavailable, "stuck", "restart")
		if took := time.Since(begin); took < parkLimit || took > parkLimit+time.Second {
			t.Errorf("parking took %v, want %v", took, parkLimit)
		}
		if n := b.lib.inits.Load(); n != 1 {
			t.Errorf("C_Initialize was called %d times with a call in the module", n)
		}
		close(release)
		eventually(t, "signing", func() error {
			_ = b.Check(t.Context())
			return signs(t.Context(), k)
		})
		if n := b.lib.inits.Load(); n != 2 {
			t.Errorf("C_Initialize was called %d times, want 2", n)
		}
	})
}

func TestCloseLeavesAStuckModuleAlone(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	// In a bubble the pauses cost no time; calls into the module are real.
	synctest.Test(t, func(t *testing.T) {
		cfg, lib := config(hsm), &meddler{}
		cfg.Modules = meddledModules(lib)
		b, err := New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		k, err := b.OpenKey(t.Context(), "object=k", kms.ES256)
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		lib.set(func(call string) error {
			if call == "sign" {
				<-release
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		wantErr(t, signs(ctx, k), context.DeadlineExceeded)
		begin := time.Now()
		wantErr(t, b.Close(), errStuck, "left as it is")
		if took := time.Since(begin); took > closeWait+time.Second {
			t.Errorf("Close took %v", took)
		}
		wantErr(t, signs(t.Context(), k), kms.ErrUnavailable, "closed")
		close(release)
		// What Close could not do, so that the next test finds the module anew.
		tok := b.vault.(*token)
		if err := tok.mod.alone(tok.mod.stop); err != nil {
			t.Error(err)
		}
	})
}

func TestDistrustReplacesAllSessions(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=k", kms.ES256)

	// One session is in use while the others are idle.
	hold, held := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	b.lib.set(func(call string) error {
		if call == "sign" && first.CompareAndSwap(false, true) {
			close(held)
			<-hold
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := signs(t.Context(), k); err != nil {
			t.Errorf("the signature in flight: %v", err)
		}
	})
	<-held
	for range 3 {
		wg.Go(func() {
			if err := signs(t.Context(), k); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "others signing", func() error {
		if s := b.Stats(); s.InUse != 1 || s.Open < 2 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	k.(kms.Distruster).Distrust()
	eventually(t, "closing of idle sessions", func() error {
		if n := b.Stats().Open; n != 1 {
			return fmt.Errorf("%d open", n)
		}
		return nil
	})
	close(hold)
	wg.Wait()
	eventually(t, "closing of the one that was in use", func() error {
		if n := b.Stats().Open; n != 0 {
			return fmt.Errorf("%d open", n)
		}
		return nil
	})
	if err := signs(t.Context(), k); err != nil {
		t.Error(err)
	}
}

func TestSignatureOfAWrongLengthIsNotReturned(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=k", kms.ES256).(*key)
	k.size++
	_, err := k.Sign(t.Context(), []byte("header.payload"))
	wantErr(t, err, kms.ErrUnavailable, "64 bytes", "65")
}
