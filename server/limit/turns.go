package limit

import (
	"context"
	"errors"
	"sync"
	"time"
)

// turns bounds the fetches that each caller has under way. A fetch that hangs
// takes seconds, in which a caller within its rate could begin as many as there
// may be in all.
type turns struct {
	each int

	mu      sync.Mutex
	callers map[string]*callerTurns // guarded by mu; those with a fetch under way or waiting
}

type callerTurns struct {
	places chan struct{}
	users  int // guarded by turns.mu
}

// errNoTurn: there was no place for as long as one may wait.
var errNoTurn = errors.New("no place")

// enter waits for a place of the caller, and returns how to leave it. Errors:
// errNoTurn, or the context's.
func (t *turns) enter(ctx context.Context, caller string) (leave func(), err error) {
	of := t.join(caller)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case of.places <- struct{}{}:
		return func() {
			<-of.places
			t.part(caller, of)
		}, nil
	case <-timer.C:
		err = errNoTurn
	case <-ctx.Done():
		err = ctx.Err()
	}
	t.part(caller, of)
	return nil, err
}

func (t *turns) join(caller string) *callerTurns {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.callers[caller]
	if of == nil {
		of = &callerTurns{places: make(chan struct{}, t.each)}
		t.callers[caller] = of
	}
	of.users++
	return of
}

func (t *turns) part(caller string, of *callerTurns) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if of.users--; of.users == 0 {
		delete(t.callers, caller)
	}
}
