package bolt

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// Get returns the registration of a client (registry.Store).
func (s *Store) Get(ctx context.Context, issuer, clientID string) (*registry.Registration, error) {
	var reg *registry.Registration
	err := s.view(ctx, func(tx *bbolt.Tx) (err error) {
		reg, err = getRegistration(tx, issuer, clientID)
		return err
	})
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	return reg, nil
}

func getRegistration(tx *bbolt.Tx, issuer, clientID string) (*registry.Registration, error) {
	k := key(issuer, clientID)
	v := tx.Bucket(bucketRegistrations).Get(k)
	if v == nil {
		return nil, registry.ErrNotFound
	}
	return decode[registry.Registration](k, v)
}

// Put writes a registration over the revision the caller expects
// (registry.Store). A record out of shape is registry.ErrInvalid.
func (s *Store) Put(ctx context.Context, reg registry.Registration, expect uint64) (*registry.Registration, error) {
	if err := reg.Validate(); err != nil {
		return nil, err
	}
	var written *registry.Registration
	err := s.update(ctx, func(tx *bbolt.Tx) (err error) {
		written, err = putRegistration(tx, reg, expect)
		return err
	})
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	return written, nil
}

func putRegistration(tx *bbolt.Tx, reg registry.Registration, expect uint64) (*registry.Registration, error) {
	k := key(reg.Issuer, reg.ClientID)
	bucket := tx.Bucket(bucketRegistrations)
	old := new(registry.Registration) // revision 0: there is none
	if v := bucket.Get(k); v != nil {
		var err error
		if old, err = decode[registry.Registration](k, v); err != nil {
			return nil, err
		}
	}
	if old.Revision != expect {
		return nil, fmt.Errorf("%w: %d was expected, the store has %d", registry.ErrRevision, expect, old.Revision)
	}

	// Microseconds are what every store can keep.
	reg.UpdatedAt = time.Now().UTC().Truncate(time.Microsecond)
	reg.CreatedAt = old.CreatedAt
	if old.Revision == 0 || old.Deleted && !reg.Deleted {
		reg.CreatedAt = reg.UpdatedAt
	}
	reg.Revision = old.Revision + 1

	v, err := encode(reg)
	if err != nil {
		return nil, err
	}
	if err := bucket.Put(k, v); err != nil {
		return nil, err
	}
	if err := moveURI(tx, old, &reg); err != nil {
		return nil, err
	}
	// Decoded from what is stored: it shares no memory with the caller's.
	return decode[registry.Registration](k, v)
}

// moveURI brings the index of URIs from the old record to the new one, and
// drops the key set that no live registration names any more.
func moveURI(tx *bbolt.Tx, old, reg *registry.Registration) error {
	was, is := namedURI(old), namedURI(reg)
	if was == is {
		return nil
	}
	index := tx.Bucket(bucketURIs)
	if is != "" {
		if err := index.Put(key(is, reg.Issuer, reg.ClientID), nil); err != nil {
			return err
		}
	}
	if was == "" {
		return nil
	}
	if err := index.Delete(key(was, reg.Issuer, reg.ClientID)); err != nil {
		return err
	}
	if named(tx, was) {
		return nil
	}
	return tx.Bucket(bucketKeySets).Delete([]byte(was))
}

// namedURI is the jwks_uri that the record names as a live one, or "".
func namedURI(r *registry.Registration) string {
	if r.Deleted {
		return ""
	}
	return r.Source.JWKSURI
}

// named reports whether a live registration names the URI.
func named(tx *bbolt.Tx, uri string) bool {
	prefix := key(uri, "")
	k, _ := tx.Bucket(bucketURIs).Cursor().Seek(prefix)
	return bytes.HasPrefix(k, prefix)
}

// List returns live registrations in the order of their client_id
// (registry.Store).
func (s *Store) List(ctx context.Context, issuer, from string, limit int) ([]*registry.Registration, error) {
	var list []*registry.Registration
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketRegistrations).Cursor()
		prefix := key(issuer, "")
		for k, v := c.Seek(key(issuer, from)); bytes.HasPrefix(k, prefix) && len(list) < limit; k, v = c.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			reg, err := decode[registry.Registration](k, v)
			if err != nil {
				return err
			}
			if !reg.Deleted {
				list = append(list, reg)
			}
		}
		return nil
	})
	if err != nil {
		return nil, unavailable(registry.ErrUnavailable, err)
	}
	return list, nil
}
