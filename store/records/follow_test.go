package records_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
)

// watcher remembers what it was told.
type watcher struct {
	mu   sync.Mutex
	told []string // guarded by mu
}

func (w *watcher) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprintf(format, args...))
}

func (w *watcher) ClientChanged(issuer, clientID string)        { w.note("client %s %s", issuer, clientID) }
func (w *watcher) KeySetChanged(uri string)                     { w.note("key set %s", uri) }
func (w *watcher) RingChanged(issuer string, alg kms.Algorithm) { w.note("ring %s %s", issuer, alg) }
func (w *watcher) Reset()                                       { w.note("reset") }

func TestWatcherIsToldByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w := newDatabase(), datakeytest.NewWrapper()
		e := d.engine()
		s, other := overEngine(t, e, w), over(t, d, w)
		if at := s.Current(); !at.IsZero() {
			t.Errorf("before Follow: got %s, want zero", at)
		}
		told := &watcher{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Follow(ctx, told) }()
		synctest.Wait()
		if s.Current() != time.Now() {
			t.Errorf("got %s, want the engine's %s", s.Current(), time.Now())
		}
		register(t, other, 1)
		if _, err := other.PutRing(t.Context(), keyring.Ring{Issuer: "main", Algorithm: kms.ES256}, 0); err != nil {
			t.Fatal(err)
		}
		c, err := other.Leases().Claim(t.Context(), "https://client.example/1", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Leases().PutClaimed(t.Context(), keySetOf("https://client.example/1"), c.Lease, true); err != nil {
			t.Fatal(err)
		}
		// What somebody else has written may have any key.
		for _, junk := range []string{"", "one", "a\x00b\x00c"} {
			if err := e.Update(t.Context(), func(tx records.Tx) error {
				return tx.Put(records.Registrations, []byte(junk), []byte("junk"))
			}); err != nil {
				t.Fatal(err)
			}
		}
		e.follower.Reset()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Follow: %v", err)
		}
		told.mu.Lock()
		defer told.mu.Unlock()
		if diff := cmp.Diff([]string{"client main app-1", "ring main ES256", "key set https://client.example/1", "reset"}, told.told); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestStoreOfOneProcessIsAlwaysCurrent(t *testing.T) {
	s := open(t, datakeytest.NewWrapper())
	if s.Leases() != nil {
		t.Error("a file has leases; nobody shares it")
	}
	before := time.Now()
	if at := s.Current(); at.Before(before) || at.After(time.Now()) {
		t.Errorf("got %s, want now", at)
	}
	told := &watcher{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Follow(ctx, told) }()
	register(t, s, 1)
	select {
	case err := <-done:
		t.Errorf("Follow ended with %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Follow: %v", err)
	}
}

// Between the look at the index and that at a registration, others write.
func TestURIThatChangesHandsIsNotMissed(t *testing.T) {
	const shared = "https://shared.example/"
	d, w := newDatabase(), datakeytest.NewWrapper()
	e := &moving{memory: d.engine()}
	s := overEngine(t, e, w)
	late := client(9)
	late.Source.JWKSURI = shared
	if _, err := s.Put(t.Context(), late, 0); err != nil {
		t.Fatal(err)
	}
	// app-1 comes to name the URI, and app-9 leaves it, as soon as the index was
	// read.
	e.after = func() {
		early := client(1)
		early.Source.JWKSURI = shared
		if _, err := s.Put(t.Context(), early, 0); err != nil {
			t.Error(err)
		}
		if _, err := s.Put(t.Context(), client(9), 1); err != nil {
			t.Error(err)
		}
	}
	var got []string
	if err := s.URIs(t.Context(), func(u string) bool { got = append(got, u); return true }); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, shared) {
		t.Errorf("got %q, want %s among them: it was named all the time", got, shared)
	}
}

// moving is an engine on which others write in the middle of a View.
type moving struct {
	*memory
	after func() // runs once, after a scan of the index; for one goroutine
}

func (m *moving) View(ctx context.Context, fn func(records.Tx) error) error {
	return m.memory.View(ctx, func(tx records.Tx) error { return fn(movingTx{tx, m}) })
}

type movingTx struct {
	records.Tx
	m *moving
}

func (t movingTx) Scan(table records.Table, prefix, seek []byte, limit int) ([]records.Row, bool, error) {
	rows, more, err := t.Tx.Scan(table, prefix, seek, limit)
	if after := t.m.after; after != nil && table == records.URIs {
		t.m.after = nil
		after()
	}
	return rows, more, err
}

func TestClientsOfBelievesNoIndex(t *testing.T) {
	d := newDatabase()
	s := over(t, d, datakeytest.NewWrapper())
	for i := range 3 {
		register(t, s, i)
	}
	const uri = "https://client.example/1"
	d.mu.Lock()
	for _, k := range [][]byte{
		envelope.Key(uri, "main", "app-0"),  // another URI
		envelope.Key(uri, "main", "app-77"), // no client
		envelope.Key(uri, "other", "app-1"), // another issuer
		envelope.Key(uri, "main"), envelope.Key(uri, ""), envelope.Key(uri, "main", "app-1", "x"),
	} {
		d.set(name(records.URIs, k), new(string))
	}
	d.mu.Unlock()
	var got []string
	if err := s.ClientsOf(t.Context(), uri, func(issuer, clientID string) bool {
		got = append(got, issuer+" "+clientID)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"main app-1"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
