package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/bolt"
)

// store looks at the configured store.
func (d *doctor) store(ctx context.Context) []finding {
	if d.cfg.Store.Postgres != nil {
		return d.database(ctx)
	}
	return d.storeFile(ctx)
}

// storeFile opens the file for a moment. It makes none: a file made by the wrong
// user would be in the service's way.
func (d *doctor) storeFile(ctx context.Context) []finding {
	path := d.cfg.Store.Bolt.Path
	f := finding{Check: "store", Subject: path, Outcome: good}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		f.Detail = "not there yet; the service makes it when it starts"
		return []finding{f}
	}
	if err == nil {
		err = d.readStore(ctx)
	}
	switch {
	case errors.Is(err, bolt.ErrInUse):
		return []finding{d.inUse(f)}
	case errors.Is(err, bolt.ErrSchema):
		f.Outcome, f.Detail, f.Advice = failed, err.Error(), "nothing was changed in the file"
	case err != nil:
		f.Outcome, f.Detail, f.Advice = failed, err.Error(), "restore it from a backup if it is damaged, or name another file in store.bolt.path"
	case info.Mode().Perm()&0o077 != 0:
		f.Outcome, f.Detail = warned, fmt.Sprintf("opens, but others can use it (mode %04o)", info.Mode().Perm())
		f.Advice = "run chmod 600 on it"
	default:
		f.Detail = "opens, and has the schema of this version"
	}
	return []finding{f}
}

// storedDataKeys is what the section of the store read, before it answered.
type storedDataKeys struct {
	mu      sync.Mutex
	read    bool // guarded by mu, like those below
	records []datakey.Record
	broken  bool // there are rows and no data key
}

// readStore opens the store, without any wrapping key, and keeps what it says of
// its data keys.
func (d *doctor) readStore(ctx context.Context) error {
	// The service, should it start right now, waits longer than this takes.
	const patience = 100 * time.Millisecond
	store, err := openStore(ctx, d.cfg, storeUse{keys: dataKeysConfig(d.cfg, newWrappingKeys(d.cfg), nil), patience: patience})
	if err != nil {
		return err
	}
	err = store.Check(ctx)
	records, readErr := store.DataKeys(ctx)
	broken, rowsErr := store.ImportBrokenOff(ctx)
	if err = errors.Join(err, readErr, rowsErr, store.Close()); err != nil {
		return err
	}
	d.stored.mu.Lock()
	defer d.stored.mu.Unlock()
	d.stored.read, d.stored.records, d.stored.broken = true, records, broken
	return nil
}
