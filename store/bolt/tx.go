package bolt

import (
	"bytes"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/store/records"
)

// tx is a transaction of bbolt as one of an engine. It sees one state of the
// store, and what it writes itself.
type tx struct{ *bbolt.Tx }

// bucket is where the rows of a table lie.
func (t tx) bucket(table records.Table) (*bbolt.Bucket, error) {
	b := t.Bucket([]byte(table))
	if b == nil {
		return nil, fmt.Errorf("the store's file has no bucket %q; restore it from a backup", table)
	}
	return b, nil
}

// Get implements records.Tx.
func (t tx) Get(table records.Table, key []byte) ([]byte, error) {
	b, err := t.bucket(table)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(b.Get(key)), nil
}

// GetAll implements records.Tx.
func (t tx) GetAll(table records.Table, keys [][]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		var err error
		if values[i], err = t.Get(table, key); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// Scan implements records.Tx.
func (t tx) Scan(table records.Table, prefix, seek []byte, limit int) (rows []records.Row, more bool, err error) {
	b, err := t.bucket(table)
	if err != nil {
		return nil, false, err
	}
	if bytes.Compare(seek, prefix) < 0 {
		seek = prefix
	}
	size := 0
	c := b.Cursor()
	for k, v := c.Seek(seek); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if len(rows) >= limit || size >= records.BatchBytes {
			return rows, true, nil
		}
		rows = append(rows, records.Row{Key: bytes.Clone(k), Value: append([]byte{}, v...)})
		size += len(k) + len(v)
	}
	return rows, false, nil
}

// Put implements records.Tx.
func (t tx) Put(table records.Table, key, value []byte) error {
	b, err := t.bucket(table)
	if err != nil {
		return err
	}
	return b.Put(key, append([]byte{}, value...)) // bbolt keeps what it is given
}

// Delete implements records.Tx.
func (t tx) Delete(table records.Table, key []byte) error {
	b, err := t.bucket(table)
	if err != nil {
		return err
	}
	return b.Delete(key)
}
