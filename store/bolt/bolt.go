// Package bolt keeps registrations, fetched key sets and signing key rings in
// one file on local disk, by way of bbolt. It is the store of a single
// replica: one process at a time opens the file, and a second is told so.
//
// What it promises:
//
//   - A write that was acknowledged has been through fsync. It survives the
//     death of the process and of the machine.
//   - A write happens whole or not at all, and only over the revision its
//     caller named.
//   - When the disk is full, writes answer ErrUnavailable, nothing is lost and
//     reads go on; once there is space again, writes go on too.
//   - When the disk fails in the middle of making a write durable, so that
//     nobody knows whether it was, or when the file is damaged, the store
//     stops: everything answers ErrUnavailable until it has been opened anew.
//     The process stays up, and serves what it holds in memory.
//
// Records are JSON in an envelope with a version; the file has a schema
// version of its own, and a newer one is refused. Which change of a record is
// right is not decided here: see registry.Decide and package keyring.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/signer/keyring"
)

var (
	_ registry.Store = (*Store)(nil)
	_ keyring.Store  = (*Store)(nil)
)

// Config says where the store is.
type Config struct {
	// Path is the file. It is created with mode 0600 if it is not there; its
	// folder must exist and be on a local disk. No default.
	Path string

	// LockTimeout is how long Open waits for another process to let go of the
	// file, as one that is shutting down does. Default: 1 s.
	LockTimeout time.Duration

	// Logger gets warnings about the file, and what made the store stop.
	// Default: none.
	Logger *slog.Logger
}

// Store is an open file. It implements registry.Store and keyring.Store.
type Store struct {
	db   *bbolt.DB
	path string
	log  *slog.Logger

	// file is what was opened, to notice when path leads elsewhere.
	file os.FileInfo

	// writer holds a token while no one writes. bbolt has a lock for this, but
	// one cannot stop waiting for it.
	writer chan struct{}

	// stopped is set once, when the store must not be used any more.
	stopped atomic.Pointer[stop]

	// commit is (*bbolt.Tx).Commit; a test puts a failing disk here.
	commit func(*bbolt.Tx) error
}

// stop is why the store does not work any more.
type stop struct {
	err error
	// stuck is set if bbolt may have been left holding its locks.
	stuck bool
}

// Close waits for the calls under way and releases the file. After it, every
// call answers ErrUnavailable.
func (s *Store) Close() error {
	if st := s.stopped.Load(); st != nil && st.stuck {
		// To wait for bbolt's locks could be forever. The file is let go of at
		// the end of the process.
		return fmt.Errorf("store %s cannot be closed: %w", s.path, st.err)
	}
	<-s.writer
	defer func() { s.writer <- struct{}{} }()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("closing store %s: %w", s.path, err)
	}
	return nil
}

// Check reads the schema version, and looks whether the file is still the one
// that was opened (registry.Store).
func (s *Store) Check(ctx context.Context) error {
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		if err := s.inPlace(); err != nil {
			return err
		}
		return checkSchema(tx)
	})
	return unavailable(registry.ErrUnavailable, err)
}

// view runs fn in a transaction that sees one state of the store. What fn
// keeps of a value it must copy.
func (s *Store) view(ctx context.Context, fn func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.guard(func() error { return s.db.View(fn) })
}

// errNoChange is returned by the function given to update when there is
// nothing to write.
var errNoChange = errors.New("no change")

// update runs fn in a transaction and makes it durable. Waiting for its turn
// ends with ctx; once begun, the write is seen through, since to leave it
// would be not to know whether it happened.
func (s *Store) update(ctx context.Context, fn func(*bbolt.Tx) error) error {
	select {
	case <-s.writer:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.writer <- struct{}{} }()
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.guard(func() error {
		// Written to a file that was moved or deleted, the record would be
		// gone at the next start.
		if err := s.inPlace(); err != nil {
			return err
		}
		return s.transact(fn)
	})
	if errors.Is(err, errNoChange) {
		return nil
	}
	return err
}

// transact is one write transaction, from beginning to end.
func (s *Store) transact(fn func(*bbolt.Tx) error) error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	id := tx.ID()
	if err := fn(tx); err != nil {
		_ = tx.Rollback() // the error that counts is fn's
		return err
	}
	err = s.commit(tx)
	if err == nil {
		return nil
	}
	// bbolt writes pages first and the meta page that makes them count last.
	// If the new meta page is not to be seen, nothing has happened. If it is,
	// it may or may not be on the disk, and no later fsync will tell.
	last := 0
	if verr := s.db.View(func(tx *bbolt.Tx) error { last = tx.ID(); return nil }); verr != nil {
		return errors.Join(err, verr)
	}
	if last >= id {
		err = fmt.Errorf("writing store %s failed, and whether the last change is on disk is not known; look at the disk, then restart: %w", s.path, err)
		s.stop(&stop{err: err})
		return err
	}
	return fmt.Errorf("writing store %s failed and changed nothing; if its disk is full, free space on it: %w", s.path, err)
}

// guard runs op unless the store has stopped. bbolt reads the file by mapping
// it: an unreadable sector or a truncated file is a fault in memory, and a
// damaged page a panic. Neither may take the process down, which can do its
// work from memory for a good while.
func (s *Store) guard(op func() error) (err error) {
	if st := s.stopped.Load(); st != nil {
		return st.err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("store %s is damaged or its disk fails (%v): look at the disk, restore the file from a backup if need be, then restart", s.path, r)
			s.stop(&stop{err: err, stuck: true})
		}
	}()
	return op()
}

// stop ends the use of the store for the reason that came first.
func (s *Store) stop(st *stop) {
	if s.stopped.CompareAndSwap(nil, st) {
		s.log.Error("store stopped", "path", s.path, "error", st.err)
	}
}

// inPlace checks that path still leads to the open file.
func (s *Store) inPlace() error {
	now, err := os.Stat(s.path)
	if err != nil {
		return fmt.Errorf("the store's file is gone while in use; put it back or restart: %w", err)
	}
	if !os.SameFile(now, s.file) {
		return fmt.Errorf("the store's file %s was replaced while in use; restart to use the new one", s.path)
	}
	return nil
}

// unavailable wraps err by the sentinel of the interface it leaves through,
// unless it is one that the interface speaks of itself, or a mistake of the
// caller that trying again does not mend.
func unavailable(sentinel, err error) error {
	if err == nil {
		return nil
	}
	for _, own := range []error{
		context.Canceled, context.DeadlineExceeded,
		registry.ErrNotFound, registry.ErrRevision, registry.ErrInvalid,
		keyring.ErrNotFound, keyring.ErrRevision, errEncoding,
	} {
		if errors.Is(err, own) {
			return err
		}
	}
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		err = errors.New("the store has been closed")
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}
