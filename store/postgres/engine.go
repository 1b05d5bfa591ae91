package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/bulla-project/bulla/store/records"
)

// engine keeps rows in PostgreSQL. It implements records.Shared.
type engine struct {
	target  target
	listen  *pgx.ConnConfig // for LISTEN
	migrate bool
	list    []migration
	log     *slog.Logger

	pool *pgxpool.Pool
	sql  queries
	cond *condition

	// writer has room for the one Update of this process that is at the
	// database. More would only wait there, on connections that those need who
	// read.
	writer chan struct{}

	// pause is the watcher's, and its alone after open.
	pause time.Duration

	// start is where the feed was before any call could read a row.
	start   atomic.Pointer[position]
	current atomic.Pointer[time.Time]
	follows atomic.Bool // Follow was called
	hears   atomic.Bool // LISTEN is in force
	stop    context.CancelFunc
	done    context.Context // of the engine; ended by Close
	wg      sync.WaitGroup  // of the watcher
	closing sync.Once
}

var _ records.Shared = (*engine)(nil)

// openEngine makes an engine. It looks at the database once, and goes on looking
// if that failed, except that tables of a newer version are an error at once.
func openEngine(ctx context.Context, cfg Config, list []migration) (*engine, error) {
	e, err := newEngine(cfg, list)
	if err != nil {
		return nil, err
	}
	if e.pool, err = pgxpool.NewWithConfig(ctx, e.target.pool); err != nil {
		return nil, errors.New("DSN: " + parseProblem(err))
	}
	e.look(ctx)
	if _, err := e.cond.enter(); errors.Is(err, errTooNew) || ctx.Err() != nil {
		e.pool.Close()
		return nil, errors.Join(ctx.Err(), err)
	}
	e.done, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	e.wg.Go(func() { e.watch(e.done) })
	return e, nil
}

// newEngine makes what needs no database.
func newEngine(cfg Config, list []migration) (*engine, error) {
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
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &engine{
		target: t, listen: direct.conn(), migrate: cfg.Migrate, list: list, log: log,
		sql: newQueries(t.schema), cond: newCondition(log), writer: make(chan struct{}, 1), pause: retry,
	}, nil
}

// Close implements records.Engine.
func (e *engine) Close() error {
	e.closing.Do(func() {
		e.cond.close()
		e.stop()
		e.wg.Wait()
		e.pool.Close()
	})
	return nil
}

// Check reads the schema's version.
func (e *engine) Check(ctx context.Context) error {
	results, err := e.query(ctx, stmt(e.sql.version))
	if err != nil {
		return err
	}
	v, err := versionOf(results[0])
	if err == nil {
		err = v.problem(e.list)
	}
	if err != nil {
		e.cond.misfit(err)
		e.cond.suspect()
	}
	return err
}

// View implements records.Engine. Each call on the Tx is a statement of its own.
func (e *engine) View(ctx context.Context, fn func(records.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := e.cond.enter(); err != nil {
		return err
	}
	return fn(&view{e, ctx})
}

type view struct {
	e   *engine
	ctx context.Context
}

var errReadOnly = errors.New("a View was asked to write")

func (v *view) Put(records.Table, []byte, []byte) error { return errReadOnly }
func (v *view) Delete(records.Table, []byte) error      { return errReadOnly }

func (v *view) Get(t records.Table, key []byte) ([]byte, error) {
	results, err := v.e.query(v.ctx, v.e.sql.getRow(t, key))
	if err != nil {
		return nil, err
	}
	return valueOf(results[0]), nil
}

func (v *view) GetAll(t records.Table, keys [][]byte) ([][]byte, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	list := make([]statement, len(keys))
	for i, key := range keys {
		list[i] = v.e.sql.getRow(t, key)
	}
	results, err := v.e.query(v.ctx, list...)
	if err != nil {
		return nil, err
	}
	values := make([][]byte, len(keys))
	for i, r := range results {
		values[i] = valueOf(r)
	}
	return values, nil
}

func (v *view) Scan(t records.Table, prefix, seek []byte, limit int) ([]records.Row, bool, error) {
	results, err := v.e.query(v.ctx, v.e.sql.scanRows(t, prefix, seek, limit))
	if err != nil {
		return nil, false, err
	}
	rows, more := rowsOf(results[0], limit)
	return rows, more, nil
}

// query runs statements that read, or that may be run twice. If their
// connection turns out to be broken, as all of the pool are after the database
// was restarted, they are run again, at last on a fresh one.
func (e *engine) query(ctx context.Context, list ...statement) ([]result, error) {
	results, conn, err := e.onAny(ctx, list)
	if err != nil {
		return nil, err
	}
	e.release(conn)
	return results, nil
}

// transact runs statements that may be run twice in a transaction of their own,
// in one message. Its bounds are those of every transaction here, whatever the
// role's are, so that one whose caller has gone does not happen much later.
func (e *engine) transact(ctx context.Context, list ...statement) ([]result, error) {
	all := append(e.sql.opening(), list...)
	results, err := e.query(ctx, append(all, stmt("COMMIT"))...)
	if err != nil {
		return nil, err
	}
	return results[len(all)-len(list) : len(all)], nil
}

// onAny runs statements as query does, and returns the connection they ran on,
// which the caller gives back to release.
func (e *engine) onAny(ctx context.Context, list []statement) ([]result, *pgxpool.Conn, error) {
	for tries := e.target.pool.MaxConns + 1; ; tries-- {
		conn, err := e.acquire(ctx)
		if err != nil {
			return nil, nil, err
		}
		data := conn.Conn().PgConn().CustomData()
		_, used := data["used"]
		data["used"] = true
		results, broken, err := e.run(ctx, conn, list)
		if err == nil {
			if !used {
				e.cond.joined()
			}
			return results, conn, nil
		}
		e.release(conn)
		if !broken || !used || tries <= 0 {
			return nil, nil, err
		}
	}
}

// run runs statements on a connection. broken says that they failed because the
// connection was.
func (e *engine) run(ctx context.Context, conn *pgxpool.Conn, list []statement) (results []result, broken bool, err error) {
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	results, err = send(limited, conn.Conn().PgConn(), list)
	if err == nil {
		// Nothing is said of the database as a whole: a connection of old works
		// on where no new one is let in.
		return results, false, nil
	}
	closed := conn.Conn().IsClosed()
	if closed {
		e.cond.suspect()
	}
	if ended := ctx.Err(); ended != nil {
		return nil, false, ended
	}
	f := newFailure(err)
	if f.wrongTables() {
		e.cond.suspect()
	}
	return nil, closed && !timeout(err), f
}

// acquire returns a connection of the pool.
func (e *engine) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	open, err := e.cond.enter()
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, acquireLimit)
	defer cancel()
	defer context.AfterFunc(open, cancel)()
	conn, err := e.pool.Acquire(limited)
	if err == nil {
		return conn, nil
	}
	if ended := ctx.Err(); ended != nil {
		e.cond.suspect()
		return nil, ended
	}
	if _, refusal := e.cond.enter(); refusal != nil {
		return nil, refusal
	}
	connect := new(pgconn.ConnectError)
	if !errors.As(err, &connect) {
		e.cond.suspect()
		return nil, fmt.Errorf("no connection to PostgreSQL got free within %v: all %d are in use", acquireLimit, e.target.pool.MaxConns)
	}
	f := newFailure(err)
	if f.code != tooManyConnections {
		e.cond.lose(f, time.Since(begun) > slow)
	}
	return nil, f
}

// release gives a connection back. A broken one leaves the pool now, and not
// when the driver has tried for long enough to tell the server.
func (e *engine) release(conn *pgxpool.Conn) {
	if !conn.Conn().IsClosed() {
		conn.Release()
		return
	}
	_ = conn.Hijack().PgConn().Conn().Close() // it is broken
}
