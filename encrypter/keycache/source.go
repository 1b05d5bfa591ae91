package keycache

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
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
	// text is the document of the set in state, for as long as it is needed; nil
	// if it is read from the store by whoever wants it: see settle.
	text atomic.Pointer[text]
	used atomic.Int64 // Unix seconds of the last time somebody asked for it
	gone atomic.Bool  // no longer in sources, and empty: look the URL up again

	mu sync.Mutex // held where state and text change, and what is chosen from the set
	// unsaved says that state may not be what the store has, as it could not be
	// written there; guarded by mu.
	unsaved bool
	// wide says that its clients choose in so many ways that each keeps what it
	// has chosen, and the source the document; guarded by mu.
	wide bool
	told summary // what was last told of the set; guarded by mu

	look   bool          // whether the store is to be looked at; guarded by sources.mu
	unread *list.Element // in sources.unread, nil if there is no news of it; guarded by sources.mu
	flight *flight       // the look or fetch under way, or nil; guarded by sources.mu
	forced int64         // when a refresh was last forced, in Unix nanoseconds; guarded by sources.mu
	due    int64         // when it is fetched next, in Unix nanoseconds; guarded by sources.mu
	place  int           // in sources.queue, or notQueued; guarded by sources.mu
	weight int64         // in sources.bytes; guarded by sources.mu

	saving sync.Mutex // held while state is written to a store of our own
}

// setState is what is known of a URL at a moment: a registry.KeySet, and the set
// that its document was found to be. It is never changed.
type setState struct {
	set                             *keySet // nil if the URL has never given a good set
	ETag, LastModified              string
	FetchedAt, FreshUntil, ForcedAt time.Time
	*trouble                        // nil if the last fetch worked
}

// trouble is an unbroken row of failed fetches. It is never changed.
type trouble struct {
	since, next time.Time // when it began, and when the URL may be fetched again
	count       int
	incident    string // under which the log has the last failure
}

func (t *trouble) failures() int {
	if t == nil {
		return 0
	}
	return t.count
}

func (t *trouble) failingSince() time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.since
}

func (t *trouble) nextAttempt() time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.next
}

func (t *trouble) incidentID() string {
	if t == nil {
		return ""
	}
	return t.incident
}

// usableUntil is when the last good set goes out of use.
func (s *setState) usableUntil(p Policy) time.Time { return s.FreshUntil.Add(p.MaxStale) }

// inUse reports whether there is a set that may be used.
func (s *setState) inUse(p Policy, now time.Time) bool {
	return s.set != nil && !now.After(s.usableUntil(p))
}

// mayFetch reports whether the pause that a failure asks for is over.
func (s *setState) mayFetch(now time.Time) bool { return !now.Before(s.nextAttempt()) }

// same reports whether two states say the same.
func (s *setState) same(o *setState) bool {
	return s.set == o.set && s.ETag == o.ETag && s.LastModified == o.LastModified &&
		s.FetchedAt.Equal(o.FetchedAt) && s.FreshUntil.Equal(o.FreshUntil) && s.ForcedAt.Equal(o.ForcedAt) &&
		s.failures() == o.failures() && s.incidentID() == o.incidentID() &&
		s.failingSince().Equal(o.failingSince()) && s.nextAttempt().Equal(o.nextAttempt())
}

// record is the state as it is stored. t is the document of its set.
func (s *setState) record(uri string, t *text) registry.KeySet {
	ks := registry.KeySet{
		URI: uri, ETag: s.ETag, LastModified: s.LastModified, FetchedAt: s.FetchedAt, FreshUntil: s.FreshUntil,
		FailingSince: s.failingSince(), Failures: s.failures(), Failure: s.incidentID(), NextAttempt: s.nextAttempt(), ForcedAt: s.ForcedAt,
	}
	if t != nil {
		ks.Document = t.document
	}
	return ks
}

// newState is the state that a record of a store tells, without the set.
func newState(ks *registry.KeySet) *setState {
	// Pieces of a larger text must not keep that in memory.
	s := &setState{
		ETag: strings.Clone(ks.ETag), LastModified: strings.Clone(ks.LastModified),
		FetchedAt: ks.FetchedAt, FreshUntil: ks.FreshUntil, ForcedAt: ks.ForcedAt,
	}
	if ks.Failures > 0 {
		s.trouble = &trouble{since: ks.FailingSince, next: ks.NextAttempt, count: ks.Failures, incident: strings.Clone(ks.Failure)}
	}
	return s
}

// keySet is a document that has been found good: not its text, of which there
// is no use once every client has chosen its key, but what has been chosen from
// it. When another document takes its place, the same is chosen from that at
// once, so that no client needs the text again.
type keySet struct {
	hash  uint64                  // of the document, with a seed that nobody else knows
	first atomic.Pointer[variant] // the newest; changed while source.mu is held
}

// variant is what clients with one demand have chosen from a set.
type variant struct {
	demand *demand
	picks  []pick // one for each setting
	next   *variant
}

// maxVariants is how many a set keeps.
const maxVariants = 8

// find returns what was chosen for d, nil for nothing yet.
func (k *keySet) find(d *demand) *variant {
	for v := k.first.Load(); v != nil; v = v.next {
		if v.demand.equal(d) {
			return v
		}
	}
	return nil
}

func (k *keySet) count() int {
	n := 0
	for v := k.first.Load(); v != nil; v = v.next {
		n++
	}
	return n
}

// add keeps what was chosen for d. The caller holds source.mu.
func (k *keySet) add(d *demand, picks []pick) {
	k.first.Store(&variant{demand: d, picks: picks, next: k.first.Load()})
}

// text is a document that has been found good. Its parsed form is larger than
// itself, and of no use for long: the garbage collector may have it.
type text struct {
	hash     uint64
	document []byte
	limits   *jwks.Limits
	weakly   atomic.Pointer[weak.Pointer[jwks.Set]] // nil if it has not been parsed
}

func (c *Cache) newText(document []byte) *text {
	return &text{hash: c.hash(document), document: document, limits: &c.cfg.Limits}
}

func (t *text) parse() (*jwks.Set, error) {
	set, err := jwks.Parse(t.document, *t.limits)
	if err != nil {
		return nil, err
	}
	w := weak.Make(set)
	t.weakly.Store(&w)
	return set, nil
}

// parsed returns the set, nil for none.
func (t *text) parsed() *jwks.Set {
	if t == nil {
		return nil
	}
	if w := t.weakly.Load(); w != nil {
		if set := w.Value(); set != nil {
			return set
		}
	}
	set, _ := t.parse() // it has been found good before
	return set
}

// newSource returns a source with what was read of it, or with nothing known.
func newSource(uri string, state *setState, t *text, now time.Time) *source {
	src := &source{uri: uri, place: notQueued}
	src.state.Store(state)
	src.text.Store(t)
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

// textOf returns the document of a state of the source, nil if it is not in
// memory.
func (s *source) textOf(state *setState) *text {
	if t := s.text.Load(); t != nil && state.set != nil && t.hash == state.set.hash {
		return t
	}
	return nil
}

// settle lets go of the document when nobody needs it from memory any more: it
// is in the store, and what is chosen from it is kept. The caller holds mu.
func (s *source) settle() {
	set := s.state.Load().set
	if t := s.text.Load(); t != nil && (set == nil || t.hash != set.hash || !s.unsaved && !s.wide && set.first.Load() != nil) {
		s.text.Store(nil)
	}
}

// put makes after the state of the source. t is the document of its set if that
// is at hand, which it is for one that is new; unsaved says that the store may
// not have it. What clients have chosen before is chosen from the new set
// first. The document is a stranger's: a panic must not take the service down.
func (s *source) put(after *setState, t *text, unsaved bool) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if before := s.state.Load(); before.set != nil && after.set != nil && before.set != after.set {
		keys := t.parsed()
		for v := before.set.first.Load(); v != nil; v = v.next {
			after.set.add(v.demand, v.demand.choose(keys))
		}
	}
	s.state.Store(after)
	if t != nil {
		s.text.Store(t)
	}
	s.unsaved = unsaved
	s.settle()
	return nil
}

// saved notes that the store has state, if it is still the one in memory.
func (s *source) saved(state *setState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Load() == state {
		s.unsaved = false
		s.settle()
	}
}

// distrust notes that the store may not have what is in memory.
func (s *source) distrust() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsaved = true
}

// isUnsaved reports whether the store may not have what is in memory.
func (s *source) isUnsaved() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unsaved
}

// size is about how many bytes the source takes.
func (s *source) size() int64 {
	state := s.state.Load()
	n := sizeOfSource + len(s.uri) + len(state.ETag) + len(state.LastModified)
	if state.trouble != nil {
		n += 96 + len(state.incident)
	}
	if t := s.text.Load(); t != nil {
		n += 96 + len(t.document)
	}
	if state.set != nil {
		for v := state.set.first.Load(); v != nil; v = v.next {
			n += sizeOfVariant + sizeOfPicks(v.picks)
		}
	}
	return int64(n)
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
	slot := c.changes.of(clientKey{issuer: uri})
	before := slot.now()
	state, t, err := c.stored(ctx, uri, nil)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	due := c.dueAfter(state, false)
	if state.set == nil && state.failures() == 0 {
		// Who asked for it is about to fetch it. Should he leave instead, it
		// is looked at then.
		due = now.Add(c.cfg.Policy.MinRefresh)
	}
	src := newSource(uri, state, t, now)
	src.told = c.summary(state, now)
	src = c.sources.add(src, c.wakeFor(state, due, now))
	c.balance()
	if slot.now() != before {
		c.sources.lookAt(src) // it was written while it was read
	}
	return src, nil
}

// stored reads what the store has of a URL. known is the set in memory, if there
// is one: a document that is the same becomes the same set.
func (c *Cache) stored(ctx context.Context, uri string, known func(hash uint64) *keySet) (*setState, *text, error) {
	ks, err := c.cfg.Store.KeySet(ctx, uri)
	switch {
	case isNotFound(err):
		ks = nil
	case errors.Is(err, registry.ErrTampered):
		// The host says what is right, and what it says replaces the record.
		c.cfg.Logger.ErrorContext(ctx, "stored key set refused: somebody changed the store", "jwks_uri", uri, "error", err)
		ks = nil
	case err != nil:
		return nil, nil, storeError(err)
	}
	state, t := c.accept(ctx, uri, ks, known)
	return state, t, nil
}

// accept makes a state of what is stored of a URL, nil for nothing, and returns
// the document with it. known returns a set that a document with the given hash
// has been found to be, nil for none; it may be nil itself.
func (c *Cache) accept(ctx context.Context, uri string, ks *registry.KeySet, known func(hash uint64) *keySet) (*setState, *text) {
	if ks == nil {
		return &setState{}, nil
	}
	there := *ks
	c.cfg.Policy.bound(&there, time.Now())
	state := newState(&there)
	if len(ks.Document) == 0 {
		return state, nil
	}
	t := c.newText(ks.Document)
	if known != nil {
		state.set = known(t.hash)
	}
	if state.set == nil {
		if _, err := t.parse(); err != nil {
			// It was good when it was stored; the limits have become stricter.
			c.cfg.Logger.WarnContext(ctx, "stored key set refused", "jwks_uri", uri, "error", err)
			return &setState{}, nil
		}
		state.set = &keySet{hash: t.hash}
	}
	return state, t
}

// is returns k for the document that it is of.
func (k *keySet) is(hash uint64) *keySet {
	if k != nil && k.hash == hash {
		return k
	}
	return nil
}

// peek returns what is known of a URL, and its document if that is at hand, and
// leaves no trace of having looked. known is that of accept.
func (c *Cache) peek(ctx context.Context, uri string, known func(hash uint64) *keySet) (*setState, *text, error) {
	if src := c.sources.get(uri); src != nil {
		state := src.state.Load()
		t := src.textOf(state)
		if !src.gone.Load() {
			return state, t, nil
		}
	}
	return c.stored(ctx, uri, known)
}

// document returns the document of a state, and the state that it is of: if the
// store has another one by now, that. Its error is registry.ErrUnavailable, or
// the context's.
func (c *Cache) document(ctx context.Context, uri string, state *setState, t *text) (*setState, *text, error) {
	if state.set == nil || t != nil {
		return state, t, nil
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	there, t, err := c.stored(limited, uri, state.set.is)
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case err != nil:
		return nil, nil, err
	case t == nil:
		return nil, nil, fmt.Errorf("%w: the key set is being stored anew", registry.ErrUnavailable)
	case there.set == state.set:
		return state, t, nil // which may be more recent
	}
	return there, t, nil
}

// choose chooses for a client from the set of its source, which it has not done
// before: the document is in memory if it has just come in, and in the store
// otherwise. It returns the state that it chose from. Errors are those of
// usable.
func (c *Cache) choose(ctx context.Context, key clientKey, cl *client, src *source) (*setState, []pick, error) {
	for try := 0; ; try++ {
		state := src.state.Load()
		if src.gone.Load() {
			var err error
			if src, state, err = c.usable(ctx, cl.uri); err != nil {
				return nil, nil, err
			}
			cl.source.Store(src)
		}
		if now := time.Now(); !state.inUse(c.cfg.Policy, now) {
			return nil, nil, c.unusable(state, now)
		}
		if all := cl.chosen(state.set); all != nil {
			return state, all, nil
		}
		t, err := c.textLoads.do(ctx, src, c.start, func() (*text, error) { return c.loadText(cl, src, state) })
		if errors.Is(err, errChosen) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if t != nil && t.hash == state.set.hash {
			if all := c.keepChoice(key, cl, src, t); all != nil {
				return state, all, nil
			}
			continue // there is another set by now
		}
		// The store has another document than the one that is in use here, or
		// none. What it has is right; and if it has none, the host does.
		why := lookUp
		switch {
		case try > 2:
			return nil, nil, fmt.Errorf("%w: the key set is being stored anew", registry.ErrUnavailable)
		case try > 0:
			why = tryOut
		}
		now := time.Now()
		if why == tryOut && !state.mayFetch(now) {
			return nil, nil, c.unusable(state, now)
		}
		if f := c.join(src, why, func() bool { return why == lookUp || src.state.Load().mayFetch(now) }); f != nil {
			if err := f.wait(ctx); err != nil {
				return nil, nil, err
			}
		}
	}
}

// errChosen: another call has chosen for the client meanwhile.
var errChosen = errors.New("chosen")

// loadText returns the document of state, another one if the store has another,
// or nil if there is none. It is errChosen if cl does not need it any more.
func (c *Cache) loadText(cl *client, src *source, state *setState) (*text, error) {
	if t := src.textOf(state); t != nil {
		return t, nil
	}
	if cl.chosen(state.set) != nil {
		return nil, errChosen
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()
	_, t, err := c.stored(ctx, src.uri, state.set.is)
	return t, err
}

// keepChoice chooses for a client from t and keeps that, unless t is no longer
// the document of the source's set: then it returns nil.
func (c *Cache) keepChoice(key clientKey, cl *client, src *source, t *text) []pick {
	all := cl.demand.choose(t.parsed())
	src.mu.Lock()
	set := src.state.Load().set
	if set == nil || set.hash != t.hash {
		src.mu.Unlock()
		return nil
	}
	own := false
	if v := set.find(cl.demand); v != nil {
		all = v.picks
	} else {
		src.wide = src.wide || set.count() >= maxVariants
		if own = src.wide; !own {
			set.add(cl.demand, all)
		} else if there := src.text.Load(); there == nil || there.hash != t.hash {
			src.text.Store(t)
		}
	}
	src.settle()
	src.mu.Unlock()
	if own {
		cl.own.Store(&ownPicks{from: t.hash, picks: all})
		c.reweigh(key, cl)
	}
	c.sources.reweigh(src)
	c.balance()
	return all
}
