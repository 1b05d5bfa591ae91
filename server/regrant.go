package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/watch"
)

// grants are the policy that a call began with, and where to learn of the one
// that has taken its place. Most calls are over before there is one; those that
// stay open must not go on by grants that were taken away.
type grants struct {
	live     Authorizer
	policy   *authz.Policy
	replaced <-chan struct{} // closed when policy is no longer in force
}

// whileGranted is a context that ends when the caller's grants for a permission
// change: with a denial if it has none left, and else with the advice to begin
// anew, because nobody has told the caller of the clients that have become its.
// The caller calls release when it is done.
func (e *entry) whileGranted(ctx context.Context, permission authz.Permission) (granted context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { // ends with ctx, which release cancels
		for replaced := e.grants.replaced; ; {
			select {
			case <-replaced:
			case <-ctx.Done():
				return
			}
			var policy *authz.Policy
			policy, replaced = e.grants.live.Now()
			if err := policy.AllowSome(e.event.Caller, permission, e.issuer.Name()); err != nil {
				cancel(err)
				return
			}
			if !policy.SameClients(e.grants.policy, e.event.Caller, permission, e.issuer.Name()) {
				cancel(fmt.Errorf("%w: the caller's grants have changed", watch.ErrLost))
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// mayReadNow reports whether the policy in force lets the caller read a client,
// whatever the call began with.
func (e *entry) mayReadNow(clientID string) bool {
	return e.grants.live.Allow(e.event.Caller, authz.Request{
		Permission: authz.ReadClientKeys, Issuer: e.issuer.Name(), ClientID: clientID,
	}) == nil
}

// ended puts it on record if a call was ended because its grant was taken away,
// and returns why it ended.
func (e *entry) ended(ctx context.Context, cause error) error {
	if errors.Is(cause, authz.ErrNotAllowed) || errors.Is(cause, authz.ErrCallerUnknown) {
		return e.deny(ctx, cause)
	}
	return cause
}
