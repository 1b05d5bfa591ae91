package keycache

import (
	"context"
	"sync"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
)

// Run refreshes the key sets in memory before they stop being fresh, tries again
// those that could not be fetched, and takes over what other replicas have
// stored, until ctx ends or the cache is
// closed. It returns nil then. It is called once.
func (c *Cache) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()

	var running sync.WaitGroup
	defer running.Wait()
	c.follow(ctx, &running)
	turns := make(chan struct{}, c.cfg.Fetchers)
	busy := &lanes{perTarget: max(c.cfg.Fetchers/4, 1), allFailing: max(c.cfg.Fetchers/2, 1), targets: make(map[string]int)}
	for {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		src, err := c.sources.next(ctx)
		if err != nil {
			return nil // the end of ctx is how Run ends
		}
		target, failing := fetch.Target(src.uri), src.state.Load().failures() > 0
		if !busy.enter(target, failing) {
			c.sources.put(src, time.Now().Add(putOff(failing)))
			<-turns
			continue
		}
		running.Go(func() {
			c.refreshDue(ctx, src)
			busy.leave(target, failing)
			<-turns
		})
	}
}

// putOff is how long a refresh that finds its lane full waits for its next
// try. One that failed before has time: it is paused for longer anyway.
func putOff(failing bool) time.Duration {
	if failing {
		return firstRetry + jitter(firstRetry)
	}
	return time.Second + jitter(time.Second)
}

// refreshDue fetches a set that is due, or forgets it if it is not used or not
// registered any more.
func (c *Cache) refreshDue(ctx context.Context, src *source) {
	now := time.Now()
	if src.idle(now) > c.cfg.IdleAfter || c.cfg.Leases == nil && !c.registered(ctx, src) {
		c.sources.drop(src)
		c.balance()
		return
	}
	c.notice(src)
	if state := src.state.Load(); state.failures() > 0 && !state.mayFetch(now) {
		// It has become stale, or has expired, and is to be left alone still.
		c.sources.put(src, c.wakeFor(state, c.dueAfter(state, false), now))
		return
	}
	f := c.join(src, whenDue, func() bool {
		return src.due <= time.Now().UnixNano() // a fetch may have ended since it was taken from the queue
	})
	if f == nil {
		// There was one, or the clock was set back.
		c.sources.put(src, c.sources.dueAt(src))
		return
	}
	_ = f.wait(ctx) // on record in the source's state and the log
}

// registered reports whether a live registration names the URL of src, as far
// as can be known of a store of our own: it keeps nothing of a URL that none
// names.
func (c *Cache) registered(ctx context.Context, src *source) bool {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	if _, err := c.cfg.Store.KeySet(ctx, src.uri); !isNotFound(err) {
		return true
	}
	// Perhaps it could not be stored when it was fetched, or what was stored has
	// been tampered with. If its document is not at hand, the fetch that follows
	// brings it.
	state := src.state.Load()
	if err := c.cfg.Store.PutKeySet(ctx, state.record(src.uri, src.textOf(state))); err != nil {
		return true
	}
	_, err := c.cfg.Store.KeySet(ctx, src.uri)
	return !isNotFound(err)
}

// lanes keep those refreshes that take long from filling all turns: those of
// one fetch.Target, of which all hosts may hang with many URLs, and those of URLs
// that failed the last time, wherever they are.
type lanes struct {
	perTarget  int // most refreshes of one target at once
	allFailing int // most refreshes at once that failed the last time

	mu      sync.Mutex
	targets map[string]int // refreshes under way by target; guarded by mu
	failing int            // those that failed the last time; guarded by mu
}

func (l *lanes) enter(target string, failing bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.targets[target] >= l.perTarget || failing && l.failing >= l.allFailing {
		return false
	}
	l.targets[target]++
	if failing {
		l.failing++
	}
	return true
}

func (l *lanes) leave(target string, failing bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.targets[target]--; l.targets[target] == 0 {
		delete(l.targets, target)
	}
	if failing {
		l.failing--
	}
}
