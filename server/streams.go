package server

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bulla-project/bulla/server/limit"
)

// errStopping: this replica takes no more messages. The caller goes on at
// another one, with what was not answered.
var errStopping = errors.New("stopping")

// maxStreams is how many streams one caller may have open: each holds some
// goroutines and a few messages, and one stream is enough for a process.
const maxStreams = 64

// streams are the streams of tokens that are open.
type streams struct {
	// stopping is closed by close.
	stopping chan struct{}

	mu      sync.Mutex     // guards what follows
	callers map[string]int // streams of each
	closed  bool
}

func newStreams() *streams {
	return &streams{stopping: make(chan struct{}), callers: make(map[string]int)}
}

// enter counts a stream of the caller; leave is called at its end. Errors:
// errStopping, limit.ErrExceeded.
func (s *streams) enter(caller string) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errStopping
	case s.callers[caller] >= maxStreams:
		return nil, &limit.ExceededError{
			What:       fmt.Sprintf("a caller may have %d streams of tokens open: use one for many tokens", maxStreams),
			RetryAfter: time.Second,
		}
	}
	s.callers[caller]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.callers[caller]--; s.callers[caller] == 0 {
			delete(s.callers, caller)
		}
	}, nil
}

// close asks all streams to end, and lets none begin. It may be called again.
func (s *streams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.stopping)
	}
}
