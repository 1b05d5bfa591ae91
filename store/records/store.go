// Package records is what all stores of Bulla have in common: it makes
// registrations, fetched key sets, signing key rings and data keys out of rows
// of bytes that an Engine keeps. So each promise about them (authentication,
// compare-and-swap, the life of a key set, the retirement of a data key) is kept
// in one place, and an engine is what is left: a database.
//
// # Authentication
//
// Every record carries a MAC under a data key (packages envelope, datakey). One
// that was changed, moved to another place or written by somebody else is
// never used and is alarmed, in the log and by Tampered:
//
//   - A registration is a registry.TamperedError, which whoever may replace the
//     client can replace; a tombstone likewise.
//   - A fetched key set is as good as none, and is fetched anew.
//   - A key ring cannot be read or replaced: a process goes on with the ring it
//     holds, and one that starts publishes and signs nothing for its issuer.
//     Only a backup mends it.
//
// What is not noticed: a row that is gone, and a row, or all of them, that was
// put back to an earlier state of its own. The indexes of URIs and of what waits,
// the leases, and the mark of a data key that is being retired are not
// authenticated; they can keep a key set from being kept or fetched, keep a change
// that takes effect from being told then, or stop writes, and no more.
//
// Data keys are unwrapped by a backend, which may be down when the service
// starts. Registrations and key sets are then unavailable, and nothing can be
// written. Key rings are handed out unverified, for to publish the public keys
// must need no HSM, and verifiers that find no keys refuse every token. The
// price: who can write the store, and choose a start at which the backend is
// down, can have keys of his own published until it is back. They sign nothing
// here, and rings are marked while they are not verified, so that no verifier is
// told to keep their keys. The keyring reads its rings again every few seconds; as soon as the
// data key can be had, a ring that turns out to be forged comes back empty, so
// that its holder drops it. Once any data key was had, nothing is handed out
// unverified any more, and a ring that was cannot be written.
//
// # Changes that wait
//
// A registration may hold a change that takes effect at a time. What is read is
// what is in force by the clock, so that nobody has to write anything for that;
// Settle writes it down some time later, to be rid of what was in force before. A
// process that does not know of such changes, as one of an older version beside
// this one, goes on with what is stored as in force until it is settled: the old
// key, which is the safe side.
//
// # Several processes
//
// An engine may be shared by processes. What depends on more than one row is
// decided in an Update, which no other Update overlaps. What is read outside of
// one is held against the row as it was read when it is written, and done anew
// if another has changed it; so a MAC, which may take an HSM, is never made or
// checked in a transaction. Key sets that the holder of a lease writes are
// outside that order: a lease is lost with any other write of its key set, and
// the row of the data key guards what is written under it.
//
// Records are JSON in an envelope with a version. Which change of a record is
// right is not decided here: see registry.Decide and package keyring.
package records

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/envelope"
)

var (
	_ registry.Store         = (*Store)(nil)
	_ registry.Waits         = (*Store)(nil)
	_ keyring.Store          = (*Store)(nil)
	_ datakey.Store          = (*Store)(nil)
	_ envelope.Authenticator = (*datakey.Keys)(nil)
)

// Config of a Store.
type Config struct {
	// Engine keeps the rows. New asks nothing of it. Required.
	Engine Engine

	// DataKeys says what wraps the data keys that authenticate the records.
	// Its Store need not be set: the engine keeps them. New asks nothing of
	// the wrapping key. Required.
	DataKeys datakey.Config

	// Logger gets alarms of records that were tampered with. Default: none.
	Logger *slog.Logger
}

// Store is the records that an engine keeps. It implements registry.Store,
// keyring.Store and datakey.Store; all methods may be called concurrently.
type Store struct {
	engine   Engine
	log      *slog.Logger
	dataKeys datakey.Config // for those that Import brings

	keys   *datakey.Keys // never asked in a transaction: it may ask an HSM
	alarms alarms
	trust  trust
}

// New makes a store of an engine.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Engine == nil {
		return nil, errors.New("records: no engine is given")
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{engine: cfg.Engine, log: log, dataKeys: cfg.DataKeys, alarms: alarms{log: log}}
	keys := cfg.DataKeys
	keys.Store = s
	var err error
	s.keys, err = datakey.New(ctx, keys)
	return s, err
}

// Close waits for the calls under way and closes the engine. After it, every
// call answers ErrUnavailable.
func (s *Store) Close() error { return s.engine.Close() }

// Check reads something real and cheap, and looks whether the store is still
// the one that was opened (registry.Store).
func (s *Store) Check(ctx context.Context) error {
	return unavailable(registry.ErrUnavailable, s.engine.Check(ctx))
}

// Current is when this process had been told of all that was acknowledged
// before, through Follow; zero if that was never so. The one process of an
// engine that nobody shares always knows.
func (s *Store) Current() time.Time {
	if shared, ok := s.engine.(Shared); ok {
		return shared.Current()
	}
	return time.Now()
}

// errNoChange is returned by the function given to update when there is
// nothing to write.
var errNoChange = errors.New("no change")

// update runs fn in a transaction and makes it durable.
func (s *Store) update(ctx context.Context, fn func(Tx) error) error {
	err := s.engine.Update(ctx, fn)
	if errors.Is(err, errNoChange) {
		return nil
	}
	return err
}

// unavailable wraps err by the sentinel of the interface it leaves through,
// unless it is one that the interface speaks of itself, or a mistake of the
// caller that trying again does not mend.
func unavailable(sentinel, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, datakey.ErrUnavailable) && !errors.Is(sentinel, datakey.ErrUnavailable) {
		// It may wrap the end of a context, and never that of the caller.
		return fmt.Errorf("%w: %w", sentinel, err)
	}
	for _, own := range []error{
		context.Canceled, context.DeadlineExceeded,
		registry.ErrNotFound, registry.ErrRevision, registry.ErrInvalid, registry.ErrTampered, registry.ErrLeaseLost,
		keyring.ErrNotFound, keyring.ErrRevision, errEncoding,
		datakey.ErrExists, datakey.ErrNotFound, datakey.ErrInUse,
		ErrFile, ErrDiffers, ErrExport,
	} {
		if errors.Is(err, own) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}
