package keycache

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// Feed tells how far a replica has heard what others wrote: a store that several
// replicas share.
type Feed interface {
	// Current is when all that was acknowledged before had been told to the
	// Cache; zero if that was never so. It is asked for each token, and neither
	// waits nor allocates.
	Current() time.Time
}

var _ registry.Follower = (*Cache)(nil)

// behindAfter is the lag of the feed above which replies say so. It is more than
// the feed takes between two looks when all is well.
const behindAfter = 2 * time.Second

// behind reports whether what is in memory may be out of date, as the feed lags
// or what it has told of could not be read yet. It is registry.ErrUnavailable if
// that goes on for longer than may be.
func (c *Cache) behind() (bool, error) {
	if c.cfg.Feed == nil {
		return false, nil
	}
	current := c.cfg.Feed.Current()
	if current.Before(c.made) {
		current = c.made // nothing in memory is older
	}
	lag := max(time.Since(current), c.sources.lag())
	if lag > c.cfg.MaxLag {
		return true, errLag
	}
	return lag > behindAfter, nil
}

var errLag = fmt.Errorf("%w: this replica has not heard of changes for too long", registry.ErrUnavailable)

// RegistryStale reports whether registrations may have changed without this
// replica having heard of it, as for more than 2 seconds it has not been told
// what others wrote. It is what Recipient.RegistryStale says, for callers of
// Setting.
func (c *Cache) RegistryStale() bool {
	stale, _ := c.behind()
	return stale
}

// ClientChanged forgets what is in memory of a client (registry.Follower):
// whoever asks after it has returned gets the new registration, for every kind
// of token.
func (c *Cache) ClientChanged(issuer, clientID string) { c.Invalidate(issuer, clientID) }

// KeySetChanged has the stored set of a URL looked at, if there is one in memory
// (registry.Follower). However often it is called meanwhile, one look follows,
// and Run makes a few at once at most. Whoever asks after that gets what it has
// found.
func (c *Cache) KeySetChanged(uri string) {
	slot := c.changes.of(clientKey{issuer: uri})
	slot.mu.Lock()
	slot.count++ // one that is being loaded now may be out of date
	slot.mu.Unlock()
	c.sources.lookAtURI(uri)
}

// Reset forgets all clients and unknown ones and has all stored sets looked at
// (registry.Follower). Sets in memory that are more recent than the stored ones
// stay: they are what their hosts have said.
func (c *Cache) Reset() {
	for i := range c.changes.slots {
		slot := &c.changes.slots[i]
		slot.mu.Lock()
		slot.count++ // what is being loaded now is not kept
		slot.mu.Unlock()
	}
	c.clientLoads.forgetAll()
	c.clients.InvalidateAll()
	c.refused.InvalidateAll()
	c.facts.InvalidateAll()
	c.sources.distrustAll()
}

// lookers is how many stored sets are looked at at once.
const lookers = 4

// follow looks at stored sets that have changed, until ctx ends.
func (c *Cache) follow(ctx context.Context, running *sync.WaitGroup) {
	for range lookers {
		running.Go(func() {
			for {
				src, err := c.sources.nextLook(ctx)
				if err != nil {
					return // the end of ctx is how Run ends
				}
				c.lookNow(ctx, src)
			}
		})
	}
}

// lookNow looks at the stored set of src.
func (c *Cache) lookNow(ctx context.Context, src *source) {
	f, mine := c.joinOrStart(src, lookUp, always)
	switch {
	case f == nil:
		return
	case !mine:
		c.sources.lookAt(src) // when that has ended, which may have read before the change
		return
	}
	err := f.wait(ctx)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		c.sources.looked(src)
		return
	}
	// The store is gone. All others that wait would find the same.
	timer := time.NewTimer(time.Second + jitter(time.Second))
	defer timer.Stop()
	select {
	case <-timer.C:
		c.sources.lookAt(src)
	case <-ctx.Done():
	}
}
