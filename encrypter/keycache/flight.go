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
)

// flight is a fetch under way. All who want the set while it lasts wait for
// the same one.
type flight struct {
	done  chan struct{}
	state *setState // what is known of the URL now; set before done is closed
	err   error     // a *FetchError or errClosed; set before done is closed
}

// wait returns how the flight ended. It goes on if the caller leaves.
func (f *flight) wait(ctx context.Context) (*setState, error) {
	select {
	case <-f.done:
		return f.state, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// always is for a fetch that is needed whatever is known.
func always() bool { return true }

// join returns the fetch of src under way or, if needed says so, starts one.
// It returns nil if there is none and none is needed, and if src is gone: look
// again. needed is called with sources.mu held.
func (c *Cache) join(src *source, needed func() bool) *flight {
	return c.sources.begin(src, needed, func() *flight {
		f := &flight{done: make(chan struct{})}
		if !c.start(func() { c.fly(src, f) }) {
			f.err = errClosed
			close(f.done)
		}
		return f
	})
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
		f := c.join(src, func() bool {
			// A fetch may have ended since we looked.
			s := src.state.Load()
			return !s.inUse(c.cfg.Policy, now) && s.mayFetch(now)
		})
		if f == nil {
			continue
		}
		state, err = f.wait(ctx)
		return src, state, err
	}
}

// fetched returns the set of a URL after a fetch within the call. With afresh,
// one that was under way before the call does not count.
func (c *Cache) fetched(ctx context.Context, uri string, afresh bool) (*setState, error) {
	for {
		src, err := c.source(ctx, uri)
		if err != nil {
			return nil, err
		}
		if afresh {
			earlier, err := c.force(src)
			if err != nil {
				return nil, err
			}
			if earlier != nil {
				if _, err := earlier.wait(ctx); ctx.Err() != nil {
					return nil, err
				}
			}
			afresh = false // whatever is found from now on began after the call
		}
		if f := c.join(src, always); f != nil {
			return f.wait(ctx)
		}
	}
}

// force notes that a refresh is forced, and returns the fetch under way. It is
// a *LimitError if the last time was a moment ago.
func (c *Cache) force(src *source) (*flight, error) {
	c.sources.mu.Lock()
	defer c.sources.mu.Unlock()
	now := time.Now()
	if wait := c.cfg.ForcedEvery - now.Sub(src.forced); wait > 0 {
		return nil, &LimitError{RetryAfter: wait}
	}
	src.forced = now
	return src.flight, nil
}

// fly makes a fetch and puts its result in place.
func (c *Cache) fly(src *source, f *flight) {
	defer close(f.done)
	f.state, f.err = c.get(c.ctx, src.state.Load())
	if c.ctx.Err() != nil {
		// It was cut short, which says nothing about the host. Nobody will
		// look at src again.
		f.state, f.err = nil, errClosed
		return
	}
	src.state.Store(f.state)
	// Those who wait are answered when the result would survive a restart.
	if err := c.save(context.WithoutCancel(c.ctx), src); err != nil {
		// What is in memory is good. A restart would find an older set.
		c.cfg.Logger.WarnContext(c.ctx, "key set not stored", "jwks_uri", src.uri, "error", err)
	}
	c.sources.end(src, dueAfter(f.state))
}

// get asks the host once and returns the state that follows from the answer,
// and a *FetchError if that answer was no good.
func (c *Cache) get(ctx context.Context, before *setState) (*setState, error) {
	res, set, err := c.ask(ctx, before)
	now := time.Now()
	if err != nil {
		return c.failed(ctx, before, now, err)
	}
	after := &setState{KeySet: before.KeySet, set: set}
	after.Document = set.document
	after.ETag, after.LastModified = res.ETag, res.LastModified
	after.FetchedAt, after.FreshUntil = now, now.Add(c.cfg.Policy.freshFor(res.Freshness))
	after.FailingSince, after.Failures, after.Failure, after.NextAttempt = time.Time{}, 0, "", time.Time{}
	if before.Failures > 0 {
		c.cfg.Logger.InfoContext(ctx, "client keys fetched again", "jwks_uri", before.URI, "failures", before.Failures)
	}
	return after, nil
}

// ask returns the host's answer and the set that holds after it: the one we
// have, if it has not changed, so that what was chosen from it stays good.
func (c *Cache) ask(ctx context.Context, before *setState) (res *fetch.Response, set *keySet, err error) {
	// Nobody else would catch it on this goroutine, and the document is a
	// stranger's: it must not take the service down.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	req := fetch.Request{URI: before.URI}
	if before.set != nil {
		req.ETag, req.LastModified = before.ETag, before.LastModified
	}
	res, err = c.cfg.Fetcher.Get(ctx, req)
	switch {
	case err != nil:
		return nil, nil, err
	case res.NotModified && before.set == nil:
		return nil, nil, errors.New("304 Not Modified for a set that we do not have")
	case res.NotModified, before.set != nil && bytes.Equal(before.set.document, res.Document):
		return res, before.set, nil
	}
	// A copy has no room to grow, as what was read from a connection has.
	set, err = c.newKeySet(bytes.Clone(res.Document))
	return res, set, err
}

// failed is the state after a failed fetch: the last good set stays.
func (c *Cache) failed(ctx context.Context, before *setState, now time.Time, cause error) (*setState, error) {
	if ctx.Err() != nil {
		return nil, errClosed
	}
	after := &setState{KeySet: before.KeySet, set: before.set}
	if after.Failures == 0 {
		after.FailingSince = now
	}
	after.Failures++
	after.Failure = rand.Text()
	after.NextAttempt = now.Add(retryAfter(after.Failures))
	c.cfg.Logger.WarnContext(ctx, "client keys not fetched", "jwks_uri", after.URI, "incident", after.Failure,
		"failures", after.Failures, "next_attempt", after.NextAttempt, "error", cause)
	return after, c.unusable(after, now)
}

// unusable is the error of a set that was to be had and could not: that it is
// expired, or else that it could not be fetched.
func (c *Cache) unusable(state *setState, now time.Time) error {
	err := ErrUnavailable
	if state.set != nil && !state.inUse(c.cfg.Policy, now) {
		err = ErrExpired
	}
	return &FetchError{ID: state.Failure, RetryAfter: max(state.NextAttempt.Sub(now), 0), Err: err}
}
