package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(child(path))
	}
	goleak.VerifyTestMain(m)
}

// opener opens stores for the conformance suite.
func opener(t *testing.T) (*Store, func() *Store) {
	t.Helper()
	s, reopen, _ := wrapped(t)
	return s, reopen
}

// wrapped is opener, with the wrapping key of the store.
func wrapped(t *testing.T) (*Store, func() *Store, *datakeytest.Wrapper) {
	t.Helper()
	path, w := filepath.Join(t.TempDir(), "bulla.db"), datakeytest.NewWrapper()
	s := openWith(t, path, w)
	return s, func() *Store {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openWith(t, path, w)
		return s
	}, w
}

// wrapper wraps the data keys of the stores that open opens, in child processes
// too.
var wrapper = datakeytest.NewWrapperOf([32]byte{1})

func open(t *testing.T, path string) *Store {
	t.Helper()
	return openWith(t, path, wrapper)
}

func openWith(t *testing.T, path string, w *datakeytest.Wrapper) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, DataKeys: datakeytest.Config(w)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
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

func TestEngineConformance(t *testing.T) {
	storetest.Engine(t, func(t *testing.T) (records.Engine, func() records.Engine) {
		s, reopen := opener(t)
		return s.file, func() records.Engine { return reopen().file }
	})
}

func client(i int) registry.Registration {
	return storetest.Client(fmt.Sprintf("app-%d", i), fmt.Sprintf("https://client.example/%d", i))
}

func register(t *testing.T, s *Store, i int) {
	t.Helper()
	if _, err := s.Put(t.Context(), client(i), 0); err != nil {
		t.Fatal(err)
	}
}

func TestURIsAreReadInBatches(t *testing.T) {
	s, _ := opener(t)
	s.file.db.NoSync = true // 700 times fsync is not what is tested
	const n = 2*records.BatchRows + 188
	for i := range n {
		register(t, s, i)
	}
	seen := map[string]int{}
	if err := s.URIs(t.Context(), func(u string) bool { seen[u]++; return true }); err != nil {
		t.Fatal(err)
	}
	for u, times := range seen {
		if times != 1 {
			t.Errorf("%s was yielded %d times", u, times)
		}
	}
	if len(seen) != n {
		t.Errorf("got %d URIs, want %d", len(seen), n)
	}
}

func TestNewFileIsPrivateAndNothingElseIsLeft(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := t.TempDir()
	open(t, filepath.Join(dir, "bulla.db"))
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 {
		t.Errorf("got files %v, want the store alone", list)
	}
	info, err := list[0].Info()
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("got mode %s, want 0600", info.Mode())
	}
}

// A file of before changes could wait gets the table for them when it is opened.
func TestFileWithoutATableThatWasAddedGetsIt(t *testing.T) {
	path, w := filepath.Join(t.TempDir(), "db"), datakeytest.NewWrapper()
	s := openWith(t, path, w)
	register(t, s, 1)
	if err := s.file.db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(records.Waiting)) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openWith(t, path, w)
	reg := client(1)
	reg.Pending = &registry.Pending{EffectiveAt: time.Now().Add(time.Hour), Source: reg.Source, Settings: reg.Settings}
	if _, err := s.Put(t.Context(), reg, 1); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Waiting(t.Context(), 10); err != nil || len(list) != 1 {
		t.Errorf("got %v, %v", list, err)
	}
}

func TestFileThatOthersCanReadIsWarnedOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulla.db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, err := Open(t.Context(), Config{Path: path, DataKeys: datakeytest.Config(wrapper), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if !strings.Contains(log.String(), "chmod 600") {
		t.Errorf("got log %q, want the advice to chmod", log.String())
	}
}

func TestFilesThatAreNoStoreAreRefusedWithAdvice(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// edited is a sound bbolt file with a change.
	edited := func(name string, edit func(tx *bbolt.Tx) error) string {
		path := filepath.Join(dir, name)
		if err := open(t, path).Close(); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(edit), db.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	setSchema := func(v string) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySchema, []byte(v)) }
	}
	sound, err := os.ReadFile(edited("sound", func(*bbolt.Tx) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		path   string
		advice string
		schema bool
	}{
		"no path":        {"", "name the file", false},
		"no folder":      {filepath.Join(dir, "none", "bulla.db"), "folder must exist", false},
		"a folder":       {dir, "not a file", false},
		"empty":          {write("empty", nil), "restore it from a backup", false},
		"text":           {write("text", bytes.Repeat([]byte("no store\n"), 5000)), "not a store of Bulla", true},
		"short":          {write("short", []byte("x")), "not a store of Bulla", true},
		"cut short":      {write("cut", sound[:len(sound)/4]), "backup", false},
		"other bbolt":    {edited("other", func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketMeta) }), "name another file", true},
		"newer schema":   {edited("newer", setSchema("3")), "run the newer version", true},
		"older schema":   {edited("older", setSchema("1")), "delete it and register the clients anew", true},
		"damaged schema": {edited("damaged", setSchema("one")), "backup", true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			before, _ := os.ReadFile(tc.path)
			s, err := Open(t.Context(), Config{Path: tc.path, DataKeys: datakeytest.Config(wrapper)})
			if err == nil {
				_ = s.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), tc.advice) {
				t.Errorf("got %q, want advice with %q", err, tc.advice)
			}
			if errors.Is(err, ErrSchema) != tc.schema {
				t.Errorf("got %v, want ErrSchema %t", err, tc.schema)
			}
			if after, _ := os.ReadFile(tc.path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestSecondOpenIsToldThatTheFileIsInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulla.db")
	first := open(t, path)
	began := time.Now()
	_, err := Open(t.Context(), Config{Path: path, DataKeys: datakeytest.Config(wrapper)})
	if took := time.Since(began); !errors.Is(err, ErrInUse) || took > 3*time.Second {
		t.Fatalf("got %v after %s, want ErrInUse after about 1 s", err, took)
	}
	if !strings.Contains(err.Error(), "stop that process") {
		t.Errorf("got %q, want advice", err)
	}
	// One that lets go in time is waited for.
	time.AfterFunc(100*time.Millisecond, func() { _ = first.Close() })
	open(t, path)
}

func TestClosedStoreIsUnavailable(t *testing.T) {
	s, _ := opener(t)
	register(t, s, 1)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Get(t.Context(), "main", "app-1")
	wantUnavailable(t, "Get", err)
	_, err = s.Put(t.Context(), client(2), 0)
	wantUnavailable(t, "Put", err)
	wantUnavailable(t, "Check", s.Check(t.Context()))
	if _, err := s.Rings(t.Context(), "main"); !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("Rings: got %v, want keyring.ErrUnavailable", err)
	}
}

func wantUnavailable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, registry.ErrUnavailable) || errors.Is(err, registry.ErrNotFound) {
		t.Errorf("%s: got %v, want ErrUnavailable", what, err)
	}
}

func TestWriterWhoWaitsCanGiveUp(t *testing.T) {
	s, _ := opener(t)
	<-s.file.writer // a write that takes long
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := s.Put(ctx, client(1), 0)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want context.DeadlineExceeded", err)
	}
	s.file.writer <- struct{}{}
	register(t, s, 1)
}

func TestNothingIsWrittenToAFileThatIsGone(t *testing.T) {
	s, _ := opener(t)
	register(t, s, 1)
	moved := s.file.path + ".moved"
	if err := os.Rename(s.file.path, moved); err != nil {
		t.Fatal(err)
	}
	_, err := s.Put(t.Context(), client(2), 0)
	wantUnavailable(t, "Put to a file that was moved", err)
	wantUnavailable(t, "Check of a file that was moved", s.Check(t.Context()))
	if _, err := s.Get(t.Context(), "main", "app-1"); err != nil {
		t.Errorf("reading goes on: got %v", err)
	}
	if err := os.WriteFile(s.file.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.Put(t.Context(), client(2), 0)
	wantUnavailable(t, "Put to a file that was replaced", err)
	if err := os.Rename(moved, s.file.path); err != nil {
		t.Fatal(err)
	}
	register(t, s, 2)
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check after the file is back: %v", err)
	}
}

// A commit that fails after bbolt has written the meta page leaves unknown
// what the disk holds.
func TestStoreStopsWhenItIsUnknownWhetherAWriteIsDurable(t *testing.T) {
	s, reopen := opener(t)
	register(t, s, 1)
	diskFails := errors.New("input/output error")
	s.file.commit = func(tx *bbolt.Tx) error { return errors.Join(tx.Commit(), diskFails) }
	_, err := s.Put(t.Context(), client(2), 0)
	wantUnavailable(t, "the Put that failed", err)
	if !errors.Is(err, diskFails) {
		t.Errorf("got %v, want it to wrap the cause", err)
	}
	s.file.commit = (*bbolt.Tx).Commit
	_, err = s.Get(t.Context(), "main", "app-2")
	wantUnavailable(t, "Get of what may not be durable", err)
	_, err = s.Put(t.Context(), client(3), 0)
	wantUnavailable(t, "the next Put", err)
	wantUnavailable(t, "Check", s.Check(t.Context()))

	s = reopen()
	if _, err := s.Get(t.Context(), "main", "app-1"); err != nil {
		t.Errorf("after reopening: %v", err)
	}
}

func TestStoreGoesOnWhenAWriteFailedBeforeItCounted(t *testing.T) {
	s, _ := opener(t)
	register(t, s, 2) // which makes the data key
	diskFull := errors.New("no space left")
	s.file.commit = func(tx *bbolt.Tx) error { return errors.Join(tx.Rollback(), diskFull) }
	_, err := s.Put(t.Context(), client(1), 0)
	wantUnavailable(t, "Put", err)
	if _, err := s.Get(t.Context(), "main", "app-1"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Get: got %v, want ErrNotFound", err)
	}
	s.file.commit = (*bbolt.Tx).Commit
	register(t, s, 1)
}

// The file is mapped into memory: what is not there any more is a fault.
func TestFileCutShortInUseDoesNotEndTheProcess(t *testing.T) {
	s, _ := opener(t)
	s.file.db.NoSync = true
	for i := range 500 {
		register(t, s, i)
	}
	if err := os.Truncate(s.file.path, int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get(t.Context(), "main", "app-1")
	wantUnavailable(t, "Get", err)
	_, err = s.Put(t.Context(), client(501), 0)
	wantUnavailable(t, "Put", err)
	wantUnavailable(t, "Check", s.Check(t.Context()))
	if err := s.Close(); err == nil {
		t.Error("Close: got no error")
	}
}

func TestGarbageInUseDoesNotEndTheProcess(t *testing.T) {
	s, _ := opener(t)
	s.file.db.NoSync = true
	for i := range 500 {
		register(t, s, i)
	}
	f, err := os.OpenFile(s.file.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize())
	_, werr := f.WriteAt(bytes.Repeat([]byte{0xa5}, int(info.Size()-2*page)), 2*page)
	if err := errors.Join(werr, f.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = s.Put(t.Context(), client(501), 0)
	wantUnavailable(t, "Put", err)
	_, err = s.Get(t.Context(), "main", "app-1")
	wantUnavailable(t, "Get", err)
	done := make(chan struct{})
	go func() { _ = s.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("Close hangs")
	}
}
