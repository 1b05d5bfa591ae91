package records_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

// database is rows in memory that several engines share, with what an engine in
// earnest can hardly be made to do: fail when it is told to.
type database struct {
	writer chan struct{} // a token while nobody writes

	mu      sync.Mutex
	rows    map[string]string // by table, NUL and key; guarded by mu
	keys    []string          // of rows, sorted; guarded by mu
	leases  map[string]held   // by key; guarded by mu
	engines []*memory         // guarded by mu
}

type held struct {
	lease string
	until time.Time
}

func newDatabase() *database {
	d := &database{writer: make(chan struct{}, 1), rows: map[string]string{}, leases: map[string]held{}}
	d.writer <- struct{}{}
	return d
}

// set writes a row, nil for none; for the holder of mu.
func (d *database) set(key string, value *string) {
	at, there := slices.BinarySearch(d.keys, key)
	switch {
	case value == nil && there:
		d.keys = slices.Delete(d.keys, at, at+1)
	case value != nil && !there:
		d.keys = slices.Insert(d.keys, at, key)
	}
	if value == nil {
		delete(d.rows, key)
		return
	}
	d.rows[key] = *value
}

func (d *database) engine() *memory {
	m := &memory{d: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.engines = append(d.engines, m)
	return m
}

// memory is one process's engine. It implements records.Shared.
type memory struct {
	d *database

	// updates counts Updates that are to succeed; when it is 0, they fail.
	// -1 is for ever. For one goroutine.
	updates int
	limited bool

	follower records.Follower // guarded by d.mu
	closed   bool             // guarded by d.mu
}

var (
	errClosed = errors.New("the store has been closed")
	errBroken = errors.New("the connection was lost")
)

func (m *memory) ready(ctx context.Context) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.closed {
		return errClosed
	}
	return ctx.Err()
}

func (m *memory) Check(ctx context.Context) error { return m.ready(ctx) }

func (m *memory) Close() error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	m.closed = true
	return nil
}

func (m *memory) View(ctx context.Context, fn func(records.Tx) error) error {
	if err := m.ready(ctx); err != nil {
		return err
	}
	return fn(&memoryTx{d: m.d})
}

// turn waits to be the one who writes.
func (m *memory) turn(ctx context.Context) (done func(), err error) {
	select {
	case <-m.d.writer:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	done = func() { m.d.writer <- struct{}{} }
	if err := m.ready(ctx); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

func (m *memory) Update(ctx context.Context, fn func(records.Tx) error) error {
	done, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	t := &memoryTx{d: m.d, writes: map[string]*string{}}
	if err := fn(t); err != nil {
		return err
	}
	if m.limited {
		if m.updates == 0 {
			return errBroken
		}
		m.updates--
	}
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	for k, v := range t.writes {
		table, key, _ := strings.Cut(k, "\x00")
		if table == string(records.KeySets) {
			delete(m.d.leases, key)
		}
		m.d.set(k, v)
		if v != nil {
			m.d.tell(records.Table(table), key)
		}
	}
	return nil
}

// tell tells followers; for the holder of mu.
func (d *database) tell(table records.Table, key string) {
	for _, m := range d.engines {
		if m.follower != nil && table.Announced() {
			m.follower.Changed(table, []byte(key))
		}
	}
}

func (m *memory) Follow(ctx context.Context, f records.Follower) error {
	set := func(f records.Follower) {
		m.d.mu.Lock()
		defer m.d.mu.Unlock()
		m.follower = f
	}
	set(f)
	<-ctx.Done()
	set(nil)
	return nil
}

func (m *memory) Current() time.Time {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.follower == nil {
		return time.Time{}
	}
	return time.Now()
}

func (m *memory) Claim(ctx context.Context, key []byte, d time.Duration) (records.Claim, error) {
	done, err := m.turn(ctx)
	if err != nil {
		return records.Claim{}, err
	}
	defer done()
	t := &memoryTx{d: m.d}
	value, _ := t.Get(records.KeySets, key)
	prefix := append(bytes.Clone(key), 0)
	if named, _, _ := t.Scan(records.URIs, prefix, prefix, 1); len(named) == 0 {
		return records.Claim{Unnamed: true, Value: value}, nil
	}
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	now := time.Now()
	if h, ok := m.d.leases[string(key)]; ok && now.Before(h.until) && !h.until.After(now.Add(records.MaxLease)) {
		return records.Claim{Until: h.until, Value: value}, nil
	}
	h := held{rand.Text(), now.Add(d)}
	m.d.leases[string(key)] = h
	return records.Claim{Lease: h.lease, Until: h.until, Value: value}, nil
}

func (m *memory) PutClaimed(ctx context.Context, key, value []byte, lease string, guard records.Guard, announce bool) error {
	done, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	now, _ := (&memoryTx{d: m.d}).Get(guard.Table, guard.Key)
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	h, ok := m.d.leases[string(key)]
	switch {
	case !ok || h.lease != lease || time.Now().After(h.until):
		return records.ErrLeaseLost
	case now == nil || !bytes.Equal(now, guard.Value):
		return records.ErrGuard
	}
	delete(m.d.leases, string(key))
	text := string(value)
	m.d.set(name(records.KeySets, key), &text)
	if announce {
		m.d.tell(records.KeySets, string(key))
	}
	return nil
}

func (m *memory) Release(ctx context.Context, key []byte, lease string) error {
	if err := m.ready(ctx); err != nil {
		return err
	}
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.d.leases[string(key)].lease == lease {
		delete(m.d.leases, string(key))
	}
	return nil
}

// memoryTx is a transaction: the rows, and over them what it has written.
type memoryTx struct {
	d      *database
	writes map[string]*string // nil in View; a nil value is a row that is deleted
}

func name(t records.Table, key []byte) string { return string(t) + "\x00" + string(key) }

func (t *memoryTx) Get(table records.Table, key []byte) ([]byte, error) {
	if v, ok := t.writes[name(table, key)]; ok {
		if v == nil {
			return nil, nil
		}
		return []byte(*v), nil
	}
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	if v, ok := t.d.rows[name(table, key)]; ok {
		return []byte(v), nil
	}
	return nil, nil
}

func (t *memoryTx) GetAll(table records.Table, keys [][]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		values[i], _ = t.Get(table, key)
	}
	return values, nil
}

func (t *memoryTx) Scan(table records.Table, prefix, seek []byte, limit int) (rows []records.Row, more bool, err error) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	within := func(k string) bool {
		return strings.HasPrefix(k, name(table, prefix)) && k >= name(table, seek)
	}
	var keys []string
	at, _ := slices.BinarySearch(t.d.keys, max(name(table, prefix), name(table, seek)))
	for ; at < len(t.d.keys) && within(t.d.keys[at]) && len(keys) <= limit+len(t.writes); at++ {
		keys = append(keys, t.d.keys[at])
	}
	for k := range t.writes {
		if within(k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	size := 0
	for _, k := range slices.Compact(keys) {
		v := t.d.rows[k]
		if w, ok := t.writes[k]; ok && w == nil {
			continue
		} else if ok {
			v = *w
		}
		if len(rows) >= limit || size >= records.BatchBytes {
			return rows, true, nil
		}
		rows = append(rows, records.Row{Key: []byte(k[len(table)+1:]), Value: []byte(v)})
		size += len(k) + len(v)
	}
	return rows, false, nil
}

func (t *memoryTx) Put(table records.Table, key, value []byte) error {
	if t.writes == nil {
		return errors.New("not in View")
	}
	v := string(value)
	t.writes[name(table, key)] = &v
	return nil
}

func (t *memoryTx) Delete(table records.Table, key []byte) error {
	if t.writes == nil {
		return errors.New("not in View")
	}
	t.writes[name(table, key)] = nil
	return nil
}

// What is tested on rows in memory holds where the suites of engines hold.
func TestMemoryIsAnEngine(t *testing.T) {
	storetest.Engine(t, func(*testing.T) (records.Engine, func() records.Engine) {
		d := newDatabase()
		return d.engine(), func() records.Engine { return d.engine() }
	})
	storetest.Shared(t, func(*testing.T) (a, b records.Shared) {
		d := newDatabase()
		return d.engine(), d.engine()
	})
}
