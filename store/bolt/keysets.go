package bolt

import (
	"bytes"
	"context"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// uriBatch is how many URIs are read in one transaction.
const uriBatch = 256

// KeySet returns what is known of a jwks_uri (registry.Store).
func (s *Store) KeySet(ctx context.Context, uri string) (*registry.KeySet, error) {
	var set *registry.KeySet
	err := s.view(ctx, func(tx *bbolt.Tx) (err error) {
		k := []byte(uri)
		v := tx.Bucket(bucketKeySets).Get(k)
		if v == nil {
			return registry.ErrNotFound
		}
		set, err = decode[registry.KeySet](k, v)
		return err
	})
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	return set, nil
}

// PutKeySet replaces what is known of a jwks_uri (registry.Store). It writes
// nothing, and answers nil, if no live registration names the URI: the client
// was deleted while its keys were being fetched.
func (s *Store) PutKeySet(ctx context.Context, set registry.KeySet) error {
	err := s.update(ctx, func(tx *bbolt.Tx) error {
		if !named(tx, set.URI) {
			return errNoChange
		}
		v, err := encode(set)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketKeySets).Put([]byte(set.URI), v)
	})
	return unavailable(registry.ErrUnavailable, err)
}

// URIs calls yield for every jwks_uri in use, in byte order (registry.Store).
// It reads ahead in batches, and yield may use the store: a URI that comes
// into use or goes out of it meanwhile may or may not be among them.
func (s *Store) URIs(ctx context.Context, yield func(uri string) bool) error {
	var seek []byte
	for {
		var batch []string
		err := s.view(ctx, func(tx *bbolt.Tx) error {
			c := tx.Bucket(bucketURIs).Cursor()
			for k, _ := c.Seek(seek); k != nil && len(batch) < uriBatch; k, _ = c.Seek(seek) {
				uri, _, _ := bytes.Cut(k, []byte{0})
				batch = append(batch, string(uri))
				// Beyond all entries of this URI, which go on with a NUL.
				seek = append(bytes.Clone(uri), 1)
			}
			return nil
		})
		if err != nil {
			return unavailable(registry.ErrUnavailable, err)
		}
		for _, uri := range batch {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !yield(uri) {
				return nil
			}
		}
		if len(batch) < uriBatch {
			return nil
		}
	}
}
