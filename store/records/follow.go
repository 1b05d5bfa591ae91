package records

import (
	"bytes"
	"context"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
)

// Watcher is told by Store.Follow of what any process writes, this one among
// them. Its methods do not wait. What it is told is where to look: a row may
// have been written by somebody else, and reading it tells whether it is
// authentic.
type Watcher interface {
	registry.Follower
	// RingChanged: a key ring was written.
	RingChanged(issuer string, alg kms.Algorithm)
}

// Follow tells w of every registration, key set and key ring that is written
// from the call on, until ctx ends; it returns nil then. It is called once. If
// no other process shares the store there is nothing to tell, since whoever
// writes here knows of it.
func (s *Store) Follow(ctx context.Context, w Watcher) error {
	shared, ok := s.engine.(Shared)
	if !ok {
		<-ctx.Done()
		return nil
	}
	return unavailable(registry.ErrUnavailable, shared.Follow(ctx, follower{w}))
}

// follower tells a Watcher of rows.
type follower struct{ Watcher }

// Changed implements Follower. A key that is none of the table's names nothing
// that anybody could hold.
func (f follower) Changed(t Table, key []byte) {
	if t == KeySets {
		f.KeySetChanged(string(key))
		return
	}
	issuer, name, ok := bytes.Cut(key, []byte{0})
	switch {
	case !ok || bytes.IndexByte(name, 0) >= 0:
	case t == Registrations:
		f.ClientChanged(string(issuer), string(name))
	case t == Rings:
		f.RingChanged(string(issuer), kms.Algorithm(name))
	}
}
