package keycache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// getter is a Fetcher that is a function.
type getter func(ctx context.Context, req fetch.Request) (*fetch.Response, error)

func (g getter) Get(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
	return g(ctx, req)
}

func TestReplicaWithoutAWayOutDoesNotStarveTheOthers(t *testing.T) {
	made := 0
	var broken atomic.Bool
	inFleet(t, 3, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		f.register(withURI("app", uri))
		for _, r := range f.replicas { // the first makes the fetch, and is to make the next
			r.use("app")
		}
		broken.Store(true)
		for range 26 * 60 {
			f.sleep(time.Minute)
			for i, r := range f.replicas {
				if got := r.use("app"); time.Since(got.FetchedAt) > 30*time.Minute {
					t.Fatalf("replica %d: the set is of %v ago, though two replicas can fetch it", i, time.Since(got.FetchedAt))
				}
			}
		}
	}, func(c *Config) {
		first, hosts := made == 0, c.Fetcher
		made++
		c.Fetcher = getter(func(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
			if first && broken.Load() {
				return nil, &fetch.Failure{Class: fetch.ClassConnect, Cause: errors.New("no route to host")}
			}
			return hosts.Get(ctx, req)
		})
	})
}

// TestTimesAreThoseOfTheWallClock: a time with a monotonic reading compares
// otherwise with its like than in the queue and in the store once the clock was
// set.
func TestTimesAreThoseOfTheWallClock(t *testing.T) {
	store, h := newMemStore(), &hosts{answers: make(map[string]answer)}
	c, err := New(Config{Store: store, Fetcher: h})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, a := range map[string]answer{"works": fresh(set("k1"), time.Hour), "fails": down} {
		h.serve(uri+name, a)
		if _, err := store.Put(t.Context(), withURI(name, uri+name), 0); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Recipient(t.Context(), issuer, name, idToken)
		s := c.sources.get(uri + name).state.Load()
		for what, at := range map[string]time.Time{
			"FetchedAt": s.FetchedAt, "FreshUntil": s.FreshUntil, "since": s.failingSince(), "next": s.nextAttempt(),
		} {
			if at != at.Round(0) { // not whether they are equal, but what they hold
				t.Errorf("%s: %s has a monotonic reading", name, what)
			}
		}
	}
}

// TestQueueDoesNotSpin runs on the real clock: one that stands still while
// something is done would not show it.
func TestQueueDoesNotSpin(t *testing.T) {
	store, h := newSharedStore(), &hosts{answers: make(map[string]answer)}
	h.serve(uri, fresh(set("k1"), 10*time.Minute))
	c, err := New(Config{Store: store, Leases: store, Fetcher: h, Logger: slog.New(slog.NewJSONHandler(&logs{}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := store.Put(t.Context(), withURI("app", uri), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Recipient(t.Context(), issuer, "app", idToken); err != nil {
		t.Fatal(err)
	}
	// The queue says that it is due, and the times of the set that it is not.
	src := c.sources.get(uri)
	c.sources.put(src, time.Now().Add(-time.Minute))
	_, before, _ := store.counts()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, after, _ := store.counts(); after-before > 3 {
		t.Errorf("the store was read %d times in a second for one URL", after-before)
	}
	if due := c.sources.dueAt(src); !due.After(time.Now().Add(5 * time.Minute)) {
		t.Errorf("looked after again in %v, want near the end of 10 minutes", time.Until(due))
	}
}

func TestSourceStaysInTheQueueIfTheClockIsSetBack(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		f.register(withURI("app", uri))
		c := f.replicas[0]
		c.use("app")
		f.sleep(time.Second)
		src, _ := c.sources.first(time.Now().Add(time.Hour)) // and then it is an hour earlier
		if src == nil {
			t.Fatal("nothing is due in an hour")
		}
		c.refreshDue(t.Context(), src)
		f.sleep(time.Hour)
		if got := c.warm("app"); got.Stale || f.hosts.count(uri) < 6 {
			t.Errorf("stale %v after %d fetches in an hour, want fresh after 6 or more", got.Stale, f.hosts.count(uri))
		}
	})
}

// TestClientWithoutItsChoiceLeavesAFailingHostAlone: the document to choose from
// is nowhere, and whoever asks for the client must not ask the host each time.
func TestClientWithoutItsChoiceLeavesAFailingHostAlone(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), 20*time.Hour))
		f.register(withURI("app", uri))
		r := f.replicas[0]
		r.use("app")
		f.sleep(time.Minute)
		f.store.edit(func(s *memStore) { delete(s.sets, uri) })
		f.hosts.serve(uri, down)
		other := withURI("other", uri)
		other.Settings[0].ContentEncryption = "A128GCM"
		f.register(other)
		n := f.hosts.count(uri)
		for range 60 {
			_, err := r.Recipient(t.Context(), issuer, "other", idToken)
			var failed *FetchError
			if !errors.As(err, &failed) || !errors.Is(err, ErrUnavailable) {
				t.Fatalf("got %v, want ErrUnavailable with an incident", err)
			}
			f.sleep(time.Second)
		}
		if got := f.hosts.count(uri) - n; got > 6 {
			t.Errorf("%d fetches in a minute from a host that fails", got)
		}
		f.hosts.serve(uri, fresh(set("k2"), time.Hour))
		f.sleep(7 * time.Minute)
		if got := kid(r.use("other")); got != "k2" {
			t.Errorf("got key %s when the host has come back, want k2", got)
		}
	})
}

// full is a store that takes no writes of key sets while it says so.
type full struct {
	registry.Leases
	refuses *atomic.Bool
}

func (l full) PutClaimed(ctx context.Context, ks registry.KeySet, lease string, announce bool) error {
	if l.refuses.Load() {
		return registry.ErrUnavailable
	}
	return l.Leases.PutClaimed(ctx, ks, lease, announce)
}

func TestLeaseIsGivenBackIfNothingCanBeStored(t *testing.T) {
	var refuses atomic.Bool
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		reg := f.register(withURI("app", uri))
		r := f.replicas[0]
		r.use("app")
		f.sleep(time.Minute)
		refuses.Store(true)
		if _, err := r.Refresh(t.Context(), reg); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v from a refresh, want registry.ErrUnavailable", err)
		}
		if f.store.held(uri) {
			t.Error("the lease is held after a refresh that could not be stored")
		}
		if err := r.Keep(t.Context(), uri); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v from Keep, want registry.ErrUnavailable", err)
		}
		if f.store.held(uri) {
			t.Error("the lease is held after a set that could not be kept")
		}
	}, func(c *Config) { c.Leases = full{c.Leases, &refuses} })
}

func TestHostsOfAWildcardDomainDelayNoOther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		doc := set("k")
		var hanging atomic.Bool
		for i := range 100 {
			u, id := fmt.Sprintf("https://h%d.hanging.example/jwks", i), fmt.Sprint("hanging-", i)
			w.hosts.serve(u, func(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
				if hanging.Load() {
					return hangs(ctx, req)
				}
				return fresh(doc, 10*time.Minute)(ctx, req)
			})
			w.register(withURI(id, u))
			w.mustUse(id)
		}
		w.hosts.serve(uri, fresh(doc, 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		hanging.Store(true)
		for range 15 * 60 {
			w.sleep(time.Second)
			if w.mustUse("app").Stale {
				t.Fatal("hosts of one domain that hang kept another's set from being refreshed")
			}
		}
	}, func(c *Config) { c.Fetchers = 4 })
}
