package keyring

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// Orphan is a key that Bulla created and that is in no ring: its creation took
// so long that another was made or taken in its place, and it came to be all the
// same; or it did not open, and an emergency could not wait.
// It has signed no token and was never published. Delete it in its backend.
type Orphan struct {
	Algorithm kms.Algorithm
	Location  Location
	Tag       string
}

// String says what is known and what to do.
func (o Orphan) String() string {
	return fmt.Sprintf("%s: a created key is in no ring: delete it at %s (tag %s)", o.Algorithm, o.Location, o.Tag)
}

// Orphans returns what was found of an issuer when this replica last looked: at
// its start, and after each rotation of its own.
func (k *Keyring) Orphans(issuer string) ([]Orphan, error) {
	v, err := k.view(issuer)
	if err != nil {
		return nil, err
	}
	return slices.Clone(v.orphans), nil
}

// orphan notes an orphan, and logs it once.
func (i *issuer) orphan(o Orphan) {
	if _, known := i.orphans[o.Location]; known {
		return
	}
	i.orphans[o.Location] = o
	i.log.Warn("a key that was created for a ring is in none: it has never signed a token, so delete it in its backend", "algorithm", o.Algorithm, "location", o.Location.String(), "tag", o.Tag)
}

// sweeping is the job of looking for keys that carry a tag of the rings and are
// not in them: at the start for all tags, then for those of new keys. A tag that
// is being created is left alone.
func (i *issuer) sweeping() job {
	type tagged struct {
		alg     kms.Algorithm
		backend string
	}
	tags := map[string]tagged{}
	for alg, ring := range i.rings {
		for _, e := range ring.Entries {
			if e.Tag == "" || len(e.Locations) == 0 || i.sweptOnce && i.unswept[e.Tag] == 0 {
				continue
			}
			if _, err := i.creator(e.Locations[0].Backend); err == nil {
				tags[e.Tag] = tagged{alg, e.Locations[0].Backend}
			}
		}
		for _, o := range ring.Dropped {
			if i.sweptOnce && i.unswept[o.Tag] == 0 {
				continue
			}
			if _, err := i.creator(o.Backend); err == nil {
				tags[o.Tag] = tagged{alg, o.Backend}
			}
		}
	}
	return func(ctx context.Context) func(context.Context) {
		found := map[Location]Orphan{}
		var errs []error
		for tag, t := range tags {
			refs, err := i.find(ctx, t.backend, tag)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for _, ref := range refs {
				l := Location{t.backend, ref}
				found[l] = Orphan{t.alg, l, tag}
			}
		}
		return func(context.Context) {
			i.swept(func(tag string) bool { _, ok := tags[tag]; return ok }, found, all(errs...))
		}
	}
}

// swept takes the result of sweeping: the keys that carry one of the tags.
func (i *issuer) swept(looked func(tag string) bool, found map[Location]Orphan, err error) {
	inRing, tags := map[Location]bool{}, map[string]bool{}
	for _, ring := range i.rings {
		for _, e := range ring.Entries {
			tags[e.Tag] = true
			for _, l := range e.Locations {
				inRing[l] = true
			}
		}
		for _, o := range ring.Dropped {
			tags[o.Tag] = true
		}
	}
	for l, o := range found {
		if !inRing[l] {
			i.orphan(o)
		}
	}
	if err != nil {
		if i.sweepTo.noteworthy(err) {
			i.log.Warn("cannot look for created keys that are in no ring, trying again", "error", err)
		}
		i.sweepTo.failed(i.cfg, err, i.cfg.RetryMax)
		return
	}
	// Those that have been deleted are reported no more.
	maps.DeleteFunc(i.orphans, func(l Location, o Orphan) bool { return looked(o.Tag) && found[l] == (Orphan{}) })
	i.sweptOnce = true
	i.sweepTo.ok(i.cfg.Lease)
	for tag, times := range i.unswept {
		switch {
		case !tags[tag] || looked(tag) && times == 1:
			delete(i.unswept, tag)
		case looked(tag):
			i.unswept[tag]--
		default:
			i.sweepTo.due = time.Time{} // it came while this went on
		}
	}
}
