package postgres

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed migrations/*.sql
var files embed.FS

// migration brings the tables from one version to the next.
type migration struct {
	version int
	// minimum is the oldest version that a service may know and still use the
	// tables afterwards. That of the release before is among them, so that a
	// fleet can be replaced one replica at a time.
	minimum int
	sql     string
}

// migrations are the embedded ones, in order. The last is the version that
// this code knows.
func migrations() ([]migration, error) {
	names, err := files.ReadDir("migrations")
	if err != nil {
		return nil, err
	}
	var list []migration
	for _, n := range names {
		sql, err := files.ReadFile(path.Join("migrations", n.Name()))
		if err != nil {
			return nil, err
		}
		m := migration{sql: string(sql)}
		number, _, _ := strings.Cut(n.Name(), "_")
		if m.version, err = strconv.Atoi(number); err != nil {
			return nil, fmt.Errorf("migration %s has no number: %w", n.Name(), err)
		}
		first, _, _ := strings.Cut(m.sql, "\n")
		minimum, ok := strings.CutPrefix(first, "-- minimum: ")
		if m.minimum, err = strconv.Atoi(minimum); err != nil || !ok {
			return nil, fmt.Errorf("migration %s does not say its minimum", n.Name())
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	for i, m := range list {
		if m.version != i+1 || m.minimum < 1 || m.minimum > m.version {
			return nil, fmt.Errorf("migration %d has minimum %d and follows on %d", m.version, m.minimum, i)
		}
	}
	return list, nil
}

// Migrate brings the tables to the version of this code, or makes them, and
// returns the versions before and after. Several may do it at once. The DSN's
// role has to own the tables, and to be allowed to make them.
func Migrate(ctx context.Context, cfg Config) (from, to int, err error) {
	list, err := migrations()
	if err != nil {
		return 0, 0, err
	}
	t, err := parse("DSN", cfg.DSN)
	if err != nil {
		return 0, 0, err
	}
	conn, err := pgx.ConnectConfig(ctx, t.conn())
	if err != nil {
		return 0, 0, told(ctx, err)
	}
	defer closeConn(conn)
	return migrate(ctx, conn.PgConn(), t.schema, list)
}

// told is an error of the driver as it may be told, or the context's.
func told(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil {
		return ended
	}
	return newFailure(err)
}

// closeConn closes a connection without waiting for long.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing depends on it
}

// tables is what the database says of its tables.
type tables struct{ version, minimum int }

// versionOf is what queries.version returned.
func versionOf(r result) (tables, error) {
	row, err := r.one()
	if err != nil {
		return tables{}, err
	}
	return tables{int(integer(row[0])), int(integer(row[1]))}, nil
}

// errTooNew is in an ErrSchema that no migration mends.
var errTooNew = errors.New("it was migrated by a newer version of Bulla")

// problem is why a service with these migrations cannot use the tables, nil if
// it can.
func (t tables) problem(list []migration) error {
	mine := list[len(list)-1].version
	switch {
	case t.version == 0:
		return fmt.Errorf("%w: it has no tables of Bulla yet; run `bulla migrate`", ErrSchema)
	case t.version < mine:
		return fmt.Errorf("%w: its schema is %d and this version of Bulla needs %d; run `bulla migrate`", ErrSchema, t.version, mine)
	case t.minimum > mine:
		return fmt.Errorf("%w: its schema is %d, which only versions can use that know schema %d, and this one knows %d (%w); run the newer version, or restore the backup made before the upgrade", ErrSchema, t.version, t.minimum, mine, errTooNew)
	}
	return nil
}

// readTables reads the version; that of no tables is 0.
func readTables(ctx context.Context, conn *pgconn.PgConn, q *queries) (tables, error) {
	results, err := send(ctx, conn, []statement{stmt(q.version)})
	if err != nil {
		if f := newFailure(err); f.code == undefinedTable || f.code == invalidSchemaName {
			return tables{}, nil
		}
		return tables{}, told(ctx, err)
	}
	return versionOf(results[0])
}

// probe connects, and looks at the tables; if it may, it makes them right. An
// error that is no failure says what is wrong with them.
func (e *engine) probe(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, acquireLimit)
	defer cancel()
	conn, err := pgx.ConnectConfig(limited, e.target.conn())
	if err != nil {
		return newFailure(err)
	}
	defer closeConn(conn)
	t, err := readTables(limited, conn.PgConn(), &e.sql)
	f := new(failure)
	if errors.As(err, &f) && f.code != "" {
		return fmt.Errorf("its tables cannot be read: %s", f.text)
	}
	if err != nil {
		return ofTables(err)
	}
	if t.version < e.list[len(e.list)-1].version && e.migrate {
		from, to, err := migrate(ctx, conn.PgConn(), e.target.schema, e.list)
		if err != nil {
			return fmt.Errorf("its tables cannot be migrated; run `bulla migrate` with a role that may: %w", err)
		}
		if from != to {
			e.log.Info("PostgreSQL was migrated", "from", from, "to", to)
		}
		if t, err = readTables(ctx, conn.PgConn(), &e.sql); err != nil {
			return ofTables(err)
		}
	}
	if err := t.problem(e.list); err != nil {
		return err
	}
	return e.probeFeed(limited, conn.PgConn())
}

// probeFeed makes sure that there is a feed, and remembers where it was first.
func (e *engine) probeFeed(ctx context.Context, conn *pgconn.PgConn) error {
	at, err := e.whereOn(ctx, conn)
	f := new(failure)
	switch {
	case errors.Is(err, errNotOne):
		return errNoFeed
	case errors.As(err, &f) && f.wrongTables():
		return fmt.Errorf("its tables cannot be read: %s", f.text)
	case err != nil:
		return asFailure(err)
	}
	e.start.CompareAndSwap(nil, at)
	return nil
}

// ofTables is an error of readTables: of the way to the database, or of what the
// tables say.
func ofTables(err error) error {
	if errors.Is(err, errNotOne) {
		return err
	}
	return asFailure(err)
}

// asFailure is err as one of the way to the database, and not of its tables.
func asFailure(err error) error {
	f := new(failure)
	if errors.As(err, &f) {
		return f
	}
	return newFailure(err)
}

// migrateLimit is how long one migration may take, and the wait for another
// replica's.
const migrateLimit = 10 * time.Minute

// migrate applies what is missing, each migration in a transaction of its own.
// A lock of the database keeps others from doing the same at the same time; it
// ends with the transaction, so that it works through a pooler too.
func migrate(ctx context.Context, conn *pgconn.PgConn, schema string, list []migration) (from, to int, err error) {
	ctx, cancel := context.WithTimeout(ctx, migrateLimit)
	defer cancel()
	q := newQueries(schema)
	t, err := readTables(ctx, conn, &q)
	if err != nil {
		return 0, 0, err
	}
	from = t.version
	for {
		t, done, err := step(ctx, conn, &q, list)
		if err != nil {
			return from, t.version, err
		}
		if done {
			return from, t.version, nil
		}
	}
}

// step applies the next migration, if there is one.
func step(ctx context.Context, conn *pgconn.PgConn, q *queries, list []migration) (t tables, done bool, err error) {
	name := pgx.Identifier{q.schema}.Sanitize()
	literal := "'" + strings.ReplaceAll(q.schema, "'", "''") + "'"
	exec := func(sql string) error {
		if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
			return told(ctx, err)
		}
		return nil
	}
	if err := exec("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock(hashtextextended('bulla migrate ' || " + literal + ", 0))"); err != nil {
		return t, false, err
	}
	defer func() {
		if err != nil || done {
			// If this fails, the connection's end is that of the transaction.
			_, _ = conn.Exec(ctx, "ROLLBACK").ReadAll()
		}
	}()
	// Not by a statement that fails if there are none: it would end the
	// transaction.
	results, err := send(ctx, conn, []statement{stmt("SELECT to_regnamespace($1) IS NOT NULL, to_regclass($2) IS NOT NULL", name, q.name("schema_version"))})
	if err != nil {
		return t, false, told(ctx, err)
	}
	row, err := results[0].one()
	if err != nil {
		return t, false, err
	}
	if boolean(row[1]) {
		if t, err = readTables(ctx, conn, q); err != nil {
			return t, false, err
		}
	}
	if t.version >= list[len(list)-1].version {
		if err := t.problem(list); err != nil {
			return t, false, err
		}
		return t, true, nil
	}
	if !boolean(row[0]) {
		if err := exec("CREATE SCHEMA " + name); err != nil {
			return t, false, err
		}
	}
	next := list[t.version]
	if err := exec("SET LOCAL search_path = " + name + ";\n" + next.sql); err != nil {
		return t, false, fmt.Errorf("migration %d: %w", next.version, err)
	}
	set := fmt.Sprintf("INSERT INTO %s (version, minimum) VALUES (%d, %d) ON CONFLICT (one) DO UPDATE SET version = EXCLUDED.version, minimum = EXCLUDED.minimum; COMMIT",
		q.name("schema_version"), next.version, next.minimum)
	if err := exec(set); err != nil {
		return t, false, fmt.Errorf("migration %d: %w", next.version, err)
	}
	return tables{next.version, next.minimum}, false, nil
}
