package postgres

import (
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
)

// New connections are refused, as after a password was changed, and those of the
// pool work: calls fail and succeed in turn, and the log does not repeat it.
func TestRefusalOfNewConnectionsIsToldOnce(t *testing.T) {
	d := pgtest.Start(t).NewDatabase(t)
	engineOn(t, Config{DSN: d.DSN(), Migrate: true})
	log := &lines{}
	e := engineOn(t, Config{DSN: roleOf(t, d, "shut_out"), Logger: log.logger()})
	following(t, e)
	mustPut(t, e, records.Registrations, "k", "v")
	d.Exec(t, "ALTER ROLE shut_out NOLOGIN")
	crowd := func() (failed int) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 40 { // more than there are connections
			wg.Go(func() {
				if _, err := get(t.Context(), e, records.Registrations, "k"); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed++
				}
			})
		}
		wg.Wait()
		return failed
	}
	failed, calls := 0, 0
	for begun := time.Now(); time.Since(begun) < 4*time.Second; time.Sleep(10 * time.Millisecond) {
		failed, calls = failed+crowd(), calls+40
	}
	if failed == 0 || failed == calls {
		t.Fatalf("%d of %d calls failed; the test has no force", failed, calls)
	}
	if log.count(`msg="PostgreSQL is lost`) != 1 || log.count("PostgreSQL is back") != 0 || log.count("correct the DSN file and restart") != 1 {
		t.Errorf("%d of %d calls failed; want one line with advice, got:\n%s", failed, calls, log.text())
	}
	d.Exec(t, "ALTER ROLE shut_out LOGIN")
	// Callers need not wait for the watcher, unless a refusal took so long that it
	// alone tries, as on a machine that is busy with other things.
	if _, shut := e.cond.enter(); shut != nil {
		eventually(t, 2*recheck, "the watcher was let in", func() bool { _, shut := e.cond.enter(); return shut == nil })
	}
	for range 5 {
		if n := crowd(); n != 0 {
			t.Errorf("%d calls failed, and the role may log in", n)
		}
	}
	eventually(t, 2*recheck, "it is said that it is back", func() bool { return log.count("PostgreSQL is back") == 1 && e.stats().Up })
}

// A database that never let the service in was not lost, and who has written
// the DSN can mend it.
func TestRefusalAtTheStartSaysWhatToCorrect(t *testing.T) {
	d := cluster.NewDatabase(t)
	for what, dsn := range map[string]string{
		"password": d.As(pgtest.User, "wrong", cluster.Addr()),
		"database": (&pgtest.Database{Cluster: cluster, Name: "there_is_none"}).TCP(),
	} {
		log := &lines{}
		e := engineOn(t, Config{DSN: dsn, Logger: log.logger()})
		if _, err := get(t.Context(), e, records.Rings, "k"); err == nil {
			t.Errorf("%s: a read worked", what)
		}
		time.Sleep(2 * recheck)
		if log.count(`msg="PostgreSQL cannot be used yet`) != 1 || log.count("correct the DSN file and restart") != 1 || log.count("is lost") != 0 {
			t.Errorf("%s: want one line with advice, got:\n%s", what, log.text())
		}
	}
}

// A refusal that shows only once the database has come up is told too.
func TestRefusalAfterTheStartIsToldWithItsAdvice(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	p.Refuse(true)
	log := &lines{}
	engineOn(t, Config{DSN: d.As(pgtest.User, "wrong", p.Addr()), Logger: log.logger()})
	if log.count(`msg="PostgreSQL cannot be used yet`) != 1 || log.count("correct the DSN file") != 0 {
		t.Errorf("want one line without advice, got:\n%s", log.text())
	}
	p.Refuse(false)
	eventually(t, 2*recheck, "told with advice", func() bool { return log.count("correct the DSN file and restart") == 1 })
	time.Sleep(recheck + retry)
	if log.count("level=ERROR") != 2 {
		t.Errorf("want two lines, got:\n%s", log.text())
	}
}

// Without the row of the feed nothing can be written and nobody hears of
// anything; what is there can be read.
func TestFeedThatIsGoneStopsWritesAndNoReads(t *testing.T) {
	d := cluster.NewDatabase(t)
	log := &lines{}
	e := engineOn(t, Config{DSN: d.DSN(), Migrate: true, Logger: log.logger()})
	w := following(t, e)
	mustPut(t, e, records.Registrations, "k", "v")
	eventually(t, inForce, "told of it", func() bool { return w.heard("registrations k") })
	d.Exec(t, "DELETE FROM feed")
	for begun := time.Now(); time.Since(begun) < 3*time.Second; time.Sleep(10 * time.Millisecond) {
		if err := put(t.Context(), e, records.Registrations, "k", "w"); err == nil {
			t.Fatal("a write worked without the feed")
		}
		if _, err := get(t.Context(), e, records.Registrations, "k"); err != nil {
			t.Fatalf("a read failed: %v", err)
		}
	}
	if log.count("level=ERROR") != 1 || log.count("INSERT INTO feed") != 1 || log.count("level=INFO") != 1 {
		t.Errorf("want one line that says what to do, besides that of the migration, got:\n%s", log.text())
	}
	lost := e.Current()
	if time.Since(lost) < 2*time.Second {
		t.Errorf("the feed is current as of %v ago, and there is none", time.Since(lost))
	}
	// What the error says mends it.
	d.Exec(t, "INSERT INTO feed (number) SELECT max(number) FROM feed_marks")
	mustPut(t, e, records.Registrations, "k2", "v")
	eventually(t, 2*inForce, "told of it", func() bool { return w.heard("registrations k2") })
	if w.wasReset() != 0 {
		t.Error("the follower was reset, and it had missed nothing")
	}
	eventually(t, 2*recheck, "told that writes work", func() bool { return log.count("can be written to again") == 1 })

	// Who starts without it cannot know where the feed was.
	d.Exec(t, "DELETE FROM feed")
	late := engineOn(t, Config{DSN: d.DSN()})
	if _, err := get(t.Context(), late, records.Registrations, "k"); err == nil {
		t.Error("a process that starts without a feed reads what nobody tells it of")
	}
	d.Exec(t, "INSERT INTO feed (number) SELECT max(number) FROM feed_marks")
	eventually(t, 3*recheck, "it works", func() bool { return put(t.Context(), late, records.Registrations, "k", "w") == nil })
}
