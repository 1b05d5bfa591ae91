package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/bolt"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

// wrapper wraps the data keys of stores that several open.
var wrapper = datakeytest.NewWrapperOf([32]byte{1})

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	if cfg.DataKeys.Open == nil {
		cfg.DataKeys = datakeytest.Config(wrapper)
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// opener opens stores for the conformance suites.
func opener(t *testing.T) (*Store, func() *Store) {
	t.Helper()
	return openerOn(t, cluster.NewDatabase(t), datakeytest.NewWrapper())
}

func openerOn(t *testing.T, d *pgtest.Database, w *datakeytest.Wrapper) (*Store, func() *Store) {
	t.Helper()
	cfg := Config{DSN: d.DSN(), Migrate: true, DataKeys: datakeytest.Config(w)}
	s := open(t, cfg)
	return s, func() *Store {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, cfg)
		return s
	}
}

func TestRegistryConformance(t *testing.T) {
	storetest.Registry(t, func(t *testing.T) (registry.Store, func() registry.Store) {
		s, reopen := opener(t)
		return s, func() registry.Store { return reopen() }
	})
}

func TestWaitingConformance(t *testing.T) {
	storetest.Waiting(t, func(t *testing.T) (storetest.WaitingStore, func() storetest.WaitingStore) {
		s, reopen := opener(t)
		return s, func() storetest.WaitingStore { return reopen() }
	})
}

func TestRingsConformance(t *testing.T) {
	storetest.Rings(t, func(t *testing.T) (keyring.Store, func() keyring.Store) {
		s, reopen := opener(t)
		return s, func() keyring.Store { return reopen() }
	})
}

func TestTransfer(t *testing.T) { storetest.Transfer(t, victim) }

func TestTampering(t *testing.T) {
	storetest.Tampering(t, func(t *testing.T) *storetest.Victim { return victim(t, datakeytest.NewWrapper()) })
}

func TestLeasesConformance(t *testing.T) {
	storetest.Leases(t, func(t *testing.T) *storetest.Victim { return victim(t, datakeytest.NewWrapper()) })
}

// victim is an empty store for the suites, which look into its tables.
func victim(t *testing.T, w *datakeytest.Wrapper) *storetest.Victim {
	t.Helper()
	d := cluster.NewDatabase(t)
	s, reopen := openerOn(t, d, w)
	conn := d.Connect(t)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	return &storetest.Victim{
		Store:   s,
		Reopen:  func() storetest.Authenticated { return reopen() },
		Wrapper: w,
		Read: func(row envelope.Row) []byte {
			t.Helper()
			var value []byte
			err := conn.QueryRow(t.Context(), "SELECT value FROM "+string(records.TableOf(row.Kind))+" WHERE key = $1", row.Key).Scan(&value)
			if err != nil && !errors.Is(err, pgx.ErrNoRows) {
				t.Fatal(err)
			}
			return value
		},
		Write: func(row envelope.Row, value []byte) {
			t.Helper()
			table := string(records.TableOf(row.Kind))
			if value == nil {
				exec("DELETE FROM "+table+" WHERE key = $1", row.Key)
				return
			}
			exec("INSERT INTO "+table+" (key, value, change) VALUES ($1, $2, 0) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value", row.Key, value)
		},
		DeleteDataKeys: func() {
			t.Helper()
			exec("DELETE FROM datakeys")
		},
	}
}

// fillStore puts some of everything into a store.
func fillStore(t *testing.T, s *records.Store) {
	t.Helper()
	for _, id := range []string{"a", "b", "c"} {
		if _, err := s.Put(t.Context(), storetest.Client(id, "https://"+id+".example/"), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.PutKeySet(t.Context(), registry.KeySet{URI: "https://" + id + ".example/", Document: []byte(`{"keys":[]}`)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(t.Context(), registry.Registration{Issuer: "main", ClientID: "b", Deleted: true}, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutRing(t.Context(), keyring.Ring{Issuer: "main", Algorithm: "ES256"}, 0); err != nil {
		t.Fatal(err)
	}
}

func export(t *testing.T, s *records.Store) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := s.Export(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// A registry can be moved to any kind of store and back.
func TestExportMovesBetweenStores(t *testing.T) {
	boltStore := func() *records.Store {
		s, err := bolt.Open(t.Context(), bolt.Config{Path: filepath.Join(t.TempDir(), "bulla.db"), DataKeys: datakeytest.Config(wrapper)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s.Store
	}
	postgresStore := func() *records.Store {
		return open(t, Config{DSN: cluster.NewDatabase(t).DSN(), Migrate: true}).Store
	}
	for name, way := range map[string][3]func() *records.Store{
		"bolt to PostgreSQL and back": {boltStore, postgresStore, boltStore},
		"PostgreSQL to bolt and back": {postgresStore, boltStore, postgresStore},
		"PostgreSQL to PostgreSQL":    {postgresStore, postgresStore, postgresStore},
	} {
		t.Run(name, func(t *testing.T) {
			first := way[0]()
			fillStore(t, first)
			text := export(t, first)
			for i, next := range way[1:] {
				s := next()
				for range 2 { // a second time changes nothing
					if _, err := s.Import(t.Context(), bytes.NewReader(text)); err != nil {
						t.Fatal(err)
					}
				}
				if again := export(t, s); !bytes.Equal(text, again) {
					t.Fatalf("it was\n%s\nand became\n%s", text, again)
				}
				for _, id := range []string{"a", "c"} {
					if r, err := s.Get(t.Context(), "main", id); err != nil || r.Revision != 1 {
						t.Errorf("Get %s: got %+v, %v", id, r, err)
					}
					if _, err := s.KeySet(t.Context(), "https://"+id+".example/"); err != nil {
						t.Errorf("KeySet of %s: %v", id, err)
					}
				}
				if r, err := s.Ring(t.Context(), "main", "ES256"); err != nil || r.Unverified {
					t.Errorf("Ring: got %+v, %v", r, err)
				}
				if _, err := s.Put(t.Context(), storetest.Client(fmt.Sprint("new", i), "https://a.example/"), 0); err != nil {
					t.Errorf("Put after it was moved: %v", err)
				}
				// As it was, for the next.
				text = export(t, s)
			}
		})
	}
}
