package keycache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// source is the key set of one URL in memory, shared by all clients that
// registered it.
type source struct {
	uri   string
	state atomic.Pointer[setState]
	used  atomic.Int64 // Unix seconds of the last use by a token; 0 for none
	due   atomic.Int64 // Unix nanoseconds of the next fetch

	// forced is when a refresh was last forced, in Unix nanoseconds.
	forced atomic.Int64

	// turn holds one token; whoever takes it may fetch and set state.
	turn chan struct{}
	// begunAt is when the last fetch began; the holder of turn owns it.
	begunAt time.Time
	// lastErr is how it ended; the holder of turn owns it.
	lastErr error
}

// setState is a key set at a moment. It is never changed.
type setState struct {
	keySet registry.KeySet
	set    *jwks.Set // nil if the URL has never given a good set
}

func (s *source) touch(now time.Time) {
	// A store to memory that all cores read is not free: once a minute is
	// enough to know that a set is in use.
	if sec := now.Unix(); sec-s.used.Load() > 60 {
		s.used.Store(sec)
	}
}

func (s *source) usedAt() time.Time { return time.Unix(s.used.Load(), 0) }

func (s *source) dueAt() time.Time { return time.Unix(0, s.due.Load()) }

// expiresAt is when the last good set goes out of use.
func (c *Cache) expiresAt(ks *registry.KeySet) time.Time {
	return ks.FreshUntil.Add(c.cfg.Policy.MaxStale)
}

// usable returns the set of a URL that may be used now. It waits for a fetch
// only if there is no such set.
func (c *Cache) usable(ctx context.Context, uri string) (*source, *setState, error) {
	src, err := c.source(ctx, uri)
	if err != nil {
		return nil, nil, err
	}
	state, now := src.state.Load(), time.Now()
	if c.inUse(state, now) {
		return src, state, nil
	}
	if wait := state.keySet.NextAttempt.Sub(now); wait > 0 {
		return nil, nil, c.unusableSet(state, wait, incidentOf(state))
	}
	state, err = c.await(ctx, src, time.Time{})
	if err != nil {
		return nil, nil, err
	}
	return src, state, nil
}

// inUse reports whether a set exists and is not beyond the bound.
func (c *Cache) inUse(state *setState, now time.Time) bool {
	return state.set != nil && !now.After(c.expiresAt(&state.keySet))
}

// unusableSet is the error of a set that is missing or expired.
func (c *Cache) unusableSet(state *setState, wait time.Duration, incident string) error {
	err := ErrUnavailable
	if state.set != nil {
		err = ErrExpired
	}
	return &FetchError{ID: incident, RetryAfter: wait, Err: err}
}

// source returns the key set of a URL from memory, else from the store.
func (c *Cache) source(ctx context.Context, uri string) (*source, error) {
	if src, ok := c.sources.GetIfPresent(uri); ok {
		return src, nil
	}
	result := c.sourceLoads.DoChan(uri, func() (any, error) { return c.loadSource(uri) })
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*source), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *Cache) loadSource(uri string) (*source, error) {
	// Another load may have ended between the caller's look and this one: two
	// sources of one URL would fetch it twice.
	if src, ok := c.sources.GetIfPresent(uri); ok {
		return src, nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()

	state, err := c.storedState(ctx, uri)
	if err != nil {
		return nil, err
	}
	src := &source{uri: uri, turn: make(chan struct{}, 1)}
	src.state.Store(state)
	c.sources.Set(uri, src)
	if state.set != nil || state.keySet.Failures > 0 {
		c.queue(src, &state.keySet)
	}
	return src, nil
}

// storedState reads what the store has of a URL.
func (c *Cache) storedState(ctx context.Context, uri string) (*setState, error) {
	stored, err := c.cfg.Store.KeySet(ctx, uri)
	if isNotFound(err) {
		return &setState{keySet: registry.KeySet{URI: uri}}, nil
	}
	if err != nil {
		return nil, err
	}
	state := &setState{keySet: *stored}
	if len(stored.Document) > 0 {
		state.set, err = jwks.Parse(stored.Document, c.cfg.Limits)
		if err != nil {
			// It was good when it was stored; the limits have become stricter.
			c.cfg.Logger.WarnContext(ctx, "stored key set refused", "jwks_uri", uri, "error", err)
			state.keySet = registry.KeySet{URI: uri}
		}
	}
	return state, nil
}

// queue sets when the URL is fetched next: when the last good set nears its
// end, or after the pause that a failure asks for.
func (c *Cache) queue(src *source, ks *registry.KeySet) {
	at := ks.NextAttempt
	if ks.Failures == 0 {
		at = refreshAt(ks.FetchedAt, ks.FreshUntil)
	}
	src.due.Store(at.UnixNano())
	c.refreshes.add(src.uri, at)
}

// await waits for a fetch of src that began at notBefore or later, and returns
// the set if it may be used. The fetch goes on if the caller leaves.
func (c *Cache) await(ctx context.Context, src *source, notBefore time.Time) (*setState, error) {
	type outcome struct {
		state *setState
		err   error
	}
	done := make(chan outcome, 1)
	started := c.start(func() {
		state, err := c.fetch(c.ctx, src, notBefore)
		done <- outcome{state, err}
	})
	if !started {
		return nil, fmt.Errorf("%w: the cache is closed", ErrUnavailable)
	}
	select {
	case o := <-done:
		return o.state, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fetch gets the set of src, unless that was done since notBefore: then the
// result of that one serves. One fetch of a URL runs at a time.
func (c *Cache) fetch(ctx context.Context, src *source, notBefore time.Time) (*setState, error) {
	select {
	case src.turn <- struct{}{}:
		defer func() { <-src.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	before := src.state.Load()
	if notBefore.IsZero() {
		if c.inUse(before, time.Now()) {
			return before, nil
		}
		if wait := time.Until(before.keySet.NextAttempt); wait > 0 {
			return nil, c.unusableSet(before, wait, incidentOf(before))
		}
	} else if !src.begunAt.Before(notBefore) {
		return src.state.Load(), src.lastErr
	}

	src.begunAt = time.Now()
	after, err := c.get(ctx, src, before)
	if ctx.Err() != nil {
		return nil, ctx.Err() // we are stopping; it says nothing about the host
	}
	src.state.Store(after)
	c.queue(src, &after.keySet)
	if err := c.cfg.Store.PutKeySet(ctx, after.keySet); err != nil {
		// The set in memory is good. What is lost is only that a restart would
		// find an older one.
		c.cfg.Logger.WarnContext(ctx, "key set not stored", "jwks_uri", src.uri, "error", err)
	}
	src.lastErr = err
	return after, err
}

// get asks the host once and returns the state that follows from the answer,
// and an error if that answer was no good.
func (c *Cache) get(ctx context.Context, src *source, before *setState) (*setState, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()

	res, err := c.cfg.Fetcher.Get(ctx, fetch.Request{
		URI: src.uri, ETag: before.keySet.ETag, LastModified: before.keySet.LastModified,
	})
	if err == nil && res.NotModified && before.set == nil {
		err = errors.New("304 for a set that we do not have")
	}
	set := before.set
	if err == nil && !res.NotModified {
		set, err = jwks.Parse(res.Document, c.cfg.Limits)
	}
	now := time.Now()
	if err != nil {
		return c.failed(ctx, before, now, err)
	}

	after := &setState{keySet: before.keySet, set: set}
	ks := &after.keySet
	if !res.NotModified {
		ks.Document = res.Document
		ks.ETag, ks.LastModified = res.ETag, res.LastModified
		if string(before.keySet.Document) == string(res.Document) && before.set != nil {
			after.set = before.set // the recipients compiled from it stay good
		}
	}
	ks.FetchedAt, ks.FreshUntil = now, now.Add(c.cfg.Policy.freshFor(res))
	ks.FailingSince, ks.Failures, ks.Failure, ks.NextAttempt = time.Time{}, 0, "", time.Time{}
	if before.keySet.Failures > 0 {
		c.cfg.Logger.InfoContext(ctx, "client keys fetched again", "jwks_uri", src.uri)
	}
	return after, nil
}

// failed is the state after a failed fetch: the last good set stays.
func (c *Cache) failed(ctx context.Context, before *setState, now time.Time, cause error) (*setState, error) {
	after := &setState{keySet: before.keySet, set: before.set}
	ks := &after.keySet
	if ks.Failures == 0 {
		ks.FailingSince = now
	}
	ks.Failures++
	wait := retryAfter(ks.Failures)
	ks.NextAttempt = now.Add(wait)
	incident := rand.Text()
	ks.Failure = incident
	c.cfg.Logger.WarnContext(ctx, "client keys not fetched", "jwks_uri", ks.URI, "incident", incident,
		"failures", ks.Failures, "next_attempt", ks.NextAttempt, "error", cause)
	if c.inUse(before, now) {
		return after, &FetchError{ID: incident, RetryAfter: wait, Err: ErrUnavailable}
	}
	return after, c.unusableSet(before, wait, incident)
}

// incidentOf is the id of the failure that a state remembers.
func incidentOf(state *setState) string { return state.keySet.Failure }

func isNotFound(err error) bool { return errors.Is(err, registry.ErrNotFound) }
