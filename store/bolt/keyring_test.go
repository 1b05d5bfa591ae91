package bolt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
)

// noBackend is a backend that is down.
type noBackend struct{}

func (noBackend) OpenKey(context.Context, string, kms.Algorithm) (kms.Key, error) {
	return nil, kms.ErrUnavailable
}
func (noBackend) Check(context.Context) error { return kms.ErrUnavailable }
func (noBackend) Close() error                { return nil }

var location = keyring.Location{Backend: "hsm", Ref: "object=login"}

// runKeyring runs a keyring on a store until the end of the test.
func runKeyring(t *testing.T, s *Store) *keyring.Keyring {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	k, err := keyring.New(ctx, keyring.Config{
		Store: s, Backends: map[string]kms.Backend{"hsm": noBackend{}},
		Issuers:        []keyring.Issuer{{Name: "main", Keys: []keyring.Key{{Algorithm: kms.ES256, Locations: []keyring.Location{location}}}}},
		ReloadInterval: 5 * time.Millisecond, RetryMin: 5 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return k
}

// newEntry is an active signing key, and its kid.
func newEntry(t *testing.T) (keyring.Entry, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := signer.PublicJWK(key.Public(), kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	kid, err := signer.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	return keyring.Entry{KeyID: kid, PublicJWK: jwk, Locations: []keyring.Location{location}, PublishAt: at, ActivateAt: at}, kid
}

// published waits until a keyring publishes the key, or no key at all ("").
func published(t *testing.T, k *keyring.Keyring, kid, when string) {
	t.Helper()
	var doc []byte
	var err error
	for range 1000 {
		doc, _, _, err = k.JWKS("main")
		if kid == "" && err != nil || kid != "" && bytes.Contains(doc, []byte(kid)) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%s: got %s, %v; want key %q", when, doc, err, kid)
}

// marked fails the test unless what is published is marked as unverified, or is
// not.
func marked(t *testing.T, k *keyring.Keyring, want bool) {
	t.Helper()
	if set, err := k.PublicKeys("main"); err != nil || set.Unverified != want {
		t.Errorf("got unverified %t, %v; want %t", set.Unverified, err, want)
	}
}

// What the store says of a tampered ring has to make the keyring do the right
// thing.
func TestForgedKeysAreNotPublishedForLong(t *testing.T) {
	sound, kid := newEntry(t)
	forged, evil := newEntry(t)
	s, reopen, w := wrapped(t)
	ring := keyring.Ring{Issuer: "main", Algorithm: kms.ES256, Entries: []keyring.Entry{sound}}
	if _, err := s.PutRing(t.Context(), ring, 0); err != nil {
		t.Fatal(err)
	}
	row := envelope.Row{Kind: envelope.Ring, Key: envelope.Key("main", string(kms.ES256))}
	value := read(t, s, row)
	bad := bytes.ReplaceAll(value, sound.PublicJWK, forged.PublicJWK)
	bad = bytes.ReplaceAll(bad, []byte(kid), []byte(evil))
	write := func(value []byte) {
		t.Helper()
		edit(t, s, func(tx *bbolt.Tx) error { return tx.Bucket([]byte(records.Rings)).Put(row.Key, value) })
	}

	t.Run("a process that runs goes on with what it holds", func(t *testing.T) {
		k := runKeyring(t, s)
		published(t, k, kid, "at first")
		write(bad)
		for s.Tampered() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond)
		published(t, k, kid, "with a forged ring in the store")
	})
	t.Run("a process that starts publishes nothing", func(t *testing.T) {
		s = reopen()
		k := runKeyring(t, s)
		for s.Tampered() == 0 {
			time.Sleep(time.Millisecond)
		}
		if doc, _, _, err := k.JWKS("main"); !errors.Is(err, keyring.ErrUnavailable) {
			t.Errorf("got %s, %v; want ErrUnavailable", doc, err)
		}
		write(value)
		published(t, k, kid, "after the sound ring was put back")
	})
	t.Run("one that starts without a backend drops them when it is back", func(t *testing.T) {
		write(bad)
		w.SetDown(true)
		s = reopen()
		k := runKeyring(t, s)
		published(t, k, evil, "at first")
		marked(t, k, true)
		w.SetDown(false)
		published(t, k, "", "with the backend back")
		time.Sleep(20 * time.Millisecond)
		published(t, k, "", "later")
		write(value)
		published(t, k, kid, "after the sound ring was put back")
		marked(t, k, false)
	})
}

// Rings that were stored before keys had tags and rings intents are read, and a
// ring without them is stored as it was then.
func TestRingsWithoutIntentsAreStoredAsTheyWere(t *testing.T) {
	entry, kid := newEntry(t)
	s, reopen := opener(t)
	row := envelope.Row{Kind: envelope.Ring, Key: envelope.Key("main", string(kms.ES256))}
	type then struct {
		KeyID      string             `json:"key_id"`
		PublicJWK  json.RawMessage    `json:"public_jwk"`
		Locations  []keyring.Location `json:"locations"`
		PublishAt  time.Time          `json:"publish_at,omitzero"`
		ActivateAt time.Time          `json:"activate_at,omitzero"`
	}
	old := struct {
		Issuer    string `json:"issuer"`
		Algorithm string `json:"algorithm"`
		Entries   []then `json:"entries"`
		Revision  uint64 `json:"revision"`
	}{"main", "ES256", []then{{kid, entry.PublicJWK, entry.Locations, entry.PublishAt, entry.ActivateAt}}, 1}
	raw, err := json.Marshal(old)
	if err != nil {
		t.Fatal(err)
	}
	value, err := envelope.Seal(t.Context(), s.Keys(), row, raw)
	if err != nil {
		t.Fatal(err)
	}
	edit(t, s, func(tx *bbolt.Tx) error { return tx.Bucket([]byte(records.Rings)).Put(row.Key, value) })
	s = reopen()
	ring, err := s.Ring(t.Context(), "main", kms.ES256)
	if err != nil || ring.Intent != nil || len(ring.Entries) != 1 || ring.Entries[0].Tag != "" || ring.Entries[0].KeyID != kid {
		t.Fatalf("got %+v, %v", ring, err)
	}
	again, err := json.Marshal(ring)
	if err != nil || !bytes.Equal(again, raw) {
		t.Errorf("stored now as %s, %v\nthen it was %s", again, err, raw)
	}
}

// An intent is as authentic as the keys: whoever could change its tag or its
// backend could have Bulla adopt a key of his own.
func TestAForgedIntentIsNotFollowed(t *testing.T) {
	entry, _ := newEntry(t)
	s, reopen := opener(t)
	ring := keyring.Ring{Issuer: "main", Algorithm: kms.ES256, Entries: []keyring.Entry{entry},
		Intent: &keyring.Intent{Tag: "bulla-main-es256-good", Backend: "hsm", Owner: "o", ClaimedAt: time.Now()}}
	if _, err := s.PutRing(t.Context(), ring, 0); err != nil {
		t.Fatal(err)
	}
	row := envelope.Row{Kind: envelope.Ring, Key: envelope.Key("main", string(kms.ES256))}
	value := read(t, s, row)
	edit(t, s, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(records.Rings)).Put(row.Key, bytes.Replace(value, []byte("es256-good"), []byte("es256-evil"), 1))
	})
	s = reopen()
	if got, err := s.Ring(t.Context(), "main", kms.ES256); !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("got %+v, %v; want ErrUnavailable", got, err)
	}
}
