package keycache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// In a fleet all replicas look at the same stored sets, and whoever is about to
// fetch one takes the lease on it first. What follows is one replica's part: it
// adopts what another has found out, waits for one who is at it, fetches itself
// if nobody else does, and goes on alone, in memory only, while the store is
// gone.

// leaseTime is how long a lease lasts: a fetch, and an access to the store before
// and after it. A replica that dies with it is replaced after that.
func (c *Cache) leaseTime() time.Duration { return min(3*c.cfg.FetchTimeout, time.Minute) }

// Between two looks at what another replica fetches pass at least pollEvery, and
// at most twice that.
const pollEvery = 100 * time.Millisecond

// storeRest is for how long the background leaves a store alone that has failed,
// so that refreshes do not all wait for it.
const storeRest = 5 * time.Second

// inTime runs an access to the store within the time for one.
func (r *round) inTime(ctx context.Context, access func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.FetchTimeout)
	defer cancel()
	err := access(ctx)
	if err != nil && !isNotFound(err) && !errors.Is(err, registry.ErrLeaseLost) && !errors.Is(err, registry.ErrTampered) {
		r.storeRests.Store(time.Now().Add(storeRest).UnixNano())
	}
	return storeError(err)
}

// storeFails reports whether the store has failed a moment ago.
func (c *Cache) storeFails() bool { return time.Now().UnixNano() < c.storeRests.Load() }

// look reads what is stored and adopts it.
func (r *round) look() error {
	var ks *registry.KeySet
	err := r.inTime(r.ctx, func(ctx context.Context) (err error) {
		ks, err = r.cfg.Store.KeySet(ctx, r.src.uri)
		return err
	})
	switch {
	case isNotFound(err):
		ks = nil
	case errors.Is(err, registry.ErrTampered):
		r.cfg.Logger.ErrorContext(r.ctx, "stored key set refused: somebody changed the store", "jwks_uri", r.src.uri, "error", err)
		ks = nil
	case err != nil:
		return err
	}
	r.adopt(ks)
	return nil
}

// adopt puts what is stored, nil for nothing, in the place of what is in memory,
// and returns it with its document. What is in memory stays if it is more recent
// and could not be stored, and as long as nothing better than no set is stored.
func (r *round) adopt(ks *registry.KeySet) (*setState, *text) {
	before := r.src.state.Load()
	there, t := r.accept(r.ctx, r.src.uri, ks, before.set.is)
	older := r.src.isUnsaved() && there.FetchedAt.Before(before.FetchedAt)
	r.lacks = before.set != nil && (ks == nil || older)
	switch {
	case ks == nil, there.set == nil && before.set != nil:
		return there, t
	case there.same(before):
		r.src.saved(before)
		return there, t
	case r.src.isUnsaved() && !there.FetchedAt.After(before.FetchedAt):
		return there, t
	}
	if err := r.src.put(there, t, false); err != nil {
		r.cfg.Logger.ErrorContext(r.ctx, "stored key set not taken over", "jwks_uri", r.src.uri, "error", err)
		return there, t
	}
	r.due = r.dueAfter(there, false)
	r.text = t
	return there, t
}

// lookUp is a flight that only asks the store. If replicas share one that has
// nothing, or something older than memory, the host is asked soon and the answer
// stored: the URL may have been given up and registered anew, or the store been
// put back.
func (r *round) lookUp() {
	if err := r.look(); err != nil {
		r.err = err
		return
	}
	if r.lacks && r.cfg.Leases != nil {
		r.due = earlier(r.due, time.Now())
	}
}

// shared is a flight in a fleet.
func (r *round) shared() {
	switch r.why {
	case keepSet:
		r.keep()
		return
	case whenDue, wanted:
		// Most often another has been here, and nothing need be written.
		if r.why == whenDue && r.storeFails() {
			r.without(errStoreGone)
			return
		}
		if err := r.look(); err != nil {
			r.without(errStoreGone)
			return
		}
		if r.content() {
			return
		}
	}
	r.byLease()
}

// content reports whether what is known by now is all that the flight is for,
// and if so, ends it with that. Who asked for a fetch is never content.
func (r *round) content() bool {
	state, now := r.src.state.Load(), time.Now()
	switch r.why {
	case whenDue:
		if r.lacks {
			return !state.mayFetch(now)
		}
		if isDue(state, now) {
			return false
		}
		if !r.due.After(now) {
			r.due = r.dueAfter(state, false)
		}
		return true
	case wanted:
		switch {
		case state.inUse(r.cfg.Policy, now):
			return true
		case !state.mayFetch(now):
			r.err = r.unusable(state, now)
			return true
		}
	}
	return false
}

// byLease fetches as soon as the lease is ours.
func (r *round) byLease() {
	patience := time.Now().Add(2 * r.leaseTime())
	first := r.src.state.Load()
	for again := false; ; {
		claim, err := r.claim()
		switch {
		case r.ctx.Err() != nil:
			r.cut = true
			return
		case err != nil:
			r.without(errStoreGone)
			return
		case claim.Unnamed && r.why == whenDue:
			r.forget = true
			return
		case claim.Unnamed:
			r.without(errUnnamed)
			return
		case claim.Lease != "":
			if r.hold(claim, again) {
				return
			}
			again = true // it was lost
			continue
		}
		r.adopt(claim.Set)
		if r.told(first) || !r.waitFor(claim.Until, patience, first) {
			return
		}
	}
}

func (r *round) claim() (claim *registry.Claim, err error) {
	err = r.inTime(r.ctx, func(ctx context.Context) (err error) {
		claim, err = r.cfg.Leases.Claim(ctx, r.src.uri, r.leaseTime())
		return err
	})
	return claim, err
}

// told reports whether what another replica has found out since first is all
// that the flight is for. The background does not wait for it.
func (r *round) told(first *setState) bool {
	state, now := r.src.state.Load(), time.Now()
	switch {
	case r.content():
		return true
	case r.why == tryOut && !state.same(first):
		r.asked = true
		if state.failures() > 0 {
			r.err = r.unusable(state, now)
		}
		return true
	}
	return false
}

// waitFor waits while another has the lease, until it is worth claiming again.
// It is false if that is not to be: the background looks again in a second or
// two, which is before the set that is being fetched becomes stale; others have
// been told meanwhile, or waited for too long.
func (r *round) waitFor(until, patience time.Time, first *setState) bool {
	now := time.Now()
	if r.why == whenDue {
		r.due = now.Add(time.Second + jitter(time.Second))
		return false
	}
	// A lease of another's clock may pretend to last long.
	until = earlier(until, now.Add(r.leaseTime()))
	for {
		if now.After(patience) {
			id := rand.Text()
			r.cfg.Logger.WarnContext(r.ctx, "client keys not fetched", "jwks_uri", r.src.uri, "incident", id, "error", errElsewhere)
			r.err = &FetchError{ID: id, RetryAfter: time.Second, Err: ErrUnavailable}
			return false
		}
		timer := time.NewTimer(pollEvery + jitter(pollEvery))
		select {
		case <-timer.C:
		case <-r.ctx.Done():
			timer.Stop()
			r.cut = true
			return false
		}
		// Whoever forces a refresh is told nothing by another's: only a claim
		// shows that he is done.
		now = time.Now()
		if r.why == forced || !now.Before(until) {
			return true
		}
		if err := r.look(); err != nil {
			return true // the claim will show it
		}
		if r.told(first) {
			return false
		}
	}
}

// hold does what is to be done with the lease in hand, and gives it back. It is
// false if the lease was lost to another and the flight has to try again: again
// says that it has done so before.
func (r *round) hold(claim *registry.Claim, again bool) bool {
	there, stored := r.adopt(claim.Set)
	before, now := r.src.state.Load(), time.Now()
	if r.why == forced && !again {
		if err := r.limited(there.ForcedAt, now); err != nil {
			r.sources.noteForced(r.src, there.ForcedAt)
			r.err = err
			r.release(claim)
			return true
		}
	}
	if r.content() {
		r.release(claim)
		return true
	}
	t := r.src.textOf(before)
	if t == nil && stored != nil && before.set != nil && stored.hash == before.set.hash {
		t = stored
	}
	after, t, err := r.get(before, t, true)
	if after == nil {
		r.cut = true
		r.release(claim)
		return true
	}
	if after.set != nil && t == nil && stored != nil {
		// A failure that could only be stored in the place of a set.
		r.release(claim)
		r.take(before, after, t, true, err)
		return true
	}
	// A forced refresh is to be in force everywhere: also where memory has, for
	// whatever reason, something else than the store.
	news := r.why == forced || claim.Set == nil || there.set == nil && after.set != nil || after.set != nil && after.set.hash != there.set.hash ||
		(there.failures() == 0) != (after.failures() == 0)
	switch put := r.putClaimed(after.record(r.src.uri, t), claim.Lease, news); {
	case put == nil:
		r.take(before, after, t, false, err)
	case errors.Is(put, registry.ErrLeaseLost):
		return r.lost(again, before, after, t, err)
	default:
		r.cfg.Logger.WarnContext(r.ctx, "key set not stored", "jwks_uri", r.src.uri, "error", put)
		r.release(claim)
		r.take(before, after, t, true, err)
		if r.why == forced && r.err == nil {
			r.err = unwritten(put)
		}
	}
	return true
}

// putClaimed writes also while the cache is being closed: what was fetched is
// good.
func (r *round) putClaimed(ks registry.KeySet, lease string, announce bool) error {
	return r.inTime(context.WithoutCancel(r.ctx), func(ctx context.Context) error {
		return r.cfg.Leases.PutClaimed(ctx, ks, lease, announce)
	})
}

// release gives a lease back. If it cannot be, it ends by itself.
func (r *round) release(claim *registry.Claim) {
	err := r.inTime(context.WithoutCancel(r.ctx), func(ctx context.Context) error {
		return r.cfg.Leases.Release(ctx, r.src.uri, claim.Lease)
	})
	if err != nil {
		r.cfg.Logger.WarnContext(r.ctx, "lease not released", "jwks_uri", r.src.uri, "error", err)
	}
}

// lost goes on after the lease was lost during a fetch: what is stored by now is
// right. A forced refresh tries once more, as what is stored may be from before.
func (r *round) lost(again bool, before, after *setState, t *text, err error) bool {
	if failed := r.look(); failed != nil {
		r.take(before, after, t, true, err)
	}
	switch {
	case r.why == forced && !again:
		r.err = nil
		return false
	case r.why == forced:
		r.err = unwritten(registry.ErrLeaseLost)
		return true
	}
	state, now := r.src.state.Load(), time.Now()
	if r.why != whenDue && (state.failures() > 0 || !state.inUse(r.cfg.Policy, now)) {
		r.err = r.unusable(state, now)
	}
	return true
}

// unwritten is the error of a refresh whose result could not be stored: it is in
// use here, and not in force elsewhere.
func unwritten(err error) error {
	return fmt.Errorf("%w: the refreshed keys are in use on this replica only: %v", registry.ErrUnavailable, err) //nolint:errorlint // what lies below is for the log
}

// Why a result is kept in memory only.
var (
	errStoreGone = errors.New("the store cannot be reached")
	errUnnamed   = errors.New("no registration that is stored names the URL")
)

// without fetches without a lease and keeps the result in memory: the store is
// gone, or no registration names the URL (yet).
func (r *round) without(why error) {
	before := r.src.state.Load()
	// Who tries keys out or shows them needs the document.
	must := r.why == tryOut || r.why == forced
	if !r.fetch(before, r.src.textOf(before), must, true) {
		return
	}
	if r.why == forced && r.err == nil {
		r.err = unwritten(why)
	}
}

// keep stores what is in memory and not in the store, unless that has something
// more recent by now, or will have.
func (r *round) keep() {
	if !r.src.isUnsaved() {
		return
	}
	claim, err := r.claim()
	if err != nil {
		r.err = err
		return
	}
	r.adopt(claim.Set)
	if claim.Unnamed || claim.Lease == "" {
		return
	}
	state := r.src.state.Load()
	t := r.src.textOf(state)
	if !r.src.isUnsaved() || state.set != nil && t == nil {
		r.release(claim)
		return
	}
	switch err := r.putClaimed(state.record(r.src.uri, t), claim.Lease, true); {
	case err == nil:
		r.src.saved(state)
	case !errors.Is(err, registry.ErrLeaseLost):
		r.release(claim)
		r.err = err
	}
}
