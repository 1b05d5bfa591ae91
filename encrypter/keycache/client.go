package keycache

import (
	"context"
	"errors"
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

// entryKey names what is in memory of a client. Its logout tokens have an entry
// of their own, made when the first is asked for: they are encrypted as its ID
// tokens are, under a header that few clients ever see.
type entryKey struct {
	clientKey
	logout bool
}

// client is one registered client in memory. What it keeps of the registration
// is what issuing needs; the documents stay in the store.
type client struct {
	revision uint64 // of the registration
	settings []registry.Setting
	rules    rules
	uri      string      // of the key set, or empty
	fixed    []pick      // one for each setting, if uri is empty
	secret   *secretKeys // nil if nothing is kept of the client's secret

	// source is where the set of uri was found last.
	source atomic.Pointer[source]
	// latest is what was chosen from the newest set of uri that the client has
	// seen. Several goroutines may choose from the same set at once: the
	// results are alike, and any of them may stay.
	latest atomic.Pointer[picks]
}

// find returns the place of the setting for a kind of token.
func (c *client) find(kind registry.TokenKind) (int, error) {
	registered := kind.SettingKind()
	for i := range c.settings {
		if c.settings[i].Kind == registered {
			return i, nil
		}
	}
	return 0, noSetting(kind)
}

// choose returns what the client's settings choose from set.
func (c *client) choose(set *keySet) []pick {
	if p := c.latest.Load(); p != nil && p.from == set {
		return p.of
	}
	p := &picks{from: set, of: c.rules.chooseAll(c.settings, set.parsed())}
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
	failed     *failure // if no key fits
	// remarks says that there is, or may come to be, something to tell of the
	// key: see bare.
	remarks bool
}

// failure is why a pick is none: an ErrUnusable. There are as many picks in
// memory as settings, and nearly all of them have no failure.
type failure struct{ err error }

// unusable is the pick of a setting that no key fits.
func unusable(err error) pick { return pick{failed: &failure{fmt.Errorf("%w: %w", ErrUnusable, err)}} }

// rules are what holds for all settings of a client.
type rules struct {
	// minRSABits and maxRSABits are the issuer's own bounds; 0 for none.
	minRSABits, maxRSABits int32
	// legacy and x5t are those of the registration.
	legacy, x5t bool
	// secret says that the registration keeps what its settings need of the
	// client's secret.
	secret bool
	// logout says that the recipients are for logout tokens, and iss is the
	// issuer's URL that those have in their header.
	logout bool
	iss    string
}

// rules are what a registration and its issuer ask of keys.
func (c *Cache) rules(reg *registry.Registration, logout bool) rules {
	r := rules{
		minRSABits: int32(c.cfg.MinRSABits(reg.Issuer)), //nolint:gosec // RSA keys have a few thousand bits
		maxRSABits: int32(c.cfg.MaxRSABits(reg.Issuer)), //nolint:gosec // likewise
		legacy:     reg.Legacy, x5t: reg.X5T,
		secret: reg.Source.Secret != nil,
		logout: logout,
	}
	if logout {
		r.iss = c.cfg.IssuerURL(reg.Issuer)
	}
	return r
}

// want is what a setting asks of a key. A certificate has to be valid at a time
// that is not zero.
func (r rules) want(s registry.Setting, certificateAt time.Time) jwks.Want {
	return jwks.Want{
		Algorithm: encrypter.KeyAlgorithm(s.EncryptionAlgorithm), KeyID: s.KeyID,
		MinRSABits: int(r.minRSABits), MaxRSABits: int(r.maxRSABits), CertificateAt: certificateAt,
	}
}

// chooseAll chooses from a set, nil for none, for all settings.
func (r rules) chooseAll(settings []registry.Setting, set *jwks.Set) []pick {
	all := make([]pick, len(settings))
	for i, s := range settings {
		all[i], _ = r.choose(s, set, time.Time{})
	}
	return all
}

// choose chooses the public key for a setting and prepares its recipient. The
// pick of one that takes the client's secret is empty, if there is one.
func (r rules) choose(s registry.Setting, set *jwks.Set, certificateAt time.Time) (pick, *jwks.Key) {
	switch {
	case s.EncryptionAlgorithm == "", symmetric(s) && r.secret:
		return pick{}, nil
	case symmetric(s):
		return unusable(fmt.Errorf("%s takes the client's secret, and the registration keeps none", s.EncryptionAlgorithm)), nil
	case set == nil:
		return unusable(errors.New("the registration has no key source")), nil
	}
	key, err := set.Choose(r.want(s, certificateAt))
	if err != nil {
		return unusable(sized(err)), nil
	}
	cfg := encrypter.RecipientConfig{Key: key.Public, KeyID: key.KeyID, X5TS256: key.X5TS256}
	if r.x5t {
		cfg.X5T = key.X5T
	}
	p := r.prepare(s, cfg)
	if p.failed != nil {
		return p, nil
	}
	p.thumbprint, p.remarks = key.Thumbprint, bare(key, r.x5t) != nil
	return p, key
}

// prepare makes the recipient of a setting from its key, which cfg has.
func (r rules) prepare(s registry.Setting, cfg encrypter.RecipientConfig) pick {
	cfg.Algorithm, cfg.ContentEncryption = encrypter.KeyAlgorithm(s.EncryptionAlgorithm), encrypter.ContentEncryption(s.ContentEncryption)
	switch {
	case (cfg.Algorithm.Legacy() || cfg.ContentEncryption.Legacy()) && !r.legacy:
		return unusable(fmt.Errorf("%s with %s is only for clients that are registered as legacy", cfg.Algorithm, cfg.ContentEncryption))
	case r.logout && r.iss == "":
		return unusable(errors.New("a logout token names its issuer in the header, and the issuer's URL is not known"))
	}
	cfg.Issuer = r.iss
	recipient, err := encrypter.NewRecipient(cfg)
	if err != nil {
		return unusable(err)
	}
	return pick{recipient: recipient}
}

// symmetric reports whether a setting encrypts with a key derived from the
// client's secret.
func symmetric(s registry.Setting) bool {
	return encrypter.KeyAlgorithm(s.EncryptionAlgorithm).Symmetric()
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

// refusal is why a client is not served, whoever asks, for a moment.
type refusal struct {
	until time.Time
	err   error // registry.ErrNotFound or registry.ErrTampered
}

// client returns the client from memory, else from the store. However many ask
// for one client, the store is asked once.
func (c *Cache) client(ctx context.Context, key entryKey) (*client, error) {
	if cl, ok := c.clients.GetIfPresent(key); ok {
		return cl, nil
	}
	if r, ok := c.refused.GetIfPresent(key.clientKey); ok && time.Now().Before(r.until) {
		return nil, r.err
	}
	return c.clientLoads.do(ctx, key, c.start, func() (*client, error) { return c.loadClient(key) })
}

// loadClient reads a client for all who wait for it, so it lives by the
// cache's context and not by the context of one of them.
func (c *Cache) loadClient(key entryKey) (*client, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()

	slot := c.changes.of(key.clientKey)
	before := slot.now()
	reg, err := c.cfg.Store.Get(ctx, key.issuer, key.clientID)
	switch {
	case err == nil && reg.Deleted:
		err = registry.ErrNotFound
	case isNotFound(err):
		err = registry.ErrNotFound // without what the store says beside it
	case errors.Is(err, registry.ErrTampered):
		c.cfg.Logger.ErrorContext(ctx, "stored registration refused: somebody changed the store", "issuer", key.issuer, "client_id", key.clientID, "error", err)
	case err != nil:
		return nil, storeError(err)
	}
	var cl *client
	if err == nil {
		cl = c.newClient(reg, key.logout)
	}

	slot.mu.Lock()
	defer slot.mu.Unlock()
	changed := slot.count != before
	switch {
	case cl != nil && !changed:
		c.clients.Set(key, cl)
	case cl == nil && !changed:
		c.refused.Set(key.clientKey, refusal{until: time.Now().Add(refusedFor), err: err})
	}
	if cl == nil {
		return nil, err
	}
	return cl, nil
}

// newClient prepares all that needs neither a fetch nor the client's secret.
func (c *Cache) newClient(reg *registry.Registration, logout bool) *client {
	cl := &client{revision: reg.Revision, settings: reg.Settings, rules: c.rules(reg, logout), uri: reg.Source.JWKSURI}
	if logout {
		cl.settings = nil
		if s, ok := reg.Setting(registry.LogoutToken); ok {
			cl.settings = []registry.Setting{s}
		}
	}
	cl.secret = c.newSecretKeys(reg, cl.settings)
	if cl.uri != "" {
		return cl
	}
	set, err := c.staticSet(reg)
	if err == nil {
		cl.fixed = cl.rules.chooseAll(cl.settings, set)
		return cl
	}
	// It was good when it was registered; the limits have become stricter. A
	// token that is only signed needs no key, nor does one that takes the
	// client's secret need this one.
	cl.fixed = make([]pick, len(cl.settings))
	for i, s := range cl.settings {
		if s.EncryptionAlgorithm != "" {
			cl.fixed[i].failed = &failure{err}
		}
	}
	return cl
}

// parseSet parses the keys that were registered as they are, nil if there are
// none. Its errors are those of package jwks.
func (c *Cache) parseSet(source registry.Source) (*jwks.Set, error) {
	switch {
	case len(source.JWKS) > 0:
		return jwks.Parse(source.JWKS, c.cfg.Limits)
	case len(source.PEM) > 0:
		return jwks.ParsePEM(source.PEM, c.cfg.Limits)
	}
	return nil, nil
}

// staticSet is parseSet for a registration that is in force. Its error is
// ErrUnusable.
func (c *Cache) staticSet(reg *registry.Registration) (*jwks.Set, error) {
	set, err := c.parseSet(reg.Source)
	if err != nil {
		return nil, fmt.Errorf("%w: the registered key: %w", ErrUnusable, err)
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
	for _, logout := range []bool{false, true} {
		c.clientLoads.forget(entryKey{key, logout})
		c.clients.Invalidate(entryKey{key, logout})
	}
	c.refused.Invalidate(key)
	c.facts.Invalidate(key)
}
