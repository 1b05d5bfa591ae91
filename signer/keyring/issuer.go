package keyring

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"fmt"
	"iter"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// issuer looks after the rings of one issuer. All fields but current belong to
// one goroutine: that of New, then that of run. Calls to backends run beside
// it and hand back what is to be done with their result.
type issuer struct {
	cfg        *Config
	name       string
	defaultAlg kms.Algorithm
	log        *slog.Logger
	terms      terms
	create     bool   // rotation makes keys
	owner      string // this process, in the intents of rings

	// current is what readers see.
	current atomic.Pointer[view]

	rings    map[kms.Algorithm]*Ring // as last read or written
	asOf     time.Time               // when they were read, zero if never
	reloadTo task                    // reading them again
	slots    map[slotID]*slot
	listed   []*listedKey
	reported map[slotID]bool // keys and rings that the log has been told of

	// suspected has room for one: there are places that somebody had trouble
	// signing with.
	suspected chan struct{}
	// changed has room for one: somebody says that the rings in the store are
	// others than those that were read.
	changed chan struct{}

	rotations map[kms.Algorithm]*rotation
	// remembered are the rings that know what is in force here.
	remembered map[kms.Algorithm]bool
	sweepTo    task           // looking for orphans
	unswept    map[string]int // tags to look for, and how often still
	sweptOnce  bool           // all tags were looked for since the start
	orphans    map[Location]Orphan

	requests chan *request // to run, from Rotate
	stopped  chan struct{} // closed when run has ended
}

// slotID names a key of an issuer.
type slotID struct {
	alg   kms.Algorithm
	keyID string
}

// job is the part of a task that may take long. It touches nothing of the
// issuer's, and returns what is to be done with its result by the loop.
type job func(context.Context) (apply func(context.Context))

// task is something that is done again and again, with back-off while it
// fails.
type task struct {
	due      time.Time // by time.Now; zero is at once
	running  bool
	failures int
	problem  error // of the last time
}

// slot is a key of a ring, with what this replica knows of it.
type slot struct {
	alg   kms.Algorithm
	entry Entry
	pub   crypto.PublicKey // nil if the entry is refused
	jwk   []byte           // likewise

	places     []*place           // in the order in which they are tried
	all        *failover          // over the places that are open
	signing    *signer.SigningKey // of all, with skipVerify
	skipVerify bool
	key        *signer.SigningKey // signing if the key is open anywhere, else nil
	problem    error              // why no place signs; nil if one does
}

// listedKey is a key of the configuration. Its task is to prove the locations
// that are not in the ring yet.
type listedKey struct {
	task
	Key
}

func newIssuer(cfg *Config, ic Issuer) *issuer {
	i := &issuer{
		cfg:        cfg,
		name:       ic.Name,
		defaultAlg: ic.DefaultAlgorithm,
		log:        cfg.Logger.With("issuer", ic.Name),
		terms:      cfg.terms(ic),
		create:     ic.Rotation.Create,
		owner:      rand.Text(),
		rings:      map[kms.Algorithm]*Ring{},
		slots:      map[slotID]*slot{},
		reported:   map[slotID]bool{},
		suspected:  make(chan struct{}, 1),
		changed:    make(chan struct{}, 1),
		rotations:  map[kms.Algorithm]*rotation{},
		remembered: map[kms.Algorithm]bool{},
		unswept:    map[string]int{},
		orphans:    map[Location]Orphan{},
		requests:   make(chan *request),
		stopped:    make(chan struct{}),
	}
	if i.defaultAlg == "" {
		i.defaultAlg = ic.Keys[0].Algorithm
	}
	for _, key := range ic.Keys {
		i.listed = append(i.listed, &listedKey{Key: key, task: task{problem: errNotTried}})
	}
	return i
}

// run is the loop of the issuer: start what is due, wait for a result or for
// the next thing to be due.
func (i *issuer) run(ctx context.Context) {
	type result struct {
		of    *task
		apply func(context.Context)
	}
	results := make(chan result)
	var jobs sync.WaitGroup
	defer jobs.Wait()
	defer close(i.stopped)
	start := func(t *task, j job) {
		t.running = true
		jobs.Go(func() {
			apply := j(ctx)
			select {
			case results <- result{t, apply}:
			case <-ctx.Done():
			}
		})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		if !i.reloadTo.due.After(now) {
			i.reload(ctx)
		}
		for _, r := range i.turning() {
			if r.due.After(now) {
				continue
			}
			if j := i.step(ctx, r); j != nil {
				start(&r.task, j)
			}
		}
		next := i.reloadTo.due
		for _, r := range i.turning() {
			next = earlier(next, r.due)
		}
		for t, j := range i.tasks() {
			if t.due.After(now) {
				next = earlier(next, t.due)
				continue
			}
			start(t, j)
		}
		i.publish()
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return
		case r := <-results:
			r.of.running = false
			r.apply(ctx)
		case <-i.suspected:
			i.lookAtSuspects()
		case <-i.changed:
			i.reloadTo.due = time.Time{}
		case q := <-i.requests:
			i.asked(ctx, q)
		case <-timer.C:
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// tasks yields what is to be done and not under way, due or not.
func (i *issuer) tasks() iter.Seq2[*task, job] {
	return func(yield func(*task, job) bool) {
		now := i.cfg.Clock()
		for _, s := range i.slots {
			if state := s.entry.State(now); s.pub == nil || state != Active && state != Next {
				continue
			}
			for _, p := range s.places {
				if !p.running && !yield(&p.task, i.checking(s, p)) {
					return
				}
			}
		}
		if i.asOf.IsZero() {
			return // what is not known cannot be added to
		}
		for _, l := range i.listed {
			unproven := i.unproven(l)
			if l.running || len(unproven) == 0 {
				continue
			}
			if !yield(&l.task, i.proving(l, unproven)) {
				return
			}
		}
		if (len(i.unswept) > 0 || !i.sweptOnce) && !i.sweepTo.running {
			yield(&i.sweepTo, i.sweeping())
		}
	}
}

// ok notes a success; the task is due again after wait.
func (t *task) ok(wait time.Duration) {
	t.failures, t.problem, t.due = 0, nil, time.Now().Add(wait)
}

// failed notes a failure; the task is due again after a wait that doubles with
// each failure up to most, a fifth more or less.
func (t *task) failed(cfg *Config, err error, most time.Duration) {
	wait := min(cfg.RetryMin, most)
	for n := t.failures; n > 0 && wait < most; n-- {
		wait = min(2*wait, most)
	}
	t.failures++
	t.problem = err
	t.due = time.Now().Add(wait*4/5 + mathrand.N(wait*2/5+1)) //nolint:gosec // spreading load is no secret
}

// noteworthy reports whether err is news after the task's last problem, so
// that a lasting failure is logged once.
func (t *task) noteworthy(err error) bool { return news(t.problem, err) }

func news(before, err error) bool { return before == nil || before.Error() != err.Error() }

// reload reads the rings from the store. If it cannot, the last ones stay.
func (i *issuer) reload(ctx context.Context) {
	// An answer that comes later is too old to be kept.
	bounded, cancel := context.WithTimeout(ctx, min(i.cfg.Timeout, i.cfg.MaxLag))
	defer cancel()
	began := i.cfg.Clock() // what is written from here on may be missing
	rings, err := i.cfg.Store.Rings(bounded, i.name)
	if err != nil {
		err = fmt.Errorf("read the key rings from the store: %w", err)
		if i.reloadTo.noteworthy(err) && ctx.Err() == nil {
			i.log.Warn("key rings cannot be read, going on with what is known", "error", err)
		}
		i.reloadTo.failed(i.cfg, err, i.cfg.ReloadInterval)
		return
	}
	if i.reloadTo.problem != nil {
		i.log.Info("key rings can be read again")
	}
	i.reloadTo.ok(i.cfg.ReloadInterval)
	i.asOf = began
	clear(i.rings)
	for _, r := range rings {
		if !r.Algorithm.Known() || r.Issuer != i.name {
			if id := (slotID{alg: r.Algorithm}); !i.reported[id] {
				i.reported[id] = true
				i.log.Error("stored key ring left alone: it is of another issuer or of an algorithm this version does not know", "ring_issuer", r.Issuer, "algorithm", r.Algorithm)
			}
			continue
		}
		i.rings[r.Algorithm] = r
	}
	i.adopt()
}

// adopt makes the slots those of the rings. Keys that stay keep what is known
// of them.
func (i *issuer) adopt() {
	before := i.slots
	i.slots = make(map[slotID]*slot, len(before))
	holder := map[string]kms.Algorithm{} // of each kid
	for _, c := range i.byAge() {
		id := slotID{c.alg, c.entry.KeyID}
		if i.slots[id] != nil {
			continue // named twice in one ring: the older one counts
		}
		s := before[id]
		if s == nil {
			s = &slot{alg: c.alg, problem: errNotTried}
		}
		known := s.pub != nil && bytes.Equal(s.entry.PublicJWK, c.entry.PublicJWK)
		s.entry = c.entry
		skipVerify := i.skipVerify(c.alg, c.entry)
		i.slots[id] = s

		var pub crypto.PublicKey
		var err error
		if known {
			pub = s.pub
		} else if pub, _, err = signer.ParsePublicJWK(c.entry.PublicJWK, c.alg); err == nil {
			var kid string
			if kid, err = signer.Thumbprint(pub); err == nil && kid != c.entry.KeyID {
				err = fmt.Errorf("%w: the stored public key is that of kid %s", kms.ErrKeyMismatch, kid)
			}
		}
		if other, taken := holder[c.entry.KeyID]; err == nil && taken {
			err = fmt.Errorf("%w (it signs %s)", ErrKeyShared, other)
		}
		if err == nil && !known {
			s.jwk, err = signer.PublicJWK(pub, c.alg)
		}
		if err == nil {
			err = i.prepare(s, pub, skipVerify)
		}
		if err != nil {
			if news(s.problem, err) {
				i.log.Error("stored signing key refused: it is neither used nor published", "algorithm", c.alg, "key_id", c.entry.KeyID, "error", err)
			}
			s.pub, s.jwk, s.problem = nil, nil, err
			s.close()
			continue
		}
		s.pub = pub
		i.arrange(s)
		holder[c.entry.KeyID] = c.alg
	}
	i.reportUnlisted()
}

type ringEntry struct {
	alg   kms.Algorithm
	entry Entry
}

// byAge are the entries of all rings in the order they were published, ties in
// the order of the algorithms.
func (i *issuer) byAge() []ringEntry {
	var all []ringEntry
	for _, alg := range kms.Algorithms() {
		if r := i.rings[alg]; r != nil {
			for _, e := range r.Entries {
				all = append(all, ringEntry{alg, e})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b ringEntry) int { return a.entry.PublishAt.Compare(b.entry.PublishAt) })
	return all
}

// listedFor is the configured key that shares a location with an entry, nil if
// there is none.
func (i *issuer) listedFor(alg kms.Algorithm, e Entry) *listedKey {
	for _, l := range i.listed {
		if l.Algorithm == alg && slices.ContainsFunc(l.Locations, func(x Location) bool { return slices.Contains(e.Locations, x) }) {
			return l
		}
	}
	return nil
}

// skipVerify is what the configuration says of an entry's key. A key that Bulla
// created follows the one that it was created for.
func (i *issuer) skipVerify(alg kms.Algorithm, e Entry) bool {
	l := i.listedFor(alg, e)
	if l == nil && e.Tag != "" {
		if first := slices.IndexFunc(i.listed, func(l *listedKey) bool { return l.Algorithm == alg }); first >= 0 {
			l = i.listed[first]
		}
	}
	return l != nil && l.SkipVerify
}

// reportUnlisted logs, once each, the keys in use that the configuration lists
// no more. Those that Bulla created never were listed.
func (i *issuer) reportUnlisted() {
	now := i.cfg.Clock()
	for id, s := range i.slots {
		if state := s.entry.State(now); (state == Active || state == Next) && s.entry.Tag == "" && !i.reported[id] && i.listedFor(id.alg, s.entry) == nil {
			i.reported[id] = true
			i.log.Warn("signing key is not listed in the configuration any more and stays in its ring: rotate it out, or list it again",
				"algorithm", id.alg, "key_id", id.keyID, "state", state, "locations", s.entry.Locations)
		}
	}
}

// publish makes what is known the snapshot that readers see.
func (i *issuer) publish() {
	v := &view{asOf: i.asOf, maxLag: i.cfg.MaxLag, problem: i.reloadTo.problem, rings: map[kms.Algorithm]*ringView{}}
	ring := func(alg kms.Algorithm) *ringView {
		if v.rings[alg] == nil {
			v.rings[alg] = &ringView{}
		}
		return v.rings[alg]
	}
	now := i.cfg.Clock()
	for alg, r := range i.rings {
		rv := ring(alg)
		v.unverified = v.unverified || r.Unverified
		for n, e := range r.Entries {
			if slices.ContainsFunc(r.Entries[:n], func(o Entry) bool { return o.KeyID == e.KeyID }) {
				continue // named twice: adopt took one
			}
			s := i.slots[slotID{alg, e.KeyID}]
			e = s.entry
			ev := entryView{Entry: e, jwk: s.jwk, key: s.key, problem: s.problem, places: s.infos()}
			if state := e.State(now); s.pub != nil && (state == Retiring || state == Retired) {
				ev.problem, ev.places = nil, nil // nobody opens them, and nothing is amiss
			}
			rv.entries = append(rv.entries, ev)
		}
	}
	for _, l := range i.listed {
		rv := ring(l.Algorithm)
		rv.configured = true
		if unproven := i.unproven(l); l.problem != nil && len(unproven) > 0 {
			rv.problems = append(rv.problems, fmt.Errorf("listed key %v: %w", unproven, l.problem))
		}
	}
	for alg, r := range i.rotations {
		ring(alg).rotation = r.problem
		ring(alg).due, ring(alg).tag = i.underWay(alg, now)
	}
	for _, o := range i.orphans {
		v.orphans = append(v.orphans, o)
	}
	slices.SortFunc(v.orphans, func(a, b Orphan) int { return strings.Compare(a.Location.String(), b.Location.String()) })
	i.current.Store(v)
}
