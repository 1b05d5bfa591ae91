package postgres

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

// blocks returns the blocks of code in a language on the operator's page.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	page, err := os.ReadFile("../../docs/store/postgresql.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, part := range strings.Split(string(page), "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```")
		all = append(all, block+"\n")
	}
	return all
}

// The commands of the operator's page, as they stand there.
func TestOperatorsPage(t *testing.T) {
	c := pgtest.Start(t)
	sql, sh := blocks(t, "sql"), blocks(t, "sh")
	if len(sql) != 2 || len(sh) != 2 {
		t.Fatalf("the page has %d blocks of SQL and %d of shell; this test knows what to do with 2 and 2", len(sql), len(sh))
	}
	superuser := &pgtest.Database{Cluster: c, Name: "postgres"}
	bulla := &pgtest.Database{Cluster: c, Name: "bulla"}
	dir := t.TempDir()
	run := func(stdin, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "PATH="+c.Bin+":"+os.Getenv("PATH"), "OWNER_DSN="+bulla.As("bulla_owner", "change-me-1", c.Addr()))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s\n%v\n%s", stdin, err, out)
		}
	}
	psql := func(script string) {
		t.Helper()
		run(script, filepath.Join(c.Bin, "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", superuser.DSN())
	}

	psql(sql[0])
	if from, to, err := Migrate(t.Context(), Config{DSN: bulla.As("bulla_owner", "change-me-1", c.Addr())}); err != nil || from != 0 || to == 0 {
		t.Fatalf("got %d to %d, %v", from, to, err)
	}
	psql(sql[1])

	// The service can do all of its work with that, and no more.
	cfg := Config{DSN: bulla.As("bulla", "change-me-2", c.Addr()), DataKeys: datakeytest.Config(wrapper)}
	s := open(t, cfg)
	fillStore(t, s.Store)
	w := following(t, s.engine)
	claim, err := s.Leases().Claim(t.Context(), "https://a.example/", time.Minute)
	if err != nil || claim.Lease == "" {
		t.Errorf("got %+v, %v; want a lease", claim, err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	for _, forbidden := range []string{"UPDATE schema_version SET version = 1", "DROP TABLE feed", "CREATE TABLE mine ()", "CREATE SCHEMA mine", "CREATE TEMP TABLE mine ()"} {
		if _, err := s.engine.query(t.Context(), stmt(forbidden)); err == nil {
			t.Errorf("the service's role may: %s", forbidden)
		}
	}

	// A backup is taken and put back while the service runs.
	run(sh[0], "sh", "-e")
	if _, err := s.Put(t.Context(), storetest.Client("later", "https://later.example/"), 0); err != nil {
		t.Fatal(err)
	}
	wantCurrent(t, s.engine, time.Now())
	run(sh[1], "sh", "-e")
	eventually(t, 5*time.Second, "told that the store was put back", func() bool { return w.wasReset() > 0 })
	if _, err := s.Get(t.Context(), "main", "a"); err != nil {
		t.Errorf("what is in the backup: %v", err)
	}
	if v, err := get(t.Context(), s.engine, records.Registrations, "main\x00later"); err != nil || v != nil {
		t.Errorf("what is not in the backup: got %q, %v", v, err)
	}
	if _, err := s.Put(t.Context(), storetest.Client("after", "https://after.example/"), 0); err != nil {
		t.Errorf("Put after the restore: %v", err)
	}
	eventually(t, inForce, "told of what is written after", func() bool { return w.heard("registrations main\x00after") })
}
