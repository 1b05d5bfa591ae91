package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// moodyBackend answers, fails or hangs.
type moodyBackend struct {
	kms.Backend
	err   atomic.Pointer[error]
	hangs atomic.Bool
	looks atomic.Int32
}

func (b *moodyBackend) Check(ctx context.Context) error {
	b.looks.Add(1)
	if b.hangs.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := b.err.Load(); err != nil {
		return *err
	}
	return nil
}

func TestBackendsAreLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		one, two := &moodyBackend{}, &moodyBackend{}
		w := newBackendWatch(&backends{byName: map[string]kms.Backend{"one": one, "two": two}}, slog.New(slog.NewTextHandler(&log, nil)))
		if w.up("one") {
			t.Error("a backend that nobody has looked at is up")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.run(ctx) }()
		want := func(step string, up bool, said string) {
			t.Helper()
			time.Sleep(backendEvery + backendPatience)
			synctest.Wait()
			if got := w.up("one"); got != up {
				t.Errorf("%s: up %v, want %v", step, got, up)
			}
			if !w.up("two") {
				t.Errorf("%s: the other backend is down", step)
			}
			if strings.Count(log.String(), "\n") != strings.Count(said, "|") || said != "" && !strings.Contains(log.String(), strings.Trim(said, "|")) {
				t.Errorf("%s: the log is %q, want %q", step, log.String(), said)
			}
			log.Reset()
		}
		want("at first", true, "")
		down := errors.New("connection refused")
		one.err.Store(&down)
		want("down", false, "the backend does not answer|")
		want("still down", false, "")
		one.err.Store(nil)
		want("back", true, "the backend answers again|")
		one.hangs.Store(true)
		want("hanging", false, "the backend does not answer|")
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		if n := one.looks.Load(); n > 9 {
			t.Errorf("%d looks in under two minutes", n)
		}
	})
}
