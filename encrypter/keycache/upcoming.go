package keycache

import (
	"context"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// A registration may hold a change that takes effect at a time. A client is in
// memory together with what it becomes then, so that it changes over by the clock
// alone: nobody has to tell, and neither the store nor a host is asked at that
// moment, if Prepare was called in time.

// upcoming is what a client becomes.
type upcoming struct {
	at     time.Time // from when on
	client *client
	// refused is why the client is not served before, nil if it is: a
	// *registry.WaitingError.
	refused error
}

// newClientAndNext is newClient, with what the client becomes if a change waits.
func (c *Cache) newClientAndNext(reg *registry.Registration) *client {
	cl := c.newClient(reg)
	c.doubt(reg.Source.JWKSURI, reg.UpdatedAt)
	if next := reg.Successor(); next != nil {
		cl.next = &upcoming{at: reg.Pending.EffectiveAt, client: c.newClient(next), refused: reg.Missing()}
		c.doubt(next.Source.JWKSURI, reg.UpdatedAt) // when it came to be named
	}
	return cl
}

// inForce is a client as it stands now, or why it is not served. It neither waits
// nor allocates for one of which no change waits.
func (c *Cache) inForce(key clientKey, cl *client) (*client, error) {
	next := cl.next
	switch {
	case next == nil:
		return cl, nil
	case time.Now().Before(next.at):
		if next.refused != nil {
			return nil, next.refused
		}
		return cl, nil
	}
	c.clients.ComputeIfPresent(key, func(there *client) (*client, otter.ComputeOp) {
		if there != cl {
			return there, otter.CancelOp // it was changed over, or has changed since
		}
		return next.client, otter.WriteOp
	})
	return next.client, nil
}

// at is a client as it stands at a time, nil if it is not served.
func (cl *client) at(now time.Time) *client {
	switch next := cl.next; {
	case next == nil:
		return cl
	case !now.Before(next.at):
		return next.client
	case next.refused != nil:
		return nil
	}
	return cl
}

// Upcoming describes a registration as it will stand when its pending change
// takes effect, as Status describes what is in force; nil if none waits.
func (c *Cache) Upcoming(ctx context.Context, reg *registry.Registration) (*Status, error) {
	next := reg.Successor()
	if next == nil {
		return nil, nil //nolint:nilnil // as the comment says
	}
	look := c.search(next)
	look.upcoming = true
	return c.statusOf(ctx, look, next)
}

// Prepare makes ready what a client needs when its pending change takes effect:
// the key set of its URL is kept fresh for some days after, as if tokens asked for
// it, and if the client is in memory, its keys are chosen and its secret is opened.
// It waits for the store, and for no host. Errors: registry.ErrUnavailable,
// ErrUnusable, registry.ErrTampered, those of an expired secret, or the context's.
func (c *Cache) Prepare(ctx context.Context, reg *registry.Registration) error {
	next := reg.Successor()
	if next == nil {
		return nil
	}
	fetched := false
	if uri := next.Source.JWKSURI; uri != "" {
		src, err := c.source(ctx, uri)
		if err != nil {
			return err
		}
		fetched = src.state.Load().inUse(c.cfg.Policy, time.Now()) // else that is on its way
	}
	key := clientKey{reg.Issuer, reg.ClientID}
	e, ok := c.clients.GetEntryQuietly(key)
	if !ok || e.Value.next == nil || e.Value.next.client.revision != next.Revision {
		return nil
	}
	cl := e.Value.next.client
	if fetched {
		if _, _, err := c.fromURL(ctx, key, cl, time.Now()); err != nil {
			return err
		}
	}
	if cl.secret != nil {
		if _, err := c.open(ctx, key, cl); err != nil {
			return err
		}
	}
	c.reweigh(key, e.Value)
	return nil
}
