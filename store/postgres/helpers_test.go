package postgres

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
)

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) count(part string) int { return strings.Count(l.text(), part) }

// eventually fails the test unless ok becomes true in time.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for begun := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// roleOf makes a role that may use the tables, which are there, and returns its
// DSN.
func roleOf(t *testing.T, d *pgtest.Database, name string) string {
	t.Helper()
	d.Exec(t, "CREATE ROLE "+name+" LOGIN PASSWORD 'hunter2'")
	d.Exec(t, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "+name)
	return d.As(name, "hunter2", d.Cluster.Addr())
}

func put(ctx context.Context, e *engine, t records.Table, key, value string) error {
	return e.Update(ctx, func(tx records.Tx) error {
		// As the records do: what is there is read first.
		if _, err := tx.Get(t, []byte(key)); err != nil {
			return err
		}
		return tx.Put(t, []byte(key), []byte(value))
	})
}

func mustPut(t *testing.T, e *engine, table records.Table, key, value string) {
	t.Helper()
	if err := put(t.Context(), e, table, key, value); err != nil {
		t.Fatal(err)
	}
}

func get(ctx context.Context, e *engine, t records.Table, key string) (value []byte, err error) {
	err = e.View(ctx, func(tx records.Tx) error {
		value, err = tx.Get(t, []byte(key))
		return err
	})
	return value, err
}

func wantValue(t *testing.T, e *engine, table records.Table, key, want string) {
	t.Helper()
	got, err := get(t.Context(), e, table, key)
	if err != nil || got == nil || string(got) != want {
		t.Errorf("row %q of %s: got %q, %v; want %q", key, table, got, err, want)
	}
}

// witness is a records.Follower that remembers.
type witness struct {
	mu     sync.Mutex
	told   []string // guarded by mu; in order
	resets int      // guarded by mu
}

func (w *witness) Changed(t records.Table, key []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, string(t)+" "+string(key))
}

func (w *witness) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resets++
}

func (w *witness) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.told)
}

func (w *witness) heard(what string) bool { return slices.Contains(w.all(), what) }

func (w *witness) wasReset() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.resets
}

// following runs Follow until the end of the test, and waits until it is
// current.
func following(t *testing.T, e *engine) *witness {
	t.Helper()
	w := &witness{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Follow(ctx, w) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, errClosed) {
			t.Errorf("Follow: %v", err)
		}
	})
	wantCurrent(t, e, time.Now())
	return w
}

func wantCurrent(t *testing.T, e *engine, moment time.Time) {
	t.Helper()
	eventually(t, 10*time.Second, "the follower is current", func() bool { return !e.Current().Before(moment) })
}
