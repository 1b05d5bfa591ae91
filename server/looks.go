package server

import (
	"context"
	"sync"
	"time"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// lookShared is for how long after it began a look is shared with those who come
// for it once it is over.
const lookShared = 100 * time.Millisecond

// looks are how clients stand as those who watch them have found: what several
// are told of is read once, however many they are. A look is shared only with
// those who were told of the client's last change before it began, so that
// nobody gets what is older than what he was told of.
//
// The zero value is ready to use.
type looks struct {
	mu   sync.Mutex        // guards what follows
	last map[lookAt]*aLook // of each client: under way, or begun less than lookShared ago
}

// lookAt names what is looked at.
type lookAt struct{ issuer, clientID string }

// aLook is one look. It is made by the first who needs it, on his goroutine.
type aLook struct {
	told uint64        // how many changes had been told when it began
	done chan struct{} // closed when it is over; what follows is not to be read before
	res  *bullav1.WatchClientKeysResponse
	err  error
	left bool // whoever made it has left it before its end: it says nothing
}

// share returns what a look has found that began when at least so many changes
// had been told: another's, or its own. now is how many have been told. What is
// returned is not to be changed.
func (l *looks) share(ctx context.Context, at lookAt, told uint64, now func() uint64, look func(context.Context) (*bullav1.WatchClientKeysResponse, error)) (*bullav1.WatchClientKeysResponse, error) {
	for {
		one, mine := l.join(at, told, now)
		if mine {
			l.make(ctx, at, one, look)
			return one.res, one.err
		}
		select {
		case <-one.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if !one.left {
			return one.res, one.err
		}
	}
}

// join returns a look that began late enough, or a new one, which is the
// caller's to make.
func (l *looks) join(at lookAt, told uint64, now func() uint64) (one *aLook, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one = l.last[at]; one != nil && one.told >= told {
		return one, false
	}
	one = &aLook{told: now(), done: make(chan struct{}), left: true}
	if l.last == nil {
		l.last = make(map[lookAt]*aLook)
	}
	l.last[at] = one
	return one, true
}

// make looks. A failure is shared with those who wait for it, and no others.
func (l *looks) make(ctx context.Context, at lookAt, one *aLook, look func(context.Context) (*bullav1.WatchClientKeysResponse, error)) {
	began := time.Now()
	defer func() {
		rest := lookShared - time.Since(began)
		if one.left || one.err != nil || rest <= 0 {
			l.forget(at, one)
		} else {
			time.AfterFunc(rest, func() { l.forget(at, one) })
		}
		close(one.done)
	}()
	one.res, one.err = look(ctx)
	one.left = one.err != nil && ctx.Err() != nil
}

// forget forgets a look, unless there is a later one.
func (l *looks) forget(at lookAt, one *aLook) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last[at] == one {
		delete(l.last, at)
	}
}
