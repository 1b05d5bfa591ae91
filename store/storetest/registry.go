// Package storetest is the conformance suite of Bulla's stores: what
// registry.Store and keyring.Store promise, asked of any implementation by
// the same tests. A store that passes can take the place of another.
//
// What only one kind of store can be asked, such as what it does when its
// disk is full, that store's own tests ask.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// Open returns a new, empty store, to be released at the end of t, and a
// function that closes the store and opens it again with what it holds.
type Open[S any] func(t *testing.T) (store S, reopen func() S)

const issuer = "main"

// Registry runs the suite of registry.Store.
func Registry(t *testing.T, open Open[registry.Store]) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, open Open[registry.Store])
	}{
		{"UnknownClientIsNotFound", unknownClient},
		{"RecordComesBackAsItWasPut", roundTrip},
		{"PutNeedsTheStoredRevision", revisions},
		{"DeletionLeavesATombstone", tombstones},
		{"RecordOutOfShapeIsRefused", invalidRecords},
		{"ValuesAreNotShared", notShared},
		{"NamesAreNeverConfused", namesApart},
		{"ListPagesInByteOrder", listing},
		{"KeySetComesBackAsItWasPut", keySets},
		{"KeySetGoesWithTheLastClientThatNamesIt", keySetLife},
		{"URIsOfLiveClientsAreYieldedOnce", uris},
		{"OneOfManyWritersWins", writers},
		{"EndedContextIsRespected", endedContext},
		{"EverythingSurvivesReopening", reopening},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open) })
	}
}

// Client returns a valid registration with a jwks_uri, to be Put by tests.
func Client(clientID, uri string) registry.Registration {
	return registry.Registration{
		Issuer:   issuer,
		ClientID: clientID,
		Source:   registry.Source{JWKSURI: uri},
		Settings: []registry.Setting{{Kind: "ID_TOKEN", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM"}},
	}
}

func withJWKS(clientID string, jwks []byte) registry.Registration {
	r := Client(clientID, "")
	r.Source.JWKS = jwks
	return r
}

func tombstone(clientID string) registry.Registration {
	return registry.Registration{Issuer: issuer, ClientID: clientID, Deleted: true}
}

func put(t *testing.T, s registry.Store, reg registry.Registration, expect uint64) *registry.Registration {
	t.Helper()
	got, err := s.Put(t.Context(), reg, expect)
	if err != nil {
		t.Fatalf("Put %s over %d: %v", reg.ClientID, expect, err)
	}
	return got
}

func get(t *testing.T, s registry.Store, clientID string) *registry.Registration {
	t.Helper()
	got, err := s.Get(t.Context(), issuer, clientID)
	if err != nil {
		t.Fatalf("Get %s: %v", clientID, err)
	}
	return got
}

func want(t *testing.T, what string, err, sentinel error) {
	t.Helper()
	if !errors.Is(err, sentinel) {
		t.Errorf("%s: got error %v, want %v", what, err, sentinel)
	}
}

func unknownClient(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	for _, name := range []string{"app", "", "\x00", "a\x00b", strings.Repeat("a", 100_000)} {
		got, err := s.Get(t.Context(), issuer, name)
		want(t, fmt.Sprintf("Get %.20q", name), err, registry.ErrNotFound)
		if got != nil {
			t.Errorf("Get %.20q: got a record besides the error", name)
		}
		_, err = s.KeySet(t.Context(), name)
		want(t, fmt.Sprintf("KeySet %.20q", name), err, registry.ErrNotFound)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check of an empty store: %v", err)
	}
}

func roundTrip(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	before := time.Now().Add(-time.Millisecond)
	for _, reg := range []registry.Registration{
		Client(` !"#$%&'()*+,-./:;<=>?@[\]^_{|}~`, "https://client.example/jwks?a=b&c=%20"),
		withJWKS("bytes", []byte("{\"keys\" :\t[],\r\n\"x\":\"\\u00e9 \xff\x00 <&>\"}\n")),
		func() registry.Registration {
			r := withJWKS("settings", bytes.Repeat([]byte("x"), registry.MaxJWKS))
			r.Settings = []registry.Setting{
				{Kind: "USERINFO", SigningAlgorithm: "ES256"},
				{Kind: "ID_TOKEN", SigningAlgorithm: "PS256", EncryptionAlgorithm: "ECDH-ES+A128KW", ContentEncryption: "A128CBC-HS256", KeyID: "clé <鍵>"},
			}
			return r
		}(),
	} {
		written := put(t, s, reg, 0)
		if written.CreatedAt.Before(before) || time.Now().Before(written.CreatedAt) || !written.UpdatedAt.Equal(written.CreatedAt) {
			t.Errorf("%s: got times %s and %s, want both to be now", reg.ClientID, written.CreatedAt, written.UpdatedAt)
		}
		reg.Revision, reg.CreatedAt, reg.UpdatedAt = 1, written.CreatedAt, written.UpdatedAt
		if diff := cmp.Diff(&reg, written); diff != "" {
			t.Errorf("Put %s (-want +got):\n%s", reg.ClientID, diff)
		}
		if diff := cmp.Diff(&reg, get(t, s, reg.ClientID)); diff != "" {
			t.Errorf("Get %s (-want +got):\n%s", reg.ClientID, diff)
		}
	}
}

func revisions(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	_, err := s.Put(t.Context(), Client("app", "https://a.example/"), 1)
	want(t, "Put of a new client over revision 1", err, registry.ErrRevision)
	_, err = s.Get(t.Context(), issuer, "app")
	want(t, "Get after it", err, registry.ErrNotFound)

	first := put(t, s, Client("app", "https://a.example/"), 0)
	for _, expect := range []uint64{0, 2} {
		_, err = s.Put(t.Context(), Client("app", "https://b.example/"), expect)
		want(t, fmt.Sprintf("Put over %d", expect), err, registry.ErrRevision)
	}
	if diff := cmp.Diff(first, get(t, s, "app")); diff != "" {
		t.Errorf("a refused Put changed the record (-want +got):\n%s", diff)
	}

	// What the caller has in these fields does not count.
	next := Client("app", "https://b.example/")
	next.Revision, next.CreatedAt, next.UpdatedAt = 77, time.Unix(1, 0), time.Unix(2, 0)
	second := put(t, s, next, 1)
	if second.Revision != 2 || !second.CreatedAt.Equal(first.CreatedAt) || second.UpdatedAt.Before(first.UpdatedAt) {
		t.Errorf("got revision %d, created %s, updated %s; want 2, %s and later", second.Revision, second.CreatedAt, second.UpdatedAt, first.CreatedAt)
	}
}

func tombstones(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	created := put(t, s, Client("app", "https://a.example/"), 0)
	dead := put(t, s, tombstone("app"), 1)
	if !dead.Deleted || dead.Revision != 2 || !dead.CreatedAt.Equal(created.CreatedAt) {
		t.Errorf("got %+v, want a tombstone of revision 2", dead)
	}
	if diff := cmp.Diff(dead, get(t, s, "app")); diff != "" {
		t.Errorf("Get of the tombstone (-want +got):\n%s", diff)
	}
	if list, err := s.List(t.Context(), issuer, "", 10); err != nil || len(list) != 0 {
		t.Errorf("List: got %d and %v, want none", len(list), err)
	}
	_, err := s.Put(t.Context(), Client("app", "https://a.example/"), 0)
	want(t, "Put over a tombstone as if there was nothing", err, registry.ErrRevision)

	back := put(t, s, Client("app", "https://a.example/"), 2)
	if back.Deleted || back.Revision != 3 || !back.CreatedAt.Equal(back.UpdatedAt) {
		t.Errorf("got %+v, want a record of revision 3, created anew", back)
	}
}

func invalidRecords(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	for name, edit := range map[string]func(*registry.Registration){
		"NUL in issuer":      func(r *registry.Registration) { r.Issuer = "a\x00b" },
		"NUL in client_id":   func(r *registry.Registration) { r.ClientID = "a\x00b" },
		"no client_id":       func(r *registry.Registration) { r.ClientID = "" },
		"NUL in URI":         func(r *registry.Registration) { r.Source.JWKSURI = "https://a\x00b" },
		"no source":          func(r *registry.Registration) { r.Source = registry.Source{} },
		"tombstone with key": func(r *registry.Registration) { r.Deleted = true },
	} {
		reg := Client("app", "https://a.example/")
		edit(&reg)
		_, err := s.Put(t.Context(), reg, 0)
		want(t, name, err, registry.ErrInvalid)
		if errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s: got ErrUnavailable, but trying again does not help", name)
		}
	}
}

func notShared(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	reg := withJWKS("app", []byte(`{"keys":[]}`))
	spoil := func(r *registry.Registration) { r.Source.JWKS[0], r.Settings[0].Kind = 'X', "X" }
	intact := func(when string) {
		t.Helper()
		if r := get(t, s, "app"); string(r.Source.JWKS) != `{"keys":[]}` || r.Settings[0].Kind != "ID_TOKEN" {
			t.Errorf("the stored record changed with %s", when)
		}
	}
	written := put(t, s, reg, 0)
	spoil(&reg)
	intact("the record that was put")
	if written.Source.JWKS[0] == 'X' || written.Settings[0].Kind == "X" {
		t.Error("what Put returned changed with the record that was put")
	}
	spoil(written)
	intact("what Put returned")
	spoil(get(t, s, "app"))
	intact("what Get returned")
}

func namesApart(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	pairs := [][2]string{{"a", "bc"}, {"ab", "c"}, {"a", "b"}, {"A", "b"}, {"a ", "b"}, {"a", " b"}, {"a/b", "c"}, {"a", "b/c"}, {"a", "b "}}
	for i, p := range pairs {
		reg := Client(p[1], fmt.Sprintf("https://a.example/%d", i))
		reg.Issuer = p[0]
		put(t, s, reg, 0)
	}
	for i, p := range pairs {
		got, err := s.Get(t.Context(), p[0], p[1])
		if err != nil || got.Issuer != p[0] || got.ClientID != p[1] || got.Source.JWKSURI != fmt.Sprintf("https://a.example/%d", i) {
			t.Errorf("Get %q: got %+v, %v", p, got, err)
		}
	}
	list, err := s.List(t.Context(), "a", "", 10)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{" b", "b", "b ", "b/c", "bc"}, ids(list)); diff != "" {
		t.Errorf("List of one issuer (-want +got):\n%s", diff)
	}
}

func ids(list []*registry.Registration) []string {
	var out []string
	for _, r := range list {
		out = append(out, r.ClientID)
	}
	return out
}

func listing(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	// Byte order, where a collation would mix cases and pass over signs.
	all := []string{" ", "!", "-a", "0", "A", "B", "Z", "_", "a", "a b", "a-", "aB", "aa", "b", "~"}
	for _, id := range []string{"b", "~", "a-", "A", "a", " ", "aa", "Z", "_", "0", "-a", "aB", "a b", "!", "B"} {
		put(t, s, Client(id, "https://a.example/"+fmt.Sprintf("%x", id)), 0)
	}
	for _, id := range []string{"C", "a!", "zz"} {
		put(t, s, Client(id, "https://a.example/dead"), 0)
		put(t, s, tombstone(id), 1)
	}
	other := Client("a0", "https://a.example/")
	other.Issuer = issuer + "2"
	put(t, s, other, 0)

	for _, page := range []int{1, 2, 4, 15, 100} {
		var got []string
		for from := ""; ; {
			list, err := s.List(t.Context(), issuer, from, page)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) > page {
				t.Fatalf("got %d records, want at most %d", len(list), page)
			}
			if len(list) == 0 {
				break
			}
			got = append(got, ids(list)...)
			from = registry.After(got[len(got)-1])
		}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Errorf("pages of %d (-want +got):\n%s", page, diff)
		}
	}
	for from, want := range map[string][]string{
		"a,": {"a-", "aB"}, // a name that is not there
		"a-": {"a-", "aB"}, // a name that is
	} {
		list, err := s.List(t.Context(), issuer, from, 2)
		if diff := cmp.Diff(want, ids(list)); diff != "" || err != nil {
			t.Errorf("List from %q: %v (-want +got):\n%s", from, err, diff)
		}
	}
	for _, limit := range []int{0, -1} {
		if list, err := s.List(t.Context(), issuer, "", limit); err != nil || len(list) != 0 {
			t.Errorf("List with limit %d: got %d, %v; want none", limit, len(list), err)
		}
	}
	if list, err := s.List(t.Context(), "unknown", "", 10); err != nil || len(list) != 0 {
		t.Errorf("List of an unknown issuer: got %d, %v; want none", len(list), err)
	}
}

func keySet(uri string) registry.KeySet {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC)
	return registry.KeySet{
		URI:          uri,
		Document:     []byte("{\"keys\" : [],\n\"x\":\"\xff\x00\"}"),
		ETag:         `W/"<a&b>"`,
		LastModified: "Wed, 21 Oct 2015 07:28:00 GMT",
		FetchedAt:    at,
		FreshUntil:   at.Add(time.Hour),
		FailingSince: at.Add(2 * time.Hour),
		Failures:     3,
		Failure:      "incident-1",
		NextAttempt:  at.Add(3 * time.Hour),
	}
}

func keySets(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	const uri = "https://a.example/"
	put(t, s, Client("app", uri), 0)
	_, err := s.KeySet(t.Context(), uri)
	want(t, "KeySet before any was put", err, registry.ErrNotFound)

	for _, set := range []registry.KeySet{
		keySet(uri),
		{URI: uri, FailingSince: time.Unix(1_700_000_000, 0).UTC(), Failures: 1, NextAttempt: time.Unix(1_700_000_060, 0).UTC()},
		keySet(uri),
	} {
		if err := s.PutKeySet(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		got, err := s.KeySet(t.Context(), uri)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&set, got); diff != "" {
			t.Errorf("key set (-want +got):\n%s", diff)
		}
	}
}

func keySetLife(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	const uri, longer = "https://a.example/jwks", "https://a.example/jwks2"
	has := func(u string, yes bool, when string) {
		t.Helper()
		_, err := s.KeySet(t.Context(), u)
		if yes && err != nil || !yes && !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("KeySet of %s %s: got error %v, want it kept %t", u, when, err, yes)
		}
	}
	keep := func(u string) {
		t.Helper()
		if err := s.PutKeySet(t.Context(), keySet(u)); err != nil {
			t.Fatal(err)
		}
	}
	keep(uri)
	has(uri, false, "that no client names")

	put(t, s, Client("one", uri), 0)
	put(t, s, Client("two", uri), 0)
	other := Client("one", uri)
	other.Issuer = issuer + "2"
	put(t, s, other, 0)
	put(t, s, Client("three", longer), 0)
	keep(uri)
	keep(longer)

	put(t, s, Client("one", uri), 1)
	has(uri, true, "after a change that names it again")
	put(t, s, tombstone("one"), 2)
	has(uri, true, "with two clients left")
	put(t, s, Client("two", longer), 1)
	has(uri, true, "with a client of another issuer left")
	dead := tombstone("one")
	dead.Issuer = issuer + "2"
	put(t, s, dead, 1)
	has(uri, false, "after the last client was deleted")
	has(longer, true, "whose name merely begins alike")

	keep(uri) // a fetch that was under way
	has(uri, false, "after a late fetch")

	put(t, s, withJWKS("two", []byte("{}")), 2)
	has(longer, true, "with one client left")
	put(t, s, withJWKS("three", []byte("{}")), 1)
	has(longer, false, "after the last client changed its source")
	put(t, s, Client("three", longer), 2)
	has(longer, false, "that is named again after it was dropped")
}

func uris(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	all := func() []string {
		t.Helper()
		var got []string
		if err := s.URIs(t.Context(), func(u string) bool { got = append(got, u); return true }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		return got
	}
	if got := all(); len(got) != 0 {
		t.Errorf("an empty store yields %q", got)
	}
	put(t, s, Client("one", "https://a.example/"), 0)
	put(t, s, Client("two", "https://a.example/"), 0)
	put(t, s, Client("three", "https://a.example/b"), 0)
	put(t, s, Client("four", "https://a.example"), 0)
	put(t, s, Client("gone", "https://gone.example/"), 0)
	put(t, s, tombstone("gone"), 1)
	put(t, s, withJWKS("inline", []byte("{}")), 0)
	other := Client("one", "https://a.example/b")
	other.Issuer = issuer + "2"
	put(t, s, other, 0)
	if diff := cmp.Diff([]string{"https://a.example", "https://a.example/", "https://a.example/b"}, all()); diff != "" {
		t.Errorf("URIs (-want +got):\n%s", diff)
	}

	n := 0
	if err := s.URIs(t.Context(), func(string) bool { n++; return n < 2 }); err != nil || n != 2 {
		t.Errorf("got %d URIs and %v after asking to stop at the second", n, err)
	}
	// Whoever walks the URIs also writes what it fetches.
	if err := s.URIs(t.Context(), func(u string) bool {
		if err := s.PutKeySet(t.Context(), keySet(u)); err != nil {
			t.Error(err)
		}
		return true
	}); err != nil {
		t.Error(err)
	}
}

func writers(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	put(t, s, Client("app", "https://a.example/"), 0)
	const workers, rounds = 8, 5
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		wins = map[uint64]int{} // guarded by mu; revision -> writers who made it
	)
	for w := range workers {
		wg.Go(func() {
			for range rounds {
				cur, err := s.Get(context.Background(), issuer, "app")
				if err != nil {
					t.Error(err)
					return
				}
				got, err := s.Put(context.Background(), Client("app", fmt.Sprintf("https://a.example/%d", w)), cur.Revision)
				switch {
				case err == nil:
					mu.Lock()
					wins[got.Revision]++
					mu.Unlock()
				case !errors.Is(err, registry.ErrRevision):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	last := get(t, s, "app").Revision
	for rev := uint64(2); rev <= last; rev++ {
		if wins[rev] != 1 {
			t.Errorf("revision %d was made by %d writers, want 1", rev, wins[rev])
		}
	}
	if len(wins) != int(last)-1 {
		t.Errorf("%d writers were told that they won, the record is at revision %d", len(wins), last)
	}
	n := 0
	if err := s.URIs(t.Context(), func(string) bool { n++; return true }); err != nil || n != 1 {
		t.Errorf("one client names %d URIs, %v", n, err)
	}
}

func endedContext(t *testing.T, open Open[registry.Store]) {
	s, _ := open(t)
	put(t, s, Client("app", "https://a.example/"), 0)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel2 := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel2()
	for ctx, sentinel := range map[context.Context]error{canceled: context.Canceled, expired: context.DeadlineExceeded} {
		calls := map[string]func() error{
			"Get":       func() error { _, err := s.Get(ctx, issuer, "app"); return err },
			"Put":       func() error { _, err := s.Put(ctx, Client("new", "https://a.example/"), 0); return err },
			"List":      func() error { _, err := s.List(ctx, issuer, "", 1); return err },
			"KeySet":    func() error { _, err := s.KeySet(ctx, "https://a.example/"); return err },
			"PutKeySet": func() error { return s.PutKeySet(ctx, keySet("https://a.example/")) },
			"URIs":      func() error { return s.URIs(ctx, func(string) bool { return true }) },
			"Check":     func() error { return s.Check(ctx) },
		}
		for name, call := range calls {
			want(t, name, call(), sentinel)
		}
	}
	_, err := s.Get(t.Context(), issuer, "new")
	want(t, "Get of what was put with an ended context", err, registry.ErrNotFound)
	_, err = s.KeySet(t.Context(), "https://a.example/")
	want(t, "KeySet put with an ended context", err, registry.ErrNotFound)
}

func reopening(t *testing.T, open Open[registry.Store]) {
	s, reopen := open(t)
	app := put(t, s, Client("app", "https://a.example/"), 0)
	put(t, s, Client("gone", "https://a.example/gone"), 0)
	gone := put(t, s, tombstone("gone"), 1)
	set := keySet("https://a.example/")
	if err := s.PutKeySet(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	s = reopen()
	for id, want := range map[string]*registry.Registration{"app": app, "gone": gone} {
		if diff := cmp.Diff(want, get(t, s, id)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", id, diff)
		}
	}
	got, err := s.KeySet(t.Context(), set.URI)
	if diff := cmp.Diff(&set, got); err != nil || diff != "" {
		t.Errorf("key set: %v (-want +got):\n%s", err, diff)
	}
	if r := put(t, s, Client("gone", "https://a.example/back"), 2); r.Revision != 3 {
		t.Errorf("got revision %d, want 3: revisions go on", r.Revision)
	}
}
