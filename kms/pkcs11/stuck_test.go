//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// lines counts log lines by their message.
type lines struct {
	mu   sync.Mutex
	seen map[string]int
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, rest, _ := strings.Cut(string(p), `msg="`)
	message, _, _ := strings.Cut(rest, `"`)
	l.seen[message]++
	return len(p), nil
}

func (l *lines) count(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen[message]
}

// hangingBench is a backend with two sessions whose signatures hang until release
// is closed, once hang is set. It is used in a bubble.
type hangingBench struct {
	*bench
	key     kms.Key
	hang    atomic.Bool
	release chan struct{}
	told    atomic.Int64
	log     *lines
}

func startHanging(t *testing.T, hsm *softhsmtest.Token) *hangingBench {
	t.Helper()
	h := &hangingBench{release: make(chan struct{}), log: &lines{seen: map[string]int{}}}
	h.bench = start(t, hsm, func(c *Config) {
		c.Sessions, c.RetryAfter = 2, 0
		c.OnStuck = func(error) { h.told.Add(1) }
		c.Logger = slog.New(slog.NewTextHandler(h.log, nil))
	})
	h.key = h.bench.key(t, "object=k", kms.ES256)
	h.lib.set(func(call string) error {
		if call == "sign" && h.hang.Load() {
			<-h.release
		}
		return nil
	})
	return h
}

// lose loses n calls in the module.
func (h *hangingBench) lose(t *testing.T, n int) {
	t.Helper()
	h.hang.Store(true)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			begin := time.Now()
			wantErr(t, signs(ctx, h.key), context.DeadlineExceeded)
			if took := time.Since(begin); took > 200*time.Millisecond {
				t.Errorf("a call that hangs cost its caller %v", took)
			}
		})
	}
	wg.Wait()
}

func TestPoolWithAllCallsStuckIsGivenUpAndHeals(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	synctest.Test(t, func(t *testing.T) {
		h := startHanging(t, hsm)
		h.lose(t, 2)
		if s := h.Stats(); !s.Up || s.Stuck != 0 || s.InUse != 2 {
			t.Errorf("at once: %+v", s)
		}
		time.Sleep(stuckAfter + 2*lookEvery)
		s := h.Stats()
		if s.Up || s.Stuck != 2 || !containsAll(s.Reason, "2 calls", "hangs", "restart") {
			t.Errorf("after %v: %+v", stuckAfter, s)
		}
		if n := h.told.Load(); n != 1 {
			t.Errorf("OnStuck was called %d times, want once", n)
		}

		// Calls fail at once, nothing is tried that would be lost too, and one
		// line is logged.
		logins := h.lib.logins.Load()
		for range 100 {
			begin := time.Now()
			wantErr(t, signs(t.Context(), h.key), kms.ErrUnavailable, "hangs")
			wantErr(t, h.Check(t.Context()), kms.ErrUnavailable, "hangs")
			if took := time.Since(begin); took != 0 {
				t.Errorf("calls failed after %v, want at once", took)
			}
			time.Sleep(time.Second)
		}
		for _, s := range h.Diagnose(t.Context(), nil) {
			if s.Name == StepToken && (s.Outcome != Failed || !strings.Contains(s.Detail, "do not come out")) {
				t.Errorf("diagnosis: %+v", s)
			}
		}
		if n := h.lib.logins.Load() - logins; n != 0 {
			t.Errorf("%d logins to a token that hangs", n)
		}
		if h.told.Load() != 1 || h.log.count("PKCS#11 token is down") != 1 {
			t.Errorf("OnStuck was called %d times, log %v; want each once", h.told.Load(), h.log.seen)
		}

		// The calls come out: nobody has to call for it to heal.
		h.hang.Store(false)
		close(h.release)
		time.Sleep(2 * time.Second)
		if s := h.Stats(); !s.Up || s.Stuck != 0 || s.Reason != "" {
			t.Errorf("after the calls came out: %+v", s)
		}
		if err := signs(t.Context(), h.key); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if opens, closes := h.lib.opens.Load(), h.lib.closes.Load(); opens-closes > 0 {
			t.Errorf("%d sessions were opened and %d closed", opens, closes)
		}
	})
}

func TestOneStuckCallOfTwoIsSeenAndLeavesTheTokenUp(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	synctest.Test(t, func(t *testing.T) {
		h := startHanging(t, hsm)
		h.lose(t, 1)
		h.hang.Store(false)
		time.Sleep(10 * stuckAfter)
		if s := h.Stats(); !s.Up || s.Stuck != 1 {
			t.Errorf("with one stuck call: %+v", s)
		}
		if err := signs(t.Context(), h.key); err != nil {
			t.Error(err)
		}
		if n := h.told.Load(); n != 0 {
			t.Errorf("OnStuck was called %d times", n)
		}
		close(h.release)
		synctest.Wait()
		if s := h.Stats(); s.Stuck != 0 || s.InUse != 0 {
			t.Errorf("afterwards: %+v", s)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestLostTokenWithAStuckCallTellsSoOnce(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	synctest.Test(t, func(t *testing.T) {
		h := startHanging(t, hsm)
		time.Sleep(time.Minute)
		h.lose(t, 1)
		h.token().lose(mustLink(t, h.bench), errors.New("test"), true)
		time.Sleep(time.Minute)
		if s := h.Stats(); s.Up || s.Stuck != 1 || !containsAll(s.Reason, "stuck", "restart") {
			t.Errorf("with a stuck call and a module to initialize: %+v", s)
		}
		if n, m := h.told.Load(), h.log.count("PKCS#11 token cannot be used"); n != 1 || m != 1 {
			t.Errorf("OnStuck was called %d times and %d lines were logged, want each once", n, m)
		}
		if n := h.lib.inits.Load(); n != 1 {
			t.Errorf("C_Initialize was called %d times", n)
		}
		h.hang.Store(false)
		close(h.release)
		time.Sleep(4 * time.Second)
		if s := h.Stats(); !s.Up || s.Stuck != 0 {
			t.Errorf("after the call came out: %+v", s)
		}
		if n := h.lib.inits.Load(); n != 2 {
			t.Errorf("C_Initialize was called %d times, want twice", n)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestTokenHealsWithoutBeingUsed(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		b := start(t, hsm, func(c *Config) { c.RetryAfter = 0 })
		k := b.key(t, "object=k", kms.ES256)
		b.lib.set(func(call string) error {
			if broken.Load() && call != "finalize" {
				return &callError{call, 0x32}
			}
			return nil
		})
		time.Sleep(time.Minute)
		for outage := range 5 {
			broken.Store(true)
			wantErr(t, signs(t.Context(), k), kms.ErrUnavailable)
			inits := b.lib.inits.Load()
			time.Sleep(time.Minute + time.Duration(outage)*370*time.Millisecond)
			if n := b.lib.inits.Load() - inits; n < 30 || n > 41 {
				t.Errorf("%d attempts in a minute without a token, want one each %v", n, defaultRetry)
			}
			broken.Store(false)
			begin := time.Now()
			for !b.Stats().Up {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("back %v after the cause had gone, want 2 s at most", took)
			}
			if err := signs(t.Context(), k); err != nil {
				t.Error(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAttemptsInTheBackgroundSendNoRefusedPIN(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	hsm.SetPIN("654321")
	synctest.Test(t, func(t *testing.T) {
		b := start(t, hsm, func(c *Config) { c.RetryAfter, c.InsistOnLogin = 0, true })
		time.Sleep(time.Minute)
		if n, m := b.lib.logins.Load(), b.lib.inits.Load(); n != 1 || m != 1 {
			t.Errorf("a minute with a wrong PIN: %d logins and %d C_Initialize, want one each", n, m)
		}
		hsm.SetPIN(softhsmtest.PIN)
		time.Sleep(2 * time.Second)
		if s := b.Stats(); !s.Up || b.lib.logins.Load() != 2 {
			t.Errorf("2 s after the PIN was corrected: %+v, %d logins", s, b.lib.logins.Load())
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestWaitingForASessionIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(2)
		one := mustGet(t, p)
		mustGet(t, p)
		if n := p.waits.count.Load(); n != 0 {
			t.Errorf("%d waits before anybody waited", n)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				s, err := p.get(t.Context())
				if err == nil {
					time.Sleep(time.Second)
					p.put(s)
				}
			})
		}
		synctest.Wait()
		time.Sleep(time.Second)
		one.open = true
		p.put(one)
		wg.Wait()
		if n, d := p.waits.count.Load(), time.Duration(p.waits.nanos.Load()); n != 3 || d != 6*time.Second {
			t.Errorf("%d waits of %v, want 3 of 1, 2 and 3 s", n, d)
		}
	})
}
