package bolt

import (
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

func TestTampering(t *testing.T) {
	storetest.Tampering(t, func(t *testing.T) *storetest.Victim { return victim(t, datakeytest.NewWrapper()) })
}

func TestTransfer(t *testing.T) { storetest.Transfer(t, victim) }

// victim is an empty store for the suites, which look into its file.
func victim(t *testing.T, w *datakeytest.Wrapper) *storetest.Victim {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bulla.db")
	s := openWith(t, path, w)
	s.file.db.NoSync = true
	edit := func(fn func(*bbolt.Tx) error) {
		t.Helper()
		if err := s.file.db.Update(fn); err != nil {
			t.Fatal(err)
		}
	}
	return &storetest.Victim{
		Store: s,
		Reopen: func() storetest.Authenticated {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openWith(t, path, w)
			s.file.db.NoSync = true
			return s
		},
		Wrapper: w,
		Read: func(row envelope.Row) []byte {
			t.Helper()
			return read(t, s, row)
		},
		Write: func(row envelope.Row, value []byte) {
			t.Helper()
			edit(func(tx *bbolt.Tx) error {
				if value == nil {
					return tx.Bucket([]byte(records.TableOf(row.Kind))).Delete(row.Key)
				}
				return tx.Bucket([]byte(records.TableOf(row.Kind))).Put(row.Key, value)
			})
		},
		DeleteDataKeys: func() {
			t.Helper()
			edit(func(tx *bbolt.Tx) error {
				if err := tx.DeleteBucket([]byte(records.DataKeys)); err != nil {
					return err
				}
				_, err := tx.CreateBucket([]byte(records.DataKeys))
				return err
			})
		},
	}
}
