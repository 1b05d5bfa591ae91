package limit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// onClock runs a test on a clock of its own.
func onClock(t *testing.T, cfg Config, test func(t *testing.T, l *Limits)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		test(t, l)
	})
}

// fetchOf counts a fetch that ends at once.
func (l *Limits) fetchOf(t *testing.T, caller, uri string) error {
	done, err := l.FirstFetch(t.Context(), caller, uri)
	if err == nil {
		done()
	}
	return err
}

// often returns how many times in a row f goes well, and the error after that.
func often(f func() error) (n int, err error) {
	for n < 100_000 {
		if err = f(); err != nil {
			break
		}
		n++
	}
	return n, err
}

// wantExceeded returns the pause of an *ExceededError.
func wantExceeded(t *testing.T, err error) time.Duration {
	t.Helper()
	var e *ExceededError
	if !errors.Is(err, ErrExceeded) || !errors.As(err, &e) {
		t.Fatalf("got %v, want an ExceededError", err)
	}
	if e.RetryAfter < time.Second {
		t.Errorf("to be tried again after %v, want a second at least", e.RetryAfter)
	}
	return e.RetryAfter
}

func TestDefaultsAreThoseOfTheDesign(t *testing.T) {
	onClock(t, Config{}, func(t *testing.T, l *Limits) {
		for _, limit := range []struct {
			what              string
			atOnce, perSecond int
			one               func() error
		}{
			{"registrations of a caller", 1000, 100, func() error { return l.Registration("a") }},
			{"fetches of a host", 50, 5, func() error { return l.fetchOf(t, "b", "https://one.example/jwks") }},
			{"fetches of a caller", 200, 20, fetchesOfManyHosts(t, l, "c")},
		} {
			n, err := often(limit.one)
			wantExceeded(t, err)
			if n != limit.atOnce {
				t.Errorf("%s: %d at once, want %d", limit.what, n, limit.atOnce)
			}
			for range 3 {
				time.Sleep(time.Second)
				if n, _ := often(limit.one); n != limit.perSecond {
					t.Errorf("%s: %d after a second, want %d", limit.what, n, limit.perSecond)
				}
			}
			time.Sleep(time.Hour)
			if n, _ := often(limit.one); n != limit.atOnce {
				t.Errorf("%s: %d after an hour, want %d and no more", limit.what, n, limit.atOnce)
			}
		}
	})
}

func fetchesOfManyHosts(t *testing.T, l *Limits, caller string) func() error {
	i := 0
	return func() error {
		i++
		return l.fetchOf(t, caller, fmt.Sprintf("https://%s%d.example/jwks", caller, i))
	}
}

func TestCallersDoNotShareABucket(t *testing.T) {
	onClock(t, Config{Registrations: 1, FirstFetches: 1}, func(t *testing.T, l *Limits) {
		for _, caller := range []string{"spiffe://example.com/a", "spiffe://example.com/b", "development"} {
			if n, _ := often(func() error { return l.Registration(caller) }); n != 10 {
				t.Errorf("%s: %d registrations, want 10", caller, n)
			}
			if n, _ := often(func() error { return l.fetchOf(t, caller, "https://"+caller[len(caller)-1:]+".example/") }); n != 10 {
				t.Errorf("%s: %d fetches, want 10", caller, n)
			}
		}
	})
}

func TestCallersShareAHost(t *testing.T) {
	onClock(t, Config{FirstFetchesPerHost: 1}, func(t *testing.T, l *Limits) {
		n := 0
		for caller := range 20 {
			if l.fetchOf(t, fmt.Sprint(caller), fmt.Sprintf("https://%d.victim.example/%d", caller, caller)) == nil {
				n++
			}
		}
		if n != 10 {
			t.Errorf("%d fetches of one domain's hosts, want 10", n)
		}
	})
}

// Whoever asks for a busy host has not fetched, and can go on with others.
func TestARefusedFetchCostsTheCallerNothing(t *testing.T) {
	onClock(t, Config{FirstFetches: 1, FirstFetchesPerHost: 0.1}, func(t *testing.T, l *Limits) {
		if err := l.fetchOf(t, "a", "https://busy.example/"); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if pause := wantExceeded(t, l.fetchOf(t, "a", "https://busy.example/")); pause != 10*time.Second {
				t.Fatalf("a pause of %v, want 10 s", pause)
			}
		}
		if n, _ := often(fetchesOfManyHosts(t, l, "a")); n != 9 {
			t.Errorf("%d more fetches, want 9", n)
		}
		// Nor does a caller that has used up its own take anything of a host's.
		for range 100 {
			wantExceeded(t, l.fetchOf(t, "a", "https://quiet.example/"))
		}
		if err := l.fetchOf(t, "b", "https://quiet.example/"); err != nil {
			t.Errorf("another caller: %v", err)
		}
	})
}

func TestThePauseLeadsToAToken(t *testing.T) {
	for _, rate := range []float64{0.01, 0.3, 0.7, 1, 3} {
		onClock(t, Config{Registrations: rate}, func(t *testing.T, l *Limits) {
			for range 100 {
				_, err := often(func() error { return l.Registration("a") })
				time.Sleep(wantExceeded(t, err))
				if err := l.Registration("a"); err != nil {
					t.Fatalf("%v a second: after the pause it was told: %v", rate, err)
				}
			}
		})
	}
}

func TestAnErrorSaysNothingOfOthers(t *testing.T) {
	onClock(t, Config{FirstFetchesPerHost: 0.1}, func(t *testing.T, l *Limits) {
		_, err := often(func() error { return l.fetchOf(t, "spiffe://example.com/a", "https://victim.example/") })
		err = errors.Join(err, l.fetchOf(t, "spiffe://example.com/b", "https://victim.example/"))
		if text := err.Error(); strings.Contains(text, "example") || !strings.Contains(text, "host") {
			t.Errorf("got %q", text)
		}
	})
}

func TestRatesAreChecked(t *testing.T) {
	for name, cfg := range map[string]Config{
		"registrations":          {Registrations: -1},
		"first_fetches":          {FirstFetches: math.NaN()},
		"first_fetches_per_host": {FirstFetchesPerHost: math.Inf(1)},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), name+":") {
			t.Errorf("%+v: got %v, want an error that names %s", cfg, err, name)
		}
	}
	if _, err := New(Config{Registrations: most, FirstFetches: 1e-6}); err != nil {
		t.Error(err)
	}
}

// A caller within its rate whose hosts hang has a quarter of the fetches under
// way, and others have the rest.
func TestHangingFetchesOfOneCallerLeaveRoomForOthers(t *testing.T) {
	onClock(t, Config{}, func(t *testing.T, l *Limits) {
		var mu sync.Mutex
		underWay, high := 0, 0
		hang := func(i int) error {
			done, err := l.FirstFetch(t.Context(), "attacker", fmt.Sprintf("https://%d-hangs.example/", i))
			if err != nil {
				return err
			}
			defer done()
			mu.Lock()
			underWay++
			high = max(high, underWay)
			mu.Unlock()
			time.Sleep(5 * time.Second)
			mu.Lock()
			underWay--
			mu.Unlock()
			return nil
		}
		began := time.Now()
		var all sync.WaitGroup
		errs := make(chan error, 100)
		for i := range cap(errs) {
			all.Go(func() { errs <- hang(i) })
		}
		synctest.Wait()
		if err := l.fetchOf(t, "other", "https://quick.example/"); err != nil || time.Since(began) != 0 {
			t.Errorf("another caller waited %v, and got %v", time.Since(began), err)
		}
		all.Wait()
		close(errs)
		refused := 0
		for err := range errs {
			if err != nil {
				wantExceeded(t, err)
				refused++
			}
		}
		// Those whose turn came as the first ones ended, at the end of their
		// patience, may have been lucky.
		if high != turnsEach || refused < 100-2*turnsEach || refused > 100-turnsEach {
			t.Errorf("%d under way at once and %d refused; want %d, and all but one or two rounds of these", high, refused, turnsEach)
		}
		if len(l.turns.callers) != 0 {
			t.Errorf("%d callers are still counted", len(l.turns.callers))
		}
	})
}

// Whoever gets no place has not fetched either: what it asked for is there for
// the others who share the target.
func TestAFetchWithoutAPlaceCostsNobodyAnything(t *testing.T) {
	onClock(t, Config{FirstFetches: 2, FirstFetchesPerHost: 0.1}, func(t *testing.T, l *Limits) {
		ends := make([]func(), turnsEach)
		for i := range ends {
			var err error
			if ends[i], err = l.FirstFetch(t.Context(), "a", fmt.Sprintf("https://%d-hangs.example/", i)); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		wantExceeded(t, l.fetchOf(t, "a", "https://shared.test/"))
		if waited := time.Since(began); waited != patience {
			t.Fatalf("refused after %v, want %v", waited, patience)
		}
		gone, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.FirstFetch(gone, "a", "https://shared.test/"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want the end of the context", err)
		}
		if err := l.fetchOf(t, "b", "https://shared.test/"); err != nil {
			t.Errorf("another caller: %v", err)
		}
		// What is over a limit is not made to wait for that.
		began = time.Now()
		wantExceeded(t, l.fetchOf(t, "a", "https://shared.test/"))
		if waited := time.Since(began); waited != 0 {
			t.Errorf("over the limit, and refused after %v only", waited)
		}
		for _, end := range ends {
			end()
		}
		want := 20 - turnsEach + 2*int((patience+time.Second)/time.Second)
		if n, _ := often(fetchesOfManyHosts(t, l, "a")); n != want {
			t.Errorf("%d more fetches of its own, want %d", n, want)
		}
	})
}

// Those who wait for a place are held against the limits when they have it.
func TestALimitThatIsReachedMeanwhileHolds(t *testing.T) {
	onClock(t, Config{FirstFetchesPerHost: 0.1}, func(t *testing.T, l *Limits) {
		ends := make([]func(), turnsEach)
		for i := range ends {
			var err error
			if ends[i], err = l.FirstFetch(t.Context(), "a", fmt.Sprintf("https://%d-hangs.example/", i)); err != nil {
				t.Fatal(err)
			}
		}
		errs := make(chan error, 1)
		go func() { errs <- l.fetchOf(t, "a", "https://shared.test/") }()
		synctest.Wait()
		if err := l.fetchOf(t, "b", "https://shared.test/"); err != nil {
			t.Fatalf("another caller: %v", err)
		}
		for _, end := range ends {
			end()
		}
		wantExceeded(t, <-errs)
		if len(l.turns.callers) != 0 {
			t.Errorf("%d callers are still counted", len(l.turns.callers))
		}
	})
}

// A fetch goes on when its caller leaves, so that leaving must not make room for
// the next.
func TestLeavingDoesNotFreeThePlaceOfAFetch(t *testing.T) {
	onClock(t, Config{}, func(t *testing.T, l *Limits) {
		for i := range turnsEach {
			ctx, leave := context.WithCancel(t.Context())
			done, err := l.FirstFetch(ctx, "a", fmt.Sprintf("https://%d.example/", i))
			if err != nil {
				t.Fatal(err)
			}
			leave()
			done()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		if _, err := l.FirstFetch(ctx, "a", "https://one.example/"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want that no place is free for 4 s", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(l.turns.callers) != 0 {
			t.Errorf("%d callers are still counted after 5 s", len(l.turns.callers))
		}
		if err := l.fetchOf(t, "a", "https://two.example/"); err != nil {
			t.Error(err)
		}
	})
}
