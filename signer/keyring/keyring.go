// Package keyring knows the signing keys of each issuer over time: which key
// signs now, which are published, and whether they work.
//
// A ring is the keys of one issuer and algorithm. The store keeps the rings:
// of each key its public half, the places of its private half, and the times
// at which it is published, begins to sign, stops, and is forgotten. A key's
// state follows from those times and the clock, so that replicas agree without
// speaking to each other. The configuration only lists keys:
//
//   - It seeds a ring that is empty: the first listed key of an algorithm
//     becomes active at once.
//   - Afterwards the store rules. A listed key that is not in its ring joins it
//     as next: published, not signing. A key of the ring that is listed no more
//     is reported in the log and goes on.
//   - A listed place is written down, and used, only after it has been opened
//     and proven to hold the same key pair as the others of that key.
//
// A key pair that lies in several places signs at the first healthy one. When
// that fails a call, the call itself goes on to the next, and the place is left
// out until it has signed a probe. What callers meet is noticed by the probes
// too: they come regularly, and soon after trouble.
//
// What it promises: a key is used only if its public half is the stored one and
// it has made a signature that verified. A backend that is down fails neither
// the start nor the publishing of keys; opening is tried again until it works.
// Asking for the active key takes no lock and does no I/O.
//
// # Replacing keys
//
// A rotation breaks nothing because its times leave everybody the time to learn
// of it. With max_age, how long verifiers may keep the JWK Set; max_lifetime of
// tokens; max_lag, how old the rings may be of which a set is made that may be
// kept; and skew, the most that two replicas' clocks differ:
//
//	publish_at  = now
//	activate_at = publish_at + max_age + 2 max_lag + skew, or later
//	retire_at   = activate_at of the next key
//	remove_at   = retire_at + max_lifetime + max_lag + skew
//
// A replica counts the age of its rings from before it asked the store. Above
// max_lag it publishes a set that nobody may keep; above 2 max_lag it publishes
// nothing and signs nothing. Let the change be written at W. From that follows:
//
//   - A key never signs before verifiers could have fetched it from any replica.
//     A set that lacks the key is made of rings read before W. So nobody gets one
//     after W + 2 max_lag, and even a verifier that keeps what it is told not to
//     keep has thrown the last one away max_age later. A replica signs with the
//     key when its clock says activate_at; by then publish_at + max_age + 2
//     max_lag has passed on every clock, and every set that is kept or can be
//     fetched has the key. (That W is a write later than publish_at is no more
//     than skew allows for; and verifiers that do as they are told are rid of the
//     last set at the later of W + max_lag + max_age and W + 2 max_lag, which
//     leaves all the time that a write is given.)
//   - No token outlives its key's publication. A replica that does not know of
//     retire_at has rings from before W and signs until W + 2 max_lag, and
//     retire_at is no sooner than that and skew after the end of the write, also
//     where a key is taken that was published long ago. So nobody signs with the
//     key after retire_at. The last token expires before retire_at + max_lifetime and the
//     minute by which its iat may lie ahead; at remove_at that has passed on
//     every clock. (A max_lag below that minute counts as one here.) Until then
//     every set has the key, whatever replica it comes from.
//
// The terms may be changed with the configuration, and what was handed out under
// others goes on. So a ring remembers max_age and max_lifetime. Longer ones count
// at once, and move the remove_at of keys that have not left the set. Shorter
// ones count when all that was handed out under the longer ones is over. (That is
// written when the ring is next looked at: a replica that starts with a longer
// max_lifetime while its store cannot be written issues such tokens before.)
//
// Two changes do break something. The first key of a ring signs at once, because
// without it the algorithm could not be used at all. And in an emergency there is
// no waiting: Rotate says what that breaks. Its times lie skew in the past, so
// that they have come on every clock.
//
// A key is made, where the configuration lets Bulla do so, under a tag that is in
// the ring before the key is in its backend; so a process can die at any moment,
// and the next one finds what it left. Replicas agree by compare-and-swap.
//
// What it leaves to others: signing itself (package signer), keeping the rings
// (a Store), and making keys (kms.Creator).
package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// Errors of a Keyring. Callers match them with errors.Is.
var (
	// ErrIssuerUnknown: no issuer of that name is configured.
	ErrIssuerUnknown = errors.New("issuer not known")

	// ErrNoKey: the issuer has no active key of that algorithm. Ask for
	// another algorithm; trying again does not help until an operator has
	// configured or activated a key.
	ErrNoKey = errors.New("no signing key of that algorithm")

	// ErrNotOpen: there is a key and it cannot be used at the moment: its
	// backend is down, or it did not pass its checks. It is tried again in
	// the background; the error wraps what happened last.
	ErrNotOpen = errors.New("signing key not open")

	// ErrKeyShared: one key pair is listed under two algorithms of an issuer.
	// The kid is the key's thumbprint, so both would be published under one
	// kid and verifiers could not tell them apart. Create a key for each.
	ErrKeyShared = errors.New("signing key already used for another algorithm of this issuer: create a key for each algorithm")
)

// Config of a Keyring. Durations that are zero have their defaults.
type Config struct {
	// Store keeps the rings. Required.
	Store Store
	// Backends are the configured backends by name. The Keyring does not
	// close them.
	Backends map[string]kms.Backend
	// Issuers are the issuers and their listed keys.
	Issuers []Issuer
	// Logger gets what operators should know; nil discards it.
	Logger *slog.Logger
	// Clock tells the time by which keys change state; nil is time.Now.
	Clock func() time.Time

	// ProbeInterval is how often a key makes a signature at each of its open
	// places to show that it works. Default 10 s. A place that fails a call is
	// probed sooner.
	ProbeInterval time.Duration
	// ReloadInterval is how often the rings are read from the store, to see
	// what other replicas changed. Default 10 s.
	ReloadInterval time.Duration
	// Timeout bounds each call to a backend or the store. Default 5 s.
	Timeout time.Duration
	// RetryMin and RetryMax bound the wait after a failure, which doubles
	// from one to the other. Defaults 1 s and 30 s. What may come back by
	// itself, such as a backend that is down, is waited for no longer than
	// about a second, or RetryMin.
	RetryMin, RetryMax time.Duration

	// MaxLag is how old, since they were read from the store, the rings may
	// be for verifiers to keep what is published of them. Beyond it the JWK
	// Set is marked as stale; beyond twice of it, it is not published, and
	// nothing is signed. All replicas have the same. Default 15 min.
	MaxLag time.Duration
	// Skew bounds the difference between any two replicas' clocks. Default
	// 1 min.
	Skew time.Duration
	// CreateTimeout bounds the creation of a key. Default 1 min.
	CreateTimeout time.Duration
	// Lease is how long a replica that began to create a key may be silent
	// before another goes on in its place. At least CreateTimeout and twice
	// Timeout. Default 2 min.
	Lease time.Duration
	// Alone says that no other process uses the Store while this one does. So
	// whoever else has begun to create a key is dead, and its lease need not
	// be waited for.
	Alone bool

	// Changed is called after a change of keys is on record, by the replica
	// that recorded it and once; nil is nobody. A process that dies, or that
	// the store does not answer, between the one and the other does not call
	// it. It holds up the issuer's other work, so it must be quick.
	Changed func(context.Context, Change)
}

// Change is a change of keys that is on record. The first key of a ring is none.
type Change struct {
	Issuer    string
	Algorithm kms.Algorithm
	// OldKeyID and NewKeyID are the kids of the key that signs until
	// ActivateAt, and of the one that signs from then on.
	OldKeyID, NewKeyID string
	ActivateAt         time.Time
	// Emergency says that the old key was taken out of the JWK Set at once.
	Emergency bool
	// Requested says that somebody asked for it, and not the schedule alone.
	Requested bool
}

// Issuer is the configuration of one issuer.
type Issuer struct {
	// Name is the issuer's name in requests. Unique.
	Name string
	// DefaultAlgorithm is the algorithm of tokens that ask for none. It is
	// one of Keys' algorithms; empty means that of the first key.
	DefaultAlgorithm kms.Algorithm
	// Keys are the listed keys. The order matters within an algorithm: the
	// first seeds an empty ring.
	Keys []Key

	// JWKSMaxAge is how long verifiers may keep the issuer's JWK Set. When it
	// is lowered, keys are replaced no sooner than the sets that may be kept
	// for longer have gone. Default 10 min.
	JWKSMaxAge time.Duration
	// MaxLifetime is the longest time from iat to exp of a token. When it is
	// changed, keys stay published for as long as the longer one wants it.
	// Default 1 h.
	MaxLifetime time.Duration
	// Rotation is how the issuer's keys are replaced.
	Rotation Rotation
}

// Key is the configuration of one key pair.
type Key struct {
	Algorithm kms.Algorithm
	// Locations are the places that hold the key pair, in the order in which
	// they are tried: the first healthy one signs. At least one.
	Locations []Location
	// SkipVerify releases signatures unverified (signer.Options).
	SkipVerify bool
}

// Keyring holds the signing keys of all issuers. Its methods may be called by
// any number of goroutines.
type Keyring struct {
	issuers map[string]*issuer // not changed after New
	clock   func() time.Time
	running atomic.Bool
}

// New checks the configuration and reads the rings from the store. It asks
// nothing of any backend: keys open when Run runs. A store that is down does
// not fail it either; Run reads the rings when the store is back.
//
// An error means that the configuration must be changed, or that ctx ended.
func New(ctx context.Context, cfg Config) (*Keyring, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	k := &Keyring{issuers: make(map[string]*issuer, len(cfg.Issuers)), clock: cfg.Clock}
	var loads sync.WaitGroup
	for _, ic := range cfg.Issuers {
		i := newIssuer(&cfg, ic)
		k.issuers[ic.Name] = i
		loads.Go(func() {
			i.reload(ctx)
			i.publish()
		})
	}
	loads.Wait()
	return k, ctx.Err()
}

// Run opens the keys, seeds empty rings, and looks after all of them until ctx
// ends; then it waits for what it started and returns nil. It may be called
// once.
func (k *Keyring) Run(ctx context.Context) error {
	if k.running.Swap(true) {
		return errors.New("keyring: Run was called twice")
	}
	var all sync.WaitGroup
	for _, i := range k.issuers {
		all.Go(func() { i.run(ctx) })
	}
	all.Wait()
	return nil
}

// Look has Run read the rings of some issuers from the store now, and not only
// when ReloadInterval is over: for one who has heard that they were changed.
// Without a name it is those of all issuers; names of others are passed over. It
// does not wait.
func (k *Keyring) Look(issuers ...string) {
	if len(issuers) == 0 {
		issuers = slices.Collect(maps.Keys(k.issuers))
	}
	for _, name := range issuers {
		i, ok := k.issuers[name]
		if !ok {
			continue
		}
		select {
		case i.changed <- struct{}{}:
		default: // it is to look already, at what is there by then
		}
	}
}

// Key returns the key of an issuer that signs with alg now. Errors are
// ErrIssuerUnknown, ErrNoKey and ErrNotOpen.
func (k *Keyring) Key(issuer string, alg kms.Algorithm) (*signer.SigningKey, error) {
	v, err := k.view(issuer)
	if err != nil {
		return nil, err
	}
	e, err := v.active(alg, k.clock())
	if err != nil {
		return nil, fmt.Errorf("issuer %s, %s: %w", issuer, alg, err)
	}
	return e.key, nil
}

// Default is the algorithm an issuer signs with if a request and the client
// name none.
func (k *Keyring) Default(issuer string) (kms.Algorithm, error) {
	i, ok := k.issuers[issuer]
	if !ok {
		return "", fmt.Errorf("%w: %q", ErrIssuerUnknown, issuer)
	}
	return i.defaultAlg, nil
}

// view is the current snapshot of an issuer.
func (k *Keyring) view(issuer string) (*view, error) {
	i, ok := k.issuers[issuer]
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrIssuerUnknown, issuer)
	}
	return i.current.Load(), nil
}
