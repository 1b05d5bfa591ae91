package records

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/envelope"
)

func registrationRow(issuer, clientID string) envelope.Row {
	return envelope.Row{Kind: envelope.Registration, Key: envelope.Key(issuer, clientID)}
}

// Get returns the registration of a client as it stands now (registry.Store).
func (s *Store) Get(ctx context.Context, issuer, clientID string) (*registry.Registration, error) {
	reg, err := s.Unsettled(ctx, issuer, clientID)
	if err != nil {
		return nil, err
	}
	return reg.InForce(time.Now()), nil
}

// Unsettled returns the registration of a client as it is stored (registry.Waits).
func (s *Store) Unsettled(ctx context.Context, issuer, clientID string) (*registry.Registration, error) {
	row := registrationRow(issuer, clientID)
	value, err := s.read(ctx, row)
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	if value == nil {
		return nil, registry.ErrNotFound
	}
	reg, err := s.registration(ctx, row, value)
	return reg, unavailable(registry.ErrUnavailable, err)
}

// registration verifies and reads the value of a registration's row.
func (s *Store) registration(ctx context.Context, row envelope.Row, value []byte) (*registry.Registration, error) {
	record, err := s.verify(ctx, row, value)
	if errors.Is(err, envelope.ErrTampered) {
		return nil, &registry.TamperedError{Revision: claimedRevision(value)}
	}
	if err != nil {
		return nil, err
	}
	return decode[registry.Registration](record)
}

// claimedRevision is the revision that a value which fails its authentication
// says it has, so that it can be replaced by who names it. It is never 0, which
// would let the row be replaced by who may only create, and it can be counted
// on from.
func claimedRevision(value []byte) uint64 {
	var claim struct {
		Revision uint64 `json:"revision"`
	}
	if err := json.Unmarshal(envelope.Claimed(value), &claim); err != nil || claim.Revision < 1 || claim.Revision > math.MaxInt32 {
		return 1
	}
	return claim.Revision
}

// Put writes a registration over the revision the caller expects
// (registry.Store). A record out of shape is registry.ErrInvalid. Over a record
// that fails its authentication, the expected revision is that of its
// registry.TamperedError; nothing of that record is taken over.
func (s *Store) Put(ctx context.Context, reg registry.Registration, expect uint64) (*registry.Registration, error) {
	if err := reg.Validate(); err != nil {
		return nil, err
	}
	row := registrationRow(reg.Issuer, reg.ClientID)
	var written *registry.Registration
	err := s.change(ctx, row, func(seen []byte) ([]byte, func(Tx) error, error) {
		was := new(registry.Registration) // revision 0: there is none
		tampered := new(registry.TamperedError)
		var err error
		if seen != nil {
			was, err = s.registration(ctx, row, seen)
		}
		var entries []indexEntry
		if errors.As(err, &tampered) {
			was = &registry.Registration{Revision: tampered.Revision, Deleted: true}
			entries, err = s.entriesOf(ctx, row)
		}
		if err != nil {
			return nil, nil, err
		}
		// A change that took effect meanwhile is one that the caller has not seen.
		old := was.InForce(time.Now())
		if old.Revision != expect {
			return nil, nil, fmt.Errorf("%w: %d was expected, the store has %d", registry.ErrRevision, expect, old.Revision)
		}
		next := successor(reg, old)
		value, raw, err := s.seal(ctx, row, next)
		if err != nil {
			return nil, nil, err
		}
		// Decoded from what is stored: it shares no memory with the caller's.
		if written, err = decode[registry.Registration](raw); err != nil {
			return nil, nil, err
		}
		return value, func(tx Tx) error {
			for _, sec := range secretsOf(next) {
				if _, err := takesNew(tx, sec.DataKey, errSecretRetired); err != nil {
					return err
				}
			}
			if err := dropURIs(tx, entries); err != nil {
				return err
			}
			return moveIndexes(tx, was, next)
		}, nil
	})
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	s.alarms.sound(row)
	return written, nil
}

// errSecretRetired is a secret that was sealed before its data key went out of
// use, and is written after.
var errSecretRetired = errors.New("the data key that seals the client's secret is gone from the store or is being retired; send the request again")

// successor is reg as it follows on old.
func successor(reg registry.Registration, old *registry.Registration) *registry.Registration {
	// Microseconds are what every store can keep.
	reg.UpdatedAt = time.Now().UTC().Truncate(time.Microsecond)
	reg.CreatedAt = old.CreatedAt
	if old.Revision == 0 || old.CreatedAt.IsZero() || old.Deleted && !reg.Deleted {
		reg.CreatedAt = reg.UpdatedAt
	}
	reg.Revision = old.Revision + 1
	return &reg
}

// secretsOf are the sealed secrets of a record: of what is in force, and of what
// waits.
func secretsOf(r *registry.Registration) []*registry.Secret {
	var list []*registry.Secret
	if r.Source.Secret != nil {
		list = append(list, r.Source.Secret)
	}
	if r.Pending != nil && r.Pending.Source.Secret != nil {
		list = append(list, r.Pending.Source.Secret)
	}
	return list
}

// moveIndexes brings the indexes from the old record to the new one.
func moveIndexes(tx Tx, old, reg *registry.Registration) error {
	if err := moveURIs(tx, old, reg); err != nil {
		return err
	}
	return moveWaiting(tx, old, reg)
}

// moveURIs brings the index of URIs from the old record to the new one, and
// drops the key sets that no live registration names any more.
func moveURIs(tx Tx, old, reg *registry.Registration) error {
	is := namedURIs(reg)
	for _, uri := range is { // also if it was named: the index may have lost it
		if err := tx.Put(URIs, envelope.Key(uri, reg.Issuer, reg.ClientID), []byte{}); err != nil {
			return err
		}
	}
	for _, uri := range namedURIs(old) {
		if slices.Contains(is, uri) {
			continue
		}
		if err := dropURI(tx, uri, envelope.Key(uri, reg.Issuer, reg.ClientID)); err != nil {
			return err
		}
	}
	return nil
}

// dropURI takes an entry of a URI out of the index, and drops the key set that
// no live registration names any more.
func dropURI(tx Tx, uri string, entry []byte) error {
	if err := tx.Delete(URIs, entry); err != nil {
		return err
	}
	still, err := named(tx, uri)
	if err != nil || still {
		return err
	}
	return tx.Delete(KeySets, []byte(uri))
}

// namedURIs are the jwks_uris that a stored record names: as a live one, and by
// what waits, whose set is kept before it is in force.
func namedURIs(r *registry.Registration) []string {
	var list []string
	if uri := r.Source.JWKSURI; uri != "" && !r.Deleted {
		list = append(list, uri)
	}
	if r.Pending != nil {
		if uri := r.Pending.Source.JWKSURI; uri != "" && !slices.Contains(list, uri) {
			list = append(list, uri)
		}
	}
	return list
}

// named reports whether a live registration names the URI.
func named(tx Tx, uri string) (bool, error) {
	prefix := envelope.Key(uri, "")
	rows, _, err := tx.Scan(URIs, prefix, prefix, 1)
	return len(rows) > 0, err
}

// entriesOf finds all entries of a client in the index. It is for a client of
// which it is not known what it named, and walks the whole index. Entries of a
// client change with its row only, so that what was found holds for as long as
// the row does.
func (s *Store) entriesOf(ctx context.Context, row envelope.Row) (entries []indexEntry, err error) {
	suffix := append([]byte{0}, row.Key...)
	var seek []byte
	for more := true; more; {
		var rows []Row
		if err := s.engine.View(ctx, func(tx Tx) error {
			rows, more, err = tx.Scan(URIs, nil, seek, BatchRows)
			return err
		}); err != nil {
			return nil, err
		}
		for _, r := range rows {
			seek = after(r.Key)
			if uri, ok := bytes.CutSuffix(r.Key, suffix); ok {
				entries = append(entries, indexEntry{key: r.Key, uri: string(uri)})
			}
		}
	}
	return entries, nil
}

// dropURIs takes entries out of the index, and drops the key sets that no live
// registration names any more.
func dropURIs(tx Tx, entries []indexEntry) error {
	for _, e := range entries {
		if err := dropURI(tx, e.uri, e.key); err != nil {
			return err
		}
	}
	return nil
}

// List returns live registrations, and tombstones whose registration anew waits,
// in the order of their client_id, and in the place of a row that fails its
// authentication its name (registry.Store). A
// client that is registered or deleted meanwhile may or may not be among them.
func (s *Store) List(ctx context.Context, issuer, from string, limit int) ([]*registry.Registration, error) {
	prefix := envelope.Key(issuer, "")
	seek := envelope.Key(issuer, from)
	now := time.Now()
	var list []*registry.Registration
	for more := true; more && len(list) < limit; {
		var rows []stored
		var err error
		rows, more, err = s.batch(ctx, envelope.Registration, prefix, seek, limit-len(list))
		if err != nil {
			return nil, unavailable(registry.ErrUnavailable, err)
		}
		for _, r := range rows {
			seek = after(r.Key)
			reg, err := s.registration(ctx, r.Row, r.value)
			tampered := new(registry.TamperedError)
			switch {
			case errors.As(err, &tampered):
				clientID := string(r.Key[len(prefix):])
				if registry.NameProblem(clientID) != "" {
					continue // not even the name of a client; the log has it
				}
				reg = &registry.Registration{Issuer: issuer, ClientID: clientID, Revision: tampered.Revision, Tampered: true}
			case err != nil:
				return nil, unavailable(registry.ErrUnavailable, err)
			case reg.Deleted && reg.Pending == nil:
				continue
			}
			list = append(list, reg.InForce(now))
		}
	}
	return list, nil
}
