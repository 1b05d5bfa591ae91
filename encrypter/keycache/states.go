package keycache

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// summary is what matters of a key set to those who watch a client.
type summary struct {
	document uint64 // the hash of its document
	state    State  // Ready, Stale or Expired by its age; Failing if there has never been a set
	failing  bool
}

func (c *Cache) summary(state *setState, now time.Time) summary {
	s := summary{state: state.age(c.cfg.Policy, now), failing: state.failures() > 0}
	if state.set != nil {
		s.document = state.set.hash
	}
	return s
}

// age is the state of a set by its age.
func (s *setState) age(p Policy, now time.Time) State {
	switch {
	case s.set == nil:
		return Failing
	case now.After(s.usableUntil(p)):
		return Expired
	case now.After(s.FreshUntil):
		return Stale
	}
	return Ready
}

// notice tells that a set has changed materially since this was last told.
func (c *Cache) notice(src *source) {
	src.mu.Lock()
	now := c.summary(src.state.Load(), time.Now())
	changed := now != src.told
	src.told = now
	src.mu.Unlock()
	if changed && c.cfg.KeySetChanged != nil {
		c.cfg.KeySetChanged(src.uri)
	}
}

// wakeFor is when a set is to be looked after that is due at due: earlier if it
// becomes stale or expires before.
func (c *Cache) wakeFor(state *setState, due, now time.Time) time.Time {
	if state.set == nil {
		return due
	}
	for _, turn := range []time.Time{state.FreshUntil, state.usableUntil(c.cfg.Policy)} {
		if !turn.Before(now) {
			due = earlier(due, turn.Add(time.Millisecond)) // after it, by any clock
		}
	}
	return due
}

// statesFor is how long what States has counted holds.
const statesFor = 15 * time.Second

// states are the clients by state, counted at a moment.
type states struct {
	mu    sync.Mutex // held while they are counted
	of    map[State]int
	until time.Time
}

// States counts the clients in memory by state. It counts them anew every 15
// seconds at most, and does not count those whose key set is not in memory. What
// takes a look at the store or at a sealed secret is left to Status.
func (c *Cache) States() map[State]int {
	c.states.mu.Lock()
	defer c.states.mu.Unlock()
	now := time.Now()
	if c.states.of == nil || !now.Before(c.states.until) {
		c.states.of = make(map[State]int, len(worse))
		for cl := range c.clients.Values() {
			if cl = cl.at(now); cl == nil {
				continue
			}
			if state := c.stateOf(cl, now); state != 0 {
				c.states.of[state]++
			}
		}
		c.states.until = now.Add(statesFor)
	}
	return maps.Clone(c.states.of)
}

// stateOf is the state of a client as far as memory has it, 0 if it is not known.
func (c *Cache) stateOf(cl *client, now time.Time) State {
	state := Ready
	add := func(s State) {
		if slices.Index(worse, s) > slices.Index(worse, state) {
			state = s
		}
	}
	picks := cl.fixed
	if cl.uri != "" {
		src := cl.source.Load()
		if src == nil || src.gone.Load() {
			if src = c.sources.get(cl.uri); src == nil {
				return 0
			}
		}
		known := src.state.Load()
		if src.gone.Load() {
			return 0
		}
		add(known.age(c.cfg.Policy, now))
		if known.failures() > 0 && state == Ready {
			add(Failing)
		}
		if known.set != nil {
			picks = cl.chosen(known.set)
		}
	}
	if unfit(picks) {
		add(NoUsableKey)
	}
	if s := cl.secret; s != nil {
		if secretExpired(s.expiresAt, now) != nil {
			add(Expired)
		}
		if o := s.opened.Load(); o != nil && (o.err != nil || unfit(o.picks)) {
			add(NoUsableKey)
		}
	}
	return state
}

// unfit reports whether a setting that encrypts has no key.
func unfit(picks []pick) bool {
	return slices.ContainsFunc(picks, func(p pick) bool { return p.failed != nil })
}
