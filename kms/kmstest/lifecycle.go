package kmstest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// check: a backend that is well says so.
func (h *Harness) check(t *testing.T) {
	b := h.open(t)
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check before any key was opened: %v", err)
	}
	h.key(t, b, h.algorithms()[0])
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check with an open key: %v", err)
	}
}

// close: a closed backend is unavailable, its keys too, and another backend
// over the same keys does not notice.
func (h *Harness) close(t *testing.T) {
	b, other := h.open(t), h.open(t)
	alg := h.algorithms()[0]
	k, stays := h.key(t, b, alg), h.key(t, other, alg)
	pub := k.Public()

	h.prompt(t, "Close", func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	h.prompt(t, "use after Close", func() {
		s, err := k.Sign(t.Context(), []byte("header.payload"))
		if s != nil {
			t.Error("Sign after Close returned a signature")
		}
		wantError(t, "Sign after Close", err, kms.ErrUnavailable)
		again, err := b.OpenKey(t.Context(), h.Keys[alg], alg)
		wantNoKey(t, again, "OpenKey after Close", err, kms.ErrUnavailable)
		wantError(t, "Check after Close", b.Check(t.Context()), kms.ErrUnavailable)
	})
	if !equalKeys(pub, k.Public()) {
		t.Error("Close changed the key's public half")
	}
	h.prompt(t, "second Close", func() {
		if err := b.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
	if _, err := signAndVerify(t.Context(), stays, []byte("other.backend")); err != nil {
		t.Errorf("after another backend was closed: %v", err)
	}
}

// closeWhileSigning: whoever signs while the backend closes gets a good
// signature or ErrUnavailable, and Close has waited for all of them.
func (h *Harness) closeWhileSigning(t *testing.T) {
	b := h.open(t)
	k := h.key(t, b, h.algorithms()[0])
	closeWhile(t, b, h.prompt, "sign", func() error {
		_, err := signAndVerify(t.Context(), k, []byte("header.payload"))
		return err
	})
}

// closeWhile closes b while several goroutines do something with it again and
// again. Each ends with ErrUnavailable, and none gets anything from a call that
// it began after Close had returned.
func closeWhile(t *testing.T, b kms.Backend, prompt func(*testing.T, string, func()), what string, do func() error) {
	t.Helper()
	var begun, inFlight sync.WaitGroup
	begun.Add(signers)
	var closed atomic.Bool
	for range signers {
		inFlight.Go(func() {
			first := sync.OnceFunc(begun.Done)
			defer first()
			for {
				late := closed.Load()
				err := do()
				first()
				if err != nil {
					wantError(t, what+" while the backend closes", err, kms.ErrUnavailable)
					return
				}
				if late {
					t.Errorf("it could %s after Close had returned", what)
					return
				}
			}
		})
	}
	prompt(t, "Close", func() {
		begun.Wait()
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		closed.Store(true)
		inFlight.Wait()
	})
}

// outage: while the keys are out of reach the answer is ErrUnavailable (or the
// caller's deadline), and afterwards the same keys sign again.
func (h *Harness) outage(t *testing.T) {
	b := h.open(t)
	alg := h.algorithms()[0]
	k := h.key(t, b, alg)
	pub := k.Public()
	up := h.Down(t)

	h.prompt(t, "calls without the keys' place", func() {
		ctx, cancel := context.WithTimeout(t.Context(), min(h.Patience/2, 2*time.Second))
		defer cancel()
		unavailable := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, context.DeadlineExceeded) {
				wantError(t, what, err, kms.ErrUnavailable)
			}
		}
		_, err := k.Sign(ctx, []byte("header.payload"))
		unavailable("Sign while down", err)
		_, err = b.OpenKey(ctx, h.Keys[alg], alg)
		unavailable("OpenKey while down", err)
		unavailable("Check while down", b.Check(ctx))
	})
	up()
	h.recovers(t, b, k)
	if !equalKeys(pub, k.Public()) {
		t.Error("after the outage the key has another public half")
	}
	if again := h.key(t, b, alg); !equalKeys(pub, again.Public()) {
		t.Error("after the outage, opened again, the key has another public half")
	}
	h.settles(t)
}

// settles opens one more backend after an outage: nothing that the harness
// shares may have stayed behind.
func (h *Harness) settles(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), h.Patience)
	defer cancel()
	b := h.open(t)
	for {
		err := b.Check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("a fresh backend after the outage: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
