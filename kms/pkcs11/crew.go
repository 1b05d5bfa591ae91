package pkcs11

import (
	"context"
	"sync"
)

// maxIdle is how many goroutines of a crew are kept for the next calls.
const maxIdle = 64

// crew runs calls into the module on goroutines of its own, so that a caller
// whose time is over can go while the module still works. The goroutines are
// kept: a call needs more stack than a new one has, and to let it grow each
// time costs more than all else there is to do. The zero value is ready.
type crew struct {
	mu     sync.Mutex
	idle   []chan func() // guarded by mu: each of one goroutine that waits for work
	closed bool          // guarded by mu
}

// run has f run.
func (c *crew) run(f func()) {
	c.mu.Lock()
	n := len(c.idle)
	if n == 0 {
		c.mu.Unlock()
		go c.work(f)
		return
	}
	work := c.idle[n-1] // the last one to work, whose memory is still at hand
	c.idle = c.idle[:n-1]
	c.mu.Unlock()
	work <- f // has room for it
}

// work runs f, and what comes after it.
func (c *crew) work(f func()) {
	next := make(chan func(), 1)
	for f != nil {
		f()
		c.mu.Lock()
		if c.closed || len(c.idle) == maxIdle {
			c.mu.Unlock()
			return
		}
		c.idle = append(c.idle, next)
		c.mu.Unlock()
		f = <-next // nil when the crew is closed
	}
}

// close lets the goroutines go that have nothing to do, and each of the others
// when its call comes out of the module.
func (c *crew) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, work := range c.idle {
		close(work)
	}
	c.idle = nil
}

// result of a call that ran aside.
type result[T any] struct {
	value T
	err   error
}

// aside has f run by start and returns its result, or the context's error if
// that ends first; f then goes on by itself, because nothing can be called back
// out of a module. A context that cannot end costs nothing, and nor does that of
// a call that came to a worker process, whose caller is not held up by it.
//
// What it costs else is two changes of goroutine. Where all processors are busy
// that is one or two percent of a signature with ES256 on SoftHSM. Where one is
// idle, the scheduler of Go wakes it at each change to see whether it finds
// work, and that is 10 to 20 % with a single caller on a virtual machine of two
// processors. Nothing in Go makes another goroutine ready without that: a
// goroutine for each call, one that waits on a channel, and one for each
// session were all measured to cost the same.
func aside[T any](ctx context.Context, start func(func()), f func() (T, error)) (T, error) {
	if isCallContext(ctx) || ctx.Done() == nil {
		return f()
	}
	done := make(chan result[T], 1)
	start(func() {
		v, err := f()
		done <- result[T]{v, err}
	})
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// alone starts f on a goroutine of its own, for what is not done often.
func alone(f func()) { go f() }
