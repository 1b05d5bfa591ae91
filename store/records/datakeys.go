package records

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/envelope"
)

// dataKey is what is stored of a data key. The record is protected by its
// wrapping. Retiring is not protected: whoever sets it stops writes.
type dataKey struct {
	datakey.Record
	// Retiring says that nothing new may name the key.
	Retiring bool `json:"retiring,omitempty"`
	// Mark is a random name of who retires it.
	Mark string `json:"retiring_mark,omitempty"`
}

// Keys are the data keys that the store's records are authenticated under, for
// those who seal what they put into records.
func (s *Store) Keys() *datakey.Keys { return s.keys }

// DataKeys returns the records of all data keys (datakey.Store).
func (s *Store) DataKeys(ctx context.Context) ([]datakey.Record, error) {
	rows, err := s.dataKeyRows(ctx)
	if err != nil {
		return nil, unavailable(datakey.ErrUnavailable, err)
	}
	var records []datakey.Record
	for _, r := range rows {
		if dk, ok := decodeDataKey(r.Key, r.Value); ok {
			records = append(records, dk.Record)
		} else {
			records = append(records, datakey.Record{ID: string(r.Key)})
		}
	}
	return records, nil
}

// dataKeyRows returns the rows of all data keys.
func (s *Store) dataKeyRows(ctx context.Context) (all []Row, err error) {
	var seek []byte
	for more := true; more; {
		var rows []Row
		if err := s.engine.View(ctx, func(tx Tx) error {
			rows, more, err = tx.Scan(DataKeys, nil, seek, BatchRows)
			return err
		}); err != nil {
			return nil, err
		}
		for _, r := range rows {
			seek = after(r.Key)
		}
		all = append(all, rows...)
	}
	return all, nil
}

// decodeDataKey reads the value of a data key's row, if it is one.
func decodeDataKey(k, v []byte) (*dataKey, bool) {
	dk := new(dataKey)
	if err := json.Unmarshal(v, dk); err != nil || dk.ID != string(k) {
		return nil, false
	}
	return dk, true
}

// AddDataKey writes the record of a new data key (datakey.Store).
func (s *Store) AddDataKey(ctx context.Context, r datakey.Record) error {
	err := s.update(ctx, func(tx Tx) error {
		have, err := tx.Get(DataKeys, []byte(r.ID))
		if err != nil {
			return err
		}
		if have != nil {
			return fmt.Errorf("%w: %s", datakey.ErrExists, r.ID)
		}
		_, err = putDataKey(tx, dataKey{Record: r})
		return err
	})
	return unavailable(datakey.ErrUnavailable, err)
}

func putDataKey(tx Tx, dk dataKey) (value []byte, err error) {
	value, err = json.Marshal(dk)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errEncoding, err)
	}
	return value, tx.Put(DataKeys, []byte(dk.ID), value)
}

// takesNew returns the row of a data key if something new may be written under
// it, that is if it is in the store and is not being retired; otherwise the
// error refusal.
func takesNew(tx Tx, id string, refusal error) (value []byte, err error) {
	k := []byte(id)
	value, err = tx.Get(DataKeys, k)
	if err != nil {
		return nil, err
	}
	if dk, ok := decodeDataKey(k, value); !ok || dk.Retiring {
		return nil, refusal
	}
	return value, nil
}

// RetireDataKey deletes the record of a data key that nothing names
// (datakey.Store). It reads all rows, in batches, while others write: the key
// is first marked, so that nothing new can come to name it. If two retire a key
// at once, the mark of the first may end while the second still reads; so each
// mark has a name, and counts for the one who has made it.
func (s *Store) RetireDataKey(ctx context.Context, id string) error {
	mark, err := s.markRetiring(ctx, id)
	if err == nil {
		err = s.unneeded(ctx, id)
		if err != nil {
			// Seen through: a mark that is left would stop writes if the key
			// is current in another process's eyes.
			err = errors.Join(err, s.unmarkRetiring(context.WithoutCancel(ctx), id, mark))
		}
	}
	if err == nil {
		err = s.update(ctx, func(tx Tx) error {
			now, err := tx.Get(DataKeys, []byte(id))
			if err != nil {
				return err
			}
			if now == nil {
				return errNoChange // another has done it
			}
			if !same(now, mark) {
				return fmt.Errorf("%w: %s is being retired by another process too, or came into use again; try again", datakey.ErrInUse, id)
			}
			return tx.Delete(DataKeys, []byte(id))
		})
	}
	return unavailable(datakey.ErrUnavailable, err)
}

// markRetiring marks a data key, so that nothing new is written under it, and
// returns its row as it is now.
func (s *Store) markRetiring(ctx context.Context, id string) (mark []byte, err error) {
	err = s.update(ctx, func(tx Tx) error {
		mark, err = tx.Get(DataKeys, []byte(id))
		if err != nil {
			return err
		}
		if mark == nil {
			return fmt.Errorf("%w: %.40q", datakey.ErrNotFound, id)
		}
		dk, ok := decodeDataKey([]byte(id), mark)
		if !ok {
			return errNoChange // nothing can be written under it
		}
		dk.Retiring, dk.Mark = true, rand.Text()
		mark, err = putDataKey(tx, *dk)
		return err
	})
	return mark, err
}

// unmarkRetiring takes a mark away, unless another has made one since.
func (s *Store) unmarkRetiring(ctx context.Context, id string, mark []byte) error {
	return s.update(ctx, func(tx Tx) error {
		now, err := tx.Get(DataKeys, []byte(id))
		if err != nil {
			return err
		}
		dk, ok := decodeDataKey([]byte(id), now)
		if !ok || !same(now, mark) {
			return errNoChange
		}
		dk.Retiring, dk.Mark = false, ""
		_, err = putDataKey(tx, *dk)
		return err
	})
}

// unneeded returns nil if no row needs the data key, and ErrInUse with the name
// of one that does.
func (s *Store) unneeded(ctx context.Context, id string) error {
	// As it stands in a registration with a sealed secret.
	quoted, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("%w: %w", errEncoding, err)
	}
	for _, kind := range []envelope.Kind{envelope.Ring, envelope.KeySet, envelope.Registration} {
		if err := s.each(ctx, kind, func(r stored) error {
			macs := envelope.KeyID(r.value) == id
			if !macs && (kind != envelope.Registration || !bytes.Contains(envelope.Claimed(r.value), quoted)) {
				return nil
			}
			record, err := s.verify(ctx, r.Row, r.value)
			if errors.Is(err, envelope.ErrTampered) {
				return s.worthless(ctx, r, id)
			}
			if err != nil {
				return err
			}
			advice := "write it anew under the current one first"
			if kind == envelope.Registration {
				reg, err := decode[registry.Registration](record)
				if err != nil {
					return err
				}
				seals := slices.ContainsFunc(secretsOf(reg), func(s *registry.Secret) bool { return s.DataKey == id })
				switch {
				case seals:
					advice += "; if its secret does not open, register the client anew or delete it"
				case !macs:
					return nil
				}
			}
			return fmt.Errorf("%w: %s is still under %s; %s", datakey.ErrInUse, spoken(r.Row), id, advice)
		}); err != nil {
			return err
		}
	}
	return nil
}

// worthless returns nil if a row that names the data key id and failed its
// authentication is lost in any case, and ErrInUse if the right key may yet
// show it to be sound.
func (s *Store) worthless(ctx context.Context, r stored, id string) error {
	under := envelope.KeyID(r.value)
	if under == "" {
		return nil // no version of the service wrote it
	}
	opens, err := s.keys.Opens(ctx, under)
	if err != nil || opens {
		return err
	}
	return fmt.Errorf("%w: %s names %s and is under data key %.40q, which does not open, so that nobody can tell whether it is sound", datakey.ErrInUse, spoken(r.Row), id, under)
}
