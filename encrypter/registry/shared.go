package registry

import (
	"context"
	"errors"
	"time"
)

// ErrLeaseLost: somebody else fetches the URI for all now, or its key set has
// been written meanwhile. Read it again.
var ErrLeaseLost = errors.New("the lease on the key set is lost")

// Leases is what a Store can do besides that several replicas share: let one of
// them fetch a jwks_uri for all. Nothing in the store is locked meanwhile; a
// replica that dies loses its lease when its time is over.
//
// All methods may be called concurrently; errors are those of this package, or
// the context's.
type Leases interface {
	// Claim gives the caller the lease on a URI for d, at most a minute, if
	// nobody has it, and in any case tells what is stored.
	Claim(ctx context.Context, uri string, d time.Duration) (*Claim, error)

	// PutClaimed writes what the holder of a lease has found out, and ends the
	// lease. Other replicas are told if announce says so, within a second as a
	// rule. ErrLeaseLost if the lease is not in force any more.
	PutClaimed(ctx context.Context, set KeySet, lease string, announce bool) error

	// Release ends a lease without having found out anything. A lease that is
	// lost already is no error.
	Release(ctx context.Context, uri, lease string) error
}

// Claim is the answer to one who asked for the lease on a URI.
type Claim struct {
	// Lease names the lease; it is empty if another has it, or if Unnamed.
	Lease string
	// Until is when the lease ends, of whoever has it.
	Until time.Time
	// Unnamed says that no live registration names the URI. Nothing is kept of
	// it, and no replica has to fetch it for others.
	Unnamed bool
	// Set is what is stored of the URI, nil for nothing.
	Set *KeySet
}

// Follower is told of what replicas write, this one among them, so that what
// it holds in memory is not out of date for long. Its methods do not wait.
type Follower interface {
	// ClientChanged: the registration of a client was written.
	ClientChanged(issuer, clientID string)
	// KeySetChanged: what is known of a jwks_uri was written.
	KeySetChanged(uri string)
	// Reset: anything may have changed.
	Reset()
}
