package bolt

import (
	"testing"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/storetest"
)

func TestTampering(t *testing.T) {
	storetest.Tampering(t, func(t *testing.T) *storetest.Victim {
		s, reopen, w := wrapped(t)
		s.db.NoSync = true
		edit := func(fn func(*bbolt.Tx) error) {
			t.Helper()
			if err := s.db.Update(fn); err != nil {
				t.Fatal(err)
			}
		}
		return &storetest.Victim{
			Store: s,
			Reopen: func() storetest.Authenticated {
				s = reopen()
				s.db.NoSync = true
				return s
			},
			Wrapper: w,
			Read: func(row envelope.Row) []byte {
				t.Helper()
				value, err := s.read(t.Context(), row)
				if err != nil {
					t.Fatal(err)
				}
				return value
			},
			Write: func(row envelope.Row, value []byte) {
				t.Helper()
				edit(func(tx *bbolt.Tx) error {
					if value == nil {
						return tx.Bucket(bucketOf(row.Kind)).Delete(row.Key)
					}
					return tx.Bucket(bucketOf(row.Kind)).Put(row.Key, value)
				})
			},
			DeleteDataKeys: func() {
				t.Helper()
				edit(func(tx *bbolt.Tx) error {
					if err := tx.DeleteBucket(bucketDataKeys); err != nil {
						return err
					}
					_, err := tx.CreateBucket(bucketDataKeys)
					return err
				})
			},
		}
	})
}
