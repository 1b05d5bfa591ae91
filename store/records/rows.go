package records

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/store/envelope"
)

// TableOf is where records of a kind lie.
func TableOf(kind envelope.Kind) Table {
	switch kind {
	case envelope.Registration:
		return Registrations
	case envelope.KeySet:
		return KeySets
	case envelope.Ring:
		return Rings
	}
	return ""
}

// read returns a copy of a row's value, nil if there is none. It is not
// verified: that may ask an HSM, and must not hold up a transaction.
func (s *Store) read(ctx context.Context, row envelope.Row) (value []byte, err error) {
	err = s.engine.View(ctx, func(tx Tx) error {
		value, err = tx.Get(TableOf(row.Kind), row.Key)
		return err
	})
	return value, err
}

// verify returns the record in a value. datakey.ErrTampered has been alarmed.
// Not to be called in a transaction.
func (s *Store) verify(ctx context.Context, row envelope.Row, value []byte) (record []byte, err error) {
	record, err = envelope.Open(ctx, s.keys, row, value)
	switch {
	case err == nil:
		s.alarms.sound(row)
	case errors.Is(err, envelope.ErrTampered):
		s.alarms.tampered(row, err)
	}
	return record, err
}

// errEncoding is a record that has no JSON form: a mistake of the caller.
var errEncoding = errors.New("record cannot be encoded")

// seal returns a record in its envelope, and its bytes. Not to be called in a
// transaction.
func (s *Store) seal(ctx context.Context, row envelope.Row, record any) (value, raw []byte, err error) {
	raw, err = json.Marshal(record)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errEncoding, err)
	}
	value, err = envelope.Seal(ctx, s.keys, row, raw)
	return value, raw, err
}

// decode reads the bytes of a record into a new T, and keeps none of them.
func decode[T any](raw []byte) (*T, error) {
	record := new(T)
	if err := json.Unmarshal(raw, record); err != nil {
		return nil, fmt.Errorf("a stored record is authentic and cannot be read (%w); it is of another version of Bulla: run that one", err)
	}
	return record, nil
}

var (
	// errMoved: the row was changed since it was read.
	errMoved = errors.New("the row was changed meanwhile")

	// errRetired: the data key that a value names takes nothing new.
	errRetired = errors.New("its data key is gone from the store or is being retired; if it is the current one, replace it with `bulla datakey replace`, else try again")
)

// change writes what build makes of a row's value (nil if there is none), and
// asks build again if another has changed the row meanwhile. also, if not nil,
// runs in the transaction of the write; its error undoes it.
func (s *Store) change(ctx context.Context, row envelope.Row, build func(seen []byte) (value []byte, also func(Tx) error, err error)) error {
	reloaded := false
	for {
		seen, err := s.read(ctx, row)
		if err != nil {
			return err
		}
		value, also, err := build(seen)
		if err != nil {
			return err
		}
		err = s.update(ctx, func(tx Tx) error {
			now, err := tx.Get(TableOf(row.Kind), row.Key)
			if err != nil {
				return err
			}
			if !same(now, seen) {
				return errMoved
			}
			if also != nil {
				if err := also(tx); err != nil {
					return err
				}
			}
			if _, err := takesNew(tx, envelope.KeyID(value), errRetired); err != nil {
				return err
			}
			return tx.Put(TableOf(row.Kind), row.Key, value)
		})
		switch {
		case errors.Is(err, errMoved):
			continue
		case errors.Is(err, errRetired) && !reloaded:
			// It was replaced after this process had last looked.
			reloaded = true
			if err := s.keys.Reload(ctx); err != nil {
				return err
			}
			continue
		}
		return err
	}
}

// same reports whether a row is as it was, there or not.
func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// stored is a row with its value.
type stored struct {
	envelope.Row
	value []byte
}

// batch returns the rows of a kind from seek on whose keys begin with prefix.
// more is false if they are the last.
func (s *Store) batch(ctx context.Context, kind envelope.Kind, prefix, seek []byte, limit int) (rows []stored, more bool, err error) {
	err = s.engine.View(ctx, func(tx Tx) error {
		var list []Row
		list, more, err = tx.Scan(TableOf(kind), prefix, seek, min(limit, BatchRows))
		rows = rows[:0]
		for _, r := range list {
			rows = append(rows, stored{envelope.Row{Kind: kind, Key: r.Key}, r.Value})
		}
		return err
	})
	return rows, more, err
}

// each calls fn for every row of a kind, outside of transactions. A row that
// comes or goes meanwhile may or may not be among them.
func (s *Store) each(ctx context.Context, kind envelope.Kind, fn func(stored) error) error {
	var seek []byte
	for more := true; more; {
		var rows []stored
		var err error
		rows, more, err = s.batch(ctx, kind, nil, seek, BatchRows)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := fn(r); err != nil {
				return err
			}
			seek = after(r.Key)
		}
	}
	return nil
}

// after is the key that sorts next.
func after(key []byte) []byte { return append(bytes.Clone(key), 0) }
