package keycache

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// schedule is a queue of URLs by the time they are due.
type schedule struct {
	mu    sync.Mutex // guards queue
	queue dueQueue
	wake  chan struct{} // holds a token when the head of the queue may have changed
}

type due struct {
	at  time.Time
	uri string
}

func newSchedule() *schedule { return &schedule{wake: make(chan struct{}, 1)} }

// add queues a URL. A URL may be queued more than once; whoever takes it looks
// whether it is really due.
func (s *schedule) add(uri string, at time.Time) {
	s.mu.Lock()
	heap.Push(&s.queue, due{at, uri})
	first := s.queue[0].uri == uri
	s.mu.Unlock()
	if first {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// next waits for the first URL that is due.
func (s *schedule) next(ctx context.Context) (string, error) {
	for {
		s.mu.Lock()
		wait := time.Hour
		if len(s.queue) > 0 {
			if wait = time.Until(s.queue[0].at); wait <= 0 {
				d := heap.Pop(&s.queue).(due)
				s.mu.Unlock()
				return d.uri, nil
			}
		}
		s.mu.Unlock()

		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return "", ctx.Err()
		}
	}
}

type dueQueue []due

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q dueQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *dueQueue) Push(x any)        { *q = append(*q, x.(due)) }
func (q *dueQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// Run refreshes the key sets in memory before they stop being fresh, until ctx
// ends. It returns nil then.
func (c *Cache) Run(ctx context.Context) error {
	var fetches errgroup.Group
	fetches.SetLimit(c.cfg.Fetchers)
	for {
		uri, err := c.refreshes.next(ctx)
		if err != nil {
			break
		}
		fetches.Go(func() error {
			c.refreshDue(ctx, uri)
			return nil
		})
	}
	_ = fetches.Wait() // refreshDue reports its own failures
	return nil
}

// refreshDue fetches a set if it is still in memory, in use, and due.
func (c *Cache) refreshDue(ctx context.Context, uri string) {
	entry, ok := c.sources.GetEntryQuietly(uri)
	if !ok {
		return
	}
	src, now := entry.Value, time.Now()
	if now.Sub(src.usedAt()) > c.cfg.IdleAfter {
		c.sources.Invalidate(uri)
		return
	}
	if at := src.dueAt(); at.After(now) {
		return // queued again when it was put off
	}
	_, _ = c.fetch(ctx, src, now) // on record in the source's state and the log
}
