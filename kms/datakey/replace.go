package datakey

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Replace makes a new data key the current one and returns its id. What is
// stored under other keys stays readable. Errors are those of Seal.
//
// When everything has been sealed and authenticated anew, the old keys can be
// retired.
func (k *Keys) Replace(ctx context.Context) (id string, err error) {
	err = k.locked(ctx, func(ctx context.Context) error {
		// Another replica may have replaced it long ago: know what is current.
		_, before, err := k.look(ctx)
		if err != nil {
			return err
		}
		above := uint64(0) // where there is none, the first is the new one
		if before != nil {
			above = before.number
		}
		made, err := k.newest(ctx, above)
		if err != nil {
			return err
		}
		id = made.id
		return nil
	})
	return id, err
}

// Retire deletes a data key that nothing stored needs any more, and makes none.
// Errors are ErrInUse, ErrNotFound, and those of Seal.
func (k *Keys) Retire(ctx context.Context, id string) error {
	if err := k.locked(ctx, func(ctx context.Context) error {
		_, current, err := k.look(ctx)
		if err == nil && current != nil && current.id == id {
			err = fmt.Errorf("%w: %s is the current one; replace it first", ErrInUse, id)
		}
		return err
	}); err != nil {
		return err
	}
	// Without the turn: the store looks at what it has, and verifies it.
	if err := k.cfg.Store.RetireDataKey(ctx, id); err != nil {
		return fmt.Errorf("retire data key %.40q: %w", id, err)
	}
	return k.locked(ctx, func(context.Context) error {
		next := *k.known.Load()
		next.keys = maps.Clone(next.keys)
		delete(next.keys, id)
		k.known.Store(&next)
		delete(k.refused, id)
		k.log.Info("data key retired", "data_key", id)
		return nil
	})
}

// Info is what there is to say of a data key to an operator.
type Info struct {
	ID        string
	WrappedBy string
	CreatedAt time.Time
	// Current says that new data is written under this key.
	Current bool
	// Problem is why the key cannot be used, empty if it can. The other
	// fields are then what the store claims.
	Problem string
}

// List unwraps every data key of the store and returns them by their ids'
// numbers. It makes none. Errors are those of Seal.
func (k *Keys) List(ctx context.Context) ([]Info, error) {
	var list []Info
	err := k.locked(ctx, func(ctx context.Context) error {
		records, current, err := k.look(ctx)
		if records == nil {
			return err
		}
		// A current key that cannot be had now is told as a problem.
		for _, r := range records {
			info := Info{ID: r.ID, WrappedBy: r.WrappedBy, CreatedAt: r.CreatedAt}
			opened, err := k.open(ctx, r)
			if err != nil {
				info.Problem = err.Error()
			} else {
				info.CreatedAt = opened.record.CreatedAt
				info.Current = current != nil && current.id == r.ID
				k.remember(opened)
			}
			list = append(list, info)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Info) int {
		x, _ := parseID(a.ID)
		y, _ := parseID(b.ID)
		return cmp.Or(cmp.Compare(x, y), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}
