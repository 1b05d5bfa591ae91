package keycache

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// A set is in use to the very end of MaxStale after its freshness, flagged, and
// not a moment longer.
func TestRuleStaleSetIsInUseToTheEndOfTheBound(t *testing.T) {
	for _, tc := range []struct{ fresh, maxStale time.Duration }{
		{10 * time.Minute, 24 * time.Hour}, {time.Hour, time.Hour}, {24 * time.Hour, time.Minute},
	} {
		t.Run(fmt.Sprint(tc.fresh, " and ", tc.maxStale), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.hosts.serve(uri, fresh(set("k1"), tc.fresh))
				w.register(withURI("app", uri))
				w.mustUse("app")
				w.hosts.serve(uri, down)
				w.mustBeFreshFor("app", tc.fresh)

				end := w.mustUse("app").FetchedAt.Add(tc.fresh + tc.maxStale)
				if got := w.status("app"); got.State != Stale || !got.ExpiresAt.Equal(end) {
					t.Errorf("got state %v until %v, want Stale until %v", got.State, got.ExpiresAt, end)
				}
				w.sleep(time.Until(end))
				if r := w.mustUse("app"); !r.Stale || kid(r) != "k1" {
					t.Errorf("got key %s, stale %v; want k1, stale", kid(r), r.Stale)
				}
				w.sleep(1)
				w.mustRefuse("app", ErrExpired)
				if got := w.status("app"); got.State != Expired || !got.Since.Equal(end) {
					t.Errorf("got state %v since %v, want Expired since %v", got.State, got.Since, end)
				}
			}, func(c *Config) { c.Policy.MaxStale = tc.maxStale })
		})
	}
}

// What is served for as long as the bound allows is not read from memory only.
func TestRuleRestartNeitherLengthensNorShortensTheBound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		end := w.mustUse("app").FetchedAt.Add(10*time.Minute + day)
		w.hosts.serve(uri, down)
		for range 5 {
			w.sleep(time.Until(end) / 2)
			w.restart()
			w.mustUse("app")
		}
		w.sleep(time.Until(end))
		w.restart()
		w.mustUse("app")
		w.sleep(1)
		w.restart()
		w.mustRefuse("app", ErrExpired)
	})
}

// The pauses double from 5 s to 5 min, each with up to a quarter added at random,
// and begin anew after a success.
func TestRulePausesAfterFailuresDouble(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		doc := set("k1")
		w.hosts.serve(uri, fresh(doc, 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		for round := range 2 {
			w.hosts.serve(uri, down)
			var next time.Time // when the next attempt is to be
			want := 5 * time.Second
			for failures := range 10 {
				before := w.hosts.count(uri)
				for w.hosts.count(uri) == before {
					w.sleep(100 * time.Millisecond)
				}
				tried := w.hosts.times(uri)[before]
				if late := tried.Sub(next); failures > 0 && (late < 0 || late > time.Second) {
					t.Fatalf("round %d, failure %d: tried %v after the end of the pause", round, failures, late)
				}
				stored, _ := w.store.stored(uri)
				if pause := stored.NextAttempt.Sub(tried); pause < want || pause > want+want/4 {
					t.Fatalf("round %d, failure %d: a pause of %v, want %v to %v", round, failures, pause, want, want+want/4)
				}
				if s := w.status("app"); !s.NextRefreshAt.Equal(stored.NextAttempt) {
					t.Fatalf("the status has the next attempt at %v, want %v", s.NextRefreshAt, stored.NextAttempt)
				}
				next, want = stored.NextAttempt, min(2*want, 5*time.Minute)
			}
			w.hosts.serve(uri, fresh(doc, 10*time.Minute))
			w.sleep(7 * time.Minute)
			if r := w.mustUse("app"); r.Stale {
				t.Fatal("not refreshed after the host had come back")
			}
		}
	})
}

// A pause is the host's, not the process's.
func TestRulePauseHoldsAcrossARestart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(withURI("app", uri)) // no host answers
		for range 8 {
			w.mustRefuse("app", ErrUnavailable)
			w.sleep(7 * time.Minute)
		}
		// Within a pause of five minutes, a look does not make a fetch.
		n := w.hosts.count(uri)
		for w.hosts.count(uri) == n {
			w.sleep(time.Second)
		}
		n = w.hosts.count(uri)
		stored, _ := w.store.stored(uri)
		w.restart()
		for time.Until(stored.NextAttempt) > time.Second {
			var f *FetchError
			if err := w.mustRefuse("app", ErrUnavailable); !errors.As(err, &f) || f.RetryAfter != time.Until(stored.NextAttempt) {
				t.Fatalf("got %#v, want what is left of the pause: %v", f, time.Until(stored.NextAttempt))
			}
			w.sleep(time.Second)
		}
		if got := w.hosts.count(uri) - n; got != 0 {
			t.Errorf("%d fetches within the pause", got)
		}
		w.sleep(2 * time.Second)
		if w.hosts.count(uri) == n {
			t.Error("not tried after the pause")
		}
	})
}

// After a restart a client is warm by one read of each, and no fetch.
func TestRuleRestartTakesOneReadAndNoFetch(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), time.Hour))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, hangs)
		w.sleep(10 * time.Minute)
		w.restart()
		reads, sets, _ := w.store.counts()
		for range 1000 {
			if r := w.mustUse("app"); kid(r) != "k1" || r.Stale {
				t.Fatalf("got key %s, stale %v; want k1, fresh", kid(r), r.Stale)
			}
		}
		reads2, sets2, _ := w.store.counts()
		if reads2-reads != 1 || sets2-sets != 1 || w.hosts.count(uri) != 1 {
			t.Errorf("%d reads of the client, %d of the set, %d fetches; want 1, 1 and the first one", reads2-reads, sets2-sets, w.hosts.count(uri))
		}
	})
}

// From the moment that a fetch has brought a set without the key, nobody gets a
// token under it: not by memory, not by a restart, not while the host is down.
func TestRuleKeyThatIsDroppedStopsAtOnce(t *testing.T) {
	for name, look := range map[string]func(t *testing.T, w *world, reg *registry.Registration){
		"by a refresh in the background": func(_ *testing.T, w *world, _ *registry.Registration) {
			for w.hosts.count(uri) < 2 {
				w.sleep(time.Second)
			}
		},
		"by RefreshClientKey": func(t *testing.T, w *world, reg *registry.Registration) {
			if s, err := w.Refresh(t.Context(), reg); err != nil || s.State != NoUsableKey {
				t.Errorf("got %+v, %v; want NoUsableKey", s, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
				first := w.register(withURI("app", uri))
				w.register(withURI("other", uri))
				w.mustUse("app")
				w.mustUse("other")
				w.hosts.serve(uri, fresh(set("sig-only"), 24*time.Hour))
				look(t, w, first)
				refuse := func() {
					t.Helper()
					for _, id := range []string{"app", "other"} {
						for _, kind := range []registry.TokenKind{idToken, userinfo} {
							if r, err := w.Recipient(t.Context(), issuer, id, kind); !errors.Is(err, ErrUnusable) {
								t.Errorf("%s, %s: got key %q, %v; want ErrUnusable", id, kind, kid(r), err)
							}
						}
					}
				}
				refuse()
				w.hosts.serve(uri, down)
				w.sleep(30 * time.Hour)
				refuse()
				w.restart()
				refuse()
			})
		})
	}
}

// An empty set is a good one that has lost its keys; a broken one is a failure.
func TestRuleEmptySetIsNoFailure(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, fresh([]byte(`{"keys":`), 10*time.Minute))
		w.sleep(10*time.Minute - 1)
		if r := w.mustUse("app"); kid(r) != "k1" {
			t.Errorf("got key %s, want k1: the document was broken", kid(r))
		}
		w.hosts.serve(uri, fresh([]byte(`{"keys":[]}`), 10*time.Minute))
		w.sleep(7 * time.Minute)
		w.mustRefuse("app", ErrUnusable)
	})
}
