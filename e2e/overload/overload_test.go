package overload

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

// times is how many times the capacity is asked for.
const times = 3

// round is what came of one.
type round struct {
	unloaded, peak, overload *window
}

// goodput is the part of the peak that was left in overload.
func (r round) goodput() float64 { return r.overload.rate / r.peak.rate }

// latency is how many times as long as unloaded those who were served took.
func (r round) latency() float64 {
	return float64(at(r.overload.took, .99)) / float64(at(r.unloaded.took, .99))
}

// meets reports whether figures meet the goals.
func (g goals) meets(good, latency float64) bool {
	return good >= g.good && (g.latency == 0 || latency <= g.latency)
}

func (r round) String() string {
	return fmt.Sprintf("unloaded p99 %v; peak %.0f/s; asked for %.0f/s: goodput %.0f/s = %.1f %% of the peak, p50 %v, p99 %v = %.1f times unloaded; "+
		"%d refused %v, told after %v (p50) to wait %v (p50)",
		ms(at(r.unloaded.took, .99)), r.peak.rate, times*r.peak.rate, r.overload.rate, 100*r.goodput(),
		ms(at(r.overload.took, .5)), ms(at(r.overload.took, .99)), r.latency(),
		len(r.overload.told), slices.Sorted(maps.Keys(r.overload.refused)), ms(at(r.overload.told, .5)), at(r.overload.pauses, .5).Round(100*time.Millisecond))
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// round makes one. Unloaded is one call after the other; the peak is what twice
// as many workers get as there are places; overload is so many times that, at a
// steady rate, whatever becomes of it.
func (r *rig) round(t *testing.T, c *caller) round {
	t.Helper()
	l := length()
	measure := func(f func()) *window {
		from := time.Now()
		f()
		return c.between(from, time.Now())
	}
	var one round
	one.unloaded = measure(func() { c.closed(t.Context(), 1, l.unloaded, 2*time.Millisecond, 0) })
	one.peak = measure(func() { c.closed(t.Context(), 2*r.sessions, l.peak, 0, 0) })
	if len(one.unloaded.took) < 10 || one.peak.rate == 0 || len(one.peak.told) > 0 {
		t.Fatalf("without overload: %d tokens one after the other, then %.0f/s, and %v were refused", len(one.unloaded.took), one.peak.rate, one.peak.refused)
	}
	from := time.Now().Add(l.warmUp)
	c.open(t.Context(), times*one.peak.rate, l.warmUp+l.overload)
	one.overload = c.between(from, from.Add(l.overload))
	c.forget()
	return one
}

// forget forgets what has ended.
func (c *caller) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = c.calls[:0]
}

// TestOverload has the goals held, for one caller and between two.
func TestOverload(t *testing.T) {
	if !full {
		t.Parallel() // it waits more than it works
	}
	var done []result
	for name, build := range builds() {
		t.Run(name, func(t *testing.T) {
			r := build(t)
			res := result{rig: r}
			t.Run("Goodput", func(t *testing.T) { res.goodput(t) })
			t.Run("Fairness", func(t *testing.T) { res.fairness(t) })
			done = append(done, res)
		})
	}
	if full && !t.Failed() {
		write(t, done)
	}
}

func builds() map[string]func(*testing.T) *rig {
	if full {
		return map[string]func(*testing.T) *rig{"Slow": slow, "Software": software}
	}
	return map[string]func(*testing.T) *rig{"Slow": slow}
}

// result is what came of a rig.
type result struct {
	rig    *rig
	rounds []round
	fair   fair
}

func (res *result) goodput(t *testing.T) {
	c := dial(t, res.rig.Service, flooding, 8)
	c.closed(t.Context(), 8, 200*time.Millisecond, 0, 0) // all are connected
	met, goals := false, res.rig.goals
	for i := range length().rounds {
		one := res.rig.round(t, c)
		t.Logf("round %d: %v", i+1, one)
		for reason := range one.overload.refused {
			if reason != "OVERLOADED" {
				t.Errorf("calls failed with %s", reason)
			}
		}
		if n := len(one.overload.pauses); n == 0 || one.overload.pauses[0] <= 0 {
			t.Errorf("%d were refused, and the shortest pause that they were asked for is %v", n, at(one.overload.pauses, 0))
		}
		res.rounds = append(res.rounds, one)
		if met = met || goals.meets(one.goodput(), one.latency()); met && !full {
			break
		}
	}
	if !full {
		t.Logf("the short pass wants one round with a goodput of %.0f %% of the peak and a p99 of %.0f times the unloaded one; the full run wants the medians of all", 100*goals.good, goals.latency)
		if !met {
			t.Error("no round has met the goals")
		}
		return
	}
	goodput, latency := res.median(round.goodput), res.median(round.latency)
	asked := "printed only"
	if goals.latency > 0 {
		asked = fmt.Sprintf("goal %.0f at most", goals.latency)
	}
	t.Logf("%s: goodput %.1f %% of the peak, goal %.0f %% at least; p99 %.1f times unloaded, %s (medians of %d rounds)",
		res.rig.name, 100*goodput, 100*goals.good, latency, asked, len(res.rounds))
	if !goals.meets(goodput, latency) {
		t.Error("the goals are not met")
	}
}

// median is that of a figure of all rounds.
func (res *result) median(figure func(round) float64) float64 {
	var all []float64
	for _, one := range res.rounds {
		all = append(all, figure(one))
	}
	slices.Sort(all)
	return all[len(all)/2]
}
