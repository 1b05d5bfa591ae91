package postgres

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// condition is what is known of the database as a whole, so that callers need
// not find it out one by one: whether it can be reached, and whether its tables
// are the right ones. Where a failure is quick, as when a port refuses, callers
// go on trying, so that none is refused once the database is back. Where it is
// slow, or the tables were never seen to be right, they are refused at once, and
// the watcher alone tries.
type condition struct {
	log  *slog.Logger
	kick chan struct{} // with room for one: the watcher is to look

	well atomic.Bool // nothing is wrong

	mu      sync.Mutex
	refusal error           // what calls answer at once; nil: they try; guarded by mu
	open    context.Context // ends when refusal is set; guarded by mu
	shut    context.CancelFunc
	right   bool      // the tables were seen to be right, and not to be wrong since; guarded by mu
	lost    bool      // as the log says; guarded by mu
	unfit   string    // what the log says is wrong with the tables; guarded by mu
	since   time.Time // of lost or unfit; guarded by mu
	closed  bool      // guarded by mu
}

func newCondition(log *slog.Logger) *condition {
	c := &condition{log: log, kick: make(chan struct{}, 1)}
	c.open, c.shut = context.WithCancel(context.Background())
	c.refuse(errors.New("PostgreSQL has not been reached yet"))
	return c
}

// refuse has calls answer err at once. c.mu is held, or c is new.
func (c *condition) refuse(err error) {
	c.refusal = err
	c.well.Store(false)
	c.shut()
}

// admit has calls try. c.mu is held.
func (c *condition) admit() {
	if c.refusal != nil {
		c.refusal = nil
		c.open, c.shut = context.WithCancel(context.Background())
	}
}

// enter returns a context that ends when there is no use in waiting any more.
func (c *condition) enter() (context.Context, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open, c.refusal
}

// suspect has the watcher look.
func (c *condition) suspect() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// lose: the database could not be reached. slow says that it took so long that
// not everybody should try.
func (c *condition) lose(err error, slow bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.well.Store(false)
	if slow || !c.right {
		c.refuse(err)
	}
	if !c.lost {
		c.lost, c.since = true, time.Now()
		c.log.Error("PostgreSQL is lost; what is in memory is served, other reads and all writes fail until it is back", "error", err)
	}
	c.suspect()
}

// misfit: the tables are not those that this version needs.
func (c *condition) misfit(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.right = false
	c.refuse(err)
	c.found()
	if c.unfit != err.Error() {
		c.unfit, c.since = err.Error(), time.Now()
		c.log.Error("PostgreSQL cannot be used; this is looked at again every second", "error", err)
	}
}

// fit: the database was reached, and its tables are right.
func (c *condition) fit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.right = true
	c.admit()
	if c.unfit != "" {
		c.log.Info("PostgreSQL can be used now", "after", time.Since(c.since).Round(time.Millisecond))
		c.unfit = ""
	}
	c.found()
	c.well.Store(true)
}

// worked: a call was answered.
func (c *condition) worked() {
	if c.well.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusal == nil {
		c.found()
		c.well.Store(true)
	}
}

// found says that the database is back. c.mu is held.
func (c *condition) found() {
	if c.lost {
		c.lost = false
		c.log.Info("PostgreSQL is back", "after", time.Since(c.since).Round(time.Millisecond))
	}
}

// seen reports whether the tables were seen to be right.
func (c *condition) seen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.right
}

// close has every call fail from now on.
func (c *condition) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.refuse(errClosed)
}

// Pauses of the watcher.
const (
	// calm follows when all was found well: suspicions come in crowds.
	calm = 250 * time.Millisecond
	// retry follows when the database could not be reached.
	retry = 100 * time.Millisecond
	// recheck follows when the tables were not right, or the database does not
	// let us in: each try is a failed login.
	recheck = time.Second
	// slow is a failure that not everybody should wait for.
	slow = 500 * time.Millisecond
)

// watch looks at the database when somebody suspects it, and again and again
// while something is wrong, until ctx ends. After each look it pauses: a port
// that refuses answers ten thousand times a second.
func (e *engine) watch(ctx context.Context) {
	for {
		if e.cond.well.Load() {
			select {
			case <-ctx.Done():
				return
			case <-e.cond.kick:
			}
		}
		e.look(ctx)
		pause := calm
		if !e.cond.well.Load() {
			pause = e.pause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// look finds out how the database is, on a connection of its own: those of the
// pool may all be broken or in use.
func (e *engine) look(ctx context.Context) {
	begun := time.Now()
	err := e.probe(ctx)
	if ctx.Err() != nil {
		return
	}
	f := new(failure)
	e.pause = retry
	switch {
	case err == nil:
		e.cond.fit()
	case !errors.As(err, &f):
		e.pause = recheck
		e.cond.misfit(err)
	case f.code == tooManyConnections && e.cond.seen():
		// It is there; the connections of the pool may well do.
		e.cond.worked()
	default:
		if f.refused() {
			e.pause = recheck
		}
		e.cond.lose(err, time.Since(begun) > slow)
	}
}
