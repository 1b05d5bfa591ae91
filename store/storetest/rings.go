package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer/keyring"
)

// Rings runs the suite of keyring.Store.
func Rings(t *testing.T, open Open[keyring.Store]) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, open Open[keyring.Store])
	}{
		{"UnknownRingIsNotFound", unknownRing},
		{"RingComesBackAsItWasPut", ringRoundTrip},
		{"RingKeepsWhatItRemembers", ringMemory},
		{"IntentComesAndGoesWithItsRing", ringIntent},
		{"PutRingNeedsTheStoredRevision", ringRevisions},
		{"RingsAreNotShared", ringsNotShared},
		{"RingsOfOneIssuerInByteOrder", ringsOrder},
		{"OneOfManyRingWritersWins", ringWriters},
		{"EndedContextIsRespectedForRings", ringEndedContext},
		{"RingsSurviveReopening", ringReopening},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open) })
	}
}

func ring(issuer string, alg kms.Algorithm, kids ...string) keyring.Ring {
	r := keyring.Ring{Issuer: issuer, Algorithm: alg}
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC)
	for _, kid := range kids {
		r.Entries = append(r.Entries, keyring.Entry{
			KeyID:     kid,
			PublicJWK: json.RawMessage(fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q}`, kid)),
			Locations: []keyring.Location{
				{Backend: "hsm", Ref: "object=login;id=%01"},
				{Backend: "aws", Ref: "key-id=arn:aws:kms:eu-west-1:111122223333:key/1"},
			},
			PublishAt:  at,
			ActivateAt: at.Add(time.Hour),
		})
	}
	return r
}

func putRing(t *testing.T, s keyring.Store, r keyring.Ring, expect uint64) *keyring.Ring {
	t.Helper()
	got, err := s.PutRing(t.Context(), r, expect)
	if err != nil {
		t.Fatalf("PutRing %s %s over %d: %v", r.Issuer, r.Algorithm, expect, err)
	}
	return got
}

func wantRing(t *testing.T, s keyring.Store, want *keyring.Ring) {
	t.Helper()
	got, err := s.Ring(t.Context(), want.Issuer, want.Algorithm)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, sameJSON); diff != "" {
		t.Errorf("ring (-want +got):\n%s", diff)
	}
}

// sameJSON compares JSON by what it says: a store may write it its own way.
var sameJSON = cmp.Comparer(func(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return string(a) == string(b)
	}
	return cmp.Equal(x, y)
})

func unknownRing(t *testing.T, open Open[keyring.Store]) {
	s, _ := open(t)
	putRing(t, s, ring(issuer, kms.ES256, "k"), 0)
	for _, name := range [][2]string{{"other", "ES256"}, {issuer, "RS256"}, {"", ""}, {"", "ES256"}, {issuer + "\x00ES256", ""}} {
		got, err := s.Ring(t.Context(), name[0], kms.Algorithm(name[1]))
		want(t, fmt.Sprintf("Ring %q", name), err, keyring.ErrNotFound)
		if got != nil {
			t.Errorf("Ring %q: got a ring besides the error", name)
		}
	}
	if list, err := s.Rings(t.Context(), "other"); err != nil || len(list) != 0 {
		t.Errorf("Rings of an unknown issuer: got %d, %v; want none", len(list), err)
	}
}

func ringRoundTrip(t *testing.T, open Open[keyring.Store]) {
	s, _ := open(t)
	r := ring(issuer, kms.ES256, "k1", "k2")
	r.Entries[0].RetireAt = r.Entries[0].ActivateAt.Add(time.Hour)
	r.Entries[0].RemoveAt = r.Entries[0].ActivateAt.Add(2 * time.Hour)
	r.Entries[1].PublishAt, r.Entries[1].ActivateAt = time.Time{}, time.Time{}
	r.Entries[1].Tag = "bulla-login-es256-abc"
	r.Revision = 77 // is not looked at
	written := putRing(t, s, r, 0)
	r.Revision = 1
	if diff := cmp.Diff(&r, written, sameJSON); diff != "" {
		t.Errorf("PutRing (-want +got):\n%s", diff)
	}
	wantRing(t, s, &r)
}

func intent() *keyring.Intent {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC)
	return &keyring.Intent{Tag: "bulla-login-rs256-abc", Backend: "hsm", RSABits: 3072, NotBefore: at.Add(time.Hour), Emergency: true, Owner: "me", ClaimedAt: at}
}

func ringIntent(t *testing.T, open Open[keyring.Store]) {
	s, reopen := open(t)
	r := ring(issuer, kms.RS256, "k")
	r.Intent = intent()
	first := putRing(t, s, r, 0)
	r.Intent.Owner = "X"
	if diff := cmp.Diff(intent(), first.Intent); diff != "" {
		t.Errorf("intent that was put (-want +got):\n%s", diff)
	}
	s = reopen()
	wantRing(t, s, first)
	next := *first
	next.Intent = nil
	next.Entries = append(next.Entries, ring(issuer, kms.RS256, "l").Entries...)
	if second := putRing(t, s, next, 1); second.Intent != nil || len(second.Entries) != 2 {
		t.Errorf("got %+v, want two keys and no intent", second)
	}
	// Whoever still has the ring with the intent cannot write it back.
	_, err := s.PutRing(t.Context(), *first, 1)
	want(t, "PutRing of the intent once more", err, keyring.ErrRevision)
}

func ringMemory(t *testing.T, open Open[keyring.Store]) {
	s, reopen := open(t)
	r := ring(issuer, kms.PS256, "k")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r.Entries[0].RetireAt, r.Entries[0].RemoveAt, r.Entries[0].Withdrawn = at, at, true
	r.Dropped = []keyring.Dropped{{Tag: "bulla-main-ps256-x", Backend: "hsm", At: at}}
	r.MaxAge, r.MaxLifetime = 10*time.Minute, time.Hour
	r.SetsUntil, r.TokensUntil = at.Add(time.Minute), at.Add(time.Hour)
	put := putRing(t, s, r, 0)
	r.Revision = 1
	if diff := cmp.Diff(&r, put, sameJSON); diff != "" {
		t.Errorf("ring that was put (-want +got):\n%s", diff)
	}
	wantRing(t, reopen(), put)
}

func ringRevisions(t *testing.T, open Open[keyring.Store]) {
	s, _ := open(t)
	_, err := s.PutRing(t.Context(), ring(issuer, kms.ES256, "k"), 1)
	want(t, "PutRing of a new ring over revision 1", err, keyring.ErrRevision)
	first := putRing(t, s, ring(issuer, kms.ES256, "k"), 0)
	for _, expect := range []uint64{0, 2} {
		_, err := s.PutRing(t.Context(), ring(issuer, kms.ES256, "other"), expect)
		want(t, fmt.Sprintf("PutRing over %d", expect), err, keyring.ErrRevision)
	}
	wantRing(t, s, first)
	if second := putRing(t, s, ring(issuer, kms.ES256), 1); second.Revision != 2 {
		t.Errorf("got revision %d, want 2", second.Revision)
	}

	for _, name := range [][2]string{{"", "ES256"}, {issuer, ""}, {"a\x00b", "ES256"}, {issuer, "ES\x00256"}} {
		_, err := s.PutRing(t.Context(), ring(name[0], kms.Algorithm(name[1])), 0)
		if err == nil || errors.Is(err, keyring.ErrUnavailable) {
			t.Errorf("PutRing %q: got %v, want an error, and not ErrUnavailable: trying again does not help", name, err)
		}
	}
}

func ringsNotShared(t *testing.T, open Open[keyring.Store]) {
	s, _ := open(t)
	r := ring(issuer, kms.ES256, "k")
	spoil := func(r *keyring.Ring) {
		r.Entries[0].KeyID = "X"
		r.Entries[0].PublicJWK[0] = 'X'
		r.Entries[0].Locations[0].Ref = "X"
	}
	written := putRing(t, s, r, 0)
	spoil(&r)
	fresh := ring(issuer, kms.ES256, "k")
	fresh.Revision = 1
	if diff := cmp.Diff(&fresh, written, sameJSON); diff != "" {
		t.Errorf("what PutRing returned changed with the ring that was put (-want +got):\n%s", diff)
	}
	spoil(written)
	wantRing(t, s, &fresh)
	got, err := s.Ring(t.Context(), issuer, kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	spoil(got)
	wantRing(t, s, &fresh)
}

func ringsOrder(t *testing.T, open Open[keyring.Store]) {
	s, _ := open(t)
	for _, alg := range []kms.Algorithm{kms.RS256, kms.ES384, kms.PS256, kms.ES256, kms.EdDSA} {
		putRing(t, s, ring(issuer, alg, "k"), 0)
		putRing(t, s, ring(issuer+"2", alg, "k"), 0)
	}
	list, err := s.Rings(t.Context(), issuer)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range list {
		if r.Issuer != issuer {
			t.Errorf("got a ring of issuer %s", r.Issuer)
		}
		got = append(got, string(r.Algorithm))
	}
	if want := "ES256 ES384 EdDSA PS256 RS256"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, " "), want)
	}
}

func ringWriters(t *testing.T, open Open[keyring.Store]) {
	s, _ := open(t)
	var (
		wg   sync.WaitGroup
		wins atomic.Int64
	)
	for w := range 8 {
		wg.Go(func() {
			_, err := s.PutRing(context.Background(), ring(issuer, kms.ES256, fmt.Sprint(w)), 0)
			switch {
			case err == nil:
				wins.Add(1)
			case !errors.Is(err, keyring.ErrRevision):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := wins.Load(); n != 1 {
		t.Errorf("%d of 8 writers made the ring, want 1", n)
	}
}

func ringEndedContext(t *testing.T, open Open[keyring.Store]) {
	s, _ := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.PutRing(ctx, ring(issuer, kms.ES256, "k"), 0)
	want(t, "PutRing", err, context.Canceled)
	_, err = s.Ring(ctx, issuer, kms.ES256)
	want(t, "Ring", err, context.Canceled)
	_, err = s.Rings(ctx, issuer)
	want(t, "Rings", err, context.Canceled)
	_, err = s.Ring(t.Context(), issuer, kms.ES256)
	want(t, "Ring of what was put with an ended context", err, keyring.ErrNotFound)
}

func ringReopening(t *testing.T, open Open[keyring.Store]) {
	s, reopen := open(t)
	written := putRing(t, s, ring(issuer, kms.ES256, "k"), 0)
	s = reopen()
	wantRing(t, s, written)
	if r := putRing(t, s, ring(issuer, kms.ES256, "k", "l"), 1); r.Revision != 2 {
		t.Errorf("got revision %d, want 2", r.Revision)
	}
}
