package records_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/records"
)

func export(t testing.TB, s *records.Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.Export(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func furnish(t testing.TB, s *records.Store, clients int) {
	t.Helper()
	for i := range clients {
		if _, err := s.Put(t.Context(), client(i), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.PutKeySet(t.Context(), keySetOf(fmt.Sprintf("https://client.example/%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(t.Context(), registry.Registration{Issuer: "main", ClientID: "app-0", Deleted: true}, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutRing(t.Context(), keyring.Ring{Issuer: "main", Algorithm: kms.ES256}, 0); err != nil {
		t.Fatal(err)
	}
}

func TestRegistryMovesBetweenKindsOfStores(t *testing.T) {
	w := datakeytest.NewWrapper()
	file := open(t, w)
	furnish(t, file, 5)
	want := export(t, file)
	shared := over(t, newDatabase(), w)
	back := open(t, w)
	for _, move := range []struct {
		what     string
		from, to *records.Store
	}{{"out of a file", file, shared}, {"into a file", shared, back}} {
		if _, err := move.to.Import(t.Context(), bytes.NewReader(export(t, move.from))); err != nil {
			t.Fatalf("%s: %v", move.what, err)
		}
		if got := export(t, move.to); !bytes.Equal(want, got) {
			t.Errorf("%s: got %s\nwant %s", move.what, got, want)
		}
	}
}

// What was exported must be read after any change of this code.
func TestFormOfAnExportIsFixed(t *testing.T) {
	s := over(t, newDatabase(), datakeytest.NewWrapper())
	furnish(t, s, 2)
	lines := strings.Split(string(export(t, s)), "\n")
	for i, want := range []struct{ begin, end string }{
		{`{"bulla_registry":1}`, ``},
		{`{"kind":"datakey","key":["dk-1"],"record":{"id":"dk-1","wrapped":"`, `}}`},
		{`{"kind":"ring","key":["main","ES256"],"data_key":"dk-1","mac":"`, `"revision":1}}`},
		{`{"kind":"registration","key":["main","app-0"],"data_key":"dk-1","mac":"`, `"deleted":true}}`},
		{`{"kind":"registration","key":["main","app-1"],"data_key":"dk-1","mac":"`, `}}`},
		{`{"kind":"keyset","key":["https://client.example/1"],"data_key":"dk-1","mac":"`, `}}`},
		{`{"end":{"data_keys":1,"rings":1,"registrations":1,"tombstones":1,"key_sets":1},"sha256":"`, `"}`},
		{``, ``},
	} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], want.begin) || !strings.HasSuffix(lines[i], want.end) {
			t.Errorf("line %d: got %q, want %s…%s", i+1, lines[i:], want.begin, want.end)
		}
	}
	if len(lines) != 8 {
		t.Errorf("got %d lines, want 8", len(lines))
	}
}

// The mark of a data key that is being retired is of the store in which that
// happens.
func TestMarkOfADataKeyDoesNotMove(t *testing.T) {
	w := datakeytest.NewWrapper()
	from, to := over(t, newDatabase(), w), over(t, newDatabase(), w)
	furnish(t, from, 2)
	before := export(t, from)
	if err := from.MarkRetiring(t.Context(), "dk-1"); err != nil {
		t.Fatal(err)
	}
	file := export(t, from)
	if !bytes.Equal(before, file) {
		t.Errorf("the export has the mark: %s", file)
	}
	if _, err := to.Import(t.Context(), bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	register(t, to, 7)
	if c, err := from.Import(t.Context(), bytes.NewReader(file)); err != nil || c.Written != 0 {
		t.Errorf("where it came from: got %+v, %v; want nothing to do", c, err)
	}
}

func TestDataKeyMadeDuringAnExportEndsIt(t *testing.T) {
	s := over(t, newDatabase(), datakeytest.NewWrapper())
	furnish(t, s, 2)
	replaced := false
	_, err := s.Export(t.Context(), writerFunc(func(p []byte) (int, error) { return len(p), nil }))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * records.BatchRows { // more than is buffered before the last batch
		register(t, s, 1000+i)
	}
	_, err = s.Export(t.Context(), writerFunc(func(p []byte) (int, error) {
		if !replaced {
			replaced = true
			if _, err := s.Keys().Replace(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := s.Put(t.Context(), registry.Registration{Issuer: "zzz", ClientID: "last", Deleted: true}, 0); err != nil {
				t.Error(err)
			}
		}
		return len(p), nil
	}))
	if !errors.Is(err, records.ErrExport) || !strings.Contains(err.Error(), "export again") {
		t.Errorf("got %v, want the advice to export again", err)
	}
	export(t, s)
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// At each Update the connection may be lost.
func TestImportGoesOnAfterEachUpdateThatFails(t *testing.T) {
	w := datakeytest.NewWrapper()
	from := over(t, newDatabase(), w)
	furnish(t, from, records.BatchRows+10)
	file := export(t, from)
	d := newDatabase()
	e := d.engine()
	e.limited = true
	to := overEngine(t, e, w)
	written, rounds := 0, 0
	for ; ; rounds++ {
		e.updates = 1
		c, err := to.Import(t.Context(), bytes.NewReader(file))
		written += c.Written
		if err == nil {
			break
		}
		wantUnavailable(t, "Import", err)
		if list, err := to.DataKeys(t.Context()); err != nil || len(list) != 0 {
			t.Fatalf("got %d data keys, %v, before the import is complete", len(list), err)
		}
		if c.Written == 0 || rounds > 20 {
			t.Fatalf("round %d: got %+v, %v; want it to go on", rounds, c, err)
		}
	}
	if want := 1 + 1 + 2*(records.BatchRows+10) - 1; written != want || rounds < 3 {
		t.Errorf("%d rows were written in %d rounds, want %d", written, rounds, want)
	}
	if got := export(t, to); !bytes.Equal(file, got) {
		t.Error("the store holds something else")
	}
}

// fuzzed are the clients of the export that is fuzzed.
const fuzzed = 3

// FuzzImport feeds an import with any bytes: what it takes is what an export
// writes, and what it refuses leaves nothing that counts.
func FuzzImport(f *testing.F) {
	w := datakeytest.NewWrapperOf([32]byte{7})
	from := over(f, newDatabase(), w)
	f.Add(export(f, from))
	furnish(f, from, fuzzed)
	whole := export(f, from)
	f.Add(whole)
	lines := bytes.SplitAfter(whole, []byte("\n"))
	for i := range lines {
		f.Add(bytes.Join(lines[:i], nil))
		f.Add(bytes.Join([][]byte{lines[0], lines[i]}, nil))
		f.Add(bytes.Join([][]byte{lines[0], lines[1], lines[i], lines[len(lines)-2]}, nil))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		to := over(t, newDatabase(), w)
		_, err := to.Import(t.Context(), bytes.NewReader(file))
		if err != nil {
			if !errors.Is(err, records.ErrFile) {
				t.Errorf("got %v, want ErrFile", err)
			}
			if list, err := to.DataKeys(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("got %d data keys, %v, of what was refused", len(list), err)
			}
			return
		}
		if got := export(t, to); !bytes.Equal(file, got) {
			t.Errorf("%q was imported, and is exported as %q", file, got)
		}
	})
}
