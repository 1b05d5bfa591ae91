package postgres

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bulla-project/bulla/store/records"
)

// ErrNoNotice: who LISTENs does not hear what others say. The connection goes
// through a pooler, or to another database; changes of other replicas are then
// found by asking for them.
var ErrNoNotice = errors.New("a notice did not come through")

// Examination is what Examine saw.
type Examination struct {
	// Server is the version of the server, such as 15.6, and Old says that it
	// is older than this package needs.
	Server string
	Old    bool
	// User and SchemaName are whom the connection is for, and where its tables
	// are, both quoted for SQL.
	User, SchemaName string
	// Encrypted says that the connection has TLS.
	Encrypted bool
	// Standby says that the server repeats what another does, so that nothing can
	// be written there.
	Standby bool

	// Version is that of the tables, 0 if there are none, and Newest that which
	// this version of Bulla migrates to. Problem is why the tables cannot be
	// used as they are, nil if they can.
	Version, Newest int
	Problem         error
	// Missing are rights that a service needs on tables that are there, and the
	// user has not, such as "UPDATE on feed". MayMigrate says that the user can
	// bring the tables up to date.
	Missing    []string
	MayMigrate bool

	// Ahead is how far the clock of the server is ahead of this machine's, give
	// or take Give.
	Ahead, Give time.Duration

	// Listen is why LISTEN does not work, nil if it does.
	Listen error
}

// oldest is the oldest server_version_num that this package knows.
const oldest = 140000

// listenPatience is how long a notice may take.
const listenPatience = 2 * time.Second

// Examine looks at a database as a service with cfg would use it, on connections
// of its own. It changes nothing. Its error is that the database cannot be
// reached, or what is wrong with a DSN (ErrDSN).
func Examine(ctx context.Context, cfg Config) (*Examination, error) {
	list, err := migrations()
	if err != nil {
		return nil, err
	}
	t, err := parse("DSN", cfg.DSN)
	if err != nil {
		return nil, err
	}
	direct := t
	if cfg.ListenDSN != "" {
		if direct, err = parse("the DSN for LISTEN", cfg.ListenDSN); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, t.conn())
	if err != nil {
		return nil, newFailure(err)
	}
	defer closeConn(conn)
	x := &examining{conn: conn, sql: newQueries(t.schema), list: list, seen: new(Examination)}
	for _, look := range []func(context.Context) error{x.server, x.clock, x.tables, x.rights} {
		if err := look(ctx); err != nil {
			return nil, asFailure(err)
		}
	}
	x.seen.Listen = x.listen(ctx, direct.conn())
	return x.seen, nil
}

// examining is one run of Examine.
type examining struct {
	conn   *pgx.Conn
	sql    queries
	list   []migration
	exists bool // the tables do
	seen   *Examination
}

func (x *examining) server(ctx context.Context) error {
	x.seen.SchemaName = pgx.Identifier{x.sql.schema}.Sanitize()
	_, x.seen.Encrypted = x.conn.PgConn().Conn().(*tls.Conn)
	number := 0
	err := x.conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num')::int,
		pg_is_in_recovery(), quote_ident(current_user)`).
		Scan(&x.seen.Server, &number, &x.seen.Standby, &x.seen.User)
	x.seen.Server, _, _ = strings.Cut(x.seen.Server, " ") // from who has built it
	x.seen.Old = number < oldest
	return err
}

// clock asks for the time a few times, and believes the quickest answer.
func (x *examining) clock(ctx context.Context) error {
	for n := range 3 {
		var there time.Time
		asked := time.Now()
		if err := x.conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&there); err != nil {
			return err
		}
		give := time.Since(asked) / 2
		if n == 0 || give < x.seen.Give {
			// By the wall clock: there has no other.
			x.seen.Ahead, x.seen.Give = there.Sub(asked.Add(give).Round(0)), give
		}
	}
	return nil
}

// tables looks for the schema's version, and whether the user may change it.
func (x *examining) tables(ctx context.Context) error {
	table := x.sql.name("schema_version")
	owns, creates := false, false
	err := x.conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL,
		coalesce((SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass($1)), false),
		coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $2), has_database_privilege(current_database(), 'CREATE'))`,
		table, x.sql.schema).Scan(&x.exists, &owns, &creates)
	if err != nil {
		return err
	}
	x.seen.MayMigrate = creates && (owns || !x.exists) && !x.seen.Standby
	x.seen.Newest = x.list[len(x.list)-1].version
	t, err := readTables(ctx, x.conn.PgConn(), &x.sql)
	if f := new(failure); errors.As(err, &f) && f.code == insufficientPrivilege {
		x.seen.Problem = fmt.Errorf("%w: the user may not read which schema it has", ErrSchema)
		return nil
	}
	if err != nil {
		return err
	}
	x.seen.Version, x.seen.Problem = t.version, t.problem(x.list)
	return nil
}

// rights looks for what the user may do with tables that are there.
func (x *examining) rights(ctx context.Context) error {
	if !x.exists {
		return nil
	}
	needed := map[string][]string{
		"schema_version": {"SELECT"},
		"feed":           {"SELECT", "UPDATE"},
		"feed_marks":     {"SELECT", "INSERT", "UPDATE", "DELETE"},
	}
	names := []string{"schema_version", "feed", "feed_marks"}
	for _, t := range records.Tables() {
		names = append(names, string(t))
		needed[string(t)] = []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
	}
	for _, name := range names {
		for _, right := range needed[name] {
			has := false
			err := x.conn.QueryRow(ctx, "SELECT coalesce(has_table_privilege(to_regclass($1), $2), false)", x.sql.name(name), right).Scan(&has)
			if err != nil {
				return err
			}
			if !has {
				x.seen.Missing = append(x.seen.Missing, right+" on "+name)
			}
		}
	}
	return nil
}

// listen sends a notice from the one connection to another, on a channel that
// nobody else knows.
func (x *examining) listen(ctx context.Context, direct *pgx.ConnConfig) error {
	ctx, cancel := context.WithTimeout(ctx, listenPatience)
	defer cancel()
	ears, err := pgx.ConnectConfig(ctx, direct)
	if err != nil {
		return newFailure(err)
	}
	defer closeConn(ears)
	name := "bulla_examine_" + strings.ToLower(rand.Text())
	if _, err := ears.Exec(ctx, "LISTEN "+name); err != nil {
		return newFailure(err)
	}
	if _, err := x.conn.Exec(ctx, "SELECT pg_notify($1, '')", name); err != nil {
		return newFailure(err)
	}
	if _, err := ears.WaitForNotification(ctx); err != nil {
		return fmt.Errorf("%w within %v", ErrNoNotice, listenPatience)
	}
	return nil
}
