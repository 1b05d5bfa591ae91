package keyring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/local"
	"github.com/bulla-project/bulla/signer"
)

// The promise of the package comment, held against the worst that its bounds
// allow. Two replicas are asked in turn to rotate, as soon as the last change has
// happened, and sign with real keys; their clocks differ by all of skew. Whenever a change is written, the replica that did not
// write it has read the rings just before, and is then cut off from the store, up
// to the last moment at which it still publishes and signs, or longer.
//
// The verifier is every verifier that there can be: it fetches from both replicas
// at each moment that matters, a nanosecond before and after, keeps each set for
// all of max_age whatever the service says of it, and meets each token with each
// of the sets it has. Tokens are dated ahead as far as they may, and live as long
// as they may.
//
// The world counts what goes wrong, so that the test can show that it would see
// it: with times that are shorter than the formulas say.
type promiseWorld struct {
	t        *testing.T
	start    time.Time
	store    *memStore
	replicas []*replica
	writes   int       // changes of keys on record
	done     time.Time // when the last one has happened by all clocks
	over     time.Time // when it is over: the key before has left the set

	held    []*heldSet
	expires map[string]time.Time // of each kid, its last token's exp
	moments []time.Time          // at which to look, in order

	tokens, refused int
	kids            map[string]bool // that have signed
	unknown         int             // tokens that some set in a verifier's hands does not verify
	outlived        int             // sets that lack the key of a token that is still good
	unexplained     int             // refusals of a replica that was not cut off
}

// replica is one of the service, with its way to the store.
type replica struct {
	*Keyring
	*memStore
	world  *promiseWorld
	offset time.Duration // of its clock
	// Guarded by memStore.mu.
	cutFrom, cutUntil time.Time
}

// heldSet is a JWK Set in a verifier's hands.
type heldSet struct {
	set   jose.JSONWebKeySet
	from  *replica
	etag  string
	until time.Time
}

const (
	testSkew        = time.Minute
	testMaxAge      = 10 * time.Minute
	testMaxLag      = 15 * time.Minute
	testMaxLifetime = time.Hour
)

func (r *replica) now() time.Time { return time.Now().Add(r.offset) }

// cut reports whether the store cannot be reached.
func (r *replica) cut() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.cutUntil)
}

func (r *replica) Rings(ctx context.Context, issuer string) ([]*Ring, error) {
	if r.cut() {
		return nil, fmt.Errorf("%w: it is cut off", ErrUnavailable)
	}
	return r.memStore.Rings(ctx, issuer)
}

func (r *replica) PutRing(ctx context.Context, ring Ring, expect uint64) (*Ring, error) {
	w := r.world
	next := defaults.pending(ring.Entries, r.now())
	switch announces := ring.Intent == nil && next >= 0; {
	case r.cut():
		return nil, fmt.Errorf("%w: it is cut off", ErrUnavailable)
	case announces:
		other := w.replicas[(w.writes+1)%2]             // whose turn it is not
		_, _ = other.Rotate(ctx, "main", "none", false) // lets it read the rings
		w.look()
		other.mu.Lock()
		other.cutFrom = time.Now()
		other.cutUntil = other.cutFrom.Add([]time.Duration{2 * testMaxLag, 2*testMaxLag + time.Nanosecond, 3 * testMaxLag, testMaxLag}[w.writes%4])
		other.mu.Unlock()
		w.writes++
		w.done = ring.Entries[next].ActivateAt.Add(testSkew)
		w.over = w.done.Add(2 * testMaxLifetime)
		w.expect(ring, other.cutUntil)
	}
	return r.memStore.PutRing(ctx, ring, expect)
}

// expect notes the moments at which a change matters, by every clock.
func (w *promiseWorld) expect(ring Ring, more ...time.Time) {
	now := time.Now()
	times := append([]time.Time{now.Add(testMaxLag), now.Add(2 * testMaxLag), now.Add(2*testMaxLag + testMaxAge)}, more...)
	for _, e := range ring.Entries {
		for _, r := range w.replicas {
			for _, at := range []time.Time{e.PublishAt, e.ActivateAt, e.RetireAt, e.RemoveAt} {
				times = append(times, at.Add(-r.offset))
			}
		}
	}
	for _, at := range times {
		for _, exact := range []time.Time{at.Add(-1), at, at.Add(1)} {
			if exact.After(now) {
				w.moments = append(w.moments, exact)
			}
		}
	}
	slices.SortFunc(w.moments, time.Time.Compare)
}

// look fetches from all replicas, and notes what lacks the key of a good token.
func (w *promiseWorld) look() {
	now := time.Now()
	slowest := now.Add(-testSkew / 2) // a verifier's clock
	w.held = slices.DeleteFunc(w.held, func(h *heldSet) bool { return !now.Before(h.until) })
	for _, r := range w.replicas {
		got, err := r.PublicKeys("main")
		if err != nil {
			w.refusal(r, err)
			continue
		}
		i := slices.IndexFunc(w.held, func(h *heldSet) bool { return h.from == r && h.etag == got.ETag })
		if i < 0 {
			h := &heldSet{from: r, etag: got.ETag}
			if err := json.Unmarshal(got.JWKS, &h.set); err != nil {
				w.t.Error(err)
			}
			i = len(w.held)
			w.held = append(w.held, h)
		}
		h := w.held[i]
		h.until = now.Add(testMaxAge)
		for kid, exp := range w.expires {
			if exp.After(slowest) && len(h.set.Key(kid)) == 0 {
				w.outlived++
			}
		}
	}
}

// refusal is right only for a replica that has been cut off for long.
func (w *promiseWorld) refusal(r *replica, err error) {
	w.refused++
	r.mu.Lock()
	defer r.mu.Unlock()
	// It may take an interval to come back.
	if !errors.Is(err, ErrUnavailable) || time.Since(r.cutFrom) <= 2*testMaxLag || time.Now().After(r.cutUntil.Add(4*time.Minute)) {
		w.unexplained++
		w.t.Logf("%v into the test: %v", time.Since(w.start), err)
	}
}

// sign has a replica sign a token, and meets it with all sets in hand.
func (w *promiseWorld) sign(r *replica) {
	key, err := r.Key("main", kms.ES256)
	if err != nil {
		w.refusal(r, err)
		return
	}
	iat := r.now().Add(postdate).Unix()
	lifetime := testMaxLifetime
	p, err := signer.Prepare(signer.Request{
		Kind: signer.IDToken, ClientID: "app", Lifetime: &lifetime, Claims: fmt.Appendf(nil, `{"sub":"s","iat":%d}`, iat),
		Issuer: signer.Issuer{URL: "https://login.example.com", DefaultLifetime: testMaxLifetime, MaxLifetime: testMaxLifetime},
	}, kms.ES256, r.now())
	if err != nil {
		w.t.Fatal(err)
	}
	token, err := signer.Sign(w.t.Context(), key, p)
	if err != nil {
		w.t.Fatal(err)
	}
	w.tokens++
	w.kids[key.KeyID()] = true
	if p.ExpiresAt().After(w.expires[key.KeyID()]) {
		w.expires[key.KeyID()] = p.ExpiresAt()
	}
	jws, err := jose.ParseSignedCompact(string(token), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		w.t.Fatal(err)
	}
	for n, h := range w.held {
		if len(h.set.Key(key.KeyID())) == 0 {
			w.unknown++
			continue
		}
		if n > 0 {
			continue // one kid is one key, so one check tells of all
		}
		if _, err := jws.Verify(h.set); err != nil {
			w.t.Errorf("a token does not verify with a set that has its kid: %v", err)
		}
	}
}

// runPromise rotates so often and returns the world with what it saw.
func runPromise(t *testing.T, rotations int, shorten func(*terms)) *promiseWorld {
	w := &promiseWorld{t: t, start: time.Now(), store: newMemStore(), expires: map[string]time.Time{}, kids: map[string]bool{}}
	path := filepath.Join(t.TempDir(), "keys.json")
	if _, err := local.Create(path, kms.ES256, "first"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	for _, offset := range []time.Duration{testSkew / 2, -testSkew / 2} {
		backend, err := local.New(ctx, local.Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		r := &replica{memStore: w.store, world: w, offset: offset}
		w.replicas = append(w.replicas, r)
		r.Keyring, err = New(ctx, Config{
			Store: r, Backends: map[string]kms.Backend{"dev": backend}, Clock: r.now,
			Issuers: []Issuer{{
				Name: "main", JWKSMaxAge: testMaxAge, MaxLifetime: testMaxLifetime,
				Keys:     []Key{{Algorithm: kms.ES256, Locations: []Location{{"dev", "kid=first"}}, SkipVerify: true}},
				Rotation: Rotation{Create: true},
			}},
			MaxLag: testMaxLag, Skew: testSkew, ProbeInterval: time.Hour, ReloadInterval: 3 * time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		if shorten != nil {
			shorten(&r.issuers["main"].terms)
		}
	}
	for _, r := range w.replicas {
		go func() { done <- r.Run(ctx) }()
		time.Sleep(4 * time.Minute) // the first key of a ring signs at once, so nobody must have fetched before
	}
	for w.writes < rotations || time.Now().Before(w.over) {
		next := time.Now().Add(2 * time.Minute)
		for len(w.moments) > 0 && !w.moments[0].After(next) {
			next = w.moments[0]
			w.moments = w.moments[1:]
		}
		time.Sleep(time.Until(next))
		synctest.Wait()
		w.look()
		for _, r := range w.replicas {
			w.sign(r)
		}
		w.look()
		turn := w.replicas[w.writes%2]
		if w.writes < rotations && time.Now().After(w.done) && !turn.cut() {
			if _, err := turn.Rotate(ctx, "main", kms.ES256, false); err != nil {
				t.Error(err)
			}
		}
		if time.Since(w.start) > time.Duration(rotations+2)*2*time.Hour {
			t.Fatalf("%d rotations in %v, want %d", w.writes, time.Since(w.start), rotations)
		}
	}
	cancel()
	for range w.replicas {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return w
}

func TestNoTokenIsEverMetByAVerifierThatCannotKnowItsKey(t *testing.T) {
	tests := []struct {
		name      string
		rotations int
		shorten   func(*terms)
		// What the test has to see if times are shortened.
		unknown, outlived bool
	}{
		{name: "by the formulas", rotations: 50},
		{name: "lead without max_age", rotations: 4, shorten: func(t *terms) { t.maxAge = 0 }, unknown: true},
		{name: "all with half of max_lag", rotations: 4, shorten: func(t *terms) { t.maxLag /= 2 }, unknown: true, outlived: true},
		{name: "lead without skew", rotations: 4, shorten: func(t *terms) { t.skew = 0 }, unknown: true},
		{name: "remove_at without max_lag", rotations: 4, shorten: func(t *terms) { t.maxLifetime -= testMaxLag }, outlived: true},
		{name: "remove_at without max_lifetime", rotations: 4, shorten: func(t *terms) { t.maxLifetime = 0 }, outlived: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := runPromise(t, tt.rotations, tt.shorten)
				t.Logf("%d rotations in %v of its own time: %d keys signed %d tokens; %d tokens met a set without their key, %d sets lacked the key of a good token; %d refusals by replicas that were cut off, %d others",
					w.writes, time.Since(w.start), len(w.kids), w.tokens, w.unknown, w.outlived, w.refused, w.unexplained)
				if (w.unknown > 0) != tt.unknown || (w.outlived > 0) != tt.outlived {
					t.Errorf("unknown keys: %d, want some: %v; outlived keys: %d, want some: %v", w.unknown, tt.unknown, w.outlived, tt.outlived)
				}
				if tt.shorten == nil && (w.unexplained > 0 || len(w.kids) != tt.rotations+1 || w.refused == 0) {
					t.Errorf("%d keys signed, %d times a replica refused without need, %d with", len(w.kids), w.unexplained, w.refused)
				}
			})
		})
	}
}
