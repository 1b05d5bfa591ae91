package keyring

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// The formulas of the package comment with the defaults.
const (
	defaultLead   = 41 * time.Minute
	defaultNotice = 31*time.Minute + 5*time.Second
	defaultDrain  = 76 * time.Minute
)

// rotate asks for a rotation of main's ES256 key and wants it to be done.
func (w *world) rotate(t *testing.T, emergency bool) Rotated {
	t.Helper()
	got, err := w.Rotate(t.Context(), "main", kms.ES256, emergency)
	if err != nil {
		t.Fatalf("Rotate: %v", err)
	}
	return got
}

// wantTimes checks the stored times of a key of the ES256 ring, counted from
// start; -1 is none.
func (w *world) wantTimes(t *testing.T, ref string, start time.Time, publish, activate, retire, remove time.Duration) {
	t.Helper()
	kid := w.hsm.kid(t, ref)
	ring := w.ring(t, kms.ES256)
	n := slices.IndexFunc(ring.Entries, func(e Entry) bool { return e.KeyID == kid })
	if n < 0 {
		t.Errorf("%s is not in the ring", ref)
		return
	}
	e := ring.Entries[n]
	for _, x := range []struct {
		name string
		got  time.Time
		want time.Duration
	}{{"publish_at", e.PublishAt, publish}, {"activate_at", e.ActivateAt, activate}, {"retire_at", e.RetireAt, retire}, {"remove_at", e.RemoveAt, remove}} {
		want := time.Time{}
		if x.want != -1 {
			want = start.Add(x.want)
		}
		if !x.got.Equal(want) {
			t.Errorf("%s of %s is %v (%v from the start), want %v", x.name, ref, x.got, x.got.Sub(start), want)
		}
	}
}

func TestRotationTakesTheListedKeyThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.hsm.keys["c"] = newPrivate(t, kms.ES256)
		start := time.Now()
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"), listed(kms.ES256, "c"))
		got := w.rotate(t, false)
		if len(got.Keys) != 3 || got.Breaks != nil {
			t.Errorf("got %+v, want a ring of three keys and nothing broken", got)
		}
		if i := slices.IndexFunc(got.Keys, func(k KeyInfo) bool { return k.KeyID == w.hsm.kid(t, "b") }); i < 0 || got.Keys[i].State != Next || !got.Keys[i].ActivateAt.Equal(start.Add(defaultLead)) {
			t.Errorf("b is not scheduled in what Rotate returns: %+v", got.Keys)
		}
		w.wantTimes(t, "a", start, 0, 0, defaultLead, defaultLead+defaultDrain)
		w.wantTimes(t, "b", start, 0, defaultLead, -1, -1)
		w.wantTimes(t, "c", start, 0, -1, -1, -1)

		// Asking again changes nothing while that is pending.
		before := w.store.written()
		if again := w.rotate(t, false); len(again.Keys) != 3 || w.store.written() != before {
			t.Errorf("a second Rotate wrote the ring: %+v", again.Keys)
		}
		wait(defaultLead - time.Second)
		w.wantKey(t, kms.ES256, "a")
		wait(time.Second)
		w.wantKey(t, kms.ES256, "b")
		w.wantPublished(t, "a", "b", "c")
		wait(defaultDrain - time.Second)
		w.wantPublished(t, "a", "b", "c")
		wait(time.Second)
		w.wantPublished(t, "b", "c")

		// c is known to verifiers, so only the replicas have to learn.
		at := time.Since(start)
		w.rotate(t, false)
		w.wantTimes(t, "c", start, 0, at+defaultNotice, -1, -1)
		w.wantTimes(t, "b", start, 0, defaultLead, at+defaultNotice, at+defaultNotice+defaultDrain)
		wait(defaultNotice)
		w.wantKey(t, kms.ES256, "c")
		w.wantHealth(t, true)

		// Now none is left.
		_, err := w.Rotate(t.Context(), "main", kms.ES256, false)
		if !errors.Is(err, ErrNoNext) || !strings.Contains(err.Error(), "list one more ES256 key") {
			t.Errorf("Rotate without a key to take: %v, want ErrNoNext and advice", err)
		}
		if _, err := w.Rotate(t.Context(), "main", kms.ES256, true); !errors.Is(err, ErrNoNext) {
			t.Errorf("an emergency without a key to take: %v, want ErrNoNext", err)
		}
		w.wantKey(t, kms.ES256, "c")
		wait(time.Minute)
		w.wantHealth(t, true)
	})
}

func TestAnEmergencyReplacesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		start := time.Now()
		got := w.rotate(t, true)
		w.wantKey(t, kms.ES256, "b")
		w.wantPublished(t, "b")
		// Dated back, so that no clock is behind it.
		w.wantTimes(t, "a", start, 0, 0, -time.Minute, -time.Minute)
		w.wantTimes(t, "b", start, -time.Minute, -time.Minute, -1, -1)
		if text := strings.Join(got.Breaks, "\n"); len(got.Breaks) != 3 || !strings.Contains(text, "10m0s") || !strings.Contains(text, "1h0m0s") || !strings.Contains(text, "30m0s") || !strings.Contains(text, w.hsm.kid(t, "b")) {
			t.Errorf("what it breaks: %s", text)
		}
		if n := w.log.count("level=WARN", "replaced in an emergency"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		// The removed key is listed, and never comes back.
		wait(5 * time.Hour)
		w.wantPublished(t, "b")
		if _, err := w.Rotate(t.Context(), "main", kms.ES256, false); !errors.Is(err, ErrNoNext) {
			t.Errorf("Rotate = %v, want ErrNoNext: the removed key must not be taken", err)
		}
	})
}

func TestAnEmergencyWithAKeyThatVerifiersKnowBreaksLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		wait(defaultLead)
		if got := w.rotate(t, true); len(got.Breaks) != 2 {
			t.Errorf("what it breaks: %q, want nothing of the new key, which every verifier has", got.Breaks)
		}
	})
}

func TestAnEmergencyBringsForwardWhatIsPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.hsm.keys["c"] = newPrivate(t, kms.ES256)
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"), listed(kms.ES256, "c"))
		start := time.Now()
		w.rotate(t, false)
		wait(2 * time.Minute)
		at := time.Since(start) - time.Minute
		w.rotate(t, true)
		w.wantKey(t, kms.ES256, "b")
		w.wantPublished(t, "b", "c")
		w.wantTimes(t, "a", start, 0, 0, at, at)
		w.wantTimes(t, "b", start, 0, at, -1, -1)
		wait(2 * time.Hour)
		w.wantKey(t, kms.ES256, "b")
		w.wantPublished(t, "b", "c")
	})
}

// The good key must not leave the set for one that cannot sign.
func TestAnEmergencyPassesOverAPendingKeyThatDoesNotSign(t *testing.T) {
	for name, broken := range map[string]error{"Gone": kms.ErrKeyNotFound, "Down": kms.ErrUnavailable} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.hsm.keys["c"] = newPrivate(t, kms.ES256)
				w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"), listed(kms.ES256, "c"))
				w.rotate(t, false)
				wait(time.Minute)
				w.hsm.set(func(h *hsm) { h.failRef["b"] = broken })
				wait(20 * time.Second)
				w.rotate(t, true)
				w.wantKey(t, kms.ES256, "c")
				wait(5 * time.Hour)
				w.wantKey(t, kms.ES256, "c")
			})
		})
	}
}

// Any key that is still trusted may be the stolen one.
func TestAnEmergencyEndsKeysThatRetireToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.hsm.keys["c"] = newPrivate(t, kms.ES256)
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"), listed(kms.ES256, "c"))
		w.rotate(t, false)
		wait(defaultLead + time.Minute)
		w.wantKey(t, kms.ES256, "b")
		w.wantPublished(t, "a", "b", "c")
		w.rotate(t, true)
		w.wantKey(t, kms.ES256, "c")
		w.wantPublished(t, "c")
	})
}

// A key that stops signing leaves the set when its last token has expired, also
// one with the lifetime that is configured now.
func TestALongerLifetimeKeepsTheKeyPublishedLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		w.rotate(t, false)
		stop()
		cfg := w.config(listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		cfg.Issuers[0].MaxLifetime = 24 * time.Hour
		w.startConfig(t, cfg)
		wait(defaultLead + time.Minute)
		w.wantKey(t, kms.ES256, "b")
		wait(24 * time.Hour)
		w.wantPublished(t, "a", "b")
		wait(time.Hour)
		w.wantPublished(t, "b")
	})
}

// Verifiers hold what they were given with the longer max-age.
func TestAShorterMaxAgeCountsWhenTheLongerOneIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		cfg.Issuers[0].JWKSMaxAge = 24 * time.Hour
		stop := w.startConfig(t, cfg)
		wait(time.Minute)
		stop()
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		w.rotate(t, false)
		wait(23 * time.Hour)
		w.wantKey(t, kms.ES256, "a")
		wait(3 * time.Hour)
		w.wantKey(t, kms.ES256, "b")
	})
}

func TestKeysAreReplacedOnSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		start := time.Now()
		cfg := w.config(listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		cfg.Issuers[0].Rotation.Every = 10 * time.Hour
		cfg.ProbeInterval, cfg.ReloadInterval = 10*time.Minute, time.Minute
		w.startConfig(t, cfg)
		wait(10*time.Hour - defaultLead - time.Hour - time.Second)
		w.wantTimes(t, "a", start, 0, 0, -1, -1)
		wait(time.Minute)
		w.wantTimes(t, "b", start, 0, 10*time.Hour, -1, -1)
		wait(2 * time.Hour)
		w.wantKey(t, kms.ES256, "b")

		// b is due at 20 h, and there is none to follow.
		wait(11 * time.Hour)
		w.wantKey(t, kms.ES256, "b")
		w.wantHealth(t, true, "ES256: replacing the key", "list one more ES256 key")
		if n := w.log.count("level=WARN", "none to take its place"); n != 1 {
			t.Errorf("%d warnings of a missing key, want 1", n)
		}
		// Another replica, with a newer configuration, brings one.
		w.hsm.set(func(h *hsm) { h.keys["c"] = newPrivate(t, kms.ES256) })
		w.startConfig(t, func() Config {
			cfg := w.config(listed(kms.ES256, "b"), listed(kms.ES256, "c"))
			cfg.Issuers[0].Rotation.Every = 10 * time.Hour
			cfg.ProbeInterval, cfg.ReloadInterval = 10*time.Minute, time.Minute
			return cfg
		}())
		wait(time.Minute)
		w.wantHealth(t, true)
		wait(time.Hour)
		w.wantKey(t, kms.ES256, "c")
	})
}

func TestRotationsThatCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.two.fail = kms.ErrUnavailable
		stop := w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"), listed(kms.RS256, "two:r"), listed(kms.EdDSA, "e"))
		want := func(what string, issuer string, alg kms.Algorithm, want ...error) {
			t.Helper()
			_, err := w.Rotate(t.Context(), issuer, alg, false)
			for _, target := range want {
				if !errors.Is(err, target) {
					t.Errorf("%s: %v, want %v", what, err, target)
				}
			}
		}
		want("unknown issuer", "other", kms.ES256, ErrIssuerUnknown)
		want("unknown algorithm", "main", kms.PS256, ErrNoKey)
		want("no algorithm at all", "main", "none", ErrNoKey)
		want("a ring without keys", "main", kms.RS256, ErrNotOpen)
		want("nothing waits", "main", kms.EdDSA, ErrNoNext)

		w.hsm.set(func(h *hsm) { h.failRef["b"] = kms.ErrKeyDisabled })
		wait(20 * time.Second)
		want("what waits is disabled", "main", kms.ES256, ErrNoNext, kms.ErrKeyDisabled)
		w.hsm.set(func(h *hsm) { delete(h.failRef, "b") })
		wait(time.Minute)

		w.store.setDown(true)
		want("store down", "main", kms.ES256, ErrUnavailable)
		w.store.setDown(false)

		// It goes away between the reading and the writing.
		w.store.beforePut = func() { w.store.setDown(true) }
		want("store down in the middle", "main", kms.ES256, ErrUnavailable)
		w.store.setDown(false)
		wait(time.Minute)
		if n := w.ring(t, kms.ES256); defaults.pending(n.Entries, time.Now()) >= 0 {
			t.Errorf("what was answered with an error happened later: %+v", n.Entries)
		}
		w.wantHealth(t, true, "RS256")

		w.store.edit(t, kms.EdDSA, func(r *Ring) { r.Entries[0].RetireAt = time.Now() })
		want("no key is active", "main", kms.EdDSA, ErrNoKey)

		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.Rotate(canceled, "main", kms.EdDSA, false); err == nil {
			t.Error("Rotate with an ended context did something")
		}
		stop()
		want("stopped", "main", kms.ES256, ErrUnavailable)
	})
}

func TestRingsThatMayBeForgedAreNotRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		w.startConfig(t, cfg)()
		cfg.Store = unverified{w.store}
		cfg.Issuers[0].Rotation.Every = time.Hour
		cfg.ReloadInterval = time.Minute
		w.startConfig(t, cfg)
		written := w.store.written()
		_, err := w.Rotate(t.Context(), "main", kms.ES256, false)
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "could not authenticate") {
			t.Errorf("Rotate = %v, want ErrUnavailable that says why", err)
		}
		wait(3 * time.Hour)
		if w.store.written() != written {
			t.Error("the ring was written")
		}
	})
}

// unverified is a store that cannot authenticate anything.
type unverified struct{ *memStore }

func (s unverified) Rings(ctx context.Context, issuer string) ([]*Ring, error) {
	rings, err := s.memStore.Rings(ctx, issuer)
	for _, r := range rings {
		r.Unverified = true
	}
	return rings, err
}

func TestRotatingLosesNoRaceForTheRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
		// Another replica is faster, twice.
		w.store.beforePut = func() {
			w.store.edit(t, kms.ES256, func(r *Ring) { r.Entries[1].Locations = append(r.Entries[1].Locations, at("two:x")) })
			w.store.beforePut = func() {
				w.store.edit(t, kms.ES256, func(r *Ring) { r.Entries[1].Locations = r.Entries[1].Locations[:1] })
			}
		}
		w.rotate(t, false)
		if ring := w.ring(t, kms.ES256); defaults.pending(ring.Entries, time.Now()) != 1 || len(ring.Entries[1].Locations) != 1 {
			t.Errorf("ring is %+v, want the change and those of others", ring.Entries)
		}
		w.wantHealth(t, true)
	})
}

func TestAReplicaThatHearsNothingStopsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(t, listed(kms.ES256, "a"))
		stale := func(want bool) {
			t.Helper()
			if set, err := w.PublicKeys("main"); err != nil || set.Stale != want {
				t.Errorf("stale is %v, %v; want %v", set.Stale, err, want)
			}
		}
		asOf := time.Now()
		w.store.setDown(true)
		wait(15 * time.Minute)
		stale(false)
		w.wantKey(t, kms.ES256, "a")
		wait(time.Nanosecond)
		stale(true)
		w.wantHealth(t, true, "is down", "not to keep")
		wait(15*time.Minute - time.Nanosecond)
		if time.Since(asOf) != 30*time.Minute {
			t.Fatal("the test's clock is wrong")
		}
		stale(true)
		w.wantKey(t, kms.ES256, "a")
		wait(time.Nanosecond)
		w.wantKey(t, kms.ES256, "", ErrNotOpen, ErrUnavailable)
		if _, err := w.PublicKeys("main"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("PublicKeys = %v, want ErrUnavailable", err)
		}
		w.wantHealth(t, false, "30m0s")
		if _, err := w.List("main"); err != nil {
			t.Errorf("List = %v: operators still want to see", err)
		}
		w.store.setDown(false)
		wait(13 * time.Second)
		stale(false)
		w.wantKey(t, kms.ES256, "a")
		w.wantHealth(t, true)
	})
}

func TestTheAgeOfRingsSurvivesSleepAndSetClocks(t *testing.T) {
	now := time.Now()
	v := &view{asOf: now, maxLag: time.Minute}
	wall := now.Round(0) // no monotonic reading
	for name, at := range map[string]time.Time{"by the monotonic clock": now.Add(3 * time.Minute), "by the wall clock alone": wall.Add(3 * time.Minute)} {
		if v.outdated(at) == nil || !v.stale(at) {
			t.Errorf("%s: an age of 3 minutes is not seen", name)
		}
	}
	if v.outdated(now.Add(2*time.Minute)) != nil || v.stale(now.Add(time.Minute)) {
		t.Error("used for too short")
	}
}

func TestWhatIsReadLateIsNoYounger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(listed(kms.ES256, "a"))
		cfg.Store = slowStore{w.store}
		w.startConfig(t, cfg)
		wait(3 * time.Second)
		if set, err := w.PublicKeys("main"); err != nil || time.Since(set.AsOf) < 3*time.Second {
			t.Errorf("as of %v, %v; want the time before the store was asked", set.AsOf, err)
		}
	})
}

// slowStore answers with what it had when it was asked.
type slowStore struct{ *memStore }

func (s slowStore) Rings(ctx context.Context, issuer string) ([]*Ring, error) {
	rings, err := s.memStore.Rings(ctx, issuer)
	time.Sleep(2 * time.Second)
	return rings, err
}

func TestReloadingKeepsUpWithAShortLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := w.config(listed(kms.ES256, "a"))
		cfg.MaxLag = time.Second
		w.startConfig(t, cfg)
		for range 50 {
			wait(70 * time.Millisecond)
			if set, err := w.PublicKeys("main"); err != nil || set.Stale {
				t.Fatalf("stale %v, %v with a store that is up", set.Stale, err)
			}
		}
	})
}

func TestSchedulesAndDurationsThatCannotBeFailTheStart(t *testing.T) {
	w := newWorld(t)
	m := newMaker(t, w.hsm)
	tests := []struct {
		name   string
		change func(*Config)
		want   string // empty if it is right
	}{
		{"as often as can be", func(c *Config) { c.Issuers[0].Rotation.Every = defaultLead }, ""},
		{"too often", func(c *Config) { c.Issuers[0].Rotation.Every = defaultLead - 1 }, "has to be published for 41m0s"},
		{"a negative schedule", func(c *Config) { c.Issuers[0].Rotation.Every = -1 }, "cannot be replaced"},
		{"a lease too short", func(c *Config) { c.Lease = time.Minute }, "too short"},
		{"create", func(c *Config) { c.Issuers[0].Rotation.Create = true; c.Backends["hsm"] = m }, ""},
		{"create without a creator", func(c *Config) { c.Issuers[0].Rotation.Create = true }, "hsm:a: its backend cannot create keys"},
		{"create in several places", func(c *Config) {
			c.Issuers[0].Rotation.Create = true
			c.Backends["hsm"] = m
			c.Issuers[0].Keys = []Key{listed(kms.ES256, "a", "b")}
		}, "in one only"},
	}
	for _, tt := range tests {
		cfg := w.config(listed(kms.ES256, "a"))
		tt.change(&cfg)
		_, err := New(t.Context(), cfg)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want an error that tells of %q", tt.name, err, tt.want)
		}
	}
}
