package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/bolt"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/postgres"
	"github.com/bulla-project/bulla/store/records"
)

// storage is what a store does, whichever it is: see records.Store.
type storage interface {
	registry.Store
	registry.Waits
	keyring.Store
	datakey.Store

	Keys() *datakey.Keys
	Tampered() uint64
	Reseal(ctx context.Context, secret func(context.Context, *registry.Registration) (*registry.Secret, error)) (envelope.Resealed, error)
	Export(ctx context.Context, w io.Writer) (records.Counts, error)
	Import(ctx context.Context, r io.Reader) (records.Counts, error)
	ImportBrokenOff(ctx context.Context) (bool, error)
	Leases() registry.Leases
	ClientsOf(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error
	Follow(ctx context.Context, w records.Watcher) error
	Current() time.Time
	Close() error
}

// openedStore is the store of a configuration.
type openedStore struct {
	storage
	// shared says that other processes may use it at the same time.
	shared bool
	// database tells how it is; nil for a file.
	database func() postgres.Stats
}

// storeUse is what a command needs a store for.
type storeUse struct {
	// keys protect what is stored.
	keys datakey.Config
	log  *slog.Logger
	// patience is how long to wait for another process to let go of a file.
	// Default: the store's own.
	patience time.Duration
	// migrate lets the schema of a database be brought up to date, if the
	// configuration lets it too.
	migrate bool
	// existing says that a file that is not there is a mistake; else it is made.
	existing bool
}

// openStore opens the configured store. A database that is down does not fail
// it; a file that another process uses is bolt.ErrInUse.
func openStore(ctx context.Context, cfg *config.Config, use storeUse) (*openedStore, error) {
	if cfg.Store.Postgres != nil {
		c, err := postgresConfig(cfg, use)
		if err != nil {
			return nil, err
		}
		s, err := postgres.Open(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("store.postgres: %w", err)
		}
		return &openedStore{storage: s, shared: true, database: s.Stats}, nil
	}
	path := cfg.Store.Bolt.Path
	if _, err := os.Stat(path); use.existing && errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no store at %s: the service makes it when it starts; is this its configuration?", path)
	}
	s, err := bolt.Open(ctx, bolt.Config{Path: path, LockTimeout: use.patience, DataKeys: use.keys, Logger: use.log})
	if errors.Is(err, bolt.ErrInUse) {
		return nil, fmt.Errorf("%w. One process at a time can have a file; several replicas share what is stored with store.postgres", err)
	}
	if err != nil {
		return nil, err
	}
	return &openedStore{storage: s}, nil
}

// postgresConfig reads the connection strings. They are secrets, and in no
// error.
func postgresConfig(cfg *config.Config, use storeUse) (postgres.Config, error) {
	p := cfg.Store.Postgres
	c := postgres.Config{Migrate: use.migrate && p.Migrate, DataKeys: use.keys, Logger: use.log}
	var err error
	if c.DSN, err = readDSN(p.DSNFile); err != nil {
		return c, fmt.Errorf("store.postgres.dsn_file: %w", err)
	}
	if p.ListenDSNFile != "" {
		if c.ListenDSN, err = readDSN(p.ListenDSNFile); err != nil {
			return c, fmt.Errorf("store.postgres.listen_dsn_file: %w", err)
		}
	}
	return c, nil
}

// maxDSN bounds the content of a file with a connection string, in bytes.
const maxDSN = 4096

// readDSN reads a connection string: the content of its file without a line
// end.
func readDSN(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxDSN+1))
	if err != nil {
		return "", err
	}
	dsn := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case len(data) > maxDSN:
		return "", fmt.Errorf("%s is longer than %d bytes: write one connection string into it", path, maxDSN)
	case dsn == "":
		return "", fmt.Errorf("%s is empty: write the connection string into it", path)
	case strings.ContainsFunc(dsn, unicode.IsControl):
		return "", fmt.Errorf("%s has more than one line, or control characters: write one connection string into it", path)
	}
	return dsn, nil
}

// storeName is what the store of a configuration is called.
func storeName(cfg *config.Config) string {
	if cfg.Store.Postgres != nil {
		return "store.postgres"
	}
	return cfg.Store.Bolt.Path
}
