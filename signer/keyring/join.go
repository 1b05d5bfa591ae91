package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// unproven are the locations of a listed key that no key of its ring has, and
// that may be proven now: into an empty ring the first listed key of the
// algorithm goes first, so that all replicas seed it with the same.
func (i *issuer) unproven(l *listedKey) []Location {
	r := i.rings[l.Algorithm]
	if r == nil || len(r.Entries) == 0 {
		first := slices.IndexFunc(i.listed, func(o *listedKey) bool { return o.Algorithm == l.Algorithm })
		if i.listed[first] != l {
			return nil
		}
		return l.Locations
	}
	return slices.DeleteFunc(slices.Clone(l.Locations), func(x Location) bool {
		return slices.ContainsFunc(r.Entries, func(e Entry) bool { return slices.Contains(e.Locations, x) })
	})
}

// proof is a location that has been opened.
type proof struct {
	location Location
	key      *signer.SigningKey // that has signed a probe
	raw      kms.Key            // the backend's key in it
	took     time.Duration      // to open and to sign
}

// proving is the job of opening the unproven locations of a listed key.
func (i *issuer) proving(l *listedKey, unproven []Location) job {
	alg := l.Algorithm
	return func(ctx context.Context) func(context.Context) {
		var proofs []proof
		var errs []error
		for _, at := range unproven {
			p, err := i.open(ctx, at, alg)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			proofs = append(proofs, p)
		}
		err := all(errs...)
		return func(ctx context.Context) { i.proven(ctx, l, proofs, err) }
	}
}

// proven takes the result of proving: it adds the key, or the locations, to
// the ring. err tells of the locations that could not be opened.
func (i *issuer) proven(ctx context.Context, l *listedKey, proofs []proof, err error) {
	if len(proofs) > 0 {
		if joinErr := i.join(ctx, l, proofs); joinErr != nil {
			err = all(joinErr, err)
		}
	}
	switch {
	case err == nil:
		l.ok(i.cfg.RetryMin)
	case errors.Is(err, ErrRevision):
		// Another replica was faster: look at what it wrote.
		i.reloadTo.due = time.Time{}
		l.failed(i.cfg, err, i.cfg.RetryMin)
	default:
		if l.noteworthy(err) {
			log := i.log.With("algorithm", l.Algorithm, "locations", l.Locations, "error", err)
			if alarming(err) {
				log.Error("listed signing key refused, trying again")
			} else {
				log.Warn("listed signing key cannot be opened, trying again")
			}
		}
		l.failed(i.cfg, err, i.cfg.patience(err))
	}
}

// join writes proven locations of a listed key into its ring.
func (i *issuer) join(ctx context.Context, l *listedKey, proofs []proof) error {
	key := proofs[0].key
	for _, p := range proofs[1:] {
		if !samePublic(p.key.Public(), key.Public()) {
			return fmt.Errorf("%w: %s holds the key pair with kid %s and %s that with kid %s; the locations of one key must hold the same pair, so list different keys apart",
				kms.ErrKeyMismatch, proofs[0].location, key.KeyID(), p.location, p.key.KeyID())
		}
	}
	ring := i.draft(l.Algorithm)
	if err := i.mayJoin(l, key, proofs[0].location, ring.Entries); err != nil {
		return err
	}
	at := slices.IndexFunc(ring.Entries, func(e Entry) bool { return e.KeyID == key.KeyID() })
	joined := at < 0
	if joined {
		entry, err := i.newEntry(l, key, len(ring.Entries) == 0)
		if err != nil {
			return err
		}
		at = len(ring.Entries)
		ring.Entries = append(ring.Entries, entry)
	}
	locations := slices.Clone(ring.Entries[at].Locations)
	for _, p := range proofs {
		if !slices.Contains(locations, p.location) {
			locations = append(locations, p.location)
		}
	}
	ring.Entries[at].Locations = inListedOrder(l.Locations, locations)

	if err := i.put(ctx, ring); err != nil {
		return err
	}
	log := i.log.With("algorithm", l.Algorithm, "key_id", key.KeyID(), "locations", ring.Entries[at].Locations)
	if joined {
		log.Info("signing key joined its ring", "state", ring.Entries[at].State(i.cfg.Clock()))
	} else {
		log.Info("signing key has a new location")
	}
	i.takeProofs(i.slots[slotID{l.Algorithm, key.KeyID()}], proofs)
	return nil
}

// draft is a copy of a ring to change, or a new one. It is up to date with the
// configuration.
func (i *issuer) draft(alg kms.Algorithm) Ring {
	d, _ := i.upToDate(alg)
	return d
}

// upToDate is draft, and whether that differs from the ring.
func (i *issuer) upToDate(alg kms.Algorithm) (d Ring, differs bool) {
	d = Ring{Issuer: i.name, Algorithm: alg}
	if r := i.rings[alg]; r != nil {
		d = *r
		d.Entries, d.Dropped = slices.Clone(r.Entries), slices.Clone(r.Dropped)
	}
	now := i.cfg.Clock()
	differs = i.terms.remember(&d, now, !i.remembered[alg])
	return d, i.terms.of(&d).extend(d.Entries, now) || differs
}

// put writes a changed draft over the ring that it was made of. The time that
// it may take is a part of the proof in the package comment.
func (i *issuer) put(ctx context.Context, draft Ring) error {
	now := i.cfg.Clock()
	draft.Entries = prune(draft.Entries, now, func(e Entry) bool { return i.listedFor(draft.Algorithm, e) != nil })
	draft.Dropped = pruneDropped(draft.Dropped, now)
	bounded, cancel := context.WithTimeout(ctx, i.terms.write)
	defer cancel()
	stored, err := i.cfg.Store.PutRing(bounded, draft, draft.Revision)
	if err != nil {
		return fmt.Errorf("write the key ring to the store: %w", err)
	}
	i.rings[draft.Algorithm] = stored
	i.remembered[draft.Algorithm] = true
	i.adopt()
	return nil
}

// mayJoin reports why a listed key may not be what it was opened as.
func (i *issuer) mayJoin(l *listedKey, key *signer.SigningKey, at Location, entries []Entry) error {
	for _, e := range entries {
		// Another location of the same listed key is known to hold e.
		if e.KeyID != key.KeyID() && slices.ContainsFunc(l.Locations, func(x Location) bool { return slices.Contains(e.Locations, x) }) {
			return fmt.Errorf("%w: %s holds the key pair with kid %s, and other locations of this listed key hold %s; list different keys apart",
				kms.ErrKeyMismatch, at, key.KeyID(), e.KeyID)
		}
	}
	for alg, r := range i.rings {
		if alg != l.Algorithm && slices.ContainsFunc(r.Entries, func(e Entry) bool { return e.KeyID == key.KeyID() }) {
			return fmt.Errorf("%s: %w (kid %s signs %s)", at, ErrKeyShared, key.KeyID(), alg)
		}
	}
	return nil
}

// newEntry is the entry of a key that joins its ring. The first key of a ring
// signs at once, because without it the algorithm could not be used at all; a
// verifier that fetched the issuer's set before finds a kid it does not know
// and has to fetch again.
func (i *issuer) newEntry(l *listedKey, key *signer.SigningKey, first bool) (Entry, error) {
	jwk, err := signer.PublicJWK(key.Public(), l.Algorithm)
	if err != nil {
		return Entry{}, err
	}
	now := i.cfg.Clock()
	e := Entry{KeyID: key.KeyID(), PublicJWK: jwk, PublishAt: upToSecond(now)}
	if first {
		e.PublishAt = now.UTC().Truncate(time.Second)
		e.ActivateAt = e.PublishAt
	}
	return e, nil
}
