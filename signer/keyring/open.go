package keyring

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// place is one location of a slot's key pair. Its task is to open the key there
// and, once it is open, to have it sign now and then.
type place struct {
	task
	at   Location
	site *site              // nil if it is not open
	key  *signer.SigningKey // of site, for probes

	checked time.Time     // when it was last opened or probed
	took    time.Duration // how long that took the last time it went well

	// After it has been sick a place signs again when it has passed needs
	// probes; passed counts them.
	needs, passed int
	fell, well    time.Time // when it was last found sick, and found well again
}

// Bounds on how the places of a key are looked after.
const (
	// checkMost is the longest wait, a fifth more or less, before a place that
	// may come back by itself is tried again.
	checkMost = 1250 * time.Millisecond
	// sickLimit is how long the probe of a sick place may take that used to
	// sign quickly: while one waits for an answer that never comes, the place
	// may have been well again for long.
	sickLimit = 2 * time.Second
	// relapse is how soon after being found well a place must be sick again
	// for that to count as a relapse. Each doubles the number of probes it has
	// to pass, up to maxNeeds, so that one that comes and goes does not take
	// the tokens back and forth with it.
	relapse  = time.Minute
	maxNeeds = 32
)

// patience is the longest wait after err before what failed is tried again.
// What may come back by itself, or by an operator who waits for it, is tried
// often: also a key that does not fit, which a module may say once, by mistake,
// and an operator mends by putting the right one back. A backend that throttles
// is left alone, and so is what only another configuration can mend.
func (c *Config) patience(err error) time.Duration {
	for _, slow := range []error{kms.ErrThrottled, kms.ErrReference, ErrKeyShared} {
		if errors.Is(err, slow) {
			return c.RetryMax
		}
	}
	return min(c.RetryMax, max(c.RetryMin, checkMost))
}

// open opens the key at one location and has it sign once.
func (i *issuer) open(ctx context.Context, l Location, alg kms.Algorithm) (proof, error) {
	backend, ok := i.cfg.Backends[l.Backend]
	if !ok {
		return proof{}, fmt.Errorf("%s: backend %q is not configured any more", l, l.Backend)
	}
	bounded, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
	defer cancel()
	began := time.Now()
	raw, err := backend.OpenKey(bounded, l.Ref, alg)
	if err != nil {
		return proof{}, fmt.Errorf("%s: %w", l, answered(bounded, err))
	}
	if raw.Algorithm() != alg {
		return proof{}, fmt.Errorf("%s: %w: it opened for %s, not %s", l, kms.ErrKeyMismatch, raw.Algorithm(), alg)
	}
	key, err := signer.NewSigningKey(raw, signer.Options{})
	if err != nil {
		return proof{}, fmt.Errorf("%s: %w", l, err)
	}
	if err := key.Probe(bounded); err != nil {
		return proof{}, fmt.Errorf("%s: %w", l, answered(bounded, err))
	}
	return proof{location: l, key: key, raw: raw, took: time.Since(began)}, nil
}

// prepare makes what the slot's key pair signs with, wherever that is.
func (i *issuer) prepare(s *slot, pub crypto.PublicKey, skipVerify bool) (err error) {
	if s.all == nil {
		s.all = newFailover(s.alg, pub, i.log.With("algorithm", s.alg, "key_id", s.entry.KeyID), i.lookSoon)
	}
	if s.signing == nil || s.skipVerify != skipVerify {
		s.signing, err = signer.NewSigningKey(s.all, signer.Options{SkipVerify: skipVerify})
		s.skipVerify = skipVerify
	}
	return err
}

// arrange makes the slot's places those of its entry. What is known of a place
// that stays is kept.
func (i *issuer) arrange(s *slot) {
	var places []*place
	for _, l := range i.openOrder(s) {
		n := slices.IndexFunc(s.places, func(p *place) bool { return p.at == l })
		if n < 0 {
			places = append(places, &place{at: l, task: task{problem: errNotTried}})
			continue
		}
		places = append(places, s.places[n])
	}
	s.places = places
	s.settle()
}

// openOrder is where a key is opened: at those of its proven locations that the
// configuration lists, in its order. A key that is listed nowhere, or nowhere
// any more, is opened at all of them.
func (i *issuer) openOrder(s *slot) []Location {
	var order []Location
	for _, l := range i.listed {
		for _, at := range l.Locations {
			if l.Algorithm == s.alg && slices.Contains(s.entry.Locations, at) {
				order = append(order, at)
			}
		}
	}
	if order == nil {
		return slices.Clone(s.entry.Locations)
	}
	return order
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

// settle makes the slot's key and problem those that follow from its places. It
// reports whether the key signs now at a location listed before the one it
// signed at.
func (s *slot) settle() (back bool) {
	sites := make([]*site, len(s.places))
	var problems []error
	open, works := false, false
	for n, p := range s.places {
		sites[n] = p.site
		open = open || p.site != nil
		works = works || p.site != nil && p.problem == nil
		if p.problem != nil && !errors.Is(p.problem, errNotTried) {
			problems = append(problems, p.problem)
		}
	}
	back = s.all.arrange(sites)
	s.key = nil
	if open {
		s.key = s.signing
	}
	switch {
	case works:
		s.problem = nil
	case len(s.places) == 0:
		s.problem = fmt.Errorf("%w: the stored key has no location", kms.ErrReference)
	case len(problems) == 0:
		s.problem = errNotTried
	default:
		s.problem = all(problems...)
	}
	return back
}

// close ends the use of the slot's key.
func (s *slot) close() {
	s.key, s.places = nil, nil
	if s.all != nil {
		s.all.arrange(nil)
	}
}

// checking is the job of a place: opening it, or having it sign once more.
func (i *issuer) checking(s *slot, p *place) job {
	if p.site == nil {
		return i.opening(s, p)
	}
	return i.probing(s, p)
}

func (i *issuer) opening(s *slot, p *place) job {
	at, alg, pub := p.at, s.alg, s.pub
	return func(ctx context.Context) func(context.Context) {
		opened, err := i.open(ctx, at, alg)
		if err == nil && !samePublic(opened.key.Public(), pub) {
			err = fmt.Errorf("%s: %w: it holds the key pair with kid %s now, not the one that was there; put the old key back, or list the new one under a reference of its own", at, kms.ErrKeyMismatch, opened.key.KeyID())
		}
		return func(context.Context) { i.opened(s, p, opened, err) }
	}
}

// opened takes the result of opening a place.
func (i *issuer) opened(s *slot, p *place, o proof, err error) {
	if !slices.Contains(s.places, p) {
		return // refused in the meantime, or no place of the key any more
	}
	p.checked = time.Now()
	if err == nil {
		i.admit(s, p, o)
		return
	}
	if log := i.logOf(s, p); p.noteworthy(err) {
		if alarming(err) {
			log.Error("signing key refused, trying again", "error", err)
		} else {
			log.Warn("signing key cannot be opened, trying again", "error", err)
		}
	}
	p.failed(i.cfg, err, i.cfg.patience(err))
	s.settle()
}

// admit makes a place where the key was opened and proven one that signs.
func (i *issuer) admit(s *slot, p *place, o proof) {
	first, broken := s.key == nil, s.problem != nil
	p.site = &site{of: s.all, location: p.at, key: o.raw}
	p.key, p.took = o.key, o.took
	p.needs, p.passed, p.fell, p.well = 0, 0, time.Time{}, time.Time{}
	p.ok(i.cfg.ProbeInterval)
	back := s.settle()
	switch log := i.logOf(s, p); {
	case first:
		log.Info("signing key open")
	case broken:
		log.Info("signing key works again")
	case !back: // else it has been told
		log.Info("signing key open at one more of its locations")
	}
}

// takeProofs makes the locations that were opened to be proven places that sign,
// where they are of s and not open yet.
func (i *issuer) takeProofs(s *slot, proofs []proof) {
	if s == nil {
		return
	}
	for _, o := range proofs {
		n := slices.IndexFunc(s.places, func(p *place) bool { return p.at == o.location && p.site == nil && !p.running })
		if n >= 0 {
			s.places[n].checked = time.Now()
			i.admit(s, s.places[n], o)
		}
	}
}

// probing is the job of having an open key sign once more.
func (i *issuer) probing(s *slot, p *place) job {
	site, key, limit, quick := p.site, p.key, i.cfg.Timeout, max(sickLimit, 4*p.took)
	failing, backend := p.problem != nil, i.cfg.Backends[p.at.Backend]
	return func(ctx context.Context) func(context.Context) {
		if _, _, illness := site.sick(); failing || illness != nil {
			limit = min(limit, quick)
		}
		bounded, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		if failing {
			// A backend that is down fails a signature at once, and brings
			// itself up in its own time; Check waits for that. Whether it went
			// well is for the probe to say.
			_ = backend.Check(bounded)
		}
		began := time.Now()
		err := answered(bounded, key.Probe(bounded))
		r := probe{at: site, took: time.Since(began), silent: bounded.Err() != nil}
		if err != nil {
			r.err = fmt.Errorf("%s: %w", site.location, err)
		}
		return func(context.Context) { i.probed(s, p, r) }
	}
}

// probe is the result of a probe.
type probe struct {
	at     *site
	took   time.Duration
	silent bool // no answer came in time
	err    error
}

// probed takes the result of a probe.
func (i *issuer) probed(s *slot, p *place, r probe) {
	if p.site != r.at || !slices.Contains(s.places, p) {
		return // closed in the meantime
	}
	p.checked = time.Now()
	switch {
	case r.err == nil:
		p.took = r.took
		i.recovered(s, p)
	case errors.Is(r.err, kms.ErrThrottled):
		// A busy backend is one that works; what was known stays.
		problem := p.problem
		p.ok(i.cfg.ProbeInterval)
		p.problem = problem
	default:
		i.broke(s, p, r)
	}
	i.hurry(p)
}

// recovered takes a probe that was passed.
func (i *issuer) recovered(s *slot, p *place) {
	broken := s.problem != nil
	p.ok(i.cfg.ProbeInterval)
	if fell, covered, illness := p.site.sick(); illness != nil {
		if enough := p.pass(fell); covered && !enough {
			p.due = time.Now().Add(i.cfg.RetryMin)
			s.settle()
			return
		}
		p.well = time.Now()
		p.site.heal(broken)
	}
	s.settle()
	if broken && s.problem == nil {
		i.logOf(s, p).Info("signing key works again")
	}
}

// pass counts a probe that a place has passed after it fell sick. It reports
// whether that makes it well.
func (p *place) pass(fell time.Time) (enough bool) {
	if !fell.Equal(p.fell) { // the first since then
		p.fell, p.passed = fell, 0
		if !p.well.IsZero() && fell.Sub(p.well) < relapse {
			p.needs = min(2*p.needs, maxNeeds)
		} else {
			p.needs = 1
		}
	}
	p.passed++
	return p.passed >= p.needs
}

// broke takes a probe that failed.
func (i *issuer) broke(s *slot, p *place, r probe) {
	err := r.err
	p.passed = 0
	p.site.fall(s.all.plan.Load(), err, r.silent)
	// A backend that is down brings its keys back by itself. A key that is
	// gone, disabled or another one has to be opened and compared anew, and
	// one that signs wrongly with nobody verifying must not go on.
	gone := errors.Is(err, kms.ErrKeyNotFound) || errors.Is(err, kms.ErrKeyDisabled) || errors.Is(err, kms.ErrKeyMismatch)
	if gone || errors.Is(err, signer.ErrFault) && s.skipVerify {
		p.site, p.key = nil, nil
	}
	before := s.problem
	p.failed(i.cfg, err, i.cfg.patience(err))
	s.settle()
	if s.problem == nil || !news(before, s.problem) {
		return // another place signs, or it is an old story
	}
	if log := i.logOf(s, p); alarming(s.problem) {
		log.Error("signing key failed its probe", "error", s.problem)
	} else {
		log.Warn("signing key failed its probe", "error", s.problem)
	}
}

func (i *issuer) logOf(s *slot, p *place) *slog.Logger {
	return i.log.With("algorithm", s.alg, "key_id", s.entry.KeyID, "location", p.at.String())
}

// lookSoon makes the loop look at the suspects. It does not block.
func (i *issuer) lookSoon() {
	select {
	case i.suspected <- struct{}{}:
	default: // it is about to
	}
}

// lookAtSuspects makes due the places that those who sign have had trouble with.
func (i *issuer) lookAtSuspects() {
	for _, s := range i.slots {
		for _, p := range s.places {
			if !p.running { // else the result comes first
				i.hurry(p)
			}
		}
	}
}

// hurry makes a suspect due, but no sooner than RetryMin after its last check:
// a place with much trouble is not to be probed at each of its calls.
func (i *issuer) hurry(p *place) {
	if p.site == nil || !p.site.suspect.Swap(false) {
		return
	}
	if soon := p.checked.Add(i.cfg.RetryMin); soon.Before(p.due) {
		p.due = soon
	}
}

// infos is what there is to say of the slot's places.
func (s *slot) infos() []PlaceInfo {
	var list []PlaceInfo
	for _, p := range s.places {
		info := PlaceInfo{Location: p.at, Open: p.site != nil}
		problem := p.problem
		if problem == nil && len(s.places) > 1 {
			// Those who sign may have found it sick since the last probe.
			if _, _, illness := p.site.sick(); illness != nil {
				problem = fmt.Errorf("%s: %w", p.at, illness)
			}
		}
		if errors.Is(problem, errNotTried) {
			problem = fmt.Errorf("%s: %w", p.at, problem)
		}
		if problem != nil {
			info.Problem = problem.Error()
		}
		list = append(list, info)
	}
	return list
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
