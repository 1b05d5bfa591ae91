package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
)

// Authenticated is a store whose records are authenticated under data keys.
type Authenticated interface {
	registry.Store
	registry.Waits
	keyring.Store
	datakey.Store

	// Keys are the store's data keys.
	Keys() *datakey.Keys
	// Tampered counts the rows that failed their authentication, each once
	// for as long as it stays so.
	Tampered() uint64
	// ClientsOf calls yield for every live client that names a jwks_uri.
	ClientsOf(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error
	// Leases are the leases on key sets, nil if nobody shares the store.
	Leases() registry.Leases
	// Export writes all that the store has, and Import reads it.
	Export(ctx context.Context, w io.Writer) (records.Counts, error)
	Import(ctx context.Context, r io.Reader) (records.Counts, error)
	// ImportBrokenOff reports whether an Import has not come to its end.
	ImportBrokenOff(ctx context.Context) (bool, error)
	// Reseal writes all rows anew under the current data key.
	Reseal(ctx context.Context, secret func(context.Context, *registry.Registration) (*registry.Secret, error)) (envelope.Resealed, error)
}

// Victim is a store and what somebody can do to it who can write where it
// keeps its rows.
type Victim struct {
	Store Authenticated
	// Reopen closes the store and opens it again, as a new process.
	Reopen func() Authenticated
	// Wrapper wraps the data keys.
	Wrapper *datakeytest.Wrapper
	// Read returns the value of a row, nil if there is none.
	Read func(row envelope.Row) []byte
	// Write makes value that of a row; nil deletes the row.
	Write func(row envelope.Row, value []byte)
	// DeleteDataKeys deletes all rows of data keys.
	DeleteDataKeys func()
}

func (v *Victim) reopen() { v.Store = v.Reopen() }

// Tampering runs the suite of a store that authenticates what it keeps.
func Tampering(t *testing.T, open func(t *testing.T) *Victim) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, v *Victim)
	}{
		{"RegistrationOfWhichAnyByteWasChangedIsRefused", changedRegistration},
		{"TombstoneCannotBeResurrected", resurrection},
		{"RowsOfTwoClientsCannotBeSwapped", swapped},
		{"TamperedClientsAreListedByName", tamperedList},
		{"TamperedRegistrationIsReplacedByWhoNamesItsRevision", mending},
		{"ClaimedRevisionIsNeverZeroAndNeverTheLast", claims},
		{"KeySetOfWhichAnyByteWasChangedIsAsGoodAsNone", changedKeySet},
		{"KeySetCannotBeMovedToAnotherURL", movedKeySet},
		{"RecordOfOneKindIsNoneOfAnother", otherKind},
		{"RingOfWhichAnyByteWasChangedIsRefused", changedRing},
		{"RowIsAlarmedOnceWhileItStaysBad", alarmedOnce},
		{"WithoutItsDataKeysTheStoreIsWorthless", deletedDataKeys},
		{"RowAndDataKeyOfAnotherServiceAreRefused", foreign},
		{"OlderRowOfTheSameClientIsNotNoticed", replay},
		{"BackendThatIsDownMakesNothingTampered", backendDown},
		{"RingsAreReadWithoutABackendAndVerifiedLater", unverifiedRings},
		{"ForgedRingEndsWhenTheBackendIsBack", forgedRing},
		{"RingThatWasNotVerifiedIsNotMadeAuthentic", laundering},
		{"RunningProcessTakesNoUnverifiedRing", unverifiedWhileRunning},
		{"EverythingIsWrittenAnewUnderTheCurrentDataKey", reseal},
		{"ResealingMakesNothingAuthentic", resealTampered},
		{"ChangeThatWaitsIsAuthentic", waitingIsAuthentic},
		{"SecretOfAChangeThatWaitsIsSealedAnew", waitingSecrets},
		{"ResealingLosesNoWrite", resealConcurrent},
		{"DataKeyInUseIsNotRetired", retireInUse},
		{"DataKeyThatDoesNotOpenIsNotRetiredWhileARowNamesIt", retireUnopened},
		{"RowWithoutADataKeysIDStopsNothing", namelessKey},
		{"NothingIsWrittenUnderARetiredDataKey", retiredMeanwhile},
		{"DataKeyIsAddedOnce", addOnce},
		{"RetiringOneKeyTwiceAtOnceLosesNothing", retireTwice},
		{"ClientsOfAURIAreThoseThatNameIt", clientsOf},
		{"ClientsOfAURIAreReadInBatches", manyClientsOf},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open(t)) })
	}
}

func clientRow(clientID string) envelope.Row {
	return envelope.Row{Kind: envelope.Registration, Key: envelope.Key(issuer, clientID)}
}

func setRow(uri string) envelope.Row {
	return envelope.Row{Kind: envelope.KeySet, Key: envelope.Key(uri)}
}

func ringRow(alg kms.Algorithm) envelope.Row {
	return envelope.Row{Kind: envelope.Ring, Key: envelope.Key(issuer, string(alg))}
}

// value reads a row that must be there.
func (v *Victim) value(t *testing.T, row envelope.Row) []byte {
	t.Helper()
	value := v.Read(row)
	if value == nil {
		t.Fatalf("there is no row %s %q", row.Kind, row.Key)
	}
	return value
}

// edit replaces text in a row.
func (v *Victim) edit(t *testing.T, row envelope.Row, old, new string) {
	t.Helper()
	value := v.value(t, row)
	if !bytes.Contains(value, []byte(old)) {
		t.Fatalf("row %s %q has no %q: %q", row.Kind, row.Key, old, value)
	}
	v.Write(row, bytes.Replace(value, []byte(old), []byte(new), 1))
}

// spoiled are the ways in which a value can be changed.
func spoiled(value []byte) map[string][]byte {
	all := map[string][]byte{
		"nothing in it":           {},
		"MAC and key id stripped": envelope.Claimed(value),
		"cut short":               value[:len(value)-1],
		"a byte more":             append(bytes.Clone(value), ' '),
		"no envelope":             []byte(`{"version":1,"record":{}}`),
		"an id beyond the end":    {2, 255, 'd'},
		"another key's id":        bytes.Replace(value, []byte("dk-1"), []byte("dk-2"), 1),
		"record of no JSON":       append(bytes.Clone(value[:len(value)-len(envelope.Claimed(value))]), '{'),
	}
	for i := range value {
		v := bytes.Clone(value)
		v[i] ^= 1
		all[fmt.Sprintf("bit of byte %d", i)] = v
	}
	return all
}

// wantTampered returns the revision by which the record can be replaced.
func wantTampered(t *testing.T, what string, err error) (revision uint64) {
	t.Helper()
	tampered := new(registry.TamperedError)
	if !errors.As(err, &tampered) || !errors.Is(err, registry.ErrTampered) {
		t.Errorf("%s: got %v, want a TamperedError", what, err)
		return 0
	}
	if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("%s: %v is more than a TamperedError", what, err)
	}
	if tampered.Revision == 0 {
		t.Errorf("%s: got revision 0, by which one could create", what)
	}
	return tampered.Revision
}

func changedRegistration(t *testing.T, v *Victim) {
	s := v.Store
	reg := put(t, s, Client("app", "https://a.example/"), 0)
	row := clientRow("app")
	sound := v.value(t, row)
	for name, value := range spoiled(sound) {
		v.Write(row, value)
		got, err := s.Get(t.Context(), issuer, "app")
		wantTampered(t, name, err)
		if got != nil {
			t.Errorf("%s: got a record besides the error", name)
		}
		_, err = s.Put(t.Context(), Client("app", "https://b.example/"), 0)
		want(t, name+": Put as if there was none", err, registry.ErrRevision)
	}
	v.Write(row, sound)
	if diff := cmp.Diff(reg, get(t, s, "app")); diff != "" {
		t.Errorf("the row as it was (-want +got):\n%s", diff)
	}
}

func resurrection(t *testing.T, v *Victim) {
	s := v.Store
	put(t, s, Client("app", "https://a.example/"), 0)
	alive := v.value(t, clientRow("app"))
	put(t, s, tombstone("app"), 1)
	v.edit(t, clientRow("app"), `,"deleted":true`, ``)
	_, err := s.Get(t.Context(), issuer, "app")
	if got := wantTampered(t, "Get", err); got != 2 {
		t.Errorf("got revision %d, want 2", got)
	}
	// The record of the living client at the revision of the dead one.
	v.Write(clientRow("app"), bytes.Replace(alive, []byte(`"revision":1`), []byte(`"revision":2`), 1))
	_, err = s.Get(t.Context(), issuer, "app")
	wantTampered(t, "Get of the old record with the new revision", err)
}

func swapped(t *testing.T, v *Victim) {
	s := v.Store
	put(t, s, Client("rich", "https://a.example/"), 0)
	put(t, s, Client("poor", "https://a.example/"), 0)
	rich, poor := v.value(t, clientRow("rich")), v.value(t, clientRow("poor"))
	v.Write(clientRow("rich"), poor)
	v.Write(clientRow("poor"), rich)
	for _, id := range []string{"rich", "poor"} {
		_, err := s.Get(t.Context(), issuer, id)
		wantTampered(t, id, err)
	}
	// To another issuer's client of that name, and to one nobody registered.
	v.Write(clientRow("rich"), rich)
	other := envelope.Row{Kind: envelope.Registration, Key: envelope.Key("other", "rich")}
	v.Write(other, rich)
	v.Write(clientRow("ghost"), rich)
	_, err := s.Get(t.Context(), "other", "rich")
	wantTampered(t, "the client of another issuer", err)
	_, err = s.Get(t.Context(), issuer, "ghost")
	wantTampered(t, "a client that was never registered", err)
	get(t, s, "rich")
}

func tamperedList(t *testing.T, v *Victim) {
	s := v.Store
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		put(t, s, Client(id, "https://a.example/"), 0)
	}
	put(t, s, tombstone("d"), 1)
	put(t, s, tombstone("e"), 1)
	v.edit(t, clientRow("b"), `"revision":1`, `"revision":9`)
	v.edit(t, clientRow("d"), `"revision":2`, `"revision":3`)
	v.Write(clientRow("b\n"), []byte("junk"))
	v.Write(clientRow(""), []byte("junk"))
	for _, page := range []int{1, 2, 10} {
		var got []string
		for from := ""; ; {
			list, err := s.List(t.Context(), issuer, from, page)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == 0 {
				break
			}
			for _, r := range list {
				got = append(got, fmt.Sprintf("%s %d %t", r.ClientID, r.Revision, r.Tampered))
				if r.Tampered && !cmp.Equal(*r, registry.Registration{Issuer: issuer, ClientID: r.ClientID, Revision: r.Revision, Tampered: true}) {
					t.Errorf("got %+v, want its name and revision alone", r)
				}
			}
			from = registry.After(list[len(list)-1].ClientID)
		}
		if diff := cmp.Diff([]string{"a 1 false", "b 9 true", "c 1 false", "d 3 true"}, got); diff != "" {
			t.Errorf("pages of %d (-want +got):\n%s", page, diff)
		}
	}
}

func mending(t *testing.T, v *Victim) {
	s := v.Store
	const was, is, evil = "https://a.example/", "https://b.example/", "https://evil.example/"
	put(t, s, Client("app", was), 0)
	put(t, s, Client("other", "https://other.example/"), 0)
	put(t, s, Client("dead", was), 0)
	put(t, s, tombstone("dead"), 1)
	if err := s.PutKeySet(t.Context(), keySet(was)); err != nil {
		t.Fatal(err)
	}
	v.edit(t, clientRow("app"), was, evil)
	v.edit(t, clientRow("dead"), `,"deleted":true`, ``)

	_, err := s.Get(t.Context(), issuer, "app")
	revision := wantTampered(t, "Get", err)
	for _, expect := range []uint64{0, revision + 1} {
		_, err := s.Put(t.Context(), Client("app", is), expect)
		want(t, fmt.Sprintf("Put over %d", expect), err, registry.ErrRevision)
	}
	mended := put(t, s, Client("app", is), revision)
	if mended.Revision != revision+1 || !mended.CreatedAt.Equal(mended.UpdatedAt) {
		t.Errorf("got %+v, want the next revision, created now", mended)
	}
	if diff := cmp.Diff(mended, get(t, s, "app")); diff != "" {
		t.Errorf("Get (-want +got):\n%s", diff)
	}
	var uris []string
	if err := s.URIs(t.Context(), func(u string) bool { uris = append(uris, u); return true }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{is, "https://other.example/"}, uris); diff != "" {
		t.Errorf("URIs (-want +got):\n%s", diff)
	}
	_, err = s.KeySet(t.Context(), was)
	want(t, "the key set that nobody names", err, registry.ErrNotFound)

	// What is bad can also be deleted, and a dead client be registered again.
	v.edit(t, clientRow("app"), is, evil)
	if dead := put(t, s, tombstone("app"), revision+1); !dead.Deleted {
		t.Errorf("got %+v", dead)
	}
	_, err = s.Get(t.Context(), issuer, "dead")
	if back := put(t, s, Client("dead", is), wantTampered(t, "the tombstone", err)); back.Revision != 3 {
		t.Errorf("got revision %d, want 3", back.Revision)
	}
	uris = nil
	if err := s.URIs(t.Context(), func(u string) bool { uris = append(uris, u); return true }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{is, "https://other.example/"}, uris); diff != "" {
		t.Errorf("URIs at the end (-want +got):\n%s", diff)
	}
}

func claims(t *testing.T, v *Victim) {
	s := v.Store
	for _, claim := range []string{"0", "-1", "18446744073709551615", "18446744073709551616", "9223372036854775807", "1.5", `"7"`, "null", "{}"} {
		id := fmt.Sprintf("app-%x", claim)
		put(t, s, Client(id, "https://a.example/"), 0)
		v.edit(t, clientRow(id), `"revision":1`, `"revision":`+claim)
		_, err := s.Get(t.Context(), issuer, id)
		revision := wantTampered(t, claim, err)
		if got := put(t, s, Client(id, "https://a.example/"), revision); got.Revision != revision+1 || got.Revision < 2 {
			t.Errorf("claim %s: got revision %d after %d", claim, got.Revision, revision)
		}
	}
}

func changedKeySet(t *testing.T, v *Victim) {
	s := v.Store
	const uri = "https://a.example/"
	put(t, s, Client("app", uri), 0)
	set := keySet(uri)
	if err := s.PutKeySet(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	sound := v.value(t, setRow(uri))
	for name, value := range spoiled(sound) {
		v.Write(setRow(uri), value)
		_, err := s.KeySet(t.Context(), uri)
		want(t, name, err, registry.ErrNotFound)
	}
	if s.Tampered() == 0 {
		t.Error("no alarm")
	}
	// It is fetched anew, and put over the bad one.
	if err := s.PutKeySet(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	got, err := s.KeySet(t.Context(), uri)
	if diff := cmp.Diff(&set, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func movedKeySet(t *testing.T, v *Victim) {
	s := v.Store
	const mine, theirs = "https://mine.example/", "https://theirs.example/"
	for id, uri := range map[string]string{"mine": mine, "theirs": theirs} {
		put(t, s, Client(id, uri), 0)
		if err := s.PutKeySet(t.Context(), keySet(uri)); err != nil {
			t.Fatal(err)
		}
	}
	v.Write(setRow(theirs), v.value(t, setRow(mine)))
	_, err := s.KeySet(t.Context(), theirs)
	want(t, "KeySet", err, registry.ErrNotFound)
	if s.Tampered() != 1 {
		t.Errorf("got %d alarms, want 1", s.Tampered())
	}
}

// The rows of a ring and of a registration can have the same key.
func otherKind(t *testing.T, v *Victim) {
	s := v.Store
	put(t, s, Client("app", "https://a.example/"), 0)
	putRing(t, s, ring(issuer, kms.ES256, "k"), 0)
	v.Write(clientRow("ES256"), v.value(t, ringRow(kms.ES256)))
	_, err := s.Get(t.Context(), issuer, "ES256")
	wantTampered(t, "a ring as a registration", err)
	v.Write(ringRow("app"), v.value(t, clientRow("app")))
	_, err = s.Ring(t.Context(), issuer, "app")
	want(t, "a registration as a ring", err, keyring.ErrUnavailable)
}

func changedRing(t *testing.T, v *Victim) {
	s := v.Store
	written := putRing(t, s, ring(issuer, kms.ES256, "k"), 0)
	putRing(t, s, ring(issuer, kms.RS256, "k"), 0)
	putRing(t, s, ring("other", kms.RS256, "k"), 0)
	row := ringRow(kms.ES256)
	sound := v.value(t, row)
	refused := func(name string) {
		t.Helper()
		_, err := s.Ring(t.Context(), issuer, kms.ES256)
		want(t, name+": Ring", err, keyring.ErrUnavailable)
		want(t, name+": Ring", err, datakey.ErrTampered)
		_, err = s.Rings(t.Context(), issuer)
		want(t, name+": Rings", err, keyring.ErrUnavailable)
		for _, expect := range []uint64{0, 1, 2} {
			_, err = s.PutRing(t.Context(), ring(issuer, kms.ES256, "evil"), expect)
			want(t, name+": PutRing", err, keyring.ErrUnavailable)
		}
	}
	for name, value := range spoiled(sound) {
		v.Write(row, value)
		refused(name)
	}
	v.Write(row, v.value(t, ringRow(kms.RS256)))
	refused("the ring of another algorithm")
	if _, err := s.Rings(t.Context(), "other"); err != nil {
		t.Errorf("another issuer's rings: %v", err)
	}
	// A process that starts has never seen it sound.
	v.reopen()
	s = v.Store
	refused("after reopening")
	v.Write(row, sound)
	wantRing(t, s, written)
}

func alarmedOnce(t *testing.T, v *Victim) {
	s := v.Store
	put(t, s, Client("one", "https://a.example/"), 0)
	put(t, s, Client("two", "https://a.example/"), 0)
	sound := v.value(t, clientRow("one"))
	read := func(want uint64, when string) {
		t.Helper()
		for range 3 {
			for _, id := range []string{"one", "two"} {
				_, _ = s.Get(t.Context(), issuer, id)
			}
			if _, err := s.List(t.Context(), issuer, "", 10); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.Tampered(); got != want {
			t.Errorf("%s: got %d alarms, want %d", when, got, want)
		}
	}
	read(0, "at first")
	v.edit(t, clientRow("one"), `"revision":1`, `"revision":2`)
	read(1, "one changed")
	v.edit(t, clientRow("two"), `"revision":1`, `"revision":2`)
	read(2, "both changed")
	v.Write(clientRow("one"), sound)
	read(2, "one put back")
	v.edit(t, clientRow("one"), `"revision":1`, `"revision":2`)
	read(3, "one changed again")
}

func deletedDataKeys(t *testing.T, v *Victim) {
	put(t, v.Store, Client("app", "https://a.example/"), 0)
	put(t, v.Store, Client("gone", "https://a.example/"), 0)
	put(t, v.Store, tombstone("gone"), 1)
	putRing(t, v.Store, ring(issuer, kms.ES256, "k"), 0)
	if err := v.Store.PutKeySet(t.Context(), keySet("https://a.example/")); err != nil {
		t.Fatal(err)
	}
	v.DeleteDataKeys()

	// What is running reads on, and writes nothing that would be lost.
	get(t, v.Store, "app")
	_, err := v.Store.Put(t.Context(), Client("new", "https://a.example/"), 0)
	want(t, "Put without the data key's record", err, registry.ErrUnavailable)

	v.reopen()
	for range 2 { // before and after a new data key is made
		for _, id := range []string{"app", "gone"} {
			_, err := v.Store.Get(t.Context(), issuer, id)
			wantTampered(t, id, err)
		}
		_, err = v.Store.KeySet(t.Context(), "https://a.example/")
		want(t, "KeySet", err, registry.ErrNotFound)
		_, err = v.Store.Rings(t.Context(), issuer)
		want(t, "Rings", err, keyring.ErrUnavailable)
		if _, err := v.Store.Keys().Current(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	put(t, v.Store, Client("new", "https://a.example/"), 0)
	get(t, v.Store, "new")
}

func foreign(t *testing.T, v *Victim) {
	// Somebody runs the same service with a wrapping key of his own.
	cfg := datakeytest.Config(datakeytest.NewWrapper())
	theirs := datakeytest.NewStore()
	cfg.Store = theirs
	evil, err := datakey.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	put(t, v.Store, Client("app", "https://a.example/"), 0)
	for range 3 {
		row := clientRow("app")
		value, err := envelope.Seal(t.Context(), evil, row, envelope.Claimed(v.value(t, row)))
		if err != nil {
			t.Fatal(err)
		}
		id, err := evil.Current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Store.AddDataKey(t.Context(), theirs.Snapshot()[id]); err != nil && !errors.Is(err, datakey.ErrExists) {
			t.Fatal(err)
		}
		v.Write(row, value)
		for _, when := range []string{"while running", "in a new process"} {
			_, err = v.Store.Get(t.Context(), issuer, "app")
			wantTampered(t, id+" "+when, err)
			v.reopen()
		}
		put(t, v.Store, Client("app-"+id, "https://a.example/"), 0)
		if _, err := evil.Replace(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// The limit of what is promised: see package envelope.
func replay(t *testing.T, v *Victim) {
	first := put(t, v.Store, Client("app", "https://a.example/"), 0)
	old := v.value(t, clientRow("app"))
	put(t, v.Store, Client("app", "https://b.example/"), 1)
	v.Write(clientRow("app"), old)
	if diff := cmp.Diff(first, get(t, v.Store, "app")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func backendDown(t *testing.T, v *Victim) {
	put(t, v.Store, Client("app", "https://a.example/"), 0)
	if err := v.Store.PutKeySet(t.Context(), keySet("https://a.example/")); err != nil {
		t.Fatal(err)
	}
	v.Wrapper.SetDown(true)
	// What has its data key needs the backend no more.
	get(t, v.Store, "app")
	put(t, v.Store, Client("second", "https://a.example/"), 0)

	v.reopen()
	s := v.Store
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	_, err := s.Get(t.Context(), issuer, "app")
	want(t, "Get", err, registry.ErrUnavailable)
	want(t, "what Get wraps", err, kms.ErrUnavailable)
	_, err = s.List(t.Context(), issuer, "", 10)
	want(t, "List", err, registry.ErrUnavailable)
	_, err = s.KeySet(t.Context(), "https://a.example/")
	want(t, "KeySet", err, registry.ErrUnavailable)
	want(t, "PutKeySet", s.PutKeySet(t.Context(), keySet("https://a.example/")), registry.ErrUnavailable)
	want(t, "URIs", s.URIs(t.Context(), func(string) bool { return true }), registry.ErrUnavailable)
	_, err = s.Put(t.Context(), Client("app", "https://b.example/"), 1)
	want(t, "Put", err, registry.ErrUnavailable)
	_, err = s.PutRing(t.Context(), ring(issuer, kms.ES256, "k"), 0)
	want(t, "PutRing", err, keyring.ErrUnavailable)
	if s.Tampered() != 0 {
		t.Errorf("got %d alarms, want none", s.Tampered())
	}
	v.Wrapper.SetDown(false)
	v.reopen() // instead of waiting for the next try
	get(t, v.Store, "app")
}

// publicKeyOf is what a ring would publish.
func publicKeyOf(r *keyring.Ring) string {
	if len(r.Entries) == 0 {
		return ""
	}
	return string(r.Entries[0].PublicJWK)
}

// started is a store that was opened while the backend is down, with a ring.
func started(t *testing.T, v *Victim) *keyring.Ring {
	t.Helper()
	written := putRing(t, v.Store, ring(issuer, kms.ES256, "k"), 0)
	v.Wrapper.SetDown(true)
	v.reopen()
	return written
}

// backendIsBack waits until the data keys are tried again.
func backendIsBack(t *testing.T, v *Victim) {
	t.Helper()
	v.Wrapper.SetDown(false)
	if err := v.Store.Keys().Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func unverifiedRings(t *testing.T, v *Victim) {
	written := started(t, v)
	for range 2 {
		list, err := v.Store.Rings(t.Context(), issuer)
		if err != nil || len(list) != 1 {
			t.Fatalf("Rings: got %d, %v", len(list), err)
		}
		marked := *written
		marked.Unverified = true
		if diff := cmp.Diff(&marked, list[0], sameJSON); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		wantRing(t, v.Store, &marked)
	}
	// It lies in the place of another all the same.
	v.Write(ringRow(kms.RS256), v.value(t, ringRow(kms.ES256)))
	_, err := v.Store.Rings(t.Context(), issuer)
	want(t, "a ring that names another algorithm", err, keyring.ErrUnavailable)
	v.Write(ringRow(kms.RS256), nil)

	backendIsBack(t, v)
	wantRing(t, v.Store, written)
	if r := putRing(t, v.Store, ring(issuer, kms.ES256, "k", "l"), 1); r.Revision != 2 {
		t.Errorf("got revision %d, want 2", r.Revision)
	}
	if v.Store.Tampered() != 0 {
		t.Errorf("got %d alarms, want none", v.Store.Tampered())
	}
}

func forgedRing(t *testing.T, v *Victim) {
	started(t, v)
	v.edit(t, ringRow(kms.ES256), `"kid":"k"`, `"kid":"x"`)
	list, err := v.Store.Rings(t.Context(), issuer)
	if err != nil || len(list) != 1 || !strings.Contains(publicKeyOf(list[0]), `"x"`) {
		t.Fatalf("got %v, %v; want the forged ring: it cannot be told", list, err)
	}
	backendIsBack(t, v)
	for range 2 {
		list, err = v.Store.Rings(t.Context(), issuer)
		if err != nil || len(list) != 1 || len(list[0].Entries) != 0 || list[0].Algorithm != kms.ES256 {
			t.Errorf("got %v, %v; want an empty ring, so that its holder drops the forged one", list, err)
		}
	}
	for _, expect := range []uint64{0, 1} {
		_, err = v.Store.PutRing(t.Context(), ring(issuer, kms.ES256, "x"), expect)
		want(t, "PutRing", err, keyring.ErrUnavailable)
	}
	if v.Store.Tampered() != 1 {
		t.Errorf("got %d alarms, want 1", v.Store.Tampered())
	}
	v.reopen()
	_, err = v.Store.Rings(t.Context(), issuer)
	want(t, "Rings in a new process", err, keyring.ErrUnavailable)
}

// Somebody shows a forged ring while it cannot be told, and puts the sound one
// back before it can.
func laundering(t *testing.T, v *Victim) {
	written := started(t, v)
	sound := v.value(t, ringRow(kms.ES256))
	v.edit(t, ringRow(kms.ES256), `"kid":"k"`, `"kid":"x"`)
	forged, err := v.Store.Ring(t.Context(), issuer, kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	v.Write(ringRow(kms.ES256), sound)
	backendIsBack(t, v)
	_, err = v.Store.PutRing(t.Context(), *forged, 1)
	want(t, "PutRing of what was read unverified", err, keyring.ErrRevision)
	wantRing(t, v.Store, written)
	putRing(t, v.Store, ring(issuer, kms.ES256, "k"), 1)
}

func unverifiedWhileRunning(t *testing.T, v *Victim) {
	putRing(t, v.Store, ring(issuer, kms.ES256, "k"), 0)
	if _, err := v.Store.Rings(t.Context(), issuer); err != nil {
		t.Fatal(err)
	}
	// A data key that this process cannot unwrap now, and rings under it.
	if err := v.Store.AddDataKey(t.Context(), datakey.Record{ID: "dk-7", Wrapped: []byte("junk"), WrappedBy: datakeytest.Location}); err != nil {
		t.Fatal(err)
	}
	v.Wrapper.SetDown(true)
	value := v.value(t, ringRow(kms.ES256))
	forged := bytes.Replace(value, []byte("dk-1"), []byte("dk-7"), 1)
	v.Write(ringRow(kms.ES256), forged)
	_, err := v.Store.Rings(t.Context(), issuer)
	want(t, "a ring that was sound before", err, keyring.ErrUnavailable)
	v.Write(ringRow(kms.ES256), value)
	v.Write(ringRow(kms.RS256), bytes.Replace(forged, []byte(`"ES256"`), []byte(`"RS256"`), 1))
	_, err = v.Store.Rings(t.Context(), issuer)
	want(t, "a ring that is new", err, keyring.ErrUnavailable)
}

const purpose = "the purpose of a test"

// withSecret is a client whose secret is sealed under the current data key.
func withSecret(t *testing.T, keys *datakey.Keys, clientID, secret string) registry.Registration {
	t.Helper()
	r := Client(clientID, "https://a.example/")
	id, sealed, err := keys.Seal(t.Context(), []byte(secret), []byte(purpose+clientID))
	if err != nil {
		t.Fatal(err)
	}
	r.Source.Secret = &registry.Secret{DataKey: id, Sealed: sealed}
	return r
}

// sealAnew is what the caller of Reseal gives it.
func sealAnew(keys *datakey.Keys) func(context.Context, *registry.Registration) (*registry.Secret, error) {
	return func(ctx context.Context, r *registry.Registration) (*registry.Secret, error) {
		aad := []byte(purpose + r.ClientID)
		plaintext, err := keys.Open(ctx, r.Source.Secret.DataKey, r.Source.Secret.Sealed, aad)
		if err != nil {
			return nil, err
		}
		id, sealed, err := keys.Seal(ctx, plaintext, aad)
		return &registry.Secret{DataKey: id, Sealed: sealed}, err
	}
}

func wantSecret(t *testing.T, v *Victim, clientID, secret, keyID string) {
	t.Helper()
	s := get(t, v.Store, clientID).Source.Secret
	got, err := v.Store.Keys().Open(t.Context(), s.DataKey, s.Sealed, []byte(purpose+clientID))
	if err != nil || string(got) != secret || s.DataKey != keyID {
		t.Errorf("%s: got secret %q under %s, %v; want %q under %s", clientID, got, s.DataKey, err, secret, keyID)
	}
}

func reseal(t *testing.T, v *Victim) {
	const clients = 300 // more than one batch
	s := v.Store
	ctx := t.Context()
	for i := range clients {
		put(t, s, Client(fmt.Sprintf("app-%03d", i), fmt.Sprintf("https://a.example/%d", i%7)), 0)
	}
	put(t, s, withSecret(t, s.Keys(), "secret", "hush"), 0)
	put(t, s, Client("gone", "https://a.example/"), 0)
	put(t, s, tombstone("gone"), 1)
	if err := s.PutKeySet(ctx, keySet("https://a.example/")); err != nil {
		t.Fatal(err)
	}
	r := putRing(t, s, ring(issuer, kms.ES256, "k"), 0)
	before, err := s.List(ctx, issuer, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	old, err := s.Keys().Current(ctx)
	if err != nil {
		t.Fatal(err)
	}
	oldRow := v.value(t, clientRow("app-000"))

	if done, err := s.Reseal(ctx, sealAnew(s.Keys())); err != nil || done.Rows != 0 || done.Refused != 0 {
		t.Errorf("with nothing to do: got %+v, %v", done, err)
	}
	current, err := s.Keys().Replace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, withSecret(t, s.Keys(), "new", "hush"), 0)
	if done, err := s.Reseal(ctx, sealAnew(s.Keys())); err != nil || done.Rows != clients+4 || done.Refused != 0 {
		t.Errorf("got %+v, %v; want %d rows", done, err, clients+4)
	}
	if done, err := s.Reseal(ctx, sealAnew(s.Keys())); err != nil || done.Rows != 0 {
		t.Errorf("again: got %+v, %v; want nothing to do", done, err)
	}
	wantSecret(t, v, "secret", "hush", current)
	if err := s.Keys().Retire(ctx, old); err != nil {
		t.Fatal(err)
	}
	v.reopen()
	s = v.Store
	after, err := s.List(ctx, issuer, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	after = slices.DeleteFunc(after, func(r *registry.Registration) bool { return r.ClientID == "new" })
	for _, r := range slices.Concat(before, after) {
		r.Source.Secret = nil // looked at below
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("registrations (-before +after):\n%s", diff)
	}
	wantSecret(t, v, "secret", "hush", current)
	if dead := get(t, s, "gone"); !dead.Deleted || dead.Revision != 2 {
		t.Errorf("got %+v, want the tombstone", dead)
	}
	if _, err := s.KeySet(ctx, "https://a.example/"); err != nil {
		t.Error(err)
	}
	wantRing(t, s, r)

	// Rows of the time of the old data key are worth nothing any more.
	v.Write(clientRow("app-000"), oldRow)
	_, err = s.Get(ctx, issuer, "app-000")
	wantTampered(t, "a row under a retired data key", err)
}

func resealTampered(t *testing.T, v *Victim) {
	s := v.Store
	ctx := t.Context()
	put(t, s, Client("good", "https://a.example/"), 0)
	put(t, s, Client("bad", "https://a.example/"), 0)
	put(t, s, withSecret(t, s.Keys(), "unopenable", "hush"), 0)
	reg := get(t, s, "unopenable")
	reg.Source.Secret.Sealed[20] ^= 1
	put(t, s, *reg, 1)
	if err := s.PutKeySet(ctx, keySet("https://a.example/")); err != nil {
		t.Fatal(err)
	}
	putRing(t, s, ring(issuer, kms.ES256, "k"), 0)
	v.edit(t, clientRow("bad"), `"revision":1`, `"revision":2`)
	v.edit(t, setRow("https://a.example/"), `incident-1`, `incident-2`)
	v.edit(t, ringRow(kms.ES256), `"kid":"k"`, `"kid":"x"`)

	old, err := s.Keys().Current(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Keys().Replace(ctx); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Reseal(ctx, sealAnew(s.Keys())); err != nil || done.Rows != 1 || done.Refused != 4 {
		t.Errorf("got %+v, %v; want 1 row, and 4 refused", done, err)
	}
	_, err = s.Get(ctx, issuer, "bad")
	wantTampered(t, "Get", err)
	_, err = s.KeySet(ctx, "https://a.example/")
	want(t, "KeySet", err, registry.ErrNotFound)
	_, err = s.Ring(ctx, issuer, kms.ES256)
	want(t, "Ring", err, keyring.ErrUnavailable)
	get(t, s, "good")

	// The secret that does not open still counts, its row being sound; what
	// is not sound does not.
	want(t, "Retire", s.Keys().Retire(ctx, old), datakey.ErrInUse)
	put(t, s, tombstone("unopenable"), 2)
	if err := s.Keys().Retire(ctx, old); err != nil {
		t.Error(err)
	}
}

func resealConcurrent(t *testing.T, v *Victim) {
	const clients = 40
	s := v.Store
	for i := range clients {
		put(t, s, Client(fmt.Sprintf("app-%d", i), "https://a.example/"), 0)
	}
	var wg sync.WaitGroup
	last := make([]*registry.Registration, clients)
	for w := range 4 {
		wg.Go(func() {
			for round := range 4 {
				for i := w; i < clients; i += 4 {
					id := fmt.Sprintf("app-%d", i)
					got, err := s.Put(context.Background(), Client(id, fmt.Sprintf("https://a.example/%d", round)), uint64(round)+1)
					if err != nil {
						t.Errorf("%s: %v", id, err)
						return
					}
					last[i] = got
				}
			}
		})
	}
	var retired []string
	for range 3 {
		old, err := s.Keys().Current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Keys().Replace(t.Context()); err != nil {
			t.Fatal(err)
		}
		for tries := 0; ; tries++ {
			if done, err := s.Reseal(t.Context(), nil); err != nil || done.Refused != 0 {
				t.Fatalf("got %+v, %v", done, err)
			}
			err := s.Keys().Retire(t.Context(), old)
			if err == nil {
				break
			}
			if !errors.Is(err, datakey.ErrInUse) || tries > 10 {
				t.Fatal(err)
			}
		}
		retired = append(retired, old)
	}
	wg.Wait()
	if len(retired) != 3 {
		t.Errorf("retired %v", retired)
	}
	v.reopen()
	for i, want := range last {
		if diff := cmp.Diff(want, get(t, v.Store, fmt.Sprintf("app-%d", i))); diff != "" {
			t.Errorf("(-acknowledged +got):\n%s", diff)
		}
	}
	if v.Store.Tampered() != 0 {
		t.Errorf("got %d alarms, want none", v.Store.Tampered())
	}
}

func retireInUse(t *testing.T, v *Victim) {
	ctx := t.Context()
	s := v.Store
	writes := map[string]func() (undo func()){
		"a registration": func() func() {
			put(t, s, Client("app", "https://a.example/"), 0)
			return func() { put(t, s, Client("app", "https://a.example/"), 1) }
		},
		"a key set": func() func() {
			if err := s.PutKeySet(ctx, keySet("https://a.example/")); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := s.PutKeySet(ctx, keySet("https://a.example/")); err != nil {
					t.Fatal(err)
				}
			}
		},
		"a ring": func() func() {
			putRing(t, s, ring(issuer, kms.ES256, "k"), 0)
			return func() { putRing(t, s, ring(issuer, kms.ES256, "k"), 1) }
		},
		"a secret alone": func() func() {
			reg := withSecret(t, s.Keys(), "secret", "hush")
			if _, err := s.Keys().Replace(ctx); err != nil {
				t.Fatal(err)
			}
			put(t, s, reg, 0)
			return func() { put(t, s, withSecret(t, s.Keys(), "secret", "hush"), 1) }
		},
	}
	for _, what := range []string{"a registration", "a key set", "a ring", "a secret alone"} {
		old, err := s.Keys().Current(ctx)
		if err != nil {
			t.Fatal(err)
		}
		again := writes[what]()
		want(t, what+": the current key", s.Keys().Retire(ctx, old), datakey.ErrInUse)
		if _, err := s.Keys().Replace(ctx); err != nil {
			t.Fatal(err)
		}
		want(t, what, s.Keys().Retire(ctx, old), datakey.ErrInUse)
		again()
		if what != "a registration" { // moved to the new key with the others
			put(t, s, Client("app", "https://a.example/"), get(t, s, "app").Revision)
		}
		if _, err := s.Reseal(ctx, sealAnew(s.Keys())); err != nil {
			t.Fatal(err)
		}
		if err := s.Keys().Retire(ctx, old); err != nil {
			t.Errorf("%s: after it was written anew: %v", what, err)
		}
	}
	want(t, "a key that is not there", s.Keys().Retire(ctx, "dk-99"), datakey.ErrNotFound)
}

// A data key that does not open, because the configuration has forgotten its
// wrapping key, must be there when it is named again.
func retireUnopened(t *testing.T, v *Victim) {
	ctx := t.Context()
	app := put(t, v.Store, Client("app", "https://a.example/"), 0)
	put(t, v.Store, withSecret(t, v.Store.Keys(), "secret", "hush"), 0)
	if err := v.Store.PutKeySet(ctx, keySet("https://a.example/")); err != nil {
		t.Fatal(err)
	}
	written := putRing(t, v.Store, ring(issuer, kms.ES256, "k"), 0)
	old, err := v.Store.Keys().Current(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Store.Keys().Replace(ctx); err != nil {
		t.Fatal(err)
	}
	sound, err := v.Store.DataKeys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	setDataKeys := func(wrappedBy string) {
		t.Helper()
		v.DeleteDataKeys()
		for _, r := range sound {
			if r.ID == old {
				r.WrappedBy = wrappedBy
			}
			if err := v.Store.AddDataKey(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		v.reopen()
	}
	refused := func(what string) {
		t.Helper()
		err := v.Store.Keys().Retire(ctx, old)
		want(t, "Retire with "+what, err, datakey.ErrInUse)
		if !strings.Contains(fmt.Sprint(err), "does not open") {
			t.Errorf("%s: got %v, want the reason", what, err)
		}
	}
	setDataKeys("test:forgotten")
	rows := map[string][]byte{}
	for _, row := range []envelope.Row{ringRow(kms.ES256), setRow("https://a.example/"), clientRow("secret"), clientRow("app")} {
		refused(string(row.Kind))
		rows[string(row.Kind)+string(row.Key)] = v.value(t, row)
		v.Write(row, nil)
	}
	// That a row is under another key which does not open proves nothing.
	v.Write(clientRow("other"), []byte("\x02\x04dk-9"+strings.Repeat("\x00", 32)+`{"source":{"secret":{"data_key":"`+old+`"}}}`))
	refused("a secret alone")
	v.Write(clientRow("other"), nil)
	for _, row := range []envelope.Row{ringRow(kms.ES256), setRow("https://a.example/"), clientRow("secret"), clientRow("app")} {
		v.Write(row, rows[string(row.Kind)+string(row.Key)])
	}

	setDataKeys(datakeytest.Location)
	if diff := cmp.Diff(app, get(t, v.Store, "app")); diff != "" {
		t.Errorf("with the wrapping key named again (-want +got):\n%s", diff)
	}
	wantSecret(t, v, "secret", "hush", old)
	if _, err := v.Store.KeySet(ctx, "https://a.example/"); err != nil {
		t.Error(err)
	}
	wantRing(t, v.Store, written)
}

// namelessKey has an attacker write a row that names the data key "".
func namelessKey(t *testing.T, v *Victim) {
	put(t, v.Store, Client("app", "https://a.example/"), 0)
	v.reopen()
	v.Write(clientRow("evil"), append([]byte{2, 0}, make([]byte, 34)...))
	_, err := v.Store.Get(t.Context(), issuer, "evil")
	wantTampered(t, "Get", err)
	put(t, v.Store, Client("app", "https://a.example/"), 1)
	_, err = v.Store.Get(t.Context(), issuer, "evil")
	wantTampered(t, "Get again", err)
}

func retiredMeanwhile(t *testing.T, v *Victim) {
	ctx := t.Context()
	s := v.Store
	put(t, s, Client("app", "https://a.example/"), 0)
	late := withSecret(t, s.Keys(), "late", "hush")
	old := late.Source.Secret.DataKey

	// Another replica replaces the data key, and retires it; this one does not
	// know.
	cfg := datakeytest.Config(v.Wrapper)
	cfg.Store = s
	other, err := datakey.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	current, err := other.Replace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, Client("app", "https://a.example/"), 1) // still under the old one
	if id := envelope.KeyID(v.value(t, clientRow("app"))); id != old {
		t.Fatalf("the row is under %s, want %s; the test has no force", id, old)
	}
	want(t, "Retire of what another writes under", other.Retire(ctx, old), datakey.ErrInUse)
	v.Write(clientRow("app"), nil)
	if err := other.Retire(ctx, old); err != nil {
		t.Fatal(err)
	}

	put(t, s, Client("new", "https://a.example/"), 0)
	if id := envelope.KeyID(v.value(t, clientRow("new"))); id != current {
		t.Errorf("the row is under %s, want %s", id, current)
	}
	_, err = s.Put(ctx, late, 0)
	want(t, "Put of a secret under a retired key", err, registry.ErrUnavailable)
	put(t, s, withSecret(t, s.Keys(), "late", "hush"), 0)
	wantSecret(t, v, "late", "hush", current)
}

func addOnce(t *testing.T, v *Victim) {
	r := datakey.Record{ID: "dk-5", Wrapped: []byte{0, 1, 255}, WrappedBy: "hsm:object=a b;c", CreatedAt: keySet("").FetchedAt}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		wins int // guarded by mu
	)
	for range 8 {
		wg.Go(func() {
			err := v.Store.AddDataKey(context.Background(), r)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				wins++
			case !errors.Is(err, datakey.ErrExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins != 1 {
		t.Errorf("%d of 8 made the record, want 1", wins)
	}
	v.reopen()
	got, err := v.Store.DataKeys(t.Context())
	if diff := cmp.Diff([]datakey.Record{r}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = v.Store.DataKeys(ended)
	want(t, "DataKeys", err, context.Canceled)
	want(t, "AddDataKey", v.Store.AddDataKey(ended, r), context.Canceled)
	want(t, "RetireDataKey", v.Store.RetireDataKey(ended, r.ID), context.Canceled)
}

// Two processes replace the data keys at once, and both retire the old one, while
// others write.
func retireTwice(t *testing.T, v *Victim) {
	const clients = 30
	ctx := t.Context()
	s := v.Store
	for i := range clients {
		put(t, s, Client(fmt.Sprintf("app-%d", i), "https://a.example/"), 0)
	}
	for range 3 {
		old, err := s.Keys().Current(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Keys().Replace(ctx); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for range 5 {
					if _, err := s.Reseal(context.Background(), nil); err != nil {
						t.Error(err)
					}
					err := s.RetireDataKey(context.Background(), old)
					if err != nil && !errors.Is(err, datakey.ErrInUse) && !errors.Is(err, datakey.ErrNotFound) {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		// Whoever came last has done it, or does it now.
		if err := s.RetireDataKey(ctx, old); err != nil && !errors.Is(err, datakey.ErrNotFound) {
			t.Error(err)
		}
		list, err := s.DataKeys(ctx)
		if err != nil || len(list) != 1 {
			t.Errorf("got %d data keys, %v; want the current one alone", len(list), err)
		}
	}
	v.reopen()
	for i := range clients {
		get(t, v.Store, fmt.Sprintf("app-%d", i))
	}
}

func clientsOfURI(t *testing.T, v *Victim, uri string) []string {
	t.Helper()
	var got []string
	if err := v.Store.ClientsOf(t.Context(), uri, func(issuer, clientID string) bool {
		got = append(got, issuer+" "+clientID)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func clientsOf(t *testing.T, v *Victim) {
	const uri = "https://a.example/jwks"
	s := v.Store
	if got := clientsOfURI(t, v, uri); got != nil {
		t.Errorf("an empty store has %q", got)
	}
	for _, id := range []string{"b", "a", "a ", "gone", "leaves", "bad"} {
		put(t, s, Client(id, uri), 0)
	}
	put(t, s, Client("longer", uri+"2"), 0)
	put(t, s, Client("shorter", "https://a.example/"), 0)
	put(t, s, withJWKS("inline", []byte("{}")), 0)
	other := Client("a", uri)
	other.Issuer = "another"
	put(t, s, other, 0)
	put(t, s, tombstone("gone"), 1)
	put(t, s, Client("leaves", uri+"2"), 1)
	v.edit(t, clientRow("bad"), `"revision":1`, `"revision":2`)
	if diff := cmp.Diff([]string{"another a", "main a", "main a ", "main b"}, clientsOfURI(t, v, uri)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"main leaves", "main longer"}, clientsOfURI(t, v, uri+"2")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := clientsOfURI(t, v, "https://a.example/none"); got != nil {
		t.Errorf("got %q of a URI that nobody names", got)
	}
	n := 0
	if err := s.ClientsOf(t.Context(), uri, func(string, string) bool { n++; return n < 2 }); err != nil || n != 2 {
		t.Errorf("got %d clients and %v after asking to stop at the second", n, err)
	}
	// Whoever is told of a client may write it.
	if err := s.ClientsOf(t.Context(), uri, func(issuer, clientID string) bool {
		reg := Client(clientID, uri+"3")
		reg.Issuer = issuer
		put(t, s, reg, 1)
		return true
	}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"another a", "main a", "main a ", "main b"}, clientsOfURI(t, v, uri+"3")); diff != "" {
		t.Errorf("after they have moved (-want +got):\n%s", diff)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, "ClientsOf", s.ClientsOf(ended, uri, func(string, string) bool { return true }), context.Canceled)
}

func manyClientsOf(t *testing.T, v *Victim) {
	const uri = "https://a.example/jwks"
	var want []string
	for i := range records.BatchRows + 50 {
		id := fmt.Sprintf("app-%04d", i)
		put(t, v.Store, Client(id, uri), 0)
		want = append(want, issuer+" "+id)
	}
	put(t, v.Store, Client("other", "https://b.example/"), 0)
	if diff := cmp.Diff(want, clientsOfURI(t, v, uri)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var uris []string
	if err := v.Store.URIs(t.Context(), func(u string) bool { uris = append(uris, u); return true }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{uri, "https://b.example/"}, uris); diff != "" {
		t.Errorf("URIs (-want +got):\n%s", diff)
	}
	v.Wrapper.SetDown(true)
	v.reopen()
	err := v.Store.ClientsOf(t.Context(), uri, func(string, string) bool { return true })
	if !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("with the backend down: got %v, want ErrUnavailable", err)
	}
}
