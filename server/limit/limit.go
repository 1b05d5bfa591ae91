// Package limit holds back callers who register clients faster than the
// service, or the hosts of those clients, should bear.
//
// A registration costs a look at the store and the reading of keys, and a line
// in the audit log. One that names a jwks_uri also sends a request to a host
// that somebody else has chosen: behind a provider with open registration that
// may be anybody. So there are three limits, each a token bucket that holds
// ten seconds' worth:
//
//   - registrations of each caller, whether or not they succeed;
//   - fetches that the registrations of each caller cause, and how many of
//     those are under way at once, so that one caller whose hosts hang leaves
//     room for the others;
//   - those fetches at each target, of all callers together, so that Bulla is
//     no means to flood a third party.
//
// A target is what one owner has: a registrable domain, and not a host name,
// of which the owner of a wildcard domain has as many as he likes (see
// fetch.Target).
//
// What is remembered is bounded, and so is what can be made of that. A bucket
// is forgotten when it is full again, which changes nothing: a new one is full
// too. If there are more than fit before that, the fullest goes. To have a
// drained bucket forgotten, somebody would have to drain all the others
// further: thousands of fetches for each one that it brings.
//
// The limits are those of one replica: behind a balancer a fleet allows as
// many times more as it has replicas. They are for holding back floods, not
// for counting.
package limit

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
)

// Config says how much is let through. The zero value is all defaults.
type Config struct {
	// Registrations is how many registrations one caller may make in a second.
	// Default 100.
	Registrations float64
	// FirstFetches is how many fetches of a jwks_uri the registrations of one
	// caller may cause in a second. Default 20.
	FirstFetches float64
	// FirstFetchesPerHost is how many of those, of all callers together, may go
	// to one target in a second. Default 5.
	FirstFetchesPerHost float64
}

// Defaults of Config, a second.
const (
	DefaultRegistrations       = 100
	DefaultFirstFetches        = 20
	DefaultFirstFetchesPerHost = 5
)

const (
	// burst is how many seconds' worth a bucket holds.
	burst = 10
	// most is the highest rate: beyond it a limit limits nothing.
	most = 1e6
	// maxCallers and maxTargets are how many buckets are remembered. Callers
	// are named in the grants, so there are never that many.
	maxCallers = 4096
	maxTargets = 16384
	// turnsEach is how many fetches one caller's registrations have under way
	// at once: a quarter of all that there may be.
	turnsEach = fetch.DefaultMaxConcurrent / 4
	// patience is how long one waits for the caller's others to end.
	patience = fetch.DefaultTimeout
	// leastPause is the shortest time that is asked for: who was turned away
	// should not come back for each single token.
	leastPause = time.Second
)

// Limits counts. It is safe for concurrent use.
type Limits struct {
	turns turns

	mu            sync.Mutex
	registrations *buckets // by caller; guarded by mu
	fetches       *buckets // by caller; guarded by mu
	targets       *buckets // by target; guarded by mu
}

// New returns limits that nobody has used yet. An error says which rate is
// wrong.
func New(cfg Config) (*Limits, error) {
	l := &Limits{turns: turns{each: turnsEach, callers: make(map[string]*callerTurns)}}
	for _, rate := range []struct {
		name      string
		value, or float64
		max       int
		to        **buckets
	}{
		{"registrations", cfg.Registrations, DefaultRegistrations, maxCallers, &l.registrations},
		{"first_fetches", cfg.FirstFetches, DefaultFirstFetches, maxCallers, &l.fetches},
		{"first_fetches_per_host", cfg.FirstFetchesPerHost, DefaultFirstFetchesPerHost, maxTargets, &l.targets},
	} {
		if !(rate.value >= 0 && rate.value <= most) { // nor is it NaN
			return nil, fmt.Errorf("limit: %s: %v is no rate: write a number of up to %.0f a second, or 0 for the default of %v", rate.name, rate.value, float64(most), rate.or)
		}
		if rate.value == 0 {
			rate.value = rate.or
		}
		*rate.to = newBuckets(rate.value, rate.max)
	}
	return l, nil
}

// Registration counts a registration of a caller. Its error is an
// *ExceededError.
func (l *Limits) Registration(caller string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if wait := l.registrations.wait(caller, now); wait > 0 {
		return exceeded("the caller registers clients faster than it may", wait)
	}
	l.registrations.take(caller, now)
	return nil
}

// FirstFetch counts the fetch of a jwks_uri that a registration of a caller
// causes, and waits until the caller has a place for it; done gives that back.
// If ctx is over by then, the fetch may go on without its caller, and keeps the
// place for as long as a fetch can take. One that is refused is not counted.
// Errors: an *ExceededError, or the context's.
func (l *Limits) FirstFetch(ctx context.Context, caller, uri string) (done func(), err error) {
	target := fetch.Target(uri)
	// Who is over a limit already is told so at once, and does not wait first.
	if err := l.fetch(caller, target, false); err != nil {
		return nil, err
	}
	leave, err := l.turns.enter(ctx, caller)
	if err != nil {
		return nil, err
	}
	// Counted last: else who gets no place has others pay for a fetch that there
	// was not, those who share the target with it.
	if err := l.fetch(caller, target, true); err != nil {
		leave()
		return nil, err
	}
	return func() {
		if ctx.Err() != nil {
			time.AfterFunc(fetch.DefaultTimeout, leave)
			return
		}
		leave()
	}, nil
}

// fetch says whether a fetch may be made now, and counts it if it may and count
// is set.
func (l *Limits) fetch(caller, target string, count bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if wait := l.fetches.wait(caller, now); wait > 0 {
		return exceeded("the caller registers jwks_uris faster than it may", wait)
	}
	if wait := l.targets.wait(target, now); wait > 0 {
		return exceeded("jwks_uris of this host are registered faster than they may be", wait)
	}
	if count {
		l.fetches.take(caller, now)
		l.targets.take(target, now)
	}
	return nil
}
