package admit

import (
	"math/rand/v2"
	"time"
)

const (
	// period is how often a backend is looked at, and judged by what happened
	// since.
	period = 250 * time.Millisecond
	// idle is the part of a period for which a place must have been free for the
	// backend to have time to spare: one in so many.
	idle = 10
	// sparedEnough is how many such periods, one after the other, the full queue
	// has to wait for while calls are turned away: a backend that is asked for too
	// much may have nothing to do for a moment, when those who ask stutter.
	sparedEnough = 4
	// weight is how much a new signature counts in the moving service time: one
	// part in so many.
	weight = 8
	// reportEvery is how often the log is told that calls are turned away.
	reportEvery = 10 * time.Second
)

// Bounds of the pause that those who are turned away are asked for: after a
// burst, which is over soon, and while the backend is overloaded.
const (
	leastPause    = 50 * time.Millisecond
	overloadPause = time.Second // after a burst, the most
	mostPause     = 10 * time.Second
	// One part in so many is random, so that they do not all come back at once.
	pauseSpread = 4
)

// pace is what a backend has done lately. Times are counted from its gate's base.
type pace struct {
	service time.Duration // that a place is taken for, a moving mean; 0 until one was
	short   bool          // the backend is overloaded, so that its queue is short
	spared  int           // periods with time to spare, one after the other, up to now

	next   time.Duration // when the period ends
	began  time.Duration // and when it began
	free   time.Duration // for how long of it there was a free place, but for that since
	since  time.Duration // when a place became free; not used while none is
	isFree bool

	refused, done int    // calls that were turned away, and signatures, in this period
	times         int    // as much as it could do was it asked for in the last one
	refusedAll    uint64 // since the start
}

// served learns from a place that was given back.
func (p *pace) served(took time.Duration) {
	p.done++
	if p.service == 0 {
		p.service = took
		return
	}
	p.service += (took - p.service) / weight
}

// full and freed are told when the last place is taken, and when one is free
// again.
func (p *pace) full(now time.Duration) {
	if p.isFree {
		p.free += now - max(p.since, p.began)
		p.isFree = false
	}
}

func (p *pace) freed(now time.Duration) {
	if !p.isFree {
		p.since, p.isFree = now, true
	}
}

// judge ends a period: it decides what the queue is in the next one.
func (p *pace) judge(now time.Duration, free bool) {
	p.full(now)
	if spare := p.free > (now-p.began)/idle; spare {
		// It is longer than a period if nobody has come since.
		p.spared += int((now - p.began) / period)
		if p.refused == 0 || p.spared >= sparedEnough {
			p.short = false
		}
	} else {
		p.spared = 0
		p.short = p.short || p.refused > 0
	}
	p.times = 1 + p.refused/max(p.done, 1)
	p.refused, p.done, p.free = 0, 0, 0
	p.began, p.next = now, now+period
	if free {
		p.freed(now)
	}
}

// pause is how long who is turned away should stay away, where the queue is
// worked off in drain.
func (p *pace) pause(drain time.Duration) time.Duration {
	pause := min(max(drain, leastPause), overloadPause)
	if p.short {
		pause = min(overloadPause*time.Duration(p.times), mostPause)
	}
	return pause - pause/pauseSpread/2 + rand.N(pause/pauseSpread) //nolint:gosec // spreads callers, keeps no secret
}
