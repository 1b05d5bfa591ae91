package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer/keyring"
)

// errInvalidRing is a ring that cannot be stored whatever the state of the
// store: a mistake of the caller.
var errInvalidRing = errors.New("key ring names no issuer or no algorithm, or one with a NUL in it")

// Ring returns the ring of an issuer and algorithm (keyring.Store).
func (s *Store) Ring(ctx context.Context, issuer string, alg kms.Algorithm) (*keyring.Ring, error) {
	var ring *keyring.Ring
	err := s.view(ctx, func(tx *bbolt.Tx) (err error) {
		k := key(issuer, string(alg))
		v := tx.Bucket(bucketRings).Get(k)
		if v == nil {
			return keyring.ErrNotFound
		}
		ring, err = decode[keyring.Ring](k, v)
		return err
	})
	if err != nil {
		return nil, unavailable(keyring.ErrUnavailable, err)
	}
	return ring, nil
}

// PutRing writes a ring over the revision the caller expects (keyring.Store).
func (s *Store) PutRing(ctx context.Context, ring keyring.Ring, expect uint64) (*keyring.Ring, error) {
	if ring.Issuer == "" || ring.Algorithm == "" || strings.Contains(ring.Issuer+string(ring.Algorithm), "\x00") {
		return nil, errInvalidRing
	}
	var written *keyring.Ring
	err := s.update(ctx, func(tx *bbolt.Tx) (err error) {
		written, err = putRing(tx, ring, expect)
		return err
	})
	if err != nil {
		return nil, unavailable(keyring.ErrUnavailable, err)
	}
	return written, nil
}

func putRing(tx *bbolt.Tx, ring keyring.Ring, expect uint64) (*keyring.Ring, error) {
	k := key(ring.Issuer, string(ring.Algorithm))
	bucket := tx.Bucket(bucketRings)
	stored := uint64(0)
	if v := bucket.Get(k); v != nil {
		old, err := decode[keyring.Ring](k, v)
		if err != nil {
			return nil, err
		}
		stored = old.Revision
	}
	if stored != expect {
		return nil, fmt.Errorf("%w: %d was expected, the store has %d", keyring.ErrRevision, expect, stored)
	}
	ring.Revision = stored + 1
	v, err := encode(ring)
	if err != nil {
		return nil, err
	}
	if err := bucket.Put(k, v); err != nil {
		return nil, err
	}
	return decode[keyring.Ring](k, v)
}

// Rings returns all rings of an issuer (keyring.Store).
func (s *Store) Rings(ctx context.Context, issuer string) ([]*keyring.Ring, error) {
	var rings []*keyring.Ring
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		prefix := key(issuer, "")
		c := tx.Bucket(bucketRings).Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			ring, err := decode[keyring.Ring](k, v)
			if err != nil {
				return err
			}
			rings = append(rings, ring)
		}
		return nil
	})
	if err != nil {
		return nil, unavailable(keyring.ErrUnavailable, err)
	}
	return rings, nil
}
