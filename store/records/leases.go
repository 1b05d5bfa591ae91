package records

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/envelope"
)

// Leases returns the leases on key sets, nil if no other process shares the
// store.
func (s *Store) Leases() registry.Leases {
	shared, ok := s.engine.(Shared)
	if !ok {
		return nil
	}
	return &leases{s, shared}
}

// leases are the leases of a store.
type leases struct {
	*Store
	shared Shared
}

// Claim gives the caller the lease on a URI (registry.Leases). A key set that
// fails its authentication is as good as none: it is alarmed, and the holder of
// the lease fetches it anew.
func (l *leases) Claim(ctx context.Context, uri string, d time.Duration) (*registry.Claim, error) {
	row := keySetRow(uri)
	c, err := l.shared.Claim(ctx, row.Key, min(d, MaxLease))
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	claim := &registry.Claim{Lease: c.Lease, Until: c.Until, Unnamed: c.Unnamed}
	if len(c.Value) == 0 {
		return claim, nil
	}
	claim.Set, err = l.claimed(ctx, row, c.Value)
	if err == nil {
		return claim, nil
	}
	if c.Lease != "" {
		// The caller will not fetch. Nobody else shall wait for it.
		err = errors.Join(err, l.shared.Release(context.WithoutCancel(ctx), row.Key, c.Lease))
	}
	return nil, unavailable(registry.ErrUnavailable, err)
}

// claimed verifies and reads the value of a key set's row, nil if it is worth
// nothing.
func (l *leases) claimed(ctx context.Context, row envelope.Row, value []byte) (*registry.KeySet, error) {
	record, err := l.verify(ctx, row, value)
	if errors.Is(err, envelope.ErrTampered) {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	if err != nil {
		return nil, err
	}
	return decode[registry.KeySet](record)
}

// PutClaimed writes what the holder of a lease has found out (registry.Leases).
// It is not in the order of Updates, so that the row of the data key guards the
// write: nothing is written under one that is being retired.
func (l *leases) PutClaimed(ctx context.Context, set registry.KeySet, lease string, announce bool) error {
	row := keySetRow(set.URI)
	err := l.putClaimed(ctx, row, set, lease, announce)
	if errors.Is(err, errRetired) || errors.Is(err, ErrGuard) {
		// It was replaced after this process had last looked, or is just now.
		if err = l.keys.Reload(ctx); err == nil {
			err = l.putClaimed(ctx, row, set, lease, announce)
		}
	}
	if errors.Is(err, ErrLeaseLost) {
		err = fmt.Errorf("%w: %.300q", registry.ErrLeaseLost, set.URI)
	}
	return unavailable(registry.ErrUnavailable, err)
}

func (l *leases) putClaimed(ctx context.Context, row envelope.Row, set registry.KeySet, lease string, announce bool) error {
	value, _, err := l.seal(ctx, row, set)
	if err != nil {
		return err
	}
	guard := Guard{Table: DataKeys, Key: []byte(envelope.KeyID(value))}
	if err := l.engine.View(ctx, func(tx Tx) error {
		guard.Value, err = takesNew(tx, string(guard.Key), errRetired)
		return err
	}); err != nil {
		return err
	}
	return l.shared.PutClaimed(ctx, row.Key, value, lease, guard, announce)
}

// Release ends a lease (registry.Leases).
func (l *leases) Release(ctx context.Context, uri, lease string) error {
	return unavailable(registry.ErrUnavailable, l.shared.Release(ctx, keySetRow(uri).Key, lease))
}
