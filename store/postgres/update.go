package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/bulla-project/bulla/store/records"
)

// Update implements records.Engine.
//
// The transaction begins with the first statement of fn, in the same message:
// it locks the row of the feed, behind which all Updates of all processes
// queue. (What fn does before that, it does beside other processes, and can know
// nothing of it.) What fn writes waits in memory, and goes with COMMIT. So the lock is
// held for as many round trips as fn reads after its first, and one.
func (e *engine) Update(ctx context.Context, fn func(records.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	leave, err := e.queue(ctx)
	if err != nil {
		return err
	}
	defer leave()
	t := &update{e: e, ctx: ctx}
	defer t.end()
	if err := fn(t); err != nil {
		return err
	}
	return t.commit()
}

// queue waits until nobody else of this process writes.
func (e *engine) queue(ctx context.Context) (leave func(), err error) {
	open, err := e.cond.enter()
	if err != nil {
		return nil, err
	}
	select {
	case e.writer <- struct{}{}:
		return func() { <-e.writer }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-open.Done():
		_, err := e.cond.enter()
		if err == nil {
			err = errors.New("PostgreSQL was lost for a moment; nothing was changed")
		}
		return nil, err
	}
}

// update is the transaction of an Update.
type update struct {
	e    *engine
	ctx  context.Context
	conn *pgxpool.Conn // nil before the first statement
	open bool          // it has begun and has not ended

	pending   []write
	announced bool  // a row that is announced was written
	err       error // what broke it; it cannot be committed any more
}

// write is a row that was written and not sent yet.
type write struct {
	table      records.Table
	key, value []byte // value is nil for a deletion
}

func (w write) statement(q *queries) statement {
	if w.value == nil {
		return stmt(q.del[w.table], w.key)
	}
	return stmt(q.put[w.table], w.key, w.value)
}

func (t *update) Put(table records.Table, key, value []byte) error {
	v := bytes.Clone(value)
	if v == nil {
		v = []byte{}
	}
	t.pending = append(t.pending, write{table, bytes.Clone(key), v})
	t.announced = t.announced || table.Announced()
	return t.err
}

func (t *update) Delete(table records.Table, key []byte) error {
	t.pending = append(t.pending, write{table, bytes.Clone(key), nil})
	return t.err
}

func (t *update) Get(table records.Table, key []byte) ([]byte, error) {
	if w := t.written(table, key); w != nil {
		return bytes.Clone(w.value), t.err
	}
	r, err := t.ask(t.e.sql.getHeld(table, key)...)
	if err != nil {
		return nil, err
	}
	return valueOf(r), nil
}

func (t *update) GetAll(table records.Table, keys [][]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	var list []statement
	at := map[int]int{} // index in keys, by that in list
	for i, key := range keys {
		if w := t.written(table, key); w != nil {
			values[i] = bytes.Clone(w.value)
			continue
		}
		list = append(list, t.e.sql.getHeld(table, key)...)
		at[len(list)-1] = i
	}
	if len(list) == 0 {
		return values, t.err
	}
	results, err := t.send(list...)
	if err != nil {
		return nil, err
	}
	results = results[len(results)-len(list):]
	for n, i := range at {
		values[i] = valueOf(results[n])
	}
	return values, nil
}

// written is what is to be written to a row, nil if that is nothing.
func (t *update) written(table records.Table, key []byte) *write {
	for i, w := range slices.Backward(t.pending) {
		if w.table == table && bytes.Equal(w.key, key) {
			return &t.pending[i]
		}
	}
	return nil
}

func (t *update) Scan(table records.Table, prefix, seek []byte, limit int) ([]records.Row, bool, error) {
	r, err := t.ask(t.e.sql.scanRows(table, prefix, seek, limit))
	if err != nil {
		return nil, false, err
	}
	rows, more := rowsOf(r, limit)
	return rows, more, nil
}

// ask returns what the last of some statements returned.
func (t *update) ask(list ...statement) (result, error) {
	results, err := t.send(list...)
	if err != nil {
		return result{}, err
	}
	return results[len(results)-1], nil
}

// send sends statements, after all that is to be written before them.
func (t *update) send(more ...statement) ([]result, error) {
	if t.err != nil {
		return nil, t.err
	}
	var list []statement
	for _, w := range t.pending {
		list = append(list, w.statement(&t.e.sql))
	}
	t.pending = nil
	list = append(list, more...)

	var results []result
	if t.conn == nil {
		begin := append(t.e.sql.opening(), stmt(t.e.sql.lock))
		// Nothing of this lasts if the connection breaks, so it may be sent again.
		results, t.conn, t.err = t.e.onAny(t.ctx, append(begin, list...))
		t.open = t.err == nil
		if t.err == nil {
			t.err = t.e.locked(results[len(begin)-1])
		}
	} else {
		results, _, t.err = t.e.run(t.ctx, t.conn, list)
	}
	f := new(failure)
	if errors.As(t.err, &f) && f.code == lockNotAvailable {
		t.err = fmt.Errorf("others have been writing for more than %v; nothing was changed: %w", lockLimit, f)
	}
	return results, t.err
}

// locked reads what the lock returned, and makes sure that the tables are still
// those of this version before anything is written.
func (e *engine) locked(r result) error {
	if len(r.rows) == 0 {
		// The watcher finds out which row is gone. Without that of the feed all
		// can be read.
		e.cond.suspect()
		return errNoFeed
	}
	v, err := versionOf(r)
	if err == nil {
		err = v.problem(e.list)
	}
	if err != nil {
		e.cond.misfit(err)
		e.cond.suspect()
	}
	return err
}

// commit makes durable what was written.
func (t *update) commit() error {
	if t.err != nil {
		return t.err
	}
	if t.conn == nil {
		if len(t.pending) == 0 {
			return nil
		}
		if _, err := t.send(); err != nil { // the lock before what counts on it
			return err
		}
	}
	if err := t.ctx.Err(); err != nil {
		return err
	}
	var list []statement
	if t.announced {
		list = append(list, stmt(t.e.sql.move, t.e.sql.schema))
	}
	results, err := t.send(append(list, stmt("COMMIT"))...)
	f := new(failure)
	switch {
	case err == nil:
	case errors.As(err, &f) && !t.conn.Conn().IsClosed():
		return fmt.Errorf("nothing was changed: %w", err)
	case errors.As(err, &f):
		return fmt.Errorf("whether the change was made is not known: %w", err)
	default:
		return err
	}
	t.open = false
	if tag := results[len(results)-1].tag; tag != "COMMIT" {
		return fmt.Errorf("PostgreSQL answered COMMIT by %s; nothing was changed", tag)
	}
	return nil
}

// end lets go of the connection, and of the lock if there was no commit.
func (t *update) end() {
	if t.conn == nil {
		return
	}
	if t.open && !t.conn.Conn().IsClosed() {
		// The caller's context may have ended. If this fails, the connection
		// is not used any more, and with it ends the transaction.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), time.Second)
		defer cancel()
		_, _ = send(ctx, t.conn.Conn().PgConn(), []statement{stmt("ROLLBACK")})
	}
	t.e.release(t.conn)
}
