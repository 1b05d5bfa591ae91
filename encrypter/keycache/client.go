package keycache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// clientKey names a client.
type clientKey struct{ issuer, clientID string }

// client is one registered client in memory. What it keeps of the registration
// is what issuing needs; the documents stay in the store.
type client struct {
	revision uint64 // of the registration
	demand   *demand
	uri      string      // of the key set, or empty
	fixed    []pick      // one for each setting, if uri is empty
	secret   *secretKeys // nil if nothing is kept of the client's secret
	next     *upcoming   // nil if no change of the registration waits

	// source is where the set of uri was found last.
	source atomic.Pointer[source]
	// own is what was chosen from that set if the set does not keep it itself.
	// Several goroutines may choose at once: the results are alike, and any of
	// them may stay.
	own atomic.Pointer[ownPicks]
	// logout is the pick for logout tokens, made when the first is asked for:
	// they are encrypted as ID tokens are, under a header that few clients ever
	// see.
	logout atomic.Pointer[logoutPick]
}

// demand is what a client asks of its keys. Clients with equal demands choose
// alike from the same set.
type demand struct {
	hash     uint64 // of all below, with a seed that nobody else knows
	settings []setting
	rules    rules
}

// setting is a registry.Setting in memory. But for the pinned kid, nearly all
// clients have one of a few, which are shared.
type setting struct {
	shape unique.Handle[registry.Setting] // without its KeyID
	keyID string
	// derived says that the setting encrypts with a key derived from the
	// client's secret.
	derived bool
}

func (s *setting) full() registry.Setting {
	full := s.shape.Value()
	full.KeyID = s.keyID
	return full
}

// newDemand returns the demand of a registration.
func (c *Cache) newDemand(reg *registry.Registration) *demand {
	d := &demand{settings: make([]setting, len(reg.Settings)), rules: c.rules(reg)}
	var h maphash.Hash
	h.SetSeed(c.changes.seed)
	maphash.WriteComparable(&h, d.rules)
	for i, s := range reg.Settings {
		shape := s
		shape.KeyID = ""
		d.settings[i] = setting{shape: unique.Make(shape), keyID: strings.Clone(s.KeyID), derived: d.rules.secret && symmetric(s)}
		maphash.WriteComparable(&h, d.settings[i])
	}
	d.hash = h.Sum64()
	return d
}

func (d *demand) equal(o *demand) bool {
	return d == o || d.hash == o.hash && d.rules == o.rules && slices.Equal(d.settings, o.settings)
}

// find returns the place of the setting for a kind of token.
func (d *demand) find(kind registry.TokenKind) (int, error) {
	registered := kind.SettingKind()
	for i := range d.settings {
		if d.settings[i].shape.Value().Kind == registered {
			return i, nil
		}
	}
	return 0, noSetting(kind)
}

// choose returns what the settings choose from a set, nil for none: a pick for
// each.
func (d *demand) choose(set *jwks.Set) []pick {
	all := make([]pick, len(d.settings))
	for i := range d.settings {
		all[i], _ = d.rules.choose(d.settings[i].full(), set, time.Time{})
		all[i].failed = all[i].failed.alone()
	}
	return all
}

// chosen returns what the client's settings have chosen from set, nil if they
// have not.
func (cl *client) chosen(set *keySet) []pick {
	if v := set.find(cl.demand); v != nil {
		return v.picks
	}
	if own := cl.own.Load(); own != nil && own.from == set.hash {
		return own.picks
	}
	return nil
}

// ownPicks are what one client's settings chose from a document.
type ownPicks struct {
	from  uint64 // the hash of the document
	picks []pick // one for each setting
}

// logoutPick is the pick for logout tokens.
type logoutPick struct {
	from     *encrypter.Recipient // of ID tokens
	fromSize uint32               // of which some bytes are shared
	pick     pick
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
	// size is about how many bytes the recipient takes.
	size uint32
}

// failure is why a pick is none: an ErrUnusable. There are as many picks in
// memory as settings, and nearly all of them have no failure.
type failure struct{ err error }

// alone is the failure without what its error holds besides its text and its
// sentinels, which may be all keys of a set.
func (f *failure) alone() *failure {
	if f == nil {
		return nil
	}
	brief := &briefError{text: f.err.Error()}
	for _, is := range []error{ErrUnusable, ErrKeySize, jwks.ErrNoKey, jwks.ErrKeyRejected, jwks.ErrRejected} {
		if errors.Is(f.err, is) {
			brief.is = append(brief.is, is)
		}
	}
	return &failure{brief}
}

// briefError is an error as its text and sentinels.
type briefError struct {
	text string
	is   []error
}

func (e *briefError) Error() string { return e.text }

// Unwrap returns the sentinels.
func (e *briefError) Unwrap() []error { return e.is }

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
}

// rules are what a registration and its issuer ask of keys.
func (c *Cache) rules(reg *registry.Registration) rules {
	return rules{
		minRSABits: int32(c.cfg.MinRSABits(reg.Issuer)), //nolint:gosec // RSA keys have a few thousand bits
		maxRSABits: int32(c.cfg.MaxRSABits(reg.Issuer)), //nolint:gosec // likewise
		legacy:     reg.Legacy, x5t: reg.X5T,
		secret: reg.Source.Secret != nil,
	}
}

// want is what a setting asks of a key. A certificate has to be valid at a time
// that is not zero.
func (r rules) want(s registry.Setting, certificateAt time.Time) jwks.Want {
	return jwks.Want{
		Algorithm: encrypter.KeyAlgorithm(s.EncryptionAlgorithm), KeyID: s.KeyID,
		MinRSABits: int(r.minRSABits), MaxRSABits: int(r.maxRSABits), CertificateAt: certificateAt,
	}
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
	if (cfg.Algorithm.Legacy() || cfg.ContentEncryption.Legacy()) && !r.legacy {
		return unusable(fmt.Errorf("%s with %s is only for clients that are registered as legacy", cfg.Algorithm, cfg.ContentEncryption))
	}
	recipient, err := encrypter.NewRecipient(cfg)
	if err != nil {
		return unusable(err)
	}
	return pick{recipient: recipient, size: sizeOfRecipient(cfg)}
}

// forLogout returns the pick for logout tokens, given that for ID tokens: it
// names the issuer in its header. A service that knows no URL of the issuer
// makes none.
func (p pick) forLogout(issuerURL string) pick {
	if p.recipient == nil {
		return p
	}
	if issuerURL == "" {
		return unusable(errors.New("a logout token names its issuer in the header, and the issuer's URL is not known"))
	}
	recipient, err := p.recipient.WithIssuer(issuerURL)
	if err != nil {
		return unusable(err)
	}
	p.recipient = recipient
	// Besides the key, which it shares, there is a header of its own; it may hold
	// the thumbprints of a certificate.
	p.size = sizeOfHandout + uint32(sizeOfHeader(encrypter.RecipientConfig{ //nolint:gosec // a header has a bound
		Algorithm: recipient.Algorithm(), ContentEncryption: recipient.ContentEncryption(), KeyID: recipient.KeyID(), Issuer: issuerURL,
	}))
	return p
}

// logoutPick returns the client's pick for logout tokens, given that for ID
// tokens.
func (c *Cache) logoutPick(key clientKey, cl *client, p pick) pick {
	if p.recipient == nil {
		return p
	}
	if l := cl.logout.Load(); l != nil && l.from == p.recipient {
		return l.pick
	}
	l := &logoutPick{from: p.recipient, fromSize: p.size, pick: p.forLogout(c.cfg.IssuerURL(key.issuer))}
	cl.logout.Store(l)
	c.reweigh(key, cl)
	return l.pick
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
func (c *Cache) client(ctx context.Context, key clientKey) (*client, error) {
	if cl, ok := c.clients.GetIfPresent(key); ok {
		return c.inForce(key, cl)
	}
	if r, ok := c.refused.GetIfPresent(key); ok && time.Now().Before(r.until) {
		return nil, r.err
	}
	cl, err := c.clientLoads.do(ctx, key, c.start, func() (*client, error) { return c.loadClient(key) })
	if err != nil {
		return nil, err
	}
	return c.inForce(key, cl)
}

// loadClient reads a client for all who wait for it, so it lives by the
// cache's context and not by the context of one of them.
func (c *Cache) loadClient(key clientKey) (*client, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()

	slot := c.changes.of(key)
	before := slot.now()
	reg, err := c.cfg.Store.Get(ctx, key.issuer, key.clientID)
	switch {
	case err == nil && reg.Deleted && reg.Pending == nil:
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
		cl = c.newClientAndNext(reg)
	}

	slot.mu.Lock()
	defer slot.mu.Unlock()
	changed := slot.count != before
	switch {
	case cl != nil && !changed:
		c.clients.Set(key, cl)
	case cl == nil && !changed:
		c.refused.Set(key, refusal{until: time.Now().Add(refusedFor), err: err})
	}
	if cl == nil {
		return nil, err
	}
	return cl, nil
}

// doubt has the stored set of a registration's URL looked at if the set in
// memory was fetched before the registration was written: nobody may have named
// the URL in between, and what is stored of it since is another set. That a set
// is deleted is not told to replicas, and that another is stored comes late if
// whoever registered it has died before.
func (c *Cache) doubt(uri string, written time.Time) {
	if c.cfg.Leases == nil || uri == "" {
		return
	}
	src := c.sources.get(uri)
	if src == nil {
		return
	}
	if state := src.state.Load(); state.set != nil && state.FetchedAt.Before(written.Add(maxSkew)) {
		c.sources.lookAt(src)
	}
}

// newClient prepares all that needs neither a fetch nor the client's secret.
func (c *Cache) newClient(reg *registry.Registration) *client {
	cl := &client{revision: reg.Revision, demand: c.newDemand(reg), uri: reg.Source.JWKSURI}
	cl.secret = newSecretKeys(reg)
	if cl.uri != "" {
		return cl
	}
	set, err := c.staticSet(reg)
	if err == nil {
		cl.fixed = cl.demand.choose(set)
		return cl
	}
	// It was good when it was registered; the limits have become stricter. A
	// token that is only signed needs no key, nor does one that takes the
	// client's secret need this one.
	cl.fixed = make([]pick, len(cl.demand.settings))
	refused := (&failure{err}).alone()
	for i := range cl.demand.settings {
		if s := &cl.demand.settings[i]; s.shape.Value().EncryptionAlgorithm != "" && !s.derived {
			cl.fixed[i].failed = refused
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
	c.clientLoads.forget(key)
	c.clients.Invalidate(key)
	c.refused.Invalidate(key)
	c.facts.Invalidate(key)
}
