package records

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/envelope"
)

// waitingTime is a time in the keys of Waiting: those of one length sort as the
// times do.
const waitingTime = "2006-01-02T15:04:05.000000Z"

// waitingRow is the row of Waiting for a record, nil if nothing waits in it.
func waitingRow(r *registry.Registration) *Row {
	if r.Pending == nil {
		return nil
	}
	return &Row{
		Key:   waitingKey(r.Issuer, r.ClientID, r.Pending.EffectiveAt),
		Value: strconv.AppendUint(nil, r.Revision, 10),
	}
}

func waitingKey(issuer, clientID string, at time.Time) []byte {
	return envelope.Key(at.UTC().Format(waitingTime), issuer, clientID)
}

// readWaiting reads a row of Waiting, if it is one.
func readWaiting(r Row) (w registry.Waiting, ok bool) {
	parts := bytes.Split(r.Key, []byte{0})
	if len(parts) != 3 {
		return w, false
	}
	at, err := time.Parse(waitingTime, string(parts[0]))
	if err != nil {
		return w, false
	}
	revision, err := strconv.ParseUint(string(r.Value), 10, 64)
	if err != nil {
		return w, false
	}
	return registry.Waiting{Issuer: string(parts[1]), ClientID: string(parts[2]), EffectiveAt: at, Revision: revision}, true
}

// moveWaiting brings the index of what waits from the old record to the new one.
func moveWaiting(tx Tx, old, reg *registry.Registration) error {
	was, is := waitingRow(old), waitingRow(reg)
	if was != nil && (is == nil || !bytes.Equal(was.Key, is.Key)) {
		if err := tx.Delete(Waiting, was.Key); err != nil {
			return err
		}
	}
	if is == nil {
		return nil
	}
	return tx.Put(Waiting, is.Key, is.Value)
}

// Waiting returns the changes that wait or are not settled (registry.Waits).
func (s *Store) Waiting(ctx context.Context, limit int) ([]registry.Waiting, error) {
	var list []registry.Waiting
	var seek []byte
	for more := true; more && len(list) < limit; {
		var rows []Row
		if err := s.engine.View(ctx, func(tx Tx) (err error) {
			rows, more, err = tx.Scan(Waiting, nil, seek, min(limit-len(list), BatchRows))
			return err
		}); err != nil {
			return nil, unavailable(registry.ErrUnavailable, err)
		}
		for _, r := range rows {
			seek = after(r.Key)
			if w, ok := readWaiting(r); ok {
				list = append(list, w)
			}
		}
	}
	return list, nil
}

// errStray is an entry of the index of what waits that its record does not
// confirm.
var errStray = errors.New("no such change waits")

// Settle writes a record down as it has become by a change (registry.Waits).
func (s *Store) Settle(ctx context.Context, w registry.Waiting) error {
	row := registrationRow(w.Issuer, w.ClientID)
	entry := waitingKey(w.Issuer, w.ClientID, w.EffectiveAt)
	var stray []byte // what the row was when it did not confirm the entry
	err := s.change(ctx, row, func(seen []byte) ([]byte, func(Tx) error, error) {
		raw := new(registry.Registration)
		if seen != nil {
			var err error
			raw, err = s.registration(ctx, row, seen)
			if err != nil && !errors.Is(err, registry.ErrTampered) {
				return nil, nil, err
			}
		}
		switch {
		case raw == nil || raw.Pending == nil || !raw.Pending.EffectiveAt.Equal(w.EffectiveAt):
			stray = seen
			return nil, nil, errStray
		case time.Now().Before(w.EffectiveAt):
			return nil, nil, errNoChange
		}
		next := raw.Successor()
		value, _, err := s.seal(ctx, row, next)
		// The data key of its secret need not be asked: the row has named it all
		// the time, so that it cannot have been retired.
		return value, func(tx Tx) error { return moveIndexes(tx, raw, next) }, err
	})
	switch {
	case errors.Is(err, errNoChange):
		return nil
	case errors.Is(err, errStray):
		err = s.update(ctx, func(tx Tx) error {
			now, err := tx.Get(Registrations, row.Key)
			if err != nil {
				return err
			}
			if !same(now, stray) {
				return errNoChange // it may name the entry by now
			}
			return tx.Delete(Waiting, entry)
		})
	}
	return unavailable(registry.ErrUnavailable, err)
}
