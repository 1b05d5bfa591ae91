package main

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/store/postgres"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// databaseSite is a set-up with software keys and a database.
func databaseSite(t *testing.T, dsn, listenDSN, more string) *site {
	t.Helper()
	s := newLocalSite(t)
	s.write("dsn", []byte(dsn+"\n"))
	fields := "dsn_file: dsn"
	if listenDSN != "" {
		s.write("listen-dsn", []byte(listenDSN+"\n"))
		fields += ", listen_dsn_file: listen-dsn"
	}
	s.More += "\nstore: {postgres: {" + fields + more + "}}"
	return s
}

// wellDatabase is what the doctor says of a database that is all right.
var wellDatabase = []string{
	developing, "ok store answers", "ok store has the rights", "ok store agree within", "ok store a notice came through",
}

func TestDoctorLooksAtPostgres(t *testing.T) {
	cluster := pgtest.Start(t)
	migrated := func(t *testing.T) *pgtest.Database {
		t.Helper()
		db := cluster.NewDatabase(t)
		if _, _, err := postgres.Migrate(t.Context(), postgres.Config{DSN: db.DSN()}); err != nil {
			t.Fatal(err)
		}
		return db
	}

	t.Run("no tables yet", func(t *testing.T) {
		db := cluster.NewDatabase(t)
		databaseSite(t, db.DSN(), "", "").doctor().wants(append(wellDatabase, "ok store there is no schema yet; the service makes it, with version 2")...)
		databaseSite(t, db.DSN(), "", ", migrate: false").doctor().wants(append(wellDatabase, `FAIL store "bulla migrate"`)...)
		seen, err := postgres.Examine(t.Context(), postgres.Config{DSN: db.DSN(), Migrate: true})
		if err != nil || seen.Version != 0 {
			t.Errorf("after the doctor: version %d, %v; it must not have made anything", seen.Version, err)
		}
	})

	t.Run("in use", func(t *testing.T) {
		db := migrated(t)
		s := databaseSite(t, db.DSN(), "", "")
		s.doctor().wants(append(wellDatabase, "ok store the schema has version 2, as it should", "ok datakeys store.postgres: none yet")...)
		serveSite(t, s)
		s.doctor().wants(append(wellDatabase, "ok store the schema has version 2", "ok datakeys dk-1: unwrapped; dk-1 is the current one",
			"ok audit in use by the running service", "3 listener in use", "ok running and is ready")...)
	})

	t.Run("a user without rights", func(t *testing.T) {
		db := migrated(t)
		db.Exec(t, "CREATE ROLE poor LOGIN PASSWORD 'hunter2'")
		t.Cleanup(func() { db.Exec(t, "DROP OWNED BY poor; DROP ROLE poor") })
		s := databaseSite(t, db.As("poor", "hunter2", cluster.Addr()), "", "")
		s.doctor().wants("FAIL store the user may not read which schema it has", "FAIL store lacks rights: SELECT on schema_version, SELECT on feed",
			developing, "ok store answers", "ok store agree", "ok store a notice")
		db.Exec(t, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO poor; REVOKE UPDATE ON rings FROM poor")
		d := s.doctor()
		d.wants(append(wellDatabase[:2:2], "FAIL store the user poor lacks rights: UPDATE on rings: as the owner of the tables run: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA \"public\" TO poor",
			"ok store version 2", "ok store agree", "ok store a notice", "ok datakeys")...)
		if strings.Contains(d.text, "hunter2") {
			t.Errorf("the password is shown:\n%s", d.text)
		}
		db.Exec(t, "GRANT UPDATE ON rings TO poor")
		s.doctor().wants(append(wellDatabase, "ok store version 2", "ok datakeys")...)
	})

	t.Run("a newer schema", func(t *testing.T) {
		db := migrated(t)
		db.Exec(t, "UPDATE schema_version SET version = 7, minimum = 6")
		databaseSite(t, db.DSN(), "", "").doctor().wants(append(wellDatabase, "FAIL store its schema is 7")...)
	})

	t.Run("a pooler", func(t *testing.T) {
		db := migrated(t)
		pooled := db.Via(cluster.NewPooler(t).Addr)
		databaseSite(t, pooled, "", "").doctor().wants(append(wellDatabase[:4:4],
			"warn store store.postgres.dsn_file: LISTEN does not work: a notice did not come through within 2s", "ok store version 2", "ok datakeys")...)
		databaseSite(t, pooled, db.DSN(), "").doctor().wants(append(wellDatabase, "ok store store.postgres.listen_dsn_file: LISTEN works", "ok store version 2", "ok datakeys")...)
		databaseSite(t, pooled, cluster.NewDatabase(t).DSN(), "").doctor().wants(append(wellDatabase[:4:4],
			"warn store that leads to this very database", "ok store version 2", "ok datakeys")...)
		databaseSite(t, pooled, "postgres://app@127.0.0.1:1/app", "").doctor().wants(append(wellDatabase[:4:4],
			"warn store cannot be reached", "ok store version 2", "ok datakeys")...)
	})

	t.Run("a clock that is wrong", func(t *testing.T) {
		db := migrated(t)
		// What the server calls the time, for this user.
		db.Exec(t, `CREATE SCHEMA wrong;
			CREATE FUNCTION wrong.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT pg_catalog.clock_timestamp() + interval ''90 seconds''';
			CREATE ROLE late LOGIN SUPERUSER PASSWORD 'x'; ALTER ROLE late SET search_path = wrong, pg_catalog`)
		t.Cleanup(func() { db.Exec(t, "DROP ROLE late") })
		databaseSite(t, db.As("late", "x", cluster.Addr()), "", "").doctor().wants(append(wellDatabase[:3:3],
			"warn store its clock is 1m30s ahead of this machine's: run NTP", "ok store a notice", "ok store version 2", "ok datakeys")...)
	})

	t.Run("no way to it", func(t *testing.T) {
		for dsn, want := range map[string]string{
			"postgres://bulla:hunter2@127.0.0.1:1/bulla":                   "FAIL store cannot be reached",
			"postgres://bulla:hunter2@db.invalid/bulla":                    "FAIL store sslmode=verify-full",
			"postgres://bulla:hunter2@127.0.0.1:port/bulla":                "FAIL store it cannot be read",
			cluster.NewDatabase(t).As("nobody", "hunter2", cluster.Addr()): "FAIL store nobody",
		} {
			d := databaseSite(t, dsn, "", "").doctor()
			d.wants(developing, want)
			if strings.Contains(d.text, "hunter2") {
				t.Errorf("the password is shown:\n%s", d.text)
			}
			starts, not := strings.Contains(d.text, "the service starts without it"), strings.Contains(d.text, "the service does not start")
			if wrong := !strings.Contains(want, "reached") && !strings.Contains(want, "nobody"); starts == wrong || not != wrong {
				t.Errorf("a DSN that is wrong: %t; and the advice is\n%s", wrong, d.text)
			}
		}
		// As the doctor says, so it is.
		for dsn, starts := range map[string]bool{"postgres://bulla@127.0.0.1:1/bulla": true, "postgres://bulla@db.invalid/bulla": false} {
			cfg, err := config.Load(databaseSite(t, dsn, "", "").config())
			if err != nil {
				t.Fatal(err)
			}
			store, err := openStore(t.Context(), cfg, storeUse{keys: dataKeysConfig(cfg, newWrappingKeys(cfg), nil), log: slog.New(slog.DiscardHandler)})
			if (err == nil) != starts {
				t.Errorf("%s: %v", dsn, err)
			}
			if err == nil {
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			}
		}
		s := databaseSite(t, "x", "", "")
		if err := os.Remove(s.path("dsn")); err != nil {
			t.Fatal(err)
		}
		s.doctor().wants(developing, "FAIL file dsn does not exist", "FAIL store no such file")
	})
}

func TestDoctorTellsOfAStandby(t *testing.T) {
	cluster := pgtest.Start(t)
	db := cluster.NewDatabase(t)
	if _, _, err := postgres.Migrate(t.Context(), postgres.Config{DSN: db.DSN()}); err != nil {
		t.Fatal(err)
	}
	cluster.File(t, "data/standby.signal", "") // of nobody, but it waits for one
	if err := cluster.Restart(); err != nil {
		t.Fatal(err)
	}
	databaseSite(t, db.DSN(), "", "").doctor().wants(developing, "FAIL store it is a standby, where nothing can be written: name the primary",
		"warn store LISTEN does not work", "ok store has the rights", "ok store agree", "ok store version 2", "ok datakeys")
	if err := os.Remove(filepath.Join(strings.TrimSuffix(cluster.File(t, "x", ""), "x"), "data", "standby.signal")); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Restart(); err != nil { // the database is dropped at the end
		t.Fatal(err)
	}
}

func TestDoctorTellsOfTLSToPostgres(t *testing.T) {
	cluster := pgtest.Start(t)
	db := cluster.NewDatabase(t)
	certificates := newSite(t)
	ca := newTestCA(t)
	ca.server(certificates, "db", func(*x509.Certificate) {})
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(certificates.path(name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, setting := range []string{
		"ssl_cert_file = '" + cluster.File(t, "db.crt", read("db.crt")) + "'", "ssl_key_file = '" + cluster.File(t, "db.key", read("db.key")) + "'", "ssl = on",
	} {
		db.Exec(t, "ALTER SYSTEM SET "+setting)
	}
	if err := cluster.Restart(); err != nil {
		t.Fatal(err)
	}
	certificates.write("db-ca.crt", pemBlock("CERTIFICATE", ca.cert.Raw))
	dsn := strings.Replace(db.TCP(), "sslmode=disable", "sslmode=verify-full&sslrootcert="+certificates.path("db-ca.crt"), 1)
	databaseSite(t, dsn, "", "").doctor().wants(append(wellDatabase, "ok store answers, by TLS", "ok store there is no schema yet")...)
	databaseSite(t, db.TCP(), "", "").doctor().wants(append(wellDatabase, "ok store answers on this machine", "ok store there is no schema yet")...)
	other := strings.Replace(db.TCP(), "sslmode=disable", fmt.Sprintf("sslmode=verify-full&sslrootcert=%s", certificates.path("ca.crt")), 1)
	databaseSite(t, other, "", "").doctor().wants(developing, "FAIL store certificate")
}
