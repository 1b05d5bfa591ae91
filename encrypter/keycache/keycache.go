// Package keycache holds the encryption keys of clients in memory, compiled
// and ready, and keeps those that come from a jwks_uri up to date.
//
// An encrypter gets no signal that a key is out of date: it chooses the key,
// so it never misses. It lives by the clock alone. A fetched set is fresh for
// as long as its host said, within bounds; it is fetched again in the
// background before that time is over; if that fails, the last good set stays
// in use and is flagged as stale, until a bound after which it is refused. A
// caller never waits for the refresh of a set that may still be used.
//
// The hot path is one look-up in memory, without a lock and without a database
// or a network: everything that can be prepared for a client (the choice of
// the key, the encoded header) is prepared once for each registration and key
// set, and shared by all clients of one URL that choose alike. Clients and sets
// have one bound in bytes, whatever is registered, and what falls out is read
// again from the store, where the last good set is kept as well: a process that
// restarts while a client's host is down still encrypts to it. The document of a
// set is not kept in memory once its keys are chosen; when another comes in, the
// same is chosen from that at once, so that clients in memory never wait for the
// store.
//
// Keys that are derived from a client's secret are opened when the first token
// needs them, which may ask the backend that wraps data keys, and stay ready
// after that; the secret itself stays in memory only where tokens are signed
// with it. They have no kid and no thumbprint, as a hash of such a key lets its
// secret be guessed. A secret has an end of its own, which stops those settings
// that need it and no other.
//
// All clients of one URL share one source, and one fetch of it is under way at
// a time, however many ask. A host that hangs delays nobody else's refreshes:
// those of one host, and those of URLs that failed before, have only a share
// of the fetches in the background.
//
// Where several replicas share a store, one fetches a URL for all: it takes a
// lease, which ends by itself if it dies, and stores what it has found out, a
// failure and the pause after it too. The others stand by, adopt what is stored
// when they hear of it or would fetch themselves, and take over in time if nobody
// is there any more. A refresh that is acknowledged is stored. While the store is
// gone each replica fetches for itself and keeps that in memory; nothing older
// replaces it later.
//
// A Cache follows what other replicas write (registry.Follower), and what it
// answers is flagged when it has heard nothing for a moment. Beyond a bound it
// answers nothing at all, whatever it has in memory.
//
// Why a fetch failed is for the log. A caller gets one of two fixed texts and
// an incident id that the log line has as well, so that nobody can look around
// in the network by registering URLs.
//
// What a URL is allowed to be and how it is fetched is decided in
// encrypter/fetch, which key of a set is used in encrypter/jwks, who may change
// a registration in the server.
package keycache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// Fetcher gets the JWK Set of a URL. It is implemented by fetch.Client, which
// says what its errors mean.
type Fetcher interface {
	Get(ctx context.Context, req fetch.Request) (*fetch.Response, error)
}

// Policy bounds the life of a fetched key set.
type Policy struct {
	// MinRefresh is the shortest time a set counts as fresh, whatever its host
	// says. Default 1 minute.
	MinRefresh time.Duration
	// DefaultRefresh is how long a set is fresh whose host does not say.
	// Default 10 minutes.
	DefaultRefresh time.Duration
	// MaxRefresh is the longest time a set counts as fresh. Default 24 hours.
	MaxRefresh time.Duration
	// MaxStale is how long after the end of its freshness a set that cannot be
	// refreshed stays in use. Default 24 hours.
	MaxStale time.Duration
}

// Config is what a Cache is made of.
type Config struct {
	// Store keeps registrations and last good sets. Required.
	Store registry.Store
	// Fetcher gets key sets. Required.
	Fetcher Fetcher
	// Policy bounds the life of fetched sets.
	Policy Policy
	// Limits bound what a key set may be.
	Limits jwks.Limits
	// MinRSABits and MaxRSABits are the shortest and the longest RSA modulus
	// an issuer allows, in bits. Default: what Limits allow, for every issuer.
	MinRSABits, MaxRSABits func(issuer string) int
	// IssuerURL is an issuer's URL, the claim "iss" of its tokens, which
	// encrypted logout tokens have in their header. Default: none is known, and
	// logout tokens are refused as ErrUnusable.
	IssuerURL func(issuer string) string
	// Secrets opens what is kept of clients' secrets. Default: none, and what
	// needs a secret is refused as ErrUnusable.
	Secrets Secrets
	// MaxMemory is how many bytes the clients and key sets in memory may take,
	// about; key sets take three quarters of it at most. What is needed beside them does
	// not depend on their number: 10 MiB or so. Default 160 MiB, which is good
	// for 100 000 warm clients with one RSA key of 2048 bits each.
	MaxMemory int64
	// FetchTimeout bounds one fetch and one access to the store. Default 5
	// seconds.
	FetchTimeout time.Duration
	// ForcedEvery is the least time between two forced refreshes of one URL.
	// Default 10 seconds.
	ForcedEvery time.Duration
	// Fetchers is how many refreshes run at once in the background. One
	// fetch.Target gets at most a quarter of them, and URLs that failed the last
	// time at most half. Default 16.
	Fetchers int
	// IdleAfter is how long a set may go unused before it is no longer
	// refreshed. Default 7 days.
	IdleAfter time.Duration
	// Leases let one of several replicas fetch a URL for all. Default: none, and
	// no other process writes to Store.
	Leases registry.Leases
	// Feed tells how far this replica has heard what others wrote, which its
	// Follower is told of: the Cache. Default: none, and nobody else writes.
	Feed Feed
	// MaxLag is for how long the feed may lag, or what it told of key sets may be
	// impossible to read, before nothing is served any more. Default 15 minutes.
	MaxLag time.Duration
	// KeySetChanged is called when the set of a URL in memory has changed
	// materially: another document was fetched or taken over from the store,
	// trouble began or ended, or the set became stale, fresh or expired. It is
	// called without any lock, and must not wait. Default: none.
	KeySetChanged func(uri string)
	// Fetched is told what came of each fetch and how long it took. It must not
	// wait. Default: none.
	Fetched func(what Fetched, took time.Duration)
	// Logger gets the truth about failed fetches. Default: none.
	Logger *slog.Logger
}

func (c *Config) setDefaults() error {
	if c.Store == nil || c.Fetcher == nil {
		return errors.New("keycache: Store and Fetcher are required")
	}
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{
		{&c.Policy.MinRefresh, time.Minute},
		{&c.Policy.DefaultRefresh, 10 * time.Minute},
		{&c.Policy.MaxRefresh, 24 * time.Hour},
		{&c.Policy.MaxStale, 24 * time.Hour},
		{&c.FetchTimeout, 5 * time.Second},
		{&c.ForcedEvery, 10 * time.Second},
		{&c.IdleAfter, 7 * 24 * time.Hour},
		{&c.MaxLag, 15 * time.Minute},
	} {
		if *d.value < 0 {
			return errors.New("keycache: a duration is negative; leave it at zero for its default")
		}
		if *d.value == 0 {
			*d.value = d.or
		}
	}
	if c.MaxMemory < 0 || c.Fetchers < 0 {
		return errors.New("keycache: a number is negative; leave it at zero for its default")
	}
	for _, bits := range []*func(string) int{&c.MinRSABits, &c.MaxRSABits} {
		if *bits == nil {
			*bits = func(string) int { return 0 }
		}
	}
	if c.IssuerURL == nil {
		c.IssuerURL = func(string) string { return "" }
	}
	if c.MaxMemory == 0 {
		c.MaxMemory = 160 << 20
	}
	if c.Fetchers == 0 {
		c.Fetchers = 16
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Fetched == nil {
		c.Fetched = func(Fetched, time.Duration) {}
	}
	p := c.Policy
	if p.MinRefresh > p.DefaultRefresh || p.DefaultRefresh > p.MaxRefresh {
		return errors.New("keycache: need MinRefresh <= DefaultRefresh <= MaxRefresh")
	}
	return nil
}

// Cache holds clients' recipients. It is safe for concurrent use.
type Cache struct {
	cfg     Config
	made    time.Time
	budget  budget
	states  states
	clients *otter.Cache[clientKey, *client]
	refused *otter.Cache[clientKey, refusal]
	facts   *otter.Cache[clientKey, *facts]
	changes changes
	sources *sources

	clientLoads loads[clientKey, *client]
	secretLoads loads[*client, *openedSecret]
	sourceLoads loads[string, *source]
	textLoads   loads[*source, *text]

	// storeRests is until when the background leaves the store alone, in Unix
	// nanoseconds.
	storeRests atomic.Int64

	// ctx ends with Close; work that outlives its caller lives by it.
	ctx    context.Context
	cancel context.CancelFunc
	// work counts goroutines started on behalf of callers. startMu orders its
	// Add against Close's Wait.
	work    sync.WaitGroup
	startMu sync.Mutex
}

const (
	// refusedFor is how long a client that is not in the store, or whose record
	// fails its authentication, is remembered, so that asking for it costs
	// nothing. It bounds how late a registration made elsewhere is seen.
	refusedFor = time.Second
	// maxRefused is how many are remembered.
	maxRefused = 10_000
)

// New makes a Cache. The caller starts Run for refreshes in the background,
// and calls Close at the end.
func New(cfg Config) (*Cache, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	clients, err := otter.New(&otter.Options[clientKey, *client]{MaximumWeight: uint64(cfg.MaxMemory), Weigher: weightOfClient}) //nolint:gosec // not negative
	if err != nil {
		return nil, fmt.Errorf("keycache: %w", err)
	}
	refused, err := otter.New(&otter.Options[clientKey, refusal]{MaximumSize: maxRefused})
	if err != nil {
		return nil, fmt.Errorf("keycache: %w", err)
	}
	known, err := otter.New(&otter.Options[clientKey, *facts]{MaximumWeight: maxFacts, Weigher: weightOfFacts})
	if err != nil {
		return nil, fmt.Errorf("keycache: %w", err)
	}
	c := &Cache{
		cfg: cfg, clients: clients, refused: refused, facts: known, sources: newSources(forSources(cfg.MaxMemory)),
		changes: changes{seed: maphash.MakeSeed()}, made: time.Now(),
		budget: budget{all: cfg.MaxMemory, step: max(cfg.MaxMemory/64, 1)},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends all work in the background and waits for it, for a write to the
// store at most as long as FetchTimeout. Afterwards the cache serves what it
// holds in memory and fetches nothing.
func (c *Cache) Close() {
	c.startMu.Lock()
	c.cancel()
	c.startMu.Unlock()
	c.work.Wait()
	c.clients.StopAllGoroutines()
	c.refused.StopAllGoroutines()
	c.facts.StopAllGoroutines()
}

// start runs f on a goroutine that Close waits for. It reports false, and runs
// nothing, once the cache is closed.
func (c *Cache) start(f func()) bool {
	c.startMu.Lock()
	defer c.startMu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	c.work.Go(f)
	return true
}

// Recipient is what the cache knows of one client for one kind of token.
type Recipient struct {
	// Setting is how tokens of this kind are made for the client. Its Kind is
	// the one that was registered: that of a logout token's is ID_TOKEN.
	Setting registry.Setting
	// Recipient encrypts to the client. It is nil if the setting says that
	// tokens of this kind are signed only.
	*encrypter.Recipient
	// Thumbprint is the RFC 7638 SHA-256 thumbprint of the client's public key.
	// It is empty for a key that is derived from the client's secret: with it
	// the secret could be guessed off line.
	Thumbprint string
	// Stale says that the key set is past its freshness.
	Stale bool
	// FetchedAt is when the set was last fetched or confirmed; zero for keys
	// that do not come from a URL.
	FetchedAt time.Time
	// RegistryStale says that for more than 2 seconds this replica has not been
	// told what others wrote, so that all of this may be out of date.
	RegistryStale bool
}

// Recipient returns the client's recipient for tokens of the given kind. For a
// client in memory it neither waits nor allocates; it waits for a fetch only
// if no set of the client may be used, and for its secret to be opened only
// once. Errors: registry.ErrNotFound, registry.ErrTampered, ErrNoSetting,
// ErrUnusable (which is ErrKeySize too if that is why), ErrUnavailable (as a
// *FetchError), ErrExpired (as a *FetchError or a *SecretExpiredError),
// registry.ErrUnavailable, or the context's.
func (c *Cache) Recipient(ctx context.Context, issuer, clientID string, kind registry.TokenKind) (Recipient, error) {
	behind, err := c.behind()
	if err != nil {
		return Recipient{}, err
	}
	key := clientKey{issuer, clientID}
	cl, err := c.client(ctx, key)
	if err != nil {
		return Recipient{}, err
	}
	i, err := cl.demand.find(kind)
	if err != nil {
		return Recipient{}, err
	}
	setting := &cl.demand.settings[i]
	r := Recipient{Setting: setting.full(), RegistryStale: behind}
	var p pick
	switch {
	case r.Setting.EncryptionAlgorithm == "":
		return r, nil
	case setting.derived:
		opened, err := c.open(ctx, key, cl)
		if err != nil {
			return Recipient{}, err
		}
		p = opened.picks[i]
	case cl.uri == "":
		p = cl.fixed[i]
	default:
		now := time.Now()
		state, picks, err := c.fromURL(ctx, key, cl, now)
		if err != nil {
			return Recipient{}, err
		}
		p = picks[i]
		r.FetchedAt, r.Stale = state.FetchedAt, now.After(state.FreshUntil)
	}
	if kind == registry.LogoutToken {
		p = c.logoutPick(key, cl, p)
	}
	if p.failed != nil {
		return Recipient{}, p.failed.err
	}
	r.Recipient, r.Thumbprint = p.recipient, p.thumbprint
	return r, nil
}

// fromURL returns what is known of the URL of cl, with a set that may be used,
// and what the client chooses from that.
func (c *Cache) fromURL(ctx context.Context, key clientKey, cl *client, now time.Time) (*setState, []pick, error) {
	src := cl.source.Load()
	if src != nil && !src.gone.Load() {
		src.touch(now)
		if state := src.state.Load(); state.inUse(c.cfg.Policy, now) {
			if picks := cl.chosen(state.set); picks != nil {
				return state, picks, nil
			}
		}
	}
	src, state, err := c.usable(ctx, cl.uri)
	if err != nil {
		return nil, nil, err
	}
	cl.source.Store(src)
	if picks := cl.chosen(state.set); picks != nil {
		return state, picks, nil
	}
	return c.choose(ctx, key, cl, src)
}

// Setting returns how tokens of the given kind are made for the client. It
// needs none of the client's keys. Errors: registry.ErrNotFound,
// registry.ErrTampered, ErrNoSetting, registry.ErrUnavailable, or the
// context's.
func (c *Cache) Setting(ctx context.Context, issuer, clientID string, kind registry.TokenKind) (registry.Setting, error) {
	if _, err := c.behind(); err != nil {
		return registry.Setting{}, err
	}
	cl, err := c.client(ctx, clientKey{issuer, clientID})
	if err != nil {
		return registry.Setting{}, err
	}
	i, err := cl.demand.find(kind)
	if err != nil {
		return registry.Setting{}, err
	}
	return cl.demand.settings[i].full(), nil
}

// Stats counts what the cache holds.
type Stats struct {
	// Clients and KeySets are how many are in memory.
	Clients, KeySets int
	// Bytes is about how many bytes they take: see Config.MaxMemory.
	Bytes int64
}

// Stats counts what the cache holds.
func (c *Cache) Stats() Stats {
	return Stats{
		Clients: c.clients.EstimatedSize(), KeySets: c.sources.len(),
		Bytes: int64(c.clients.WeightedSize()) + c.sources.total(), //nolint:gosec // it has a bound
	}
}
