package records

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/envelope"
)

// Reseal writes every record anew that is not under the current data key, and
// seals anew the secrets in them. Contents, revisions and times stay. It works
// in batches, while others read and write; if it is broken off, it goes on
// where it was when it is called again. Afterwards the old data keys can be
// retired.
//
// secret seals the secret of a registration anew, under the current data key,
// and is not called for one that is under it. It may be nil if there is none.
// Its error is envelope.ErrTampered or registry.ErrTampered if the secret does
// not open; any other ends the work.
//
// A record that fails its authentication is left alone: it does not become
// authentic. So is one with a secret that does not open; it keeps its data key
// from being retired.
func (s *Store) Reseal(ctx context.Context, secret func(context.Context, *registry.Registration) (*registry.Secret, error)) (envelope.Resealed, error) {
	var done envelope.Resealed
	err := s.keys.Reload(ctx)
	if err != nil {
		return done, unavailable(registry.ErrUnavailable, err)
	}
	current, err := s.keys.Current(ctx)
	if err != nil {
		return done, unavailable(registry.ErrUnavailable, err)
	}
	r := &resealing{Store: s, current: current, secret: secret, done: &done}
	for _, kind := range []envelope.Kind{envelope.Ring, envelope.KeySet, envelope.Registration} {
		err := s.each(ctx, kind, func(row stored) error { return r.add(ctx, row) })
		if err == nil {
			err = r.flush(ctx)
		}
		if err != nil {
			return done, unavailable(registry.ErrUnavailable, fmt.Errorf("writing the %ss anew under data key %s: %w", kind, current, err))
		}
	}
	return done, nil
}

// resealing is one run of Reseal.
type resealing struct {
	*Store
	current string // the id of the data key
	secret  func(context.Context, *registry.Registration) (*registry.Secret, error)
	done    *envelope.Resealed

	pending []resealed
	bytes   int // of pending
}

// resealed is a row to be written.
type resealed struct {
	stored
	next []byte
}

// add takes a row, if it is to be written anew.
func (r *resealing) add(ctx context.Context, row stored) error {
	next, err := r.anew(ctx, row)
	if err != nil || next == nil {
		return err
	}
	r.pending = append(r.pending, resealed{row, next})
	r.bytes += len(next)
	if len(r.pending) >= BatchRows || r.bytes >= BatchBytes {
		return r.flush(ctx)
	}
	return nil
}

// anew is the new value of a row, nil if it shall stay as it is.
func (r *resealing) anew(ctx context.Context, row stored) ([]byte, error) {
	sealed := row.Kind == envelope.Registration && bytes.Contains(envelope.Claimed(row.value), []byte(`"data_key":`))
	if envelope.KeyID(row.value) == r.current && !sealed {
		return nil, nil
	}
	record, err := r.verify(ctx, row.Row, row.value)
	if errors.Is(err, envelope.ErrTampered) {
		r.done.Refused++
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !sealed {
		return envelope.Seal(ctx, r.keys, row.Row, record)
	}
	reg, err := decode[registry.Registration](record)
	if err != nil {
		return nil, err
	}
	changed, err := r.secretsAnew(ctx, row, reg)
	switch {
	case errors.Is(err, errSecretStays):
		r.done.Refused++
		return nil, nil
	case err != nil:
		return nil, err
	case !changed && envelope.KeyID(row.value) == r.current:
		return nil, nil
	}
	next, _, err := r.seal(ctx, row.Row, reg)
	return next, err
}

// errSecretStays is a secret that does not open: its row is left as it is.
var errSecretStays = errors.New("the sealed secret does not open")

// secretsAnew seals anew the secrets of a registration that are under another data
// key: that in force, and that of a change that waits. It reports whether there
// are any.
func (r *resealing) secretsAnew(ctx context.Context, row stored, reg *registry.Registration) (changed bool, err error) {
	for _, one := range []struct {
		of   *registry.Registration // as whose it was sealed
		kept **registry.Secret
	}{{reg, &reg.Source.Secret}, {reg.Successor(), pendingSecret(reg)}} {
		if one.kept == nil || *one.kept == nil || (*one.kept).DataKey == r.current {
			continue
		}
		if r.secret == nil {
			return false, errors.New("a client's secret is under another data key, and nothing is given to seal it anew with")
		}
		anew, err := r.secret(ctx, one.of)
		if errors.Is(err, envelope.ErrTampered) || errors.Is(err, registry.ErrTampered) {
			r.log.Error("sealed secret does not open and was left under its old data key; register the client anew or delete it", append(attributes(row.Row), "data_key", (*one.kept).DataKey, "error", err)...)
			return false, errSecretStays
		}
		if err != nil {
			return false, err
		}
		*one.kept, changed = anew, true
	}
	return changed, nil
}

// pendingSecret is where a record keeps the secret of a change that waits, nil if
// none does.
func pendingSecret(reg *registry.Registration) **registry.Secret {
	if reg.Pending == nil {
		return nil
	}
	return &reg.Pending.Source.Secret
}

// flush writes the pending rows in one transaction, which reads them all at
// once: everybody who writes waits for its end. A row that was changed since it
// was read is looked at again, alone.
func (r *resealing) flush(ctx context.Context) error {
	if len(r.pending) == 0 {
		return nil
	}
	var moved []resealed
	err := r.update(ctx, func(tx Tx) error {
		if _, err := takesNew(tx, r.current, errRetired); err != nil {
			return err
		}
		table := TableOf(r.pending[0].Kind) // of all: each kind is flushed
		var keys [][]byte
		for _, p := range r.pending {
			keys = append(keys, p.Key)
		}
		now, err := tx.GetAll(table, keys)
		if err != nil {
			return err
		}
		for i, p := range r.pending {
			if !same(now[i], p.value) {
				moved = append(moved, p)
				continue
			}
			if err := tx.Put(table, p.Key, p.next); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.done.Rows += len(r.pending) - len(moved)
	r.pending, r.bytes = nil, 0
	for _, p := range moved {
		written := false
		err := r.change(ctx, p.Row, func(seen []byte) ([]byte, func(Tx) error, error) {
			written = false
			if seen == nil {
				return nil, nil, errNoChange // a key set that nobody needs any more
			}
			next, err := r.anew(ctx, stored{p.Row, seen})
			if err == nil && next == nil {
				err = errNoChange
			}
			written = err == nil
			return next, nil, err
		})
		if err != nil && !errors.Is(err, errNoChange) {
			return err
		}
		if written {
			r.done.Rows++
		}
	}
	return nil
}
