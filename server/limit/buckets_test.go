package limit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// drain takes all tokens of a name, and returns how many there were.
func (b *buckets) drain(name string, now time.Time) int {
	n := 0
	for ; b.wait(name, now) == 0; n++ {
		b.take(name, now)
	}
	return n
}

func TestFullBucketsAreForgottenAndNoOthers(t *testing.T) {
	b, now := newBuckets(1, 1000), time.Now()
	for i := range 500 {
		b.take(fmt.Sprint("once-", i), now)
	}
	b.drain("drained", now)
	now = now.Add(time.Second)
	b.take("next", now)
	if got := len(b.byName); got != 2 {
		t.Errorf("%d are remembered, want the one that was drained and the newest", got)
	}
	if wait := b.wait("drained", now); wait != 0 {
		t.Errorf("a wait of %v, want none after a second", wait)
	}
	if n := b.drain("drained", now); n != 1 {
		t.Errorf("%d tokens after a second, want 1", n)
	}
	now = now.Add(10 * time.Second)
	b.take("last", now)
	if got := len(b.byName); got != 1 {
		t.Errorf("%d are remembered after all is full again, want 1", got)
	}
}

// An attacker who has drained the bucket of his victim asks for any number of
// other hosts, to have it forgotten.
func TestManyOthersDoNotResetABucket(t *testing.T) {
	const most = 100
	b, now := newBuckets(5, most), time.Now()
	if n := b.drain("victim", now); n != 50 {
		t.Fatalf("%d tokens, want 50", n)
	}
	for i := range 100 * most {
		b.take(fmt.Sprint("other-", i), now)
		if len(b.byName) > most {
			t.Fatalf("%d are remembered, want at most %d", len(b.byName), most)
		}
	}
	if b.wait("victim", now) == 0 {
		t.Error("the bucket was forgotten")
	}
	// What it takes is to drain all the others too: 50 tokens for one.
	spent := 0
	for i := range 2 * most {
		if b.wait("victim", now) == 0 {
			break
		}
		spent += b.drain(fmt.Sprint("drained-", i), now)
	}
	if least := 50 * (most - 1); spent < least {
		t.Errorf("it took %d tokens to have the bucket forgotten, want %d at least", spent, least)
	}
}

// TestBucketsHoldWhatTheirRateSays does random things to a few names and holds
// each against the definition: never more than the burst and what came since.
func TestBucketsHoldWhatTheirRateSays(t *testing.T) {
	const rate, names = 2.5, 20
	b, start := newBuckets(rate, 1000), time.Now()
	now := start
	taken := make(map[string][]time.Time)
	for step := range 20_000 {
		now = now.Add(rand.N(50 * time.Millisecond))
		name := fmt.Sprint(rand.N(names))
		wait := b.wait(name, now)
		if wait == 0 {
			b.take(name, now)
			taken[name] = append(taken[name], now)
		} else if wait > time.Duration(float64(time.Second)/rate)+1 {
			t.Fatalf("step %d: a wait of %v, want no longer than for one token", step, wait)
		}
		for i, one := range b.byFull {
			if one.place != i || b.byName[one.name] != one {
				t.Fatalf("step %d: place %d has a bucket of place %d", step, i, one.place)
			}
			if parent := (i - 1) / 2; b.byFull[parent].fullAt.After(one.fullAt) {
				t.Fatalf("step %d: the heap is out of order", step)
			}
		}
		if len(b.byFull) != len(b.byName) {
			t.Fatalf("step %d: %d in the heap and %d by name", step, len(b.byFull), len(b.byName))
		}
	}
	for name, times := range taken {
		for i := range times {
			for j := i; j < len(times); j++ {
				if n, may := float64(j-i+1), 25+rate*times[j].Sub(times[i]).Seconds(); n > may+1e-6 {
					t.Fatalf("%s: %v tokens in %v, want at most %v", name, n, times[j].Sub(times[i]), may)
				}
			}
		}
	}
}

func BenchmarkManyTargets(b *testing.B) {
	all, now := newBuckets(5, maxTargets), time.Now()
	for i := range maxTargets {
		all.take(fmt.Sprint(i), now)
	}
	i := 0
	for b.Loop() {
		i++
		all.take(fmt.Sprint("other-", i), now)
	}
}
