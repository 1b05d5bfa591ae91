package pkcs11

import (
	"context"
	"sync"
	"time"
)

// callContext is the context of a call that came to a worker process. It makes
// a timer only for those who wait for it, which a call that gets a session at
// once never does.
//
// What is different from other contexts is that nobody in this process is held
// up when the call outlives it: its caller waits in another process, by a
// context of his own. So such a call need not run aside.
type callContext struct {
	deadline time.Time // zero: none

	mu    sync.Mutex
	done  chan struct{} // guarded by mu: nil until somebody waits
	timer *time.Timer   // guarded by mu: nil until somebody waits
	err   error         // guarded by mu: why it ended
}

var _ context.Context = (*callContext)(nil)

func newCallContext(left time.Duration) *callContext {
	c := &callContext{}
	if left > 0 {
		c.deadline = time.Now().Add(left)
	}
	return c
}

// isCallContext reports whether ctx is a callContext itself. One that was made
// from it is like any other.
func isCallContext(ctx context.Context) bool {
	_, is := ctx.(*callContext)
	return is
}

func (c *callContext) Deadline() (deadline time.Time, ok bool) {
	return c.deadline, !c.deadline.IsZero()
}

func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		switch {
		case c.err != nil:
			close(c.done)
		case !c.deadline.IsZero():
			c.timer = time.AfterFunc(time.Until(c.deadline), func() { c.end(context.DeadlineExceeded) })
		}
	}
	return c.done
}

func (c *callContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		c.finish(context.DeadlineExceeded)
	}
	return c.err
}

func (c *callContext) Value(any) any { return nil }

// end ends the context for the given reason, unless it has ended.
func (c *callContext) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.finish(why)
	}
}

// finish is end for the holder of mu.
func (c *callContext) finish(why error) {
	c.err = why
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.done != nil {
		close(c.done)
	}
}
