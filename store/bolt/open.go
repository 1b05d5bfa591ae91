package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/bulla-project/bulla/store/records"
)

// schema is the version of the file's layout that this code reads and writes.
//
// Schema 1 had records without MACs, and was in no released version.
const schema = 2

// defaultLockTimeout is the default of Config.LockTimeout.
const defaultLockTimeout = time.Second

var (
	// ErrInUse: another process has the file open. Stop that one first; one
	// file serves one process.
	ErrInUse = errors.New("store is in use by another process")

	// ErrSchema: the file is of another version of Bulla, or is none of its
	// files. Nothing was changed.
	ErrSchema = errors.New("store cannot be read by this version")
)

// tablesAdded are those that files of this schema may lack.
var tablesAdded = []records.Table{records.Waiting}

// The buckets of the file: this one, and one for each of records.Tables by its
// name.
var (
	// bucketMeta: "schema" -> the version in decimal.
	bucketMeta = []byte("bulla")
	keySchema  = []byte("schema")
)

// Open opens the file, and creates it if it is not there. It fails at once if
// the file is not a store or of another version (ErrSchema), and after
// Config.LockTimeout if another process holds it (ErrInUse).
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Path == "" {
		return nil, errors.New("store: no path is given; name the file that shall hold the registrations")
	}
	// An absolute path stays true if the working directory changes.
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", cfg.Path, err)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	wait := cfg.LockTimeout
	if wait <= 0 {
		wait = defaultLockTimeout
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		// bbolt takes zero for "forever".
		wait = max(min(wait, time.Until(deadline)), time.Millisecond)
	}

	f := &file{
		path:   path,
		log:    log,
		writer: make(chan struct{}, 1),
		commit: (*bbolt.Tx).Commit,
	}
	s := &Store{file: f}
	if s.Store, err = records.New(ctx, records.Config{Engine: f, DataKeys: cfg.DataKeys, Logger: log}); err != nil {
		return nil, fmt.Errorf("store %s: %w", path, err)
	}
	if err := ensureFile(path); err != nil {
		return nil, err
	}
	if err := f.open(wait); err != nil {
		return nil, err
	}
	if mode := f.opened.Mode().Perm(); mode&0o077 != 0 {
		log.Warn("store can be read by others; run chmod 600 on it", "path", path, "mode", mode.String())
	}
	f.writer <- struct{}{}
	return s, nil
}

// ensureFile creates the store if nothing is at path. The new file is made
// whole beside it and then linked into place, so that neither a crash nor a
// full disk leaves half a store, and of two processes one wins.
func ensureFile(path string) error {
	switch info, err := os.Stat(path); {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("store %s is not a file; name a file in that place", path)
	case err == nil && info.Size() == 0:
		return fmt.Errorf("store %s is empty: delete it if it is to be a new store, else restore it from a backup", path)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("store %s cannot be reached: %w", path, err)
	}
	if err := create(path); err != nil {
		return fmt.Errorf("creating store %s (its folder must exist and be writable): %w", path, err)
	}
	return nil
}

func create(path string) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	tmp := f.Name()
	defer func() { err = errors.Join(err, os.Remove(tmp)) }()
	if err := f.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(tmp, 0o600, &bbolt.Options{Timeout: defaultLockTimeout})
	if err != nil {
		return err
	}
	if err := db.Update(layOut); err != nil {
		return errors.Join(err, db.Close())
	}
	if err := db.Close(); err != nil {
		return err
	}
	if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

func layOut(tx *bbolt.Tx) error {
	meta, err := tx.CreateBucket(bucketMeta)
	if err != nil {
		return err
	}
	for _, table := range records.Tables() {
		if _, err := tx.CreateBucket([]byte(table)); err != nil {
			return err
		}
	}
	return meta.Put(keySchema, []byte(strconv.Itoa(schema)))
}

// syncDir makes a new name in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// open opens and locks the file and checks that it is a store.
func (s *file) open(wait time.Duration) (err error) {
	// A damaged file makes bbolt panic as readily here as later.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("store %s is damaged (%v); restore it from a backup", s.path, r)
		}
	}()
	db, err := bbolt.Open(s.path, 0o600, &bbolt.Options{
		Timeout:      wait,
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			// Without O_CREATE: what is not there was to be made by create.
			f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
			if err != nil {
				return nil, err
			}
			s.opened, err = f.Stat()
			if err != nil {
				return nil, errors.Join(err, f.Close())
			}
			return f, nil
		},
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("%w: %s; stop that process, or give this one a file of its own", ErrInUse, s.path)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return fmt.Errorf("%w: %s is not a store of Bulla, or is damaged (%w); name another file or restore it from a backup", ErrSchema, s.path, err)
	case err != nil:
		return fmt.Errorf("opening store %s: %w", s.path, err)
	}
	if err := db.View(checkSchema); err != nil {
		return errors.Join(fmt.Errorf("store %s: %w", s.path, err), db.Close())
	}
	if err := addTables(db); err != nil {
		return errors.Join(fmt.Errorf("store %s: %w", s.path, err), db.Close())
	}
	s.db = db
	return nil
}

// addTables makes the buckets of tables that were added since the file was made.
// A version that does not know them does without, so that the schema stays.
func addTables(db *bbolt.DB) error {
	added := slices.Clone(tablesAdded)
	if err := db.View(func(tx *bbolt.Tx) error {
		added = slices.DeleteFunc(added, func(t records.Table) bool { return tx.Bucket([]byte(t)) != nil })
		return nil
	}); err != nil || len(added) == 0 {
		return err
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for _, t := range added {
			if _, err := tx.CreateBucket([]byte(t)); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkSchema checks that the file has the layout this code knows.
func checkSchema(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return fmt.Errorf("%w: it is not a store of Bulla; name another file", ErrSchema)
	}
	version, err := strconv.Atoi(string(meta.Get(keySchema)))
	switch {
	case err != nil || version < 1:
		return fmt.Errorf("%w: its schema version is damaged; restore it from a backup", ErrSchema)
	case version < schema:
		return fmt.Errorf("%w: it has schema %d, of a version before the first release, whose records nothing authenticates; delete it and register the clients anew", ErrSchema, version)
	case version > schema:
		return fmt.Errorf("%w: it has schema %d and this version knows %d; run the newer version, or restore the backup made before the upgrade", ErrSchema, version, schema)
	}
	return nil
}
