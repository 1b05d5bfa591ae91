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
// What the records promise (authentication, revisions, the retirement of data
// keys) is package records; this one is the engine below it. The file has a
// schema version, and any other is refused.
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

	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/records"
)

// Store is an open file with the records in it.
type Store struct {
	*records.Store
	file *file
}

// Config says where the store is.
type Config struct {
	// Path is the file. It is created with mode 0600 if it is not there; its
	// folder must exist and be on a local disk. No default.
	Path string

	// LockTimeout is how long Open waits for another process to let go of the
	// file, as one that is shutting down does. Default: 1 s.
	LockTimeout time.Duration

	// DataKeys says what wraps the data keys that authenticate the records.
	// Its Store need not be set: the file keeps them. Open asks nothing of
	// the wrapping key. Required.
	DataKeys datakey.Config

	// Logger gets warnings about the file, alarms of records that were
	// tampered with, and what made the store stop. Default: none.
	Logger *slog.Logger
}

// file is the engine: an open file.
type file struct {
	db   *bbolt.DB
	path string
	log  *slog.Logger

	// opened is what was opened, to notice when path leads elsewhere.
	opened os.FileInfo

	// writer holds a token while no one writes. bbolt has a lock for this, but
	// one cannot stop waiting for it.
	writer chan struct{}

	// stopped is set once, when the store must not be used any more.
	stopped atomic.Pointer[stop]

	// commit is (*bbolt.Tx).Commit; a test puts a failing disk here.
	commit func(*bbolt.Tx) error
}

var _ records.Engine = (*file)(nil)

// stop is why the store does not work any more.
type stop struct {
	err error
	// stuck is set if bbolt may have been left holding its locks.
	stuck bool
}

// Close waits for the calls under way and releases the file (records.Engine).
func (s *file) Close() error {
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
// that was opened (records.Engine).
func (s *file) Check(ctx context.Context) error {
	return s.view(ctx, func(tx *bbolt.Tx) error {
		if err := s.inPlace(); err != nil {
			return err
		}
		return checkSchema(tx)
	})
}

// View runs fn on one state of the store (records.Engine).
func (s *file) View(ctx context.Context, fn func(records.Tx) error) error {
	return s.view(ctx, func(t *bbolt.Tx) error { return fn(tx{t}) })
}

// Update runs fn and makes what it wrote durable (records.Engine).
func (s *file) Update(ctx context.Context, fn func(records.Tx) error) error {
	return s.update(ctx, func(t *bbolt.Tx) error { return fn(tx{t}) })
}

// view runs fn in a transaction that sees one state of the store. What fn
// keeps of a value it must copy.
func (s *file) view(ctx context.Context, fn func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return closed(s.guard(func() error { return s.db.View(fn) }))
}

// closed says in plain words that the store has been closed.
func closed(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return errors.New("the store has been closed")
	}
	return err
}

// update runs fn in a transaction and makes it durable. Waiting for its turn
// ends with ctx; once begun, the write is seen through, since to leave it
// would be not to know whether it happened.
func (s *file) update(ctx context.Context, fn func(*bbolt.Tx) error) error {
	select {
	case <-s.writer:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.writer <- struct{}{} }()
	if err := ctx.Err(); err != nil {
		return err
	}
	return closed(s.guard(func() error {
		// Written to a file that was moved or deleted, the record would be
		// gone at the next start.
		if err := s.inPlace(); err != nil {
			return err
		}
		return s.transact(fn)
	}))
}

// transact is one write transaction, from beginning to end.
func (s *file) transact(fn func(*bbolt.Tx) error) error {
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
func (s *file) guard(op func() error) (err error) {
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
func (s *file) stop(st *stop) {
	if s.stopped.CompareAndSwap(nil, st) {
		s.log.Error("store stopped", "path", s.path, "error", st.err)
	}
}

// inPlace checks that path still leads to the open file.
func (s *file) inPlace() error {
	now, err := os.Stat(s.path)
	if err != nil {
		return fmt.Errorf("the store's file is gone while in use; put it back or restart: %w", err)
	}
	if !os.SameFile(now, s.opened) {
		return fmt.Errorf("the store's file %s was replaced while in use; restart to use the new one", s.path)
	}
	return nil
}
