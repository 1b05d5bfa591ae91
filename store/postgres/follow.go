package postgres

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/bulla-project/bulla/store/records"
)

const (
	// pollEvery is how often the feed is read if nobody wakes it.
	pollEvery = 400 * time.Millisecond
	// quiet is how long the connection that listens may say nothing before it is
	// asked whether it is still there.
	quiet = 15 * time.Second
	// relisten is the longest pause before the next try to listen.
	relisten = 2 * time.Second
)

// position is a place in the feed: all up to number has been told. The mark is
// what the number was given to, "" if there is none.
type position struct {
	number int64
	mark   string
}

// Follow implements records.Shared. What is told is what the tables say has a
// higher number than the last; LISTEN only says when to look sooner.
func (e *engine) Follow(ctx context.Context, f records.Follower) error {
	if !e.follows.CompareAndSwap(false, true) {
		return errors.New("the feed is followed already")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.done, cancel)()
	wake := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { e.hear(ctx, wake) })

	var at *position
	for {
		begun := time.Now()
		if at == nil {
			// Where the feed was before any row could be read.
			if start := e.start.Load(); start != nil {
				copied := *start
				at = &copied
			}
		}
		if at != nil {
			// A failure has been logged as that of the database, and shows in
			// Current.
			if err := e.tell(ctx, at, f); err == nil {
				e.current.Store(&begun)
			}
		}
		select {
		case <-ctx.Done():
			if e.done.Err() != nil {
				return errClosed
			}
			return nil
		case <-wake:
		case <-time.After(time.Until(begun.Add(pollEvery))):
		}
	}
}

// Current implements records.Shared.
func (e *engine) Current() time.Time {
	if t := e.current.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// tell tells of all that has been committed, and moves at.
func (e *engine) tell(ctx context.Context, at *position, f records.Follower) error {
	results, err := e.query(ctx, stmt(e.sql.where, at.number))
	if err != nil {
		return err
	}
	row, err := results[0].one()
	if err != nil {
		e.cond.suspect() // the row of the feed is gone
		return err
	}
	now, mark := position{integer(row[0]), string(row[2])}, string(row[1])
	if now == *at {
		return nil
	}
	if now.number <= at.number || mark != at.mark {
		e.log.Warn("the store was put back to an earlier state, or was not heard of for very long; what is known of it is read anew", "was", at.number, "is", now.number)
		*at = now
		f.Reset()
		return nil
	}
	for last := at.number; last < now.number; {
		if last, err = e.tellPage(ctx, last, now.number, f); err != nil {
			return err
		}
	}
	*at = now
	return nil
}

// tellPage tells of the first rows that were changed after last, and returns the
// number that it has come to.
func (e *engine) tellPage(ctx context.Context, last, to int64, f records.Follower) (int64, error) {
	results, err := e.query(ctx, stmt(e.sql.page, last, to))
	if err != nil {
		return last, err
	}
	rows := results[0].rows
	for _, row := range rows {
		f.Changed(records.Table(row[0]), row[1])
	}
	if len(rows) < pageRows {
		return to, nil
	}
	return integer(rows[len(rows)-1][2]), nil
}

// whereOn reads the position of the feed on a connection.
func (e *engine) whereOn(ctx context.Context, conn *pgconn.PgConn) (*position, error) {
	results, err := send(ctx, conn, []statement{stmt(e.sql.where, int64(0))})
	if err != nil {
		return nil, told(ctx, err)
	}
	row, err := results[0].one()
	if err != nil {
		return nil, err
	}
	return &position{integer(row[0]), string(row[2])}, nil
}

// hear wakes the follower at each NOTIFY, on a connection of its own that it
// makes again whenever it is lost, until ctx ends.
func (e *engine) hear(ctx context.Context, wake chan<- struct{}) {
	deaf := false // as the log says
	for pause := retry; ctx.Err() == nil; pause = min(2*pause, relisten) {
		err := e.listenOnce(ctx, wake, func() {
			pause = retry
			if deaf {
				deaf = false
				e.log.Info("changes are heard of by LISTEN again")
			}
		})
		if ctx.Err() != nil {
			return
		}
		// If all is lost, there is a line already.
		if e.cond.well.Load() && pause >= relisten && !deaf {
			deaf = true
			e.log.Warn("changes are not heard of by LISTEN; they are looked for every moment instead", "error", err, "every", pollEvery)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// listenOnce listens until the connection is lost.
func (e *engine) listenOnce(ctx context.Context, wake chan<- struct{}, begun func()) error {
	limited, cancel := context.WithTimeout(ctx, acquireLimit)
	defer cancel()
	conn, err := pgx.ConnectConfig(limited, e.listen)
	if err != nil {
		return newFailure(err)
	}
	defer closeConn(conn)
	if _, err := conn.PgConn().Exec(limited, "LISTEN "+channel).ReadAll(); err != nil {
		return newFailure(err)
	}
	e.hears.Store(true)
	defer e.hears.Store(false)
	begun()
	for {
		// What was written before is found by the next look, and by one at once
		// what was written since the last.
		select {
		case wake <- struct{}{}:
		default:
		}
		if err := e.notified(ctx, conn); err != nil {
			return err
		}
	}
}

// notified returns when the feed has moved, or the connection is lost.
func (e *engine) notified(ctx context.Context, conn *pgx.Conn) error {
	for {
		n, err := wait(ctx, conn)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && (conn.IsClosed() || !timeout(err)):
			return newFailure(err)
		case err == nil && n.Payload == e.target.schema:
			return nil
		case err == nil:
			continue // another store of the database
		}
		if err := ping(ctx, conn); err != nil {
			return newFailure(err)
		}
	}
}

func wait(ctx context.Context, conn *pgx.Conn) (*pgconn.Notification, error) {
	ctx, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	return conn.WaitForNotification(ctx)
}

func ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return conn.Ping(ctx)
}
