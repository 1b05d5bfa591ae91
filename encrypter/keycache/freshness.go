package keycache

import (
	"math/rand/v2"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// freshFor is how long a set counts as fresh: what its host said, clamped, or
// the default where it said nothing.
func (p Policy) freshFor(res *fetch.Response) time.Duration {
	if !res.Freshness.Stated {
		return p.DefaultRefresh
	}
	return min(max(res.Freshness.For, p.MinRefresh), p.MaxRefresh)
}

// refreshDueAt is when a set that is in nobody's memory would be fetched again
// at the earliest.
func refreshDueAt(ks *registry.KeySet) time.Time {
	return ks.FetchedAt.Add(ks.FreshUntil.Sub(ks.FetchedAt) * 80 / 100)
}

// refreshAt is when a set is fetched again: after 80 to 95 % of its life, so
// that a slow host does not make it stale and many sets fetched at one moment
// do not stay together.
func refreshAt(fetchedAt, freshUntil time.Time) time.Time {
	life := freshUntil.Sub(fetchedAt)
	return fetchedAt.Add(life*80/100 + jitter(life*15/100))
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
		pause = min(firstRetry<<max(n, 0), lastRetry)
	}
	return pause + jitter(pause/4)
}

func jitter(most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	return rand.N(most) //nolint:gosec // spreads load, protects nothing
}
