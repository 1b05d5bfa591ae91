package main

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts durations in buckets that are a thirty-second of their value
// wide at most: every quantile is within 3 percent, whatever its size, in a few
// kilobytes. It is safe for concurrent use.
type histogram struct {
	counts [histogramBuckets]atomic.Int64
	sum    atomic.Int64 // ns
	most   atomic.Int64 // ns
}

const (
	// subBuckets are the buckets of each power of two.
	subBuckets = 32
	subBits    = 5
	// histogramBuckets cover all that a Duration can be.
	histogramBuckets = (64 - subBits) * subBuckets
)

// bucketOf is the bucket of a duration, which is not negative.
func bucketOf(d time.Duration) int {
	if d < subBuckets {
		return int(d)
	}
	shift := bits.Len64(uint64(d)) - subBits - 1
	return shift*subBuckets + int(d>>shift)
}

// bucketEnd is the largest value in a bucket.
func bucketEnd(i int) time.Duration {
	if i < subBuckets {
		return time.Duration(i)
	}
	shift := i/subBuckets - 1
	return time.Duration(subBuckets+i%subBuckets)<<shift + 1<<shift - 1
}

func (h *histogram) add(d time.Duration, n int) {
	d = max(d, 0)
	h.counts[bucketOf(d)].Add(int64(n))
	h.sum.Add(int64(d) * int64(n))
	for {
		most := h.most.Load()
		if int64(d) <= most || h.most.CompareAndSwap(most, int64(d)) {
			return
		}
	}
}

// snapshot is a histogram at one moment.
type snapshot struct {
	counts [histogramBuckets]int64
	total  int64
	mean   time.Duration
	most   time.Duration
}

func (h *histogram) snapshot() *snapshot {
	s := &snapshot{most: time.Duration(h.most.Load())}
	for i := range h.counts {
		s.counts[i] = h.counts[i].Load()
		s.total += s.counts[i]
	}
	if s.total > 0 {
		s.mean = time.Duration(h.sum.Load() / s.total)
	}
	return s
}

// since is what was added after an earlier snapshot. Its mean and its longest are
// not known.
func (s *snapshot) since(earlier *snapshot) *snapshot {
	d := &snapshot{most: s.most}
	for i := range s.counts {
		d.counts[i] = s.counts[i] - earlier.counts[i]
		d.total += d.counts[i]
	}
	return d
}

// quantile is the duration that a share q of all did not exceed; 0 if there are
// none.
func (s *snapshot) quantile(q float64) time.Duration {
	rank := max(int64(q*float64(s.total)+0.999999), 1)
	var seen int64
	for i, n := range s.counts {
		if seen += n; n > 0 && seen >= rank {
			return min(bucketEnd(i), s.most)
		}
	}
	return 0
}

// bar is one line of the drawing: what took at most this long, and longer than
// the line before.
type bar struct {
	upTo  time.Duration
	count int64
}

// bars sorts the counts into steps of about the same ratio, 1, 1.5, 2, 3, 5, 7
// and 10, from the first to the last that has any.
func (s *snapshot) bars() []bar {
	var all []bar
	i := 0
	for decade := time.Microsecond; i < len(s.counts) && decade < 1000*time.Hour; decade *= 10 {
		for _, step := range []time.Duration{10, 15, 20, 30, 50, 70} {
			b := bar{upTo: decade * step / 10}
			for ; i < len(s.counts) && bucketEnd(i) <= b.upTo; i++ {
				b.count += s.counts[i]
			}
			all = append(all, b)
		}
	}
	for len(all) > 0 && all[0].count == 0 {
		all = all[1:]
	}
	for len(all) > 0 && all[len(all)-1].count == 0 {
		all = all[:len(all)-1]
	}
	return all
}
