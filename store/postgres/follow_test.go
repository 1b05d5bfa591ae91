package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
)

// inForce is how long it may take until the others know of a write.
const inForce = time.Second

// wantTold has a write rows and wants w to be told of them in time, in order.
func wantTold(t *testing.T, a *engine, w *witness, what string) {
	t.Helper()
	var keys []string
	before := len(w.all())
	for i := range 5 {
		key := fmt.Sprintf("%s %d/%d", what, before, i) // one that was never written
		mustPut(t, a, records.Registrations, key, "v")
		acknowledged := time.Now()
		told := "registrations " + key
		eventually(t, inForce, what+": told of it", func() bool { return w.heard(told) })
		t.Logf("%s: told after %v", what, time.Since(acknowledged).Round(time.Millisecond))
		keys = append(keys, told)
	}
	all := slices.DeleteFunc(w.all(), func(s string) bool { return !slices.Contains(keys, s) })
	if !slices.Equal(slices.Compact(all), keys) {
		t.Errorf("%s: told of %q, want %q", what, all, keys)
	}
}

func TestChangeIsToldByListen(t *testing.T) {
	cfg := Config{DSN: cluster.NewDatabase(t).DSN(), Migrate: true}
	a, b := engineOn(t, cfg), engineOn(t, cfg)
	w := following(t, b)
	eventually(t, 5*time.Second, "LISTEN is in force", func() bool { return b.stats().Listening })
	// Many, so that a poll that happens to come cannot hide that nothing woke
	// the follower.
	var longest time.Duration
	for i := range 20 {
		key := fmt.Sprint("k", i)
		mustPut(t, a, records.Rings, key, "v")
		acknowledged := time.Now()
		eventually(t, inForce, "told of it", func() bool { return w.heard("rings " + key) })
		longest = max(longest, time.Since(acknowledged))
		time.Sleep(7 * time.Millisecond)
	}
	t.Logf("the slowest took %v", longest)
	if longest > pollEvery/2 {
		t.Errorf("the slowest took %v; looking alone is every %v", longest, pollEvery)
	}
}

func TestChangeIsToldWhileListenIsCutAgainAndAgain(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	a := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	b := engineOn(t, Config{DSN: d.DSN(), ListenDSN: d.Via(p.Addr())})
	w := following(t, b)
	eventually(t, 5*time.Second, "LISTEN is in force", func() bool { return b.stats().Listening })
	p.Cut()
	wantTold(t, a, w, "LISTEN is cut")

	eventually(t, 10*time.Second, "LISTEN is in force again", func() bool { return b.stats().Listening })
	p.BlackHole(true)
	wantTold(t, a, w, "LISTEN is in a black hole")
	p.BlackHole(false)

	p.Refuse(true)
	p.Cut()
	wantTold(t, a, w, "LISTEN is refused")
	p.Refuse(false)
	eventually(t, 10*time.Second, "LISTEN is in force again", func() bool { return b.stats().Listening })
}

func TestChangeIsToldWhenEveryConnectionIsTerminated(t *testing.T) {
	d := cluster.NewDatabase(t)
	cfg := Config{DSN: d.DSN(), Migrate: true}
	a, b := engineOn(t, cfg), engineOn(t, cfg)
	w := following(t, b)
	killer := d.Connect(t)
	for range 5 {
		if _, err := killer.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
			t.Fatal(err)
		}
		wantTold(t, a, w, "terminated")
	}
	if w.wasReset() != 0 {
		t.Errorf("the follower was reset %d times, and nothing was put back", w.wasReset())
	}
}

// Through a pooler LISTEN is answered and tells nothing.
func TestChangeIsToldThroughAPooler(t *testing.T) {
	c := pgtest.Start(t)
	d := c.NewDatabase(t)
	cfg := Config{DSN: d.Via(c.NewPooler(t).Addr), Migrate: true}
	a, b := engineOn(t, cfg), engineOn(t, cfg)
	w := following(t, b)
	wantTold(t, a, w, "pooled")

	// All the rest works too.
	mustPut(t, a, records.URIs, "u\x00i\x00c", "")
	claim, err := b.Claim(t.Context(), []byte("u"), time.Minute)
	if err != nil || claim.Lease == "" {
		t.Fatalf("got %+v, %v; want a lease", claim, err)
	}
	if err := b.PutClaimed(t.Context(), []byte("u"), []byte("set"), claim.Lease, records.Guard{}, true); err != nil {
		t.Fatal(err)
	}
	wantValue(t, a, records.KeySets, "u", "set")
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if err := put(context.Background(), []*engine{a, b}[i%2], records.Registrations, fmt.Sprint(i), "v"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestChangeIsToldAfterARestart(t *testing.T) {
	c := pgtest.Start(t)
	cfg := Config{DSN: c.NewDatabase(t).DSN(), Migrate: true}
	a, b := engineOn(t, cfg), engineOn(t, cfg)
	w := following(t, b)
	for range 2 {
		if err := c.Restart(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, "writes work again", func() bool { return put(t.Context(), a, records.Rings, "x", "v") == nil })
		wantCurrent(t, b, time.Now())
		wantTold(t, a, w, "restarted")
	}
	if w.wasReset() != 0 {
		t.Errorf("the follower was reset %d times, and nothing was put back", w.wasReset())
	}
}

// Transactions take the counter in an order that has nothing to do with the one
// in which they began; both are told, in the order of their commits.
func TestTransactionsThatOverlapAreBothTold(t *testing.T) {
	d := cluster.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	w := following(t, e)
	exec := func(conn *pgx.Conn, sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	write := func(conn *pgx.Conn, key string) {
		t.Helper()
		exec(conn, "SELECT number FROM feed FOR UPDATE")
		exec(conn, "INSERT INTO registrations VALUES ('"+key+"', 'v', (SELECT number + 1 FROM feed))")
		exec(conn, "UPDATE feed SET number = number + 1")
		exec(conn, "INSERT INTO feed_marks (number) SELECT number FROM feed")
	}
	first, second := d.Connect(t), d.Connect(t)
	exec(first, "BEGIN")
	exec(first, "INSERT INTO uris VALUES ('it has', 'begun')")
	exec(second, "BEGIN")
	write(second, "of the second")
	got := make(chan struct{})
	go func() {
		defer close(got)
		_, err := first.Exec(context.Background(), "SELECT number FROM feed FOR UPDATE") // waits for the second
		if err != nil {
			t.Error(err)
		}
	}()
	time.Sleep(3 * pollEvery) // the follower looks while both are under way
	if all := w.all(); len(all) != 0 {
		t.Errorf("told of %q before it was committed", all)
	}
	exec(second, "COMMIT")
	<-got
	write(first, "of the first")
	eventually(t, inForce, "told of the second", func() bool { return w.heard("registrations of the second") })
	exec(first, "COMMIT")
	eventually(t, inForce, "told of the first", func() bool { return w.heard("registrations of the first") })
	if all := w.all(); !slices.Equal(all, []string{"registrations of the second", "registrations of the first"}) {
		t.Errorf("told of %q", all)
	}
}

func TestNothingIsMissedByAFollowerThatIsCutAllTheTime(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	writer := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	other := engineOn(t, Config{DSN: d.DSN()})
	b := engineOn(t, Config{DSN: d.Via(p.Addr())})
	w := following(t, b)

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var cutter, writers sync.WaitGroup
	cutter.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
			p.Cut()
		}
	})
	var mu sync.Mutex
	var written []string // guarded by mu
	for n := range 4 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("%d/%d", n, i)
				err := put(ctx, []*engine{writer, other}[n%2], records.Registrations, key, "v")
				if errors.Is(err, context.DeadlineExceeded) {
					return
				}
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				written = append(written, "registrations "+key)
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	writers.Wait()
	cutter.Wait()
	wantCurrent(t, b, time.Now())
	told := map[string]bool{}
	for _, what := range w.all() {
		told[what] = true
	}
	for _, what := range written {
		if !told[what] {
			t.Errorf("not told of %s", what)
		}
	}
	t.Logf("%d writes, %d tellings", len(written), len(w.all()))
	if len(written) < 100 || w.wasReset() != 0 {
		t.Errorf("got %d writes and %d resets", len(written), w.wasReset())
	}
}

func TestMoreThanAPageIsTold(t *testing.T) {
	d := cluster.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	w := following(t, e)
	// In one transaction, as nobody can cut a number in two; then one more
	// number with little.
	d.Exec(t, `BEGIN;
		UPDATE feed SET number = number + 1;
		INSERT INTO feed_marks (number) SELECT number FROM feed;
		INSERT INTO registrations SELECT convert_to('r' || n, 'UTF8'), '', (SELECT number FROM feed) FROM generate_series(1, 1500) AS n;
		INSERT INTO keysets (key, value, change) SELECT convert_to('k' || n, 'UTF8'), '', (SELECT number FROM feed) FROM generate_series(1, 700) AS n;
		UPDATE feed SET number = number + 1;
		INSERT INTO feed_marks (number) SELECT number FROM feed;
		INSERT INTO rings SELECT convert_to('a' || n, 'UTF8'), '', (SELECT number FROM feed) FROM generate_series(1, 700) AS n;
		COMMIT`)
	wantCurrent(t, e, time.Now())
	told := map[string]int{}
	for _, what := range w.all() {
		kind, _, _ := strings.Cut(what, " ")
		told[kind]++
	}
	if told["registrations"] != 1500 || told["keysets"] != 700 || told["rings"] != 700 {
		t.Errorf("told of %v", told)
	}
}

// A backup that was restored, or a standby that took over without the last
// writes, is noticed, whether it is behind or has gone on since.
func TestStoreThatWasPutBackResetsItsFollowers(t *testing.T) {
	d := cluster.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	w := following(t, e)
	for i := range 5 {
		mustPut(t, e, records.Registrations, fmt.Sprint("k", i), "v")
	}
	wantCurrent(t, e, time.Now())
	back := func(number string) string {
		return "BEGIN; UPDATE feed SET number = " + number + "; DELETE FROM feed_marks WHERE number > (SELECT number FROM feed); COMMIT"
	}
	d.Exec(t, back("3"))
	eventually(t, inForce, "told that it was put back", func() bool { return w.wasReset() == 1 })
	mustPut(t, e, records.Registrations, "afterwards", "v")
	eventually(t, inForce, "told of what is written after", func() bool { return w.heard("registrations afterwards") })
	if w.wasReset() != 1 {
		t.Errorf("reset %d times, want once", w.wasReset())
	}

	// Put back by one, and three further writes before anybody looks: the number
	// is higher than it was.
	d.Exec(t, `BEGIN; UPDATE feed SET number = number + 2;
		UPDATE feed_marks SET mark = gen_random_uuid() WHERE number = (SELECT max(number) FROM feed_marks);
		INSERT INTO feed_marks (number) SELECT number - 1 FROM feed; INSERT INTO feed_marks (number) SELECT number FROM feed; COMMIT`)
	eventually(t, inForce, "told that it was put back and went on", func() bool { return w.wasReset() == 2 })
}

func TestFollowerThatIsFarBehindIsReset(t *testing.T) {
	d := cluster.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	mustPut(t, e, records.Registrations, "k", "v")
	// As long as it was not heard of, all marks that it knew have gone.
	d.Exec(t, "BEGIN; UPDATE feed SET number = 99999; DELETE FROM feed_marks; INSERT INTO feed_marks VALUES (99999); COMMIT")
	w := following(t, e)
	eventually(t, inForce, "told that it cannot be told row by row", func() bool { return w.wasReset() == 1 })
	mustPut(t, e, records.Registrations, "next", "v")
	eventually(t, inForce, "told of the next", func() bool { return w.heard("registrations next") })
	var marks int
	if err := d.Connect(t).QueryRow(t.Context(), "SELECT count(*) FROM feed_marks").Scan(&marks); err != nil || marks != 2 {
		t.Errorf("got %d marks, %v; want 2", marks, err)
	}
}

func TestOldMarksAreForgotten(t *testing.T) {
	d := cluster.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	d.Exec(t, fmt.Sprintf("BEGIN; UPDATE feed SET number = %d; INSERT INTO feed_marks (number) SELECT n FROM generate_series(1, %[1]d) AS n; COMMIT", marksKept+5))
	mustPut(t, e, records.Registrations, "k", "v")
	var least, most int
	if err := d.Connect(t).QueryRow(t.Context(), "SELECT min(number), max(number) FROM feed_marks").Scan(&least, &most); err != nil || least != 7 || most != marksKept+6 {
		t.Errorf("got marks from %d to %d, %v; want 7 to %d", least, most, err, marksKept+6)
	}
}

// What nobody has to hear of wakes nobody.
func TestUpdateOfWhatIsNotAnnouncedMovesNothing(t *testing.T) {
	d := cluster.NewDatabase(t)
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	conn := d.Connect(t)
	number := func() (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), "SELECT number FROM feed").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	mustPut(t, e, records.DataKeys, "k", "v")
	mustPut(t, e, records.URIs, "k", "v")
	if err := e.Update(t.Context(), func(tx records.Tx) error { return tx.Delete(records.Registrations, []byte("k")) }); err != nil {
		t.Fatal(err)
	}
	if n := number(); n != 0 {
		t.Errorf("the number is %d, want 0", n)
	}
	mustPut(t, e, records.KeySets, "k", "v")
	if n := number(); n != 1 {
		t.Errorf("the number is %d, want 1", n)
	}
}

func TestFollowIsCalledOnceAndEndsWithTheStore(t *testing.T) {
	e := engineOn(t, Config{DSN: cluster.NewDatabase(t).DSN(), Migrate: true})
	done := make(chan error, 1)
	go func() { done <- e.Follow(context.Background(), &witness{}) }()
	wantCurrent(t, e, time.Now())
	if err := e.Follow(t.Context(), &witness{}); err == nil {
		t.Error("the feed was followed twice")
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, errClosed) {
			t.Errorf("Follow of a store that was closed: got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Follow goes on after Close")
	}
}
