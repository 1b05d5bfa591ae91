package keyring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// ErrNoNext: the issuer's rotation creates no keys, and no key that is listed
// for the algorithm waits as next, open and without a time to become active.
// List one more key in the configuration and try again.
var ErrNoNext = errors.New("no listed key waits to become the next one")

// What Rotate answers besides. Their texts are fit for callers; what they wrap
// may name key locations.
var (
	// ErrCannotCreate: the backend refuses to make the key, and does so until
	// an operator has put that right. Look at the health report or the log.
	ErrCannotCreate = errors.New("the key backend refuses to create a signing key")

	// ErrBegun: the change is not on record yet, and goes on without whoever
	// asked for it. List the keys later.
	ErrBegun = errors.New("the rotation has begun and goes on")
)

// Rotation is how the keys of an issuer are replaced.
type Rotation struct {
	// Every is the time from the activation of a key to that of its
	// successor. 0 is only when Rotate asks for it.
	Every time.Duration
	// Create lets Bulla make the new key, in the backend of the active one
	// and like it, where no listed key waits. That backend is a kms.Creator.
	// Otherwise a rotation takes only keys that are listed.
	Create bool
}

// Rotated is what a rotation has done.
type Rotated struct {
	// Keys is the ring after the change.
	Keys []KeyInfo
	// Breaks says, for people, what an emergency breaks. It is empty for a
	// rotation that breaks nothing.
	Breaks []string
}

// Rotate has the active key of a ring replaced, while Run runs, and returns when
// the times of the change are on record. The change itself happens at those times. If one is
// pending already, nothing is done and its ring returned.
//
// In an emergency, because the active key may be stolen, the change happens now:
// the new key signs and the old one leaves the JWK Set without waiting for
// verifiers, and so do those that are retiring. The new key is one that signs:
// that of a pending change, or one that waits, or one that is created.
//
// Errors are ErrIssuerUnknown; ErrNoKey if the ring has no active key to
// replace; ErrNoNext; ErrNotOpen if no key has joined the ring yet, or the
// pending one cannot be used; ErrUnavailable if the store does not answer or
// has not authenticated the ring; and ErrCannotCreate. If ctx ends after a key
// was ordered, the error is ErrBegun: it comes a moment before the deadline, so
// that the caller still hears it. If it ends sooner, it is that of ctx, and
// nothing has been done.
func (k *Keyring) Rotate(ctx context.Context, issuer string, alg kms.Algorithm, emergency bool) (Rotated, error) {
	i, ok := k.issuers[issuer]
	if !ok {
		return Rotated{}, fmt.Errorf("%w: %q", ErrIssuerUnknown, issuer)
	}
	wrong := func(err error) (Rotated, error) {
		return Rotated{}, fmt.Errorf("rotate the %s key of issuer %s: %w", alg, issuer, err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		early, cancel := context.WithDeadline(ctx, deadline.Add(-min(lastWord, time.Until(deadline)/2)))
		defer cancel()
		ctx = early
	}
	q := &request{alg: alg, emergency: emergency, done: ctx.Done(), answer: make(chan answer, 1)}
	select {
	case i.requests <- q:
	case <-ctx.Done():
		return wrong(ctx.Err())
	case <-i.stopped:
		return wrong(errStopped)
	}
	var err error
	select {
	case a := <-q.answer:
		q.answer <- a
	case <-ctx.Done():
		err = ctx.Err()
	case <-i.stopped:
		err = errStopped
	}
	select {
	case a := <-q.answer: // even if it came in the last moment
		if a.err != nil {
			return wrong(a.err)
		}
		return a.Rotated, nil
	default:
	}
	goesOn := !q.fate.CompareAndSwap(undecided, gone)
	if r := i.current.Load().rings[alg]; r != nil {
		err = all(err, r.rotation)
	}
	if goesOn {
		err = fmt.Errorf("%w, so list the keys later: %w", ErrBegun, err)
	}
	return wrong(err)
}

// lastWord is how long before its caller's deadline Rotate answers.
const lastWord = 200 * time.Millisecond

// The fates of a request: its caller leaves before anything was done for it, or
// something is.
const (
	undecided = iota
	gone
	begun
)

var errStopped = fmt.Errorf("%w: the service is stopping", ErrUnavailable)

// request is a call of Rotate on its way through the issuer's loop.
type request struct {
	alg       kms.Algorithm
	emergency bool
	replaces  string          // the kid that was active when it came
	tag       string          // of the key that is created for it; may be empty
	done      <-chan struct{} // closed when the caller has gone
	fate      atomic.Int32
	answer    chan answer // has room for the one answer
}

type answer struct {
	Rotated
	err error
}

// rotation is the replacing of one ring's keys. Its task is the part that asks
// a backend; due is when to look at the ring again.
type rotation struct {
	task
	alg      kms.Algorithm
	requests []*request // not answered yet
	made     *made      // a key that is not on record yet

	// unsure is the tag of a key that may have been created without being
	// listed yet; it is not created again before again (by time.Now).
	unsure string
	again  time.Time
	// failing is the tag of the key that could not be created the last time.
	failing string
	// absurd is the key whose time the log has been told of.
	absurd string
}

// begin drops the requests whose callers have gone before anything was done, or
// for which an intent speaks, and reports whether any is left. Those are acted
// upon now.
func (r *rotation) begin() bool {
	r.requests = slices.DeleteFunc(r.requests, func(q *request) bool {
		select {
		case <-q.done:
			if q.tag != "" {
				return true
			}
		default:
		}
		return !q.fate.CompareAndSwap(undecided, begun) && q.fate.Load() == gone
	})
	return len(r.requests) > 0
}

// emergency reports whether somebody asks for one.
func (r *rotation) emergency() bool {
	return slices.ContainsFunc(r.requests, func(q *request) bool { return q.emergency })
}

// refuse answers all requests with err.
func (r *rotation) refuse(err error) {
	for _, q := range r.requests {
		q.answer <- answer{err: err}
	}
	r.requests = nil
}

// turning are the rotations of all rings, due or not.
func (i *issuer) turning() []*rotation {
	var list []*rotation
	for _, alg := range kms.Algorithms() {
		if i.rings[alg] != nil && i.rotations[alg] == nil {
			i.rotations[alg] = &rotation{alg: alg}
		}
		if r := i.rotations[alg]; r != nil {
			list = append(list, r)
		}
	}
	return list
}

// asked takes a request in. It is decided on the ring as it is stored now.
func (i *issuer) asked(ctx context.Context, q *request) {
	i.reload(ctx)
	if err := i.mayRotate(q.alg); err != nil {
		q.answer <- answer{err: err}
		return
	}
	for _, r := range i.turning() {
		if r.alg == q.alg {
			entries := i.rings[q.alg].Entries
			if at := active(entries, i.cfg.Clock()); at >= 0 {
				q.replaces = entries[at].KeyID
			}
			r.requests = append(r.requests, q)
			r.due = time.Time{}
		}
	}
}

// mayRotate reports why a ring cannot be changed.
func (i *issuer) mayRotate(alg kms.Algorithm) error {
	ring := i.rings[alg]
	switch problem := i.reloadTo.problem; {
	case problem != nil && errors.Is(problem, ErrUnavailable):
		return problem
	case problem != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, problem)
	case ring == nil && !slices.ContainsFunc(i.listed, func(l *listedKey) bool { return l.Algorithm == alg }):
		return ErrNoKey
	case ring == nil || len(ring.Entries) == 0:
		return fmt.Errorf("%w: %w", ErrNotOpen, errNoneJoined)
	case ring.Unverified:
		return fmt.Errorf("%w: the store could not authenticate the ring yet, since the backend it needs for that is down, and what may be forged is not built upon; try again when it is back", ErrUnavailable)
	case active(ring.Entries, i.cfg.Clock()) < 0:
		return fmt.Errorf("%w: the ring has keys and none is active", ErrNoKey)
	}
	return nil
}

// step does the next thing for the keys of a ring to change places, if there is
// any: it answers those whose change is on record, brings forward a pending
// change, sees a key through that is being created, or begins. It returns a job
// if a backend has to be asked.
func (i *issuer) step(ctx context.Context, r *rotation) job {
	ring, now := i.rings[r.alg], i.cfg.Clock()
	if ring == nil || ring.Unverified || active(ring.Entries, now) < 0 {
		if len(r.requests) > 0 {
			r.refuse(cmp.Or(i.mayRotate(r.alg), ErrNoKey))
		}
		r.due = time.Now().Add(i.cfg.ReloadInterval)
		return nil
	}
	if d, differs := i.upToDate(r.alg); differs {
		if !i.write(ctx, r, d) {
			return nil
		}
		ring = i.rings[r.alg]
	}
	i.remembered[r.alg] = true
	i.reportAbsurd(r, ring, now)
	i.answer(r)
	i.forget(r)
	asked := r.begin()
	terms := i.terms.of(ring)
	due, begin := terms.scheduled(ring.Entries, now)
	switch {
	case r.emergency() || ring.Intent != nil && ring.Intent.Emergency:
		return i.rush(ctx, r, ring, now)
	case ring.Intent != nil:
		if next, _ := i.waiting(r.alg, now); r.failing == ring.Intent.Tag && !r.running && r.made == nil && next >= 0 && terms.pending(ring.Entries, now) < 0 {
			i.take(ctx, r, next, now, ring.Intent.NotBefore, false)
			return nil
		}
		return i.pursue(ctx, r, *ring.Intent, now)
	case asked:
		i.begin(ctx, r, now, time.Time{})
		return nil
	case begin && i.configured(r.alg):
		i.begin(ctx, r, now, due)
		return nil
	}
	r.ok(i.cfg.ReloadInterval)
	return nil
}

// rush does the next thing in an emergency, which waits for nothing that can be
// gone around: it takes the key that is pending, or one that waits, if it signs;
// otherwise it sees the key through that is being created, or orders one.
func (i *issuer) rush(ctx context.Context, r *rotation, ring *Ring, now time.Time) job {
	var err error
	next := i.terms.of(ring).pending(ring.Entries, now)
	if next >= 0 && !i.well(r.alg, ring.Entries[next]) {
		e := ring.Entries[next]
		err = fmt.Errorf("%w: key %s is to become active and does not open on this replica: %w; bring its backend back and try again", ErrNotOpen, e.KeyID, problemOf(i.slots[slotID{r.alg, e.KeyID}]))
		next = -1
	}
	if next < 0 {
		var none error
		next, none = i.waiting(r.alg, now)
		err = all(err, none)
	}
	switch {
	case next >= 0:
		i.take(ctx, r, next, now, now, true)
		return nil
	case ring.Intent != nil:
		return i.pursue(ctx, r, *ring.Intent, now)
	case i.create:
		i.order(ctx, r, now, now)
		return nil
	}
	r.refuse(err)
	r.ok(i.cfg.ReloadInterval)
	return nil
}

// configured reports whether the issuer is to have keys for alg.
func (i *issuer) configured(alg kms.Algorithm) bool {
	return slices.ContainsFunc(i.listed, func(l *listedKey) bool { return l.Algorithm == alg })
}

// reportAbsurd logs, once, a time that nobody plans.
func (i *issuer) reportAbsurd(r *rotation, ring *Ring, now time.Time) {
	for _, e := range ring.Entries {
		if i.terms.of(ring).absurd(e, now) && r.absurd != e.KeyID {
			r.absurd = e.KeyID
			i.log.Error("signing key has a time to become active that is later than any that is planned, and counts as having none: look for a replica whose clock was ahead", "algorithm", r.alg, "key_id", e.KeyID, "activate_at", e.ActivateAt)
		}
	}
}

// underWay is what a view tells of the replacing of a ring's key.
func (i *issuer) underWay(alg kms.Algorithm, now time.Time) (due time.Time, tag string) {
	ring := i.rings[alg]
	if ring == nil {
		return time.Time{}, ""
	}
	if ring.Intent != nil {
		tag = ring.Intent.Tag
	}
	terms := i.terms.of(ring)
	if next := terms.pending(ring.Entries, now); next >= 0 {
		return ring.Entries[next].ActivateAt, tag
	}
	if i.configured(alg) {
		due, _ = terms.scheduled(ring.Entries, now)
	}
	return due, tag
}

// begin chooses the next key of a ring, or orders one. due is when the schedule
// wants it active; zero if people asked.
func (i *issuer) begin(ctx context.Context, r *rotation, now, due time.Time) {
	next, err := i.waiting(r.alg, now)
	switch {
	case next >= 0:
		i.take(ctx, r, next, now, due, false)
	case i.create:
		i.order(ctx, r, now, due)
	case len(r.requests) > 0:
		r.refuse(err)
		r.due = time.Time{} // the schedule may want it all the same
	default:
		if r.noteworthy(err) {
			i.log.Warn("signing key is due to be replaced, and there is none to take its place", "algorithm", r.alg, "due", due, "error", err)
		}
		r.problem, r.due = err, time.Now().Add(i.cfg.ReloadInterval)
	}
}

// waiting is the index of the key that is to be next: of those without a time
// to become active the one that is open and was published first, and of several
// that joined together the one listed first. err says why there is none.
func (i *issuer) waiting(alg kms.Algorithm, now time.Time) (next int, err error) {
	next, err = -1, fmt.Errorf("%w: list one more %s key in the configuration, or let the rotation create keys", ErrNoNext, alg)
	entries, terms := i.rings[alg].Entries, i.terms.of(i.rings[alg])
	for n, e := range entries {
		if e.State(now) != Next || !e.ActivateAt.IsZero() && !terms.absurd(e, now) || e.Tag == "" && i.listedFor(alg, e) == nil {
			continue
		}
		if !i.well(alg, e) {
			err = fmt.Errorf("%w: key %s waits and does not open on this replica: %w", ErrNoNext, e.KeyID, problemOf(i.slots[slotID{alg, e.KeyID}]))
			continue
		}
		if next < 0 || cmp.Or(e.PublishAt.Compare(entries[next].PublishAt), i.rankOf(alg, e)-i.rankOf(alg, entries[next])) < 0 {
			next = n
		}
	}
	if next >= 0 {
		return next, nil
	}
	return -1, err
}

// well reports whether a key of a ring signs on this replica.
func (i *issuer) well(alg kms.Algorithm, e Entry) bool {
	s := i.slots[slotID{alg, e.KeyID}]
	return s != nil && s.pub != nil && s.key != nil && s.problem == nil
}

// rankOf is the place of an entry's key in the configuration; those that are not
// listed come last.
func (i *issuer) rankOf(alg kms.Algorithm, e Entry) int {
	if l := i.listedFor(alg, e); l != nil {
		return slices.Index(i.listed, l)
	}
	return len(i.listed)
}

func problemOf(s *slot) error {
	if s == nil || s.problem == nil {
		return errNotTried
	}
	return s.problem
}

// take puts on record that a key of the ring becomes active. One that is being
// created is of no use then.
func (i *issuer) take(ctx context.Context, r *rotation, next int, now, due time.Time, emergency bool) {
	d := i.draft(r.alg)
	in, old := d.Intent, active(d.Entries, now)
	if in != nil {
		drop(&d, now)
	}
	i.schedule(&d, next, now, due, emergency)
	e := d.Entries[next]
	if err := i.put(ctx, d); err != nil {
		i.notWritten(r, err)
		return
	}
	if in != nil {
		i.dropped(r, *in, "since another takes its place", nil)
	}
	i.recorded(ctx, r, e, Change{
		OldKeyID: d.Entries[old].KeyID, NewKeyID: e.KeyID, ActivateAt: e.ActivateAt, Emergency: emergency, Requested: emergency || due.IsZero(),
	})
	i.forget(r)
	for _, q := range r.requests {
		q.answer <- i.done(r.alg, e, emergency)
	}
	r.requests = nil
}

// schedule sets the times of a change to a draft's Entries[next].
func (i *issuer) schedule(d *Ring, next int, now, due time.Time, emergency bool) {
	if t := i.terms.of(d); emergency {
		t.breakOff(d.Entries, next, now)
	} else {
		t.plan(d.Entries, next, now, due)
	}
}

// recorded is what follows when e and the change to it are on record. If e has no
// time to become active, there is no change.
func (i *issuer) recorded(ctx context.Context, r *rotation, e Entry, c Change) {
	log := i.log.With("algorithm", r.alg, "key_id", e.KeyID, "activate_at", e.ActivateAt)
	switch {
	case c.Emergency:
		log.Warn("signing key replaced in an emergency: tokens of the one before are refused from now on")
	case e.ActivateAt.IsZero():
		log.Info("signing key waits to become the next one")
	default:
		log.Info("signing key is about to be replaced")
	}
	r.ok(i.cfg.ReloadInterval)
	i.publish()
	if i.cfg.Changed != nil && !e.ActivateAt.IsZero() {
		c.Issuer, c.Algorithm = i.name, r.alg
		i.cfg.Changed(ctx, c)
	}
	if e.Tag != "" {
		i.unswept[e.Tag] = 2 // the second time finds what was made late
		i.sweepTo.due = time.Time{}
	}
}

// answer answers the requests whose change is on record.
func (i *issuer) answer(r *rotation) {
	ring, now := i.rings[r.alg], i.cfg.Clock()
	next := i.terms.of(ring).pending(ring.Entries, now)
	r.requests = slices.DeleteFunc(r.requests, func(q *request) bool {
		at := next
		if q.tag != "" {
			created := slices.IndexFunc(ring.Entries, func(e Entry) bool { return e.Tag == q.tag })
			if created < 0 && ring.Intent != nil && ring.Intent.Tag == q.tag {
				return false
			}
			q.tag = ""
			if created >= 0 {
				at = created
			} // else it was given up
		}
		if q.emergency && slices.ContainsFunc(ring.Entries, func(e Entry) bool { return e.KeyID == q.replaces && e.Withdrawn }) {
			at = active(ring.Entries, now) // another replica was faster
		}
		if at < 0 || q.emergency && ring.Entries[at].State(now) == Next {
			return false
		}
		i.publish()
		q.answer <- i.done(r.alg, ring.Entries[at], q.emergency)
		return true
	})
}

// done is the answer to a request whose change to e is on record.
func (i *issuer) done(alg kms.Algorithm, e Entry, emergency bool) answer {
	a := answer{Rotated: Rotated{Keys: i.current.Load().keys(alg, i.cfg.Clock())}}
	if emergency {
		a.Breaks = i.breaks(alg, e)
	}
	return a
}

// breaks says what an emergency broke that made e active.
func (i *issuer) breaks(alg kms.Algorithm, e Entry) []string {
	t, retiring := i.terms, false
	var list []string
	if ring := i.rings[alg]; ring != nil {
		t = t.of(ring)
		withdrawn := func(o Entry) bool {
			return o.Withdrawn && o.RemoveAt.Equal(e.ActivateAt) && o.RetireAt.Before(o.RemoveAt)
		}
		retiring = slices.ContainsFunc(ring.Entries, withdrawn)
	}
	if known := e.PublishAt.Add(t.lead()); known.After(e.ActivateAt.Add(t.skew)) {
		list = append(list, fmt.Sprintf("Verifiers that cached the issuer's JWK Set before they could see key %s refuse its tokens until they fetch the set again: for up to %s (jwks_max_age), unless they fetch it when they meet a kid they do not know.", e.KeyID, t.maxAge))
	}
	if retiring {
		list = append(list, "The keys that were retiring are withdrawn too, since the stolen key may be one of them: what is said here of tokens of the replaced key holds for theirs.")
	}
	return append(list,
		fmt.Sprintf("Tokens of the replaced key that have not expired (they live up to %s) are refused by every verifier from the moment it fetches the set again. Those that cached the set accept the key, and what a thief signs with it, for up to %s more.", t.maxLifetime, t.maxAge),
		fmt.Sprintf("The other replicas learn of it within %s and follow at once. Until then they sign with the replaced key and publish it; one that is cut off from the store does so for up to %s.", i.cfg.ReloadInterval, 2*t.maxLag),
	)
}

// notWritten takes the failure of a change of the ring.
func (i *issuer) notWritten(r *rotation, err error) {
	i.reloadTo.due = time.Time{} // it may have happened all the same
	if errors.Is(err, ErrRevision) {
		// Another replica was faster: look at what it wrote.
		problem := r.problem
		r.failed(i.cfg, err, i.cfg.RetryMin)
		r.problem = problem
		return
	}
	i.stuck(r, err)
	if !errors.Is(err, ErrUnavailable) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	r.refuse(err)
}

// stuck notes a failure of a rotation that is tried again.
func (i *issuer) stuck(r *rotation, err error) {
	if r.noteworthy(err) {
		log := i.log.With("algorithm", r.alg, "error", err)
		if alarming(err) {
			log.Error("replacing the signing key does not get on, trying again")
		} else {
			log.Warn("replacing the signing key does not get on, trying again")
		}
	}
	r.failed(i.cfg, err, i.cfg.RetryMax)
}
