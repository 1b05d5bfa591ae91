package bolt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/envelope"
)

// dataKey is what the file has of a data key. The record is protected by its
// wrapping. Retiring is not protected: whoever sets it stops writes.
type dataKey struct {
	datakey.Record
	// Retiring says that nothing new may name the key.
	Retiring bool `json:"retiring,omitempty"`
}

// Keys are the data keys that the store's records are authenticated under, for
// those who seal what they put into records.
func (s *Store) Keys() *datakey.Keys { return s.keys }

// DataKeys returns the records of all data keys (datakey.Store).
func (s *Store) DataKeys(ctx context.Context) ([]datakey.Record, error) {
	var records []datakey.Record
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketDataKeys).ForEach(func(k, v []byte) error {
			if dk, ok := decodeDataKey(k, v); ok {
				records = append(records, dk.Record)
			} else {
				records = append(records, datakey.Record{ID: string(k)})
			}
			return nil
		})
	})
	if err != nil {
		return nil, unavailable(datakey.ErrUnavailable, err)
	}
	return records, nil
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
	err := s.update(ctx, func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketDataKeys).Get([]byte(r.ID)) != nil {
			return fmt.Errorf("%w: %s", datakey.ErrExists, r.ID)
		}
		return putDataKey(tx, dataKey{Record: r})
	})
	return unavailable(datakey.ErrUnavailable, err)
}

func putDataKey(tx *bbolt.Tx, dk dataKey) error {
	v, err := json.Marshal(dk)
	if err != nil {
		return fmt.Errorf("%w: %w", errEncoding, err)
	}
	return tx.Bucket(bucketDataKeys).Put([]byte(dk.ID), v)
}

// takesNew reports whether something new may be written under a data key: it
// is in the store, and is not being retired.
func takesNew(tx *bbolt.Tx, id string) bool {
	k := []byte(id)
	v := tx.Bucket(bucketDataKeys).Get(k)
	if v == nil {
		return false
	}
	dk, ok := decodeDataKey(k, v)
	return ok && !dk.Retiring
}

// RetireDataKey deletes the record of a data key that nothing names
// (datakey.Store). It reads all rows, in batches, while others write: the key
// is first marked, so that nothing new can come to name it.
func (s *Store) RetireDataKey(ctx context.Context, id string) error {
	err := s.markRetiring(ctx, id, true)
	if err == nil {
		err = s.unneeded(ctx, id)
		if err != nil {
			// Seen through: a mark that is left would stop writes if the key
			// is current in another process's eyes.
			err = errors.Join(err, s.markRetiring(context.WithoutCancel(ctx), id, false))
		}
	}
	if err == nil {
		err = s.update(ctx, func(tx *bbolt.Tx) error { return tx.Bucket(bucketDataKeys).Delete([]byte(id)) })
	}
	return unavailable(datakey.ErrUnavailable, err)
}

func (s *Store) markRetiring(ctx context.Context, id string, retiring bool) error {
	return s.update(ctx, func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketDataKeys).Get([]byte(id))
		if v == nil {
			return fmt.Errorf("%w: %.40q", datakey.ErrNotFound, id)
		}
		dk, ok := decodeDataKey([]byte(id), v)
		if !ok {
			return errNoChange // nothing can be written under it
		}
		dk.Retiring = retiring
		return putDataKey(tx, *dk)
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
				switch s := reg.Source.Secret; {
				case s != nil && s.DataKey == id:
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
