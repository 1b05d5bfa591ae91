package keycache

import "time"

// Fetched is what came of one fetch of a key set.
type Fetched string

// What comes of fetches.
const (
	// FetchedChanged: the host has another document than the one in memory, if
	// there was one.
	FetchedChanged Fetched = "changed"
	// FetchedUnchanged: it has the same, or said so.
	FetchedUnchanged Fetched = "unchanged"
	// FetchedNothing: it did not answer, or what it answered is no key set.
	FetchedNothing Fetched = "failed"
)

// tell tells of a fetch, unless it was cut short by the end of the cache.
func (r *round) tell(before, after *keySet, err error, took time.Duration) {
	what := FetchedChanged
	switch {
	case err != nil && r.ctx.Err() != nil:
		return
	case err != nil:
		what = FetchedNothing
	case after == before:
		what = FetchedUnchanged
	}
	r.cfg.Fetched(what, took)
}
