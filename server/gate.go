package server

import (
	"context"
	"errors"

	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
)

// gate lets a call in, or puts on record that it was turned away.
type gate struct {
	issuers    *issuer.Directory
	authorizer Authorizer
	auditor    Auditor
}

// entry is a call on its way in. Its gate's authorizer is the policy that was in
// force when it came.
type entry struct {
	gate
	grants   grants
	issuer   *issuer.Issuer
	clientID string
	// event is what is known of the call for the record.
	event audit.Event
}

// enter resolves the names in a request. Which issuers there are is nothing
// for a caller that no grant names.
func (g gate) enter(ctx context.Context, issuerName, clientID string, needsClient bool) (*entry, error) {
	var c checker
	c.name("issuer", issuerName, false)
	c.name("client_id", clientID, needsClient)
	if err := c.err(); err != nil {
		return nil, err
	}
	call := callOf(ctx)
	inForce := grants{live: g.authorizer}
	inForce.policy, inForce.replaced = g.authorizer.Now()
	g.authorizer = inForce.policy
	e := &entry{gate: g, grants: inForce, clientID: clientID, event: audit.Event{
		RPC: call.rpc, Caller: call.caller, Issuer: issuerName, ClientID: clientID,
	}}
	found, unknown := g.issuers.Find(issuerName)
	if unknown != nil {
		if err := g.authorizer.AllowSome(call.caller, authz.ReadClientKeys, issuerName); errors.Is(err, authz.ErrCallerUnknown) {
			unknown = err
		}
		return nil, e.deny(ctx, unknown)
	}
	e.issuer, e.event.Issuer = found, found.Name()
	return e, nil
}

// may asks for a permission.
func (e *entry) may(permission authz.Permission) error {
	return e.authorizer.Allow(e.event.Caller, authz.Request{
		Permission: permission, Issuer: e.issuer.Name(), ClientID: e.clientID,
	})
}

// allow asks for a permission, and puts a denial on record.
func (e *entry) allow(ctx context.Context, permission authz.Permission) error {
	e.event.Permission = string(permission)
	if err := e.may(permission); err != nil {
		return e.deny(ctx, err)
	}
	return nil
}

// allowSome is allow for a call that lists: it needs the permission for one
// client at least.
func (e *entry) allowSome(ctx context.Context, permission authz.Permission) error {
	e.event.Permission = string(permission)
	if err := e.authorizer.AllowSome(e.event.Caller, permission, e.issuer.Name()); err != nil {
		return e.deny(ctx, err)
	}
	return nil
}

// deny puts on record why the call was turned away, and returns that.
func (e *entry) deny(ctx context.Context, cause error) error {
	event := e.event
	event.Outcome, event.Reason = audit.Denied, Reason(cause)
	if err := e.auditor.Record(ctx, event); err != nil {
		return err
	}
	return cause
}
