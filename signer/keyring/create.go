package keyring

import (
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

// order writes the intent of a key like the active one.
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
		err = fmt.Errorf("create a key like the active one, %s: %w", like.KeyID, err)
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

// claimLasts is when the claim of an intent ends for everybody else.
func (i *issuer) claimLasts(in Intent) time.Time {
	return in.ClaimedAt.Add(i.cfg.Lease + i.cfg.Skew)
}

// pursue sees the key of an intent through to its record. It returns the job of
// creating it if that is this replica's part.
func (i *issuer) pursue(ctx context.Context, r *rotation, in Intent, now time.Time) job {
	for _, q := range r.requests {
		q.tag = in.Tag
	}
	mine := in.Owner == i.owner
	_, impossible := i.creator(in.Backend)
	switch {
	case r.emergency() && !in.Emergency:
		in.Emergency = true
		i.rewrite(ctx, r, &in)
		return nil

	case r.made != nil:
		i.record(ctx, r, in, now)
		return nil

	case r.running:
		r.due = time.Now().Add(i.cfg.ReloadInterval)
		return nil

	case !mine && now.Before(i.claimLasts(in)):
		wait := i.cfg.ReloadInterval
		if len(r.requests) > 0 {
			wait = min(wait, i.cfg.RetryMin)
			i.reloadTo.due = earlier(i.reloadTo.due, time.Now().Add(wait))
		}
		r.ok(wait)
		return nil

	case impossible != nil:
		i.log.Warn("unfinished creation of a signing key given up: delete the key of this tag, should there be one", "algorithm", r.alg, "backend", in.Backend, "tag", in.Tag, "error", impossible)
		i.rewrite(ctx, r, nil)
		return nil

	case !mine || now.After(i.createUntil(in).Add(-i.cfg.Timeout)):
		if !mine {
			i.log.Warn("unfinished creation of a signing key taken over from a replica that fell silent", "algorithm", r.alg, "backend", in.Backend, "tag", in.Tag)
		}
		in.Owner, in.ClaimedAt = i.owner, now.UTC()
		if !i.rewrite(ctx, r, &in) {
			return nil
		}
	}
	r.due = time.Now().Add(i.cfg.ReloadInterval)
	return i.creating(r, in, time.Now().Add(i.createUntil(in).Sub(now)))
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
	if err := i.put(ctx, d); err != nil {
		i.notWritten(r, err)
		return false
	}
	r.due = time.Time{}
	return true
}

// creating is the job of finding or creating the key of an intent. until is by
// time.Now.
func (i *issuer) creating(r *rotation, in Intent, until time.Time) job {
	alg := r.alg
	return func(ctx context.Context) func(context.Context) {
		m, err := i.findOrCreate(ctx, in, alg, until)
		return func(ctx context.Context) { i.created(ctx, r, in, m, err) }
	}
}

var (
	// errNothingMade: no key of the tag is there, and none may be created.
	errNothingMade = errors.New("no key of that tag was created")
	errClaimEnds   = fmt.Errorf("%w: there is not enough time left to create it under this claim", kms.ErrUnavailable)
)

// findOrCreate finds or creates the key of an intent and opens it.
func (i *issuer) findOrCreate(ctx context.Context, in Intent, alg kms.Algorithm, until time.Time) (*made, error) {
	refs, err := i.find(ctx, in.Backend, in.Tag)
	if err != nil {
		return nil, err
	}
	switch {
	case len(refs) > 0:
	case !i.create:
		return nil, errNothingMade
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
			return nil, fmt.Errorf("create a key in backend %s: %w", in.Backend, answered(bounded, err))
		}
		refs = []string{ref}
	}
	var errs []error
	for _, ref := range refs {
		l := Location{in.Backend, ref}
		opened, err := i.open(ctx, l, alg)
		if err == nil {
			err = asOrdered(opened, in)
		}
		if err == nil {
			return &made{tag: in.Tag, proof: opened}, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("open the created key: %w", all(errs...))
}

// asOrdered reports why a key is not the one that an intent ordered.
func asOrdered(opened proof, in Intent) error {
	if pub, ok := opened.key.Public().(*rsa.PublicKey); ok && pub.N.BitLen() != in.RSABits {
		return fmt.Errorf("%s: %w: it has %d bits, and one of %d was ordered", opened.location, kms.ErrKeyMismatch, pub.N.BitLen(), in.RSABits)
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
	switch {
	case err == nil:
		r.made = m
		r.ok(0)
	case errors.Is(err, errNothingMade):
		r.ok(0)
		if ring := i.rings[r.alg]; ring != nil && ring.Intent != nil && ring.Intent.Tag == in.Tag && ring.Intent.Owner == i.owner {
			i.log.Warn("unfinished creation of a signing key given up, since the rotation creates none any more: delete the key of this tag, should it turn up", "algorithm", r.alg, "backend", in.Backend, "tag", in.Tag)
			i.rewrite(ctx, r, nil)
		}
	default:
		i.stuck(r, err)
		if errors.Is(err, kms.ErrKeyDisabled) || errors.Is(err, kms.ErrKeyMismatch) || errors.Is(err, kms.ErrReference) {
			// This does not pass by itself.
			r.refuse(fmt.Errorf("it has begun, and goes on when this has been put right: %w", err))
		}
	}
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
		r.refuse(err)
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
	if in.Emergency || pending(d.Entries, now) < 0 {
		i.schedule(d.Entries, next, now, in.NotBefore, in.Emergency)
	} // else it waits: a listed key was faster
	e = d.Entries[next]
	if err := i.put(ctx, d); err != nil {
		i.notWritten(r, err)
		return
	}
	r.made = nil
	i.takeProofs(i.slots[slotID{r.alg, m.key.KeyID()}], []proof{m.proof})
	i.recorded(r, e, in.Emergency)
	i.settle(r)
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
