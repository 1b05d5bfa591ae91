package bolt

import (
	"bytes"
	"context"
	"errors"

	"go.etcd.io/bbolt"

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
	err := s.change(ctx, row, func([]byte) ([]byte, func(*bbolt.Tx) error, error) {
		value, _, err := s.seal(ctx, row, set)
		return value, func(tx *bbolt.Tx) error {
			if !named(tx, set.URI) {
				return errNoChange
			}
			return nil
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
		entries, more, err = s.indexBatch(ctx, seek)
		if err != nil {
			return unavailable(registry.ErrUnavailable, err)
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			confirmed, err := s.confirms(ctx, e)
			if err != nil {
				return unavailable(registry.ErrUnavailable, err)
			}
			if !confirmed {
				// Perhaps another client names this URI.
				seek, more = after(e.key), true
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

// indexBatch reads the index from seek on, the first entry of each URI. more
// is false if they are the last.
func (s *Store) indexBatch(ctx context.Context, seek []byte) (entries []indexEntry, more bool, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		size := 0
		c := tx.Bucket(bucketURIs).Cursor()
		for k, _ := c.Seek(seek); k != nil; k, _ = c.Seek(seek) {
			if len(entries) >= batchRows || size >= batchBytes {
				more = true
				return nil
			}
			uri, client, _ := bytes.Cut(k, []byte{0})
			v := tx.Bucket(bucketRegistrations).Get(client)
			entries = append(entries, indexEntry{bytes.Clone(k), string(uri), stored{
				envelope.Row{Kind: envelope.Registration, Key: bytes.Clone(client)}, bytes.Clone(v),
			}})
			size += len(k) + len(v)
			seek = beyond(string(uri))
		}
		return nil
	})
	return entries, more, err
}

// confirms reports whether the registration of an index entry names its URI.
func (s *Store) confirms(ctx context.Context, e indexEntry) (bool, error) {
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
	return namedURI(reg) == e.uri, nil
}
