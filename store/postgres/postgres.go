// Package postgres keeps registrations, fetched key sets, signing key rings and
// data keys in PostgreSQL, which many replicas share. Any PostgreSQL from
// version 14 on will do, with or without a pooler in front of it.
//
// What it promises, besides what package records does:
//
//   - A write that was acknowledged is as durable as the database makes it, also
//     where the role's synchronous_commit is off. It happens whole or not at all.
//   - Writes of all replicas happen one after the other, and every replica that
//     follows is told of each, in their order, within a second: at once by
//     LISTEN, and where that does not work by looking every 400 ms.
//   - A database that is down fails no start and stops no process. Calls fail at
//     once, and work again by themselves when it is back; reads are not even
//     aware of a restart that is over. Nobody waits on a network that swallows
//     everything once one has found out.
//   - Nothing that is secret in a DSN comes out in an error or a log.
//
// # Tables
//
// There is one table for each of package records, of keys and values that are
// bytes to the database; see migrations/0001_tables.sql. They lie in the schema
// that the DSN's search_path names, or in public.
//
// # The order of writes
//
// Every Update locks the one row of the table feed before it does anything else,
// and gives what it writes the number after the one it finds there. So a number
// comes to be seen only after all lower ones, whatever the order in which
// transactions began, and a follower that asks for what is higher than its last
// number misses nothing. A sequence would not do: it gives numbers out before
// those who took them have committed.
//
// A follower also remembers a random mark that was stored with its number. If
// the database has another mark there, or none, then it was put back to an
// earlier state, by a backup that was restored or a standby that took over
// without the last writes, and all that is known of it is read anew.
//
// A process that dies cannot hold the row: its connection ends, or the database
// ends the transaction when two seconds have passed without a statement.
//
// # Versions of the tables
//
// Migrations are numbered, and each says which versions of the service can use
// the tables after it: its own and that of the release before at least. The
// newer release may therefore migrate while the older still runs.
package postgres

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/records"
)

// Config says where the store is.
type Config struct {
	// DSN is how the database is reached, as libpq reads it: a URL or words of
	// the form key=value. Outside of the machine it has to say
	// sslmode=verify-full. It may lead to a pooler. pool_max_conns is 8 by
	// default, connect_timeout 2 s. Required.
	DSN string

	// ListenDSN is how the database is reached for LISTEN, without a pooler.
	// Default: DSN.
	ListenDSN string

	// Migrate says that Open may make the tables, and bring them to the version
	// of this code. Otherwise `bulla migrate` does.
	Migrate bool

	// DataKeys says what wraps the data keys that authenticate the records. Its
	// Store need not be set. Required.
	DataKeys datakey.Config

	// Logger gets a line when the database is lost and one when it is back.
	// Default: none.
	Logger *slog.Logger
}

// Store is the records in a database. It implements registry.Store,
// keyring.Store and datakey.Store, and all that records.Store does.
type Store struct {
	*records.Store
	engine *engine
}

// Open makes a store. It fails if the configuration is wrong, or if the tables
// were made by a version that this one cannot follow (ErrSchema); not if the
// database is down, or has no tables yet: calls then fail until that is mended.
// It asks the database once, for as long as connect_timeout or ctx allow, and
// longer only to migrate.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	list, err := migrations()
	if err != nil {
		return nil, err
	}
	e, err := openEngine(ctx, cfg, list)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	r, err := records.New(ctx, records.Config{Engine: e, DataKeys: cfg.DataKeys, Logger: cfg.Logger})
	if err != nil {
		_ = e.Close() // nothing was done by it
		return nil, fmt.Errorf("store: %w", err)
	}
	return &Store{Store: r, engine: e}, nil
}

// Stats returns how the store is. It asks nothing of the database.
func (s *Store) Stats() Stats { return s.engine.stats() }
