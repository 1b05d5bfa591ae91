package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/watch"
)

// keyChanges looks after changes of clients that wait. They take effect by the
// clock, and need nobody for that; what is left to do is to tell of it. On every
// replica, for each has an audit log of its own and changes over by itself, a
// change that takes effect becomes a line and is told to those who watch. What a
// client will need is made ready before, and some time after the record is settled
// in the store, which others may do too.
//
// Changes that wait are few, however many clients there are: the store has an
// index of them by their times. It is read when a client has changed, though not
// more often than is cheap, and now and then. Nothing of this is lost by a
// restart: a change that is not settled is told of when the process is back.
type keyChanges struct {
	store   registry.Waits
	keys    ClientKeys
	auditor Auditor
	watches *watch.Hub
	log     *slog.Logger
	wake    chan struct{} // has a token when the index may have changed
	due     chan struct{} // has a token when entries have changed

	mu      sync.Mutex
	entries map[registry.Waiting]*waitingChange // that take effect within the next day, or have; guarded by mu
	waiting int                                 // changes that wait, as far as the index was read; guarded by mu
}

// waitingChange is what is known of one change.
type waitingChange struct {
	needs    bool      // there is something to make ready: see ClientKeys.Prepare
	settleAt time.Time // when it is settled

	event   audit.Event // of its line; guarded by keyChanges.mu
	told    bool        // there is a line, and those who watch know; guarded by keyChanges.mu
	unready bool        // the log says that it is not ready; guarded by keyChanges.mu
}

const (
	// maxWaiting is how many changes are looked after at once: those that take
	// effect first.
	maxWaiting = 10_000
	// readAhead is how long before it takes effect a change is looked after. A key
	// set that could be had within a day can be used for as long, see
	// fetch.max_stale.
	readAhead = 24 * time.Hour
	// readEvery is how often the index is read when nothing was heard of, and
	// readAfter the pause before it is read again.
	readEvery = 15 * time.Second
	readAfter = 500 * time.Millisecond
	// prepareEvery is how often what clients will need is made ready.
	prepareEvery = time.Minute
	// settleAfter is how long after it took effect a change is settled, so that
	// every replica has told of it before, and settleSpread how far replicas spread
	// that out.
	settleAfter  = 10 * time.Second
	settleSpread = 5 * time.Second
	// changePatience is how long the store may take for one of its answers.
	changePatience = 5 * time.Second
)

// newKeyChanges returns nil where no changes wait.
func newKeyChanges(cfg *Config, log *slog.Logger) *keyChanges {
	if cfg.Waits == nil {
		return nil
	}
	return &keyChanges{
		store: cfg.Waits, keys: cfg.ClientKeys, auditor: cfg.Auditor, watches: cfg.Watches, log: log,
		wake: make(chan struct{}, 1), due: make(chan struct{}, 1), entries: make(map[registry.Waiting]*waitingChange),
	}
}

// ClientChanged is called after the registration of a client was written
// (registry.Follower).
func (k *keyChanges) ClientChanged(string, string) {
	if k != nil {
		poke(k.wake)
	}
}

// KeySetChanged is for registry.Follower: it changes nothing of when.
func (k *keyChanges) KeySetChanged(string) {}

// Reset is called when anything may have changed (registry.Follower).
func (k *keyChanges) Reset() { k.ClientChanged("", "") }

// count is how many changes wait, as far as is known: maxWaiting at most.
func (k *keyChanges) count() int {
	if k == nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.waiting
}

// run looks after changes until ctx ends. It returns nil then.
func (k *keyChanges) run(ctx context.Context) error {
	if k == nil {
		return nil
	}
	var parts sync.WaitGroup
	parts.Go(func() { k.strike(ctx) }) // also while the store does not answer
	k.look(ctx)
	parts.Wait()
	return nil
}

// look reads the index, makes ready what is needed, and settles what took effect.
func (k *keyChanges) look(ctx context.Context) {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	var prepared time.Time
	for {
		began := time.Now()
		added, err := k.read(ctx)
		if err != nil && ctx.Err() == nil {
			k.log.WarnContext(ctx, "changes of clients that wait could not be read; those that are known take effect and are told of", "error", err)
		}
		if since := time.Since(prepared); added || since < 0 || since >= prepareEvery {
			prepared = time.Now()
			k.prepare(ctx)
		}
		k.settle(ctx)
		// What takes long is not done all the time.
		pause := max(readAfter, 10*time.Since(began))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		select {
		case <-k.wake:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// read brings entries up to what the store has, and reports whether there are more.
func (k *keyChanges) read(ctx context.Context) (added bool, err error) {
	limited, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	list, err := k.store.Waiting(limited, maxWaiting)
	if err != nil {
		return false, err
	}
	now := time.Now()
	there := make(map[registry.Waiting]bool, len(list))
	waiting := 0
	var fresh []registry.Waiting
	k.mu.Lock()
	for _, w := range list {
		there[w] = true
		if now.Before(w.EffectiveAt) {
			waiting++
		}
		if k.entries[w] == nil && w.EffectiveAt.Sub(now) < readAhead {
			fresh = append(fresh, w)
		}
	}
	k.waiting = waiting
	// What is gone and was not told of has been taken back, unless its time has
	// come: then it took effect here, and strike is about to tell.
	maps.DeleteFunc(k.entries, func(w registry.Waiting, c *waitingChange) bool {
		return !there[w] && (c.told || now.Before(w.EffectiveAt))
	})
	k.mu.Unlock()
	for _, w := range fresh {
		if failed := k.add(ctx, w); failed != nil {
			err = failed // of the last: they are alike
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	if len(fresh) > 0 {
		poke(k.due)
	}
	return len(fresh) > 0, err
}

// add finds out what there is to tell of a change.
func (k *keyChanges) add(ctx context.Context, w registry.Waiting) error {
	limited, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	reg, err := k.store.Unsettled(limited, w.Issuer, w.ClientID)
	switch {
	case errors.Is(err, registry.ErrNotFound), errors.Is(err, registry.ErrTampered),
		err == nil && (reg.Pending == nil || !reg.Pending.EffectiveAt.Equal(w.EffectiveAt)):
		// The index says what no record does. If that is not of a moment only,
		// it goes out of the index.
		return k.store.Settle(limited, w)
	case err != nil:
		return err
	}
	event, err := k.eventOf(limited, reg)
	if err != nil {
		return err
	}
	next := reg.Pending.Source
	c := &waitingChange{
		event:    event,
		needs:    next.JWKSURI != "" || next.Secret != nil,
		settleAt: w.EffectiveAt.Add(settleAfter + rand.N(settleSpread)), //nolint:gosec // spreads load, protects nothing
	}
	k.mu.Lock()
	k.entries[w] = c
	k.mu.Unlock()
	return nil
}

// eventOf is the line of a change that takes effect: what its keys are by what is
// known now.
func (k *keyChanges) eventOf(ctx context.Context, reg *registry.Registration) (audit.Event, error) {
	next := reg.Successor()
	event := audit.Event{
		Outcome: audit.TookEffect, Issuer: reg.Issuer, ClientID: reg.ClientID, Revision: next.Revision,
		EffectiveAt: reg.Pending.EffectiveAt, Settings: settingsOf(next), KeySource: keySource(next),
	}
	if !reg.Deleted {
		status, err := k.keys.Status(ctx, reg)
		if err != nil {
			return event, err
		}
		event.OldThumbprint = thumbprints(reg, status)
	}
	status, err := k.keys.Upcoming(ctx, reg)
	if err != nil {
		return event, err
	}
	event.NewThumbprint = thumbprints(next, status)
	return event, nil
}

// prepare makes ready what clients need when their changes take effect, and brings
// up to date what is to be told of them: a key set may have changed.
func (k *keyChanges) prepare(ctx context.Context) {
	now := time.Now()
	for _, w := range k.these(func(w registry.Waiting, c *waitingChange) bool { return c.needs && now.Before(w.EffectiveAt) }) {
		err := k.prepareOne(ctx, w)
		if ctx.Err() != nil {
			return
		}
		k.mu.Lock()
		c := k.entries[w]
		say := c != nil && err != nil && !c.unready
		if c != nil {
			c.unready = err != nil
		}
		k.mu.Unlock()
		if say {
			k.log.WarnContext(ctx, "a change of a client that waits could not be made ready: its first tokens may take longer, or fail",
				"issuer", w.Issuer, "client_id", w.ClientID, "effective_at", w.EffectiveAt, "error", err)
		}
	}
}

func (k *keyChanges) prepareOne(ctx context.Context, w registry.Waiting) error {
	limited, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	reg, err := k.store.Unsettled(limited, w.Issuer, w.ClientID)
	if err != nil {
		return err
	}
	if reg.Pending == nil || !reg.Pending.EffectiveAt.Equal(w.EffectiveAt) {
		return nil // it has changed since
	}
	if err := k.keys.Prepare(limited, reg); err != nil {
		return err
	}
	event, err := k.eventOf(limited, reg)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.entries[w]; c != nil && !c.told {
		c.event = event
	}
	return nil
}

// settle settles what took effect some time ago.
func (k *keyChanges) settle(ctx context.Context) {
	now := time.Now()
	for _, w := range k.these(func(_ registry.Waiting, c *waitingChange) bool { return c.told && !now.Before(c.settleAt) }) {
		limited, cancel := context.WithTimeout(ctx, changePatience)
		err := k.store.Settle(limited, w)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			k.log.WarnContext(ctx, "a change of a client that took effect is not settled yet", "issuer", w.Issuer, "client_id", w.ClientID, "error", err)
			continue
		}
		k.mu.Lock()
		delete(k.entries, w)
		k.mu.Unlock()
	}
}

// these are the changes for which is says so, in the order of their times. is is
// called with mu held.
func (k *keyChanges) these(is func(registry.Waiting, *waitingChange) bool) []registry.Waiting {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []registry.Waiting
	for w, c := range k.entries {
		if is(w, c) {
			list = append(list, w)
		}
	}
	slices.SortFunc(list, func(a, b registry.Waiting) int { return a.EffectiveAt.Compare(b.EffectiveAt) })
	return list
}

// Pauses of strike: maxSleep because a clock may be set, retryTelling after a line
// that could not be written.
const (
	maxSleep     = time.Minute
	retryTelling = time.Second
)

// strike tells of changes when their time has come.
func (k *keyChanges) strike(ctx context.Context) {
	for {
		now := time.Now()
		pause := maxSleep
		for _, w := range k.these(func(_ registry.Waiting, c *waitingChange) bool { return !c.told }) {
			if wait := w.EffectiveAt.Sub(now); wait > 0 {
				pause = min(pause, wait)
				break
			}
			if err := k.tell(ctx, w); err != nil {
				pause = retryTelling
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-k.due:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// tell puts on record that a change took effect, and tells those who watch. It is
// in force whether or not that works.
func (k *keyChanges) tell(ctx context.Context, w registry.Waiting) error {
	k.mu.Lock()
	c := k.entries[w]
	if c == nil || c.told {
		k.mu.Unlock()
		return nil // taken back this moment
	}
	event := c.event
	k.mu.Unlock()
	k.watches.ClientChanged(w.Issuer, w.ClientID)
	if err := k.auditor.Record(ctx, event); err != nil {
		k.log.ErrorContext(ctx, "a change of a client took effect and is not on record yet", "issuer", w.Issuer, "client_id", w.ClientID, "error", err)
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c.told = true
	if k.waiting > 0 {
		k.waiting--
	}
	return nil
}

// poke puts a token into a channel with room for one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
