package records_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/bolt"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open makes an empty store in a file.
func open(t testing.TB, w *datakeytest.Wrapper) *records.Store {
	t.Helper()
	s, err := bolt.Open(t.Context(), bolt.Config{Path: filepath.Join(t.TempDir(), "bulla.db"), DataKeys: datakeytest.Config(w)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.Store
}

func client(i int) registry.Registration {
	return storetest.Client(fmt.Sprintf("app-%d", i), fmt.Sprintf("https://client.example/%d", i))
}

func register(t *testing.T, s *records.Store, i int) {
	t.Helper()
	if _, err := s.Put(t.Context(), client(i), 0); err != nil {
		t.Fatal(err)
	}
}

func wantUnavailable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, registry.ErrUnavailable) || errors.Is(err, registry.ErrNotFound) {
		t.Errorf("%s: got %v, want ErrUnavailable", what, err)
	}
}

// victim is an empty store in memory for the suites, which look into its rows.
func victim(t *testing.T, w *datakeytest.Wrapper) *storetest.Victim {
	t.Helper()
	d := newDatabase()
	s := over(t, d, w)
	write := func(key string, value *string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.set(key, value)
	}
	return &storetest.Victim{
		Store: s,
		Reopen: func() storetest.Authenticated {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = over(t, d, w)
			return s
		},
		Wrapper: w,
		Read: func(row envelope.Row) []byte {
			d.mu.Lock()
			defer d.mu.Unlock()
			if v, ok := d.rows[name(records.TableOf(row.Kind), row.Key)]; ok {
				return []byte(v)
			}
			return nil
		},
		Write: func(row envelope.Row, value []byte) {
			if value == nil {
				write(name(records.TableOf(row.Kind), row.Key), nil)
				return
			}
			text := string(value)
			write(name(records.TableOf(row.Kind), row.Key), &text)
		},
		DeleteDataKeys: func() {
			list, err := s.DataKeys(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				write(name(records.DataKeys, []byte(r.ID)), nil)
			}
		},
	}
}

// over makes a store of a database in memory, as a process that starts has it.
func over(t testing.TB, d *database, w *datakeytest.Wrapper) *records.Store {
	t.Helper()
	return overEngine(t, d.engine(), w)
}

func overEngine(t testing.TB, e records.Engine, w *datakeytest.Wrapper) *records.Store {
	t.Helper()
	s, err := records.New(t.Context(), records.Config{Engine: e, DataKeys: datakeytest.Config(w)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestTampering(t *testing.T) {
	storetest.Tampering(t, func(t *testing.T) *storetest.Victim { return victim(t, datakeytest.NewWrapper()) })
}

func TestLeases(t *testing.T) {
	storetest.Leases(t, func(t *testing.T) *storetest.Victim { return victim(t, datakeytest.NewWrapper()) })
}

func TestTransfer(t *testing.T) { storetest.Transfer(t, victim) }
