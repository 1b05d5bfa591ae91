package records

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/envelope"
)

func keySetRow(uri string) envelope.Row {
	return envelope.Row{Kind: envelope.KeySet, Key: envelope.Key(uri)}
}

// KeySet returns what is known of a jwks_uri (registry.Store). A set that
// fails its authentication is as good as none: it is alarmed, and fetched
// anew.
func (s *Store) KeySet(ctx context.Context, uri string) (*registry.KeySet, error) {
	row := keySetRow(uri)
	value, err := s.read(ctx, row)
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	if value == nil {
		return nil, registry.ErrNotFound
	}
	record, err := s.verify(ctx, row, value)
	if errors.Is(err, envelope.ErrTampered) {
		return nil, registry.ErrNotFound
	}
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	set, err := decode[registry.KeySet](record)
	return set, unavailable(registry.ErrUnavailable, err)
}

// PutKeySet replaces what is known of a jwks_uri (registry.Store). It writes
// nothing, and answers nil, if no live registration names the URI: the client
// was deleted while its keys were being fetched.
func (s *Store) PutKeySet(ctx context.Context, set registry.KeySet) error {
	row := keySetRow(set.URI)
	err := s.change(ctx, row, func([]byte) ([]byte, func(Tx) error, error) {
		value, _, err := s.seal(ctx, row, set)
		return value, func(tx Tx) error {
			in, err := named(tx, set.URI)
			if err == nil && !in {
				err = errNoChange
			}
			return err
		}, err
	})
	return unavailable(registry.ErrUnavailable, err)
}

// URIs calls yield for every jwks_uri in use, in byte order (registry.Store).
// It reads ahead in batches, and yield may use the store: a URI that comes
// into use or goes out of it meanwhile may or may not be among them. The index
// is not authenticated: a URI counts if an authentic registration names it.
func (s *Store) URIs(ctx context.Context, yield func(uri string) bool) error {
	var seek []byte
	for more := true; more; {
		var entries []indexEntry
		var err error
		entries, more, err = s.indexBatch(ctx, nil, seek, true)
		if err != nil {
			return unavailable(registry.ErrUnavailable, err)
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			found, err := s.confirms(ctx, e)
			if err != nil {
				return unavailable(registry.ErrUnavailable, err)
			}
			if found == stale {
				// Perhaps another client names this URI.
				seek, more = after(e.key), true
				break
			}
			if found == moved {
				// The client has left the URI since the index was read. Another
				// that sorts before it may have come.
				seek, more = []byte(e.uri), true
				break
			}
			if !yield(e.uri) {
				return nil
			}
			seek = beyond(e.uri)
		}
	}
	return nil
}

// ClientsOf calls yield for every live client that names a jwks_uri, or will when
// a change of its registration takes effect, in byte order of issuer and client_id, until yield returns false. It reads ahead in
// batches, and yield may use the store: a client that comes to name the URI
// meanwhile, or leaves it, may or may not be among them. A client whose
// registration fails its authentication is not.
func (s *Store) ClientsOf(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error {
	prefix := envelope.Key(uri, "")
	seek := prefix
	for more := true; more; {
		var entries []indexEntry
		var err error
		entries, more, err = s.indexBatch(ctx, prefix, seek, false)
		if err != nil {
			return unavailable(registry.ErrUnavailable, err)
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			seek = after(e.key)
			found, err := s.confirms(ctx, e)
			if err != nil {
				return unavailable(registry.ErrUnavailable, err)
			}
			issuer, clientID, ok := strings.Cut(string(e.Key), "\x00")
			if found == confirmed && ok && !yield(issuer, clientID) {
				return nil
			}
		}
	}
	return nil
}

// beyond is where the index goes on after all entries of a URI, which follow
// it with a NUL.
func beyond(uri string) []byte { return append([]byte(uri), 1) }

// indexEntry is an entry of the index of URIs, with the row of the
// registration it is for.
type indexEntry struct {
	key []byte
	uri string
	stored
}

// indexBatch reads the entries of the index from seek on whose keys begin with
// prefix, with what their registrations are; with first, the first entry of each
// URI only. more is false if they are the last.
func (s *Store) indexBatch(ctx context.Context, prefix, seek []byte, first bool) (entries []indexEntry, more bool, err error) {
	err = s.engine.View(ctx, func(tx Tx) error {
		entries = nil
		var rows []Row
		if rows, more, err = tx.Scan(URIs, prefix, seek, BatchRows); err != nil {
			return err
		}
		size := 0
		for _, r := range rows {
			uri, client, _ := bytes.Cut(r.Key, []byte{0})
			if n := len(entries); first && n > 0 && entries[n-1].uri == string(uri) {
				continue
			}
			if size >= BatchBytes {
				more = true
				return nil
			}
			value, err := tx.Get(Registrations, client)
			if err != nil {
				return err
			}
			entries = append(entries, indexEntry{r.Key, string(uri), stored{
				envelope.Row{Kind: envelope.Registration, Key: client}, value,
			}})
			size += len(r.Key) + len(value)
		}
		return nil
	})
	return entries, more, err
}

// What confirms finds out of an entry of the index.
type confirmation int

const (
	confirmed confirmation = iota // its registration names its URI
	stale                         // it does not, and the entry is there all the same
	moved                         // it does not, and the entry is gone now
)

// confirms holds an entry of the index against the registration it is for.
func (s *Store) confirms(ctx context.Context, e indexEntry) (confirmation, error) {
	names, err := s.names(ctx, e)
	if err != nil || names {
		return confirmed, err
	}
	var now []byte
	err = s.engine.View(ctx, func(tx Tx) error {
		now, err = tx.Get(URIs, e.key)
		return err
	})
	if err != nil || now != nil {
		return stale, err
	}
	return moved, nil
}

// names reports whether the registration of an entry names its URI.
func (s *Store) names(ctx context.Context, e indexEntry) (bool, error) {
	if e.value == nil {
		return false, nil
	}
	record, err := s.verify(ctx, e.Row, e.value)
	if errors.Is(err, envelope.ErrTampered) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	reg, err := decode[registry.Registration](record)
	if err != nil {
		return false, err
	}
	return slices.Contains(namedURIs(reg), e.uri), nil
}
