package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
)

// OpenUnder returns a new, empty store whose data keys w wraps.
type OpenUnder func(t *testing.T, w *datakeytest.Wrapper) *Victim

// Transfer runs the suite of Export and Import.
func Transfer(t *testing.T, open OpenUnder) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, open OpenUnder)
	}{
		{"AllOfAStoreMovesToAnother", moves},
		{"EmptyStoreMovesToAnother", movesNothing},
		{"ManyRowsMoveInBatches", movesMany},
		{"ChangesThatWaitMove", waitingMoves},
		{"SecondImportIsANoOp", importTwice},
		{"AnyChangeOfAnExportIsRefused", changedExport},
		{"LineThatIsTooLongIsRefused", longLine},
		{"ImportThatWasBrokenOffGoesOn", brokenOff},
		{"StoreThatHoldsSomethingElseIsLeftAlone", otherStore},
		{"StoreThatHasMovedOnIsLeftAlone", movedOn},
		{"ExportOfAnotherServiceIsRefused", foreignExport},
		{"TamperedRowsAreNotExported", tamperedExport},
		{"ExportAndImportNeedTheBackend", transferWithoutBackend},
		{"KeySetThatNobodyNamesIsNotImported", unnamedSet},
		{"ReaderOrWriterThatFailsIsToldOf", brokenStreams},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open) })
	}
}

// furnish puts rows of all kinds into a store, with all that is hard to carry.
func furnish(t *testing.T, v *Victim) {
	t.Helper()
	s := v.Store
	put(t, s, withSecret(t, s.Keys(), "secret", "hush"), 0)
	if _, err := s.Keys().Replace(t.Context()); err != nil { // rows and secrets under two data keys
		t.Fatal(err)
	}
	put(t, s, Client("app", "https://a.example/?a=b&c=%3Cd%3E"), 0)
	put(t, s, Client("two", "https://a.example/?a=b&c=%3Cd%3E"), 0)
	put(t, s, Client(` !"#$%&'()*+,-./:;<=>?@[\]^_{|}~`, "https://b.example/"), 0)
	strange := withJWKS("strange", []byte("{\"keys\" :\t[],\r\n\"x\":\"\\u00e9 \xff\x00 <&>\u2028\u2029\"}\n"))
	strange.Settings[0].KeyID = "clé <鍵> & \u2028\u2029 \\ \""
	put(t, s, strange, 0)
	put(t, s, Client("gone", "https://gone.example/"), 0)
	put(t, s, tombstone("gone"), 1)
	put(t, s, Client("back", "https://b.example/"), 0)
	put(t, s, tombstone("back"), 1)
	put(t, s, Client("back", "https://b.example/"), 2)
	for _, uri := range []string{"https://a.example/?a=b&c=%3Cd%3E", "https://b.example/"} {
		if err := s.PutKeySet(t.Context(), keySet(uri)); err != nil {
			t.Fatal(err)
		}
	}
	r := ring(issuer, kms.ES256, "k1", "k<2>&\u2028")
	r.Intent = intent()
	putRing(t, s, r, 0)
	putRing(t, s, ring("other", kms.RS256, "k"), 0)
}

// furnished are the rows of furnish.
func furnished() []envelope.Row {
	rows := []envelope.Row{
		setRow("https://a.example/?a=b&c=%3Cd%3E"), setRow("https://b.example/"),
		ringRow(kms.ES256), {Kind: envelope.Ring, Key: envelope.Key("other", "RS256")},
	}
	for _, id := range []string{"secret", "app", "two", ` !"#$%&'()*+,-./:;<=>?@[\]^_{|}~`, "strange", "gone", "back"} {
		rows = append(rows, clientRow(id))
	}
	return rows
}

func exported(t *testing.T, v *Victim) ([]byte, records.Counts) {
	t.Helper()
	var b bytes.Buffer
	counts, err := v.Store.Export(t.Context(), &b)
	if err != nil {
		t.Fatalf("Export: %v", err)
	}
	return b.Bytes(), counts
}

func imported(t *testing.T, v *Victim, file []byte) records.Counts {
	t.Helper()
	counts, err := v.Store.Import(t.Context(), bytes.NewReader(file))
	if err != nil {
		t.Fatalf("Import: %v", err)
	}
	return counts
}

// refused fails the test unless an import is refused.
func refused(t *testing.T, what string, v *Victim, file []byte, sentinels ...error) {
	t.Helper()
	_, err := v.Store.Import(t.Context(), bytes.NewReader(file))
	if !slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(err, s) }) {
		t.Errorf("%s: got error %v, want one of %v", what, err, sentinels)
	}
	if errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("%s: %v is ErrUnavailable; trying again does not help", what, err)
	}
}

func moves(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	furnish(t, from)
	file, counts := exported(t, from)
	if want := (records.Counts{DataKeys: 2, Rings: 2, Registrations: 6, Tombstones: 1, KeySets: 2}); counts != want {
		t.Errorf("Export counts %+v, want %+v", counts, want)
	}
	for _, secret := range append(w.Wrapped(), []byte("hush")) {
		if bytes.Contains(file, secret) {
			t.Error("the export has a secret or a data key in the clear")
		}
	}
	counts.Written = 2 + 2 + 6 + 1 + 2
	if got := imported(t, to, file); got != counts {
		t.Errorf("Import counts %+v, want %+v", got, counts)
	}
	for _, when := range []string{"in the same process", "in a new process"} {
		for _, row := range furnished() {
			if was, is := from.value(t, row), to.value(t, row); !bytes.Equal(was, is) {
				t.Errorf("%s: row %s %q was %q and is %q", when, row.Kind, row.Key, was, is)
			}
			if row.Kind == envelope.Registration && bytes.HasPrefix(row.Key, []byte(issuer+"\x00")) {
				id := string(row.Key[len(issuer)+1:])
				if diff := cmp.Diff(get(t, from.Store, id), get(t, to.Store, id)); diff != "" {
					t.Errorf("%s: %s (-from +to):\n%s", when, id, diff)
				}
			}
		}
		wantSecret(t, to, "secret", "hush", "dk-1")
		was, err := from.Store.Ring(t.Context(), issuer, kms.ES256)
		if err != nil {
			t.Fatal(err)
		}
		wantRing(t, to.Store, was)
		for _, uri := range []string{"https://a.example/?a=b&c=%3Cd%3E", "https://b.example/", "https://gone.example/"} {
			if diff := cmp.Diff(clientsOfURI(t, from, uri), clientsOfURI(t, to, uri)); diff != "" {
				t.Errorf("%s: clients of %s (-from +to):\n%s", when, uri, diff)
			}
		}
		if again, _ := exported(t, to); !bytes.Equal(file, again) {
			t.Errorf("%s: the export of what was imported differs (-first +second):\n%s", when, cmp.Diff(string(file), string(again)))
		}
		to.reopen()
	}

	// All goes on from there.
	s := to.Store
	if r := put(t, s, Client("gone", "https://gone.example/"), 2); r.Revision != 3 {
		t.Errorf("got revision %d, want 3", r.Revision)
	}
	if err := s.PutKeySet(t.Context(), keySet("https://b.example/")); err != nil {
		t.Error(err)
	}
	put(t, s, tombstone("app"), 1)
	put(t, s, tombstone("two"), 1)
	_, err := s.KeySet(t.Context(), "https://a.example/?a=b&c=%3Cd%3E")
	want(t, "the key set after its last client was deleted", err, registry.ErrNotFound)
	if id, err := s.Keys().Replace(t.Context()); err != nil || id != "dk-3" {
		t.Errorf("Replace: got %s, %v; want dk-3", id, err)
	}
	if done, err := s.Reseal(t.Context(), sealAnew(s.Keys())); err != nil || done.Refused != 0 {
		t.Errorf("Reseal: got %+v, %v", done, err)
	}
	for _, id := range []string{"dk-1", "dk-2"} {
		if err := s.Keys().Retire(t.Context(), id); err != nil {
			t.Errorf("Retire %s: %v", id, err)
		}
	}
	if s.Tampered() != 0 || from.Store.Tampered() != 0 {
		t.Errorf("got %d and %d alarms, want none", from.Store.Tampered(), s.Tampered())
	}
}

func movesNothing(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	file, counts := exported(t, from)
	if counts != (records.Counts{}) || imported(t, to, file) != counts {
		t.Errorf("got %+v, want nothing", counts)
	}
	put(t, to.Store, Client("app", "https://a.example/"), 0)
}

func movesMany(t *testing.T, open OpenUnder) {
	const clients = 2*records.BatchRows + 88
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	for i := range clients {
		uri := fmt.Sprintf("https://a.example/%d", i%300)
		put(t, from.Store, Client(fmt.Sprintf("app-%d", i), uri), 0)
		if i < 300 {
			if err := from.Store.PutKeySet(t.Context(), keySet(uri)); err != nil {
				t.Fatal(err)
			}
		}
	}
	file, counts := exported(t, from)
	if counts.Registrations != clients || counts.KeySets != 300 {
		t.Errorf("Export counts %+v", counts)
	}
	imported(t, to, file)
	list, err := to.Store.List(t.Context(), issuer, "", 2*clients)
	if err != nil || len(list) != clients {
		t.Errorf("got %d clients, %v; want %d", len(list), err, clients)
	}
	sets, named := 0, 0
	if err := to.Store.URIs(t.Context(), func(uri string) bool {
		if _, err := to.Store.KeySet(t.Context(), uri); err == nil {
			sets++
		}
		named += len(clientsOfURI(t, to, uri))
		return true
	}); err != nil || sets != 300 || named != clients {
		t.Errorf("got %d key sets and %d clients by their URIs, %v; want 300 and %d", sets, named, err, clients)
	}
	if again, _ := exported(t, to); !bytes.Equal(file, again) {
		t.Error("the export of what was imported differs")
	}
}

func importTwice(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	furnish(t, from)
	file, counts := exported(t, from)
	imported(t, to, file)
	counts.There = 2 + 2 + 6 + 1 + 2
	for range 2 {
		if got := imported(t, to, file); got != counts {
			t.Errorf("again: got %+v, want %+v: nothing written", got, counts)
		}
		if got := imported(t, from, file); got != counts {
			t.Errorf("where it came from: got %+v, want %+v: nothing written", got, counts)
		}
		to.reopen()
	}
	if again, _ := exported(t, to); !bytes.Equal(file, again) {
		t.Error("the store has changed")
	}
}

// wantInert fails the test if a store has anything that counts.
func wantInert(t *testing.T, what string, v *Victim) {
	t.Helper()
	if list, err := v.Store.DataKeys(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%s: the store has %d data keys, %v; want none, so that nothing counts", what, len(list), err)
	}
}

// splitLines splits an export into its lines, with their ends.
func splitLines(file []byte) [][]byte {
	return bytes.SplitAfter(file, []byte("\n"))[:bytes.Count(file, []byte("\n"))]
}

func changedExport(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	furnish(t, from)
	file, _ := exported(t, from)
	lines := splitLines(file)
	// Each of these goes into a store that is empty.
	for _, n := range []int{1, 4, len(lines) / 2, len(lines) - 2, len(lines) - 1} {
		fresh := open(t, w)
		without := bytes.Join([][]byte{bytes.Join(lines[:n], nil), bytes.Join(lines[n+1:], nil)}, nil)
		refused(t, fmt.Sprintf("line %d missing", n+1), fresh, without, records.ErrFile)
		wantInert(t, fmt.Sprintf("line %d missing", n+1), fresh)
	}
	// The others go into one: it may have rows that a line is missing for.
	either := []error{records.ErrFile, records.ErrDiffers}
	// try has one line replaced.
	try := func(what string, n int, with ...[]byte) {
		t.Helper()
		changed := bytes.Join([][]byte{bytes.Join(lines[:n], nil), bytes.Join(with, nil), bytes.Join(lines[n+1:], nil)}, nil)
		if bytes.Equal(changed, file) {
			t.Fatalf("line %d, %s: nothing was changed", n+1, what)
		}
		refused(t, fmt.Sprintf("line %d, %s", n+1, what), to, changed, either...)
	}
	for n, l := range lines {
		const most = 60 // positions of a line
		step := max(1, len(l)/most)
		for i := 0; i < len(l); i += step {
			flipped := bytes.Clone(l)
			flipped[i] ^= 1
			try(fmt.Sprintf("bit of byte %d", i), n, flipped)
		}
		try("without its end", n, l[:len(l)-1])
		try("a space more", n, l[:len(l)-1], []byte(" \n"))
		try("an empty line before", n, []byte("\n"), l)
		try("missing", n)
		try("twice", n, l, l)
		if n+1 < len(lines) {
			rest := bytes.Join(lines[n+2:], nil)
			swapped := bytes.Join([][]byte{bytes.Join(lines[:n], nil), lines[n+1], l, rest}, nil)
			refused(t, fmt.Sprintf("lines %d and %d changed places", n+1, n+2), to, swapped, either...)
		}
		cut := bytes.Join(lines[:n], nil)
		refused(t, fmt.Sprintf("cut before line %d", n+1), to, cut, records.ErrFile)
		refused(t, fmt.Sprintf("cut in line %d", n+1), to, append(cut, l[:len(l)/2]...), records.ErrFile)
	}
	// What has its counts and its sum right is held against the MACs.
	for n, l := range lines {
		for what, with := range map[string][2]string{
			"another client":            {`"key":["main","two"]`, `"key":["main","tw0"]`},
			"another revision":          {`"revision":1`, `"revision":7`},
			"alive again":               {`,"deleted":true`, ``},
			"another key set":           {`"key":["https://b.example/"]`, `"key":["https://c.example/"]`},
			"another MAC":               {`"mac":"`, `"mac":"AAAA`},
			"another data key":          {`"data_key":"dk-2","mac"`, `"data_key":"dk-1","mac"`},
			"no data key":               {`"data_key":"dk-2","mac"`, `"data_key":"dk-9","mac"`},
			"a wrapping key of its own": {`"wrapped":"`, `"wrapped":"AAAA`},
		} {
			if !bytes.Contains(l, []byte(with[0])) || bytes.HasPrefix(l, []byte(`{"end"`)) {
				continue
			}
			forged := bytes.Replace(l, []byte(with[0]), []byte(with[1]), 1)
			whole := bytes.Join([][]byte{bytes.Join(lines[:n], nil), forged, bytes.Join(lines[n+1:], nil)}, nil)
			refused(t, fmt.Sprintf("line %d forged, %s", n+1, what), to, resummed(whole), records.ErrFile)
		}
	}
	refused(t, "something after the end", to, append(bytes.Clone(file), '\n'), records.ErrFile)
	refused(t, "twice", to, append(bytes.Clone(file), file...), records.ErrFile)
	refused(t, "nothing", to, nil, records.ErrFile)
	refused(t, "another version", to, bytes.Replace(file, []byte(`{"bulla_registry":1}`), []byte(`{"bulla_registry":2}`), 1), records.ErrFile)
	wantInert(t, "after all that was refused", to)
	for _, id := range []string{"app", "strange"} {
		if _, err := to.Store.Get(t.Context(), issuer, id); err == nil {
			t.Errorf("%s can be used after all that was refused", id)
		}
	}
	to.reopen()
	imported(t, to, file)
	if again, _ := exported(t, to); !bytes.Equal(file, again) {
		t.Error("after the whole file was imported, the store holds something else")
	}
}

// resummed is an export with the sum that somebody would write who changed it.
func resummed(file []byte) []byte {
	lines := splitLines(file)
	before := bytes.Join(lines[:len(lines)-1], nil)
	sum := sha256.Sum256(before)
	head, _, _ := bytes.Cut(lines[len(lines)-1], []byte(`"sha256":"`))
	return fmt.Appendf(bytes.Clone(before), "%s\"sha256\":\"%s\"}\n", head, hex.EncodeToString(sum[:]))
}

func longLine(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	big := withJWKS("big", bytes.Repeat([]byte("x"), registry.MaxJWKS))
	put(t, from.Store, big, 0)
	file, _ := exported(t, from)
	for what, text := range map[string][]byte{
		"that never ends": bytes.Repeat([]byte("x"), 5<<20),
		"that ends":       append(bytes.Repeat([]byte(" "), 5<<20), '\n'),
	} {
		lines := splitLines(file)
		refused(t, "a first line "+what, to, text, records.ErrFile)
		refused(t, "a line "+what, to, append(bytes.Join(lines[:2], nil), text...), records.ErrFile)
	}
	imported(t, to, file)
	if got := get(t, to.Store, "big"); !bytes.Equal(got.Source.JWKS, big.Source.JWKS) {
		t.Error("the longest registration came in another form")
	}
}

// failing is a reader or a writer that fails after n bytes.
type failing struct {
	r io.Reader
	n int
}

var errStream = errors.New("the pipe broke")

func (f *failing) Read(p []byte) (int, error) {
	if f.n <= 0 {
		return 0, errStream
	}
	n, err := f.r.Read(p[:min(len(p), f.n)])
	f.n -= n
	return n, err
}

func (f *failing) Write(p []byte) (int, error) {
	n := min(len(p), f.n)
	f.n -= n
	if n < len(p) {
		return n, errStream
	}
	return n, nil
}

func wantBrokenOff(t *testing.T, v *Victim, want bool) {
	t.Helper()
	if got, err := v.Store.ImportBrokenOff(t.Context()); got != want || err != nil {
		t.Errorf("the store has an import that was broken off: %t, %v; want %t", got, err, want)
	}
}

func brokenOff(t *testing.T, open OpenUnder) {
	const clients = 3 * records.BatchRows
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	putRing(t, from.Store, ring(issuer, kms.ES256, "k"), 0)
	for i := range clients {
		put(t, from.Store, Client(fmt.Sprintf("app-%04d", i), "https://a.example/"), 0)
	}
	if err := from.Store.PutKeySet(t.Context(), keySet("https://a.example/")); err != nil {
		t.Fatal(err)
	}
	file, counts := exported(t, from)
	written := 0
	for _, at := range []int{10, len(file) / 2, len(file) / 2, len(file) * 9 / 10, len(file) - 1} {
		counts, err := to.Store.Import(t.Context(), &failing{bytes.NewReader(file), at})
		want(t, fmt.Sprintf("broken off after %d bytes", at), err, errStream)
		if !strings.Contains(fmt.Sprint(err), "at line") {
			t.Errorf("%v does not say where it stopped", err)
		}
		written += counts.Written
		wantBrokenOff(t, to, written > 0)
		wantInert(t, "broken off", to)
		to.reopen()
		if _, err := to.Store.Get(t.Context(), issuer, "app-0000"); err == nil {
			t.Error("a client can be used before the import is complete")
		}
		to.reopen() // the data keys are looked for anew
	}
	if written < records.BatchRows {
		t.Errorf("only %d rows were written; the test has no force", written)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := to.Store.Import(ctx, bytes.NewReader(file))
	want(t, "with an ended context", err, context.Canceled)
	rest := imported(t, to, file)
	if total := counts.DataKeys + counts.Rings + counts.Registrations + counts.KeySets; written+rest.Written != total || rest.There != written {
		t.Errorf("%d rows were written before and %d then, which found %d there; want %d in all: it goes on where it was", written, rest.Written, rest.There, total)
	}
	wantBrokenOff(t, to, false)
	get(t, to.Store, "app-0000")
	if again, _ := exported(t, to); !bytes.Equal(file, again) {
		t.Error("the store holds something else")
	}
}

// untouched fails the test if an import changes anything in a store.
func untouched(t *testing.T, what string, v *Victim, file []byte, names string) {
	t.Helper()
	before, _ := exported(t, v)
	_, err := v.Store.Import(t.Context(), bytes.NewReader(file))
	want(t, what, err, records.ErrDiffers)
	if text := fmt.Sprint(err); !strings.Contains(text, names) || !strings.Contains(text, "before the service is started") {
		t.Errorf("%s: got %q, want it to name %q and to say what to do", what, text, names)
	}
	if after, _ := exported(t, v); !bytes.Equal(before, after) {
		t.Errorf("%s: the store has changed (-before +after):\n%s", what, cmp.Diff(string(before), string(after)))
	}
}

func otherStore(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from := open(t, w)
	furnish(t, from)
	file, _ := exported(t, from)

	started := open(t, w)
	put(t, started.Store, Client("app", "https://z.example/"), 0)
	untouched(t, "a store with a client of its own", started, file, "dk-1")

	idle := open(t, w)
	if _, err := idle.Store.Keys().Current(t.Context()); err != nil {
		t.Fatal(err)
	}
	untouched(t, "a store with a data key of its own", idle, file, "dk-1")

	empty := open(t, w)
	none, _ := exported(t, empty)
	untouched(t, "a store that is not empty, by an export that is", started, none, "data keys")

	// A row that nobody knows how it came there.
	for _, row := range []envelope.Row{clientRow("unknown"), clientRow("zzz"), {Kind: envelope.Ring, Key: envelope.Key("a", "ES256")}, setRow("https://z.example/")} {
		junk := open(t, w)
		junk.Write(row, []byte("junk"))
		refused(t, fmt.Sprintf("a store with a row %s %q", row.Kind, row.Key), junk, file, records.ErrDiffers)
		if got := junk.value(t, row); string(got) != "junk" {
			t.Errorf("the row has become %q", got)
		}
		wantInert(t, "with a row of its own", junk)
	}
}

func movedOn(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from := open(t, w)
	furnish(t, from)
	file, _ := exported(t, from)
	for what, tc := range map[string]struct {
		change func(s Authenticated)
		names  string
	}{
		"a changed client": {func(s Authenticated) { put(t, s, Client("app", "https://z.example/"), 1) }, `client_id "app"`},
		"a deleted client": {func(s Authenticated) { put(t, s, tombstone("two"), 1) }, `client_id "two"`},
		"a new client":     {func(s Authenticated) { put(t, s, Client("new", "https://b.example/"), 0) }, `client_id "new"`},
		"the last client":  {func(s Authenticated) { put(t, s, Client("zzz", "https://b.example/"), 0) }, `client_id "zzz"`},
		"a changed ring":   {func(s Authenticated) { putRing(t, s, ring("other", kms.RS256, "l"), 1) }, `"other"`},
		"a new ring":       {func(s Authenticated) { putRing(t, s, ring("zzz", kms.RS256, "l"), 0) }, `"zzz"`},
		"a key set, refreshed": {func(s Authenticated) {
			set := keySet("https://b.example/")
			set.Failures = 99
			if err := s.PutKeySet(t.Context(), set); err != nil {
				t.Fatal(err)
			}
		}, "https://b.example/"},
		"a new data key": {func(s Authenticated) {
			if _, err := s.Keys().Replace(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, "data keys"},
	} {
		to := open(t, w)
		imported(t, to, file)
		tc.change(to.Store)
		untouched(t, what, to, file, tc.names)
		get(t, to.Store, "strange")
	}
}

func foreignExport(t *testing.T, open OpenUnder) {
	from, to := open(t, datakeytest.NewWrapper()), open(t, datakeytest.NewWrapper())
	furnish(t, from)
	file, _ := exported(t, from)
	refused(t, "under another wrapping key", to, file, records.ErrFile)
	wantInert(t, "of another service", to)
	for _, row := range furnished() {
		if value := to.Read(row); value != nil {
			t.Errorf("row %s %q was written", row.Kind, row.Key)
		}
	}
	put(t, to.Store, Client("app", "https://a.example/"), 0)
}

func tamperedExport(t *testing.T, open OpenUnder) {
	v := open(t, datakeytest.NewWrapper())
	furnish(t, v)
	sound, _ := exported(t, v)
	for name, tc := range map[string]struct {
		row      envelope.Row
		old, new string
	}{
		"a registration": {clientRow("app"), `"revision":1`, `"revision":2`},
		"a tombstone":    {clientRow("gone"), `,"deleted":true`, ``},
		"a ring":         {ringRow(kms.ES256), `"kid":"k1"`, `"kid":"k3"`},
	} {
		was := v.value(t, tc.row)
		v.edit(t, tc.row, tc.old, tc.new)
		_, err := v.Store.Export(t.Context(), io.Discard)
		want(t, name, err, records.ErrExport)
		if parts := bytes.Split(tc.row.Key, []byte{0}); !strings.Contains(fmt.Sprint(err), string(parts[1])) {
			t.Errorf("%s: %v does not name the row", name, err)
		}
		v.Write(tc.row, was)
	}
	row := setRow("https://b.example/")
	was := v.value(t, row)
	v.edit(t, row, `incident-1`, `incident-2`)
	file, counts := exported(t, v)
	if counts.LeftOut != 1 || counts.KeySets != 1 || bytes.Contains(file, []byte(`"key":["https://b.example/"]`)) {
		t.Errorf("a key set: got %+v; want it left out", counts)
	}
	v.Write(row, was)
	if again, _ := exported(t, v); !bytes.Equal(sound, again) {
		t.Error("with all rows as they were, the export differs")
	}
}

func transferWithoutBackend(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	furnish(t, from)
	file, _ := exported(t, from)
	w.SetDown(true)
	from.reopen()
	_, err := from.Store.Export(t.Context(), io.Discard)
	want(t, "Export", err, registry.ErrUnavailable)
	_, err = to.Store.Import(t.Context(), bytes.NewReader(file))
	want(t, "Import", err, registry.ErrUnavailable)
	wantInert(t, "with the backend down", to)
	w.SetDown(false)
	imported(t, to, file)
	get(t, to.Store, "app")
}

func unnamedSet(t *testing.T, open OpenUnder) {
	const uri = "https://a.example/"
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	put(t, from.Store, Client("app", uri), 0)
	if err := from.Store.PutKeySet(t.Context(), keySet(uri)); err != nil {
		t.Fatal(err)
	}
	value := from.value(t, setRow(uri))
	put(t, from.Store, tombstone("app"), 1)
	from.Write(setRow(uri), value) // somebody puts it back
	file, counts := exported(t, from)
	if counts.KeySets != 1 {
		t.Fatalf("got %+v; the test has no force", counts)
	}
	if counts := imported(t, to, file); counts.Written != 2 || counts.There != 0 {
		t.Errorf("wrote %d rows and found %d there, want the client and the data key only", counts.Written, counts.There)
	}
	if to.Read(setRow(uri)) != nil {
		t.Error("a key set that nobody names was imported")
	}
}

func brokenStreams(t *testing.T, open OpenUnder) {
	from := open(t, datakeytest.NewWrapper())
	furnish(t, from)
	file, _ := exported(t, from)
	for _, at := range []int{0, 5, len(file) - 1} {
		_, err := from.Store.Export(t.Context(), &failing{n: at})
		want(t, fmt.Sprintf("Export to what fails after %d bytes", at), err, errStream)
		if errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%v is ErrUnavailable; it is not the store", err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := from.Store.Export(ended, io.Discard)
	want(t, "Export with an ended context", err, context.Canceled)
}
