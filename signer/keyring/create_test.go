package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// creating is a configuration whose rotation makes keys in m.
func (w *world) creating(m *maker, keys ...Key) Config {
	cfg := w.config(keys...)
	cfg.Backends["hsm"] = m
	cfg.Issuers[0].Rotation.Create = true
	return cfg
}

// another is a replica of the same service.
func (w *world) another() *world {
	return &world{store: w.store, hsm: w.hsm, two: w.two, log: &logBook{}}
}

// wantMade checks that exactly n keys were made, that all of them are in the
// ring, and that nothing is under way. It returns their references.
func (w *world) wantMade(t *testing.T, m *maker, alg kms.Algorithm, n int) []string {
	t.Helper()
	refs, ring := m.made(), w.ring(t, alg)
	if len(refs) != n {
		t.Fatalf("%d keys were made, want %d", len(refs), n)
	}
	if ring.Intent != nil {
		t.Errorf("an intent is left: %+v", ring.Intent)
	}
	for _, ref := range refs {
		if !slices.ContainsFunc(ring.Entries, func(e Entry) bool {
			return slices.Contains(e.Locations, at(ref)) && e.Tag == m.tags[ref] && e.KeyID == w.hsm.kid(t, ref)
		}) {
			t.Errorf("%s was made and is not in the ring", ref)
		}
	}
	for i, e := range ring.Entries {
		if slices.ContainsFunc(ring.Entries[:i], func(o Entry) bool { return o.KeyID == e.KeyID }) {
			t.Errorf("%s is twice in the ring", e.KeyID)
		}
	}
	return refs
}

func TestRotationMakesAKeyLikeTheActiveOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		w.hsm.keys["r"] = newPrivate(t, kms.PS256)
		start := time.Now()
		cfg := w.creating(m, listed(kms.ES256, "a"), listed(kms.PS256, "r"))
		cfg.Issuers[0].Keys[0].SkipVerify = true
		stop := w.startConfig(t, cfg)
		got := w.rotate(t, false)
		refs := w.wantMade(t, m, kms.ES256, 1)
		w.wantTimes(t, "a", start, 0, 0, defaultLead, defaultLead+defaultDrain)
		w.wantTimes(t, refs[0], start, 0, defaultLead, -1, -1)
		if len(got.Keys) != 2 || got.Keys[1].State != Next || !got.Keys[1].Open || !strings.HasPrefix(got.Keys[1].Tag, "bulla-main-es256-") {
			t.Errorf("Rotate returned %+v, want the new key as next, open and tagged", got.Keys)
		}
		if w.rotate(t, false); len(m.made()) != 1 {
			t.Error("a second Rotate made a second key")
		}
		wait(defaultLead)
		w.wantKey(t, kms.ES256, refs[0])
		w.wantPublished(t, "r", "a", refs[0])
		wait(time.Minute)
		w.wantHealth(t, true)
		if n := w.log.count("not listed in the configuration"); n != 0 {
			t.Errorf("a created key was reported as not listed %d times", n)
		}
		if _, err := w.Rotate(t.Context(), "main", kms.PS256, false); err != nil {
			t.Error(err)
		}
		if want := []kms.KeySpec{{Algorithm: kms.ES256}, {Algorithm: kms.PS256, RSABits: 2048}}; !slices.Equal(m.specs, want) {
			t.Errorf("asked for %+v, want %+v", m.specs, want)
		}
		stop()
		for id, s := range w.issuers["main"].slots {
			if id.alg == kms.ES256 && !s.skipVerify {
				t.Errorf("%s verifies what the configuration says not to", id.keyID)
			}
		}
	})
}

func TestAnEmergencyMakesAKeyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		if got := w.rotate(t, true); len(got.Breaks) != 3 {
			t.Errorf("what it breaks: %q", got.Breaks)
		}
		refs := w.wantMade(t, m, kms.ES256, 1)
		w.wantKey(t, kms.ES256, refs[0])
		w.wantPublished(t, refs[0])
		// Each emergency makes one.
		w.rotate(t, true)
		w.wantMade(t, m, kms.ES256, 2)
		wait(time.Minute)
		w.wantHealth(t, true)
	})
}

func TestAListedKeyThatWaitsIsTakenBeforeOneIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		start := time.Now()
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a"), listed(kms.ES256, "b")))
		w.rotate(t, false)
		w.wantTimes(t, "b", start, 0, defaultLead, -1, -1)
		w.wantMade(t, m, kms.ES256, 0)
	})
}

func TestKeysAreMadeOnSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		cfg := w.creating(m, listed(kms.ES256, "a"))
		cfg.Issuers[0].Rotation.Every = 10 * time.Hour
		cfg.ProbeInterval, cfg.ReloadInterval = 10*time.Minute, time.Minute
		start := time.Now()
		w.startConfig(t, cfg)
		other := w.another()
		other.startConfig(t, cfg)
		for n := 1; n <= 4; n++ {
			wait(time.Until(start.Add(time.Duration(n)*10*time.Hour - time.Second)))
			refs := w.wantMade(t, m, kms.ES256, n)
			if n > 1 {
				w.wantKey(t, kms.ES256, refs[n-2])
			}
			wait(time.Second)
			for _, replica := range []*world{w, other} {
				replica.wantKey(t, kms.ES256, refs[n-1])
				replica.wantHealth(t, true)
			}
		}
	})
}

func TestReplicasThatRotateAtOnceMakeOneKey(t *testing.T) {
	for round := range 24 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			m := newMaker(t, w.hsm)
			m.slow = time.Duration(round) * 700 * time.Millisecond
			replicas := []*world{w, w.another(), w.another()}
			for _, r := range replicas {
				cfg := r.creating(m, listed(kms.ES256, "a"))
				cfg.ProbeInterval = 10 * time.Minute
				r.startConfig(t, cfg)
				wait(time.Duration(round*37%10) * time.Second / 10)
			}
			wait(20 * time.Second)
			errs := make(chan error)
			for n, r := range replicas {
				go func() {
					time.Sleep(time.Duration(n*round) * 100 * time.Millisecond)
					_, err := r.Rotate(t.Context(), "main", kms.ES256, round%3 == 2 && n == 1)
					errs <- err
				}()
			}
			for range replicas {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			refs := w.wantMade(t, m, kms.ES256, 1)
			wait(20 * time.Second)
			for _, r := range replicas {
				r.wantHealth(t, true)
				if list, err := r.List("main"); err != nil || len(list) != 2 || list[1].KeyID != w.hsm.kid(t, refs[0]) || !list[1].Open {
					t.Errorf("a replica has the ring %+v, %v", list, err)
				}
			}
		})
	}
}

func TestAnEmergencyHurriesWhatAnotherReplicaMakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		m.slow = 30 * time.Second
		other := w.another()
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		other.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		wait(time.Second)
		done := make(chan Rotated)
		go func() { done <- w.rotate(t, false) }()
		wait(5 * time.Second)
		got := other.rotate(t, true)
		<-done
		if len(got.Breaks) == 0 {
			t.Error("nobody was told what it breaks")
		}
		wait(10 * time.Second) // the one that did not make it learns
		refs := w.wantMade(t, m, kms.ES256, 1)
		for _, r := range []*world{w, other} {
			r.wantKey(t, kms.ES256, refs[0])
			r.wantPublished(t, refs[0])
		}
	})
}

func TestAKeyThatWasMadeWithAnErrorIsAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		m.silent = fmt.Errorf("%w: the connection broke", kms.ErrUnavailable)
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		w.rotate(t, false)
		w.wantMade(t, m, kms.ES256, 1)
		if len(m.specs) != 1 {
			t.Errorf("CreateKey was called %d times, want once: the key was there", len(m.specs))
		}
		wait(time.Minute)
		w.wantHealth(t, true)
	})
}

func TestABackendThatIsDownIsWaitedFor(t *testing.T) {
	for name, fail := range map[string]func(h *hsm, err error){
		"altogether":      func(h *hsm, err error) { h.fail = err },
		"for the new key": func(h *hsm, err error) { h.failRef["made-0"] = err },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := newMaker(t, w.hsm)
				w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
				w.hsm.set(func(h *hsm) { fail(h, kms.ErrUnavailable) })
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
				defer cancel()
				_, err := w.Rotate(ctx, "main", kms.ES256, false)
				if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kms.ErrUnavailable) || !strings.Contains(err.Error(), "goes on") {
					t.Errorf("Rotate = %v, want that it goes on, and what is wrong", err)
				}
				w.wantKey(t, kms.ES256, "a")
				if ok, reason := w.Healthy("main"); !strings.Contains(reason, "replacing the key") || name != "altogether" && !ok {
					t.Errorf("Healthy = %v, %q", ok, reason)
				}
				wait(time.Hour)
				if n := w.log.count("does not get on"); n != 1 {
					t.Errorf("the lasting failure was logged %d times, want once", n)
				}
				done := make(chan Rotated)
				go func() { done <- w.rotate(t, false) }()
				wait(time.Minute)
				w.hsm.set(func(h *hsm) { fail(h, nil) })
				if got := <-done; len(got.Keys) != 2 {
					t.Errorf("got %+v", got.Keys)
				}
				w.wantMade(t, m, kms.ES256, 1)
				wait(time.Minute)
				w.wantHealth(t, true)
			})
		})
	}
}

func TestWhatABackendRefusesIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		m.refuse = fmt.Errorf("%w: kms:CreateKey is not allowed", kms.ErrKeyDisabled)
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		_, err := w.Rotate(t.Context(), "main", kms.ES256, false)
		if !errors.Is(err, kms.ErrKeyDisabled) || !strings.Contains(err.Error(), "kms:CreateKey is not allowed") {
			t.Errorf("Rotate = %v, want what the backend said", err)
		}
		w.wantHealth(t, true, "kms:CreateKey is not allowed")
		m.set(func(*hsm) { m.refuse = nil })
		wait(time.Minute)
		w.wantMade(t, m, kms.ES256, 1)
		w.wantHealth(t, true)
	})
}

func TestAKeyWhoseBackendCannotMakeAnotherIsToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		w.two.keys["x"] = newPrivate(t, kms.ES256)
		w.start(t, listed(kms.ES256, "two:x"))() // seeds the ring with a key of another backend
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		w.store.edit(t, kms.ES256, func(r *Ring) { r.Entries = r.Entries[:1] })
		w.hsm.set(func(h *hsm) { h.failRef["a"] = kms.ErrUnavailable })
		_, err := w.Rotate(t.Context(), "main", kms.ES256, false)
		if err == nil || !strings.Contains(err.Error(), `backend "two"`) || !strings.Contains(err.Error(), "cannot create keys") {
			t.Errorf("Rotate = %v, want that the backend cannot create keys", err)
		}
		if w.ring(t, kms.ES256).Intent != nil {
			t.Error("a key was ordered all the same")
		}
	})
}

func TestTheStoreGoingAwayInTheMiddleLosesNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		m.slow = time.Second
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		done := make(chan error)
		go func() {
			_, err := w.Rotate(t.Context(), "main", kms.ES256, false)
			done <- err
		}()
		wait(500 * time.Millisecond) // the intent is stored, the key is being made
		w.store.setDown(true)
		if err := <-done; !errors.Is(err, ErrUnavailable) {
			t.Errorf("Rotate = %v, want ErrUnavailable", err)
		}
		wait(10 * time.Minute)
		w.store.setDown(false)
		wait(time.Minute)
		w.wantMade(t, m, kms.ES256, 1)
		w.wantHealth(t, true)
		if w.rotate(t, false); len(m.made()) != 1 {
			t.Error("the next Rotate made a second key")
		}
	})
}

func TestAnUnfinishedKeyIsTakenOver(t *testing.T) {
	tests := []struct {
		name      string
		stopAfter time.Duration // of creating, which takes a second
		emergency bool
	}{
		{"before it was made", 100 * time.Millisecond, false},
		{"after it was made", 1500 * time.Millisecond, false},
		{"in an emergency", 1500 * time.Millisecond, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := newMaker(t, w.hsm)
				m.slow = time.Second
				stop := w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
				go func() { _, _ = w.Rotate(t.Context(), "main", kms.ES256, tt.emergency) }()
				wait(50 * time.Millisecond)
				w.hsm.set(func(h *hsm) { h.failRef["made-0"] = kms.ErrUnavailable }) // it gets no further than creating
				wait(tt.stopAfter)
				stop()
				w.hsm.set(func(h *hsm) { delete(h.failRef, "made-0") })
				if in := w.ring(t, kms.ES256).Intent; in == nil || in.Emergency != tt.emergency {
					t.Fatalf("the intent is %+v", in)
				}
				other := w.another()
				other.startConfig(t, other.creating(m, listed(kms.ES256, "a")))
				wait(2 * time.Minute)
				if w.ring(t, kms.ES256).Intent == nil {
					t.Error("taken over from somebody who may be alive")
				}
				wait(90 * time.Second)
				refs := other.wantMade(t, m, kms.ES256, 1)
				if n := other.log.count("taken over"); n != 1 {
					t.Errorf("logged %d times", n)
				}
				other.wantHealth(t, true)
				if tt.emergency {
					other.wantKey(t, kms.ES256, refs[0])
					other.wantPublished(t, refs[0])
				} else {
					wait(defaultLead)
					other.wantKey(t, kms.ES256, refs[0])
				}
			})
		})
	}
}

// A replica that was stopped between two steps must not create when its claim
// has ended, even if nobody has noticed.
func TestNobodyCreatesUnderAClaimThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		cfg := w.creating(m, listed(kms.ES256, "a"))
		cfg.Timeout = 29 * time.Second
		w.startConfig(t, cfg)
		i := w.issuers["main"]
		in := Intent{Tag: "bulla-test", Backend: "hsm", ClaimedAt: time.Now()}
		until := i.createUntil(in)
		wait(61 * time.Second)
		if _, err := i.findOrCreate(t.Context(), in, kms.ES256, time.Time{}, until); !errors.Is(err, errClaimEnds) || len(m.made()) != 0 {
			t.Errorf("%v, %d keys made; want errClaimEnds and none", err, len(m.made()))
		}
	})
}

func TestAKeyThatComesLateIsReportedAsAnOrphan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		m.slow = 2 * time.Minute // longer than CreateKey and FindKeys are waited for
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		done := make(chan Rotated)
		go func() { done <- w.rotate(t, false) }()
		wait(61 * time.Second)
		m.set(func(*hsm) { m.slow = 0 })
		<-done
		ring := w.ring(t, kms.ES256)
		if len(ring.Entries) != 2 || ring.Intent != nil {
			t.Fatalf("the ring is %+v, want one new key", ring)
		}
		wait(5 * time.Minute)
		if len(m.made()) != 2 {
			t.Fatalf("%d keys were made, want the one and the late one", len(m.made()))
		}
		var late string
		for _, ref := range m.made() {
			if !slices.Contains(ring.Entries[1].Locations, at(ref)) {
				late = ref
			}
		}
		orphans, err := w.Orphans("main")
		if err != nil || len(orphans) != 1 || orphans[0].Location != at(late) || orphans[0].Tag != ring.Entries[1].Tag || orphans[0].Algorithm != kms.ES256 {
			t.Errorf("orphans are %+v, %v; want %s", orphans, err, late)
		}
		w.wantHealth(t, true, late, ring.Entries[1].Tag, "delete it")
		if n := w.log.count("level=WARN", "in none", late); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}

		// A start finds it too, and that it has been deleted.
		other := w.another()
		other.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		other.wantHealth(t, true, late)
		m.set(func(h *hsm) { delete(h.keys, late); delete(m.tags, late) })
		other = w.another()
		other.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		other.wantHealth(t, true)
		if _, err := w.Orphans("other"); !errors.Is(err, ErrIssuerUnknown) {
			t.Errorf("Orphans of an unknown issuer: %v", err)
		}
	})
}

func TestOfTwoKeysOfATagOneIsTakenAndOneReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))()
		const tag = "bulla-main-es256-abc"
		m.add(kms.ES256, tag)
		m.add(kms.ES256, tag)
		w.hsm.failRef["made-0"] = kms.ErrKeyDisabled // the first cannot be used
		w.store.edit(t, kms.ES256, func(r *Ring) {
			r.Intent = &Intent{Tag: tag, Backend: "hsm", Owner: "gone", ClaimedAt: time.Now().Add(-time.Hour)}
		})
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		wait(time.Second)
		ring := w.ring(t, kms.ES256)
		if len(ring.Entries) != 2 || ring.Entries[1].KeyID != w.hsm.kid(t, "made-1") || ring.Intent != nil {
			t.Errorf("the ring is %+v, want made-1 in it", ring)
		}
		w.wantHealth(t, true, "made-0", "delete it")
		if len(m.specs) != 0 {
			t.Error("a third was made")
		}
	})
}

func TestAnUnfinishedKeyOfARotationThatCreatesNoMore(t *testing.T) {
	for name, made := range map[string]bool{"made": true, "not made": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := newMaker(t, w.hsm)
				cfg := w.creating(m, listed(kms.ES256, "a"))
				w.startConfig(t, cfg)()
				const tag = "bulla-main-es256-abc"
				n := 0
				if made {
					m.add(kms.ES256, tag)
					n = 1
				}
				w.store.edit(t, kms.ES256, func(r *Ring) {
					r.Intent = &Intent{Tag: tag, Backend: "hsm", Owner: "gone", ClaimedAt: time.Now()}
				})
				cfg.Issuers[0].Rotation.Create = false
				w.startConfig(t, cfg)
				wait(4 * time.Minute)
				w.wantMade(t, m, kms.ES256, n)
				if !made && w.log.count("level=WARN", "given up", tag) != 1 {
					t.Error("nobody was told of the tag")
				}
				w.wantHealth(t, true)
			})
		})
	}
}

func TestAnUnfinishedKeyOfABackendThatHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))()
		w.store.edit(t, kms.ES256, func(r *Ring) {
			r.Intent = &Intent{Tag: "bulla-main-es256-abc", Backend: "cloud", Owner: "gone", ClaimedAt: time.Now()}
		})
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		wait(4 * time.Minute)
		if w.ring(t, kms.ES256).Intent != nil || w.log.count("level=WARN", "given up", "cloud", "bulla-main-es256-abc") != 1 {
			t.Error("the intent is left, or nobody was told")
		}
		w.rotate(t, false)
		w.wantMade(t, m, kms.ES256, 1)
	})
}

func TestAKeyThatJoinsLeavesTheIntentAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		m.slow = 30 * time.Second
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		done := make(chan Rotated)
		go func() { done <- w.rotate(t, false) }()
		wait(time.Second)
		other := w.another()
		other.startConfig(t, w.creating(m, listed(kms.ES256, "a"), listed(kms.ES256, "b")))
		if ring := w.ring(t, kms.ES256); ring.Intent == nil || len(ring.Entries) != 2 {
			t.Errorf("the ring is %+v, want b in it and the intent as it was", ring)
		}
		<-done
		w.wantMade(t, m, kms.ES256, 1)
	})
}

func TestTagsFitEveryBackend(t *testing.T) {
	seen := map[string]bool{}
	for _, issuer := range []string{"main", "", strings.Repeat("a-very-long-name-", 10), "Ä/b c\n", "UPPER.lower_1"} {
		for _, alg := range kms.Algorithms() {
			tag := newTag(issuer, alg)
			if err := kms.CheckTag(tag); err != nil || seen[tag] || len(tag) > 56 {
				t.Errorf("tag %q of issuer %q: %v", tag, issuer, err)
			}
			seen[tag] = true
		}
	}
}
