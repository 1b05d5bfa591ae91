package kmstest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// WrapperHarness tells the suite of wrapping how to reach a backend.
type WrapperHarness struct {
	// Open returns a fresh backend, which is a kms.WrapperOpener, over keys
	// that exist already. Every call gives one of its own, all of them see the
	// same keys, and the suite closes each. Required.
	Open func(t testing.TB) kms.Backend

	// Key and Other name two wrapping keys. Required.
	Key, Other string

	// Missing is a well-formed reference that names no key. Required.
	Missing string

	// Nonsense holds references that the backend must refuse as unreadable,
	// beside those that the suite tries on every backend.
	Nonsense []string

	// Unfit names keys that are there and may not or cannot wrap, with the
	// error that says so. A signing key ought to be among them where the
	// backend can tell.
	Unfit map[string]error

	// Signs says that Key is of a type that can sign too, so that nothing
	// keeps the backend from opening it as a signing key.
	Signs bool

	// Slow says that a call takes milliseconds: of the lengths, of data keys
	// and of what is cut short, only some are tried.
	Slow bool

	// Patience, Down and Stall are those of Harness.
	Patience time.Duration
	Down     func(t testing.TB) (up func())
	Stall    func(t testing.TB) (release func())
}

// RunWrapper runs the suite of wrapping on the backend behind h.
func RunWrapper(t *testing.T, h WrapperHarness) {
	t.Helper()
	if h.Open == nil || h.Key == "" || h.Other == "" || h.Missing == "" {
		t.Fatal("kmstest: a WrapperHarness needs Open, Key, Other and Missing")
	}
	if h.Patience == 0 {
		h.Patience = defaultPatience
	}

	t.Run("RoundTrip", h.roundTrip)
	t.Run("Lengths", h.lengths)
	t.Run("WrapsDiffer", h.wrapsDiffer)
	t.Run("Tampering", h.tampering)
	t.Run("Concurrency", h.concurrency)
	t.Run("References", h.references)
	t.Run("Contexts", h.contexts)
	t.Run("Close", h.close)
	t.Run("CloseWhileWrapping", h.closeWhileWrapping)
	if h.Stall != nil {
		t.Run("Stall", h.stall)
	}
	if h.Down != nil {
		t.Run("Outage", h.outage)
	}
}

// open returns a backend that is closed when t ends.
func (h *WrapperHarness) open(t *testing.T) kms.Backend {
	t.Helper()
	return (&Harness{Open: h.Open}).open(t)
}

// wrapper opens the wrapping key that ref names.
func (h *WrapperHarness) wrapper(t *testing.T, b kms.Backend, ref string) kms.Wrapper {
	t.Helper()
	w, err := openWrapper(t.Context(), b, ref)
	if err != nil {
		t.Fatalf("OpenWrapper(%q): %v", ref, err)
	}
	if w == nil {
		t.Fatalf("OpenWrapper(%q) returned no wrapper and no error", ref)
	}
	return w
}

func openWrapper(ctx context.Context, b kms.Backend, ref string) (kms.Wrapper, error) {
	opener, ok := b.(kms.WrapperOpener)
	if !ok {
		return nil, fmt.Errorf("%T is no kms.WrapperOpener", b)
	}
	return opener.OpenWrapper(ctx, ref)
}

// step is from one length to the next that is tried.
func (h *WrapperHarness) step() int {
	if h.Slow {
		return 8
	}
	return 1
}

// dataKey is a fresh one of n bytes.
func dataKey(n int) []byte {
	k := make([]byte, n)
	_, _ = rand.Read(k) // never fails
	return k
}

// wrapAndUnwrap sends a data key there and back.
func wrapAndUnwrap(ctx context.Context, w kms.Wrapper, plaintext, aad []byte) (wrapped []byte, err error) {
	givenPlaintext, givenAAD := bytes.Clone(plaintext), bytes.Clone(aad)
	if wrapped, err = w.Wrap(ctx, givenPlaintext, givenAAD); err != nil {
		return nil, fmt.Errorf("wrap: %w", err)
	}
	given := bytes.Clone(wrapped)
	got, err := w.Unwrap(ctx, given, givenAAD)
	switch {
	case err != nil:
		return nil, fmt.Errorf("unwrap: %w", err)
	case !bytes.Equal(got, plaintext):
		return nil, fmt.Errorf("unwrapped %d bytes that are not the %d that were wrapped", len(got), len(plaintext))
	case !bytes.Equal(givenPlaintext, plaintext) || !bytes.Equal(givenAAD, aad) || !bytes.Equal(given, wrapped):
		return nil, errors.New("what was given was changed")
	case bytes.Contains(wrapped, plaintext):
		return nil, errors.New("the plaintext can be seen in the result")
	case len(aad) >= 8 && bytes.Contains(wrapped, aad):
		return nil, errors.New("the aad can be seen in the result")
	}
	return wrapped, nil
}

// wantNothing is wantError, and that there is no plaintext beside the error.
func wantNothing(t testing.TB, plaintext []byte, what string, err, want error) {
	t.Helper()
	if plaintext != nil {
		t.Errorf("%s returned %d bytes", what, len(plaintext))
	}
	wantError(t, what, err, want)
}

// roundTrip: every length and any aad, and a wrapped key opens with whoever
// opens the wrapping key later.
func (h *WrapperHarness) roundTrip(t *testing.T) {
	b := h.open(t)
	w, later := h.wrapper(t, b, h.Key), h.wrapper(t, h.open(t), h.Key)
	for n := kms.MinDataKey; n <= kms.MaxDataKey; n += h.step() {
		if _, err := wrapAndUnwrap(t.Context(), w, dataKey(n), fmt.Appendf(nil, "aad of length %d", n)); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, aad := range [][]byte{nil, {}, {0}, []byte("a"), bytes.Repeat([]byte{0xff, 0}, 128), make([]byte, 4096), bytes.Repeat([]byte("x"), 64<<10)} {
		plaintext := dataKey(32)
		wrapped, err := wrapAndUnwrap(t.Context(), w, plaintext, aad)
		if err != nil {
			t.Errorf("aad of %d bytes: %v", len(aad), err)
			continue
		}
		if got, err := later.Unwrap(t.Context(), wrapped, aad); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("aad of %d bytes, another backend: got %d bytes and error %v", len(aad), len(got), err)
		}
	}
	for _, plaintext := range [][]byte{make([]byte, 16), make([]byte, 64), bytes.Repeat([]byte{0xff}, 33)} {
		if _, err := wrapAndUnwrap(t.Context(), w, plaintext, []byte("aad")); err != nil {
			t.Errorf("%x: %v", plaintext, err)
		}
	}

	t.Run("BuffersAreTheCallers", func(t *testing.T) {
		plaintext, aad := dataKey(32), []byte("issuer and client")
		p, a := bytes.Clone(plaintext), bytes.Clone(aad)
		wrapped, err := w.Wrap(t.Context(), p, a)
		if err != nil {
			t.Fatal(err)
		}
		clear(p) // a backend that still reads them is caught by -race, or by:
		clear(a)
		kept := bytes.Clone(wrapped)
		got, err := w.Unwrap(t.Context(), wrapped, aad)
		if err != nil {
			t.Fatal(err)
		}
		clear(wrapped)
		again, err := w.Unwrap(t.Context(), kept, aad)
		if err != nil {
			t.Fatal(err)
		}
		clear(again)
		if !bytes.Equal(got, plaintext) {
			t.Error("a later call changed what was returned before")
		}
	})
}

// lengths: what is no data key is not wrapped, and that is nobody's fault but
// the caller's.
func (h *WrapperHarness) lengths(t *testing.T) {
	w := h.wrapper(t, h.open(t), h.Key)
	for _, n := range []int{0, 1, kms.MinDataKey - 1, kms.MaxDataKey + 1, 4096} {
		wrapped, err := w.Wrap(t.Context(), make([]byte, n), nil)
		if err == nil || wrapped != nil {
			t.Errorf("%d bytes: got %d bytes and error %v, want an error", n, len(wrapped), err)
		}
		for _, s := range sentinels {
			if errors.Is(err, s) {
				t.Errorf("%d bytes: error %v wraps %q: nothing is wrong with key or backend", n, err, s)
			}
		}
	}
}

// wrapsDiffer: equal plaintexts cannot be told by what they are wrapped to.
func (h *WrapperHarness) wrapsDiffer(t *testing.T) {
	w := h.wrapper(t, h.open(t), h.Key)
	plaintext := dataKey(32)
	seen := map[string]bool{}
	for range 16 {
		wrapped, err := w.Wrap(t.Context(), plaintext, []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(wrapped); n < 32 || seen[string(wrapped[n-16:])] || seen[string(wrapped[:n/2])] {
			t.Fatalf("the same plaintext was wrapped to the same bytes, or to too few (%d)", n)
		}
		seen[string(wrapped[len(wrapped)-16:])], seen[string(wrapped[:len(wrapped)/2])] = true, true
	}
}

// tampering: nothing opens but what was wrapped, with the key and the aad that
// it was wrapped with.
func (h *WrapperHarness) tampering(t *testing.T) {
	b := h.open(t)
	w, other := h.wrapper(t, b, h.Key), h.wrapper(t, b, h.Other)
	plaintext, aad := dataKey(32), []byte("issuer=main;purpose=seal")
	wrapped, err := wrapAndUnwrap(t.Context(), w, plaintext, aad)
	if err != nil {
		t.Fatal(err)
	}
	refuses := func(what string, w kms.Wrapper, wrapped, aad []byte) {
		t.Helper()
		got, err := w.Unwrap(t.Context(), wrapped, aad)
		wantNothing(t, got, "Unwrap with "+what, err, kms.ErrUnwrap)
	}

	for _, wrong := range [][]byte{nil, {}, []byte("issuer=main;purpose=sea"), []byte("issuer=main;purpose=sealx"), []byte("Issuer=main;purpose=seal"), bytes.Repeat(aad, 2)} {
		refuses(fmt.Sprintf("aad %q", wrong), w, wrapped, wrong)
	}
	refuses("another key", other, wrapped, aad)
	theirs, err := other.Wrap(t.Context(), plaintext, aad)
	if err != nil {
		t.Fatal(err)
	}
	refuses("what another key wrapped", w, theirs, aad)

	for i := range wrapped {
		changed := bytes.Clone(wrapped)
		changed[i] ^= 1 << (i % 8)
		refuses(fmt.Sprintf("byte %d of %d changed", i, len(wrapped)), w, changed, aad)
	}
	for method := range 256 {
		if byte(method) == wrapped[0] {
			continue
		}
		changed := bytes.Clone(wrapped)
		changed[0] = byte(method)
		refuses(fmt.Sprintf("first byte %#x", method), w, changed, aad)
	}
	for n := 0; n < len(wrapped); n += h.step() {
		refuses(fmt.Sprintf("%d of %d bytes", n, len(wrapped)), w, wrapped[:n:n], aad)
	}
	refuses("all but the last byte", w, wrapped[:len(wrapped)-1], aad)
	refuses("nothing", w, nil, aad)
	refuses("its begin cut off", w, append(bytes.Clone(wrapped[:1]), wrapped[2:]...), aad)
	refuses("the first byte gone", w, wrapped[1:], aad)
	refuses("a byte more", w, append(bytes.Clone(wrapped), 0), aad)
	refuses("eight bytes more", w, append(bytes.Clone(wrapped), make([]byte, 8)...), aad)
	refuses("a byte more in front", w, append([]byte{wrapped[0]}, wrapped...), aad)
	refuses("twice the bytes", w, append(bytes.Clone(wrapped), wrapped...), aad)
	refuses("zeros", w, append(bytes.Clone(wrapped[:1]), make([]byte, len(wrapped)-1)...), aad)
	refuses("the plaintext", w, plaintext, aad)
	refuses("64 KiB", w, append(bytes.Clone(wrapped), make([]byte, 64<<10)...), aad)

	// After all this it still opens what it wrapped.
	if got, err := w.Unwrap(t.Context(), wrapped, aad); err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("afterwards: got %d bytes and error %v", len(got), err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check afterwards: %v", err)
	}
}

// concurrency: goroutines share wrappers and the backend without getting each
// other's data keys, also while others bring forged ones.
func (h *WrapperHarness) concurrency(t *testing.T) {
	b := h.open(t)
	wrappers := []kms.Wrapper{h.wrapper(t, b, h.Key), h.wrapper(t, b, h.Other)}
	var wg sync.WaitGroup
	for g := range signers {
		wg.Go(func() {
			for i := range 6 {
				w := wrappers[(g+i)%len(wrappers)]
				aad := fmt.Appendf(nil, "goroutine %d, key %d", g, i)
				wrapped, err := wrapAndUnwrap(t.Context(), w, dataKey(16+g), aad)
				if err != nil {
					t.Errorf("goroutine %d, key %d: %v", g, i, err)
					return
				}
				if g%4 == 0 {
					got, err := w.Unwrap(t.Context(), wrapped, nil)
					wantNothing(t, got, "Unwrap with another aad", err, kms.ErrUnwrap)
				}
			}
		})
	}
	for range 4 { // wrappers are opened while others work
		wg.Go(func() {
			w, err := openWrapper(t.Context(), b, h.Key)
			if err != nil {
				t.Errorf("OpenWrapper while others wrap: %v", err)
				return
			}
			if _, err := wrapAndUnwrap(t.Context(), w, dataKey(32), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// references: a reference names a wrapping key, or the error says which of the
// ways there are in which it does not; and no key serves the other purpose.
func (h *WrapperHarness) references(t *testing.T) {
	b := h.open(t)
	refuses := func(ref string, want error) {
		t.Helper()
		w, err := openWrapper(t.Context(), b, ref)
		if w != nil {
			t.Errorf("OpenWrapper(%q) returned a wrapper", ref)
		}
		wantError(t, fmt.Sprintf("OpenWrapper(%q)", ref), err, want)
	}
	refuses(h.Missing, kms.ErrKeyNotFound)
	for _, ref := range append(append([]string(nil), nonsense...), h.Nonsense...) {
		refuses(ref, kms.ErrReference)
	}
	for ref, want := range h.Unfit {
		refuses(ref, want)
	}
	if !h.Signs {
		for _, alg := range kms.Algorithms() {
			k, err := b.OpenKey(t.Context(), h.Key, alg)
			if k != nil || !errors.Is(err, kms.ErrKeyMismatch) && !errors.Is(err, kms.ErrKeyNotFound) && !errors.Is(err, kms.ErrReference) {
				t.Errorf("OpenKey(the wrapping key, %s): got key %v and error %v, want one that says that it is no signing key", alg, k, err)
			}
		}
	}
	if _, err := wrapAndUnwrap(t.Context(), h.wrapper(t, b, h.Key), dataKey(32), nil); err != nil {
		t.Errorf("after refusals: %v", err)
	}
}

// contexts: the end of a context ends the call, with the context's error, and
// harms nothing else.
func (h *WrapperHarness) contexts(t *testing.T) {
	b := h.open(t)
	w := h.wrapper(t, b, h.Key)
	aad := []byte("aad")
	wrapped, err := wrapAndUnwrap(t.Context(), w, dataKey(32), aad)
	if err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancelExpired := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancelExpired()
	for ctx, want := range map[context.Context]error{canceled: context.Canceled, expired: context.DeadlineExceeded} {
		h.prompt(t, "a call with an ended context", func() {
			got, err := w.Wrap(ctx, dataKey(32), aad)
			wantNothing(t, got, "Wrap", err, want)
			got, err = w.Unwrap(ctx, wrapped, aad)
			wantNothing(t, got, "Unwrap", err, want)
			got, err = w.Unwrap(ctx, wrapped[:len(wrapped)-1], aad)
			wantNothing(t, got, "Unwrap of what was cut short", err, want)
			if w, err := openWrapper(ctx, b, h.Key); w != nil || !errors.Is(err, want) {
				t.Errorf("OpenWrapper: got wrapper %v and error %v, want %v", w, err, want)
			}
		})
	}
	for i := range 32 {
		h.prompt(t, "Wrap and Unwrap", func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
			defer cancel()
			plaintext, aad := dataKey(64), dataKey(256)
			if got, err := w.Wrap(ctx, plaintext, aad); err != nil {
				wantNothing(t, got, "Wrap", err, outOfTime(err))
			}
			clear(plaintext) // seen by -race if the backend still reads it
			clear(aad)
			forged := bytes.Clone(wrapped)
			forged[len(forged)-1] ^= 1
			got, err := w.Unwrap(ctx, forged, nil)
			if !errors.Is(err, kms.ErrUnwrap) {
				wantNothing(t, got, "Unwrap", err, outOfTime(err))
			}
			clear(forged)
		})
	}
	if _, err := wrapAndUnwrap(t.Context(), w, dataKey(32), aad); err != nil {
		t.Errorf("after calls were canceled: %v", err)
	}
}

// close: the wrappers of a closed backend are unavailable, and another backend
// over the same keys does not notice.
func (h *WrapperHarness) close(t *testing.T) {
	b, other := h.open(t), h.open(t)
	w, stays := h.wrapper(t, b, h.Key), h.wrapper(t, other, h.Key)
	wrapped, err := wrapAndUnwrap(t.Context(), w, dataKey(32), nil)
	if err != nil {
		t.Fatal(err)
	}
	h.prompt(t, "Close, and use after it", func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		got, err := w.Wrap(t.Context(), dataKey(32), nil)
		wantNothing(t, got, "Wrap after Close", err, kms.ErrUnavailable)
		got, err = w.Unwrap(t.Context(), wrapped, nil)
		wantNothing(t, got, "Unwrap after Close", err, kms.ErrUnavailable)
		got, err = w.Unwrap(t.Context(), nil, nil)
		wantNothing(t, got, "Unwrap of nothing after Close", err, kms.ErrUnavailable)
		if w, err := openWrapper(t.Context(), b, h.Key); w != nil || !errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("OpenWrapper after Close: got wrapper %v and error %v, want %v", w, err, kms.ErrUnavailable)
		}
	})
	if _, err := stays.Unwrap(t.Context(), wrapped, nil); err != nil {
		t.Errorf("after another backend was closed: %v", err)
	}
}

// closeWhileWrapping: whoever wraps while the backend closes gets a data key
// that opens or ErrUnavailable, and Close has waited for all of them.
func (h *WrapperHarness) closeWhileWrapping(t *testing.T) {
	b := h.open(t)
	w := h.wrapper(t, b, h.Key)
	closeWhile(t, b, h.prompt, "wrap", func() error {
		_, err := wrapAndUnwrap(t.Context(), w, dataKey(32), []byte("aad"))
		return err
	})
}

// stall: while the keys' place hangs, calls end with their deadline and not
// with its; afterwards all is as before.
func (h *WrapperHarness) stall(t *testing.T) {
	b := h.open(t)
	w := h.wrapper(t, b, h.Key)
	wrapped, err := wrapAndUnwrap(t.Context(), w, dataKey(32), nil)
	if err != nil {
		t.Fatal(err)
	}
	release := h.Stall(t)
	const limit = 200 * time.Millisecond
	h.prompt(t, "Wrap, Unwrap and OpenWrapper", func() {
		var wg sync.WaitGroup
		for name, call := range map[string]func(context.Context) error{
			"Wrap":        func(ctx context.Context) error { _, err := w.Wrap(ctx, dataKey(32), nil); return err },
			"Unwrap":      func(ctx context.Context) error { _, err := w.Unwrap(ctx, wrapped, nil); return err },
			"OpenWrapper": func(ctx context.Context) error { _, err := openWrapper(ctx, b, h.Key); return err },
		} {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				start := time.Now()
				wantError(t, name, call(ctx), context.DeadlineExceeded)
				if took := time.Since(start); took > limit+2*time.Second {
					t.Errorf("%s with a limit of %v returned after %v", name, limit, took)
				}
			})
		}
		wg.Wait()
	})
	release()
	h.recovers(t, b, w, wrapped)
}

// outage: while the keys are out of reach the answer is ErrUnavailable (or the
// caller's deadline) and never that a wrapped key is bad; afterwards the same
// wrapper opens it.
func (h *WrapperHarness) outage(t *testing.T) {
	b := h.open(t)
	w := h.wrapper(t, b, h.Key)
	wrapped, err := wrapAndUnwrap(t.Context(), w, dataKey(32), nil)
	if err != nil {
		t.Fatal(err)
	}
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
		_, err := w.Unwrap(ctx, wrapped, nil)
		unavailable("Unwrap while down", err)
		_, err = w.Wrap(ctx, dataKey(32), nil)
		unavailable("Wrap while down", err)
		_, err = openWrapper(ctx, b, h.Key)
		unavailable("OpenWrapper while down", err)
	})
	up()
	h.recovers(t, b, w, wrapped)
	h.wrapper(t, b, h.Key)
	(&Harness{Open: h.Open, Patience: h.Patience}).settles(t)
}

// recovers fails unless w opens wrapped, and wraps, within the harness's
// patience.
func (h *WrapperHarness) recovers(t *testing.T, b kms.Backend, w kms.Wrapper, wrapped []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), h.Patience)
	defer cancel()
	for {
		_, err := w.Unwrap(ctx, wrapped, nil)
		if err == nil {
			_, err = wrapAndUnwrap(ctx, w, dataKey(32), nil)
		}
		if err == nil {
			err = b.Check(ctx)
		}
		if err == nil {
			return
		}
		if errors.Is(err, kms.ErrUnwrap) {
			t.Fatalf("after the outage a good wrapped key is called bad: %v", err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after the outage, within %v: %v", h.Patience, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// prompt is that of Harness.
func (h *WrapperHarness) prompt(t *testing.T, what string, f func()) {
	t.Helper()
	(&Harness{Patience: h.Patience}).prompt(t, what, f)
}
