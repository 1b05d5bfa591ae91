package pkcs11

import (
	"context"
	"sync"
	"time"
)

// gate stands before a module: any number of calls may be inside, or one
// lifecycle call (C_Initialize, C_Finalize, C_Logout) that must be alone.
type gate struct {
	mu      sync.Mutex
	inside  int           // guarded by mu: calls inside the module
	closed  chan struct{} // guarded by mu: not nil while parked; closed when the gate opens again
	drained chan struct{} // guarded by mu: closed when the last call comes out while parked
}

// enter waits while the gate is shut, and returns the context's error if that
// ends first. After a nil error the caller must call leave.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.closed == nil {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		wait := g.closed
		g.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.drained != nil {
		close(g.drained)
		g.drained = nil
	}
}

// park shuts the gate and waits until nobody is inside, but no longer than
// limit. If it reports true the caller is alone and must call reopen; if not,
// the gate is open as before. Only one caller may park at a time.
func (g *gate) park(limit time.Duration) bool {
	g.mu.Lock()
	g.closed = make(chan struct{})
	if g.inside == 0 {
		g.mu.Unlock()
		return true
	}
	drained := make(chan struct{})
	g.drained = drained
	g.mu.Unlock()

	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-drained:
		return true
	case <-timer.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside == 0 { // it drained just now
		return true
	}
	g.drained = nil
	close(g.closed)
	g.closed = nil
	return false
}

// reopen ends a successful park.
func (g *gate) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.closed)
	g.closed = nil
}
