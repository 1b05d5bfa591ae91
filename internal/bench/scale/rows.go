//go:build linux

package main

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/bulla-project/bulla/store/records"
)

// memory is an engine whose rows are in memory. A population is made in it, as
// no disk is waited for there, and then exported.
type memory struct {
	mu     sync.RWMutex // guards tables
	tables map[records.Table]*rows
}

// rows are those of a table.
type rows struct {
	values map[string][]byte
	sorted []string // the keys, or nil if they are not in order
}

var _ records.Engine = (*memory)(nil)

func newMemory() *memory {
	m := &memory{tables: make(map[records.Table]*rows)}
	for _, t := range records.Tables() {
		m.tables[t] = &rows{values: make(map[string][]byte)}
	}
	return m
}

// View implements records.Engine.
func (m *memory) View(_ context.Context, fn func(records.Tx) error) error {
	m.mu.Lock() // Scan sorts
	defer m.mu.Unlock()
	return fn(m)
}

// Update implements records.Engine, for functions that fail before they write.
func (m *memory) Update(ctx context.Context, fn func(records.Tx) error) error {
	return m.View(ctx, fn)
}

// Check implements records.Engine.
func (m *memory) Check(ctx context.Context) error { return ctx.Err() }

// Close implements records.Engine.
func (m *memory) Close() error { return nil }

// Get implements records.Tx.
func (m *memory) Get(t records.Table, key []byte) ([]byte, error) {
	return bytes.Clone(m.tables[t].values[string(key)]), nil
}

// GetAll implements records.Tx.
func (m *memory) GetAll(t records.Table, keys [][]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		values[i] = bytes.Clone(m.tables[t].values[string(key)])
	}
	return values, nil
}

// Scan implements records.Tx.
func (m *memory) Scan(t records.Table, prefix, seek []byte, limit int) (found []records.Row, more bool, err error) {
	r := m.tables[t]
	if r.sorted == nil {
		r.sorted = make([]string, 0, len(r.values))
		for key := range r.values {
			r.sorted = append(r.sorted, key)
		}
		slices.Sort(r.sorted)
	}
	if bytes.Compare(seek, prefix) < 0 {
		seek = prefix
	}
	at, _ := slices.BinarySearch(r.sorted, string(seek))
	for size := 0; at < len(r.sorted) && bytes.HasPrefix([]byte(r.sorted[at]), prefix); at++ {
		if len(found) >= limit || size >= records.BatchBytes {
			return found, true, nil
		}
		key := r.sorted[at]
		value := append([]byte{}, r.values[key]...)
		found = append(found, records.Row{Key: []byte(key), Value: value})
		size += len(key) + len(value)
	}
	return found, false, nil
}

// Put implements records.Tx.
func (m *memory) Put(t records.Table, key, value []byte) error {
	r := m.tables[t]
	if _, ok := r.values[string(key)]; !ok {
		r.sorted = nil
	}
	r.values[string(key)] = append([]byte{}, value...)
	return nil
}

// Delete implements records.Tx.
func (m *memory) Delete(t records.Table, key []byte) error {
	r := m.tables[t]
	if _, ok := r.values[string(key)]; ok {
		delete(r.values, string(key))
		r.sorted = nil
	}
	return nil
}
