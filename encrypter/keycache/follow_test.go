package keycache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

func TestReplicaThatHearsNothingRefusesBeyondTheBound(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		f.register(withURI("fetched", uri))
		f.register(withSet("static", set("k1")))
		r := f.replicas[0]
		look := func(stale bool, want error) {
			t.Helper()
			for _, id := range []string{"fetched", "static"} {
				for _, kind := range []registry.TokenKind{idToken, "INTROSPECTION", registry.LogoutToken} {
					got, err := r.Recipient(t.Context(), issuer, id, kind)
					if !errors.Is(err, want) || err == nil && got.RegistryStale != stale {
						t.Errorf("%s %s: got stale %v, %v; want %v, %v", id, kind, got.RegistryStale, err, stale, want)
					}
					if _, err := r.Setting(t.Context(), issuer, id, kind); !errors.Is(err, want) {
						t.Errorf("%s %s: got %v for the setting, want %v", id, kind, err, want)
					}
				}
			}
			if got := r.RegistryStale(); got != stale {
				t.Errorf("got stale %v, want %v", got, stale)
			}
			if _, err := r.SigningSecret(t.Context(), issuer, "static"); want != nil && !errors.Is(err, want) {
				t.Errorf("got %v for the secret, want %v", err, want)
			}
		}
		look(false, nil)
		f.sleep(time.Hour)
		look(false, nil)

		r.feed.stop(time.Now())
		f.sleep(behindAfter)
		look(false, nil)
		f.sleep(time.Millisecond)
		look(true, nil)
		f.sleep(5*time.Minute - behindAfter - time.Millisecond)
		look(true, nil)
		f.sleep(time.Millisecond)
		look(true, registry.ErrUnavailable)
		if _, err := r.Recipient(t.Context(), issuer, "unknown", idToken); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v for an unknown client, want registry.ErrUnavailable", err)
		}
		r.feed.resume()
		look(false, nil)
	}, func(c *Config) { c.MaxLag = 5 * time.Minute })
}

// TestReplicaThatHasNeverHeardAnything counts from when it was made: nothing in
// its memory is older.
func TestReplicaThatHasNeverHeardAnything(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.register(withSet("app", set("k1")))
		for _, at := range []time.Time{{}, time.Now().Add(-time.Hour)} {
			r := f.join()
			r.feed.stop(at)
			if r.use("app").RegistryStale {
				t.Error("stale, though it was read just now")
			}
			f.sleep(15 * time.Minute)
			if !r.warm("app").RegistryStale {
				t.Error("not flagged as stale after 15 minutes without news")
			}
			f.sleep(time.Millisecond)
			if _, err := r.Recipient(t.Context(), issuer, "app", idToken); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("got %v, want registry.ErrUnavailable", err)
			}
		}
	})
}

func TestChangeElsewhereReachesEveryTokenKind(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("fetched"), time.Hour))
		look := func(want string) {
			t.Helper()
			for _, r := range f.replicas {
				for _, kind := range []registry.TokenKind{idToken, userinfo, registry.LogoutToken} {
					got, err := r.Recipient(t.Context(), issuer, "app", kind)
					if want == "" && !errors.Is(err, registry.ErrNotFound) || want != "" && (err != nil || kid(got) != want) {
						t.Errorf("%s: got key %q, %v; want %q", kind, kid(got), err, want)
					}
				}
			}
		}
		look("")
		for _, step := range []struct {
			reg  registry.Registration
			want string
		}{
			{withSet("app", set("a")), "a"}, {withURI("app", uri), "fetched"}, {tombstone("app"), ""}, {withSet("app", set("b")), "b"},
		} {
			f.register(step.reg)
			look(step.want)
		}
	})
}

func TestStormOfNewsIsCoalesced(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		f.register(withURI("app", uri))
		r := f.replicas[0]
		r.use("app")
		f.store.edit(func(s *memStore) { s.onKeySet = func() { time.Sleep(time.Second) } })
		_, before, _ := f.store.counts()
		for range 10_000 {
			r.KeySetChanged(uri)
			r.KeySetChanged("https://nobody.example/asks/for/this")
		}
		f.sleep(time.Minute)
		if _, after, _ := f.store.counts(); after-before > 2 {
			t.Errorf("%d reads for one storm, want 1 or 2", after-before)
		}
		// One that comes in the middle of a look is not lost.
		f.store.edit(func(s *memStore) { s.onKeySet = nil })
		swap := func(key string) {
			now := time.Now()
			f.store.edit(func(s *memStore) {
				s.sets[uri] = registry.KeySet{URI: uri, Document: set(key), FetchedAt: now, FreshUntil: now.Add(time.Hour)}
			})
		}
		swap("k2")
		reading := make(chan struct{})
		var once bool
		f.store.edit(func(s *memStore) {
			s.onKeySet = func() {
				if !once {
					once = true
					close(reading)
				}
			}
		})
		r.KeySetChanged(uri)
		<-reading
		swap("k3")
		r.KeySetChanged(uri)
		f.sleep(time.Second)
		if got := r.warm("app"); kid(got) != "k3" {
			t.Errorf("got key %s, want k3", kid(got))
		}
	})
}

func TestManyLooksAreAFewAtATime(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		r := f.replicas[0]
		f.hosts.serve("", fresh(set("k"), 12*time.Hour))
		const many = 200
		for i := range many {
			f.register(withURI(fmt.Sprint("app-", i), fmt.Sprint(uri, i)))
			r.use(fmt.Sprint("app-", i))
		}
		var now, most int
		f.store.edit(func(s *memStore) {
			s.onKeySet = func() {
				f.store.edit(func(*memStore) { now++; most = max(most, now) })
				time.Sleep(time.Second)
				f.store.edit(func(*memStore) { now-- })
			}
		})
		_, before, _ := f.store.counts()
		r.Reset()
		f.sleep(5 * time.Minute)
		if _, after, _ := f.store.counts(); after-before != many || most != lookers {
			t.Errorf("%d sets looked at, %d at once; want %d and %d", after-before, most, many, lookers)
		}
		// While the store is gone it is left in peace, and nothing is forgotten.
		f.store.edit(func(s *memStore) { s.onKeySet = nil })
		f.store.fail(registry.ErrUnavailable)
		_, before, _ = f.store.counts()
		r.Reset()
		f.sleep(time.Minute)
		if _, after, _ := f.store.counts(); after-before > 60*lookers {
			t.Errorf("%d attempts in a minute while the store is gone", after-before)
		}
		f.store.fail(nil)
		now2 := time.Now()
		f.store.edit(func(s *memStore) {
			for u := range s.sets {
				s.sets[u] = registry.KeySet{URI: u, Document: set("new"), FetchedAt: now2, FreshUntil: now2.Add(time.Hour)}
			}
		})
		f.sleep(time.Minute)
		for i := range many {
			if got := r.use(fmt.Sprint("app-", i)); kid(got) != "new" {
				t.Fatalf("app-%d: got key %s, want new", i, kid(got))
			}
		}
	})
}

func TestSetWrittenWhileItIsLoadedIsLookedAtAgain(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("old"), time.Hour))
		f.register(withURI("app", uri))
		f.replicas[0].use("app")
		// What the load reads is replaced, and told of, before the load ends.
		var late *replica
		slow := &slowReads{sharedStore: f.store, then: func() {
			now := time.Now()
			f.store.edit(func(s *memStore) {
				s.sets[uri] = registry.KeySet{URI: uri, Document: set("new"), FetchedAt: now, FreshUntil: now.Add(time.Hour)}
			})
			late.KeySetChanged(uri)
		}}
		f.edit = append(f.edit, func(c *Config) { c.Store = slow })
		late = f.join()
		late.use("app") // which may be the old one
		f.sleep(time.Second)
		if got := late.warm("app"); kid(got) != "new" {
			t.Errorf("got key %s, want new", kid(got))
		}
	})
}

// slowReads does something between a read of a key set and its answer, once.
type slowReads struct {
	*sharedStore
	then func()
}

func (s *slowReads) KeySet(ctx context.Context, uri string) (*registry.KeySet, error) {
	ks, err := s.sharedStore.KeySet(ctx, uri)
	if then := s.then; then != nil {
		s.then = nil
		then()
	}
	return ks, err
}

func TestResetForgetsWhatTheStoreMayNotHave(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		f.register(withURI("app", uri))
		f.register(withSet("static", set("a")))
		r := f.replicas[0]
		r.use("app")
		r.use("static")
		if _, err := r.Recipient(t.Context(), issuer, "unknown", idToken); !errors.Is(err, registry.ErrNotFound) {
			t.Fatal(err)
		}
		// The store is put back: one client is another, one is there that was not,
		// and the set is an older one.
		was, _ := f.store.stored(uri)
		was.Document, was.FetchedAt = set("ancient"), was.FetchedAt.Add(-time.Hour)
		f.store.edit(func(s *memStore) {
			for id, key := range map[string]string{"static": "b", "unknown": "c"} {
				reg := withSet(id, set(key))
				reg.Revision = 1
				s.clients[clientKey{issuer, id}] = &reg
			}
			s.sets[uri] = was
		})
		loading := make(chan struct{})
		f.store.edit(func(s *memStore) { s.onGet = func(string) { time.Sleep(time.Second) } })
		go func() { // a look-up from before leaves nothing behind
			defer close(loading)
			_, _ = r.Recipient(t.Context(), issuer, "other", idToken)
		}()
		synctest.Wait()
		f.store.edit(func(s *memStore) {
			s.onGet = nil
			reg := withSet("other", set("d"))
			reg.Revision = 1
			s.clients[clientKey{issuer, "other"}] = &reg
		})
		newest := set("k2")
		f.hosts.serve(uri, notModified(newest, time.Hour))
		r.Reset()
		synctest.Wait()
		if got := r.warm("app"); kid(got) != "k1" {
			t.Errorf("got key %s after a look at an older set, want k1", kid(got))
		}
		<-loading
		f.sleep(2 * time.Second)
		// The host was asked, and not whether it still has what nobody has at hand.
		for id, want := range map[string]string{"static": "b", "unknown": "c", "other": "d", "app": "k2"} {
			if got := r.use(id); kid(got) != want {
				t.Errorf("%s: got key %s, want %s", id, kid(got), want)
			}
		}
		if ks, _ := f.store.stored(uri); !bytes.Equal(ks.Document, newest) {
			t.Error("the store does not have the newer set again")
		}
		f.sleep(time.Hour)
		if got := r.use("app"); kid(got) != "k2" || got.Stale {
			t.Errorf("got key %s, stale %v; want k2, fresh", kid(got), got.Stale)
		}
	})
}

// unreadable is a store whose key sets cannot be read while broken says so.
type unreadable struct {
	registry.Store
	broken *atomic.Bool
}

func (s unreadable) KeySet(ctx context.Context, uri string) (*registry.KeySet, error) {
	if s.broken.Load() {
		return nil, registry.ErrUnavailable
	}
	return s.Store.KeySet(ctx, uri)
}

// TestNewsThatCannotBeReadIsLag: to be told that a set has changed is not to have
// it.
func TestNewsThatCannotBeReadIsLag(t *testing.T) {
	var broken atomic.Bool
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("old"), 20*time.Hour))
		reg := f.register(withURI("app", uri))
		f.edit = nil
		other := f.join()
		r := f.replicas[0]
		r.use("app")
		other.use("app")
		f.sleep(time.Minute)
		broken.Store(true)
		f.sleep(time.Hour)
		if r.warm("app").RegistryStale {
			t.Error("stale, though there are no news")
		}
		f.hosts.serve(uri, fresh(set("new"), 20*time.Hour))
		if _, err := other.Refresh(t.Context(), reg); err != nil {
			t.Fatal(err)
		}
		f.sleep(newsTakes + behindAfter)
		if r.warm("app").RegistryStale {
			t.Error("stale before its time")
		}
		f.sleep(time.Second)
		if !r.warm("app").RegistryStale || !r.RegistryStale() {
			t.Error("not flagged as stale, though it cannot read what it was told of")
		}
		f.sleep(5 * time.Minute)
		if _, err := r.Recipient(t.Context(), issuer, "app", idToken); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v beyond the bound, want registry.ErrUnavailable", err)
		}
		broken.Store(false)
		f.sleep(2 * time.Second)
		if got := r.warm("app"); kid(got) != "new" || got.RegistryStale {
			t.Errorf("got key %s, stale %v, when it can read again; want new, not stale", kid(got), got.RegistryStale)
		}
		// News of a set that is forgotten does not matter any more.
		broken.Store(true)
		r.KeySetChanged(uri)
		f.sleep(10 * time.Second)
		if !r.RegistryStale() {
			t.Error("not flagged as stale")
		}
		broken.Store(false)
		src := r.sources.get(uri)
		r.sources.drop(src)
		if r.RegistryStale() {
			t.Error("stale for a set that is not in memory")
		}
	}, func(c *Config) { c.MaxLag, c.Store = 5*time.Minute, unreadable{c.Store, &broken} })
}

func TestLagIsThatOfTheOldestNews(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		s := newSources(1 << 20)
		if got := s.lag(); got != 0 {
			t.Errorf("got a lag of %v without news", got)
		}
		var all []*source
		for i := range 3 {
			src := s.add(newSource(fmt.Sprint(uri, i), &setState{}, nil, time.Now()), time.Now().Add(time.Hour))
			all = append(all, src)
			s.lookAt(src)
			f.sleep(time.Second)
		}
		look := func(want time.Duration) {
			t.Helper()
			if got := s.lag().Round(time.Millisecond); got != want {
				t.Errorf("got a lag of %v, want %v", got, want)
			}
		}
		look(3 * time.Second)
		for i, want := range []time.Duration{2 * time.Second, time.Second, 0} {
			if got := s.takeLook(); got != all[i] {
				t.Fatalf("look %d is not at the source that is next", i)
			}
			s.looked(all[i])
			look(want)
		}
		// What is told during a look is not read by it; what failed is as old as it was.
		s.lookAt(all[0])
		s.takeLook()
		f.sleep(time.Second)
		s.lookAt(all[0])
		look(time.Second)
		s.looked(all[0])
		f.sleep(time.Second)
		look(time.Second)
		s.takeLook()
		s.lookAt(all[0]) // it failed
		f.sleep(time.Second)
		look(2 * time.Second)
	})
}
