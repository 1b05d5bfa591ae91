package records_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
)

func keySetOf(uri string) registry.KeySet {
	return registry.KeySet{URI: uri, Document: []byte(`{"keys":[]}`), FetchedAt: time.Now().UTC()}
}

// late is an engine on which something happens just before a claimed set is
// written.
type late struct {
	*memory
	before func() // for one goroutine
	calls  int
}

func (l *late) PutClaimed(ctx context.Context, key, value []byte, lease string, guard records.Guard, announce bool) error {
	l.calls++
	if l.before != nil {
		l.before()
	}
	return l.memory.PutClaimed(ctx, key, value, lease, guard, announce)
}

func TestDataKeyThatChangesBeforeTheWriteIsLookedAtOnceMore(t *testing.T) {
	const uri = "https://client.example/1"
	d, w := newDatabase(), datakeytest.NewWrapper()
	e := &late{memory: d.engine()}
	s := overEngine(t, e, w)
	register(t, s, 1)
	claim := func() string {
		t.Helper()
		c, err := s.Leases().Claim(t.Context(), uri, time.Minute)
		if err != nil || c.Lease == "" {
			t.Fatalf("got %+v, %v; want the lease", c, err)
		}
		return c.Lease
	}
	lease := claim()

	// The key is replaced, and about to be retired, between the look at its row
	// and the write.
	e.before = func() {
		e.before = nil
		if _, err := s.Keys().Replace(t.Context()); err != nil {
			t.Error(err)
		}
		if err := s.MarkRetiring(t.Context(), "dk-1"); err != nil {
			t.Error(err)
		}
	}
	if err := s.Leases().PutClaimed(t.Context(), keySetOf(uri), lease, true); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	id := envelope.KeyID([]byte(d.rows[name(records.KeySets, []byte(uri))]))
	d.mu.Unlock()
	if id != "dk-2" || e.calls != 2 {
		t.Errorf("the row is under %s after %d calls, want dk-2 and 2", id, e.calls)
	}

	// If that goes on, the write is refused rather than tried for ever.
	e.calls = 0
	e.before = func() {
		if err := s.MarkRetiring(t.Context(), "dk-2"); err != nil {
			t.Error(err)
		}
	}
	err := s.Leases().PutClaimed(t.Context(), keySetOf(uri), claim(), true)
	wantUnavailable(t, "PutClaimed under a key that is being retired", err)
	if errors.Is(err, registry.ErrLeaseLost) || e.calls != 1 {
		t.Errorf("got %v after %d calls, want one call: the second look finds that the key takes nothing new", err, e.calls)
	}
}
