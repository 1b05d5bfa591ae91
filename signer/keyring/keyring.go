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
// What it leaves to others: signing itself (package signer), keeping the rings
// (a Store), and deciding when keys change places.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
