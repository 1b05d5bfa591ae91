// Package datakey holds the keys that protect what Bulla stores: they seal the
// clients' secrets and authenticate every record. A data key is 32 random
// bytes. The store keeps it only as a backend has wrapped it (kms.Wrapper), so
// that whoever steals the store gets nothing, and whoever writes to it can
// bring nothing in: the wrapping key never leaves the HSM or KMS.
//
// A data key is never used itself. HKDF-SHA-256 (RFC 5869) derives from it one
// key for sealing with AES-256-GCM and one for MACs with HMAC-SHA-256.
//
// # Which key is current
//
// Data keys have numbers, and their ids are made of them: dk-1, dk-2, and so
// on. The wrapping binds id and time of a key to its bytes, so that nobody can
// give an old key a new number. The current key, under which everything new is
// written, is the one with the highest number that unwraps, among those that
// are wrapped by the wrapping key of the configuration. A record that does not
// unwrap is alarmed and counts for nothing; one that cannot be unwrapped at the
// moment stops new writes rather than letting an older key pass for current.
// While it runs, a process never goes back to a key with a lower number.
//
// If no such key is there, the first use makes one: in an empty store, and
// after the configuration has come to name another wrapping key. Of two
// processes that do it at once, one wins and both use its key.
//
// # Promises
//
//   - What is sealed or authenticated under a key that a store never had from
//     this service is ErrTampered, and so is everything that was changed.
//   - A key is deleted only by Retire, and never one that cannot be opened while
//     something stored names it: a wrapping key that is missing from the
//     configuration costs nothing for good.
//   - Once a key has been unwrapped, its use takes no I/O and no lock. Those
//     who write look at the store again after a minute, to see what other
//     replicas have replaced.
//   - A backend or store that is down fails no start: keys are opened at their
//     first use, and again after a failure, at most once a second.
//
// # Limits
//
// Somebody who can write the store can always take its newest keys away, or put
// all of it back to an earlier state: nothing in a store can prove that it is
// the newest, and a process that starts takes an older key for the current one.
//
// To retire a data key removes its record and no more. Who has kept a copy of
// the record can put it back, and with it what was stored under the key: as long
// as the wrapping key is there and configured, it opens as before. So a data key
// that has leaked, or rows that must never come back, are not dealt with by
// replacing the data key alone. Name a new wrapping key, have everything sealed
// anew, take the old one out of the configuration, and destroy it.
//
// A wrapping key belongs to one deployment. What two deployments wrap with the
// same key, each would accept from the other.
package datakey

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// Errors of Keys. Callers match them with errors.Is.
var (
	// ErrTampered: the data is not as this service wrote it, or its data key
	// is none of this service's. Do not use it; an operator has to look at
	// the store.
	ErrTampered = errors.New("stored data fails its authentication")

	// ErrUnavailable: the data key cannot be had at the moment, because the
	// backend that unwraps it or the store is down: try again later. The
	// error wraps theirs.
	ErrUnavailable = errors.New("data key unavailable")
)

// Config of Keys.
type Config struct {
	// Store keeps the wrapped keys. Required.
	Store Store

	// Open returns the wrapping key at a location, which is Location or one
	// of Former. It is called when a key is wrapped or unwrapped, not by New,
	// and again after a failure. Its errors are those of
	// kms.WrapperOpener. Required.
	Open func(ctx context.Context, location string) (kms.Wrapper, error)

	// Location names the wrapping key that wraps new data keys, such as
	// "hsm:object=wrap-1". Required.
	Location string

	// Former names further wrapping keys whose data keys are still accepted:
	// those used before, and on a fleet that is being configured anew, the
	// one used next. A record that names any other place is refused, since
	// else whoever writes the store could choose among all keys of a backend.
	// Default: none.
	Former []string

	// Logger gets what operators should know: keys made, replaced and
	// refused, by their ids. Default: none.
	Logger *slog.Logger
}

// Keys are the data keys of a store. They may be used by any number of
// goroutines.
type Keys struct {
	cfg Config
	log *slog.Logger

	// known is what the warm path reads. It is replaced as a whole, by the
	// holder of turn.
	known atomic.Pointer[snapshot]

	// turn holds a token while nobody reads the store or asks a backend. One
	// who waits for it can give up. The token guards the fields below.
	turn     chan struct{}
	wrappers map[string]kms.Wrapper // by location, those open
	failures map[string]failure     // by id
	failing  failure                // of the look for the current key
	refused  map[string]string      // by id: the wrapped bytes that did not unwrap
	alarmed  map[string]bool        // by id and problem: what the log has been told
}

// New checks the configuration. It asks nothing of the store and of any
// backend: that is for the first use.
func New(ctx context.Context, cfg Config) (*Keys, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("datakey: no store is given")
	case cfg.Open == nil:
		return nil, errors.New("datakey: nothing is given to open wrapping keys with")
	case cfg.Location == "":
		return nil, errors.New("datakey: no wrapping key is named; name the one in the backend that shall wrap the data keys")
	}
	k := &Keys{
		cfg:      cfg,
		log:      cfg.Logger,
		turn:     make(chan struct{}, 1),
		wrappers: map[string]kms.Wrapper{},
		failures: map[string]failure{},
		refused:  map[string]string{},
		alarmed:  map[string]bool{},
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.known.Store(&snapshot{})
	k.turn <- struct{}{}
	return k, ctx.Err()
}

// Seal encrypts plaintext under the current data key and binds it to aad. It
// returns the id of the key, to be stored beside sealed: 12 bytes of nonce,
// the ciphertext, and 16 bytes of tag. Errors are ErrUnavailable or the
// context's.
func (k *Keys) Seal(ctx context.Context, plaintext, aad []byte) (id string, sealed []byte, err error) {
	key, err := k.current(ctx)
	if err != nil {
		return "", nil, err
	}
	return key.id, key.aead.Seal(nil, nil, plaintext, aad), nil //nolint:gosec // the cipher draws the nonce
}

// Open returns what Seal was given. Errors are ErrTampered, ErrUnavailable or
// the context's.
func (k *Keys) Open(ctx context.Context, id string, sealed, aad []byte) ([]byte, error) {
	key, err := k.find(ctx, id)
	if err != nil {
		return nil, err
	}
	plaintext, err := key.aead.Open(nil, nil, sealed, aad)
	if err != nil {
		return nil, fmt.Errorf("%w: what was sealed under data key %s does not open", ErrTampered, id)
	}
	return plaintext, nil
}

// MAC authenticates parts, each with its length and in their order, under the
// current data key. It returns the id of the key and 32 bytes. Errors are
// those of Seal.
func (k *Keys) MAC(ctx context.Context, parts ...[]byte) (id string, mac []byte, err error) {
	key, err := k.current(ctx)
	if err != nil {
		return "", nil, err
	}
	m := key.macs.get()
	defer key.macs.put(m)
	return key.id, append([]byte(nil), m.sum(parts)...), nil
}

// Verify returns nil if mac is that of parts under the data key id. Errors are
// those of Open.
func (k *Keys) Verify(ctx context.Context, id string, mac []byte, parts ...[]byte) error {
	key, err := k.find(ctx, id)
	if err != nil {
		return err
	}
	m := key.macs.get()
	defer key.macs.put(m)
	if !hmac.Equal(m.sum(parts), mac) {
		return fmt.Errorf("%w: its MAC under data key %s is wrong", ErrTampered, id)
	}
	return nil
}

// Current returns the id of the data key for new data. Errors are those of
// Seal.
func (k *Keys) Current(ctx context.Context) (id string, err error) {
	key, err := k.current(ctx)
	if err != nil {
		return "", err
	}
	return key.id, nil
}

// Opens reports whether the data key of an id can be used: without it, to be
// authentic is a question that only another configuration or a backup answers.
// Errors are ErrUnavailable or the context's.
func (k *Keys) Opens(ctx context.Context, id string) (bool, error) {
	_, err := k.find(ctx, id)
	if errors.Is(err, ErrTampered) {
		return false, nil
	}
	return err == nil, err
}

// Ready reports whether any data key has been opened: whether the backend was
// there at least once.
func (k *Keys) Ready() bool { return len(k.known.Load().keys) > 0 }

// current is the key for new data.
func (k *Keys) current(ctx context.Context) (*key, error) {
	if s := k.known.Load(); s.current != nil && time.Since(s.readAt) < refresh {
		return s.current, nil
	}
	return k.loadCurrent(ctx)
}

// find is the key of an id that a record names.
func (k *Keys) find(ctx context.Context, id string) (*key, error) {
	if key := k.known.Load().keys[id]; key != nil {
		return key, nil
	}
	if _, ok := parseID(id); !ok {
		return nil, fmt.Errorf("%w: no data key of this service has the id %.40q", ErrTampered, id)
	}
	return k.load(ctx, id)
}
