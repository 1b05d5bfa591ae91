package keycache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// another answers with another set each time.
func another(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
	return fresh(set("k"), 10*time.Minute)(ctx, req)
}

// fetchesOf runs n replicas that all use one set for two days, and returns how
// often its host was asked.
func fetchesOf(t *testing.T, n int, a answer) (fetches int) {
	t.Helper()
	inFleet(t, n, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, a)
		f.register(withURI("app", uri))
		for range 2 * 24 * 60 * 3 {
			for _, r := range f.replicas {
				if r.use("app").Stale {
					t.Fatalf("%d replicas: stale, though its host answers", n)
				}
			}
			time.Sleep(20 * time.Second)
		}
		if f.hosts.overlapped() {
			t.Errorf("%d replicas: two fetches of one URL were under way at once", n)
		}
		fetches = f.hosts.count(uri)
	})
	return fetches
}

func TestFetchesDoNotGrowWithReplicas(t *testing.T) {
	doc := set("k1")
	for name, a := range map[string]answer{
		"ten minutes":         fresh(doc, 10*time.Minute),
		"the shortest, slow":  slow(2*time.Second, fresh(doc, 0)),
		"another each time":   another,
		"twenty-five minutes": fresh(doc, 25*time.Minute),
	} {
		one, four := fetchesOf(t, 1, a), fetchesOf(t, 4, a)
		t.Logf("%s: %d fetches in two days by 1 replica, %d by 4", name, one, four)
		if one < 100 || four > one+one/50+3 {
			t.Errorf("%s: %d fetches by 1 replica and %d by 4, want no more by 4", name, one, four)
		}
	}
}

func TestFirstFetchIsMadeOnceForAllReplicas(t *testing.T) {
	inFleet(t, 4, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, slow(2*time.Second, fresh(set("k1"), 10*time.Minute)))
		f.register(withURI("app", uri))
		began := time.Now()
		var all sync.WaitGroup
		for _, r := range f.replicas {
			for range 10 {
				all.Go(func() {
					if got := r.use("app"); kid(got) != "k1" {
						t.Errorf("got key %s, want k1", kid(got))
					}
				})
			}
		}
		all.Wait()
		if got, took := f.hosts.count(uri), time.Since(began); got != 1 || took > 2300*time.Millisecond {
			t.Errorf("%d fetches in %v, want 1, and the others not long after it", got, took)
		}
		// A replica that comes later is warm after one read.
		f.sleep(time.Second)
		late := f.join()
		_, before, _ := f.store.counts()
		late.warm("app")
		if _, after, _ := f.store.counts(); after-before != 1 || f.hosts.count(uri) != 1 {
			t.Errorf("%d reads of the set and %d fetches, want 1 and none more", after-before, f.hosts.count(uri)-1)
		}
	})
}

func TestFailureIsOnRecordForAllReplicas(t *testing.T) {
	inFleet(t, 4, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, slow(time.Second, down))
		f.register(withURI("app", uri))
		ids := make(chan string, 4)
		for _, r := range f.replicas {
			go func() {
				_, err := r.Recipient(t.Context(), issuer, "app", idToken)
				var failed *FetchError
				if !errors.As(err, &failed) || !errors.Is(err, ErrUnavailable) {
					t.Errorf("got %v, want ErrUnavailable with an incident", err)
					ids <- ""
					return
				}
				ids <- failed.ID
			}()
		}
		first := <-ids
		for range 3 {
			if id := <-ids; id != first {
				t.Errorf("got incident %s, want %s as the others: there was one failure", id, first)
			}
		}
		// One tries each time, however many ask.
		for range 3600 {
			for _, r := range f.replicas {
				_, _ = r.Recipient(t.Context(), issuer, "app", idToken)
			}
			time.Sleep(time.Second)
		}
		at := f.hosts.times(uri)
		want := firstRetry
		for i := 1; i < len(at); i++ {
			if pause := at[i].Sub(at[i-1]); pause < want {
				t.Errorf("pause %d was %v, want %v or more: replicas do not keep each other's", i, pause, want)
			}
			want = min(2*want, lastRetry)
		}
		if len(at) < 12 || f.hosts.overlapped() {
			t.Errorf("%d attempts, overlapping %v; want a dozen, one after the other", len(at), f.hosts.overlapped())
		}
		// It heals for all at once.
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		f.sleep(7 * time.Minute)
		n := f.hosts.count(uri)
		for _, r := range f.replicas {
			if r.warm("app").Stale {
				t.Error("stale after its host has come back")
			}
		}
		if got := f.hosts.count(uri); got != n {
			t.Errorf("%d fetches for those who had not asked yet", got-n)
		}
	})
}

func TestDeadHolderIsReplaced(t *testing.T) {
	for name, die := range map[string]func(f *fleet){
		"between two fetches": func(f *fleet) { f.replicas[0].Close() },
		"with the lease in its hand": func(f *fleet) {
			f.replicas[0].Close()
			f.sleep(8 * time.Minute)
			if c, err := f.store.Claim(f.t.Context(), uri, 15*time.Second); err != nil || c.Lease == "" {
				f.t.Fatalf("got %+v, %v", c, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, 3, func(t *testing.T, f *fleet) {
				f.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
				f.register(withURI("app", uri))
				for _, r := range f.replicas { // the first makes the fetch
					r.use("app")
				}
				die(f)
				for range 6 * 60 {
					for _, r := range f.replicas[1:] {
						if r.warm("app").Stale {
							t.Fatal("stale: nobody has taken over within the interval")
						}
					}
					f.sleep(10 * time.Second)
				}
				if got := f.hosts.count(uri); got < 6 || got > 8 {
					t.Errorf("%d fetches in an hour, want 6 or 7", got)
				}
			})
		})
	}
}

func TestWaitingReplicaTakesOverADeadOnesLease(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		f.register(withURI("app", uri))
		if _, err := f.store.Claim(t.Context(), uri, 15*time.Second); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		f.replicas[0].use("app")
		if took := time.Since(began); took < 14*time.Second || took > 15500*time.Millisecond {
			t.Errorf("waited %v, want until the lease has ended", took)
		}
		// One who gives up earlier is not held.
		f.register(withURI("other", uri+"2"))
		if _, err := f.store.Claim(t.Context(), uri+"2", 15*time.Second); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.replicas[0].Recipient(ctx, issuer, "other", idToken); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the caller's deadline", err)
		}
	})
}

func TestRefreshIsInForceEverywhere(t *testing.T) {
	inFleet(t, 4, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("old"), time.Hour))
		reg := f.register(withURI("app", uri))
		for _, r := range f.replicas {
			r.use("app")
		}
		f.sleep(time.Minute)
		f.hosts.serve(uri, fresh(set("new"), time.Hour))
		s, err := f.replicas[2].Refresh(t.Context(), reg)
		if err != nil || s.Recipients[0].KeyID() != "new" {
			t.Fatalf("got %+v, %v; want the new key", s, err)
		}
		f.sleep(time.Second)
		for i, r := range f.replicas {
			if got := r.warm("app"); kid(got) != "new" {
				t.Errorf("replica %d uses key %s a second later, want new", i, kid(got))
			}
		}
		if got := f.hosts.count(uri); got != 2 {
			t.Errorf("%d fetches, want 2", got)
		}
		// The limit is that of the fleet, and outlives a replica.
		late := f.join()
		for i, r := range []*replica{f.replicas[0], f.replicas[2], late} {
			_, err := r.Refresh(t.Context(), reg)
			var limit *LimitError
			if !errors.As(err, &limit) || limit.RetryAfter <= 0 || limit.RetryAfter > 9*time.Second {
				t.Errorf("refresh %d: got %v, want a LimitError of 9 s at most", i, err)
			}
		}
		if f.store.held(uri) {
			t.Error("a lease is held after a refused refresh")
		}
		f.sleep(10 * time.Second)
		if _, err := late.Refresh(t.Context(), reg); err != nil {
			t.Errorf("after the limit: %v", err)
		}
	})
}

func TestRefreshWaitsForAnothersFetchAndThenAsksItself(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, slow(3*time.Second, fresh(set("old"), time.Hour)))
		reg := f.register(withURI("app", uri))
		go func() { _, _ = f.replicas[0].Recipient(t.Context(), issuer, "app", idToken) }()
		f.sleep(time.Second) // that fetch is under way
		f.hosts.serve(uri, fresh(set("new"), time.Hour))
		s, err := f.replicas[1].Refresh(t.Context(), reg)
		if err != nil || s.Recipients[0].KeyID() != "new" {
			t.Fatalf("got %+v, %v; want the set of after the call", s, err)
		}
		if f.hosts.overlapped() {
			t.Error("both were at it at once")
		}
		f.sleep(time.Second)
		if got := f.replicas[0].warm("app"); kid(got) != "new" {
			t.Errorf("the other uses key %s, want new", kid(got))
		}
	})
}

func TestRefreshThatCannotBeStoredIsNotAcknowledged(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("old"), time.Hour))
		reg := f.register(withURI("app", uri))
		for _, r := range f.replicas {
			r.use("app")
		}
		f.sleep(time.Minute)
		f.hosts.serve(uri, fresh(set("new"), time.Hour))
		f.store.fail(registry.ErrUnavailable)
		if _, err := f.replicas[0].Refresh(t.Context(), reg); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v, want registry.ErrUnavailable", err)
		}
		if got := f.replicas[0].warm("app"); kid(got) != "new" {
			t.Errorf("got key %s, want new: this replica has it", kid(got))
		}
		// What is stored is older, and does not replace it.
		f.store.fail(nil)
		f.replicas[0].KeySetChanged(uri)
		f.sleep(time.Minute)
		if got := f.replicas[0].warm("app"); kid(got) != "new" {
			t.Errorf("got key %s, want new: the store had an older set", kid(got))
		}
		// The next refresh goes by the lease again, and reaches all.
		f.sleep(time.Hour)
		for i, r := range f.replicas {
			if got := r.warm("app"); kid(got) != "new" {
				t.Errorf("replica %d uses key %s, want new", i, kid(got))
			}
		}
	})
}

func TestRefreshWhoseLeaseIsLostTriesOnceMore(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		reg := f.register(withURI("app", uri))
		r := f.replicas[0]
		r.use("app")
		for lost, want := range []error{nil, nil, registry.ErrUnavailable} {
			f.sleep(time.Minute)
			n := f.hosts.count(uri)
			f.store.shared.Lock()
			f.store.lost = lost
			f.store.shared.Unlock()
			if _, err := r.Refresh(t.Context(), reg); !errors.Is(err, want) {
				t.Errorf("lost %d times: got %v, want %v", lost, err, want)
			}
			if got := f.hosts.count(uri) - n; got != min(lost+1, 2) {
				t.Errorf("lost %d times: %d fetches", lost, got)
			}
		}
	})
}

func TestLeaseLostInTheBackgroundAdoptsWhatIsStored(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		f.register(withURI("app", uri))
		r := f.replicas[0]
		r.use("app")
		other := set("other")
		f.hosts.serve(uri, slow(time.Second, fresh(set("ours"), 10*time.Minute)))
		for !f.store.held(uri) {
			time.Sleep(100 * time.Millisecond)
		}
		// Somebody takes it over meanwhile.
		f.store.shared.Lock()
		delete(f.store.leases, uri)
		f.store.shared.Unlock()
		now := time.Now()
		f.store.edit(func(s *memStore) {
			s.sets[uri] = registry.KeySet{URI: uri, Document: other, FetchedAt: now, FreshUntil: now.Add(time.Hour)}
		})
		f.sleep(5 * time.Second)
		if got := r.warm("app"); kid(got) != "other" {
			t.Errorf("got key %s, want other: the lease was lost", kid(got))
		}
	})
}

func TestSharedStoreGone(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		f.register(withURI("app", uri))
		f.register(withURI("cold", uri+"2"))
		for _, r := range f.replicas {
			r.use("app")
		}
		f.sleep(time.Second) // there are no news that could not be read
		f.store.fail(registry.ErrUnavailable)
		f.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		n := f.hosts.count(uri)
		for range 60 {
			f.sleep(time.Minute)
			for i, r := range f.replicas {
				if r.warm("app").Stale {
					t.Fatalf("replica %d: stale while the store is gone", i)
				}
			}
		}
		for i, r := range f.replicas {
			// A new key is chosen without the store.
			if got := r.warm("app"); kid(got) != "k2" {
				t.Errorf("replica %d uses key %s, want k2", i, kid(got))
			}
			if _, err := r.Recipient(t.Context(), issuer, "cold", idToken); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("replica %d: got %v for a cold client, want registry.ErrUnavailable", i, err)
			}
		}
		if got := f.hosts.count(uri) - n; got < 12 || got > 16 {
			t.Errorf("%d fetches in an hour by two replicas, want 6 to 8 by each", got)
		}
		if ks, _ := f.store.stored(uri); bytes.Contains(ks.Document, []byte("k2")) {
			t.Fatal("the store was not gone")
		}
		f.store.fail(nil)
		f.sleep(10 * time.Minute)
		if ks, _ := f.store.stored(uri); !bytes.Contains(ks.Document, []byte("k2")) {
			t.Error("not stored although the store has come back")
		}
		n = f.hosts.count(uri)
		f.sleep(time.Hour)
		if got := f.hosts.count(uri) - n; got > 8 {
			t.Errorf("%d fetches in an hour after the store has come back, want one replica's", got)
		}
	})
}

// TestNotModifiedWhileTheStoreWasGone is for a set whose document nobody has at
// hand: it is asked for anew, so that it can be stored.
func TestNotModifiedWhileTheStoreWasGone(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		doc := set("k1")
		f.hosts.serve(uri, notModified(doc, 10*time.Minute))
		f.register(withURI("app", uri))
		r := f.replicas[0]
		r.use("app")
		f.sleep(10 * time.Minute)
		if got := f.hosts.last().ETag; got == "" {
			t.Error("asked without the validator, though the store has the document")
		}
		f.store.fail(registry.ErrUnavailable)
		f.sleep(10 * time.Minute)
		if got := f.hosts.last().ETag; got == "" {
			t.Error("asked without the validator, though nothing can be stored")
		}
		f.store.fail(nil)
		f.store.edit(func(s *memStore) { delete(s.sets, uri) })
		f.sleep(10 * time.Minute)
		if ks, ok := f.store.stored(uri); !ok || !bytes.Equal(ks.Document, doc) {
			t.Errorf("stored: %v, with the document: %v", ok, bytes.Equal(ks.Document, doc))
		}
		if r.warm("app").Stale {
			t.Error("stale")
		}
	})
}

func TestHostThatHangsDelaysNoOtherInAFleet(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, f *fleet) {
		for i := range 40 {
			u, id := fmt.Sprintf("https://hanging.example/%d", i), fmt.Sprint("hanging-", i)
			f.hosts.serve(u, fresh(set("k"), 10*time.Minute))
			f.register(withURI(id, u))
			for _, r := range f.replicas {
				r.use(id)
			}
			f.hosts.serve(u, hangs)
		}
		f.hosts.serve(uri, fresh(set("k"), 10*time.Minute))
		reg := f.register(withURI("app", uri))
		for i := range 30 * 60 {
			for _, r := range f.replicas {
				if r.warm("app").Stale {
					t.Fatal("a host that hangs kept another's set from being refreshed")
				}
			}
			if i == 900 { // nor is news of others held up
				f.hosts.serve(uri, fresh(set("new"), 10*time.Minute))
				if _, err := f.replicas[0].Refresh(t.Context(), reg); err != nil {
					t.Fatal(err)
				}
				f.sleep(time.Second)
				for _, r := range f.replicas {
					if got := r.warm("app"); kid(got) != "new" {
						t.Errorf("got key %s a second after the refresh, want new", kid(got))
					}
				}
			}
			time.Sleep(time.Second)
		}
		if f.hosts.overlapped() {
			t.Error("two replicas asked for one URL at once")
		}
	}, func(c *Config) { c.Fetchers = 4 })
}

func TestRegistrationInAFleet(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		reg := withURI("app", uri)
		if _, err := f.replicas[0].Check(t.Context(), &reg); err != nil {
			t.Fatal(err)
		}
		if f.store.count() != (storeCounts{}) {
			t.Error("a lease was taken on a URL that nobody has registered")
		}
		f.register(reg)
		if ks, ok := f.store.stored(uri); !ok || len(ks.Document) == 0 {
			t.Fatal("the set of the check was not kept")
		}
		f.replicas[1].warm("app")
		if got := f.hosts.count(uri); got != 1 {
			t.Errorf("%d fetches, want 1", got)
		}
		// What is stored by now is newer than what is to be kept.
		second := withURI("second", uri+"2")
		f.hosts.serve(uri+"2", fresh(set("old"), time.Hour))
		if _, err := f.replicas[0].Check(t.Context(), &second); err != nil {
			t.Fatal(err)
		}
		f.sleep(time.Minute)
		if _, err := f.store.Put(t.Context(), second, 0); err != nil {
			t.Fatal(err)
		}
		f.hosts.serve(uri+"2", fresh(set("new"), time.Hour))
		f.replicas[1].use("second")
		if err := f.replicas[0].Keep(t.Context(), uri+"2"); err != nil {
			t.Fatal(err)
		}
		if ks, _ := f.store.stored(uri + "2"); !bytes.Contains(ks.Document, []byte("new")) {
			t.Error("Keep has put an older set in the place of a newer one")
		}
		if got := f.replicas[0].use("second"); kid(got) != "new" {
			t.Errorf("got key %s, want new", kid(got))
		}
		// A third client of a URL that is in use: the check is by lease, and news.
		third := withURI("third", uri)
		f.hosts.serve(uri, fresh(set("k9"), time.Hour))
		if _, err := f.replicas[1].Check(t.Context(), &third); err != nil {
			t.Fatal(err)
		}
		f.sleep(time.Second)
		if got := f.replicas[0].warm("app"); kid(got) != "k9" {
			t.Errorf("got key %s, want k9", kid(got))
		}
	})
}

func TestURLThatNobodyNamesIsForgottenInAFleet(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		f.register(withURI("app", uri))
		for _, r := range f.replicas {
			r.use("app")
		}
		f.register(tombstone("app"))
		for i, r := range f.replicas {
			if _, err := r.Recipient(t.Context(), issuer, "app", idToken); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("replica %d: got %v, want ErrNotFound", i, err)
			}
		}
		f.sleep(time.Hour)
		for i, r := range f.replicas {
			if got := r.Stats(); got.KeySets != 0 {
				t.Errorf("replica %d: got %+v, want no key sets", i, got)
			}
		}
		if got := f.hosts.count(uri); got != 1 {
			t.Errorf("%d fetches, want 1", got)
		}
	})
}

func TestClosingReplicaGivesItsLeaseBack(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, hangs)
		f.register(withURI("app", uri))
		waiting := make(chan error)
		go func() {
			_, err := f.replicas[0].Recipient(t.Context(), issuer, "app", idToken)
			waiting <- err
		}()
		f.sleep(time.Second)
		if !f.store.held(uri) {
			t.Fatal("no lease is held")
		}
		f.replicas[0].Close()
		if err := <-waiting; !errors.Is(err, ErrUnavailable) {
			t.Errorf("who waited got %v, want ErrUnavailable", err)
		}
		if f.store.held(uri) {
			t.Error("the lease is still held")
		}
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		f.replicas[1].warm("app")
		synctest.Wait()
	})
}

// TestLimitIsSeenInTheStore: a refresh of which another replica has not heard
// limits those there all the same.
func TestLimitIsSeenInTheStore(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("k1"), time.Hour))
		reg := f.register(withURI("app", uri))
		for _, r := range f.replicas {
			r.use("app")
		}
		f.sleep(time.Minute)
		told := f.store.count().told
		f.store.shared.Lock()
		f.store.followers = nil
		f.store.shared.Unlock()
		if _, err := f.replicas[0].Refresh(t.Context(), reg); err != nil {
			t.Fatal(err)
		}
		if got := f.store.count().told - told; got != 1 {
			t.Errorf("%d announcements of a refresh that found nothing new, want 1: who has another set in memory is to look", got)
		}
		told = f.store.count().told
		f.sleep(4 * time.Second)
		n := f.hosts.count(uri)
		for range 2 { // and again, without asking the store
			_, err := f.replicas[1].Refresh(t.Context(), reg)
			var limit *LimitError
			if !errors.As(err, &limit) || limit.RetryAfter != 6*time.Second {
				t.Errorf("got %v, want a LimitError of 6 s", err)
			}
		}
		if got := f.store.count(); got.told != told || f.hosts.count(uri) != n || f.store.held(uri) {
			t.Errorf("%d announcements, %d fetches, a lease held: %v; want none", got.told-told, f.hosts.count(uri)-n, f.store.held(uri))
		}
		f.sleep(6 * time.Second)
		if _, err := f.replicas[1].Refresh(t.Context(), reg); err != nil {
			t.Errorf("after the limit: %v", err)
		}
		// A clock that was ahead by years limits nobody.
		f.sleep(time.Minute)
		f.store.edit(func(s *memStore) {
			ks := s.sets[uri]
			ks.ForcedAt = time.Now().Add(9999 * time.Hour)
			s.sets[uri] = ks
		})
		if _, err := f.replicas[0].Refresh(t.Context(), reg); err != nil {
			t.Errorf("with a stored time that is years ahead: %v", err)
		}
	})
}

func TestCheckTakesWhatAnotherFetches(t *testing.T) {
	for name, a := range map[string]answer{"a set": fresh(set("k1"), time.Hour), "nothing": down} {
		inFleet(t, 2, func(t *testing.T, f *fleet) {
			f.hosts.serve(uri, slow(3*time.Second, a))
			f.register(withURI("app", uri))
			go func() { _, _ = f.replicas[0].Recipient(t.Context(), issuer, "app", idToken) }()
			f.sleep(time.Second)
			reg := withURI("second", uri)
			s, err := f.replicas[1].Check(t.Context(), &reg)
			if name == "a set" && (err != nil || len(s.Recipients) != 2) || name == "nothing" && !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: got %+v, %v", name, s, err)
			}
			if got := f.hosts.count(uri); got != 1 {
				t.Errorf("%s: %d fetches, want 1", name, got)
			}
		})
	}
}

func TestStoreLostDuringAFetch(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("old"), time.Hour))
		reg := f.register(withURI("app", uri))
		r := f.replicas[0]
		r.use("app")
		f.sleep(time.Minute)
		f.hosts.serve(uri, slow(2*time.Second, fresh(set("new"), time.Hour)))
		time.AfterFunc(time.Second, func() { f.store.fail(registry.ErrUnavailable) })
		if _, err := r.Refresh(t.Context(), reg); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v, want registry.ErrUnavailable", err)
		}
		if got := r.warm("app"); kid(got) != "new" {
			t.Errorf("got key %s, want new", kid(got))
		}
		f.store.fail(nil)
		f.sleep(time.Hour)
		if ks, _ := f.store.stored(uri); !bytes.Contains(ks.Document, []byte("new")) {
			t.Error("not stored although the store has come back")
		}
	})
}

// TestFailureIsNotStoredOverASet: the document of the set in memory is nowhere,
// and the store has an older one, which is better than none.
func TestFailureIsNotStoredOverASet(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, notModified(set("k2"), 10*time.Minute))
		f.register(withURI("app", uri))
		r := f.replicas[0]
		r.use("app")
		f.store.fail(registry.ErrUnavailable)
		f.sleep(10 * time.Minute) // renewed in memory only
		f.store.fail(nil)
		older := set("k1")
		f.store.edit(func(s *memStore) {
			ks := s.sets[uri]
			ks.Document, ks.FetchedAt = older, ks.FetchedAt.Add(-time.Hour)
			s.sets[uri] = ks
		})
		f.hosts.serve(uri, down)
		f.sleep(30 * time.Minute)
		if got := r.warm("app"); kid(got) != "k2" || !got.Stale {
			t.Errorf("got key %s, stale %v; want k2, stale", kid(got), got.Stale)
		}
		if ks, _ := f.store.stored(uri); !bytes.Equal(ks.Document, older) {
			t.Error("the stored set is gone")
		}
		if f.store.held(uri) {
			t.Error("the lease was not given back")
		}
		doc := set("k3")
		f.hosts.serve(uri, notModified(doc, 10*time.Minute))
		f.sleep(7 * time.Minute)
		if ks, _ := f.store.stored(uri); !bytes.Equal(ks.Document, doc) {
			t.Error("not stored when the host has come back")
		}
	})
}

// TestPanicWhileANewSetIsChosenFromIsAFailure keeps the last good set in use.
func TestPanicWhileANewSetIsChosenFromIsAFailure(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		src := w.sources.get(uri)
		src.mu.Lock()
		src.state.Load().set.add(&demand{settings: make([]setting, 1)}, nil) // which panics
		src.mu.Unlock()
		w.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		w.sleep(9*time.Minute + 40*time.Second)
		if r := w.mustUse("app"); kid(r) != "k1" {
			t.Errorf("got key %s, want k1", kid(r))
		}
		if s := w.status("app"); s.State != Failing {
			t.Errorf("got %+v, want Failing", s)
		}
	})
}
