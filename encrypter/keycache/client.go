package keycache

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// clientKey names a client.
type clientKey struct{ issuer, clientID string }

// client is one registered client in memory. What it keeps of the registration
// is what issuing needs; the documents stay in the store.
type client struct {
	settings   []registry.Setting
	maxRSABits int    // that the issuer allows; 0 for no bound of its own
	uri        string // of the key set, or empty
	fixed      []pick // one for each setting, for keys that do not come from a URL

	// source is where the set of uri was found last.
	source atomic.Pointer[source]
	// latest is what was chosen from the newest set of uri that the client has
	// seen. Several goroutines may choose from the same set at once: the
	// results are alike, and any of them may stay.
	latest atomic.Pointer[picks]
}

// find returns the place of the setting for a kind of token.
func (c *client) find(kind registry.TokenKind) (int, error) {
	for i := range c.settings {
		if c.settings[i].Kind == kind {
			return i, nil
		}
	}
	return 0, ErrNoSetting
}

// choose returns what the client's settings choose from set.
func (c *client) choose(set *keySet) []pick {
	if p := c.latest.Load(); p != nil && p.from == set {
		return p.of
	}
	p := &picks{from: set, of: choose(c.settings, set.parsed(), c.maxRSABits)}
	c.latest.Store(p)
	return p.of
}

// picks is what one client's settings choose from one key set.
type picks struct {
	from *keySet
	of   []pick // one for each setting
}

// pick is the key of one setting, ready for use; empty if the setting does not
// encrypt.
type pick struct {
	recipient  *encrypter.Recipient
	thumbprint string
	err        error // ErrUnusable if no key fits
}

func choose(settings []registry.Setting, set *jwks.Set, maxRSABits int) []pick {
	all := make([]pick, len(settings))
	for i, s := range settings {
		all[i], _ = chooseOne(s, set, jwks.Want{MaxRSABits: maxRSABits})
	}
	return all
}

// chooseOne chooses the key for a setting and prepares its recipient. What
// holds for the keys of all settings stands in w.
func chooseOne(s registry.Setting, set *jwks.Set, w jwks.Want) (pick, *jwks.Key) {
	if s.EncryptionAlgorithm == "" {
		return pick{}, nil
	}
	if set == nil {
		return pick{err: fmt.Errorf("%w: the registration has no key source", ErrUnusable)}, nil
	}
	key, err := set.Choose(want(s, w))
	if err != nil {
		return pick{err: fmt.Errorf("%w: %w", ErrUnusable, err)}, nil
	}
	recipient, err := encrypter.NewRecipient(encrypter.RecipientConfig{
		Key:               key.Public,
		KeyID:             key.KeyID,
		Algorithm:         encrypter.KeyAlgorithm(s.EncryptionAlgorithm),
		ContentEncryption: encrypter.ContentEncryption(s.ContentEncryption),
		X5TS256:           key.X5TS256,
	})
	if err != nil {
		return pick{err: fmt.Errorf("%w: %w", ErrUnusable, err)}, nil
	}
	return pick{recipient: recipient, thumbprint: key.Thumbprint}, key
}

// want is w with what a setting asks of a key.
func want(s registry.Setting, w jwks.Want) jwks.Want {
	w.Algorithm, w.KeyID = encrypter.KeyAlgorithm(s.EncryptionAlgorithm), s.KeyID
	return w
}

// changes counts the changes of clients, by slots that a client's name hashes
// to, so that a look-up that began before a change leaves nothing behind.
type changes struct {
	seed  maphash.Seed
	slots [256]changeSlot
}

type changeSlot struct {
	mu    sync.Mutex // held where what is in memory of the slot's clients changes
	count uint64     // guarded by mu
}

func (c *changes) of(key clientKey) *changeSlot {
	return &c.slots[maphash.Comparable(c.seed, key)%uint64(len(c.slots))]
}

func (s *changeSlot) now() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// client returns the client from memory, else from the store. However many ask
// for one client, the store is asked once.
func (c *Cache) client(ctx context.Context, key clientKey) (*client, error) {
	if cl, ok := c.clients.GetIfPresent(key); ok {
		return cl, nil
	}
	if until, ok := c.unknown.GetIfPresent(key); ok && time.Now().Before(until) {
		return nil, registry.ErrNotFound
	}
	return c.clientLoads.do(ctx, key, c.start, func() (*client, error) { return c.loadClient(key) })
}

// loadClient reads a client for all who wait for it, so it lives by the
// cache's context and not by the context of one of them.
func (c *Cache) loadClient(key clientKey) (*client, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()

	slot := c.changes.of(key)
	before := slot.now()
	reg, err := c.cfg.Store.Get(ctx, key.issuer, key.clientID)
	if err == nil && reg.Deleted {
		err = registry.ErrNotFound
	}
	if err != nil && !isNotFound(err) {
		return nil, storeError(err)
	}
	var cl *client
	if err == nil {
		cl = c.newClient(reg)
	}

	slot.mu.Lock()
	defer slot.mu.Unlock()
	changed := slot.count != before
	switch {
	case cl != nil && !changed:
		c.clients.Set(key, cl)
	case cl == nil && !changed:
		c.unknown.Set(key, time.Now().Add(unknownFor))
	}
	if cl == nil {
		return nil, registry.ErrNotFound
	}
	return cl, nil
}

func (c *Cache) newClient(reg *registry.Registration) *client {
	cl := &client{settings: reg.Settings, maxRSABits: c.cfg.MaxRSABits(reg.Issuer), uri: reg.Source.JWKSURI}
	if cl.uri != "" {
		return cl
	}
	set, err := c.staticSet(reg)
	if err == nil {
		cl.fixed = choose(reg.Settings, set, cl.maxRSABits)
		return cl
	}
	// It was good when it was registered; the limits have become stricter. A
	// token that is only signed needs no key.
	cl.fixed = make([]pick, len(reg.Settings))
	for i, s := range reg.Settings {
		if s.EncryptionAlgorithm != "" {
			cl.fixed[i].err = err
		}
	}
	return cl
}

// staticSet parses the key set that was registered as it is, nil if there is
// none. Its error is ErrUnusable.
func (c *Cache) staticSet(reg *registry.Registration) (*jwks.Set, error) {
	if len(reg.Source.JWKS) == 0 {
		return nil, nil
	}
	set, err := jwks.Parse(reg.Source.JWKS, c.cfg.Limits)
	if err != nil {
		return nil, fmt.Errorf("%w: the registered JWK Set: %w", ErrUnusable, err)
	}
	return set, nil
}

// Invalidate forgets what is in memory of a client. It is called when the
// client's registration has changed; whoever asks after it has returned gets
// the new one.
func (c *Cache) Invalidate(issuer, clientID string) {
	key := clientKey{issuer, clientID}
	slot := c.changes.of(key)
	slot.mu.Lock()
	defer slot.mu.Unlock()
	slot.count++
	c.clientLoads.forget(key)
	c.clients.Invalidate(key)
	c.unknown.Invalidate(key)
}
