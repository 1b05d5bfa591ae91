package keycache

import (
	"context"
	"hash/maphash"
	"slices"
	"time"

	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// Parsing a key set and opening a secret are dear, and a caller who lists
// clients asks for a thousand of them at a time. So what a status says of the
// keys of one revision is taken from those that are ready for use in memory, if
// they are, and is remembered.

// fact is what a status says of the key of one setting: nothing that is secret,
// and nothing that changes with time. It is empty if there is nothing to say.
type fact struct {
	chosen            bool
	keyID, thumbprint string
	// key is the chosen key as bare leaves it.
	key *jwks.Key
	// reason is why no key was chosen.
	reason string
}

// facts are what is remembered of one client. They are never changed.
type facts struct {
	// revision and updatedAt are the registration's. One that is put in place
	// of a record that was tampered with may have a revision that was there
	// before.
	revision  uint64
	updatedAt time.Time

	// public are those on keys that are not derived from the client's secret,
	// chosen from the fetched document that hashes to document if they come
	// from a URL; nil if they are not known.
	public   []fact
	document uint64

	// derived are those on keys that are, found out at openedAt; nil if they
	// are not known.
	derived  []fact
	openedAt time.Time
}

const (
	// maxFacts is how many bytes facts may take, about: those of more than
	// 10 000 clients, most of which take less than half a kilobyte.
	maxFacts = 8 << 20
	// openedFor is how long a secret that could be opened is taken to open.
	openedFor = 5 * time.Minute
)

// of reports whether public is known of a document with the given hash.
func (f *facts) of(document uint64) bool {
	return f.public != nil && f.document == document
}

// hash tells apart the documents of one URL. Its seed is a secret of the
// process, so nobody can make two that look the same.
func (c *Cache) hash(document []byte) uint64 { return maphash.Bytes(c.changes.seed, document) }

// remembered returns what is remembered of a registration, nil for nothing.
func (c *Cache) remembered(reg *registry.Registration) *facts {
	f, ok := c.facts.GetIfPresent(clientKey{reg.Issuer, reg.ClientID})
	if !ok || f.revision != reg.Revision || !f.updatedAt.Equal(reg.UpdatedAt) {
		return nil
	}
	return f
}

// ready returns what is ready for use of a registration, nil for nothing, and
// leaves no trace of having looked.
func (c *Cache) ready(reg *registry.Registration) *client {
	e, ok := c.clients.GetEntryQuietly(clientKey{reg.Issuer, reg.ClientID})
	switch {
	case !ok:
		return nil
	case e.Value.revision == reg.Revision:
		return e.Value
	case e.Value.next != nil && e.Value.next.client.revision == reg.Revision && e.Value.next.at.Equal(reg.UpdatedAt):
		// By its revision alone it could be what another replica has written over
		// the change, to take it back, and this one has not heard of yet.
		return e.Value.next.client
	}
	return nil
}

// search finds out the facts on one registered client.
type search struct {
	*Cache
	reg   *registry.Registration
	rules rules
	ready *client // nil for none
	after facts   // what will be remembered
	news  bool    // whether that is more than it was
	found []fact  // what ofReady has found
	// upcoming says that reg is not in force yet. There is room for the facts on
	// one registration of a client, and that is the one in force.
	upcoming bool
}

// search begins with what is remembered of a registered client.
func (c *Cache) search(reg *registry.Registration) *search {
	s := &search{Cache: c, reg: reg, rules: c.rules(reg), ready: c.ready(reg)}
	s.after = facts{revision: reg.Revision, updatedAt: reg.UpdatedAt}
	if before := c.remembered(reg); before != nil {
		s.after = *before
	}
	return s
}

// find returns the facts on all settings, and why those on the secret are
// missing, if they are: see Cache.derived. set is what the client's URL gave, nil
// for nothing, and t its document; that may be nil if the search knows the set.
func (s *search) find(ctx context.Context, set *keySet, t *text, now time.Time) ([]fact, error) {
	all := s.public(set, t)
	derived, err := s.derived(ctx, now)
	for i, f := range derived {
		if derives(s.reg, s.reg.Settings[i]) {
			all[i] = f
		}
	}
	if s.news && s.reg.Revision != 0 && !s.upcoming {
		after := s.after
		s.facts.Set(clientKey{s.reg.Issuer, s.reg.ClientID}, &after)
	}
	return all, err
}

// knows reports whether public needs no document for a set, nil for none.
func (s *search) knows(set *keySet) bool {
	return set == nil || s.ofReady(set) != nil || s.after.of(set.hash)
}

// ofReady returns the facts on what is ready for use, nil if they are not known.
func (s *search) ofReady(set *keySet) []fact {
	if s.ready == nil || s.found != nil {
		return s.found
	}
	picks := s.ready.fixed
	if set != nil {
		picks = s.ready.chosen(set)
	}
	if all, ok := factsOfPicks(picks); ok && picks != nil {
		s.found = all
	}
	return s.found
}

// public returns the facts on keys that are not derived from the client's
// secret. The result is the caller's.
func (s *search) public(set *keySet, t *text) []fact {
	from := chooser{rules: s.rules, unfetched: set == nil && s.reg.Source.JWKSURI != ""}
	if from.unfetched {
		return factsOf(from.choose(s.reg), s.rules)
	}
	if all := s.ofReady(set); all != nil {
		return slices.Clone(all)
	}
	var document uint64
	if set != nil {
		document = set.hash
	}
	if !s.after.of(document) {
		if set != nil {
			from.set = t.parsed()
		} else {
			from.set, from.refused = s.staticSet(s.reg)
		}
		s.after.public, s.after.document = factsOf(from.choose(s.reg), s.rules), document
		s.news = true
	}
	return slices.Clone(s.after.public)
}

// derived returns the facts on keys that are derived from the client's secret,
// nil if there are none. Its errors are those of Cache.derived.
func (s *search) derived(ctx context.Context, now time.Time) ([]fact, error) {
	kept := s.reg.Source.Secret
	if kept == nil {
		return nil, nil
	}
	if err := secretExpired(kept.ExpiresAt, now); err != nil {
		return nil, err
	}
	if s.ready != nil && s.ready.secret != nil {
		if o := s.ready.secret.opened.Load(); o != nil {
			all, _ := factsOfPicks(o.picks)
			return all, o.err
		}
	}
	if age := now.Sub(s.after.openedAt); s.after.derived != nil && age >= 0 && age < openedFor {
		return s.after.derived, nil
	}
	picks, err := s.Cache.derived(ctx, s.reg, s.rules, now)
	if err != nil {
		s.after.derived = nil
		return nil, err
	}
	s.after.derived, _ = factsOfPicks(picks)
	s.after.openedAt, s.news = now, true
	return s.after.derived, nil
}

// factsOf returns what there is to say of choices.
func factsOf(choices []choice, r rules) []fact {
	all := make([]fact, len(choices))
	for i, c := range choices {
		all[i] = factOf(c.pick)
		if c.key != nil {
			all[i].key = bare(c.key, r.x5t)
		}
	}
	return all
}

// factsOfPicks is factsOf where the keys are not at hand. It reports false if
// something may have to be said of one.
func factsOfPicks(picks []pick) ([]fact, bool) {
	all := make([]fact, len(picks))
	for i, p := range picks {
		if p.remarks {
			return nil, false
		}
		all[i] = factOf(p)
	}
	return all, true
}

func factOf(p pick) fact {
	switch {
	case p.failed != nil:
		return fact{reason: p.failed.err.Error()}
	case p.recipient == nil:
		return fact{}
	}
	return fact{chosen: true, keyID: p.recipient.KeyID(), thumbprint: p.thumbprint}
}

// bare returns what is needed of a key for its warnings, now and later: nil if
// it will never have any. x5t says that the setting asks for x5t.
func bare(key *jwks.Key, x5t bool) *jwks.Key {
	if key.X5TS256 == "" && len(key.Warnings) == 0 && !x5t {
		return nil
	}
	rest := *key // keeps how the key is spoken of
	rest.Public, rest.KeyOps = nil, nil
	return &rest
}

// weightOfFacts is about how many bytes facts take.
func weightOfFacts(key clientKey, f *facts) uint32 {
	const entry, each, bareKey = 256, 96, 384 // bytes: with what otter needs; a fact; a jwks.Key
	n := entry + len(key.issuer) + len(key.clientID)
	for _, all := range [][]fact{f.public, f.derived} {
		for _, one := range all {
			n += each + len(one.keyID) + len(one.thumbprint) + len(one.reason)
			if one.key == nil {
				continue
			}
			n += bareKey + len(one.key.X5TS256) + len(one.key.X5T)
			for _, text := range one.key.Warnings {
				n += len(text)
			}
		}
	}
	return uint32(n) //nolint:gosec // a registration has a few settings, and each text a bound
}
