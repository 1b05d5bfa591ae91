package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// ailing is a store that fails when a test wants it.
type ailing struct {
	err     atomic.Pointer[error]
	current atomic.Pointer[time.Time] // nil: never
	hang    atomic.Bool
}

func (a *ailing) Check(ctx context.Context) error {
	if a.hang.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := a.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (a *ailing) Current() time.Time {
	if t := a.current.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// look runs a storeWatch in a synctest bubble until the test ends.
func look(t *testing.T, store *ailing, shared bool) (*storeWatch, *strings.Builder) {
	t.Helper()
	log := new(strings.Builder)
	w := &storeWatch{store: store, shared: shared, log: slog.New(slog.NewTextHandler(log, nil)), began: time.Now()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	synctest.Wait()
	return w, log
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestAStoreThatIsDownDegradesUntilItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(ailing)
		w, log := look(t, store, false)
		pass(10 * time.Second)
		if !w.up() || w.degraded() != nil || log.Len() > 0 {
			t.Fatalf("while all is well: up %v, degraded %v, log %s", w.up(), w.degraded(), log)
		}
		refused := errors.New("connection refused")
		store.err.Store(&refused)
		pass(storeEvery)
		since := time.Now().UTC().Format(time.RFC3339)
		for range 3 {
			if err := w.degraded(); w.up() || !errors.Is(err, refused) || !strings.Contains(err.Error(), "since "+since) {
				t.Errorf("up %v, degraded: %v; want since %s, and why", w.up(), err, since)
			}
			pass(storeEvery)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines in the log, want one:\n%s", n, log)
		}
		store.err.Store(nil)
		pass(storeEvery)
		if !w.up() || w.degraded() != nil || !strings.Contains(log.String(), "the store answers again") {
			t.Errorf("back again: up %v, degraded %v, log %s", w.up(), w.degraded(), log)
		}
	})
}

func TestAStoreThatHangsDegrades(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(ailing)
		store.hang.Store(true)
		w, _ := look(t, store, false)
		pass(storePatience)
		if w.up() || !errors.Is(w.degraded(), context.DeadlineExceeded) {
			t.Errorf("up %v, degraded: %v", w.up(), w.degraded())
		}
	})
}

// A replica that hears nothing serves what may be out of date: that has to be
// seen before it is refused.
func TestAReplicaThatHearsOfNoChangesIsDegraded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(ailing)
		w, _ := look(t, store, true)
		if w.degraded() != nil {
			t.Errorf("at the start: %v", w.degraded())
		}
		pass(feedLate + time.Second)
		if err := w.degraded(); err == nil || !strings.Contains(err.Error(), "not been heard of for 6s") || w.lag() != 6*time.Second {
			t.Errorf("never heard of: %v, lag %v", err, w.lag())
		}
		now := time.Now()
		store.current.Store(&now)
		if w.degraded() != nil || w.lag() != 0 {
			t.Errorf("heard of now: %v, lag %v", w.degraded(), w.lag())
		}
		pass(time.Minute)
		if w.degraded() == nil || w.lag() != time.Minute {
			t.Errorf("a minute ago: %v, lag %v", w.degraded(), w.lag())
		}
		w.shared = false // a file, which nobody else changes
		if w.degraded() != nil || w.lag() != 0 {
			t.Errorf("alone: %v, lag %v", w.degraded(), w.lag())
		}
	})
}
