package keyring

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// newPair is a world whose key a lies at hsm:a and, as a copy, at two:a.
func newPair(t *testing.T) *world {
	w := newWorld(t)
	w.two.keys["a"] = w.hsm.keys["a"]
	return w
}

// pair is how the key of newPair is listed.
func pair() Key { return listed(kms.ES256, "a", "two:a") }

// payload is something to sign that is no probe.
func payload(t testing.TB) *signer.Payload {
	t.Helper()
	p, err := signer.Prepare(signer.Request{
		Kind: signer.UserInfo, Issuer: signer.Issuer{URL: "https://login.example.com"}, ClientID: "c", Claims: []byte(`{"sub":"s"}`),
	}, kms.ES256, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sign signs a token with a limit of time, 0 for none.
func (w *world) sign(t *testing.T, limit time.Duration) error {
	t.Helper()
	return w.signOne(t.Context(), payload(t), limit)
}

func (w *world) signOne(ctx context.Context, p *signer.Payload, limit time.Duration) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	key, err := w.Key("main", kms.ES256)
	if err != nil {
		return err
	}
	_, err = signer.Sign(ctx, key, p)
	return err
}

// tokens is how many tokens the backend has signed.
func (h *hsm) tokens() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.messages {
		if !bytes.HasPrefix(m, []byte(kms.ProbePrefix)) {
			n++
		}
	}
	return n
}

// wantSigner signs a token and checks which backend does it.
func (w *world) wantSigner(t *testing.T, want *hsm) {
	t.Helper()
	before := want.tokens()
	if err := w.sign(t, 5*time.Second); err != nil {
		t.Errorf("Sign = %v", err)
	}
	if want.tokens() != before+1 {
		name := "hsm"
		if want == w.two {
			name = "two"
		}
		t.Errorf("%s did not sign", name)
	}
}

// wantLog checks how many lines of the log hold a text.
func (w *world) wantLog(t *testing.T, want int, words ...string) {
	t.Helper()
	if n := w.log.count(words...); n != want {
		t.Errorf("%d log lines have %q, want %d", n, words, want)
	}
}

func TestASickLocationIsPassedOverWithinTheCall(t *testing.T) {
	tests := []struct {
		name    string
		breakIt func(*hsm)
		level   string
	}{
		{"down", func(h *hsm) { h.fail = kms.ErrUnavailable }, "WARN"},
		{"key gone", func(h *hsm) { h.fail = kms.ErrKeyNotFound }, "WARN"},
		{"key disabled", func(h *hsm) { h.fail = kms.ErrKeyDisabled }, "WARN"},
		{"another key", func(h *hsm) { h.fail = kms.ErrKeyMismatch }, "ERROR"},
		{"hanging", func(h *hsm) { h.hang = true }, "WARN"},
		{"its own time limit", func(h *hsm) { h.fail = context.DeadlineExceeded }, "WARN"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPair(t)
				w.start(t, pair())
				wait(3 * time.Second) // well after the opening
				for range 3 {
					w.wantSigner(t, w.hsm)
				}
				w.hsm.set(tt.breakIt)
				began := time.Now()
				w.wantSigner(t, w.two)
				if took := time.Since(began); took > maxShare {
					t.Errorf("the call took %v, want no more than the share of one place", took)
				}
				began = time.Now()
				for range 10 {
					w.wantSigner(t, w.two)
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("further calls took %v: they ask a place that is known to be sick", took)
				}
				synctest.Wait()
				w.wantHealth(t, true, "hsm:a")
				wait(time.Minute)
				w.wantHealth(t, true, "hsm:a")
				w.wantLog(t, 1, "level="+tt.level, "signing key failed over", "from=hsm:a", "to=two:a")
				w.wantLog(t, 0, "failed its probe")

				w.hsm.set(func(h *hsm) { h.fail, h.hang = nil, false })
				within := 2 * time.Second
				if tt.name == "another key" {
					within = 37 * time.Second // it is no use to hurry
				}
				wait(within)
				w.wantSigner(t, w.hsm)
				w.wantHealth(t, true)
				w.wantLog(t, 1, "signing key back at its first location", "location=hsm:a")
				w.wantLog(t, 1, "signing key failed over")
			})
		})
	}
}

func TestWhatAnotherLocationWouldNotDoBetterIsNotTriedThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())
		wait(time.Second)
		request := errors.New("the message is too long for this key")
		w.hsm.set(func(h *hsm) { h.fail = request })
		if err := w.sign(t, time.Second); !errors.Is(err, request) {
			t.Errorf("Sign = %v, want what the first place said", err)
		}
		w.hsm.set(func(h *hsm) { h.fail = nil })
		w.wantSigner(t, w.hsm)
		if n := w.two.tokens(); n != 0 {
			t.Errorf("the second place signed %d tokens", n)
		}
		w.wantLog(t, 0, "failed over")
	})
}

func TestAThrottledLocationIsBusyAndNotSick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())
		w.hsm.set(func(h *hsm) { h.fail = kms.ErrThrottled })
		w.wantSigner(t, w.two)
		wait(time.Minute)
		w.wantSigner(t, w.two)
		w.wantHealth(t, true)
		w.two.set(func(h *hsm) { h.fail = kms.ErrThrottled })
		if err := w.sign(t, time.Second); !errors.Is(err, kms.ErrThrottled) || errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("Sign = %v, want ErrThrottled", err)
		}
		w.hsm.set(func(h *hsm) { h.fail = nil })
		w.wantSigner(t, w.hsm)
		w.wantLog(t, 0, "failed over")
	})
}

func TestASilentLocationCostsItsShareOfTheDeadline(t *testing.T) {
	tests := []struct {
		limit, took time.Duration
		sick        bool
	}{
		{0, 2 * time.Second, true},
		{30 * time.Second, 2 * time.Second, true},
		{time.Second, 500 * time.Millisecond, true},
		{500 * time.Millisecond, 250 * time.Millisecond, true},
		// So short a silence says nothing of a place.
		{100 * time.Millisecond, 50 * time.Millisecond, false},
	}
	for _, tt := range tests {
		t.Run(tt.limit.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPair(t)
				w.start(t, pair())
				wait(3 * time.Second)
				w.hsm.set(func(h *hsm) { h.hang = true })
				began := time.Now()
				if err := w.sign(t, tt.limit); err != nil {
					t.Errorf("Sign = %v", err)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("Sign took %v, want %v", took, tt.took)
				}
				want := 0
				if tt.sick {
					want = 1
				}
				w.wantLog(t, want, "failed over")
				// It was looked at, though, and that needs no callers.
				wait(6 * time.Second)
				w.wantLog(t, 1, "failed over")
				w.wantSigner(t, w.two)
			})
		})
	}
}

func TestACallerThatGoesMakesNoLocationSick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())
		wait(time.Second)
		w.hsm.set(func(h *hsm) { h.hang = true })
		key, err := w.Key("main", kms.ES256)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := signer.Sign(ctx, key, payload(t))
			done <- err
		}()
		wait(300 * time.Millisecond)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Sign = %v, want the caller's own end", err)
		}
		w.hsm.set(func(h *hsm) { h.hang = false })
		w.wantSigner(t, w.hsm)
		w.wantLog(t, 0, "failed over")
		if n := w.two.tokens(); n != 0 {
			t.Errorf("the second place signed %d tokens for nobody", n)
		}
	})
}

func TestIfAllAreSickAllAreAskedAndTheAnswerIsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())
		wait(3 * time.Second)
		both := func(change func(*hsm)) { w.hsm.set(change); w.two.set(change) }
		both(func(h *hsm) { h.fail = kms.ErrUnavailable })
		began := time.Now()
		for range 20 {
			err := w.sign(t, 5*time.Second)
			if !errors.Is(err, kms.ErrUnavailable) || !strings.Contains(err.Error(), "hsm:a") || !strings.Contains(err.Error(), "two:a") {
				t.Errorf("Sign = %v, want what both answered", err)
			}
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("places that fail at once took %v", took)
		}
		wait(time.Second)
		w.wantHealth(t, false, "hsm:a", "two:a")
		w.wantLog(t, 1, "failed over")
		w.wantLog(t, 1, "failed its probe")

		// The second comes back: the very next call gets it, and the first
		// takes over when it is well.
		w.two.set(func(h *hsm) { h.fail = nil })
		w.wantSigner(t, w.two)
		wait(2 * time.Second)
		w.wantHealth(t, true, "hsm:a")
		w.wantLog(t, 1, "signing key works again", "location=two:a")
		w.hsm.set(func(h *hsm) { h.fail = nil })
		wait(2 * time.Second)
		w.wantSigner(t, w.hsm)
		w.wantHealth(t, true)
		w.wantLog(t, 1, "back at its first location")
		w.wantLog(t, 1, "failed over")
		w.wantLog(t, 1, "signing key works again")
	})
}

func TestSilentLocationsHoldUpOneCallEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())
		wait(3 * time.Second)
		w.hsm.set(func(h *hsm) { h.hang = true })
		w.two.set(func(h *hsm) { h.hang = true })
		_ = w.sign(t, 10*time.Second)
		wait(10 * time.Second)
		w.wantHealth(t, false, "hsm:a", "two:a", "no answer in time")

		var fast atomic.Int32
		var calls sync.WaitGroup
		for range 16 {
			calls.Go(func() {
				began := time.Now()
				if err := w.sign(t, 5*time.Second); err == nil {
					t.Error("a hanging place signed")
				} else if time.Since(began) == 0 {
					fast.Add(1)
					if !errors.Is(err, kms.ErrUnavailable) {
						t.Errorf("Sign = %v, want ErrUnavailable", err)
					}
				}
			})
		}
		calls.Wait()
		if n := fast.Load(); n < 14 {
			t.Errorf("%d of 16 calls were answered at once, want all but one for each place", n)
		}
		w.hsm.set(func(h *hsm) { h.hang = false })
		wait(4 * time.Second) // a probe that still hangs, and the next
		w.wantSigner(t, w.hsm)
		w.wantHealth(t, true, "two:a")
	})
}

// An overloaded place is slow; with nobody to stand in for it, that is no
// reason to turn callers away.
func TestTheLastHealthyLocationMayBeSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, _ []byte) ([]byte, error) {
			select {
			case <-time.After(3 * time.Second):
				return []byte("signature"), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		down := func(context.Context, []byte) ([]byte, error) { return nil, kms.ErrUnavailable }
		f := newSites(t, slow, down)
		f.sites[1].fall(f.plan.Load(), kms.ErrUnavailable, true)
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if _, err := f.Sign(ctx, nil); err != nil {
				t.Errorf("Sign = %v", err)
			}
			cancel()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := f.Sign(ctx, nil); err == nil {
			t.Error("it was waited for with more than half of the time")
		}
		if _, _, illness := f.sites[0].sick(); illness != nil {
			t.Errorf("the last healthy place counts as sick: %v", illness)
		}
		if !f.sites[0].suspect.Load() {
			t.Error("nobody looks at the slow place")
		}
	})
}

// newSites is a failover over places of the given behavior.
func newSites(t testing.TB, signs ...func(context.Context, []byte) ([]byte, error)) *failover {
	f := newFailover(kms.ES256, nil, (&logBook{}).logger(), func() {})
	sites := make([]*site, len(signs))
	for n, sign := range signs {
		sites[n] = &site{of: f, location: Location{"hsm", fmt.Sprint(n)}, key: &stub{sign: sign}}
	}
	f.arrange(sites)
	return f
}

// stub is a key that does as it is told.
type stub struct {
	sign       func(context.Context, []byte) ([]byte, error)
	distrusted int
}

func (*stub) Algorithm() kms.Algorithm { return kms.ES256 }
func (*stub) Public() crypto.PublicKey { return nil }
func (s *stub) Distrust()              { s.distrusted++ }
func (s *stub) Sign(ctx context.Context, message []byte) ([]byte, error) {
	return s.sign(ctx, message)
}

func TestLocationsAreAskedInListedOrder(t *testing.T) {
	var asked []int
	answers := make([]error, 4)
	var signs []func(context.Context, []byte) ([]byte, error)
	for n := range answers {
		signs = append(signs, func(context.Context, []byte) ([]byte, error) {
			asked = append(asked, n)
			return nil, answers[n]
		})
	}
	f := newSites(t, signs...)
	sign := func(want ...int) {
		t.Helper()
		asked = nil
		_, _ = f.Sign(t.Context(), nil)
		if !slices.Equal(asked, want) {
			t.Errorf("asked %v, want %v", asked, want)
		}
	}
	sign(0)
	answers[0] = kms.ErrUnavailable
	sign(0, 1)
	sign(1)
	answers[1], answers[2] = kms.ErrKeyDisabled, kms.ErrThrottled
	sign(1, 2, 3)
	sign(2, 3)
	answers[3] = kms.ErrUnavailable
	sign(2, 3, 0, 1) // the sick ones as a last resort
	sign(2, 0, 1, 3)
	f.sites[1].fall(f.plan.Load(), kms.ErrUnavailable, true)
	sign(2, 0, 3, 1) // last, the one that did not even answer
	sign(2, 0, 1, 3) // now it has
	answers[2] = errors.New("nothing another place would do better")
	sign(2)
	for n := range answers {
		answers[n] = nil
		f.sites[n].heal(false)
	}
	sign(0)
}

func TestACallThatComesBackLateSaysNothingNew(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 1)
	f := newSites(t,
		func(context.Context, []byte) ([]byte, error) {
			entered <- struct{}{}
			<-release
			return nil, kms.ErrUnavailable
		},
		func(context.Context, []byte) ([]byte, error) { return nil, nil })
	done := make(chan error)
	go func() {
		_, err := f.Sign(t.Context(), nil)
		done <- err
	}()
	<-entered
	f.sites[0].fall(f.plan.Load(), kms.ErrUnavailable, false) // another call was faster
	f.sites[0].heal(false)                                    // and it has passed its probe since
	close(release)
	if err := <-done; err != nil {
		t.Errorf("Sign = %v", err)
	}
	if _, _, illness := f.sites[0].sick(); illness != nil {
		t.Errorf("the place is sick again by old news: %v", illness)
	}
}

func TestAWrongSignatureIsHeldAgainstTheLocationThatMadeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())
		w.hsm.set(func(h *hsm) { h.spoil = true })
		if err := w.sign(t, time.Second); !errors.Is(err, signer.ErrFault) {
			t.Errorf("Sign = %v, want ErrFault", err)
		}
		distrusted := func(h *hsm) int { return h.tally(func(h *hsm) *int { return &h.distrusted }) }
		if distrusted(w.hsm) != 1 || distrusted(w.two) != 0 {
			t.Errorf("distrusted: %d and %d times, want only the first, once", distrusted(w.hsm), distrusted(w.two))
		}
		for range 5 {
			w.wantSigner(t, w.two)
		}
		wait(time.Minute)
		w.wantHealth(t, true, "hsm:a", signer.ErrFault.Error())
		w.wantLog(t, 1, "level=ERROR", "signing key failed over")
		if distrusted(w.two) != 0 {
			t.Error("the place that signs well is distrusted")
		}
		w.hsm.set(func(h *hsm) { h.spoil = false })
		wait(2 * time.Second)
		w.wantSigner(t, w.hsm)
	})
}

// With nobody verifying, what signs wrongly must not even be a last resort.
func TestALocationThatSignsWronglyUnverifiedIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		key := pair()
		key.SkipVerify = true
		w.start(t, key)
		w.hsm.set(func(h *hsm) { h.spoil = true })
		wait(11 * time.Second)
		tokens := w.hsm.tokens()
		w.wantSigner(t, w.two)
		w.wantHealth(t, true, "hsm:a", signer.ErrFault.Error())
		w.two.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
		if err := w.sign(t, time.Second); !errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("Sign = %v, want ErrUnavailable", err)
		}
		if w.hsm.tokens() != tokens {
			t.Error("the place that signs wrongly was asked")
		}
		w.hsm.set(func(h *hsm) { h.spoil = false })
		wait(2 * time.Second)
		w.wantSigner(t, w.hsm)
	})
}

func TestDistrustWithoutAMakerGoesToAll(t *testing.T) {
	one := func(context.Context, []byte) ([]byte, error) { return nil, nil }
	f := newSites(t, one, one)
	f.Distrust()
	for n, s := range f.sites {
		if got := s.key.(*stub).distrusted; got != 1 {
			t.Errorf("place %d was distrusted %d times, want once", n, got)
		}
	}
}

func TestALocationThatComesAndGoesIsNotFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())
		// Every token fails there and every probe passes.
		p := payload(t)
		stop := make(chan struct{})
		var calls sync.WaitGroup
		calls.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(300 * time.Millisecond):
				}
				w.hsm.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
				err := w.signOne(t.Context(), p, time.Second)
				w.hsm.set(func(h *hsm) { h.fail = nil })
				if err != nil {
					t.Errorf("Sign = %v", err)
				}
			}
		})
		wait(5 * time.Minute)
		close(stop)
		calls.Wait()
		if n := w.log.count("failed over"); n < 2 || n > 20 {
			t.Errorf("%d changes to the second location in 5 minutes, want some, and ever fewer", n)
		}
		// Well for good, it is the first again.
		wait((maxNeeds + 2) * time.Second)
		w.wantSigner(t, w.hsm)
	})
}

func TestALocationWithAnotherKeyIsNeverUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())()
		original := w.hsm.keys["a"]
		w.hsm.keys["a"] = w.hsm.keys["b"]
		tokens := w.hsm.tokens()
		w.start(t, pair())
		wait(10 * time.Minute)
		w.wantSigner(t, w.two)
		w.wantHealth(t, true, "hsm:a", kms.ErrKeyMismatch.Error(), w.hsm.kid(t, "b"))
		w.wantLog(t, 1, "level=ERROR", "signing key refused", "location=hsm:a")
		list, err := w.List("main")
		if err != nil || len(list) != 1 || len(list[0].Places) != 2 {
			t.Fatalf("List = %+v, %v, want one key with two places", list, err)
		}
		first, second := list[0].Places[0], list[0].Places[1]
		if first.Location != at("a") || first.Open || !strings.Contains(first.Problem, kms.ErrKeyMismatch.Error()) {
			t.Errorf("first place is %+v, want it not open for its key", first)
		}
		if second.Location != at("two:a") || !second.Open || second.Problem != "" {
			t.Errorf("second place is %+v, want it open and well", second)
		}
		if !list[0].Open || list[0].Problem != "" {
			t.Errorf("the key has a problem, though it signs: %+v", list[0])
		}
		w.two.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
		if err := w.sign(t, time.Second); !errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("Sign = %v, want ErrUnavailable", err)
		}
		if w.hsm.tokens() != tokens {
			t.Error("the wrong key has signed tokens")
		}
		w.hsm.set(func(h *hsm) { h.keys["a"] = original })
		wait(37 * time.Second)
		w.wantSigner(t, w.hsm)
		w.wantHealth(t, true, "two:a")
	})
}

// A key whose first location is down at the start is open all the same, and
// goes to the first when that comes.
func TestAFirstLocationThatComesLateTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())()
		w.hsm.set(func(h *hsm) { h.hang = true })
		w.start(t, pair())
		w.wantSigner(t, w.two) // at once, though the first does not answer
		wait(time.Minute)
		w.hsm.set(func(h *hsm) { h.hang = false })
		wait(7 * time.Second) // an opening that hangs, and the next
		w.wantSigner(t, w.hsm)
		w.wantHealth(t, true)
		w.wantLog(t, 1, "back at its first location")
		w.wantLog(t, 1, "signing key cannot be opened", "location=hsm:a")
	})
}

func TestALocationThatIsNotListedAnyMoreIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())()
		cfg := w.config(listed(kms.ES256, "two:a"))
		delete(cfg.Backends, "hsm") // it has been taken out of service
		w.startConfig(t, cfg)
		w.wantSigner(t, w.two)
		wait(time.Minute)
		w.wantHealth(t, true)
	})
}

func TestTroubleWithSigningShowsSoonAndGoesSoon(t *testing.T) {
	for _, err := range []error{kms.ErrUnavailable, kms.ErrKeyNotFound, kms.ErrKeyDisabled} {
		t.Run(err.Error(), func(t *testing.T) {
			for range 4 { // waits differ by chance
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					w.start(t, listed(kms.ES256, "a"))
					wait(2500 * time.Millisecond)
					w.hsm.set(func(h *hsm) { h.fail = err })
					if got := w.sign(t, time.Second); !errors.Is(got, err) {
						t.Fatalf("Sign = %v, want %v", got, err)
					}
					wait(time.Second)
					w.wantHealth(t, false, "hsm:a", err.Error())
					w.wantLog(t, 1, "signing key failed its probe")
					wait(5 * time.Minute)
					w.hsm.set(func(h *hsm) { h.fail = nil })
					wait(2 * time.Second)
					w.wantHealth(t, true)
					w.wantSigner(t, w.hsm)
				})
			}
		})
	}
}

func TestABackendIsAskedToComeUpBeforeItsKeyIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"))
		w.hsm.set(func(h *hsm) { h.fail, h.asleep = kms.ErrUnavailable, true })
		wait(time.Minute)
		w.wantHealth(t, false, "hsm:a")
		w.hsm.set(func(h *hsm) { h.fail = nil })
		wait(2 * time.Second)
		w.wantHealth(t, true)
	})
}

// Waiting for an answer that never comes must not hide that the place is well.
func TestALocationThatWasSilentIsWellAgainSoon(t *testing.T) {
	for phase := range 8 {
		synctest.Test(t, func(t *testing.T) {
			w := newPair(t)
			w.start(t, pair())
			wait(3 * time.Second)
			w.hsm.set(func(h *hsm) { h.hang = true })
			wait(time.Minute + time.Duration(phase)*700*time.Millisecond)
			w.wantHealth(t, true, "hsm:a", "no answer in time")
			w.hsm.set(func(h *hsm) { h.hang = false })
			wait(sickLimit + checkMost*6/5)
			w.wantHealth(t, true)
			w.wantSigner(t, w.hsm)
		})
	}
}

func TestAChangeIsOneLineInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPair(t)
		w.start(t, pair())
		w.wantLog(t, 1, "signing key open", "location=hsm:a")
		w.wantLog(t, 1, "signing key open at one more of its locations", "location=two:a")
		lines := w.log.count("")
		want := func(level string, words ...string) {
			t.Helper()
			wait(time.Minute)
			w.wantLog(t, 1, append(words, "level="+level)...)
			if n := w.log.count(""); n != lines+1 {
				t.Errorf("%d new log lines, want one with %q", n-lines, words)
			}
			lines = w.log.count("")
		}
		w.two.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
		want("WARN", "does not sign at one of its locations", "location=two:a", "in_use=hsm:a")
		w.two.set(func(h *hsm) { h.fail = nil })
		want("INFO", "signs again at one of its locations", "location=two:a")
		w.hsm.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
		want("WARN", "failed over", "from=hsm:a", "to=two:a")
		w.two.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
		want("WARN", "failed its probe", "hsm:a", "two:a")
		w.hsm.set(func(h *hsm) { h.fail = nil })
		want("INFO", "works again", "location=hsm:a")
	})
}

func TestMuchTroubleIsNotManyProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		// A backend that signs probes and nothing else.
		w.start(t, listed(kms.ES256, "a"))
		for range 600 {
			w.hsm.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
			_ = w.sign(t, time.Second)
			w.hsm.set(func(h *hsm) { h.fail = nil })
			wait(100 * time.Millisecond)
		}
		w.hsm.set(func(h *hsm) {
			if n := len(h.messages); n > 65 {
				t.Errorf("%d probes in a minute, want no more than one a second", n)
			}
		})
	})
}

func TestCallersThatGoCauseNoProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"))
		wait(time.Second)
		w.hsm.set(func(h *hsm) { h.hang = true })
		key, err := w.Key("main", kms.ES256)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := signer.Sign(ctx, key, payload(t)); !errors.Is(err, context.Canceled) {
			t.Errorf("Sign = %v", err)
		}
		w.hsm.set(func(h *hsm) { h.hang = false })
		probes := len(w.hsm.messages)
		wait(5 * time.Second)
		w.hsm.set(func(h *hsm) {
			if len(h.messages) != probes {
				t.Error("the place was probed because a caller went")
			}
		})
	})
}

func TestWhoIsLookedAtAfterAnError(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		err  error
		want bool
	}{
		{"down", t.Context(), kms.ErrUnavailable, true},
		{"busy", t.Context(), kms.ErrThrottled, false},
		{"the request's fault", t.Context(), errors.New("too long"), false},
		{"a caller out of time", late, context.DeadlineExceeded, true},
		{"a caller that has gone", canceled, context.Canceled, false},
		{"a caller that has gone, in other words", canceled, kms.ErrUnavailable, false},
	} {
		answer := func(context.Context, []byte) ([]byte, error) { return nil, tt.err }
		for _, f := range []*failover{newSites(t, answer), newSites(t, answer, answer)} {
			if _, err := f.Sign(tt.ctx, nil); !errors.Is(err, tt.err) {
				t.Errorf("%s: Sign = %v, want %v", tt.name, err, tt.err)
			}
			if got := f.sites[0].suspect.Load(); got != tt.want {
				t.Errorf("%s: of %d places the first is a suspect: %v, want %v", tt.name, len(f.sites), got, tt.want)
			}
		}
	}
}

func TestOneLocationCostsNothing(t *testing.T) {
	signature := make([]byte, 64)
	f := newSites(t, func(context.Context, []byte) ([]byte, error) { return signature, nil })
	if n := testing.AllocsPerRun(1000, func() {
		if _, _, err := f.SignBy(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a signature at the only place allocates %v times", n)
	}
}

// BenchmarkFailover compares a signature of a software key with the same
// through a failover over one and two healthy places.
func BenchmarkFailover(b *testing.B) {
	h := newHSM(b, map[string]kms.Algorithm{"a": kms.ES256})
	raw, err := h.OpenKey(b.Context(), "a", kms.ES256)
	if err != nil {
		b.Fatal(err)
	}
	sign := func(ctx context.Context, m []byte) ([]byte, error) {
		sig, err := raw.Sign(ctx, m)
		h.set(func(h *hsm) { h.messages = nil })
		return sig, err
	}
	nothing := func(context.Context, []byte) ([]byte, error) { return nil, nil }
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	for _, bb := range []struct {
		name string
		key  interface {
			Sign(context.Context, []byte) ([]byte, error)
		}
	}{
		{"ES256/direct", &stub{sign: sign}},
		{"ES256/one place", newSites(b, sign)},
		{"ES256/two places", newSites(b, sign, sign)},
		{"nothing/direct", &stub{sign: nothing}},
		{"nothing/one place", newSites(b, nothing)},
		{"nothing/two places", newSites(b, nothing, nothing)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			message := []byte("a signing input")
			for b.Loop() {
				if _, err := bb.key.Sign(ctx, message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Whatever took a key away, it signs soon after it is back.
func TestAKeySignsSoonAfterItIsRightAgain(t *testing.T) {
	for _, wrong := range []error{kms.ErrUnavailable, kms.ErrKeyNotFound, kms.ErrKeyDisabled, kms.ErrKeyMismatch} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.start(t, listed(kms.ES256, "a"))
			w.hsm.set(func(h *hsm) { h.failRef["a"] = wrong })
			wait(10 * time.Minute)
			w.hsm.set(func(h *hsm) { delete(h.failRef, "a") })
			wait(2 * time.Second)
			w.wantKey(t, kms.ES256, "a")
			w.wantHealth(t, true)
		})
	}
}

func TestBackendIsThatOfThePlaceThatIsAskedFirst(t *testing.T) {
	ctx := t.Context()
	broken := func(context.Context, []byte) ([]byte, error) { return nil, kms.ErrUnavailable }
	works := func(context.Context, []byte) ([]byte, error) { return []byte("signed"), nil }
	f := newSites(t, broken, works)
	f.sites[0].location.Backend, f.sites[1].location.Backend = "first", "second"
	if got := f.Backend(); got != "first" {
		t.Errorf("before a call: %q", got)
	}
	if _, err := f.Sign(ctx, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := f.Backend(); got != "second" {
		t.Errorf("with the first place sick: %q", got)
	}
	if got := newFailover(kms.ES256, nil, (&logBook{}).logger(), func() {}).Backend(); got != "" {
		t.Errorf("open nowhere: %q", got)
	}
}
