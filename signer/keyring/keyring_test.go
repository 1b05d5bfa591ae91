package keyring

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// world is a keyring under test with its surroundings. The issuer is "main",
// the backends are "hsm" and "two".
type world struct {
	*Keyring
	store    *memStore
	hsm, two *hsm
	log      *logBook
}

// at is a location in backend "hsm", or in another if ref says so.
func at(ref string) Location {
	if b, r, ok := strings.Cut(ref, ":"); ok {
		return Location{b, r}
	}
	return Location{"hsm", ref}
}

// listed is a configured key.
func listed(alg kms.Algorithm, refs ...string) Key {
	k := Key{Algorithm: alg}
	for _, r := range refs {
		k.Locations = append(k.Locations, at(r))
	}
	return k
}

func (w *world) config(keys ...Key) Config {
	return Config{
		Store:    w.store,
		Backends: map[string]kms.Backend{"hsm": w.hsm, "two": w.two},
		Issuers:  []Issuer{{Name: "main", Keys: keys}},
		Logger:   w.log.logger(),
	}
}

// newWorld has keys a and b (ES256), e (EdDSA) in hsm, and nothing in two.
func newWorld(t *testing.T) *world {
	return &world{
		store: newMemStore(),
		hsm:   newHSM(t, map[string]kms.Algorithm{"a": kms.ES256, "b": kms.ES256, "e": kms.EdDSA}),
		two:   newHSM(t, nil),
		log:   &logBook{},
	}
}

// start makes and runs a keyring until the test ends, or stop is called. It
// returns when everything has been tried once.
func (w *world) start(t *testing.T, keys ...Key) (stop func()) {
	t.Helper()
	return w.startConfig(t, w.config(keys...))
}

func (w *world) startConfig(t *testing.T, cfg Config) (stop func()) {
	t.Helper()
	k, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	w.Keyring = k
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	synctest.Wait()
	return stop
}

// wait lets time pass.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// wantKey checks which key signs; an empty ref wants err instead.
func (w *world) wantKey(t *testing.T, alg kms.Algorithm, ref string, wantErr ...error) {
	t.Helper()
	key, err := w.Key("main", alg)
	for _, want := range wantErr {
		if !errors.Is(err, want) {
			t.Errorf("Key(%s) = %v, want %v", alg, err, want)
		}
	}
	if ref == "" {
		return
	}
	if err != nil {
		t.Errorf("Key(%s) = %v, want the key at %s", alg, err, ref)
		return
	}
	if want := w.hsm.kid(t, ref); key.KeyID() != want || key.Algorithm() != alg {
		t.Errorf("Key(%s) has kid %s (%s), want %s, the one at %s", alg, key.KeyID(), key.Algorithm(), want, ref)
	}
}

// wantPublished checks the kids of the JWK Set.
func (w *world) wantPublished(t *testing.T, refs ...string) {
	t.Helper()
	public, err := w.PublicKeys("main")
	doc := public.JWKS
	if len(refs) == 0 {
		// There is nothing that a verifier should cache.
		if !errors.Is(err, ErrNotOpen) {
			t.Errorf("JWKS without keys: %s, %v, want ErrNotOpen", doc, err)
		}
		return
	}
	if err != nil {
		t.Errorf("JWKS: %v", err)
		return
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(doc, &set); err != nil {
		t.Errorf("JWKS %s: %v", doc, err)
	}
	got, want := []string{}, []string{}
	for _, k := range set.Keys {
		got = append(got, k.KeyID)
		if !k.IsPublic() || k.Use != "sig" {
			t.Errorf("published key %s is not a public signing key", k.KeyID)
		}
	}
	for _, r := range refs {
		want = append(want, w.hsm.kid(t, r))
	}
	slices.Sort(got) // keys that join at once do so in any order
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("published kids (-want +got):\n%s", diff)
	}
}

func (w *world) wantHealth(t *testing.T, want bool, reasons ...string) {
	t.Helper()
	ok, reason := w.Healthy("main")
	if ok != want {
		t.Errorf("Healthy = %v (%s), want %v", ok, reason, want)
	}
	for _, r := range reasons {
		if !strings.Contains(reason, r) {
			t.Errorf("reason %q does not tell of %q", reason, r)
		}
	}
	if len(reasons) == 0 && reason != "" {
		t.Errorf("reason is %q, want none", reason)
	}
	if strings.Contains(reason, "\n") {
		t.Errorf("reason has several lines: %q", reason)
	}
}

func (w *world) ring(t *testing.T, alg kms.Algorithm) *Ring {
	t.Helper()
	r, err := w.store.Ring(t.Context(), "main", alg)
	if err != nil {
		t.Fatalf("ring %s: %v", alg, err)
	}
	return r
}

func TestConfigSeedsAnEmptyRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"), listed(kms.EdDSA, "e"))
		w.wantKey(t, kms.ES256, "a")
		w.wantKey(t, kms.EdDSA, "e")
		w.wantPublished(t, "a", "e")
		w.wantHealth(t, true)
		r := w.ring(t, kms.ES256)
		e := r.Entries[0]
		now := time.Now().UTC().Truncate(time.Second)
		want := Entry{KeyID: w.hsm.kid(t, "a"), PublicJWK: e.PublicJWK, Locations: []Location{at("a")}, PublishAt: now, ActivateAt: now}
		if diff := cmp.Diff([]Entry{want}, r.Entries); diff != "" {
			t.Errorf("stored entries (-want +got):\n%s", diff)
		}
		if w.store.written() != 2 {
			t.Errorf("the store was written %d times, want once for each ring", w.store.written())
		}
		if got := w.log.count("joined its ring", "state=ACTIVE"); got != 2 {
			t.Errorf("%d log lines tell of joining, want 2", got)
		}
	})
}

func TestTokensVerifyAgainstThePublishedKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"))
		key, err := w.Key("main", kms.ES256)
		if err != nil {
			t.Fatal(err)
		}
		p, err := signer.Prepare(signer.Request{
			Kind: signer.UserInfo, Issuer: signer.Issuer{URL: "https://login.example.com"}, ClientID: "c", Claims: []byte(`{"sub":"s"}`),
		}, kms.ES256, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		token, err := signer.Sign(t.Context(), key, p)
		if err != nil {
			t.Fatal(err)
		}
		public, err := w.PublicKeys("main")
		doc := public.JWKS
		if err != nil {
			t.Fatal(err)
		}
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(doc, &set); err != nil {
			t.Fatal(err)
		}
		jws, err := jose.ParseSignedCompact(string(token), []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := jws.Verify(set); err != nil {
			t.Errorf("go-jose does not verify the token with the published set: %v", err)
		}
	})
}

func TestABackendThatIsDownFailsNoStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.hsm.fail = kms.ErrUnavailable
		w.start(t, listed(kms.ES256, "a"))
		w.wantKey(t, kms.ES256, "", ErrNotOpen, kms.ErrUnavailable)
		w.wantPublished(t)
		w.wantHealth(t, false, "ES256", "hsm:a", kms.ErrUnavailable.Error(), "no key has joined")
		if got, err := w.Algorithms("main"); err != nil || !slices.Equal(got, []kms.Algorithm{kms.ES256}) {
			t.Errorf("Algorithms = %v, %v, want ES256: it is configured", got, err)
		}

		wait(10 * time.Minute)
		if n := w.log.count("listed signing key cannot be opened"); n != 1 {
			t.Errorf("the lasting failure was logged %d times, want once", n)
		}
		w.hsm.set(func(h *hsm) { h.fail = nil })
		wait(37 * time.Second) // the longest wait, a fifth more, and a moment
		w.wantKey(t, kms.ES256, "a")
		w.wantHealth(t, true)
	})
}

func TestPublishingNeedsNoBackendAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"))()
		w.hsm.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
		w.start(t, listed(kms.ES256, "a"))
		w.wantPublished(t, "a")
		w.wantKey(t, kms.ES256, "", ErrNotOpen, kms.ErrUnavailable)
		w.wantHealth(t, false, w.hsm.kid(t, "a"), "hsm:a")
		w.hsm.set(func(h *hsm) { h.fail = nil })
		wait(2 * time.Second)
		w.wantKey(t, kms.ES256, "a")
		if w.store.written() != 1 {
			t.Errorf("the store was written %d times, want only the seeding", w.store.written())
		}
	})
}

func TestBeforeRunNothingIsAskedOfABackend(t *testing.T) {
	w := newWorld(t)
	k, err := New(t.Context(), w.config(listed(kms.ES256, "a")))
	if err != nil {
		t.Fatal(err)
	}
	w.Keyring = k
	w.wantKey(t, kms.ES256, "", ErrNotOpen)
	w.wantPublished(t)
	w.wantHealth(t, false, "not been tried")
	if w.hsm.tally(func(h *hsm) *int { return &h.opened }) != 0 {
		t.Error("New opened a key")
	}
}

func TestAnotherKeyUnderTheSameReferenceIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"))()
		old := w.hsm.kid(t, "a")
		original := w.hsm.keys["a"]
		w.hsm.keys["a"] = newPrivate(t, kms.ES256)
		w.start(t, listed(kms.ES256, "a"))
		w.wantKey(t, kms.ES256, "", ErrNotOpen, kms.ErrKeyMismatch)
		w.wantHealth(t, false, old, w.hsm.kid(t, "a"))
		if w.log.count("level=ERROR", "signing key refused") != 1 {
			t.Error("nobody was alarmed")
		}
		if r := w.ring(t, kms.ES256); len(r.Entries) != 1 || r.Entries[0].KeyID != old {
			t.Errorf("the ring was changed: %+v", r)
		}
		// The key comes back and all is well.
		w.hsm.set(func(h *hsm) { h.keys["a"] = original })
		w.wantPublished(t, "a")
		wait(40 * time.Second)
		w.wantKey(t, kms.ES256, "a")
	})
}

func TestAListedKeyThatIsNotInTheRingBecomesNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"))()
		wait(time.Hour)
		cfg := w.config(listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		cfg.MaxLag = 3 * time.Hour
		w.startConfig(t, cfg)
		w.wantPublished(t, "a", "b")
		w.wantKey(t, kms.ES256, "a")
		list, err := w.List("main")
		if err != nil || len(list) != 2 || list[1].State != Next || !list[1].Open || list[1].Problem != "" {
			t.Fatalf("List = %+v, %v, want b open and next", list, err)
		}
		if e := list[1].Entry; !e.ActivateAt.IsZero() || !e.PublishAt.Equal(time.Now().Truncate(time.Second)) {
			t.Errorf("next key is published at %v and activated at %v, want now and never", e.PublishAt, e.ActivateAt)
		}
		wait(3 * time.Hour)
		w.wantKey(t, kms.ES256, "a")

		// Once a time is set, the change of keys needs neither store nor luck.
		change := time.Now().Add(time.Hour).Truncate(time.Second)
		w.store.edit(t, kms.ES256, func(r *Ring) {
			r.Entries[0].RetireAt, r.Entries[0].RemoveAt = change, change.Add(4*time.Hour+2*time.Minute)
			r.Entries[1].ActivateAt = change
		})
		wait(10 * time.Second)
		w.store.setDown(true)
		wait(time.Until(change) - time.Second)
		w.wantKey(t, kms.ES256, "a")
		wait(time.Second)
		w.wantKey(t, kms.ES256, "b")
		w.wantPublished(t, "a", "b")
		wait(4*time.Hour + 2*time.Minute - time.Second)
		w.wantPublished(t, "a", "b")
		wait(time.Second)
		w.wantPublished(t, "b")
		w.wantKey(t, kms.ES256, "b")
	})
}

func TestTheFirstListedKeySeedsEvenIfItAnswersLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.hsm.failRef["a"] = kms.ErrUnavailable
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		wait(time.Minute)
		w.wantKey(t, kms.ES256, "", ErrNotOpen)
		w.wantPublished(t)
		w.hsm.set(func(h *hsm) { delete(h.failRef, "a") })
		wait(37 * time.Second)
		w.wantKey(t, kms.ES256, "a")
		w.wantPublished(t, "a", "b")
	})
}

func TestAKeyListedNoMoreGoesOnAndIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.EdDSA, "e"), listed(kms.ES256, "a"))()
		w.start(t, listed(kms.EdDSA, "e"))
		w.wantKey(t, kms.ES256, "a")
		w.wantPublished(t, "a", "e")
		if got, err := w.Algorithms("main"); err != nil || !slices.Equal(got, []kms.Algorithm{kms.ES256, kms.EdDSA}) {
			t.Errorf("Algorithms = %v, %v, want both", got, err)
		}
		wait(time.Hour)
		if n := w.log.count("not listed in the configuration any more", w.hsm.kid(t, "a")); n != 1 {
			t.Errorf("reported %d times, want once", n)
		}
		// Replaced by another: that one is next, and the old one signs on.
		w.start(t, listed(kms.ES256, "b"))
		w.wantKey(t, kms.ES256, "a")
		if n := len(w.ring(t, kms.ES256).Entries); n != 2 {
			t.Errorf("the ring has %d keys, want 2", n)
		}
	})
}

func TestLocationsAreProvenBeforeTheyAreUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.two.keys["copy"] = w.hsm.keys["a"]
		w.two.keys["other"] = w.hsm.keys["b"]

		// Seeded from the only place that answers, the other joins later,
		// and the configuration's order wins.
		w.hsm.fail = kms.ErrUnavailable
		stop := w.start(t, listed(kms.ES256, "a", "two:copy"))
		w.wantKey(t, kms.ES256, "a")
		w.wantHealth(t, true, "hsm:a", kms.ErrUnavailable.Error())
		if got := w.ring(t, kms.ES256).Entries[0].Locations; !slices.Equal(got, []Location{at("two:copy")}) {
			t.Errorf("stored locations are %v, want only the proven one", got)
		}
		w.hsm.set(func(h *hsm) { h.fail = nil })
		wait(40 * time.Second)
		if got := w.ring(t, kms.ES256).Entries[0].Locations; !slices.Equal(got, []Location{at("a"), at("two:copy")}) {
			t.Errorf("stored locations are %v, want both in the configuration's order", got)
		}
		w.wantHealth(t, true)
		stop()

		// A place with another key pair is refused, and the rest works on.
		stop = w.start(t, listed(kms.ES256, "a", "two:copy", "two:other"))
		w.wantKey(t, kms.ES256, "a")
		w.wantHealth(t, true, "two:other", kms.ErrKeyMismatch.Error())
		if w.log.count("level=ERROR", "listed signing key refused") != 1 {
			t.Error("nobody was alarmed")
		}
		if r := w.ring(t, kms.ES256); len(r.Entries) != 1 || len(r.Entries[0].Locations) != 2 {
			t.Errorf("the ring was changed: %+v", r)
		}
		stop()

		// The second place serves when the first is down at start.
		w.hsm.set(func(h *hsm) { h.fail = kms.ErrUnavailable })
		w.start(t, listed(kms.ES256, "a", "two:copy"))
		w.wantKey(t, kms.ES256, "a")
		w.wantHealth(t, true, "hsm:a", kms.ErrUnavailable.Error())
		if w.log.count("level=WARN", "signing key cannot be opened", "location=hsm:a") != 1 || w.log.count("signing key open", "location=two:copy") == 0 {
			t.Error("the log does not tell which location signs and which does not")
		}
	})
}

func TestDifferentKeysInOneListedKeySeedNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a", "b"))
		w.wantKey(t, kms.ES256, "", ErrNotOpen, kms.ErrKeyMismatch)
		w.wantPublished(t)
		if w.store.written() != 0 {
			t.Error("the ring was written")
		}
	})
}

func TestOneKeyListedTwiceIsOneKeyWithTwoLocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.two.keys["copy"] = w.hsm.keys["a"]
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "two:copy"))
		r := w.ring(t, kms.ES256)
		if len(r.Entries) != 1 || len(r.Entries[0].Locations) != 2 {
			t.Errorf("ring is %+v, want one key with two locations", r)
		}
		w.wantPublished(t, "a")
	})
}

func TestOneKeyForTwoAlgorithmsIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.hsm.keys["e2"] = w.hsm.keys["e"] // the same pair by another name
		w.start(t, listed(kms.EdDSA, "e"), listed(kms.Ed25519, "e2"))
		wait(time.Minute)
		// Either may win the race to its ring; exactly one does.
		_, first := w.Key("main", kms.EdDSA)
		_, second := w.Key("main", kms.Ed25519)
		if (first == nil) == (second == nil) {
			t.Fatalf("Key = %v and %v, want one of the two refused", first, second)
		}
		if err := all(first, second); !errors.Is(err, ErrKeyShared) || !errors.Is(err, ErrNotOpen) {
			t.Errorf("the other is refused with %v, want ErrNotOpen and ErrKeyShared", err)
		}
		w.wantPublished(t, "e")
		if w.log.count("level=ERROR", "listed signing key refused") != 1 {
			t.Error("nobody was alarmed")
		}
	})
}

func TestAStoreThatIsDownFailsNoStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.down = true
		w.start(t, listed(kms.ES256, "a"))
		w.wantKey(t, kms.ES256, "", ErrNotOpen, ErrUnavailable)
		w.wantKey(t, kms.RS256, "", ErrNotOpen, ErrUnavailable) // it may be stored
		if _, err := w.PublicKeys("main"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("JWKS = %v, want ErrUnavailable: an empty set would be a lie", err)
		}
		if _, err := w.List("main"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("List = %v, want ErrUnavailable", err)
		}
		w.wantHealth(t, false, "store")
		if w.hsm.tally(func(h *hsm) *int { return &h.opened }) != 0 {
			t.Error("a key was opened to seed a ring that is not known")
		}
		w.store.setDown(false)
		wait(13 * time.Second)
		w.wantKey(t, kms.ES256, "a")
		w.wantPublished(t, "a")

		// Down again: everything goes on, and the age of the data shows.
		first, _ := w.PublicKeys("main")
		etag, before := first.ETag, first.AsOf
		w.store.setDown(true)
		wait(29 * time.Minute)
		w.wantKey(t, kms.ES256, "a")
		w.wantPublished(t, "a")
		w.wantHealth(t, true, "store")
		if set, _ := w.PublicKeys("main"); set.ETag != etag || time.Since(set.AsOf) < 28*time.Minute || set.AsOf.Before(before) {
			t.Errorf("etag %s as of %v, want %s of half an hour ago", set.ETag, set.AsOf, etag)
		}
		w.store.setDown(false)
		wait(13 * time.Second)
		w.wantHealth(t, true)
		if set, _ := w.PublicKeys("main"); time.Since(set.AsOf) > 13*time.Second {
			t.Errorf("as of %v, want just now", set.AsOf)
		}
	})
}

func TestReplicasThatSeedAtOnceAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		other := &world{store: newMemStore(), hsm: w.hsm, two: w.two, log: w.log}
		other.start(t, listed(kms.ES256, "b"), listed(kms.ES256, "a"))
		// The other replica, with its own order of keys, writes between our
		// reading and our writing.
		w.store.beforePut = func() { w.store.take(other.store) }
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		wait(5 * time.Second)
		for _, x := range []*world{w, other} {
			x.wantKey(t, kms.ES256, "b")
			x.wantPublished(t, "b", "a")
			x.wantHealth(t, true)
		}
		if n := len(w.ring(t, kms.ES256).Entries); n != 2 {
			t.Errorf("the ring has %d keys, want 2", n)
		}
	})
}

func TestProbesTellAndHeal(t *testing.T) {
	tests := []struct {
		name    string
		breakIt func(*hsm)
		skip    bool // SkipVerify
		healthy bool
		keeps   bool  // the key stays in use
		err     error // what Key wraps if not
		reason  string
	}{
		{name: "down", breakIt: func(h *hsm) { h.fail = kms.ErrUnavailable }, keeps: true, reason: kms.ErrUnavailable.Error()},
		{name: "hanging", breakIt: func(h *hsm) { h.hang = true }, keeps: true, reason: "no answer in time"},
		{name: "throttled", breakIt: func(h *hsm) { h.fail = kms.ErrThrottled }, keeps: true, healthy: true},
		{name: "unknown error", breakIt: func(h *hsm) { h.fail = errors.New("0x80000001") }, keeps: true, reason: "0x80000001"},
		{name: "key gone", breakIt: func(h *hsm) { h.fail = kms.ErrKeyNotFound }, err: kms.ErrKeyNotFound, reason: kms.ErrKeyNotFound.Error()},
		{name: "key disabled", breakIt: func(h *hsm) { h.fail = kms.ErrKeyDisabled }, err: kms.ErrKeyDisabled, reason: kms.ErrKeyDisabled.Error()},
		{name: "another key", breakIt: func(h *hsm) { h.fail = kms.ErrKeyMismatch }, err: kms.ErrKeyMismatch, reason: kms.ErrKeyMismatch.Error()},
		{name: "wrong signatures", breakIt: func(h *hsm) { h.spoil = true }, keeps: true, reason: signer.ErrFault.Error()},
		{name: "wrong signatures that nobody verifies", breakIt: func(h *hsm) { h.spoil = true }, skip: true, err: signer.ErrFault, reason: signer.ErrFault.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				key := listed(kms.ES256, "a")
				key.SkipVerify = tt.skip
				w.start(t, key)
				w.wantHealth(t, true)
				w.hsm.set(tt.breakIt)
				wait(16 * time.Second) // an interval, a timeout and a moment
				var reasons []string
				if tt.reason != "" {
					reasons = append(reasons, tt.reason)
				}
				w.wantHealth(t, tt.healthy, reasons...)
				if tt.keeps {
					w.wantKey(t, kms.ES256, "a")
				} else {
					w.wantKey(t, kms.ES256, "", ErrNotOpen, tt.err)
				}
				w.wantPublished(t, "a")
				if n := w.hsm.tally(func(h *hsm) *int { return &h.distrusted }); n == 0 && strings.Contains(tt.name, "wrong signatures") {
					t.Error("the key was not told of its wrong signature")
				}
				wait(10 * time.Minute)
				w.hsm.set(func(h *hsm) { h.fail, h.hang, h.spoil = nil, false, false })
				wait(45 * time.Second)
				w.wantHealth(t, true)
				w.wantKey(t, kms.ES256, "a")
			})
		})
	}
}

func TestOnlyProbesAreSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"))
		wait(time.Minute)
		seen := map[string]bool{}
		w.hsm.set(func(h *hsm) {
			if n := len(h.messages); n < 6 || n > 8 {
				t.Errorf("%d signatures in a minute, want one every 10 s", n)
			}
			for _, m := range h.messages {
				if !bytes.HasPrefix(m, []byte(kms.ProbePrefix)) || len(m) < len(kms.ProbePrefix)+22 || seen[string(m)] {
					t.Errorf("signed %q, want %s and something new and random", m, kms.ProbePrefix)
				}
				seen[string(m)] = true
			}
		})
	})
}

func TestAHangingBackendHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.two.hang = true
		w.start(t, listed(kms.ES256, "a"), listed(kms.RS256, "two:r"))
		w.wantKey(t, kms.ES256, "a")
		w.wantKey(t, kms.RS256, "", ErrNotOpen)
		wait(6 * time.Second)
		w.wantKey(t, kms.RS256, "", ErrNotOpen, kms.ErrUnavailable)
		w.wantHealth(t, true, "RS256", "two:r")
	})
}

func TestTamperedRingsAreNeitherUsedNorPublished(t *testing.T) {
	private, err := jose.JSONWebKey{Key: newPrivate(t, kms.ES256), KeyID: "x", Algorithm: "ES256", Use: "sig"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(e *Entry, other Entry){
		"public key of another": func(e *Entry, o Entry) { e.PublicJWK = o.PublicJWK },
		"kid of another":        func(e *Entry, o Entry) { e.KeyID = o.KeyID },
		"private JWK":           func(e *Entry, _ Entry) { e.PublicJWK = private },
		"no JWK":                func(e *Entry, _ Entry) { e.PublicJWK = nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.start(t, listed(kms.ES256, "a"), listed(kms.EdDSA, "e"))()
				jwk, err := signer.PublicJWK(w.hsm.keys["b"].Public(), kms.ES256)
				if err != nil {
					t.Fatal(err)
				}
				w.store.edit(t, kms.ES256, func(r *Ring) {
					change(&r.Entries[0], Entry{KeyID: w.hsm.kid(t, "b"), PublicJWK: jwk})
				})
				w.start(t, listed(kms.ES256, "a"), listed(kms.EdDSA, "e"))
				w.wantKey(t, kms.ES256, "", ErrNotOpen, kms.ErrKeyMismatch)
				w.wantPublished(t, "e")
				w.wantHealth(t, false, kms.ErrKeyMismatch.Error())
				wait(time.Minute)
				if n := w.log.count("level=ERROR", "stored signing key refused"); n != 1 {
					t.Errorf("the alarm was logged %d times, want once", n)
				}
			})
		})
	}
}

func TestStoredRingsOfUnknownMakeAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if _, err := w.store.PutRing(t.Context(), Ring{Issuer: "main", Algorithm: "ML-DSA-44", Entries: []Entry{{KeyID: "k"}}}, 0); err != nil {
			t.Fatal(err)
		}
		w.start(t, listed(kms.ES256, "a"))
		w.wantKey(t, kms.ES256, "a")
		w.wantKey(t, "ML-DSA-44", "", ErrNoKey)
		w.wantPublished(t, "a")
	})
}

func TestAKidInTwoStoredRingsServesOnlyTheOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.Ed25519, "e"))()
		wait(time.Hour)
		jwk, err := signer.PublicJWK(w.hsm.keys["e"].Public(), kms.EdDSA)
		if err != nil {
			t.Fatal(err)
		}
		entry := w.ring(t, kms.Ed25519).Entries[0]
		entry.PublicJWK, entry.PublishAt, entry.ActivateAt = jwk, time.Now(), time.Now()
		if _, err := w.store.PutRing(t.Context(), Ring{Issuer: "main", Algorithm: kms.EdDSA, Entries: []Entry{entry}}, 0); err != nil {
			t.Fatal(err)
		}
		w.start(t, listed(kms.Ed25519, "e"))
		w.wantKey(t, kms.Ed25519, "e")
		w.wantKey(t, kms.EdDSA, "", ErrNotOpen, ErrKeyShared)
		w.wantPublished(t, "e")
	})
}

func TestAskingForWhatIsNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(listed(kms.ES256, "a"), listed(kms.EdDSA, "e"))
		cfg.Issuers[0].DefaultAlgorithm = kms.EdDSA
		w.startConfig(t, cfg)
		w.wantKey(t, kms.RS256, "", ErrNoKey)
		w.wantKey(t, "none", "", ErrNoKey)
		if alg, err := w.Default("main"); err != nil || alg != kms.EdDSA {
			t.Errorf("Default = %s, %v, want EdDSA", alg, err)
		}
		_, keyErr := w.Key("other", kms.ES256)
		_, defaultErr := w.Default("other")
		_, jwksErr := w.PublicKeys("other")
		_, listErr := w.List("other")
		_, algErr := w.Algorithms("other")
		for _, err := range []error{keyErr, defaultErr, jwksErr, listErr, algErr} {
			if !errors.Is(err, ErrIssuerUnknown) {
				t.Errorf("error for an unknown issuer is %v, want ErrIssuerUnknown", err)
			}
		}
		if ok, reason := w.Healthy("other"); ok || reason == "" {
			t.Errorf("an unknown issuer is healthy: %v (%s)", ok, reason)
		}
		if err := w.Run(t.Context()); err == nil {
			t.Error("Run runs twice")
		}
		// A ring whose keys have all retired has no active one.
		w.store.edit(t, kms.ES256, func(r *Ring) { r.Entries[0].RetireAt = time.Now() })
		wait(10 * time.Second)
		w.wantKey(t, kms.ES256, "", ErrNoKey)
		w.wantPublished(t, "a", "e")
		// One that only has not begun yet does.
		w.store.edit(t, kms.EdDSA, func(r *Ring) { r.Entries[0].ActivateAt = time.Now().Add(15 * time.Second) })
		wait(10 * time.Second)
		w.wantKey(t, kms.EdDSA, "", ErrNotOpen)
		wait(5 * time.Second)
		w.wantKey(t, kms.EdDSA, "e")
	})
}

func TestTheHotPathAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		if n := testing.AllocsPerRun(1000, func() {
			if _, err := w.Key("main", kms.ES256); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("Key allocates %v times", n)
		}
	})
}

func TestWrongConfigurationsFailTheStart(t *testing.T) {
	w := newWorld(t)
	tests := []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"no store", func(c *Config) { c.Store = nil }, []string{"Store"}},
		{"no name", func(c *Config) { c.Issuers[0].Name = "" }, []string{"name of its own"}},
		{"a name twice", func(c *Config) { c.Issuers = append(c.Issuers, c.Issuers[0]) }, []string{"main", "name of its own"}},
		{"no keys", func(c *Config) { c.Issuers[0].Keys = nil }, []string{"main", "list at least one"}},
		{"no location", func(c *Config) { c.Issuers[0].Keys[0].Locations = nil }, []string{"ES256", "no location"}},
		{"unknown algorithm", func(c *Config) { c.Issuers[0].Keys[0].Algorithm = "HS256" }, []string{"HS256", "use one of"}},
		{"unknown backend", func(c *Config) { c.Issuers[0].Keys[0] = listed(kms.ES256, "cloud:a") }, []string{"cloud", "not configured"}},
		{"default without a key", func(c *Config) { c.Issuers[0].DefaultAlgorithm = kms.PS256 }, []string{"PS256", "default"}},
		{"a location twice", func(c *Config) { c.Issuers[0].Keys = append(c.Issuers[0].Keys, listed(kms.ES256, "a")) }, []string{"hsm:a", "twice"}},
		{"a location for two algorithms", func(c *Config) { c.Issuers[0].Keys = append(c.Issuers[0].Keys, listed(kms.ES384, "a")) }, []string{"hsm:a", "create a key for each"}},
		{"all at once", func(c *Config) {
			c.Store = nil
			c.Issuers[0].Keys[0] = listed("x", "cloud:a")
		}, []string{"Store", `"x"`, "cloud"}},
	}
	for _, tt := range tests {
		cfg := w.config(listed(kms.ES256, "a"))
		tt.change(&cfg)
		_, err := New(t.Context(), cfg)
		if err == nil {
			t.Errorf("%s: New accepts it", tt.name)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %q does not tell of %q", tt.name, err, want)
			}
		}
	}
}

func TestStateFollowsFromTheClock(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	hour := func(n int) time.Time { return t0.Add(time.Duration(n) * time.Hour) }
	full := Entry{PublishAt: hour(1), ActivateAt: hour(2), RetireAt: hour(3), RemoveAt: hour(4)}
	tests := []struct {
		name      string
		entry     Entry
		now       time.Time
		want      State
		published bool
	}{
		{"before all", full, hour(0), Next, false},
		{"published", full, hour(1), Next, true},
		{"a moment before activation", full, hour(2).Add(-1), Next, true},
		{"activated", full, hour(2), Active, true},
		{"retired from signing", full, hour(3), Retiring, true},
		{"removed", full, hour(4), Retired, false},
		{"nothing scheduled", Entry{}, hour(9), Next, false},
		{"never activated", Entry{PublishAt: hour(1)}, hour(9), Next, true},
		{"never retired", Entry{PublishAt: hour(1), ActivateAt: hour(2)}, hour(9), Active, true},
		{"dropped at once", Entry{PublishAt: hour(1), ActivateAt: hour(2), RemoveAt: hour(3)}, hour(3), Retired, false},
	}
	for _, tt := range tests {
		if got := tt.entry.State(tt.now); got != tt.want {
			t.Errorf("%s: State = %s, want %s", tt.name, got, tt.want)
		}
		if got := tt.entry.Published(tt.now); got != tt.published {
			t.Errorf("%s: Published = %v, want %v", tt.name, got, tt.published)
		}
	}
}

func TestOfSeveralActiveKeysTheLastActivatedSigns(t *testing.T) {
	for _, reversed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
			w.store.edit(t, kms.ES256, func(r *Ring) {
				r.Entries[1].ActivateAt = time.Now().Add(20 * time.Second)
				if reversed {
					slices.Reverse(r.Entries)
				}
			})
			wait(15 * time.Second)
			w.wantKey(t, kms.ES256, "a")
			wait(5 * time.Second)
			w.wantKey(t, kms.ES256, "b")
		})
	}
}

func BenchmarkKey(b *testing.B) {
	k := &Keyring{clock: time.Now, issuers: map[string]*issuer{"main": {}}}
	now := time.Now()
	k.issuers["main"].current.Store(&view{asOf: now, maxLag: time.Hour, rings: map[kms.Algorithm]*ringView{
		kms.ES256: {entries: []entryView{{Entry: Entry{ActivateAt: now}, key: &signer.SigningKey{}}}},
	}})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := k.Key("main", kms.ES256); err != nil {
				b.Fatal(err)
			}
		}
	})
}
