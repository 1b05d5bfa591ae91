package limit

import (
	"container/heap"
	"math"
	"time"

	"golang.org/x/time/rate"
)

// buckets are token buckets by name, as many as have been used lately. Some names
// may have a rate of their own.
//
// Each is known by the moment when it is full again, which does not change
// while nobody takes from it. So they stand in a heap by that moment: those
// that are full are at its top and can be forgotten, since a name without a
// bucket has a full one, and behind them comes the fullest.
type buckets struct {
	rate   float64            // tokens a second
	own    map[string]float64 // of names that have another rate
	max    int                // how many buckets are remembered
	byName map[string]*bucket
	byFull fullQueue
}

type bucket struct {
	name   string
	tokens *rate.Limiter
	fullAt time.Time
	place  int // in byFull
}

func newBuckets(perSecond float64, most int) *buckets {
	return &buckets{rate: perSecond, max: most, byName: make(map[string]*bucket)}
}

// rateOf is how many tokens a second a name has.
func (b *buckets) rateOf(name string) float64 {
	if own, ok := b.own[name]; ok {
		return own
	}
	return b.rate
}

// full is a full bucket for a rate.
func full(perSecond float64) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), int(math.Ceil(perSecond*burst)))
}

// wait returns how long it takes until name has a token; zero if it has one.
func (b *buckets) wait(name string, now time.Time) time.Duration {
	one := b.byName[name]
	if one == nil {
		return 0
	}
	return one.until(1 - one.tokens.TokensAt(now))
}

// take takes a token of name, which has one.
func (b *buckets) take(name string, now time.Time) {
	one := b.byName[name]
	if one == nil {
		b.makeRoom(now)
		one = &bucket{name: name, tokens: full(b.rateOf(name)), place: len(b.byFull)}
		b.byName[name] = one
		heap.Push(&b.byFull, one)
	}
	one.tokens.AllowN(now, 1)
	one.filling(now)
	heap.Fix(&b.byFull, one.place)
}

// change gives all names their new rates. Each bucket stays as full as it was,
// measured by what it holds when it is full; that of a name which has no limit
// any more is forgotten.
func (b *buckets) change(perSecond float64, own map[string]float64, now time.Time) {
	b.rate, b.own = perSecond, own
	kept := b.byFull[:0]
	for _, one := range b.byFull {
		perSecond := b.rateOf(one.name)
		if perSecond == 0 {
			delete(b.byName, one.name)
			continue
		}
		if rate.Limit(perSecond) != one.tokens.Limit() {
			missing := 1 - one.tokens.TokensAt(now)/float64(one.tokens.Burst())
			one.tokens = full(perSecond)
			one.tokens.AllowN(now, int(math.Ceil(missing*float64(one.tokens.Burst()))))
			one.filling(now)
		}
		one.place = len(kept)
		kept = append(kept, one)
	}
	clear(b.byFull[len(kept):]) // let go of the others
	b.byFull = kept
	heap.Init(&b.byFull)
}

// filling notes when the bucket will be full.
func (one *bucket) filling(now time.Time) {
	one.fullAt = now.Add(one.until(float64(one.tokens.Burst()) - one.tokens.TokensAt(now)))
}

// until is how long it takes for so many tokens to come.
func (one *bucket) until(tokens float64) time.Duration {
	if tokens <= 0 {
		return 0
	}
	return time.Duration(math.Ceil(tokens / float64(one.tokens.Limit()) * float64(time.Second)))
}

// makeRoom forgets the buckets that are full, and if there are too many still,
// the fullest.
func (b *buckets) makeRoom(now time.Time) {
	for len(b.byFull) > 0 && (len(b.byFull) >= b.max || !b.byFull[0].fullAt.After(now)) {
		one := heap.Pop(&b.byFull).(*bucket)
		delete(b.byName, one.name)
	}
}

// fullQueue is a heap (container/heap) by fullAt.
type fullQueue []*bucket

func (q fullQueue) Len() int           { return len(q) }
func (q fullQueue) Less(i, j int) bool { return q[i].fullAt.Before(q[j].fullAt) }
func (q fullQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *fullQueue) Push(x any) { *q = append(*q, x.(*bucket)) }

func (q *fullQueue) Pop() any {
	old := *q
	last := len(old) - 1
	one := old[last]
	old[last] = nil // let go of it
	*q = old[:last]
	return one
}
