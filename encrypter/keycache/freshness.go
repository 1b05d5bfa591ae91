package keycache

import (
	"math/rand/v2"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// freshFor is how long a set counts as fresh: what its host said, clamped, or
// the default where it said nothing.
func (p Policy) freshFor(f fetch.Freshness) time.Duration {
	if !f.Stated {
		return p.DefaultRefresh
	}
	return min(max(f.For, p.MinRefresh), p.MaxRefresh)
}

// bound holds the times of a stored set against the clock and the policy of
// today. The clock may have been wrong when they were stored, and the policy
// another: a set must not be fresh, or left alone after a failure, for longer
// than it could be if it had been fetched just now.
func (p Policy) bound(ks *registry.KeySet, now time.Time) {
	ks.FetchedAt = earlier(ks.FetchedAt, now)
	ks.FreshUntil = earlier(ks.FreshUntil, ks.FetchedAt.Add(p.MaxRefresh))
	ks.NextAttempt = earlier(ks.NextAttempt, now.Add(lastRetry+lastRetry/4))
	if ks.ForcedAt.After(now.Add(maxSkew)) {
		ks.ForcedAt = time.Time{}
	}
}

// maxSkew is how far the clocks of a fleet may be apart before what one of them
// says of the future is no longer believed.
const maxSkew = time.Minute

// wallClock is the time without the reading of the monotonic clock. What is kept
// of a set has only that, as what comes from the store does: two times that are
// compared must not be moved apart when the clock is set.
func wallClock() time.Time { return time.Now().Round(0) }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// dueAfter is when a URL is to be fetched next: when the last good set nears
// its end, or after the pause that a failure asks for. In a fleet the replica
// that has made the last fetch makes the next one too; the others only stand by
// in case it is gone by then. So there are no more fetches than one replica
// would make, which they would if each took a turn at random. After a failure it
// is the other way round: the host may be gone for one replica only.
func (c *Cache) dueAfter(state *setState, mine bool) time.Time {
	standby := c.cfg.Leases != nil && !mine
	switch {
	case state.failures() > 0 && standby:
		return state.nextAttempt().Add(jitter(handOver - time.Second))
	case state.failures() > 0 && c.cfg.Leases != nil:
		return state.nextAttempt().Add(handOver)
	case state.failures() > 0:
		return state.nextAttempt()
	case standby:
		life := state.FreshUntil.Sub(state.FetchedAt)
		return state.FetchedAt.Add(life*95/100 + jitter(life*4/100))
	}
	return refreshAt(state.FetchedAt, state.FreshUntil)
}

// handOver is by how much a replica whose fetch has failed lets the others go
// first.
const handOver = 3 * time.Second

// isDue reports whether a URL may be fetched again now, by any replica.
func isDue(state *setState, now time.Time) bool {
	if state.failures() > 0 {
		return state.mayFetch(now)
	}
	return state.set == nil || !now.Before(firstRefreshAt(state.FetchedAt, state.FreshUntil))
}

// refreshAt is when a set is fetched again: after 80 to 95 % of its life, so
// that a slow host does not make it stale and many sets fetched at one moment
// do not stay together.
func refreshAt(fetchedAt, freshUntil time.Time) time.Time {
	return firstRefreshAt(fetchedAt, freshUntil).Add(jitter(freshUntil.Sub(fetchedAt) * 15 / 100))
}

// firstRefreshAt is the earliest that refreshAt can be.
func firstRefreshAt(fetchedAt, freshUntil time.Time) time.Time {
	return fetchedAt.Add(freshUntil.Sub(fetchedAt) * 80 / 100)
}

// Bounds of the pause after a failed fetch.
const (
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
)

// retryAfter is the pause after the given number of failures in a row: it
// doubles from 5 s to 5 min, and up to a quarter is added at random.
func retryAfter(failures int) time.Duration {
	pause := lastRetry
	if n := failures - 1; n < 6 {
		pause = firstRetry << max(n, 0)
	}
	return pause + jitter(pause/4)
}

func jitter(most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	return rand.N(most) //nolint:gosec // spreads load, protects nothing
}
