package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
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
	exec("UPDATE keysets SET lease_until = now() + interval '2 minutes'")
	if c := claim(t, b, 15*time.Second); c.Lease == "" {
		t.Errorf("got %+v, want the lease: none lasts for two minutes", c)
	}
}

// Who has given up, and cannot tell the database, must not get a lease that
// nobody uses when others stop holding it up.
func TestAbandonedClaimTakesNoLeaseLater(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	b, a := engineOn(t, Config{DSN: d.DSN(), Migrate: true}), engineOn(t, Config{DSN: d.Via(p.Addr())})
	mustPut(t, b, records.URIs, uri+"\x00main\x00app", "")
	// So that there is a connection.
	if err := a.Release(t.Context(), []byte(uri), claim(t, a, time.Minute).Lease); err != nil {
		t.Fatal(err)
	}
	err := b.Update(t.Context(), func(tx records.Tx) error {
		if err := tx.Put(records.URIs, []byte(uri+"\x00main\x00app"), []byte{}); err != nil {
			return err
		}
		// Sent with what is read next: now the row of the index is locked.
		if _, err := tx.Get(records.Rings, []byte("k")); err != nil {
			return err
		}
		before := p.Asked()
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			_, err := a.Claim(ctx, []byte(uri), time.Minute)
			done <- err
		}()
		eventually(t, time.Second, "the Claim is sent", func() bool { return p.Asked() > before })
		time.Sleep(100 * time.Millisecond) // it waits at the database now
		p.BlackHole(true)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v from a Claim that was given up", err)
		}
		for begun := time.Now(); time.Since(begun) < lockLimit+500*time.Millisecond; time.Sleep(500 * time.Millisecond) {
			if _, err := tx.Get(records.Rings, []byte("k")); err != nil { // the transaction must not idle
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // if it still waited, it would have it now
	if c := claim(t, b, time.Minute); c.Lease == "" {
		t.Errorf("got %+v, want the lease, which nobody uses", c)
	}
}

// What a lease rests on does not depend on how the role is set up.
func TestLeasesWorkWhateverTheIsolationOfTheRole(t *testing.T) {
	d := cluster.NewDatabase(t)
	a := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	for n, level := range []string{"repeatable read", "serializable"} {
		role := fmt.Sprint("isolated", n)
		dsn := roleOf(t, d, role)
		d.Exec(t, "ALTER ROLE "+role+" SET default_transaction_isolation = '"+level+"'")
		engines := []*engine{engineOn(t, Config{DSN: dsn}), engineOn(t, Config{DSN: dsn})}
		for i := range 50 {
			key := fmt.Sprint(level, i)
			mustPut(t, a, records.URIs, key+"\x00main\x00app", "")
			var wg sync.WaitGroup
			for c := range 4 {
				wg.Go(func() {
					e := engines[c%2]
					c, err := e.Claim(context.Background(), []byte(key), time.Minute)
					switch {
					case err != nil:
						t.Errorf("%s: Claim: %v", level, err)
					case c.Lease == "":
					case i%2 == 0:
						if err := e.Release(context.Background(), []byte(key), c.Lease); err != nil {
							t.Errorf("%s: Release: %v", level, err)
						}
					default:
						if err := e.PutClaimed(context.Background(), []byte(key), []byte("v"), c.Lease, records.Guard{}, true); err != nil {
							t.Errorf("%s: PutClaimed: %v", level, err)
						}
					}
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
		}
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
