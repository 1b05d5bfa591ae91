package keyring

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// The creation of a key and its record in a ring cannot be one step, so they
// are four, each of which may be the last thing a process does:
//
//	intent   the ring says which tag the key will have (order)
//	create   the key is looked for by its tag, and made if it is not there (create)
//	open     it is opened and proven like every other key (create)
//	record   the ring has the key and its times, and the intent no more (record)
//
// Every write is a compare-and-swap. Replicas that begin at once write one
// intent; the one that wrote it creates. If it falls silent, another claims the
// intent after a lease, with the same tag, and finds what is there.

// made is a key that carries the tag of an intent and is not on record yet.
type made struct {
	tag string
	proof
}

// order writes the intent of a key like the active one. due is when the schedule
// wants it active; zero if people asked.
func (i *issuer) order(ctx context.Context, r *rotation, now, due time.Time) {
	d := i.draft(r.alg)
	like := d.Entries[active(d.Entries, now)]
	in := Intent{Tag: newTag(i.name, r.alg), NotBefore: due, Emergency: r.emergency(), Owner: i.owner, ClaimedAt: now.UTC()}
	if len(like.Locations) > 0 {
		in.Backend = like.Locations[0].Backend
	}
	if s := i.slots[slotID{r.alg, like.KeyID}]; s != nil {
		if pub, ok := s.pub.(*rsa.PublicKey); ok {
			in.RSABits = pub.N.BitLen()
		}
	}
	spec := kms.KeySpec{Algorithm: r.alg, RSABits: in.RSABits}
	_, err := i.creator(in.Backend)
	if err = all(err, spec.Check()); err != nil {
		err = fmt.Errorf("%w: create a key like the active one, %s: %w", ErrCannotCreate, like.KeyID, err)
		i.stuck(r, err)
		r.refuse(err)
		return
	}
	d.Intent = &in
	if err := i.put(ctx, d); err != nil {
		i.notWritten(r, err)
		return
	}
	i.log.Info("signing key ordered", "algorithm", r.alg, "backend", in.Backend, "tag", in.Tag)
	r.due = time.Time{}
}

// creator is a backend that makes keys.
func (i *issuer) creator(backend string) (kms.Creator, error) {
	b, ok := i.cfg.Backends[backend]
	if !ok {
		return nil, fmt.Errorf("%w: backend %q is not configured any more", kms.ErrReference, backend)
	}
	c, ok := b.(kms.Creator)
	if !ok {
		return nil, fmt.Errorf("%w: backend %q: %w", kms.ErrKeyDisabled, backend, errNoCreator)
	}
	return c, nil
}

// newTag marks a key of an issuer. It is short enough for kms.CheckTag whatever
// the issuer is called, and no other key has it.
func newTag(issuer string, alg kms.Algorithm) string {
	name := []byte(issuer)
	for n, c := range name {
		if kms.CheckTag(string(c)) != nil {
			name[n] = '-'
		}
	}
	const longest = 20
	return strings.ToLower(fmt.Sprintf("bulla-%s-%s-%s", name[:min(len(name), longest)], alg, rand.Text()[:20]))
}

// void reports that a claim is dated so far ahead that it tells nothing.
func (i *issuer) void(in Intent, now time.Time) bool {
	return in.ClaimedAt.After(now.Add(i.cfg.Skew))
}

// binds reports that the claim of another owner keeps this replica from
// creating the key of an intent.
func (i *issuer) binds(in Intent, now time.Time) bool {
	return !i.cfg.Alone && !i.void(in, now) && now.Before(in.ClaimedAt.Add(i.cfg.Lease+i.cfg.Skew))
}

// settles is how long after CreateKey may have made a key, without an answer
// that says so, FindKeys may not list it yet.
const settles = 30 * time.Second

// drop takes the intent out of a draft, and writes down that it was there.
func drop(d *Ring, now time.Time) {
	d.Dropped = append(d.Dropped, Dropped{Tag: d.Intent.Tag, Backend: d.Intent.Backend, At: now.UTC()})
	d.Intent = nil
}

// dropped is what follows when a draft without its intent has been written.
func (i *issuer) dropped(r *rotation, in Intent, why string, err error) {
	attrs := []any{"algorithm", r.alg, "backend", in.Backend, "tag", in.Tag}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	i.log.Warn("unfinished creation of a signing key given up, "+why+": delete the key of this tag, should there be one", attrs...)
	if _, err := i.creator(in.Backend); err == nil {
		i.unswept[in.Tag] = 3
		i.sweepTo.due = time.Time{}
	}
}

// giveUp drops the intent of a ring.
func (i *issuer) giveUp(ctx context.Context, r *rotation, in Intent, now time.Time, why string, err error) {
	d := i.draft(r.alg)
	drop(&d, now)
	if i.write(ctx, r, d) {
		i.dropped(r, in, why, err)
	}
}

// pursue sees the key of an intent through to its record. It returns the job of
// creating it if that is this replica's part.
func (i *issuer) pursue(ctx context.Context, r *rotation, in Intent, now time.Time) job {
	if r.emergency() && !in.Emergency {
		in.Emergency = true
		i.rewrite(ctx, r, &in)
		return nil
	}
	for _, q := range r.requests {
		q.tag = in.Tag
	}
	mine := in.Owner == i.owner
	_, impossible := i.creator(in.Backend)
	switch {
	case r.made != nil:
		i.record(ctx, r, in, now)
		return nil

	case r.running:
		r.due = time.Now().Add(i.cfg.ReloadInterval)
		return nil

	case !mine && i.binds(in, now):
		wait := i.cfg.ReloadInterval
		if len(r.requests) > 0 {
			wait = min(wait, i.cfg.RetryMin)
			i.reloadTo.due = earlier(i.reloadTo.due, time.Now().Add(wait))
		}
		r.ok(wait)
		return nil

	case impossible != nil:
		i.giveUp(ctx, r, in, now, "since its backend creates no keys any more", impossible)
		return nil

	case !mine || i.void(in, now) || now.After(i.createUntil(in).Add(-i.cfg.Timeout)):
		expired := now.After(in.ClaimedAt.Add(i.cfg.Lease))
		in.Owner, in.ClaimedAt = i.owner, now.UTC()
		if !i.rewrite(ctx, r, &in) {
			return nil
		}
		if mine {
			break
		}
		i.log.Warn("unfinished creation of a signing key taken over from a replica that fell silent", "algorithm", r.alg, "backend", in.Backend, "tag", in.Tag)
		if !expired {
			// It may have made the key a moment ago.
			r.unsure, r.again = in.Tag, time.Now().Add(settles)
		}
	}
	r.due = time.Now().Add(i.cfg.ReloadInterval)
	var from time.Time
	if r.unsure == in.Tag && !in.Emergency { // two keys do less harm than a wait
		from = r.again
	}
	return i.creating(r, in, from, time.Now().Add(i.createUntil(in).Sub(now)))
}

// createUntil is the last moment at which the owner of an intent may begin to
// create its key.
func (i *issuer) createUntil(in Intent) time.Time {
	return in.ClaimedAt.Add(i.cfg.Lease - i.cfg.CreateTimeout)
}

// rewrite changes the intent of a ring, and reports whether it could.
func (i *issuer) rewrite(ctx context.Context, r *rotation, in *Intent) bool {
	d := i.draft(r.alg)
	d.Intent = in
	return i.write(ctx, r, d)
}

// write puts a draft, and reports whether it could.
func (i *issuer) write(ctx context.Context, r *rotation, d Ring) bool {
	if err := i.put(ctx, d); err != nil {
		i.notWritten(r, err)
		return false
	}
	r.due = time.Time{}
	return true
}

// creating is the job of finding or creating the key of an intent. Creating it is
// allowed between from and until, which are by time.Now.
func (i *issuer) creating(r *rotation, in Intent, from, until time.Time) job {
	alg := r.alg
	return func(ctx context.Context) func(context.Context) {
		m, err := i.findOrCreate(ctx, in, alg, from, until)
		return func(ctx context.Context) { i.created(ctx, r, in, m, err) }
	}
}

var (
	// errNothingMade: no key of the tag is there, and none may be created.
	errNothingMade = errors.New("no key of that tag was created")
	errClaimEnds   = fmt.Errorf("%w: there is not enough time left to create it under this claim", kms.ErrUnavailable)
	// errNotYet: it may have been created, and not be listed yet.
	errNotYet = fmt.Errorf("%w: it may have been created and is not to be found yet", kms.ErrUnavailable)
)

// unsure is a failure of CreateKey after which there may be a key.
type unsure struct{ error }

func (e unsure) Unwrap() error { return e.error }

// useless are the places of a key that was created and that will never open.
type useless struct {
	error
	places []Location
}

func (e useless) Unwrap() error { return e.error }

// refused reports that a backend will not make the key that it was asked for,
// until an operator has put that right.
func refused(err error) bool {
	return errors.Is(err, kms.ErrKeyDisabled) || errors.Is(err, kms.ErrKeyMismatch) || errors.Is(err, kms.ErrReference)
}

// findOrCreate finds or creates the key of an intent and opens it.
func (i *issuer) findOrCreate(ctx context.Context, in Intent, alg kms.Algorithm, from, until time.Time) (*made, error) {
	refs, err := i.find(ctx, in.Backend, in.Tag)
	if err != nil {
		return nil, err
	}
	found := len(refs) > 0
	switch {
	case found:
	case !i.create:
		return nil, errNothingMade
	case time.Now().Before(from):
		return nil, errNotYet
	case time.Now().After(until):
		return nil, errClaimEnds // asking took long, or the process was stopped
	default:
		bounded, cancel := context.WithTimeout(ctx, i.cfg.CreateTimeout)
		defer cancel()
		creator, err := i.creator(in.Backend)
		if err != nil {
			return nil, err
		}
		ref, err := creator.CreateKey(bounded, kms.KeySpec{Algorithm: alg, RSABits: in.RSABits}, in.Tag)
		if err != nil {
			err = answered(bounded, err)
			if !refused(err) && !errors.Is(err, kms.ErrThrottled) {
				err = unsure{err}
			}
			return nil, fmt.Errorf("create a key in backend %s: %w", in.Backend, err)
		}
		refs = []string{ref}
	}
	var errs []error
	var places []Location // that do not hold a key of any use
	for _, ref := range refs {
		l := Location{in.Backend, ref}
		opened, err := i.open(ctx, l, alg)
		if err == nil {
			err = asOrdered(opened, kms.KeySpec{Algorithm: alg, RSABits: in.RSABits})
		}
		if err == nil {
			return &made{tag: in.Tag, proof: opened}, nil
		}
		errs = append(errs, err)
		if errors.Is(err, kms.ErrKeyNotFound) || errors.Is(err, kms.ErrKeyMismatch) {
			places = append(places, l)
		}
	}
	err = fmt.Errorf("open the created key: %w", all(errs...))
	if found && len(places) == len(refs) {
		// A key that has just been made may not be there for everybody yet;
		// this one has been found.
		return nil, useless{err, places}
	}
	return nil, err
}

// asOrdered reports why a key is not the one that an intent ordered.
func asOrdered(opened proof, spec kms.KeySpec) error {
	if pub, ok := opened.key.Public().(*rsa.PublicKey); ok && pub.N.BitLen() != spec.Bits() {
		return fmt.Errorf("%s: %w: it has %d bits, and one of %d was ordered", opened.location, kms.ErrKeyMismatch, pub.N.BitLen(), spec.Bits())
	}
	return nil
}

// find returns the references of the keys that carry a tag.
func (i *issuer) find(ctx context.Context, backend, tag string) ([]string, error) {
	bounded, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
	defer cancel()
	creator, err := i.creator(backend)
	if err != nil {
		return nil, err
	}
	refs, err := creator.FindKeys(bounded, tag)
	if err != nil {
		return nil, fmt.Errorf("look for the keys of tag %s in backend %s: %w", tag, backend, answered(bounded, err))
	}
	return refs, nil
}

// created takes the result of creating.
func (i *issuer) created(ctx context.Context, r *rotation, in Intent, m *made, err error) {
	var maybe unsure
	var dud useless
	if errors.As(err, &maybe) {
		r.unsure, r.again = in.Tag, time.Now().Add(settles)
	}
	r.failing = ""
	ring := i.rings[r.alg]
	current := ring != nil && ring.Intent != nil && ring.Intent.Tag == in.Tag
	switch {
	case err == nil:
		r.made = m
		r.ok(0)
	case !current:
		r.ok(0) // whatever it was, the ring goes on without that key
	case errors.Is(err, errNothingMade):
		r.ok(0)
		if ring.Intent.Owner == i.owner {
			i.giveUp(ctx, r, *ring.Intent, i.cfg.Clock(), "since the rotation creates none any more", nil)
		}
	case errors.Is(err, errNotYet):
		// The news is still what happened before.
		before := cmp.Or(r.problem, err)
		r.failed(i.cfg, err, i.cfg.RetryMax)
		r.problem, r.due = before, earlier(r.due, r.again)
	case errors.As(err, &dud) && i.replace(ctx, r, *ring.Intent, dud):
	default:
		r.failing = in.Tag
		i.stuck(r, err)
		if refused(err) {
			// This does not pass by itself.
			r.refuse(fmt.Errorf("%w: it has begun, and goes on when this has been put right: %w", ErrCannotCreate, err))
		}
	}
}

// maxDuds is how many keys that do not open an emergency makes in an hour. They
// fill up a token, and cost money elsewhere.
const maxDuds = 3

// replace orders another key in an emergency, where the one that was created
// will never open. It reports whether it did, or might.
func (i *issuer) replace(ctx context.Context, r *rotation, in Intent, dud useless) bool {
	now := i.cfg.Clock()
	d := i.draft(r.alg)
	late := 0
	for _, o := range d.Dropped {
		if now.Sub(o.At) < time.Hour {
			late++
		}
	}
	if !in.Emergency || in.Owner != i.owner || !i.create || late >= maxDuds {
		return false
	}
	another := in
	another.Tag, another.ClaimedAt = newTag(i.name, r.alg), now.UTC()
	drop(&d, now)
	d.Intent = &another
	if !i.write(ctx, r, d) {
		return true
	}
	i.dropped(r, in, "since what was made does not open, and another is made", dud)
	for _, l := range dud.places {
		i.orphan(Orphan{Algorithm: r.alg, Location: l, Tag: in.Tag})
	}
	return true
}

// record writes the key of an intent, with its times, into its ring.
func (i *issuer) record(ctx context.Context, r *rotation, in Intent, now time.Time) {
	m := r.made
	d := i.draft(r.alg)
	d.Intent = nil
	if err := i.isNew(m); err != nil {
		// It was made elsewhere and given our tag. Order another.
		r.made = nil
		i.stuck(r, err)
		r.refuse(fmt.Errorf("%w: %w", ErrCannotCreate, err))
		i.rewrite(ctx, r, nil)
		return
	}
	jwk, err := signer.PublicJWK(m.key.Public(), r.alg)
	if err != nil {
		i.stuck(r, err)
		return
	}
	e := Entry{KeyID: m.key.KeyID(), PublicJWK: jwk, Locations: []Location{m.location}, Tag: m.tag, PublishAt: upToSecond(now)}
	next := len(d.Entries)
	d.Entries = append(d.Entries, e)
	old := active(d.Entries, now)
	if in.Emergency || i.terms.of(&d).pending(d.Entries, now) < 0 {
		i.schedule(&d, next, now, in.NotBefore, in.Emergency)
	} // else it waits: a listed key was faster
	e = d.Entries[next]
	if err := i.put(ctx, d); err != nil {
		i.notWritten(r, err)
		return
	}
	r.made = nil
	i.takeProofs(i.slots[slotID{r.alg, m.key.KeyID()}], []proof{m.proof})
	c := Change{NewKeyID: e.KeyID, ActivateAt: e.ActivateAt, Emergency: in.Emergency, Requested: in.Emergency || in.NotBefore.IsZero() || len(r.requests) > 0}
	if old >= 0 {
		c.OldKeyID = d.Entries[old].KeyID
	}
	i.recorded(ctx, r, e, c)
	i.answer(r)
}

// isNew reports that a key of the issuer's rings came back as a created one.
func (i *issuer) isNew(m *made) error {
	for alg, ring := range i.rings {
		if slices.ContainsFunc(ring.Entries, func(e Entry) bool { return e.KeyID == m.key.KeyID() }) {
			return fmt.Errorf("%s: %w: it carries the tag of a new key and is key %s, which signs %s already", m.location, kms.ErrKeyMismatch, m.key.KeyID(), alg)
		}
	}
	return nil
}

// forget drops a key whose intent has gone: another replica has recorded it, or
// another key of the tag. Then this one is of no use to anybody.
func (i *issuer) forget(r *rotation) {
	m, ring := r.made, i.rings[r.alg]
	if m == nil || ring.Intent != nil && ring.Intent.Tag == m.tag {
		return
	}
	r.made = nil
	if !slices.ContainsFunc(ring.Entries, func(e Entry) bool { return slices.Contains(e.Locations, m.location) }) {
		i.orphan(Orphan{Algorithm: r.alg, Location: m.location, Tag: m.tag})
	}
}
