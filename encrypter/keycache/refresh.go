package keycache

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Run refreshes the key sets in memory before they stop being fresh, and tries
// again those that could not be fetched, until ctx ends or the cache is
// closed. It returns nil then. It is called once.
func (c *Cache) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()

	var running sync.WaitGroup
	defer running.Wait()
	turns := make(chan struct{}, c.cfg.Fetchers)
	busy := &lanes{perHost: max(c.cfg.Fetchers/4, 1), allFailing: max(c.cfg.Fetchers/2, 1), hosts: make(map[string]int)}
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
		host, failing := hostOf(src.uri), src.state.Load().Failures > 0
		if !busy.enter(host, failing) {
			c.sources.put(src, time.Now().Add(putOff(failing)))
			<-turns
			continue
		}
		running.Go(func() {
			c.refreshDue(ctx, src)
			busy.leave(host, failing)
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
	if src.idle(time.Now()) > c.cfg.IdleAfter || !c.registered(ctx, src) {
		c.sources.drop(src)
		return
	}
	f := c.join(src, func() bool {
		return !src.due.After(time.Now()) // a fetch may have ended since it was taken from the queue
	})
	if f != nil {
		_, _ = f.wait(ctx) // on record in the source's state and the log
	}
}

// registered reports whether a live registration names the URL of src, as far
// as can be known: the store keeps nothing of a URL that none names.
func (c *Cache) registered(ctx context.Context, src *source) bool {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	if _, err := c.cfg.Store.KeySet(ctx, src.uri); !isNotFound(err) {
		return true
	}
	// Perhaps it could not be stored when it was fetched.
	if err := c.save(ctx, src); err != nil {
		return true
	}
	_, err := c.cfg.Store.KeySet(ctx, src.uri)
	return !isNotFound(err)
}

// lanes keep those refreshes that take long from filling all turns: those of
// one host, which may hang with many URLs, and those of URLs that failed the
// last time, wherever they are.
type lanes struct {
	perHost    int // most refreshes of one host at once
	allFailing int // most refreshes at once that failed the last time

	mu      sync.Mutex
	hosts   map[string]int // refreshes under way by host; guarded by mu
	failing int            // those that failed the last time; guarded by mu
}

func (l *lanes) enter(host string, failing bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts[host] >= l.perHost || failing && l.failing >= l.allFailing {
		return false
	}
	l.hosts[host]++
	if failing {
		l.failing++
	}
	return true
}

func (l *lanes) leave(host string, failing bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
	if failing {
		l.failing--
	}
}

// hostOf is the host of a URL, by which refreshes are kept apart.
func hostOf(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return uri
	}
	return strings.ToLower(u.Hostname())
}
