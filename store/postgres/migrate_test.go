package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
)

// releases are the migrations of this release and of two that could follow: the
// next one can be used beside this one, and the one after it cannot.
func releases(t *testing.T) (this, next, after []migration) {
	t.Helper()
	this, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	n := this[len(this)-1].version
	next = slices.Concat(this, []migration{{version: n + 1, minimum: n, sql: "ALTER TABLE registrations ADD COLUMN more text"}})
	after = slices.Concat(next, []migration{{version: n + 2, minimum: n + 1, sql: "ALTER TABLE registrations ALTER COLUMN more SET DEFAULT ''"}})
	return this, next, after
}

func engineOf(t *testing.T, cfg Config, list []migration) (*engine, error) {
	t.Helper()
	e, err := openEngine(t.Context(), cfg, list)
	if err == nil {
		t.Cleanup(func() { _ = e.Close() })
	}
	return e, err
}

func TestManyReplicasMakeTheTablesAtOnce(t *testing.T) {
	d := cluster.NewDatabase(t)
	this, next, _ := releases(t)
	for _, list := range [][]migration{this, next} {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				e, err := openEngine(context.Background(), Config{DSN: d.DSN(), Migrate: true}, list)
				if err != nil {
					t.Error(err)
					return
				}
				if err := put(context.Background(), e, records.Rings, "k", "v"); err != nil {
					t.Error(err)
				}
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	var version, number int
	if err := d.Connect(t).QueryRow(t.Context(), "SELECT version, number FROM schema_version, feed").Scan(&version, &number); err != nil || version != 3 || number != 16 {
		t.Errorf("got version %d and number %d, %v; want 3 and 16", version, number, err)
	}
}

func TestMigrateTellsWhatItDid(t *testing.T) {
	cfg := Config{DSN: cluster.NewDatabase(t).DSN()}
	for _, want := range [][2]int{{0, 2}, {2, 2}} {
		from, to, err := Migrate(t.Context(), cfg)
		if err != nil || [2]int{from, to} != want {
			t.Errorf("got %d to %d, %v; want %v", from, to, err, want)
		}
	}
	if _, _, err := Migrate(t.Context(), Config{DSN: "host=/nowhere dbname=x"}); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("Migrate of nothing: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Migrate(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("Migrate with an ended context: got %v", err)
	}
}

// The operator may migrate later; nothing has to be started again.
func TestEmptyDatabaseIsUsedOnceItWasMigrated(t *testing.T) {
	d := cluster.NewDatabase(t)
	log := &lines{}
	cfg := Config{DSN: d.DSN(), Logger: log.logger()}
	e := engineOn(t, cfg)
	for what, call := range calls(t.Context(), e) {
		if err := call(); !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "`bulla migrate`") {
			t.Errorf("%s: got %v, want ErrSchema that says what to run", what, err)
		}
	}
	if e.stats().Up {
		t.Error("Stats says that it is up")
	}
	time.Sleep(2 * recheck)
	if log.count(`msg="PostgreSQL cannot be used`) != 1 {
		t.Errorf("want one line, got:\n%s", log.text())
	}
	if _, _, err := Migrate(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*recheck, "it works", func() bool { return put(t.Context(), e, records.Rings, "k", "v") == nil })
	following(t, e)
	if log.count("can be used now") != 1 || log.count("is lost") != 0 {
		t.Errorf("want one line, got:\n%s", log.text())
	}
}

func TestReleaseBeforeWorksOnTablesOfTheNext(t *testing.T) {
	d := cluster.NewDatabase(t)
	this, next, after := releases(t)
	cfg := Config{DSN: d.DSN(), Migrate: true}
	older, err := engineOf(t, cfg, this)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, older, records.Registrations, "k", "older")
	newer, err := engineOf(t, cfg, next)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, newer, records.Registrations, "k", "newer")
	for _, e := range []*engine{older, newer} {
		if err := e.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
		mustPut(t, e, records.Registrations, "k", "both")
	}
	if again, err := engineOf(t, cfg, this); err != nil { // a restart of the older
		t.Errorf("the release before cannot be started any more: %v", err)
	} else {
		wantValue(t, again, records.Registrations, "k", "both")
	}

	// Two releases further, the first has to go.
	if _, err := engineOf(t, cfg, after); err != nil {
		t.Fatal(err)
	}
	if err := newer.Check(t.Context()); err != nil {
		t.Errorf("Check of the release before: %v", err)
	}
	// What it writes now might not be what the newest expects.
	if err := put(t.Context(), older, records.Registrations, "k", "too old"); !errors.Is(err, ErrSchema) {
		t.Errorf("Update by the one before that: got %v, want ErrSchema", err)
	}
	if err := older.Check(t.Context()); !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "newer") {
		t.Errorf("Check of the one before that: got %v, want ErrSchema", err)
	}
	if _, err := get(t.Context(), older, records.Registrations, "k"); !errors.Is(err, ErrSchema) {
		t.Errorf("View by the one before that: got %v, want ErrSchema", err)
	}
	if _, err := engineOf(t, cfg, this); !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "schema is 4") {
		t.Errorf("Open on tables that are too new: got %v, want ErrSchema that names them", err)
	}
	if _, _, err := Migrate(t.Context(), cfg); !errors.Is(err, ErrSchema) {
		t.Errorf("Migrate of tables that are too new: got %v, want ErrSchema", err)
	}
	wantValue(t, newer, records.Registrations, "k", "both")
}

// A service that may not make tables says so, and works once somebody has.
func TestRoleThatMayNotMigrateSaysSo(t *testing.T) {
	d := cluster.NewDatabase(t)
	d.Exec(t, "DROP ROLE IF EXISTS dml; CREATE ROLE dml LOGIN PASSWORD 'hunter2'")
	t.Cleanup(func() { d.Exec(t, "DROP OWNED BY dml; DROP ROLE dml") })
	log := &lines{}
	e := engineOn(t, Config{DSN: d.As("dml", "hunter2", cluster.Addr()), Migrate: true, Logger: log.logger()})
	_, err := get(t.Context(), e, records.Rings, "k")
	if err == nil || !strings.Contains(err.Error(), "`bulla migrate`") || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("got %v", err)
	}
	if _, _, err := Migrate(t.Context(), Config{DSN: d.DSN()}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * recheck)
	if _, err := get(t.Context(), e, records.Rings, "k"); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("without rights: got %v", err)
	}
	d.Exec(t, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO dml")
	eventually(t, 3*recheck, "it works", func() bool { return put(t.Context(), e, records.Rings, "k", "v") == nil })
	if strings.Contains(log.text(), "hunter2") {
		t.Error("the log has the password")
	}
}

// Tables in a schema of their own, also through a pooler, which takes no
// search_path, and two stores beside each other.
func TestStoresInSchemasOfTheirOwn(t *testing.T) {
	c := pgtest.Start(t)
	d := c.NewDatabase(t)
	pooler := c.NewPooler(t)
	var engines []*engine
	var told []*witness
	for _, schema := range []string{"one", `"Two's%20own"`} {
		for _, dsn := range []string{d.TCP(), d.Via(pooler.Addr)} {
			e := engineOn(t, Config{DSN: dsn + "&search_path=" + schema, Migrate: true})
			engines = append(engines, e)
			told = append(told, following(t, e))
		}
	}
	mustPut(t, engines[0], records.Rings, "k", "one")
	mustPut(t, engines[2], records.Rings, "k", "two")
	for i, want := range []string{"one", "one", "two", "two"} {
		wantValue(t, engines[i], records.Rings, "k", want)
		eventually(t, inForce, "told of it", func() bool { return told[i].heard("rings k") })
		if n := len(told[i].all()); n != 1 {
			t.Errorf("told of %d rows, want 1", n)
		}
	}
}

func TestMigrationsAreInOrder(t *testing.T) {
	list, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range list {
		if m.version != i+1 || i > 0 && m.minimum > list[i-1].version {
			t.Errorf("migration %d has minimum %d: the release before it cannot go on", m.version, m.minimum)
		}
	}
}
