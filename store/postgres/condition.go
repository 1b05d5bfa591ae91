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
	hope chan struct{} // with room for one: it need not pause, a new connection works

	well atomic.Bool // nothing is wrong

	mu      sync.Mutex
	refusal error           // what calls answer at once; nil: they try; guarded by mu
	open    context.Context // ends when refusal is set; guarded by mu
	shut    context.CancelFunc
	right   bool      // the tables were seen to be right, and not to be wrong since; guarded by mu
	met     bool      // the tables were seen, right or wrong; guarded by mu
	lost    bool      // as the log says; guarded by mu
	barred  bool      // the log says that the database does not let us in; guarded by mu
	halted  bool      // as the log says: nothing can be written; guarded by mu
	unfit   string    // what the log says is wrong with the tables; guarded by mu
	since   time.Time // of lost or unfit; guarded by mu
	stopped time.Time // of halted; guarded by mu
	closed  bool      // guarded by mu
}

func newCondition(log *slog.Logger) *condition {
	c := &condition{log: log, kick: make(chan struct{}, 1), hope: make(chan struct{}, 1)}
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

// joined: a new connection was let in and answered. That the database is back is
// for the watcher to say, now.
func (c *condition) joined() {
	if c.well.Load() {
		return
	}
	select {
	case c.hope <- struct{}{}:
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
	c.tell(err)
	c.suspect()
}

// barredAdvice is for who is not let in.
const barredAdvice = "correct the DSN file and restart, or have the database let the role in"

// tell writes down that the database cannot be reached, and once more if it
// turns out to be there and not to let us in. c.mu is held.
func (c *condition) tell(err error) {
	attrs := []any{"error", err}
	f := new(failure)
	refused := errors.As(err, &f) && f.refused()
	if refused {
		attrs = append(attrs, "advice", barredAdvice)
	}
	switch {
	case !c.lost && c.met:
		c.log.Error("PostgreSQL is lost; what is in memory is served, other reads and all writes fail until it is back", attrs...)
	case !c.lost:
		c.log.Error("PostgreSQL cannot be used yet; all that needs it fails until it can be", attrs...)
	case refused && !c.barred:
		c.log.Error("PostgreSQL does not let the service in", attrs...)
	}
	if !c.lost {
		c.lost, c.since = true, time.Now()
	}
	c.barred = c.barred || refused
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
	c.met = true
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
	c.met = true
	c.well.Store(true)
}

// halt: the row of the feed is gone (errNoFeed). What reads goes on.
func (c *condition) halt(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && !c.halted {
		c.halted, c.stopped = true, time.Now()
		c.log.Error("nothing can be written to PostgreSQL, and no change is heard of", "error", err)
	}
}

// resume: the row of the feed is there.
func (c *condition) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.halted {
		c.halted = false
		c.log.Info("PostgreSQL can be written to again", "after", time.Since(c.stopped).Round(time.Millisecond))
	}
}

// there: the database answered, if only that it has no connection to give.
func (c *condition) there() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusal == nil {
		c.found()
		c.well.Store(true)
	}
}

// found says that the database is back. Only what the watcher sees counts: while
// new connections are refused, and those of old work on, callers see both all
// the time. c.mu is held.
func (c *condition) found() {
	if !c.lost {
		return
	}
	c.lost, c.barred = false, false
	what := "PostgreSQL is back"
	if !c.met {
		what = "PostgreSQL is reached"
	}
	c.log.Info(what, "after", time.Since(c.since).Round(time.Millisecond))
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
	// let us in: each try is a failed login. It also follows when nothing can be
	// written.
	recheck = time.Second
	// slow is a failure that not everybody should wait for.
	slow = 500 * time.Millisecond
)

// watch looks at the database when somebody suspects it, and again and again
// while something is wrong, until ctx ends. After each look it pauses: a port
// that refuses answers ten thousand times a second. It does not if somebody else
// has got in.
func (e *engine) watch(ctx context.Context) {
	for {
		if e.cond.well.Load() && e.pause == calm {
			select {
			case <-ctx.Done():
				return
			case <-e.cond.kick:
			}
		}
		e.look(ctx)
		pause, hope := e.pause, e.cond.hope
		if e.cond.well.Load() {
			hope = nil
		} else if pause == calm {
			pause = retry // lost while it was looked at
		}
		select {
		case <-ctx.Done():
			return
		case <-hope:
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
		e.pause = calm
		e.cond.fit()
		e.cond.resume()
	case errors.Is(err, errNoFeed) && e.start.Load() != nil:
		e.pause = recheck
		e.cond.fit()
		e.cond.halt(err)
	case !errors.As(err, &f):
		e.pause = recheck
		e.cond.misfit(err)
	case f.code == tooManyConnections && e.cond.seen():
		// It is there; the connections of the pool may well do.
		e.pause = calm
		e.cond.there()
	default:
		if f.refused() {
			e.pause = recheck
		}
		e.cond.lose(err, time.Since(begun) > slow)
	}
}
