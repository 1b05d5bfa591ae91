package kmstest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// contexts: the end of a context ends the call, with the context's error, and
// harms nothing else.
func (h *Harness) contexts(t *testing.T) {
	b := h.open(t)
	alg := h.algorithms()[0]
	k := h.key(t, b, alg)

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancelExpired := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancelExpired()

	for _, tt := range []struct {
		name string
		ctx  context.Context
		want error
	}{
		{"Canceled", canceled, context.Canceled},
		{"PastDeadline", expired, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.prompt(t, "Sign", func() {
				s, err := k.Sign(tt.ctx, []byte("header.payload"))
				if s != nil {
					t.Error("Sign returned a signature")
				}
				wantError(t, "Sign", err, tt.want)
			})
			h.prompt(t, "OpenKey", func() {
				k, err := b.OpenKey(tt.ctx, h.Keys[alg], alg)
				wantNoKey(t, k, "OpenKey", err, tt.want)
			})
			h.prompt(t, "Check", func() {
				wantError(t, "Check", b.Check(tt.ctx), tt.want)
			})
		})
	}

	// Deadlines that fall anywhere within a signature: the answer is a good
	// signature, or that there was not enough time, and the message is free
	// again either way.
	t.Run("DeadlineWhileSigning", func(t *testing.T) {
		message := make([]byte, h.MaxMessage)
		for i := range 64 {
			h.prompt(t, "Sign", func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*50*time.Microsecond)
				defer cancel()
				s, err := k.Sign(ctx, message)
				if err != nil {
					wantError(t, "Sign", err, outOfTime(err))
				} else if err := verify(k, message, s); err != nil {
					t.Error(err)
				}
				message[i]++ // seen by -race if the backend still reads it
			})
		}
	})

	if _, err := signAndVerify(t.Context(), k, []byte("after.cancellations")); err != nil {
		t.Errorf("after calls were canceled: %v", err)
	}
}

// stall: while the keys' place hangs, calls end with their deadline and not
// with its; afterwards all is as before.
func (h *Harness) stall(t *testing.T) {
	b := h.open(t)
	alg := h.algorithms()[0]
	k := h.key(t, b, alg)
	release := h.Stall(t)
	const limit = 300 * time.Millisecond

	for name, call := range map[string]func(context.Context) error{
		"Sign":    func(ctx context.Context) error { _, err := k.Sign(ctx, []byte("header.payload")); return err },
		"OpenKey": func(ctx context.Context) error { _, err := b.OpenKey(ctx, h.Keys[alg], alg); return err },
		"Check":   b.Check,
	} {
		h.prompt(t, name, func() {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			start := time.Now()
			err := call(ctx)
			wantError(t, name, err, context.DeadlineExceeded)
			if took := time.Since(start); took > limit+2*time.Second {
				t.Errorf("%s with a limit of %v returned after %v", name, limit, took)
			}
		})
	}
	release()
	h.recovers(t, b, k)
}

// closeWaits: Close returns no sooner than the signatures that are being made.
func (h *Harness) closeWaits(t *testing.T) {
	b := h.open(t)
	k := h.key(t, b, h.algorithms()[0])
	release := h.Stall(t)
	signed, closed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(signed)
		// What comes of it is the backend's affair: it may be cut off.
		k.Sign(t.Context(), []byte("header.payload")) //nolint:errcheck // only its end matters
	}()
	time.Sleep(100 * time.Millisecond) // until it hangs
	go func() {
		defer close(closed)
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	select {
	case <-closed:
		select {
		case <-signed:
		default:
			t.Error("Close returned while a signature was being made")
		}
	case <-signed:
	case <-time.After(300 * time.Millisecond):
	}
	release()
	h.prompt(t, "Close, and the signature before it", func() {
		<-signed
		<-closed
	})
}

// prompt calls f and fails if it has not returned when the harness's patience
// is over.
func (h *Harness) prompt(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(h.Patience):
		t.Fatalf("%s has not returned after %v", what, h.Patience)
	}
}

// recovers fails unless k signs and b answers within the harness's patience.
func (h *Harness) recovers(t *testing.T, b kms.Backend, k kms.Key) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), h.Patience)
	defer cancel()
	for {
		_, err := signAndVerify(ctx, k, []byte("back.again"))
		if err == nil {
			err = b.Check(ctx)
		}
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after the outage, within %v: %v", h.Patience, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// outOfTime is what an error of a call that had too little time has to be: the
// context's, or that its turn would have come too late.
func outOfTime(err error) error {
	if errors.Is(err, kms.ErrThrottled) {
		return kms.ErrThrottled
	}
	return context.DeadlineExceeded
}
