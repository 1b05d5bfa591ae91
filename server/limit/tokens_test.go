package limit

import (
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// token counts a token that is done at once.
func (l *Limits) token(caller string) error {
	done, err := l.Token(caller)
	if err == nil {
		done()
	}
	return err
}

func TestTokensHaveNoLimitUnlessConfigured(t *testing.T) {
	onClock(t, Config{Callers: map[string]Caller{"b": {Registrations: 5}}}, func(t *testing.T, l *Limits) {
		for _, caller := range []string{"a", "b"} {
			for range 10_000 {
				if _, err := l.Token(caller); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(l.underWay) != 0 {
			t.Errorf("%d callers are counted who have no limit", len(l.underWay))
		}
	})
}

func TestTokensOfACallerHaveARate(t *testing.T) {
	onClock(t, Config{Tokens: 50, Callers: map[string]Caller{"slow": {Tokens: new(0.5)}, "free": {Tokens: new(0.0)}}}, func(t *testing.T, l *Limits) {
		for caller, want := range map[string]struct{ atOnce, inTwo int }{"a": {500, 100}, "b": {500, 100}, "slow": {5, 1}} {
			n, err := often(func() error { return l.token(caller) })
			pause := wantExceeded(t, err)
			if n != want.atOnce || !strings.Contains(err.Error(), "faster") {
				t.Errorf("%s: %d at once, want %d: %v", caller, n, want.atOnce, err)
			}
			if caller == "slow" && pause != 2*time.Second {
				t.Errorf("a pause of %v, want 2 s", pause)
			}
		}
		time.Sleep(2 * time.Second)
		for caller, want := range map[string]int{"a": 100, "slow": 1} {
			if n, _ := often(func() error { return l.token(caller) }); n != want {
				t.Errorf("%s: %d after 2 s, want %d", caller, n, want)
			}
		}
		if n, err := often(func() error { return l.token("free") }); err != nil {
			t.Errorf("the caller without a limit: %d, %v", n, err)
		}
	})
}

func TestTokensOfACallerUnderWayAreBounded(t *testing.T) {
	onClock(t, Config{InFlight: 3, Callers: map[string]Caller{"more": {InFlight: new(5)}, "free": {InFlight: new(0)}}}, func(t *testing.T, l *Limits) {
		for caller, want := range map[string]int{"a": 3, "b": 3, "more": 5} {
			var ends []func()
			n, err := often(func() error {
				done, err := l.Token(caller)
				if err == nil {
					ends = append(ends, done)
				}
				return err
			})
			wantExceeded(t, err)
			if n != want || !strings.Contains(err.Error(), "under way") {
				t.Errorf("%s: %d at once, want %d: %v", caller, n, want, err)
			}
			for i, end := range ends {
				end()
				if err := l.token(caller); err != nil {
					t.Errorf("%s: after %d have ended: %v", caller, i+1, err)
				}
			}
		}
		if n, err := often(func() error { _, err := l.Token("free"); return err }); err != nil {
			t.Errorf("the caller without a limit: %d, %v", n, err)
		}
	})
}

// A token that finds too many under way is not counted against the rate.
func TestWhatIsRefusedIsNotCounted(t *testing.T) {
	onClock(t, Config{Tokens: 1, InFlight: 1}, func(t *testing.T, l *Limits) {
		done, err := l.Token("a")
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			wantExceeded(t, l.token("a"))
		}
		done()
		if n, _ := often(func() error { return l.token("a") }); n != 9 {
			t.Errorf("%d more, want 9", n)
		}
		if got, rate := l.Exceeded("in_flight"), l.Exceeded("tokens"); got != 100 || rate != 1 {
			t.Errorf("counted %d and %d, want 100 and 1", got, rate)
		}
	})
}

func TestACallerHasLimitsOfItsOwn(t *testing.T) {
	onClock(t, Config{Registrations: 1, FirstFetches: 1, Callers: map[string]Caller{"big": {Registrations: 4, FirstFetches: 3}, "other": {Tokens: new(1.0)}}}, func(t *testing.T, l *Limits) {
		for caller, want := range map[string][2]int{"big": {40, 30}, "other": {10, 10}, "a": {10, 10}} {
			registrations, _ := often(func() error { return l.Registration(caller) })
			fetches, _ := often(fetchesOfManyHosts(t, l, caller))
			if got := [2]int{registrations, fetches}; got != want {
				t.Errorf("%s: %v registrations and fetches, want %v", caller, got, want)
			}
		}
	})
}

// New limits are in force at once, and what has been used up stays so.
func TestLimitsChangeWhileTheyAreUsed(t *testing.T) {
	onClock(t, Config{Tokens: 10, InFlight: 2, Registrations: 1, Callers: map[string]Caller{"b": {Tokens: new(20.0)}}}, func(t *testing.T, l *Limits) {
		var ends []func()
		for range 2 {
			done, err := l.Token("a")
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, done)
		}
		wantExceeded(t, l.token("a"))
		for range 48 {
			ends[0]()
			done, err := l.Token("a")
			if err != nil {
				t.Fatal(err)
			}
			ends[0] = done
		}
		// Half of a's bucket is gone, all of b's, and all registrations of c.
		if n, _ := often(func() error { return l.token("b") }); n != 200 {
			t.Fatalf("%d tokens of b, want 200", n)
		}
		if n, _ := often(func() error { return l.Registration("c") }); n != 10 {
			t.Fatalf("%d registrations, want 10", n)
		}

		change := func(cfg Config) {
			t.Helper()
			if err := l.Change(cfg); err != nil {
				t.Fatal(err)
			}
		}
		change(Config{Tokens: 40, InFlight: 3, Registrations: 2})
		if n, _ := often(func() error { return l.token("a") }); n != 200 {
			t.Errorf("%d tokens of a at four times the rate, want 200: half a bucket", n)
		}
		wantExceeded(t, l.token("b"))
		wantExceeded(t, l.Registration("c"))
		time.Sleep(time.Second)
		if n, _ := often(func() error { return l.token("b") }); n != 40 {
			t.Errorf("%d tokens of b after a second, want 40", n)
		}
		if n, _ := often(func() error { return l.Registration("c") }); n != 2 {
			t.Errorf("%d registrations after a second, want 2", n)
		}
		// Both of a's are still under way.
		time.Sleep(10 * time.Second)
		if _, err := l.Token("a"); err != nil {
			t.Errorf("the third under way: %v", err)
		}
		wantExceeded(t, l.token("a"))

		// Without limits nothing is counted, and what is under way may end.
		change(Config{})
		for range 10_000 {
			if _, err := l.Token("a"); err != nil {
				t.Fatal(err)
			}
		}
		for _, end := range ends {
			end()
		}
		// A bucket that had no limit is full.
		change(Config{Tokens: 1})
		if n, _ := often(func() error { return l.token("a") }); n != 10 {
			t.Errorf("%d tokens, want a full bucket of 10", n)
		}
		for i, one := range l.tokens.byFull {
			if one.place != i || l.tokens.byName[one.name] != one {
				t.Errorf("place %d has a bucket of place %d", i, one.place)
			}
		}
	})
}

func TestWrongLimitsChangeNothing(t *testing.T) {
	onClock(t, Config{Tokens: 1}, func(t *testing.T, l *Limits) {
		for name, cfg := range map[string]Config{
			"tokens":    {Tokens: math.NaN()},
			"in_flight": {InFlight: -1},
			"callers":   {Callers: map[string]Caller{"a": {Tokens: new(-1.0)}}},
			`"b"`:       {Callers: map[string]Caller{"b": {InFlight: new(-1)}}},
			`"c"`:       {Callers: map[string]Caller{"c": {Registrations: math.Inf(1)}}},
			`"d"`:       {Callers: map[string]Caller{"d": {FirstFetches: 2 * most}}},
		} {
			if err := l.Change(cfg); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%+v: got %v, want an error that names %s", cfg, err, name)
			}
		}
		if n, _ := often(func() error { return l.token("a") }); n != 10 {
			t.Errorf("%d tokens, want 10 as before", n)
		}
	})
}

func TestEveryLimitHasANameAndIsCounted(t *testing.T) {
	onClock(t, Config{Tokens: 0.1, FirstFetches: 0.2, FirstFetchesPerHost: 0.1, Registrations: 0.1}, func(t *testing.T, l *Limits) {
		for range 2 {
			_ = l.token("rate")
			_ = l.Registration("a")
			_ = l.fetchOf(t, "a", "https://one.example/")
		}
		_, _ = often(fetchesOfManyHosts(t, l, "b"))
		if err := l.Change(Config{InFlight: 1, FirstFetches: 100}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, _ = l.Token("a")
		}
		for i := range turnsEach + 1 {
			go func() {
				if done, err := l.FirstFetch(t.Context(), "c", "https://c"+strings.Repeat("c", i)+".example/"); err == nil {
					time.Sleep(time.Minute)
					done()
				}
			}()
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		seen := make(map[string]bool)
		for _, name := range Names() {
			if seen[name] || l.Exceeded(name) != 1 {
				t.Errorf("%q was exceeded %d times, want once", name, l.Exceeded(name))
			}
			seen[name] = true
		}
		if l.Exceeded("no such limit") != 0 {
			t.Error("a limit that there is not was exceeded")
		}
	})
}

// BenchmarkToken is what a token pays for limits, and for having none.
func BenchmarkToken(b *testing.B) {
	for name, cfg := range map[string]Config{"none": {}, "both": {Tokens: most, InFlight: 1000}} {
		b.Run(name, func(b *testing.B) {
			l, err := New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				done, err := l.Token("spiffe://example.com/idp")
				if err != nil {
					b.Fatal(err)
				}
				done()
			}
		})
	}
}
