package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
)

// quickly fails the test if fn takes longer than limit, and returns its error.
func quickly(t *testing.T, limit time.Duration, what string, fn func() error) error {
	t.Helper()
	begun := time.Now()
	err := fn()
	if took := time.Since(begun); took > limit {
		t.Errorf("%s took %v, want at most %v (%v)", what, took, limit, err)
	}
	return err
}

// calls are all that an engine can be asked.
func calls(ctx context.Context, e *engine) map[string]func() error {
	return map[string]func() error{
		"View":   func() error { _, err := get(ctx, e, records.Registrations, "k"); return err },
		"Scan":   func() error { return scanSome(ctx, e) },
		"Update": func() error { return put(ctx, e, records.Registrations, "k", "v") },
		"Check":  func() error { return e.Check(ctx) },
		"Claim":  func() error { _, err := e.Claim(ctx, []byte("u"), time.Minute); return err },
		"PutClaimed": func() error {
			err := e.PutClaimed(ctx, []byte("u"), nil, "lease", records.Guard{}, true)
			if errors.Is(err, records.ErrLeaseLost) {
				return nil
			}
			return err
		},
		"Release": func() error { return e.Release(ctx, []byte("u"), "lease") },
	}
}

func scanSome(ctx context.Context, e *engine) error {
	return e.View(ctx, func(tx records.Tx) error {
		_, _, err := tx.Scan(records.Registrations, nil, nil, 10)
		return err
	})
}

func TestStoppedDatabaseFailsCallsAtOnceAndComesBackByItself(t *testing.T) {
	c := pgtest.Start(t)
	d := c.NewDatabase(t)
	for name, dsn := range map[string]string{"socket": d.DSN(), "TCP": d.TCP()} {
		t.Run(name, func(t *testing.T) {
			log := &lines{}
			e := engineOn(t, Config{DSN: dsn, Migrate: true, Logger: log.logger()})
			following(t, e)
			mustPut(t, e, records.Registrations, "k", "before")
			if err := c.Stop(); err != nil {
				t.Fatal(err)
			}
			for round := range 20 {
				for what, call := range calls(t.Context(), e) {
					if err := quickly(t, 200*time.Millisecond, what, call); err == nil {
						t.Errorf("%s worked without a database", what)
					} else if round == 0 {
						t.Logf("%s: %v", what, err)
					}
				}
			}
			if e.stats().Up {
				t.Error("Stats says that it is up")
			}
			time.Sleep(time.Second)
			if lag := e.stats().Lag; lag < time.Second {
				t.Errorf("the lag is %v after more than a second", lag)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			for what, call := range calls(t.Context(), e) {
				if err := call(); err != nil {
					t.Errorf("%s, and the database is back: %v", what, err)
				}
			}
			wantValue(t, e, records.Registrations, "k", "v")
			wantCurrent(t, e, time.Now())
			if !e.stats().Up {
				t.Error("Stats says that it is down")
			}
			if log.count(`msg="PostgreSQL is lost`) != 1 || log.count(`msg="PostgreSQL is back`) != 1 {
				t.Errorf("want one line for each, got:\n%s", log.text())
			}
		})
	}
}

func TestReadsDoNotNoticeARestartThatIsOver(t *testing.T) {
	c := pgtest.Start(t)
	cfg := Config{DSN: c.NewDatabase(t).DSN(), Migrate: true}
	e := engineOn(t, cfg)
	mustPut(t, e, records.Registrations, "k", "v")
	for range 3 {
		// Every connection of the pool is used, and then broken.
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := get(context.Background(), e, records.Registrations, "k"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := e.stats().Idle; n < 2 {
			t.Fatalf("only %d connections are there to be broken", n)
		}
		if err := c.Restart(); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			wg.Go(func() {
				if _, err := get(context.Background(), e, records.Registrations, "k"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	// A write begins on a connection that works, too.
	if err := put(t.Context(), e, records.Registrations, "k", "w"); err != nil {
		t.Errorf("the first write after a restart: %v", err)
	}
}

func TestKillLosesNothingThatWasAcknowledged(t *testing.T) {
	c := pgtest.StartWith(t, pgtest.Config{Durable: true})
	d := c.NewDatabase(t)
	a := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	// Whoever made the role lets it be careless.
	d.Exec(t, "ALTER DATABASE "+d.Name+" SET synchronous_commit = off")
	b := engineOn(t, Config{DSN: d.TCP()})
	w := following(t, b)
	var mu sync.Mutex
	acknowledged := map[string]bool{} // guarded by mu
	for round := range 2 {
		before := len(acknowledged)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					key := fmt.Sprintf("%d/%d/%d", round, n, i)
					err := put(ctx, []*engine{a, b}[n%2], records.Registrations, key, key)
					mu.Lock()
					if err == nil {
						acknowledged[key] = true
					}
					mu.Unlock()
				}
			})
		}
		eventually(t, 30*time.Second, "some writes are acknowledged", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(acknowledged) >= before+20
		})
		if err := c.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		cancel()
		wg.Wait()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for key := range acknowledged {
			wantValue(t, a, records.Registrations, key, key)
		}
		wantCurrent(t, b, time.Now())
		if n := len(w.all()); n < len(acknowledged) {
			t.Errorf("%d writes were acknowledged and %d told", len(acknowledged), n)
		}
	}
	t.Logf("%d writes were acknowledged", len(acknowledged))
	if w.wasReset() != 0 {
		t.Errorf("the follower was reset %d times", w.wasReset())
	}
}

func TestBlackHoleHoldsNobodyBeyondTheirDeadline(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	log := &lines{}
	e := engineOn(t, Config{DSN: d.Via(p.Addr()), Migrate: true, Logger: log.logger()})
	mustPut(t, e, records.Registrations, "k", "v")
	p.BlackHole(true)
	for what := range calls(t.Context(), e) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := quickly(t, 300*time.Millisecond, what, calls(ctx, e)[what]); err == nil {
			t.Errorf("%s worked in a black hole", what)
		}
		cancel()
	}
	// Without a deadline of their own, all of a crowd have an answer soon.
	var wg sync.WaitGroup
	for range 300 {
		wg.Go(func() {
			err := quickly(t, acquireLimit+time.Second, "View", func() error {
				_, err := get(context.Background(), e, records.Registrations, "k")
				return err
			})
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v in a black hole, want an error that is not the caller's", err)
			}
		})
	}
	wg.Wait()
	// And from then on, at once.
	for what, call := range calls(t.Context(), e) {
		err := quickly(t, 50*time.Millisecond, what, call)
		if err == nil {
			t.Errorf("%s worked in a black hole", what)
		}
	}
	p.BlackHole(false)
	eventually(t, 3*time.Second, "reads work again", func() bool {
		_, err := get(t.Context(), e, records.Registrations, "k")
		return err == nil
	})
	if err := quickly(t, time.Second, "Update", func() error { return put(t.Context(), e, records.Registrations, "k", "w") }); err != nil {
		t.Error(err)
	}
	if log.count(`msg="PostgreSQL is lost`) != 1 || log.count(`msg="PostgreSQL is back`) != 1 {
		t.Errorf("want one line for each, got:\n%s", log.text())
	}
	eventually(t, 20*time.Second, "what the driver had under way has ended", func() bool { return p.Connections() <= e.stats().Idle })
}

// A writer that stops in the middle, with its connection open, holds the others
// up for no longer than the database lets it.
func TestWriterThatStopsInTheMiddleIsThrownOut(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	stuck := engineOn(t, Config{DSN: d.Via(p.Addr())})
	inside, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- stuck.Update(context.Background(), func(tx records.Tx) error {
			if _, err := tx.Get(records.Registrations, []byte("k")); err != nil {
				return err
			}
			p.BlackHole(true)
			close(inside)
			<-leave
			return tx.Put(records.Registrations, []byte("k"), []byte("stuck"))
		})
	}()
	<-inside
	if err := quickly(t, idleLimit+time.Second, "an Update behind one that is stuck", func() error { return put(t.Context(), e, records.Registrations, "k", "v") }); err != nil {
		t.Error(err)
	}
	close(leave)
	if err := <-done; err == nil {
		t.Error("the Update that was stuck was acknowledged")
	}
	wantValue(t, e, records.Registrations, "k", "v")
}

// If the network goes with the answer to COMMIT, nobody knows; that is an error,
// and says so.
func TestOutcomeThatIsNotKnownIsAnError(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	e := engineOn(t, Config{DSN: d.Via(p.Addr()), Migrate: true})
	err := e.Update(t.Context(), func(tx records.Tx) error {
		_, err := tx.Get(records.Registrations, []byte("k"))
		p.Cut()
		return errors.Join(err, tx.Put(records.Registrations, []byte("k"), []byte("v")))
	})
	if err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("got %v, want that the outcome is not known", err)
	}
	mustPut(t, e, records.Registrations, "k", "w") // all goes on
}

// Other readers are not held up by writers who wait.
func TestWritersLeaveConnectionsForReaders(t *testing.T) {
	d := cluster.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	holder := d.Connect(t)
	if _, err := holder.Exec(t.Context(), "BEGIN; SELECT number FROM feed FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if err := put(ctx, e, records.Registrations, "k", "v"); err == nil {
				t.Error("an Update did not wait for its turn")
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	for range 50 {
		if err := quickly(t, 500*time.Millisecond, "View", func() error { _, err := get(t.Context(), e, records.Registrations, "k"); return err }); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
}

func TestUpdateThatWaitsTooLongSaysWhatItWaitedFor(t *testing.T) {
	d := cluster.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	holder := d.Connect(t)
	if _, err := holder.Exec(t.Context(), "BEGIN; SELECT number FROM feed FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	err := quickly(t, lockLimit+time.Second, "Update", func() error { return put(t.Context(), e, records.Registrations, "k", "v") })
	if err == nil || !strings.Contains(err.Error(), "others have been writing") {
		t.Errorf("got %v", err)
	}
	if !e.stats().Up {
		t.Error("the database is taken for lost")
	}
}

func TestDatabaseWithoutAFreeConnectionIsNotLost(t *testing.T) {
	c := pgtest.StartWith(t, pgtest.Config{Settings: map[string]string{"max_connections": "8", "superuser_reserved_connections": "0", "max_wal_senders": "0"}})
	d := c.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	mustPut(t, e, records.Registrations, "k", "v") // one connection of the pool
	for range 7 {
		d.Connect(t)
	}
	for range 20 {
		wantValue(t, e, records.Registrations, "k", "v")
		e.cond.suspect()
		time.Sleep(10 * time.Millisecond)
	}
	if !e.stats().Up {
		t.Error("the database is taken for lost")
	}
}

func TestOpenWithoutADatabaseWorksWhenItIsThere(t *testing.T) {
	c := pgtest.Start(t)
	d := c.NewDatabase(t)
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	var e *engine
	_ = quickly(t, time.Second, "Open", func() error {
		e = engineOn(t, Config{DSN: d.DSN(), Migrate: true, Logger: log.logger()})
		return nil
	})
	if !e.Current().IsZero() || e.stats().Up {
		t.Errorf("got Current %v and %+v before the database was reached", e.Current(), e.stats())
	}
	time.AfterFunc(500*time.Millisecond, func() {
		if err := c.Start(); err != nil {
			t.Error(err)
		}
	})
	w := following(t, e)
	mustPut(t, e, records.Rings, "k", "v")
	eventually(t, inForce, "told of it", func() bool { return w.heard("rings k") })
	// It was never there, so it is not lost.
	if log.count(`msg="PostgreSQL cannot be used yet`) != 1 || log.count(`msg="PostgreSQL is reached`) != 1 || log.count("is lost") != 0 {
		t.Errorf("want one line for each, got:\n%s", log.text())
	}
}
