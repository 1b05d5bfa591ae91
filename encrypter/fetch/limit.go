package fetch

import (
	"context"
	"sync"
)

// limiter bounds the requests under way, in all and to one host.
type limiter struct {
	all     chan struct{}
	perHost int

	mu    sync.Mutex
	hosts map[string]*hostSlots // guarded by mu; hosts with a request under way or waiting
}

type hostSlots struct {
	slots chan struct{}
	users int // guarded by limiter.mu
}

func newLimiter(all, perHost int) *limiter {
	return &limiter{
		all:     make(chan struct{}, all),
		perHost: perHost,
		hosts:   make(map[string]*hostSlots),
	}
}

// acquire waits for a turn and returns what ends it, or ctx's error. The
// host's turn comes first: those who wait for a slow host must not hold a
// place that a request to another could use.
func (l *limiter) acquire(ctx context.Context, host string) (release func(), err error) {
	h := l.enter(host)
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		l.leave(host, h)
		return nil, ctx.Err()
	}
	select {
	case l.all <- struct{}{}:
	case <-ctx.Done():
		<-h.slots
		l.leave(host, h)
		return nil, ctx.Err()
	}
	return func() {
		<-l.all
		<-h.slots
		l.leave(host, h)
	}, nil
}

func (l *limiter) enter(host string) *hostSlots {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hosts[host]
	if h == nil {
		h = &hostSlots{slots: make(chan struct{}, l.perHost)}
		l.hosts[host] = h
	}
	h.users++
	return h
}

func (l *limiter) leave(host string, h *hostSlots) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(l.hosts, host)
	}
}
