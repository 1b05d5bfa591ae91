// Package limit bounds what each caller may ask for, so that none of them has
// the service, or the hosts of its clients, to itself.
//
// A token costs a signature. What there is of those is shared out among those
// who ask, by package admit; the limits here are for an operator who wants to
// grant a caller less than that: so many tokens a second, and so many under way
// at once. There are none unless they are configured.
//
// A registration costs a look at the store and the reading of keys, and a line
// in the audit log. One that names a jwks_uri also sends a request to a host
// that somebody else has chosen: behind a provider with open registration that
// may be anybody. So there are three limits:
//
//   - registrations of each caller, whether or not they succeed;
//   - fetches that the registrations of each caller cause, and how many of
//     those are under way at once, so that one caller whose hosts hang leaves
//     room for the others;
//   - those fetches at each target, of all callers together, so that Bulla is
//     no means to flood a third party.
//
// What is counted by the second is a token bucket that holds ten seconds' worth.
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
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
)

// Config says how much is let through. The zero value is all defaults.
type Config struct {
	// Tokens is how many tokens one caller may ask for in a second. Default: no
	// limit.
	Tokens float64
	// InFlight is how many tokens of one caller may be under way at once.
	// Default: no limit.
	InFlight int
	// Registrations is how many registrations one caller may make in a second.
	// Default 100.
	Registrations float64
	// FirstFetches is how many fetches of a jwks_uri the registrations of one
	// caller may cause in a second. Default 20.
	FirstFetches float64
	// FirstFetchesPerHost is how many of those, of all callers together, may go
	// to one target in a second. Default 5.
	FirstFetchesPerHost float64
	// Callers are those with limits of their own, by name. Default: none.
	Callers map[string]Caller
}

// Caller is what one caller may do, where that is not what all may.
type Caller struct {
	// Tokens and InFlight are as in Config; zero is no limit. Default: nil, as
	// for all.
	Tokens   *float64
	InFlight *int
	// Registrations and FirstFetches are as in Config. Default: as for all.
	Registrations, FirstFetches float64
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
	turns    turns
	exceeded [kinds]atomic.Uint64
	// rules are for tokens. They are read without mu by those who have none, and
	// changed with it.
	rules atomic.Pointer[rules]

	mu            sync.Mutex
	tokens        *buckets           // by caller; guarded by mu
	underWay      map[string]*tokens // by caller; guarded by mu
	registrations *buckets           // by caller; guarded by mu
	fetches       *buckets           // by caller; guarded by mu
	targets       *buckets           // by target; guarded by mu
}

// New returns limits that nobody has used yet. An error says which of them is
// wrong.
func New(cfg Config) (*Limits, error) {
	l := &Limits{
		turns:    turns{each: turnsEach, callers: make(map[string]*callerTurns)},
		underWay: make(map[string]*tokens),
		tokens:   newBuckets(0, maxCallers), registrations: newBuckets(0, maxCallers), fetches: newBuckets(0, maxCallers), targets: newBuckets(0, maxTargets),
	}
	if err := l.Change(cfg); err != nil {
		return nil, err
	}
	return l, nil
}

// Change puts other limits in force. What was counted stays counted: a bucket is
// as full as before, and what is under way is known. An error says which limit is
// wrong, and nothing is changed.
func (l *Limits) Change(cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	r := cfg.rules()
	fetches, registrations := make(map[string]float64), make(map[string]float64)
	for name, c := range cfg.Callers {
		if c.Registrations > 0 {
			registrations[name] = c.Registrations
		}
		if c.FirstFetches > 0 {
			fetches[name] = c.FirstFetches
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.tokens.change(r.all.perSecond, r.rates(), now)
	l.registrations.change(or(cfg.Registrations, DefaultRegistrations), registrations, now)
	l.fetches.change(or(cfg.FirstFetches, DefaultFirstFetches), fetches, now)
	l.targets.change(or(cfg.FirstFetchesPerHost, DefaultFirstFetchesPerHost), nil, now)
	for name, t := range l.underWay {
		if t.n == 0 {
			delete(l.underWay, name)
		}
	}
	l.rules.Store(r)
	return nil
}

func or(value, standard float64) float64 {
	if value == 0 {
		return standard
	}
	return value
}

func (cfg *Config) check() error {
	for _, rate := range []struct {
		name  string
		value float64
		or    string
	}{
		{"tokens", cfg.Tokens, "no limit"},
		{"registrations", cfg.Registrations, fmt.Sprint("the default of ", DefaultRegistrations)},
		{"first_fetches", cfg.FirstFetches, fmt.Sprint("the default of ", DefaultFirstFetches)},
		{"first_fetches_per_host", cfg.FirstFetchesPerHost, fmt.Sprint("the default of ", DefaultFirstFetchesPerHost)},
	} {
		if !isRate(rate.value) {
			return fmt.Errorf("limit: %s: %v is no rate: write a number of up to %.0f a second, or 0 for %s", rate.name, rate.value, float64(most), rate.or)
		}
	}
	if cfg.InFlight < 0 {
		return fmt.Errorf("limit: in_flight: %d cannot be: write a number, or 0 for no limit", cfg.InFlight)
	}
	for name, c := range cfg.Callers {
		if !isRate(c.Registrations) || !isRate(c.FirstFetches) || c.Tokens != nil && !isRate(*c.Tokens) || c.InFlight != nil && *c.InFlight < 0 {
			return fmt.Errorf("limit: callers: a limit of %q cannot be: write numbers of up to %.0f", name, float64(most))
		}
	}
	return nil
}

// isRate reports whether a number can be a rate; NaN cannot.
func isRate(value float64) bool { return value >= 0 && value <= most && !math.IsInf(value, 0) }

// Registration counts a registration of a caller. Its error is an
// *ExceededError.
func (l *Limits) Registration(caller string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if wait := l.registrations.wait(caller, now); wait > 0 {
		return l.exceed(registrations, wait)
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
	if errors.Is(err, errNoTurn) {
		err = l.exceed(fetchesInFlight, patience)
	}
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
		return l.exceed(firstFetches, wait)
	}
	if wait := l.targets.wait(target, now); wait > 0 {
		return l.exceed(firstFetchesPerHost, wait)
	}
	if count {
		l.fetches.take(caller, now)
		l.targets.take(target, now)
	}
	return nil
}
