package postgres

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

const uri = "https://a.example/jwks"

func named(t *testing.T) (a, b *engine, exec func(sql string, args ...any)) {
	t.Helper()
	d := cluster.NewDatabase(t)
	cfg := Config{DSN: d.DSN(), Migrate: true}
	a, b = engineOn(t, cfg), engineOn(t, cfg)
	mustPut(t, a, records.URIs, uri+"\x00main\x00app", "")
	return a, b, func(sql string, args ...any) { t.Helper(); d.Exec(t, sql, args...) }
}

func claim(t *testing.T, e *engine, d time.Duration) records.Claim {
	t.Helper()
	c, err := e.Claim(t.Context(), []byte(uri), d)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOneOfManyClaimersWinsEachTime(t *testing.T) {
	a, b, _ := named(t)
	for round := range 5 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []string
		for w := range 16 {
			wg.Go(func() {
				c, err := []*engine{a, b}[w%2].Claim(context.Background(), []byte(uri), time.Minute)
				if err != nil || c.Unnamed || !c.Until.After(time.Now()) {
					t.Errorf("got %+v, %v", c, err)
				}
				mu.Lock()
				defer mu.Unlock()
				if c.Lease != "" {
					won = append(won, c.Lease)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("round %d: %d of 16 have the lease", round, len(won))
		}
		if err := a.Release(t.Context(), []byte(uri), won[0]); err != nil {
			t.Fatal(err)
		}
	}
}

// Who can write the table can say that a lease lasts for a hundred years; that
// keeps nobody from a fetch.
func TestLeaseForgedIntoTheFutureIsNone(t *testing.T) {
	a, b, exec := named(t)
	first := claim(t, a, time.Minute)
	exec("UPDATE keysets SET lease_until = now() + interval '100 years'")
	second := claim(t, b, time.Minute)
	if second.Lease == "" {
		t.Fatalf("got %+v, want the lease", second)
	}
	if err := a.PutClaimed(t.Context(), []byte(uri), []byte("v"), first.Lease, records.Guard{}, true); !errors.Is(err, records.ErrLeaseLost) {
		t.Errorf("PutClaimed of the first: got %v", err)
	}
	for _, forged := range []string{"lease_until = 'infinity'", "lease_until = '-infinity'", "lease_until = NULL", "lease_id = NULL"} {
		exec("UPDATE keysets SET " + forged)
		if c := claim(t, a, time.Minute); c.Lease == "" {
			t.Errorf("%s: got %+v, want the lease", forged, c)
		}
	}
	exec("UPDATE keysets SET lease_until = now() + interval '30 seconds'")
	if c := claim(t, b, time.Minute); c.Lease != "" {
		t.Errorf("got %+v, and another has the lease", c)
	}
}

// A client that goes takes the key set with it, whoever claims it at that
// moment: nothing is left that nobody names.
func TestClaimBesideDeletionLeavesNothing(t *testing.T) {
	a, b, _ := named(t)
	for range 20 {
		mustPut(t, a, records.URIs, uri+"\x00main\x00app", "")
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := a.Update(context.Background(), func(tx records.Tx) error {
				return errors.Join(tx.Delete(records.URIs, []byte(uri+"\x00main\x00app")), tx.Delete(records.KeySets, []byte(uri)))
			}); err != nil {
				t.Error(err)
			}
		})
		for range 2 {
			wg.Go(func() {
				c, err := b.Claim(context.Background(), []byte(uri), time.Minute)
				if err == nil && c.Lease != "" {
					err = b.PutClaimed(context.Background(), []byte(uri), []byte("v"), c.Lease, records.Guard{}, false)
				}
				if err != nil && !errors.Is(err, records.ErrLeaseLost) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		results, err := a.query(t.Context(), stmt("SELECT key FROM "+a.sql.name("keysets")))
		if err != nil || len(results[0].rows) != 0 {
			t.Fatalf("%d rows are left, %v", len(results[0].rows), err)
		}
	}
}

// A data key that is being retired gets nothing new from the holder of a lease,
// however the two fall together.
func TestHolderWritesNothingUnderARetiredDataKey(t *testing.T) {
	d := cluster.NewDatabase(t)
	cfg := Config{DSN: d.DSN(), Migrate: true}
	a, b := open(t, cfg), open(t, cfg)
	if _, err := a.Put(t.Context(), storetest.Client("app", uri), 0); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		current, err := a.Keys().Current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := b.Leases().Claim(t.Context(), uri, time.Minute)
		if err != nil || c.Lease == "" {
			t.Fatalf("got %+v, %v", c, err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			// In a's eyes it is not current any more; b has not looked yet.
			_, err := a.Keys().Replace(context.Background())
			if err == nil {
				_, err = a.Reseal(context.Background(), nil)
			}
			if err == nil {
				err = a.RetireDataKey(context.Background(), current)
			}
			if err != nil && !errors.Is(err, datakey.ErrInUse) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := b.Leases().PutClaimed(context.Background(), registry.KeySet{URI: uri, Document: []byte(`{"keys":[]}`)}, c.Lease, true); err != nil && !errors.Is(err, registry.ErrLeaseLost) {
				t.Error(err)
			}
		})
		wg.Wait()
		// What is there opens: its data key was not taken away.
		if _, err := open(t, cfg).KeySet(t.Context(), uri); err != nil && !errors.Is(err, registry.ErrNotFound) {
			t.Fatal(err)
		}
		if n := a.Tampered() + b.Tampered(); n != 0 {
			t.Fatalf("%d rows cannot be opened any more", n)
		}
	}
}
