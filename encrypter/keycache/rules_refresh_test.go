package keycache

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// A look in the background comes after 80 to 95 % of the life of the set, for
// lives of every length.
func TestRuleRefreshComesBeforeTheEndOfFreshness(t *testing.T) {
	for _, life := range []time.Duration{time.Minute, 10 * time.Minute, time.Hour, 24 * time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.hosts.serve(uri, fresh(set("k1"), life))
				w.register(withURI("app", uri))
				w.mustUse("app")
				w.sleep(20 * life)
				times := w.hosts.times(uri)
				if len(times) < 21 || len(times) > 26 {
					t.Errorf("%d fetches in 20 lives, want one each 80 to 95 %% of one", len(times))
				}
				for i := 1; i < len(times); i++ {
					if after := times[i].Sub(times[i-1]); after < life*80/100 || after >= life {
						t.Errorf("fetch %d came after %v, want 80 %% of %v at least, and before its end", i, after, life)
					}
				}
				if w.mustUse("app").Stale {
					t.Error("stale, although every look went well")
				}
			}, func(c *Config) { c.IdleAfter = 30 * day })
		})
	}
}

// Sets that were fetched at one moment do not stay together.
func TestRuleRefreshesAreSpread(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const many = 300
		w.hosts.serve("", fresh(set("k1"), 100*time.Second))
		began := time.Now()
		for i := range many {
			id := fmt.Sprint(i)
			w.register(withURI(id, "https://"+id+".example/"))
			w.mustUse(id)
		}
		if time.Since(began) != 0 {
			t.Fatal("the first fetches were not at one moment")
		}
		w.sleep(100 * time.Second)
		seconds := make(map[int]int)
		for i := range many {
			times := w.hosts.times("https://" + fmt.Sprint(i) + ".example/")
			if len(times) < 2 {
				t.Fatalf("%d was not refreshed in time", i)
			}
			second := int(times[1].Sub(began) / time.Second)
			if second < 80 || second > 96 {
				t.Errorf("%d was refreshed after %d s, want 80 to 95", i, second)
			}
			seconds[second]++
		}
		// Twenty are to be expected each second.
		for second, n := range seconds {
			if n > 60 {
				t.Errorf("%d refreshes in second %d", n, second)
			}
		}
		if len(seconds) < 14 {
			t.Errorf("the refreshes fell into %d seconds, want 15 or so", len(seconds))
		}
	})
}

// A refresh is on a caller's way neither while it runs nor after it has failed,
// whether the set is fresh or stale.
func TestRuleNobodyWaitsForARefresh(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		reg := w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, hangs)
		for range 10 { // stale from the first round's end on
			forced := make(chan error)
			go func() {
				_, err := w.Refresh(t.Context(), reg)
				forced <- err
			}()
			for range 40 {
				w.mustUse("app") // fails the test if it takes any time
				w.sleep(100 * time.Millisecond)
			}
			if err := <-forced; !errors.Is(err, ErrUnavailable) {
				t.Errorf("a forced look at a host that hangs: got %v, want ErrUnavailable", err)
			}
			w.sleep(10 * time.Minute)
		}
		if !w.mustUse("app").Stale {
			t.Error("not stale after hours")
		}
	})
}

// One forced look at a URL in ten seconds, whoever forces it and however it ends.
func TestRuleForcedLooksAreLimitedToTheNanosecond(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 24*time.Hour))
		reg := w.register(withURI("app", uri))
		w.mustUse("app")
		for i, answer := range []answer{fresh(set("k2"), 24*time.Hour), down, fresh(set("k3"), 24*time.Hour)} {
			w.hosts.serve(uri, answer)
			before := w.hosts.count(uri)
			if _, err := w.Refresh(t.Context(), reg); err != nil && !errors.Is(err, ErrUnavailable) {
				t.Fatalf("look %d: %v", i, err)
			}
			if n := w.hosts.count(uri) - before; n != 1 {
				t.Fatalf("look %d: %d fetches, want 1: a fresh set is looked at all the same", i, n)
			}
			for _, wait := range []time.Duration{0, time.Second, 9*time.Second - 1} {
				w.sleep(wait)
				began := time.Now()
				var limit *LimitError
				if _, err := w.Refresh(t.Context(), reg); !errors.As(err, &limit) {
					t.Fatalf("look %d: got %v, want a LimitError", i, err)
				}
				if time.Since(began) != 0 {
					t.Error("who is refused had to wait")
				}
				if wait == 9*time.Second-1 && limit.RetryAfter != 1 {
					t.Errorf("a pause of %v, want the last nanosecond", limit.RetryAfter)
				}
			}
			w.sleep(1)
		}
		if got := w.mustUse("app"); kid(got) != "k3" {
			t.Errorf("got key %s, want k3", kid(got))
		}
	})
}

// What nobody uses for a week is fetched no more.
func TestRuleSetIsRefreshedForAWeekAfterItsLastUse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), time.Hour))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.sleep(7 * day)
		last := w.hosts.times(uri)
		if since := time.Since(last[len(last)-1]); since > time.Hour {
			t.Errorf("the last fetch was %v ago, want it refreshed to the end of the week", since)
		}
		w.sleep(7 * day)
		now := w.hosts.times(uri)
		if n := len(now) - len(last); n > 1 {
			t.Errorf("%d fetches in the week after", n)
		}
		if w.Stats().KeySets != 0 {
			t.Error("it is still in memory")
		}
	})
}
