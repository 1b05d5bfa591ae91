package keycache

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// clientKey names a client.
type clientKey struct{ issuer, clientID string }

// String is unambiguous: an issuer's name holds no slash.
func (k clientKey) String() string { return k.issuer + "/" + k.clientID }

var slotSeed = maphash.MakeSeed()

func (k clientKey) slot() uint8 { return uint8(maphash.Comparable(slotSeed, k)) }

// client is one registered client in memory. What it keeps of the registration
// is what issuing needs; the documents stay in the store.
type client struct {
	settings []registry.Setting
	uri      string      // of the key set, or empty
	static   *recipients // for keys that do not come from a URL

	// latest is the client's recipients for the newest key set of uri it has
	// seen. Several goroutines may compile the same set at once: the results
	// are alike, and any of them may stay.
	latest atomic.Pointer[recipients]
}

func (c *client) setting(kind registry.TokenKind) (registry.Setting, bool) {
	for _, s := range c.settings {
		if s.Kind == kind {
			return s, true
		}
	}
	return registry.Setting{}, false
}

// compiled returns the client's recipients for the key set of state.
func (c *client) compiled(state *setState) *recipients {
	if r := c.latest.Load(); r != nil && r.from == state.set {
		return r
	}
	r := compile(c.settings, state.set, time.Time{})
	c.latest.Store(r)
	return r
}

// recipients is one registration compiled against one key set.
type recipients struct {
	from  *jwks.Set
	kinds []kindRecipient
}

type kindRecipient struct {
	Recipient
	warnings []string
	err      error
}

func (r *recipients) recipient(kind registry.TokenKind) (Recipient, error) {
	for i := range r.kinds {
		if k := &r.kinds[i]; k.Setting.Kind == kind {
			return k.Recipient, k.err
		}
	}
	return Recipient{}, ErrNoSetting
}

// compile chooses a key for each setting and prepares its recipient. A setting
// that no key fits keeps the reason. A certificate must be valid at the given
// time, unless that is zero.
func compile(settings []registry.Setting, set *jwks.Set, certificateAt time.Time) *recipients {
	r := &recipients{from: set, kinds: make([]kindRecipient, len(settings))}
	for i, s := range settings {
		r.kinds[i] = compileKind(s, set, certificateAt)
	}
	return r
}

func compileKind(s registry.Setting, set *jwks.Set, certificateAt time.Time) kindRecipient {
	k := kindRecipient{Recipient: Recipient{Setting: s}}
	if s.EncryptionAlgorithm == "" {
		return k
	}
	if set == nil {
		k.err = fmt.Errorf("%w: the registration has no key source", ErrUnusable)
		return k
	}
	w := want(s)
	w.CertificateAt = certificateAt
	key, err := set.Choose(w)
	if err != nil {
		k.err = fmt.Errorf("%w: %w", ErrUnusable, err)
		return k
	}
	k.Recipient.Recipient, err = encrypter.NewRecipient(encrypter.RecipientConfig{
		Key:               key.Public,
		KeyID:             key.KeyID,
		Algorithm:         encrypter.KeyAlgorithm(s.EncryptionAlgorithm),
		ContentEncryption: encrypter.ContentEncryption(s.ContentEncryption),
		X5TS256:           key.X5TS256,
	})
	if err != nil {
		k.err = fmt.Errorf("%w: %w", ErrUnusable, err)
		return k
	}
	k.Thumbprint = key.Thumbprint
	k.warnings = key.Warnings
	return k
}

// want is what a setting asks of a key.
func want(s registry.Setting) jwks.Want {
	return jwks.Want{Algorithm: encrypter.KeyAlgorithm(s.EncryptionAlgorithm), KeyID: s.KeyID}
}

// client returns the client from memory, else from the store. However many ask
// for one client, the store is asked once.
func (c *Cache) client(ctx context.Context, key clientKey) (*client, error) {
	if cl, ok := c.clients.GetIfPresent(key); ok {
		return cl, nil
	}
	if _, ok := c.unknown.GetIfPresent(key); ok {
		return nil, registry.ErrNotFound
	}
	result := c.clientLoads.DoChan(key.String(), func() (any, error) { return c.loadClient(key) })
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*client), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// loadClient reads a client for all who wait for it, so it lives by the
// cache's context and not by the context of one of them.
func (c *Cache) loadClient(key clientKey) (*client, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()

	change := &c.changes[key.slot()]
	before := change.Load()
	reg, err := c.cfg.Store.Get(ctx, key.issuer, key.clientID)
	if err == nil && reg.Deleted {
		err = registry.ErrNotFound
	}
	switch {
	case isNotFound(err):
		c.unknown.Set(key, struct{}{})
		if change.Load() != before {
			c.unknown.Invalidate(key)
		}
		return nil, registry.ErrNotFound
	case err != nil:
		return nil, err
	}
	cl, err := c.newClient(reg)
	if err != nil {
		return nil, err
	}
	c.clients.Set(key, cl)
	if change.Load() != before {
		c.clients.Invalidate(key)
	}
	return cl, nil
}

func (c *Cache) newClient(reg *registry.Registration) (*client, error) {
	cl := &client{settings: reg.Settings, uri: reg.Source.JWKSURI}
	if cl.uri == "" {
		set, err := c.staticSet(reg)
		if err != nil {
			return nil, err
		}
		cl.static = compile(reg.Settings, set, time.Time{})
		// The recipients hold what they need of their keys.
		cl.static.from = nil
	}
	return cl, nil
}

// staticSet parses the key set that was registered as it is, nil if there is
// none.
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
