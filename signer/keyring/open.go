package keyring

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// open opens the key at one location and has it sign once.
func (i *issuer) open(ctx context.Context, l Location, alg kms.Algorithm, skipVerify bool) (*signer.SigningKey, error) {
	backend, ok := i.cfg.Backends[l.Backend]
	if !ok {
		return nil, fmt.Errorf("%s: backend %q is not configured any more", l, l.Backend)
	}
	bounded, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
	defer cancel()
	raw, err := backend.OpenKey(bounded, l.Ref, alg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l, answered(bounded, err))
	}
	if raw.Algorithm() != alg {
		return nil, fmt.Errorf("%s: %w: it opened for %s, not %s", l, kms.ErrKeyMismatch, raw.Algorithm(), alg)
	}
	key, err := signer.NewSigningKey(raw, signer.Options{SkipVerify: skipVerify})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l, err)
	}
	if err := key.Probe(bounded); err != nil {
		return nil, fmt.Errorf("%s: %w", l, answered(bounded, err))
	}
	return key, nil
}

// opening is the job of opening a key of a ring, at the first of its locations
// where that works.
func (i *issuer) opening(s *slot) job {
	locations, alg, pub, skipVerify := i.openOrder(s), s.alg, s.pub, s.skipVerify
	return func(ctx context.Context) func(context.Context) {
		var key *signer.SigningKey
		var at Location
		var errs []error
		for _, at = range locations {
			opened, err := i.open(ctx, at, alg, skipVerify)
			if err == nil && !samePublic(opened.Public(), pub) {
				err = fmt.Errorf("%s: %w: it holds the key pair with kid %s now, not the one that was there; put the old key back, or list the new one under a reference of its own", at, kms.ErrKeyMismatch, opened.KeyID())
			}
			if err == nil {
				key = opened
				break
			}
			errs = append(errs, err)
		}
		err := all(errs...)
		return func(context.Context) { i.opened(s, key, at, err) }
	}
}

// openOrder is a key's proven locations: first those the configuration lists,
// in its order, then the others.
func (i *issuer) openOrder(s *slot) []Location {
	l := i.listedFor(s.alg, s.entry)
	if l == nil {
		return slices.Clone(s.entry.Locations)
	}
	return inListedOrder(l.Locations, s.entry.Locations)
}

// inListedOrder is proven, sorted so that those in listed come first and in
// that order.
func inListedOrder(listed, proven []Location) []Location {
	var out []Location
	for _, l := range listed {
		if slices.Contains(proven, l) {
			out = append(out, l)
		}
	}
	for _, l := range proven {
		if !slices.Contains(listed, l) {
			out = append(out, l)
		}
	}
	return out
}

// opened takes the result of opening. err may be set beside a key: it then
// tells of the locations that were tried before the one that worked.
func (i *issuer) opened(s *slot, key *signer.SigningKey, at Location, err error) {
	if s.pub == nil {
		return // refused in the meantime
	}
	log := i.log.With("algorithm", s.alg, "key_id", s.entry.KeyID)
	if key == nil {
		if err == nil {
			err = fmt.Errorf("%w: the stored key has no location", kms.ErrReference)
		}
		if s.noteworthy(err) {
			if alarming(err) {
				log.Error("signing key refused, trying again", "error", err)
			} else {
				log.Warn("signing key cannot be opened, trying again", "error", err)
			}
		}
		s.failed(i.cfg, err, i.cfg.RetryMax)
		return
	}
	switch {
	case err == nil:
		log.Info("signing key open", "location", at.String())
	case alarming(err):
		log.Error("signing key open, but not at its first location", "location", at.String(), "error", err)
	default:
		log.Warn("signing key open, but not at its first location", "location", at.String(), "error", err)
	}
	s.key = key
	s.ok(i.cfg.ProbeInterval)
}

// probing is the job of having an open key sign once more.
func (i *issuer) probing(s *slot) job {
	key := s.key
	return func(ctx context.Context) func(context.Context) {
		bounded, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
		defer cancel()
		err := answered(bounded, key.Probe(bounded))
		return func(context.Context) { i.probed(s, key, err) }
	}
}

func (i *issuer) probed(s *slot, key *signer.SigningKey, err error) {
	if s.key != key {
		return // closed in the meantime
	}
	log := i.log.With("algorithm", s.alg, "key_id", s.entry.KeyID)
	switch {
	case err == nil:
		if s.problem != nil {
			log.Info("signing key works again")
		}
		s.ok(i.cfg.ProbeInterval)
		return
	case errors.Is(err, kms.ErrThrottled):
		// A busy backend is one that works; what was known stays.
		problem := s.problem
		s.ok(i.cfg.ProbeInterval)
		s.problem = problem
		return
	}
	if s.noteworthy(err) {
		if alarming(err) {
			log.Error("signing key failed its probe", "error", err)
		} else {
			log.Warn("signing key failed its probe", "error", err)
		}
	}
	// A backend that is down brings its keys back by itself. A key that is
	// gone, disabled or another one has to be opened and compared anew, and
	// one that signs wrongly with nobody verifying must not go on.
	gone := errors.Is(err, kms.ErrKeyNotFound) || errors.Is(err, kms.ErrKeyDisabled) || errors.Is(err, kms.ErrKeyMismatch)
	if gone || errors.Is(err, signer.ErrFault) && s.skipVerify {
		s.key = nil
	}
	s.failed(i.cfg, err, i.cfg.ProbeInterval)
}

// alarming reports whether an operator has to look at err at once: somebody
// changed a key, or a device signs wrongly.
func alarming(err error) bool {
	return errors.Is(err, kms.ErrKeyMismatch) || errors.Is(err, signer.ErrFault) || errors.Is(err, ErrKeyShared)
}

// samePublic reports whether two public keys are one.
func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
