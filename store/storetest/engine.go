package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/store/records"
)

// Engine runs the suite of records.Engine: what the records build on.
func Engine(t *testing.T, open Open[records.Engine]) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, open Open[records.Engine])
	}{
		{"RowsComeAndGo", rowsComeAndGo},
		{"TablesAreApart", tablesApart},
		{"KeysAndValuesMayBeAnyBytes", anyBytes},
		{"ManyRowsAreReadAtOnce", readMany},
		{"ScanGoesInByteOrder", scanOrder},
		{"ScanKeepsToItsPrefix", scanPrefix},
		{"ScanKeepsToItsLimits", scanLimits},
		{"UpdateSeesWhatItWrote", ownWrites},
		{"UpdateThatFailsChangesNothing", rollback},
		{"ViewWritesNothing", viewWrites},
		{"WhatIsNotCommittedIsNotSeen", uncommitted},
		{"BytesAreNotShared", bytesNotShared},
		{"EndedContextRunsNothing", endedContextRunsNothing},
		{"NoIncrementIsLost", increments},
		{"UpdatesAreOneAfterTheOther", serialUpdates},
		{"RowsSurviveReopening", rowsSurvive},
		{"ClosedEngineFails", closedEngine},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open) })
	}
}

func readMany(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	for _, table := range []records.Table{records.Registrations, records.KeySets} {
		for _, key := range []string{"a", "b", "c", "empty"} {
			value := "value of " + key
			if key == "empty" {
				value = ""
			}
			putRow(t, e, table, key, value)
		}
		keys := [][]byte{[]byte("c"), []byte("none"), []byte("a"), []byte("empty"), []byte("b"), []byte("c")}
		read := func(want ...string) func(tx records.Tx) error {
			return func(tx records.Tx) error {
				if none, err := tx.GetAll(table, nil); err != nil || len(none) != 0 {
					t.Errorf("no keys: got %q, %v", none, err)
				}
				got, err := tx.GetAll(table, keys)
				if err != nil {
					return err
				}
				var texts []string
				for _, v := range got {
					text := string(v)
					if v == nil {
						text = "nil"
					}
					texts = append(texts, text)
				}
				if diff := cmp.Diff(want, texts); diff != "" {
					t.Errorf("%s: (-want +got):\n%s", table, diff)
				}
				return nil
			}
		}
		before := []string{"value of c", "nil", "value of a", "", "value of b", "value of c"}
		if err := e.View(t.Context(), read(before...)); err != nil {
			t.Error(err)
		}
		update(t, e, func(tx records.Tx) error {
			if err := read(before...)(tx); err != nil {
				return err
			}
			if err := errors.Join(
				tx.Put(table, []byte("none"), []byte("new")),
				tx.Delete(table, []byte("a")),
				tx.Put(table, []byte("b"), []byte("first")),
				tx.Put(table, []byte("b"), []byte("last")),
			); err != nil {
				return err
			}
			after := []string{"value of c", "new", "nil", "", "last", "value of c"}
			return errors.Join(read(after...)(tx), read(after...)(tx))
		})
		// Rows that are all to be written.
		update(t, e, func(tx records.Tx) error {
			if err := tx.Put(table, []byte("x"), []byte("1")); err != nil {
				return err
			}
			got, err := tx.GetAll(table, [][]byte{[]byte("x")})
			if err == nil && (len(got) != 1 || string(got[0]) != "1") {
				t.Errorf("got %q, want what is to be written", got)
			}
			return err
		})
	}
}

func update(t *testing.T, e records.Engine, fn func(tx records.Tx) error) {
	t.Helper()
	if err := e.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func putRow(t *testing.T, e records.Engine, table records.Table, key, value string) {
	t.Helper()
	update(t, e, func(tx records.Tx) error { return tx.Put(table, []byte(key), []byte(value)) })
}

// getRow reads a row; ok is false if there is none.
func getRow(t *testing.T, e records.Engine, table records.Table, key string) (value string, ok bool) {
	t.Helper()
	if err := e.View(t.Context(), func(tx records.Tx) error {
		v, err := tx.Get(table, []byte(key))
		value, ok = string(v), v != nil
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return value, ok
}

func wantRow(t *testing.T, e records.Engine, table records.Table, key, want string, there bool) {
	t.Helper()
	if got, ok := getRow(t, e, table, key); got != want || ok != there {
		t.Errorf("row %q of %s: got %q, there %t; want %q, %t", key, table, got, ok, want, there)
	}
}

func rowsComeAndGo(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	if err := e.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	wantRow(t, e, records.Registrations, "k", "", false)
	for _, value := range []string{"one", "", "three"} {
		putRow(t, e, records.Registrations, "k", value)
		wantRow(t, e, records.Registrations, "k", value, true)
	}
	for range 2 { // to delete what is not there is no error
		update(t, e, func(tx records.Tx) error { return tx.Delete(records.Registrations, []byte("k")) })
		wantRow(t, e, records.Registrations, "k", "", false)
	}
}

func tablesApart(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	for _, table := range records.Tables() {
		putRow(t, e, table, "a\x00b", string(table))
	}
	for _, table := range records.Tables() {
		wantRow(t, e, table, "a\x00b", string(table), true)
		if keys, more := scanAll(t, e, table, "", "", 10); len(keys) != 1 || more {
			t.Errorf("%s: got rows %q", table, keys)
		}
	}
	update(t, e, func(tx records.Tx) error { return tx.Delete(records.Rings, []byte("a\x00b")) })
	for _, table := range records.Tables() {
		if _, ok := getRow(t, e, table, "a\x00b"); ok == (table == records.Rings) {
			t.Errorf("%s: the row is there: %t", table, ok)
		}
	}
}

func anyBytes(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, text := range []string{string(all), "\x00", "\xff\xfe", "é\u2028", `\x00\\'"`, string(bytes.Repeat(all, 8))} {
		putRow(t, e, records.URIs, text, text)
		wantRow(t, e, records.URIs, text, text, true)
	}
	long := string(bytes.Repeat(all, 3000))
	putRow(t, e, records.KeySets, "k", long)
	wantRow(t, e, records.KeySets, "k", long, true)
}

// scan is one call of Scan.
func scan(t *testing.T, e records.Engine, table records.Table, prefix, seek string, limit int) (rows []records.Row, more bool) {
	t.Helper()
	if err := e.View(t.Context(), func(tx records.Tx) (err error) {
		rows, more, err = tx.Scan(table, []byte(prefix), []byte(seek), limit)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return rows, more
}

func scanAll(t *testing.T, e records.Engine, table records.Table, prefix, seek string, limit int) (keys []string, more bool) {
	t.Helper()
	rows, more := scan(t, e, table, prefix, seek, limit)
	for _, r := range rows {
		keys = append(keys, string(r.Key))
	}
	return keys, more
}

func fill(t *testing.T, e records.Engine, table records.Table, keys ...string) {
	t.Helper()
	update(t, e, func(tx records.Tx) error {
		for _, k := range keys {
			if err := tx.Put(table, []byte(k), []byte("value of "+k)); err != nil {
				return err
			}
		}
		return nil
	})
}

func scanOrder(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	if keys, more := scanAll(t, e, records.URIs, "", "", 10); len(keys) != 0 || more {
		t.Errorf("an empty table has %q, more %t", keys, more)
	}
	// Where a collation would mix cases and pass over signs.
	want := []string{"\x00", "\x01", " ", "-a", "A", "A\x00", "Aa", "B", "a", "a\x00", "a\x00\x00", "a\x00b", "a\x01", "a b", "a-", "aB", "é", "\xff", "\xff\x00", "\xff\xff"}
	for i := range want {
		fill(t, e, records.URIs, want[(i*7)%len(want)]) // 7 and 20 have no divisor in common
	}
	rows, more := scan(t, e, records.URIs, "", "", 100)
	var got []string
	for _, r := range rows {
		got = append(got, string(r.Key))
		if string(r.Value) != "value of "+string(r.Key) {
			t.Errorf("row %q has value %q", r.Key, r.Value)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || more {
		t.Errorf("more %t (-want +got):\n%s", more, diff)
	}
	fill(t, e, records.Rings, "x")
	putRow(t, e, records.Rings, "x", "")
	if rows, _ := scan(t, e, records.Rings, "", "", 1); len(rows) != 1 || rows[0].Value == nil {
		t.Errorf("got %v, want an empty value that is not nil", rows)
	}
}

func scanPrefix(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	fill(t, e, records.Registrations, "a", "a\x00", "a\x00x", "a\x00y", "a\x01", "b\x00x", "a\xff", "a\xff\xff", "\xff\xff", "\xff\xffz")
	for _, tc := range []struct {
		prefix, seek string
		want         []string
	}{
		{"a\x00", "a\x00", []string{"a\x00", "a\x00x", "a\x00y"}},
		{"a\x00", "", []string{"a\x00", "a\x00x", "a\x00y"}}, // what is before the prefix does not count
		{"a\x00", "a\x00x", []string{"a\x00x", "a\x00y"}},
		{"a\x00", "a\x00x\x00", []string{"a\x00y"}},
		{"a\x00", "a\x00z", nil},
		{"a\x00", "b", nil}, // beyond the prefix
		{"a\xff", "", []string{"a\xff", "a\xff\xff"}},
		{"\xff\xff", "", []string{"\xff\xff", "\xff\xffz"}}, // no key sorts after all of these
		{"c", "", nil},
		{"", "b", []string{"b\x00x", "\xff\xff", "\xff\xffz"}},
	} {
		got, more := scanAll(t, e, records.Registrations, tc.prefix, tc.seek, 100)
		if diff := cmp.Diff(tc.want, got); diff != "" || more {
			t.Errorf("prefix %q from %q: more %t (-want +got):\n%s", tc.prefix, tc.seek, more, diff)
		}
	}
}

func scanLimits(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	var all []string
	for i := range 2*records.BatchRows + 10 {
		all = append(all, fmt.Sprintf("k%04d", i))
	}
	fill(t, e, records.URIs, all...)
	for _, tc := range []struct {
		limit, rows int
		more        bool
	}{{1, 1, true}, {2, 2, true}, {records.BatchRows, records.BatchRows, true}} {
		if got, more := scanAll(t, e, records.URIs, "", "", tc.limit); len(got) != tc.rows || more != tc.more {
			t.Errorf("limit %d: got %d rows, more %t; want %d, %t", tc.limit, len(got), more, tc.rows, tc.more)
		}
	}
	for _, limit := range []int{1, 2, 3} { // three rows are left
		got, more := scanAll(t, e, records.URIs, "k", all[len(all)-3], limit)
		if len(got) != limit || more != (limit < 3) {
			t.Errorf("limit %d of three: got %q, more %t", limit, got, more)
		}
	}
	var got []string
	seek := ""
	for more := true; more; {
		var page []string
		page, more = scanAll(t, e, records.URIs, "", seek, 100)
		if len(page) == 0 {
			t.Fatalf("from %q: no rows", seek)
		}
		got = append(got, page...)
		seek = page[len(page)-1] + "\x00"
	}
	if diff := cmp.Diff(all, got); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}

	// Large rows come few at a time, and at least one.
	large := string(make([]byte, records.BatchBytes*2/3))
	for _, k := range []string{"a", "b", "c", "d"} {
		putRow(t, e, records.KeySets, k, large)
	}
	putRow(t, e, records.KeySets, "e", large+large)
	got, seek = nil, ""
	for more := true; more; {
		var page []string
		page, more = scanAll(t, e, records.KeySets, "", seek, 100)
		if len(page) == 0 || len(page) > 2 {
			t.Fatalf("from %q: got %d rows of two thirds of a batch", seek, len(page))
		}
		got = append(got, page...)
		seek = page[len(page)-1] + "\x00"
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "d", "e"}, got); diff != "" {
		t.Errorf("large rows (-want +got):\n%s", diff)
	}
}

func ownWrites(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	fill(t, e, records.URIs, "a", "b", "d")
	update(t, e, func(tx records.Tx) error {
		if err := errors.Join(
			tx.Put(records.URIs, []byte("c"), []byte("new")),
			tx.Put(records.URIs, []byte("a"), []byte{}),
			tx.Delete(records.URIs, []byte("b")),
			tx.Put(records.URIs, []byte("x"), []byte("x")),
			tx.Delete(records.URIs, []byte("x")),
			tx.Delete(records.URIs, []byte("d")),
			tx.Put(records.URIs, []byte("d"), []byte("again")),
		); err != nil {
			return err
		}
		for k, want := range map[string]string{"a": "", "b": "none", "c": "new", "d": "again", "x": "none"} {
			got, err := tx.Get(records.URIs, []byte(k))
			if err != nil {
				return err
			}
			if (got == nil) != (want == "none") || got != nil && string(got) != want {
				t.Errorf("Get %s: got %q (nil: %t), want %s", k, got, got == nil, want)
			}
		}
		rows, more, err := tx.Scan(records.URIs, nil, nil, 10)
		text := ""
		for _, r := range rows {
			text += string(r.Key) + "=" + string(r.Value) + " "
		}
		if text != "a= c=new d=again " || more {
			t.Errorf("Scan: got %s, more %t", text, more)
		}
		return err
	})
	if keys, _ := scanAll(t, e, records.URIs, "", "", 10); fmt.Sprint(keys) != "[a c d]" {
		t.Errorf("afterwards: got %q", keys)
	}
}

func rollback(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	fill(t, e, records.Registrations, "a", "b")
	mine := errors.New("the error of a test")
	err := e.Update(t.Context(), func(tx records.Tx) error {
		return errors.Join(
			tx.Put(records.Registrations, []byte("a"), []byte("changed")),
			tx.Delete(records.Registrations, []byte("b")),
			tx.Put(records.Registrations, []byte("c"), []byte("new")),
			tx.Put(records.URIs, []byte("c"), []byte("new")),
			mine,
		)
	})
	want(t, "Update", err, mine)
	wantRow(t, e, records.Registrations, "a", "value of a", true)
	wantRow(t, e, records.Registrations, "b", "value of b", true)
	wantRow(t, e, records.Registrations, "c", "", false)
	wantRow(t, e, records.URIs, "c", "", false)
	if err := e.Update(t.Context(), func(records.Tx) error { return mine }); err != mine { //nolint:errorlint // it passes unchanged
		t.Errorf("Update: got %v, want its function's error as it is", err)
	}
	if err := e.View(t.Context(), func(records.Tx) error { return mine }); err != mine { //nolint:errorlint // it passes unchanged
		t.Errorf("View: got %v, want its function's error as it is", err)
	}
	fill(t, e, records.Registrations, "c") // all goes on
	wantRow(t, e, records.Registrations, "c", "value of c", true)
}

func viewWrites(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	fill(t, e, records.Rings, "a")
	for what, write := range map[string]func(tx records.Tx) error{
		"Put":    func(tx records.Tx) error { return tx.Put(records.Rings, []byte("b"), []byte("b")) },
		"Delete": func(tx records.Tx) error { return tx.Delete(records.Rings, []byte("a")) },
	} {
		if err := e.View(t.Context(), write); err == nil {
			t.Errorf("%s in View: got no error", what)
		}
	}
	wantRow(t, e, records.Rings, "a", "value of a", true)
	wantRow(t, e, records.Rings, "b", "", false)
}

func uncommitted(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	fill(t, e, records.Registrations, "a")
	update(t, e, func(tx records.Tx) error {
		if err := tx.Put(records.Registrations, []byte("a"), []byte("changed")); err != nil {
			return err
		}
		done := make(chan struct{})
		go func() { // as another caller, who does not wait
			defer close(done)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			err := e.View(ctx, func(tx records.Tx) error {
				got, err := tx.Get(records.Registrations, []byte("a"))
				if string(got) != "value of a" {
					t.Errorf("another sees %q before it is committed", got)
				}
				return err
			})
			if err != nil {
				t.Errorf("View beside an Update: %v", err)
			}
		}()
		<-done
		return nil
	})
	wantRow(t, e, records.Registrations, "a", "changed", true)
}

func bytesNotShared(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	key, value := []byte("key"), []byte("value")
	update(t, e, func(tx records.Tx) error {
		err := tx.Put(records.Rings, key, value)
		copy(key, "XXX")
		copy(value, "XXXXX")
		return err
	})
	wantRow(t, e, records.Rings, "key", "value", true)
	var rows []records.Row
	var got []byte
	spoil := func(b []byte) {
		for i := range b {
			b[i] = 'X'
		}
	}
	for range 2 {
		update(t, e, func(tx records.Tx) (err error) {
			if got, err = tx.Get(records.Rings, []byte("key")); err != nil {
				return err
			}
			rows, _, err = tx.Scan(records.Rings, nil, nil, 10)
			return err
		})
		if len(rows) != 1 || string(rows[0].Key) != "key" || string(rows[0].Value) != "value" || string(got) != "value" {
			t.Fatalf("got %q and %q", rows, got)
		}
		spoil(got)
		spoil(rows[0].Key)
		spoil(rows[0].Value)
	}
	wantRow(t, e, records.Rings, "key", "value", true)
}

func endedContextRunsNothing(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel2 := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel2()
	for ctx, sentinel := range map[context.Context]error{canceled: context.Canceled, expired: context.DeadlineExceeded} {
		want(t, "View", e.View(ctx, func(records.Tx) error { t.Error("View ran"); return nil }), sentinel)
		want(t, "Update", e.Update(ctx, func(records.Tx) error { t.Error("Update ran"); return nil }), sentinel)
		want(t, "Check", e.Check(ctx), sentinel)
	}

	// One that waits for its turn can give up.
	inside, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- e.Update(context.Background(), func(records.Tx) error { close(inside); <-leave; return nil })
	}()
	<-inside
	short, cancel3 := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel3()
	err := e.Update(short, func(tx records.Tx) error { return tx.Put(records.Rings, []byte("late"), []byte("late")) })
	want(t, "Update that waits", err, context.DeadlineExceeded)
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantRow(t, e, records.Rings, "late", "", false)

	// If its context ends within, it has happened or it is an error.
	within, cancel4 := context.WithCancel(t.Context())
	err = e.Update(within, func(tx records.Tx) error {
		err := tx.Put(records.Rings, []byte("within"), []byte("within"))
		cancel4()
		return err
	})
	if _, ok := getRow(t, e, records.Rings, "within"); err == nil && !ok {
		t.Error("Update said it was done, and nothing is there")
	}
	fill(t, e, records.Rings, "a") // all goes on
}

func increments(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	const workers, rounds = 8, 10
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				if err := e.Update(context.Background(), func(tx records.Tx) error {
					text, err := tx.Get(records.Registrations, []byte("counter"))
					if err != nil {
						return err
					}
					n, _ := strconv.Atoi(string(text)) // nothing is 0
					return tx.Put(records.Registrations, []byte("counter"), []byte(strconv.Itoa(n+1)))
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantRow(t, e, records.Registrations, "counter", strconv.Itoa(workers*rounds), true)
}

// Two Updates that each look at what the other writes, and write somewhere else,
// would both go on if they overlapped.
func serialUpdates(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	const workers = 8
	for round := range 5 {
		prefix := fmt.Sprintf("round %d/", round)
		var wg sync.WaitGroup
		var mu sync.Mutex
		first := 0 // who found nobody before; guarded by mu
		for w := range workers {
			wg.Go(func() {
				alone := false
				if err := e.Update(context.Background(), func(tx records.Tx) error {
					rows, _, err := tx.Scan(records.URIs, []byte(prefix), nil, workers)
					alone = len(rows) == 0
					return errors.Join(err, tx.Put(records.URIs, fmt.Appendf(nil, "%s%d", prefix, w), []byte{}))
				}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if alone {
					first++
				}
			})
		}
		wg.Wait()
		if keys, _ := scanAll(t, e, records.URIs, prefix, "", 100); first != 1 || len(keys) != workers {
			t.Errorf("%d of %d found nobody before them, and %d rows are there; want 1 and %d", first, workers, len(keys), workers)
		}
	}
}

func rowsSurvive(t *testing.T, open Open[records.Engine]) {
	e, reopen := open(t)
	fill(t, e, records.Registrations, "a", "b")
	putRow(t, e, records.URIs, "empty", "")
	e = reopen()
	wantRow(t, e, records.Registrations, "a", "value of a", true)
	wantRow(t, e, records.URIs, "empty", "", true)
	fill(t, e, records.Registrations, "c")
	if keys, _ := scanAll(t, e, records.Registrations, "", "", 10); fmt.Sprint(keys) != "[a b c]" {
		t.Errorf("got %q", keys)
	}
}

func closedEngine(t *testing.T, open Open[records.Engine]) {
	e, _ := open(t)
	fill(t, e, records.Registrations, "a")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	nothing := func(records.Tx) error { t.Error("it ran"); return nil }
	for what, err := range map[string]error{
		"View": e.View(t.Context(), nothing), "Update": e.Update(t.Context(), nothing), "Check": e.Check(t.Context()),
	} {
		if err == nil {
			t.Errorf("%s after Close: got no error", what)
		}
	}
}
