package keycache

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

func TestSetIsRefreshedBeforeItExpires(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		first := w.mustUse("app")
		w.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))

		w.sleep(8*time.Minute - time.Second)
		if got := w.hosts.count(uri); got != 1 {
			t.Fatalf("%d fetches before 80 %% of the time was over, want 1", got)
		}
		w.sleep(90*time.Second + 2*time.Second)
		if got := w.hosts.count(uri); got != 2 {
			t.Fatalf("%d fetches after 95 %% of the time, want 2", got)
		}
		r := w.mustUse("app")
		if kid(r) != "k2" || r.Stale || !r.FetchedAt.After(first.FetchedAt) {
			t.Errorf("got key %s, stale %v, fetched at %v; want k2, fresh, later than %v", kid(r), r.Stale, r.FetchedAt, first.FetchedAt)
		}
		// And so on, for ever.
		w.sleep(100 * time.Minute)
		if got := w.hosts.count(uri); got < 12 || got > 15 {
			t.Errorf("%d fetches in 110 minutes, want one each 8 to 9.5 minutes", got)
		}
		if w.mustUse("app").Stale {
			t.Error("stale, although every refresh succeeded")
		}
	})
}

func TestMinimumBoundsWhatTheHostAsksFor(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 0))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.sleep(47 * time.Second)
		if got := w.hosts.count(uri); got != 1 {
			t.Errorf("%d fetches, want 1: a set is fresh for a minute at least", got)
		}
		if w.mustUse("app").Stale {
			t.Error("stale within the first minute")
		}
		w.sleep(11 * time.Second)
		if got := w.hosts.count(uri); got != 2 {
			t.Errorf("%d fetches, want 2", got)
		}
	})
}

func TestNotModifiedRenews(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		doc := set("k1")
		w.hosts.serve(uri, fresh(doc, 10*time.Minute))
		w.register(withURI("app", uri))
		before := w.mustUse("app")
		w.hosts.serve(uri, func(_ context.Context, req fetch.Request) (*fetch.Response, error) {
			return &fetch.Response{
				NotModified: true, ETag: `"2"`, LastModified: req.LastModified,
				Freshness: fetch.Freshness{For: 20 * time.Minute, Stated: true},
			}, nil
		})
		w.sleep(10 * time.Minute)
		if got := w.hosts.last().ETag; got != `"1"` {
			t.Errorf("asked with ETag %q, want that of the set", got)
		}
		after := w.mustUse("app")
		if after.Recipient != before.Recipient {
			t.Error("the recipient was made anew from the same set")
		}
		if after.Stale || !after.FetchedAt.After(before.FetchedAt) {
			t.Errorf("stale %v, fetched at %v; want fresh and renewed", after.Stale, after.FetchedAt)
		}
		stored, _ := w.store.stored(uri)
		if string(stored.Document) != string(doc) || stored.FreshUntil.Sub(stored.FetchedAt) != 20*time.Minute {
			t.Errorf("stored: document kept %v, fresh for %v", string(stored.Document) == string(doc), stored.FreshUntil.Sub(stored.FetchedAt))
		}
		w.sleep(20 * time.Minute)
		if got := w.hosts.last().ETag; got != `"2"` {
			t.Errorf("asked with ETag %q, want that of the 304", got)
		}
	})
}

func TestNotModifiedWithoutASetIsAFailure(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, func(context.Context, fetch.Request) (*fetch.Response, error) {
			return &fetch.Response{NotModified: true}, nil
		})
		w.register(withURI("app", uri))
		w.mustRefuse("app", ErrUnavailable)
	})
}

func TestCallersNeverWaitForARefresh(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, hangs)
		for range 60 * 60 {
			w.mustUse("app")
			time.Sleep(time.Second)
		}
		if got := w.hosts.count(uri); got < 10 {
			t.Errorf("%d fetches in an hour: the refreshes did not run", got)
		}
	})
}

func TestLastGoodSetStaysWhileTheHostFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		fetchedAt := w.mustUse("app").FetchedAt
		w.hosts.serve(uri, down)

		w.sleep(9*time.Minute + 40*time.Second) // it has failed and is still fresh
		r := w.mustUse("app")
		if r.Stale || kid(r) != "k1" {
			t.Errorf("got key %s, stale %v; want k1, fresh", kid(r), r.Stale)
		}
		if s := w.status("app"); s.State != Failing || s.Reason == "" || !s.NextRefreshAt.After(time.Now()) {
			t.Errorf("got status %+v, want Failing with a reason and a next attempt", s)
		}
		w.sleep(30 * time.Second) // past 10 minutes
		r = w.mustUse("app")
		if !r.Stale || kid(r) != "k1" || !r.FetchedAt.Equal(fetchedAt) {
			t.Errorf("got key %s, stale %v, fetched at %v; want k1, stale, %v", kid(r), r.Stale, r.FetchedAt, fetchedAt)
		}
		if s := w.status("app"); s.State != Stale || !s.Since.Equal(fetchedAt.Add(10*time.Minute)) {
			t.Errorf("got status %+v, want Stale since the end of freshness", s)
		}

		w.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		w.sleep(7 * time.Minute) // more than the longest pause
		r = w.mustUse("app")
		if r.Stale || kid(r) != "k2" {
			t.Errorf("got key %s, stale %v; want k2, fresh: the host has come back", kid(r), r.Stale)
		}
		if s := w.status("app"); s.State != Ready || s.Reason != "" {
			t.Errorf("got status %+v, want Ready", s)
		}
	})
}

func TestPausesGrowWhileAHostFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, down)
		w.sleep(time.Hour)
		at := w.hosts.times(uri)[1:]
		want := firstRetry
		for i := 1; i < len(at); i++ {
			// Half a second for the scheduler's own pace.
			if pause := at[i].Sub(at[i-1]); pause < want || pause > want+want/4+500*time.Millisecond {
				t.Errorf("pause %d was %v, want %v to %v", i, pause, want, want+want/4)
			}
			want = min(2*want, lastRetry)
		}
		if len(at) < 12 {
			t.Errorf("%d attempts in about 50 minutes, want more", len(at))
		}
	})
}

func TestSetBeyondTheBoundIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, hangs)

		w.sleep(10*time.Minute + 24*time.Hour - time.Second)
		if !w.mustUse("app").Stale {
			t.Error("not flagged as stale")
		}
		// From here on a caller waits for one fetch at most, and not at all
		// within the pause after a failure.
		w.sleep(2 * time.Second)
		waited := 0
		for range 600 {
			start := time.Now()
			err := w.mustRefuse("app", ErrExpired)
			var f *FetchError
			if !errors.As(err, &f) || f.ID == "" || f.RetryAfter < 0 || f.RetryAfter > 7*time.Minute {
				t.Fatalf("got %#v, want a FetchError with an id and a time", err)
			}
			if took := time.Since(start); took > w.Cache.cfg.FetchTimeout {
				t.Fatalf("waited %v", took)
			} else if took > 0 {
				waited++
			}
			w.sleep(time.Second)
		}
		if waited > 5 {
			t.Errorf("%d calls in ten minutes waited, want two or three", waited)
		}
		if s := w.status("app"); s.State != Expired || len(s.Recipients) != 2 || !s.Recipients[0].Stale {
			t.Errorf("got status %+v, want Expired with what the keys were", s)
		}

		w.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		w.sleep(7 * time.Minute)
		if r := w.mustUse("app"); kid(r) != "k2" || r.Stale {
			t.Errorf("got key %s, stale %v; want k2, fresh", kid(r), r.Stale)
		}
	})
}

func TestMissingSetIsWaitedForOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, hangs)
		w.register(withURI("app", uri))
		start := time.Now()
		w.mustRefuse("app", ErrUnavailable)
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("waited %v, want 5 s", took)
		}
		start = time.Now()
		err := w.mustRefuse("app", ErrUnavailable)
		if took := time.Since(start); took != 0 {
			t.Errorf("waited %v within the pause, want not at all", took)
		}
		var f *FetchError
		if !errors.As(err, &f) || f.RetryAfter < firstRetry || f.RetryAfter > firstRetry*5/4 {
			t.Errorf("got %#v, want a pause of 5 to 6.25 s", err)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("the fetch's deadline shows in the caller's error")
		}
		// It heals without a caller that waits.
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.sleep(7 * time.Second)
		w.mustUse("app")
		if got := w.hosts.count(uri); got != 2 {
			t.Errorf("%d fetches, want 2", got)
		}
	})
}

func TestKeyDroppedFromTheSetStopsItsUse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, fresh(set("sig-1"), 10*time.Minute))
		w.sleep(10 * time.Minute)
		w.mustRefuse("app", ErrUnusable)
		if s := w.status("app"); s.State != NoUsableKey || s.Reason == "" {
			t.Errorf("got status %+v, want NoUsableKey", s)
		}
		w.restart()
		w.mustRefuse("app", ErrUnusable)
	})
}

func TestPrivateMemberKeepsTheLastGoodSet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, fresh(set("private-1"), 24*time.Hour))
		w.sleep(9*time.Minute + 40*time.Second)
		if r := w.mustUse("app"); kid(r) != "k1" || r.Stale {
			t.Errorf("got key %s, stale %v; want k1, fresh", kid(r), r.Stale)
		}
		if s := w.status("app"); s.State != Failing {
			t.Errorf("got status %+v, want Failing", s)
		}
		// The bad answer's headers count for nothing.
		w.sleep(time.Minute)
		if !w.mustUse("app").Stale {
			t.Error("the refused set's freshness was taken over")
		}
	})
}

func TestHangingHostDelaysNobodyElse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const many = 100
		for i := range many {
			u := fmt.Sprintf("https://hanging.example/%d", i)
			w.hosts.serve(u, fresh(set("k"), 10*time.Minute))
			w.register(withURI(fmt.Sprint("hanging-", i), u))
			w.mustUse(fmt.Sprint("hanging-", i))
			w.hosts.serve(u, hangs)
		}
		w.hosts.serve(uri, fresh(set("k"), 10*time.Minute))
		w.register(withURI("app", uri))
		for range 60 * 60 {
			if w.mustUse("app").Stale {
				t.Fatal("a host that hangs with many URLs kept another's set from being refreshed")
			}
			time.Sleep(time.Second)
		}
		// Those that hang have their share all the same.
		if got := w.hosts.count("https://hanging.example/7"); got < 2 {
			t.Errorf("%d fetches of a hanging URL, want some attempts", got)
		}
	}, func(c *Config) { c.Fetchers = 4 })
}

func TestManyHangingHostsDelayNobodyElse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const many = 300
		doc := set("k")
		for i := range many {
			u := fmt.Sprintf("https://%d.hanging.example/", i)
			w.hosts.serve(u, fresh(doc, time.Duration(10+i%30)*time.Minute))
			w.register(withURI(fmt.Sprint("hanging-", i), u))
			w.mustUse(fmt.Sprint("hanging-", i))
			w.hosts.serve(u, hangs)
		}
		w.hosts.serve(uri, fresh(doc, 10*time.Minute))
		w.register(withURI("app", uri))
		for range 60 * 6 {
			if w.mustUse("app").Stale {
				t.Fatalf("hosts that hang kept another's set from being refreshed")
			}
			time.Sleep(10 * time.Second)
		}
	}, func(c *Config) { c.Fetchers = 4 })
}

func TestIdleSetIsDropped(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.sleep(2*time.Hour + time.Minute)
		n := w.hosts.count(uri)
		if n < 10 {
			t.Errorf("%d fetches while the set was in use, want more", n)
		}
		w.sleep(10 * time.Hour)
		if got := w.hosts.count(uri); got > n+1 {
			t.Errorf("%d fetches of an idle set", got-n)
		}
		if got := w.Stats(); got.KeySets != 0 {
			t.Errorf("got %+v, want no key sets", got)
		}
		if s := w.status("app"); s.State != Stale || s.Reason == "" {
			t.Errorf("got status %+v, want Stale with a reason", s)
		}
		// The next use takes the stored set at once, and has it refreshed. The
		// host takes a second, or the refresh might be there before the answer.
		w.hosts.serve(uri, slow(time.Second, fresh(set("k1"), 10*time.Minute)))
		if r := w.mustUse("app"); !r.Stale || kid(r) != "k1" {
			t.Errorf("got key %s, stale %v; want k1, stale", kid(r), r.Stale)
		}
		w.sleep(2 * time.Second)
		if w.mustUse("app").Stale {
			t.Error("not refreshed when used again")
		}
	}, func(c *Config) { c.IdleAfter = 2 * time.Hour })
}

func TestSetOfARefusedRegistrationIsForgotten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("sig-1"), 10*time.Minute))
		reg := withURI("app", uri)
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnusable) {
			t.Fatalf("got %v, want ErrUnusable", err)
		}
		w.sleep(time.Hour)
		if got, n := w.hosts.count(uri), w.Stats().KeySets; got != 1 || n != 0 {
			t.Errorf("%d fetches and %d sets in memory, want 1 and 0", got, n)
		}
		// Likewise if there was no set at all.
		reg.Source.JWKSURI = "https://down.example/"
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
		w.sleep(time.Hour)
		if got, n := w.hosts.count(reg.Source.JWKSURI), w.Stats().KeySets; got != 1 || n != 0 {
			t.Errorf("%d fetches and %d sets in memory, want 1 and 0", got, n)
		}
	})
}

func TestSetOfADeletedClientIsForgotten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.register(tombstone("app"))
		w.mustRefuse("app", registry.ErrNotFound)
		w.sleep(time.Hour)
		if got, n := w.hosts.count(uri), w.Stats().KeySets; got != 1 || n != 0 {
			t.Errorf("%d fetches and %d sets in memory, want 1 and 0", got, n)
		}
	})
}

func TestPanicInAFetchIsAFailure(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, func(context.Context, fetch.Request) (*fetch.Response, error) { panic("boom") })
		w.register(withURI("app", uri))
		w.mustRefuse("app", ErrUnavailable)
	})
}
