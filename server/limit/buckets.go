package limit

import (
	"container/heap"
	"math"
	"time"

	"golang.org/x/time/rate"
)

// buckets are token buckets by name, as many as have been used lately.
//
// Each is known by the moment when it is full again, which does not change
// while nobody takes from it. So they stand in a heap by that moment: those
// that are full are at its top and can be forgotten, since a name without a
// bucket has a full one, and behind them comes the fullest.
type buckets struct {
	rate   rate.Limit // tokens a second
	size   int        // what a full bucket holds
	max    int        // how many buckets are remembered
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
	return &buckets{
		rate: rate.Limit(perSecond), size: int(math.Ceil(perSecond * burst)), max: most,
		byName: make(map[string]*bucket),
	}
}

// wait returns how long it takes until name has a token; zero if it has one.
func (b *buckets) wait(name string, now time.Time) time.Duration {
	one := b.byName[name]
	if one == nil {
		return 0
	}
	return b.until(1 - one.tokens.TokensAt(now))
}

// take takes a token of name, which has one.
func (b *buckets) take(name string, now time.Time) {
	one := b.byName[name]
	if one == nil {
		b.makeRoom(now)
		one = &bucket{name: name, tokens: rate.NewLimiter(b.rate, b.size), place: len(b.byFull)}
		b.byName[name] = one
		heap.Push(&b.byFull, one)
	}
	one.tokens.AllowN(now, 1)
	one.fullAt = now.Add(b.until(float64(b.size) - one.tokens.TokensAt(now)))
	heap.Fix(&b.byFull, one.place)
}

// until is how long it takes for so many tokens to come.
func (b *buckets) until(tokens float64) time.Duration {
	if tokens <= 0 {
		return 0
	}
	return time.Duration(math.Ceil(tokens / float64(b.rate) * float64(time.Second)))
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
