package bolt

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
)

func benchmarkStore(b *testing.B) *Store {
	b.Helper()
	s, err := Open(b.Context(), Config{Path: filepath.Join(b.TempDir(), "bulla.db"), DataKeys: datakeytest.Config(wrapper)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// edit changes the file behind the store's back.
func edit(t *testing.T, s *Store, fn func(tx *bbolt.Tx) error) {
	t.Helper()
	if err := s.file.db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

// read returns a row as the file has it.
func read(t *testing.T, s *Store, row envelope.Row) (value []byte) {
	t.Helper()
	if err := s.file.db.View(func(tx *bbolt.Tx) error {
		value = bytes.Clone(tx.Bucket([]byte(records.TableOf(row.Kind))).Get(row.Key))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestStoreWithoutAWrappingKeyIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulla.db")
	s, err := Open(t.Context(), Config{Path: path})
	if err == nil {
		_ = s.Close()
		t.Fatal("it was opened")
	}
	if list, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(list) != 0 {
		t.Errorf("got files %v, want none", list)
	}
}

func TestIndexIsBelievedOnlyWhereARegistrationConfirmsIt(t *testing.T) {
	s, _ := opener(t)
	for i := range 3 {
		register(t, s, i)
	}
	const shared = "https://client.example/1"
	edit(t, s, func(tx *bbolt.Tx) error {
		index := tx.Bucket([]byte(records.URIs))
		for _, k := range [][]byte{
			envelope.Key("https://evil.example/", "main", "app-1"),     // another URI
			envelope.Key("https://evil.example/", "main", "app-77"),    // no client
			envelope.Key("https://evil.example/2", "other", "app-1"),   // another issuer
			envelope.Key(shared, "main", "app-0"),                      // before the true one
			envelope.Key(shared, "main", "app-00"),                     // likewise
			[]byte("https://evil.example/3"), []byte("\x00"), {0, 0x1}, // no keys of the index
		} {
			if err := index.Put(k, nil); err != nil {
				return err
			}
		}
		return nil
	})
	var got []string
	if err := s.URIs(t.Context(), func(u string) bool { got = append(got, u); return true }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"https://client.example/0", shared, "https://client.example/2"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// What the index has lost comes back with the next change.
	edit(t, s, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(records.URIs)).Delete(envelope.Key("https://client.example/2", "main", "app-2"))
	})
	if _, err := s.Put(t.Context(), client(2), 1); err != nil {
		t.Fatal(err)
	}
	got = nil
	if err := s.URIs(t.Context(), func(u string) bool { got = append(got, u); return true }); err != nil || len(got) != 3 {
		t.Errorf("got %q, %v; want three", got, err)
	}
}

func TestJunkDataKeysOfTheFileAreRefusedAndDeletable(t *testing.T) {
	s, reopen := opener(t)
	register(t, s, 1)
	edit(t, s, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(records.DataKeys))
		for k, v := range map[string]string{"dk-2": "{", "dk-3": `{"id":"dk-1"}`, "x": ""} {
			if err := b.Put([]byte(k), []byte(v)); err != nil {
				return err
			}
		}
		return nil
	})
	s = reopen()
	if _, err := s.Get(t.Context(), "main", "app-1"); err != nil {
		t.Error(err)
	}
	if id, err := s.Keys().Replace(t.Context()); err != nil || id != "dk-4" {
		t.Errorf("Replace: got %s, %v; want dk-4, the first that is free", id, err)
	}
	for _, id := range []string{"dk-2", "dk-3", "x"} {
		if err := s.Keys().Retire(t.Context(), id); err != nil {
			t.Errorf("Retire %s: %v", id, err)
		}
	}
	if list, err := s.Keys().List(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("got %+v, %v; want two keys", list, err)
	}
}

func TestAlarmNamesTheRowAndNothingOfIt(t *testing.T) {
	var log bytes.Buffer
	w := datakeytest.NewWrapper()
	s, err := Open(t.Context(), Config{
		Path: filepath.Join(t.TempDir(), "bulla.db"), DataKeys: datakeytest.Config(w),
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	register(t, s, 1)
	row := envelope.Row{Kind: envelope.Registration, Key: envelope.Key("main", "app-1")}
	sound := read(t, s, row)
	write := func(value []byte) {
		t.Helper()
		edit(t, s, func(tx *bbolt.Tx) error { return tx.Bucket([]byte(records.Registrations)).Put(row.Key, value) })
	}
	write(bytes.Replace(sound, []byte("client.example"), []byte("attack.example"), 1))
	for range 3 {
		if _, err := s.Get(t.Context(), "main", "app-1"); err == nil {
			t.Fatal("it was read")
		}
	}
	text := log.String()
	if strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=ERROR") {
		t.Errorf("got log %q, want one line", text)
	}
	for _, want := range []string{"table=registrations", "issuer=main", "client_id=app-1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %q: %s", want, text)
		}
	}
	if strings.Contains(text, "attack.example") {
		t.Errorf("the log has what was written: %s", text)
	}
	write(sound)
	if _, err := s.Get(t.Context(), "main", "app-1"); err != nil || !strings.Contains(log.String(), "sound again") {
		t.Errorf("got %v, log %s; want it told that the row is sound again", err, log.String())
	}
	if s.Tampered() != 1 {
		t.Errorf("got %d alarms, want 1", s.Tampered())
	}
}

func TestUnverifiedRingsAreWarnedOfOnce(t *testing.T) {
	var log bytes.Buffer
	s, _, w := wrapped(t)
	for _, alg := range []kms.Algorithm{kms.ES256, kms.RS256} {
		if _, err := s.PutRing(t.Context(), keyring.Ring{Issuer: "main", Algorithm: alg}, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.SetDown(true)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{Path: s.file.path, DataKeys: datakeytest.Config(w), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for range 3 {
		if list, err := s.Rings(t.Context(), "main"); err != nil || len(list) != 2 {
			t.Fatalf("got %d, %v", len(list), err)
		}
	}
	if n := strings.Count(log.String(), "unverified"); n != 1 {
		t.Errorf("got %d warnings, want 1:\n%s", n, log.String())
	}
	if strings.Contains(log.String(), "level=ERROR") || s.Tampered() != 0 {
		t.Errorf("nothing was tampered with: %s", log.String())
	}
}

// A slow HSM must not hold up those who read, nor those who write what needs
// no data key.
func TestUnwrappingHoldsNoTransaction(t *testing.T) {
	s, reopen, w := wrapped(t)
	register(t, s, 1)
	s = reopen()
	inside := make(chan struct{})
	release := make(chan struct{})
	w.Before(func() {
		close(inside)
		<-release
	})
	done := make(chan error, 1)
	go func() {
		_, err := s.Get(t.Context(), "main", "app-1")
		done <- err
	}()
	<-inside
	// To grow, the file is mapped anew, which waits for all who read it.
	grown := make(chan error, 1)
	go func() {
		grown <- s.file.update(context.Background(), func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketMeta).Put([]byte("ballast"), make([]byte, 4<<20))
		})
	}()
	select {
	case err := <-grown:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a transaction is open while the HSM works")
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
