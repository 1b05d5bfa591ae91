package admit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hsm = "hsm"

// onClock runs a test on a clock of its own, at a backend with so many places
// and so long a queue.
func onClock(t *testing.T, places, queue int, test func(t *testing.T, a *Admission)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, err := New(Config{Queue: queue, Backends: map[string]Backend{hsm: {InFlight: places}}})
		if err != nil {
			t.Fatal(err)
		}
		test(t, a)
		synctest.Wait()
		if s := a.Of(hsm); s.InFlight != 0 || s.Queued != 0 {
			t.Errorf("%d places are taken and %d calls wait after the test", s.InFlight, s.Queued)
		}
		if g := a.gates[hsm]; len(g.queue.lines) != 0 || g.queue.turn != nil {
			t.Errorf("%d lines are left after the test", len(g.queue.lines))
		}
	})
}

// call is one that has ended.
type call struct {
	caller string
	waited time.Duration // until it had a place, or an error
	ended  time.Time
	err    error
}

// load is calls that take their time at a backend.
type load struct {
	a    *Admission
	took time.Duration // each
	all  sync.WaitGroup

	mu    sync.Mutex
	calls []call // guarded by mu, in the order of their ends
}

func (l *load) one(ctx context.Context, caller string) call {
	took, began := l.took, time.Now()
	leave, err := l.a.Enter(ctx, hsm, caller)
	c := call{caller: caller, waited: time.Since(began), err: err}
	if err == nil {
		time.Sleep(took)
		leave()
	}
	c.ended = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, c)
	return c
}

// start has n calls of a caller come at once, each with a time of its own.
func (l *load) start(t *testing.T, caller string, n int, timeout time.Duration) {
	for range n {
		l.all.Go(func() {
			ctx, cancel := t.Context(), func() {}
			if timeout > 0 {
				ctx, cancel = context.WithTimeout(ctx, timeout)
			}
			defer cancel()
			l.one(ctx, caller)
		})
	}
	synctest.Wait()
}

// ended are the calls that have ended up to now.
func (l *load) ended() []call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.calls)
}

// forget forgets them.
func (l *load) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = nil
}

// end waits for all calls to end.
func (l *load) end() []call {
	l.all.Wait()
	return l.ended()
}

// of are the calls of a caller that went well, or did not.
func of(calls []call, caller string, well bool) []call {
	return slices.DeleteFunc(slices.Clone(calls), func(c call) bool { return c.caller != caller || (c.err == nil) != well })
}

func wantOverloaded(t *testing.T, err error) time.Duration {
	t.Helper()
	var e *OverloadedError
	if !errors.Is(err, ErrOverloaded) || !errors.As(err, &e) {
		t.Fatalf("got %v, want an OverloadedError", err)
	}
	if e.RetryAfter <= 0 || e.RetryAfter > mostPause+mostPause/pauseSpread {
		t.Errorf("to be tried again after %v", e.RetryAfter)
	}
	return e.RetryAfter
}

// learn has the backend's service time known: one call after the other.
func (l *load) learn(t *testing.T) {
	t.Helper()
	for range 20 {
		if c := l.one(t.Context(), "learn"); c.err != nil || c.waited != 0 {
			t.Fatalf("alone, a call waited %v: %v", c.waited, c.err)
		}
	}
	l.forget()
}

func TestNoMoreThanThePlacesAreInFlight(t *testing.T) {
	onClock(t, 3, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 10 * time.Millisecond}
		l.start(t, "a", 30, 0)
		if s := a.Of(hsm); s.InFlight != 3 || s.Queued != 27 || s.Limit != 3 {
			t.Errorf("got %+v, want 3 in flight and 27 queued", s)
		}
		began := time.Now()
		for i, c := range l.end() {
			if want := time.Duration(i/3+1) * l.took; c.err != nil || c.ended.Sub(began) != want {
				t.Errorf("call %d ended after %v with %v, want %v", i, c.ended.Sub(began), c.err, want)
			}
		}
	})
}

// Callers are served in turn, and each in the order in which it asked.
func TestAFloodWaitsForItself(t *testing.T) {
	onClock(t, 2, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 50 * time.Millisecond}
		l.learn(t)
		l.start(t, "flood", 60, 0)
		for range 10 {
			if c := l.one(t.Context(), "quiet"); c.err != nil || c.waited > 2*l.took {
				t.Errorf("the quiet caller waited %v and got %v, want to be next but one", c.waited, c.err)
			}
			time.Sleep(7 * time.Millisecond)
		}
		calls := l.end()
		if n := len(of(calls, "flood", true)); n != 60 {
			t.Errorf("%d of the flood got a place, want all 60: there was room", n)
		}
	})
}

// Many callers who all ask for more than there is get the same.
func TestCallersShareAlike(t *testing.T) {
	onClock(t, 2, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 10 * time.Millisecond}
		until := time.Now().Add(5 * time.Second)
		workers := map[string]int{"one": 1, "ten": 10, "hundred": 100}
		for caller, n := range workers {
			for range n {
				l.all.Go(func() {
					for time.Now().Before(until) {
						if l.one(t.Context(), caller).err != nil {
							time.Sleep(time.Millisecond)
						}
					}
				})
			}
		}
		calls := l.end()
		// The one can have one under way, and waits for one of each other.
		one, ten, hundred := len(of(calls, "one", true)), len(of(calls, "ten", true)), len(of(calls, "hundred", true))
		if one < 200 || ten < 300 || hundred < 300 || hundred > ten*5/4 {
			t.Errorf("got %d, %d and %d of 1000, want about a fourth and the others alike", one, ten, hundred)
		}
		if refused := len(of(calls, "one", false)); refused > 0 {
			t.Errorf("the caller with one call at a time was turned away %d times", refused)
		}
	})
}

// A full queue turns away the newest of whoever has the most in it.
func TestAFullQueueCostsWhoFillsIt(t *testing.T) {
	onClock(t, 1, 8, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 10 * time.Millisecond}
		l.learn(t)
		l.start(t, "flood", 12, 0)
		if s := a.Of(hsm); s.Queued != 8 || s.Refused != 3 {
			t.Fatalf("got %+v, want 8 queued and 3 turned away", s)
		}
		l.start(t, "quiet", 4, 0)
		if s := a.Of(hsm); s.Queued != 8 || s.Refused != 7 {
			t.Errorf("got %+v, want 8 queued still and 4 more turned away", s)
		}
		// Now each has 4, and one more of either is one too many.
		l.start(t, "quiet", 1, 0)
		l.start(t, "flood", 1, 0)
		// Another has room at the cost of one of the two.
		l.start(t, "third", 1, 0)
		calls := l.end()
		for caller, want := range map[string]int{"flood": 1 + 4, "quiet": 4, "third": 1} {
			got := len(of(calls, caller, true))
			if caller != "third" && got == want-1 {
				got = want // one of the two made room for the third
			}
			if got != want {
				t.Errorf("%s got %d places, want %d", caller, got, want)
			}
		}
		for _, c := range calls {
			if c.err != nil {
				wantOverloaded(t, c.err)
			}
		}
	})
}

// A backend of 50 ms, and callers who have little time: who cannot be served in
// it is told at once, and nobody waits in vain.
func TestADeadlineThatCannotBeMetIsRefusedAtOnce(t *testing.T) {
	onClock(t, 2, 1000, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 50 * time.Millisecond}
		l.learn(t)
		const timeout = 400 * time.Millisecond
		began := time.Now()
		l.start(t, "a", 100, timeout)
		refused := of(l.ended(), "a", false)
		for _, c := range refused {
			wantOverloaded(t, c.err)
			if c.waited != 0 {
				t.Errorf("turned away after %v, want at once", c.waited)
			}
		}
		// Half of the time is for waiting: 200 ms, in which 2 places serve 8,
		// beside the 2 that found a place.
		if n := len(refused); n < 88 || n > 92 {
			t.Errorf("%d of 100 were turned away at once, want about 90", n)
		}
		for _, c := range of(l.end(), "a", true) {
			if c.ended.Sub(began) > timeout || c.waited > timeout/2 {
				t.Errorf("a call waited %v and ended after %v", c.waited, c.ended.Sub(began))
			}
		}
		if n := len(of(l.ended(), "a", true)); n < 8 {
			t.Errorf("%d calls were served, want 8 at least", n)
		}
	})
}

// The position counts, and not the length of the queue: a caller with nobody in
// it is served soon.
func TestAQuietCallersDeadlineIsMetBehindAFlood(t *testing.T) {
	onClock(t, 1, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 10 * time.Millisecond}
		l.learn(t)
		l.start(t, "flood", 60, 0) // 600 ms
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if c := l.one(ctx, "quiet"); c.err != nil {
			t.Errorf("the quiet caller got %v, want a place", c.err)
		}
		again, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if c := l.one(again, "flood"); c.waited != 0 {
			t.Errorf("the flood was told after %v, want at once", c.waited)
		} else {
			wantOverloaded(t, c.err)
		}
		l.end()
	})
}

// A backend that hangs gives no place back. Nobody waits beyond half of its time,
// and after a while nobody begins to.
func TestABackendThatHangs(t *testing.T) {
	onClock(t, 2, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 10 * time.Millisecond}
		l.learn(t)
		l.took = time.Minute
		l.start(t, "a", 2, 0) // these hang
		l.took = 10 * time.Millisecond
		l.start(t, "a", 3, 4*time.Second)
		time.Sleep(3 * time.Second)
		if s := a.Of(hsm); s.Queued != 0 || s.Refused != 3 {
			t.Errorf("got %+v, want that the three who waited were turned away after 2 s", s)
		}
		began := time.Now()
		l.start(t, "b", 1, 4*time.Second)
		if n := len(of(l.ended(), "b", false)); n != 1 || time.Since(began) != 0 {
			t.Errorf("the next one waits, though no place was given back for 3 s")
		}
		time.Sleep(time.Minute)
		if c := l.one(t.Context(), "a"); c.err != nil || c.waited != 0 {
			t.Errorf("after it hung: waited %v, got %v", c.waited, c.err)
		}
		// And it is soon trusted with as much as before.
		for range 100 {
			l.one(t.Context(), "a")
		}
		l.start(t, "a", 6, 200*time.Millisecond)
		calls := l.end()
		for _, c := range calls[len(calls)-6:] {
			if c.err != nil {
				t.Errorf("after it hung: %v", c.err)
			}
		}
	})
}

func TestWhoHasGoneLeavesTheQueue(t *testing.T) {
	onClock(t, 1, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: time.Second}
		l.start(t, "a", 1, 0)
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		for range 5 {
			l.all.Go(func() {
				if c := l.one(ctx, "gone"); !errors.Is(c.err, context.Canceled) || c.ended.Sub(began) != 100*time.Millisecond {
					t.Errorf("got %v after %v, want canceled after 100 ms", c.err, c.ended.Sub(began))
				}
			})
		}
		l.start(t, "a", 1, 0)
		time.Sleep(100 * time.Millisecond)
		cancel()
		synctest.Wait()
		if s := a.Of(hsm); s.Queued != 1 || s.Refused != 0 {
			t.Errorf("got %+v, want one queued, and nobody turned away", s)
		}
		if c := l.one(ctx, "gone"); !errors.Is(c.err, context.Canceled) {
			t.Errorf("whoever has gone before gets %v", c.err)
		}
		l.end()
	})
}

// overload asks a backend for times as much as it can do, for so long.
func (l *load) overload(t *testing.T, places int, times float64, length time.Duration) {
	every := time.Duration(float64(l.took) / float64(places) / times)
	for until := time.Now().Add(length); time.Now().Before(until); time.Sleep(every) {
		l.all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			l.one(ctx, "a")
		})
	}
}

// After a moment of overload only as many wait as there are places: the backend
// does all it can, and those who are served have waited for one signature.
func TestOverloadKeepsTheQueueShort(t *testing.T) {
	onClock(t, 4, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 20 * time.Millisecond}
		l.learn(t)
		l.overload(t, 4, 3, 2*time.Second)
		if s := a.Of(hsm); !s.Short || s.Queued > 4 {
			t.Fatalf("got %+v after 2 s, want a short queue", s)
		}
		l.forget()
		l.overload(t, 4, 3, 4*time.Second)
		calls := l.end()
		well, refused := of(calls, "a", true), of(calls, "a", false)
		if want := 4 * 4 * 50; len(well) < want*98/100 {
			t.Errorf("%d were served in 4 s, the backend can do %d", len(well), want)
		}
		slowest, pauses := time.Duration(0), time.Duration(0)
		for _, c := range well {
			slowest = max(slowest, c.waited)
		}
		if slowest > 2*l.took {
			t.Errorf("somebody waited %v for a backend of %v", slowest, l.took)
		}
		for _, c := range refused {
			if c.waited != 0 {
				t.Errorf("turned away after %v, want at once", c.waited)
			}
			pauses += wantOverloaded(t, c.err)
		}
		// What is three times too much comes again after about three seconds.
		if mean := pauses / time.Duration(len(refused)); mean < 2*time.Second || mean > 4*time.Second {
			t.Errorf("to be tried again after %v on average, want about 3 s", mean)
		}
		// The full queue is back at once when there is time to spare.
		time.Sleep(time.Second)
		if a.Of(hsm).Short {
			t.Error("the queue is short while there is nothing to do")
		}
		l.start(t, "a", 60, 0)
		if s := a.Of(hsm); s.Queued != 56 {
			t.Errorf("got %+v, want a burst of 60 to be taken in", s)
		}
		l.end()
	})
}

// Bursts that the backend has time for are no overload, however large they are.
func TestBurstsAreNoOverload(t *testing.T) {
	onClock(t, 4, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 5 * time.Millisecond}
		for range 20 {
			l.start(t, "a", 80, 0)
			time.Sleep(300 * time.Millisecond)
			if s := a.Of(hsm); s.Short {
				t.Fatalf("got %+v, want the full queue", s)
			}
		}
		calls := l.end()
		if n := len(of(calls, "a", true)); n != 20*68 {
			t.Errorf("%d were served, want 68 of each burst", n)
		}
		for _, c := range of(calls, "a", false) {
			// The burst is worked off in 85 ms.
			if pause := wantOverloaded(t, c.err); pause > 200*time.Millisecond {
				t.Errorf("to be tried again after %v", pause)
			}
		}
	})
}

// While the queue is short, somebody who has nothing in it may wait all the same.
func TestAQuietCallerIsNotTurnedAwayInOverload(t *testing.T) {
	onClock(t, 4, 64, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 20 * time.Millisecond}
		l.learn(t)
		l.all.Go(func() { l.overload(t, 4, 3, 5*time.Second) })
		time.Sleep(2 * time.Second)
		for range 50 {
			if c := l.one(t.Context(), "quiet"); c.err != nil || c.waited > 2*l.took {
				t.Errorf("the quiet caller waited %v and got %v", c.waited, c.err)
			}
			time.Sleep(13 * time.Millisecond)
		}
		l.end()
	})
}

func TestPlacesFollowTheRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var room atomic.Int64
		room.Store(8)
		a, err := New(Config{Backends: map[string]Backend{hsm: {InFlight: 6, Room: func() int { return int(room.Load()) }}}})
		if err != nil {
			t.Fatal(err)
		}
		l := &load{a: a, took: time.Second}
		want := func(what string, places, taken int) {
			t.Helper()
			time.Sleep(2 * period)
			if s := a.Of(hsm); s.Limit != places || s.InFlight != taken {
				t.Errorf("%s: got %+v, want %d of %d places taken", what, s, taken, places)
			}
		}
		want("at the start, no more than configured", 6, 0)
		room.Store(2)
		want("a pool that shrank", 2, 0)
		l.start(t, "a", 5, 0)
		if s := a.Of(hsm); s.InFlight != 2 {
			t.Errorf("%d in flight, want 2", s.InFlight)
		}
		room.Store(4)
		want("a pool that grew lets in who waits", 4, 4)
		room.Store(0)
		l.end()
		want("a backend that is down does not know", 4, 0)
	})
}

func TestRefusesSaysWhatEnterWould(t *testing.T) {
	onClock(t, 1, 4, func(t *testing.T, a *Admission) {
		l := &load{a: a, took: 10 * time.Millisecond}
		l.learn(t)
		for _, n := range []int{1, 3, 1} {
			if err := a.Refuses(t.Context(), hsm, "a"); err != nil {
				t.Errorf("with room in the queue: %v", err)
			}
			l.start(t, "a", n, 0)
		}
		wantOverloaded(t, a.Refuses(t.Context(), hsm, "a"))
		if err := a.Refuses(t.Context(), hsm, "b"); err != nil {
			t.Errorf("another caller: %v", err)
		}
		soon, cancel := context.WithTimeout(t.Context(), 15*time.Millisecond)
		defer cancel()
		wantOverloaded(t, a.Refuses(soon, hsm, "b"))
		if got := a.Of(hsm).Refused; got != 2 {
			t.Errorf("%d are counted, want 2", got)
		}
		l.end()
	})
}

func TestLeavingTwiceGivesOnePlaceBack(t *testing.T) {
	onClock(t, 2, 4, func(t *testing.T, a *Admission) {
		leave, err := a.Enter(t.Context(), hsm, "a")
		if err != nil {
			t.Fatal(err)
		}
		leave()
		leave()
		if s := a.Of(hsm); s.InFlight != 0 {
			t.Errorf("%d in flight", s.InFlight)
		}
	})
}

// What is signed in the process has places of its own, and a backend that nobody
// configured uses them.
func TestLocalIsAlwaysThere(t *testing.T) {
	a, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, backend := range []string{Local, "who?"} {
		leave, err := a.Enter(t.Context(), backend, "a")
		if err != nil {
			t.Fatal(err)
		}
		if s := a.Of(Local); s.InFlight != 1 || s.Limit < 1 {
			t.Errorf("%q: got %+v, want one in flight", backend, s)
		}
		leave()
	}
	if got := len(a.Stats()); got != 1 {
		t.Errorf("%d backends, want the local one", got)
	}
}

func TestNumbersAreChecked(t *testing.T) {
	for _, cfg := range []Config{{Queue: -1}, {Backends: map[string]Backend{hsm: {InFlight: -1}}}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}

// The log hears of an overload now and then, whatever the number of calls.
func TestTheLogIsNotFlooded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		a, err := New(Config{Queue: 1, Backends: map[string]Backend{hsm: {InFlight: 1}}, Logger: slog.New(slog.NewJSONHandler(&out, nil))})
		if err != nil {
			t.Fatal(err)
		}
		l := &load{a: a, took: 10 * time.Millisecond}
		l.overload(t, 1, 5, 25*time.Second)
		l.end()
		if lines := strings.Count(out.String(), "\n"); lines != 3 || !strings.Contains(out.String(), `"backend":"hsm"`) {
			t.Errorf("%d lines in 25 s, want 3:\n%s", lines, out.String())
		}
		if strings.Contains(out.String(), `"a"`) {
			t.Error("the log names a caller")
		}
	})
}

// Everything at once, for the race detector: nothing is lost or counted twice.
func TestManyAtOnce(t *testing.T) {
	a, err := New(Config{Queue: 16, Backends: map[string]Backend{hsm: {InFlight: 4}}})
	if err != nil {
		t.Fatal(err)
	}
	var inside, most, served, refused, gone atomic.Int64
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			for j := range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+(i+j)%7)*time.Millisecond)
				leave, err := a.Enter(ctx, hsm, fmt.Sprint("caller-", i%5))
				switch {
				case err == nil:
					if n := inside.Add(1); n > most.Load() {
						most.Store(n)
					}
					time.Sleep(time.Duration(j%3) * 100 * time.Microsecond)
					inside.Add(-1)
					leave()
					served.Add(1)
				case errors.Is(err, ErrOverloaded):
					refused.Add(1)
				case ctx.Err() != nil:
					gone.Add(1)
				default:
					t.Error(err)
				}
				cancel()
			}
		})
	}
	all.Wait()
	s := a.Of(hsm)
	if s.InFlight != 0 || s.Queued != 0 || most.Load() > 4 || served.Load() == 0 || uint64(refused.Load()) != s.Refused {
		t.Errorf("%+v, %d at once at most, %d served, %d turned away, %d gone", s, most.Load(), served.Load(), refused.Load(), gone.Load())
	}
	if got := served.Load() + refused.Load() + gone.Load(); got != 6400 {
		t.Errorf("%d calls ended, want 6400", got)
	}
}
