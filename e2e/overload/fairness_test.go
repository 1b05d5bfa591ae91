package overload

import (
	"cmp"
	"slices"
	"sync"
	"testing"
	"time"
)

// floodWorkers is how many calls the flood has under way: more than places and
// queue hold. Each asks again at once, and soon if it was turned away, whatever
// it was told.
const (
	floodWorkers = 96
	floodPause   = 100 * time.Millisecond
)

// fair is how a quiet caller fares beside a flood.
type fair struct {
	alone, beside, flood *window
}

func (f fair) latency() float64 {
	return float64(at(f.beside.took, .99)) / float64(at(f.alone.took, .99))
}

// fairness has one caller flood the service while another asks for one token
// after the other: as often as there are rounds, of which the median counts in
// full, and one has to meet the goal in the short pass.
func (res *result) fairness(t *testing.T) {
	flood, calm := dial(t, res.rig.Service, flooding, 64), dial(t, res.rig.Service, quiet, 1)
	l, goal := length(), res.rig.goals.latency
	var all []fair
	for range l.rounds {
		f := res.beside(t, flood, calm, l)
		t.Logf("alone: p99 %v; beside %d workers of another, who got %.0f/s and were turned away %d times: %d tokens, p50 %v, p99 %v = %.1f times, %v refused",
			ms(at(f.alone.took, .99)), floodWorkers, f.flood.rate, len(f.flood.told), len(f.beside.took), ms(at(f.beside.took, .5)), ms(at(f.beside.took, .99)), f.latency(), f.beside.refused)
		if len(f.flood.told) == 0 {
			t.Error("the flood was no flood: none of it was turned away")
		}
		// Whatever the machine does, nobody who is quiet is turned away.
		if len(f.beside.told) > 0 || len(f.beside.took) < 10 {
			t.Errorf("the quiet caller got %d tokens, and these failures: %v", len(f.beside.took), f.beside.refused)
		}
		all = append(all, f)
		if !full && f.latency() <= goal {
			return
		}
	}
	slices.SortFunc(all, func(a, b fair) int { return cmp.Compare(a.latency(), b.latency()) })
	res.fair = all[len(all)/2]
	if got := res.fair.latency(); !full || goal > 0 && got > goal {
		t.Errorf("beside the flood the quiet caller's p99 was %.1f times what it is alone (median); the goal is %.0f times at most", got, goal)
	}
}

func (res *result) beside(t *testing.T, flood, calm *caller, l lengths) fair {
	var f fair
	measure := func() *window {
		from := time.Now()
		calm.closed(t.Context(), 1, l.overload, 10*time.Millisecond, 10*time.Millisecond)
		return calm.between(from, time.Now())
	}
	f.alone = measure()
	var all sync.WaitGroup
	all.Go(func() {
		flood.closed(t.Context(), floodWorkers, l.warmUp+l.overload+time.Second, 0, floodPause)
	})
	time.Sleep(l.warmUp)
	from := time.Now()
	f.beside = measure()
	f.flood = flood.between(from, time.Now())
	all.Wait()
	flood.forget()
	calm.forget()
	return f
}
