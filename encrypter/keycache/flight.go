package keycache

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// flight is a fetch under way, or a look at the store. All who want the set
// while it lasts wait for the same one.
type flight struct {
	done chan struct{}
	why  purpose

	// All of these are set before done is closed.
	state *setState // what is known of the URL now
	text  *text     // the document of its set, if it was at hand
	asked bool      // whether the host was asked meanwhile, by any replica
	err   error     // a *FetchError, *LimitError, registry.ErrUnavailable or errClosed
}

// purpose is what a flight is for.
type purpose int

const (
	// whenDue: a set is to be fetched again, in the background.
	whenDue purpose = iota
	// wanted: a caller waits, and there is no set that may be used.
	wanted
	// tryOut: a registration is tried out. The host is asked whatever is known.
	tryOut
	// forced: a refresh was asked for. The host is asked after that.
	forced
	// lookUp: only the store is asked.
	lookUp
	// keepSet: what is in memory is stored.
	keepSet
)

// wait returns how the flight ended. It goes on if the caller leaves.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// always is for a flight that is needed whatever is known.
func always() bool { return true }

// join returns the flight of src under way or, if needed says so, starts one.
// It returns nil if there is none and none is needed, and if src is gone: look
// again. needed is called with sources.mu held.
func (c *Cache) join(src *source, why purpose, needed func() bool) *flight {
	f, _ := c.joinOrStart(src, why, needed)
	return f
}

// joinOrStart is join, and says whether the flight is a new one.
func (c *Cache) joinOrStart(src *source, why purpose, needed func() bool) (f *flight, started bool) {
	f = c.sources.begin(src, needed, func() *flight {
		f := &flight{done: make(chan struct{}), why: why}
		started = true
		if !c.start(func() { c.fly(src, f) }) {
			f.err = errClosed
			close(f.done)
		}
		return f
	})
	return f, started
}

// usable waits until the set of a URL may be used: for one fetch at most, and
// not at all while the last one's failure asks for a pause.
func (c *Cache) usable(ctx context.Context, uri string) (*source, *setState, error) {
	for {
		src, err := c.source(ctx, uri)
		if err != nil {
			return nil, nil, err
		}
		state, now := src.state.Load(), time.Now()
		if state.inUse(c.cfg.Policy, now) {
			return src, state, nil
		}
		if !state.mayFetch(now) {
			return nil, nil, c.unusable(state, now)
		}
		f := c.join(src, wanted, func() bool {
			// A fetch may have ended since we looked.
			s := src.state.Load()
			return !s.inUse(c.cfg.Policy, now) && s.mayFetch(now)
		})
		if f == nil {
			continue
		}
		err = f.wait(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil, errors.Is(err, errClosed), f.why == wanted:
			return nil, nil, err
		}
		// A flight for something else says nothing of what it found.
	}
}

// fetched returns the flight that has asked the host of a URL within the call.
// One that is forced began after it.
func (c *Cache) fetched(ctx context.Context, uri string, why purpose) (*flight, error) {
	for noted := false; ; {
		src, err := c.source(ctx, uri)
		if err != nil {
			return nil, err
		}
		if why == forced && !noted {
			if err := c.force(src); err != nil {
				return nil, err
			}
			noted = true
		}
		f, mine := c.joinOrStart(src, why, always)
		if f == nil {
			continue
		}
		err = f.wait(ctx)
		switch {
		case mine, why == tryOut && f.asked, ctx.Err() != nil, errors.Is(err, errClosed):
			return f, err
		}
	}
}

// force notes that a refresh is forced. It is a *LimitError if the last time was
// a moment ago, as far as this replica knows.
func (c *Cache) force(src *source) error {
	c.sources.mu.Lock()
	defer c.sources.mu.Unlock()
	now := time.Now()
	last := max(src.forced, nanos(src.state.Load().ForcedAt))
	if err := c.limited(time.Unix(0, last), now); err != nil {
		return err
	}
	src.forced = now.UnixNano()
	return nil
}

// limited is a *LimitError if a refresh that was forced at last forbids another
// one now, nil if not.
func (c *Cache) limited(last, now time.Time) error {
	if wait := c.cfg.ForcedEvery - now.Sub(last); wait > 0 {
		return &LimitError{RetryAfter: wait}
	}
	return nil
}

// fly makes a flight and puts its result in place.
func (c *Cache) fly(src *source, f *flight) {
	defer close(f.done)
	r := &round{Cache: c, src: src, flight: f, due: c.sources.dueAt(src)}
	switch {
	case f.why == lookUp:
		r.lookUp()
	case c.cfg.Leases != nil:
		r.shared()
	default:
		r.alone()
	}
	if c.ctx.Err() != nil && r.cut {
		// It was cut short, which says nothing about the host. Nobody will
		// look at src again.
		f.state, f.err = nil, errClosed
		return
	}
	if f.state == nil {
		f.state = src.state.Load()
		if set := f.state.set; f.text != nil && (set == nil || set.hash != f.text.hash) {
			f.text = nil
		}
	}
	c.sources.reweigh(src)
	c.notice(src)
	now := time.Now()
	wake := c.wakeFor(f.state, r.due, now)
	if !wake.After(now) {
		wake = now.Add(soon) // whatever went wrong, it does not go round without a pause
	}
	c.sources.end(src, wake, r.forget)
	c.balance()
}

// round is what happens in one flight.
type round struct {
	*Cache
	*flight
	src    *source
	due    time.Time // when the URL is to be fetched next
	forget bool      // that no registration names it any more
	cut    bool      // it ended because the cache is being closed
	lacks  bool      // the store had nothing, or something older than memory, when it was last looked at
}

// soon is how long after a flight the next one begins at the earliest, if
// nobody waits for it.
const soon = time.Second

// alone fetches, and stores the result in a store that nobody else writes to.
func (r *round) alone() {
	before := r.src.state.Load()
	t, must := r.src.textOf(before), true
	if before.set != nil && t == nil {
		// A 304 does not bring the document that is to be stored again.
		there, err := r.read(before)
		must = err == nil
		if there != nil && there.hash == before.set.hash {
			t = there
		}
	}
	if !r.fetch(before, t, must, true) {
		return
	}
	// Those who wait are answered when the result would survive a restart.
	if err := r.save(context.WithoutCancel(r.ctx), r.src, r.why != tryOut); err != nil {
		// What is in memory is good. A restart would find an older set.
		r.cfg.Logger.WarnContext(r.ctx, "key set not stored", "jwks_uri", r.src.uri, "error", err)
	}
}

// read returns the document that is stored, nil for none.
func (r *round) read(known *setState) (*text, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.FetchTimeout)
	defer cancel()
	_, t, err := r.stored(ctx, r.src.uri, known.set.is)
	return t, err
}

// fetch asks the host and puts the answer in place, which the store does not
// have yet if unsaved says so. It is false if the cache is being closed.
func (r *round) fetch(before *setState, t *text, must, unsaved bool) bool {
	after, t, err := r.get(before, t, must)
	if after == nil {
		r.cut = true
		return false
	}
	r.take(before, after, t, unsaved, err)
	return true
}

// get asks the host once and returns the state that follows from the answer, the
// document of its set if it is at hand, and a *FetchError if the answer was no
// good. The state is nil if the cache is being closed. t is the document of
// before's set, if that is at hand; must says that it has to be afterwards.
func (r *round) get(before *setState, t *text, must bool) (*setState, *text, error) {
	r.asked = true
	// A set is as old as the question: the host may have looked at its keys as
	// soon as it was asked, however long the answer took.
	asked, began := wallClock(), time.Now()
	res, set, doc, err := r.ask(before, t, must)
	r.tell(before.set, set, err, time.Since(began))
	if err != nil {
		after, err := r.failed(before, wallClock(), err)
		if after != nil && r.why == forced {
			after.ForcedAt = asked
		}
		return after, t, err
	}
	after := &setState{
		set: set, ETag: res.ETag, LastModified: res.LastModified,
		FetchedAt: asked, FreshUntil: asked.Add(r.cfg.Policy.freshFor(res.Freshness)), ForcedAt: before.ForcedAt,
	}
	if r.why == forced {
		after.ForcedAt = asked
	}
	if n := before.failures(); n > 0 {
		r.cfg.Logger.InfoContext(r.ctx, "client keys fetched again", "jwks_uri", r.src.uri, "failures", n)
	}
	return after, doc, nil
}

// take puts the result of a fetch in place.
func (r *round) take(before, after *setState, t *text, unsaved bool, err error) {
	if broken := r.src.put(after, t, unsaved); broken != nil {
		if after, err = r.failed(before, wallClock(), broken); after == nil {
			r.cut = true
			return
		}
		t = r.src.textOf(before)
		_ = r.src.put(after, nil, true) // with the set that was there, nothing is chosen anew
	}
	r.state, r.text, r.err = after, t, err
	r.due = r.dueAfter(after, true)
}

// ask returns the host's answer, the set that holds after it (the one we have,
// if it has not changed, so that what was chosen from it stays good) and its
// document.
func (r *round) ask(before *setState, t *text, must bool) (res *fetch.Response, set *keySet, doc *text, err error) {
	// Nobody else would catch it on this goroutine, and the document is a
	// stranger's: it must not take the service down.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.FetchTimeout)
	defer cancel()
	req := fetch.Request{URI: r.src.uri}
	if before.set != nil && (t != nil || !must) {
		req.ETag, req.LastModified = before.ETag, before.LastModified
	}
	res, err = r.cfg.Fetcher.Get(ctx, req)
	switch {
	case err != nil:
		return nil, nil, nil, err
	case res.NotModified && (before.set == nil || t == nil && must):
		return nil, nil, nil, errors.New("304 Not Modified for a set that we do not have")
	case res.NotModified:
		return res, before.set, t, nil
	}
	// A copy has no room to grow, as what was read from a connection has.
	doc = r.newText(bytes.Clone(res.Document))
	if set = before.set.is(doc.hash); set != nil {
		return res, set, doc, nil
	}
	if _, err := doc.parse(); err != nil {
		return nil, nil, nil, err
	}
	return res, &keySet{hash: doc.hash}, doc, nil
}

// failed is the state after a failed fetch, in which the last good set stays,
// with the error for callers. It is nil if the cache is being closed.
func (r *round) failed(before *setState, now time.Time, cause error) (*setState, error) {
	if r.ctx.Err() != nil {
		return nil, errClosed
	}
	why := &trouble{since: now, count: before.failures() + 1, incident: rand.Text()}
	if before.trouble != nil {
		why.since = before.since
	}
	why.next = now.Add(retryAfter(why.count))
	after := *before
	after.trouble = why
	r.cfg.Logger.WarnContext(r.ctx, "client keys not fetched", "jwks_uri", r.src.uri, "incident", why.incident,
		"failures", why.count, "next_attempt", why.next, "error", cause)
	return &after, r.unusable(&after, now)
}

// unusable is the error of a set that was to be had and could not: that it is
// expired, or else that it could not be fetched.
func (c *Cache) unusable(state *setState, now time.Time) error {
	err := ErrUnavailable
	if state.set != nil && !state.inUse(c.cfg.Policy, now) {
		err = ErrExpired
	}
	return &FetchError{ID: state.incidentID(), RetryAfter: max(state.nextAttempt().Sub(now), 0), Err: err}
}

// save writes the newest state of src to a store of our own. It is known to be
// there afterwards if a live registration names the URL, which sure says.
func (c *Cache) save(ctx context.Context, src *source, sure bool) error {
	src.saving.Lock()
	defer src.saving.Unlock()
	src.mu.Lock()
	state := src.state.Load()
	t := src.textOf(state)
	src.mu.Unlock()
	if src.gone.Load() || state.set != nil && t == nil {
		return nil // nothing is known any more; or it is in the store already, or lacks what is to be stored
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	if err := c.cfg.Store.PutKeySet(ctx, state.record(src.uri, t)); err != nil {
		return storeError(err)
	}
	if sure {
		src.saved(state)
	}
	return nil
}

// errElsewhere: another replica was about to fetch for us, and did not.
var errElsewhere = fmt.Errorf("%w: another replica fetches it and takes too long", registry.ErrUnavailable)
