package storetest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
)

// WaitingStore is a store that keeps changes that wait.
type WaitingStore interface {
	registry.Store
	registry.Waits
}

// Waiting runs the suite of changes that wait.
func Waiting(t *testing.T, open Open[WaitingStore]) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, open Open[WaitingStore])
	}{
		{"ChangeWaitsAndIsInForceByTheClock", changeWaits},
		{"ChangeThatTookEffectIsAnotherRevision", effectIsARevision},
		{"SettledRecordIsWhatWasInForce", settled},
		{"IndexHoldsWhatWaitsInTheOrderOfTime", waitingIndex},
		{"ChangeThatIsReplacedOrTakenBackLeavesNothing", takenBack},
		{"KeySetOfWhatWaitsIsKept", waitingKeySet},
		{"DeletedClientThatWaitsIsListed", waitingTombstone},
		{"SettlingRacesWithWriters", settleRaces},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open) })
	}
}

// waits is reg with a change that waits, from whose time on its URL is another.
func waits(reg registry.Registration, uri string, at time.Time) registry.Registration {
	next := Client(reg.ClientID, uri)
	reg.Pending = &registry.Pending{EffectiveAt: at.UTC().Truncate(time.Microsecond), Source: next.Source, Settings: next.Settings}
	return reg
}

func waitingOf(t *testing.T, s registry.Waits) []registry.Waiting {
	t.Helper()
	list, err := s.Waiting(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func settle(t *testing.T, s registry.Waits, clientID string, at time.Time) {
	t.Helper()
	if err := s.Settle(t.Context(), registry.Waiting{Issuer: issuer, ClientID: clientID, EffectiveAt: at}); err != nil {
		t.Fatalf("Settle %s: %v", clientID, err)
	}
}

// short is how long a change waits for which a test waits.
const short = 300 * time.Millisecond

func changeWaits(t *testing.T, open Open[WaitingStore]) {
	s, reopen := open(t)
	put(t, s, Client("app", "https://a.example/"), 0)
	at := time.Now().Add(short)
	want := put(t, s, waits(Client("app", "https://a.example/"), "https://b.example/", at), 1)
	if want.Revision != 2 || want.Pending == nil {
		t.Fatalf("got %+v", want)
	}
	s = reopen()
	before, now := get(t, s, "app"), time.Now()
	if diff := cmp.Diff(want, before); now.Before(at.Add(-time.Millisecond)) && diff != "" {
		t.Errorf("before its time (-want +got):\n%s", diff)
	}
	time.Sleep(time.Until(at))
	for what, got := range map[string]*registry.Registration{"Get": get(t, s, "app"), "List": list(t, s, 1)[0]} {
		if diff := cmp.Diff(want.Successor(), got); diff != "" {
			t.Errorf("%s after it (-want +got):\n%s", what, diff)
		}
	}
	raw, err := s.Unsettled(t.Context(), issuer, "app")
	if diff := cmp.Diff(want, raw); err != nil || diff != "" {
		t.Errorf("as it is stored: %v (-want +got):\n%s", err, diff)
	}
}

func list(t *testing.T, s registry.Store, want int) []*registry.Registration {
	t.Helper()
	got, err := s.List(t.Context(), issuer, "", 100)
	if err != nil || len(got) != want {
		t.Fatalf("List: got %d, %v; want %d", len(got), err, want)
	}
	return got
}

func effectIsARevision(t *testing.T, open Open[WaitingStore]) {
	s, _ := open(t)
	past := time.Now().Add(-time.Minute)
	put(t, s, waits(Client("app", "https://a.example/"), "https://b.example/", past), 0)
	_, err := s.Put(t.Context(), Client("app", "https://a.example/"), 1)
	want(t, "Put over what was in force", err, registry.ErrRevision)
	if got := get(t, s, "app"); got.Revision != 2 || got.Source.JWKSURI != "https://b.example/" {
		t.Errorf("got %+v", got)
	}
	if got := put(t, s, Client("app", "https://c.example/"), 2); got.Revision != 3 {
		t.Errorf("got revision %d, want 3", got.Revision)
	}
	if left := waitingOf(t, s); len(left) != 0 {
		t.Errorf("still in the index: %v", left)
	}
}

func settled(t *testing.T, open Open[WaitingStore]) {
	s, reopen := open(t)
	past, future := time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	put(t, s, waits(Client("past", "https://a.example/"), "https://b.example/", past), 0)
	before := get(t, s, "past")
	waiting := put(t, s, waits(Client("future", "https://a.example/"), "https://b.example/", future), 0)
	for _, w := range waitingOf(t, s) {
		for range 2 { // the second time there is nothing to do
			if err := s.Settle(t.Context(), w); err != nil {
				t.Fatal(err)
			}
		}
	}
	s = reopen()
	for what, read := range map[string]func() (*registry.Registration, error){
		"Get":       func() (*registry.Registration, error) { return s.Get(t.Context(), issuer, "past") },
		"Unsettled": func() (*registry.Registration, error) { return s.Unsettled(t.Context(), issuer, "past") },
	} {
		got, err := read()
		if diff := cmp.Diff(before, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-before +after):\n%s", what, err, diff)
		}
	}
	if got, err := s.Unsettled(t.Context(), issuer, "future"); err != nil || cmp.Diff(waiting, got) != "" {
		t.Errorf("what waits: got %+v, %v", got, err)
	}
	if left := waitingOf(t, s); len(left) != 1 || left[0].ClientID != "future" {
		t.Errorf("left in the index: %v", left)
	}
	// What is not there, and what is there otherwise, is no error.
	settle(t, s, "nobody", past)
	settle(t, s, "future", past)
	if left := waitingOf(t, s); len(left) != 1 {
		t.Errorf("left in the index: %v", left)
	}
}

func waitingIndex(t *testing.T, open Open[WaitingStore]) {
	s, reopen := open(t)
	base := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	for id, after := range map[string]time.Duration{"c": 0, "a": time.Microsecond, "b": 48 * time.Hour, "past": -2 * time.Hour} {
		put(t, s, waits(Client(id, "https://a.example/"), "https://b.example/", base.Add(after)), 0)
	}
	put(t, s, Client("plain", "https://a.example/"), 0)
	s = reopen()
	got := waitingOf(t, s)
	wanted := []registry.Waiting{
		{Issuer: issuer, ClientID: "past", EffectiveAt: base.Add(-2 * time.Hour), Revision: 1},
		{Issuer: issuer, ClientID: "c", EffectiveAt: base, Revision: 1},
		{Issuer: issuer, ClientID: "a", EffectiveAt: base.Add(time.Microsecond), Revision: 1},
		{Issuer: issuer, ClientID: "b", EffectiveAt: base.Add(48 * time.Hour), Revision: 1},
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if few, err := s.Waiting(t.Context(), 2); err != nil || cmp.Diff(wanted[:2], few) != "" {
		t.Errorf("two of them: got %v, %v", few, err)
	}
}

func takenBack(t *testing.T, open Open[WaitingStore]) {
	s, _ := open(t)
	at := time.Now().Add(time.Hour)
	clients := func(uri string) (ids []string) {
		t.Helper()
		type named interface {
			ClientsOf(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error
		}
		if err := s.(named).ClientsOf(t.Context(), uri, func(_, id string) bool { ids = append(ids, id); return true }); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	wants := func(what string, a, b, c bool, indexed int) {
		t.Helper()
		for uri, is := range map[string]bool{"https://a.example/": a, "https://b.example/": b, "https://c.example/": c} {
			if got := clients(uri); slices.Equal(got, []string{"app"}) != is || len(got) > 1 {
				t.Errorf("%s: %s is named by %v", what, uri, got)
			}
		}
		if got := waitingOf(t, s); len(got) != indexed {
			t.Errorf("%s: in the index: %v", what, got)
		}
	}
	put(t, s, Client("app", "https://a.example/"), 0)
	put(t, s, waits(Client("app", "https://a.example/"), "https://b.example/", at), 1)
	wants("waits", true, true, false, 1)
	put(t, s, waits(Client("app", "https://a.example/"), "https://c.example/", at.Add(time.Hour)), 2)
	wants("replaced", true, false, true, 1)
	put(t, s, waits(Client("app", "https://a.example/"), "https://a.example/", at.Add(time.Hour)), 3)
	wants("the same URL", true, false, false, 1)
	put(t, s, Client("app", "https://a.example/"), 4)
	wants("taken back", true, false, false, 0)
	put(t, s, waits(Client("app", "https://a.example/"), "https://b.example/", at), 5)
	put(t, s, tombstone("app"), 6)
	wants("deleted", false, false, false, 0)
	put(t, s, waits(tombstone("app"), "https://c.example/", at), 7)
	wants("registered anew", false, false, true, 1)
	put(t, s, tombstone("app"), 8)
	wants("and deleted", false, false, false, 0)
	put(t, s, waits(tombstone("app"), "https://c.example/", time.Now().Add(-time.Second)), 9)
	wants("registered anew, and due", false, false, true, 1)
	settle(t, s, "app", waitingOf(t, s)[0].EffectiveAt)
	wants("and settled", false, false, true, 0)
}

func waitingKeySet(t *testing.T, open Open[WaitingStore]) {
	s, _ := open(t)
	old, next := keySet("https://a.example/"), keySet("https://b.example/")
	there := func(what string, wantOld, wantNext bool) {
		t.Helper()
		for set, is := range map[*registry.KeySet]bool{&old: wantOld, &next: wantNext} {
			if _, err := s.KeySet(t.Context(), set.URI); (err == nil) != is || err != nil && !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("%s: %s: %v", what, set.URI, err)
			}
		}
	}
	keep := func() {
		t.Helper()
		for _, set := range []registry.KeySet{old, next} {
			if err := s.PutKeySet(t.Context(), set); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(t, s, Client("app", old.URI), 0)
	keep()
	there("nothing waits", true, false)
	put(t, s, waits(Client("app", old.URI), next.URI, time.Now().Add(time.Hour)), 1)
	keep()
	there("waits", true, true)
	put(t, s, Client("app", old.URI), 2)
	there("taken back", true, false)
	put(t, s, waits(Client("app", old.URI), next.URI, time.Now().Add(-time.Second)), 3)
	keep()
	there("in force", true, true)
	settle(t, s, "app", waitingOf(t, s)[0].EffectiveAt)
	there("settled", false, true)
	put(t, s, tombstone("app"), 5)
	put(t, s, waits(tombstone("app"), next.URI, time.Now().Add(time.Hour)), 6)
	keep()
	there("deleted, and registered anew", false, true)
}

func waitingTombstone(t *testing.T, open Open[WaitingStore]) {
	s, _ := open(t)
	put(t, s, Client("app", "https://a.example/"), 0)
	put(t, s, tombstone("app"), 1)
	list(t, s, 0)
	at := time.Now().Add(short)
	dead := put(t, s, waits(tombstone("app"), "https://b.example/", at), 2)
	if !dead.Deleted || dead.Pending == nil || dead.Source.JWKSURI != "" {
		t.Fatalf("got %+v", dead)
	}
	if got := list(t, s, 1)[0]; !got.Deleted && time.Now().Before(at) {
		t.Errorf("listed before its time: %+v", got)
	}
	time.Sleep(time.Until(at))
	if got := list(t, s, 1)[0]; got.Deleted || got.Source.JWKSURI != "https://b.example/" || !got.CreatedAt.Equal(got.UpdatedAt) {
		t.Errorf("listed after it: %+v", got)
	}
}

// settleRaces settles while others write: nobody's write is lost, and nothing is
// in force that was not.
func settleRaces(t *testing.T, open Open[WaitingStore]) {
	s, _ := open(t)
	past := time.Now().Add(-time.Minute)
	for range 10 {
		revision := uint64(0)
		if now, err := s.Get(t.Context(), issuer, "app"); err == nil {
			revision = now.Revision
		}
		put(t, s, waits(Client("app", "https://a.example/"), "https://b.example/", past), revision)
		w := waitingOf(t, s)
		if len(w) != 1 {
			t.Fatalf("in the index: %v", w)
		}
		now := get(t, s, "app")
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if err := s.Settle(context.Background(), w[0]); err != nil {
					t.Errorf("Settle: %v", err)
				}
			})
		}
		all.Go(func() {
			if _, err := s.Put(context.Background(), Client("app", "https://c.example/"), now.Revision); err != nil {
				t.Errorf("Put: %v", err)
			}
		})
		all.Wait()
		if got := get(t, s, "app"); got.Source.JWKSURI != "https://c.example/" || got.Revision != now.Revision+1 || got.Pending != nil {
			t.Fatalf("got %+v, want what was put", got)
		}
		if left := waitingOf(t, s); len(left) != 0 {
			t.Fatalf("left in the index: %v", left)
		}
	}
}

// waitingIsAuthentic is part of Tampering: neither a change that waits nor its
// time is believed but as it was written, and the index is not believed at all.
func waitingIsAuthentic(t *testing.T, v *Victim) {
	s := v.Store
	far := time.Date(2099, 12, 31, 0, 0, 0, 0, time.UTC)
	put(t, s, Client("app", "https://a.example/"), 0)
	put(t, s, waits(Client("app", "https://a.example/"), "https://b.example/", far), 1)
	sound := bytes.Clone(v.Read(clientRow("app")))
	for what, edit := range map[string][2]string{
		"its time":       {"2099-12-31", "2019-12-31"},
		"what waits":     {"https://b.example/", "https://x.example/"},
		"that it waits":  {`"pending":`, `"pendinx":`},
		"what is there":  {"https://a.example/", "https://x.example/"},
		"the revision":   {`"revision":2`, `"revision":3`},
		"a tombstone of": {`"revision":2`, `"deleted":1 `},
	} {
		spoiled := bytes.Replace(sound, []byte(edit[0]), []byte(edit[1]), 1)
		if bytes.Equal(spoiled, sound) {
			t.Fatalf("%s: nothing to change in %s", what, sound)
		}
		v.Write(clientRow("app"), spoiled)
		_, err := s.Get(t.Context(), issuer, "app")
		want(t, "Get with another of "+what, err, registry.ErrTampered)
		_, err = s.Unsettled(t.Context(), issuer, "app")
		want(t, "Unsettled with another of "+what, err, registry.ErrTampered)
	}
	// A spoiled record is in no one's way, and nothing of it is brought back.
	settle(t, s, "app", far)
	if _, err := s.Get(t.Context(), issuer, "app"); !errors.Is(err, registry.ErrTampered) {
		t.Errorf("after Settle: %v", err)
	}
	v.Write(clientRow("app"), sound)
	if got := get(t, s, "app"); got.Pending == nil || !got.Pending.EffectiveAt.Equal(far) {
		t.Errorf("got %+v", got)
	}
}

// waitingMoves is part of Transfer: what waits goes with its client.
func waitingMoves(t *testing.T, open OpenUnder) {
	w := datakeytest.NewWrapper()
	from, to := open(t, w), open(t, w)
	at := time.Now().Add(time.Hour)
	put(t, from.Store, waits(Client("app", "https://a.example/"), "https://b.example/", at), 0)
	put(t, from.Store, waits(Client("due", "https://a.example/"), "https://b.example/", time.Now().Add(-time.Hour)), 0)
	put(t, from.Store, Client("gone", "https://a.example/"), 0)
	put(t, from.Store, tombstone("gone"), 1)
	put(t, from.Store, waits(tombstone("gone"), "https://c.example/", at), 2)
	for _, uri := range []string{"https://a.example/", "https://b.example/", "https://c.example/"} {
		if err := from.Store.PutKeySet(t.Context(), keySet(uri)); err != nil {
			t.Fatal(err)
		}
	}
	file, counts := exported(t, from)
	if counts.Registrations != 2 || counts.Tombstones != 1 || counts.KeySets != 3 {
		t.Errorf("exported %+v", counts)
	}
	if got := imported(t, to, file); got.There != 0 || got.KeySets != 3 {
		t.Errorf("imported %+v", got)
	}
	for _, id := range []string{"app", "due", "gone"} {
		if diff := cmp.Diff(get(t, from.Store, id), get(t, to.Store, id)); diff != "" {
			t.Errorf("%s (-from +to):\n%s", id, diff)
		}
	}
	if diff := cmp.Diff(waitingOf(t, from.Store), waitingOf(t, to.Store)); diff != "" {
		t.Errorf("the index (-from +to):\n%s", diff)
	}
	for _, uri := range []string{"https://a.example/", "https://b.example/", "https://c.example/"} {
		if _, err := to.Store.KeySet(t.Context(), uri); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// waitingSecrets is part of Tampering: the secret of a change that waits is sealed
// anew with that in force, and keeps its data key as that does.
func waitingSecrets(t *testing.T, v *Victim) {
	s := v.Store
	inForce, next := withSecret(t, s.Keys(), "app", "hush"), withSecret(t, s.Keys(), "app", "new")
	old := next.Source.Secret.DataKey
	reg := inForce
	reg.Pending = &registry.Pending{EffectiveAt: time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond), Source: next.Source, Settings: next.Settings}
	before := put(t, s, reg, 0)
	alone := Client("alone", "https://a.example/")
	sealed := withSecret(t, s.Keys(), "alone", "new")
	alone.Pending = &registry.Pending{EffectiveAt: before.Pending.EffectiveAt, Source: sealed.Source, Settings: sealed.Settings}
	put(t, s, alone, 0)
	current, err := s.Keys().Replace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The MACs alone are anew: the secrets still need the old one.
	if err := s.RetireDataKey(t.Context(), old); err == nil {
		t.Fatal("a data key was retired that everything is under")
	}
	if done, err := s.Reseal(t.Context(), sealAnew(s.Keys())); err != nil || done.Rows != 2 || done.Refused != 0 {
		t.Fatalf("got %+v, %v", done, err)
	}
	for id, secrets := range map[string][2]string{"app": {"hush", "new"}, "alone": {"", "new"}} {
		got := get(t, s, id)
		for i, kept := range []*registry.Secret{got.Source.Secret, got.Pending.Source.Secret} {
			if secrets[i] == "" {
				continue
			}
			plain, err := s.Keys().Open(t.Context(), kept.DataKey, kept.Sealed, []byte(purpose+id))
			if err != nil || string(plain) != secrets[i] || kept.DataKey != current {
				t.Errorf("%s: got %q under %s, %v; want %q under %s", id, plain, kept.DataKey, err, secrets[i], current)
			}
		}
	}
	if got := get(t, s, "app"); got.Revision != before.Revision || !got.UpdatedAt.Equal(before.UpdatedAt) || !got.Pending.EffectiveAt.Equal(before.Pending.EffectiveAt) {
		t.Errorf("got %+v, want the times and revision of %+v", got, before)
	}
	if done, err := s.Reseal(t.Context(), sealAnew(s.Keys())); err != nil || done.Rows != 0 {
		t.Errorf("once more: %+v, %v", done, err)
	}
	if err := s.RetireDataKey(t.Context(), old); err != nil {
		t.Errorf("the old data key: %v", err)
	}
	// One that is written after its data key was retired is refused.
	late := Client("late", "https://a.example/")
	late.Pending = &registry.Pending{EffectiveAt: before.Pending.EffectiveAt, Source: next.Source, Settings: next.Settings}
	_, err = s.Put(t.Context(), late, 0)
	want(t, "Put of a secret that waits under a retired key", err, registry.ErrUnavailable)
}
