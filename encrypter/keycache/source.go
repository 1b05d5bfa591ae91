package keycache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// source is the key set of one URL in memory, shared by all clients that
// registered it.
type source struct {
	uri   string
	state atomic.Pointer[setState]
	used  atomic.Int64 // Unix seconds of the last time somebody asked for it
	gone  atomic.Bool  // no longer in sources: look the URL up again

	flight *flight   // the fetch under way, or nil; guarded by sources.mu
	forced time.Time // when a refresh was last forced; guarded by sources.mu
	due    time.Time // when it is fetched next; guarded by sources.mu
	place  int       // in sources.queue, or notQueued; guarded by sources.mu

	saving sync.Mutex // held while state is written to the store
}

// setState is what is known of a URL at a moment. It is never changed.
type setState struct {
	registry.KeySet
	set *keySet // nil if the URL has never given a good set
}

// usableUntil is when the last good set goes out of use.
func (s *setState) usableUntil(p Policy) time.Time { return s.FreshUntil.Add(p.MaxStale) }

// inUse reports whether there is a set that may be used.
func (s *setState) inUse(p Policy, now time.Time) bool {
	return s.set != nil && !now.After(s.usableUntil(p))
}

// mayFetch reports whether the pause that a failure asks for is over.
func (s *setState) mayFetch(now time.Time) bool { return !now.Before(s.NextAttempt) }

// keySet is a document that has been found good. Once every client has chosen
// its key from it the parsed form is of no use until the document changes, and
// larger than the document: the garbage collector may have it.
type keySet struct {
	document []byte
	limits   *jwks.Limits
	weakly   atomic.Pointer[weak.Pointer[jwks.Set]] // nil if it has not been parsed here
}

func (c *Cache) newKeySet(document []byte) (*keySet, error) {
	k := &keySet{document: document, limits: &c.cfg.Limits}
	_, err := k.parse()
	return k, err
}

func (k *keySet) parse() (*jwks.Set, error) {
	set, err := jwks.Parse(k.document, *k.limits)
	if err != nil {
		return nil, err
	}
	w := weak.Make(set)
	k.weakly.Store(&w)
	return set, nil
}

// parsed returns the set, nil for none.
func (k *keySet) parsed() *jwks.Set {
	if k == nil {
		return nil
	}
	if w := k.weakly.Load(); w != nil {
		if set := w.Value(); set != nil {
			return set
		}
	}
	set, _ := k.parse() // it has been found good before
	return set
}

func newSource(state *setState, now time.Time) *source {
	src := &source{uri: state.URI, place: notQueued}
	src.state.Store(state)
	src.touch(now)
	return src
}

// touch notes that somebody asks for the set. A store to memory that all cores
// read is not free: to the minute is exact enough.
func (s *source) touch(now time.Time) {
	if sec := now.Unix(); sec-s.used.Load() > 60 {
		s.used.Store(sec)
	}
}

func (s *source) idle(now time.Time) time.Duration {
	return time.Duration(now.Unix()-s.used.Load()) * time.Second
}

// source returns the key set of a URL from memory, else from the store.
func (c *Cache) source(ctx context.Context, uri string) (*source, error) {
	src := c.sources.get(uri)
	if src == nil {
		var err error
		src, err = c.sourceLoads.do(ctx, uri, c.start, func() (*source, error) { return c.loadSource(uri) })
		if err != nil {
			return nil, err
		}
	}
	src.touch(time.Now())
	return src, nil
}

func (c *Cache) loadSource(uri string) (*source, error) {
	// Another load may have ended between the caller's look and this one.
	if src := c.sources.get(uri); src != nil {
		return src, nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()
	state, err := c.storedState(ctx, uri, c.newKeySet)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	due := dueAfter(state)
	if state.set == nil && state.Failures == 0 {
		// Who asked for it is about to fetch it. Should he leave instead, it
		// is looked at then.
		due = now.Add(c.cfg.Policy.MinRefresh)
	}
	return c.sources.add(newSource(state, now), due), nil
}

// storedState reads what the store has of a URL. accept finds the document good,
// as newKeySet does.
func (c *Cache) storedState(ctx context.Context, uri string, accept func(document []byte) (*keySet, error)) (*setState, error) {
	none := &setState{KeySet: registry.KeySet{URI: uri}}
	stored, err := c.cfg.Store.KeySet(ctx, uri)
	switch {
	case isNotFound(err):
		return none, nil
	case errors.Is(err, registry.ErrTampered):
		// The host says what is right, and what it says replaces the record.
		c.cfg.Logger.ErrorContext(ctx, "stored key set refused: somebody changed the store", "jwks_uri", uri, "error", err)
		return none, nil
	case err != nil:
		return nil, storeError(err)
	}
	state := &setState{KeySet: *stored}
	state.URI = uri // one string in memory instead of two
	if len(stored.Document) > 0 {
		state.set, err = accept(stored.Document)
		if err != nil {
			// It was good when it was stored; the limits have become stricter.
			c.cfg.Logger.WarnContext(ctx, "stored key set refused", "jwks_uri", uri, "error", err)
			return none, nil
		}
	}
	c.cfg.Policy.bound(&state.KeySet, time.Now())
	return state, nil
}

// peek returns what is known of a URL and leaves no trace of having looked.
// accept is that of storedState.
func (c *Cache) peek(ctx context.Context, uri string, accept func(document []byte) (*keySet, error)) (*setState, error) {
	if src := c.sources.get(uri); src != nil {
		return src.state.Load(), nil
	}
	return c.storedState(ctx, uri, accept)
}

// save writes the newest state of src to the store.
func (c *Cache) save(ctx context.Context, src *source) error {
	src.saving.Lock()
	defer src.saving.Unlock()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	return storeError(c.cfg.Store.PutKeySet(ctx, src.state.Load().KeySet))
}
