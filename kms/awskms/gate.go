package awskms

import (
	"fmt"
	"sync"

	"github.com/bulla-project/bulla/kms"
)

var errClosed = fmt.Errorf("%w: the AWS KMS backend was closed", kms.ErrUnavailable)

// gate counts the calls inside it, until it is closed. A read-write lock would
// do the same, but make calls that come while the gate closes wait, whatever
// their context says.
type gate struct {
	mu     sync.Mutex // guards closed, and inside against Add after Wait
	closed bool
	inside sync.WaitGroup
}

// enter lets a call in, which calls leave when it has ended.
func (g *gate) enter() (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errClosed
	}
	g.inside.Add(1)
	return g.inside.Done, nil
}

// close lets nobody in any more and returns when everybody has left.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}
