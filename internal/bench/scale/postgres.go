//go:build linux

package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/store/postgres"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// settings are those that a server of this size would have in earnest, beside
// what it has by default. It calls fsync.
var settings = map[string]string{
	"shared_buffers": "512MB", "max_wal_size": "4GB",
}

// newPostgres is a store in a database of its own. The server is made for the
// first.
func (b *bench) newPostgres(name string) (*place, error) {
	if b.cluster == nil {
		b.cluster = pgtest.StartWith(b.t, pgtest.Config{Durable: true, Settings: settings})
	}
	dsn := b.cluster.NewDatabase(b.t).DSN()
	// The file is named in the configuration, as the DSN may hold a password.
	file := filepath.Join(b.dir, name+".dsn")
	if err := os.WriteFile(file, []byte(dsn), 0o600); err != nil {
		return nil, err
	}
	return &place{
		engine: "postgres",
		config: harness.M{"postgres": harness.M{"dsn_file": file}},
		open: func(ctx context.Context) (store, error) {
			return postgres.Open(ctx, postgres.Config{DSN: dsn, Migrate: true, DataKeys: dataKeys(b.local)})
		},
	}, nil
}
