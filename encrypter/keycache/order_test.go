package keycache

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// Which of two sets holds in a fleet: the one that was asked for last, and the
// one whose registration is in force.

// belated answers with what a says at once, after d.
func belated(d time.Duration, a answer) answer {
	return func(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
		res, err := a(ctx, req)
		time.Sleep(d)
		return res, err
	}
}

func TestSetIsAsOldAsTheQuestion(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, slow(4*time.Second, fresh(set("k1"), 10*time.Minute)))
		w.register(withURI("app", uri))
		asked := time.Now()
		r, err := w.recipient("app")
		if err != nil || !r.FetchedAt.Equal(asked) {
			t.Errorf("fetched at %v, %v; want %v", r.FetchedAt, err, asked)
		}
		if ks, _ := w.store.stored(uri); !ks.FreshUntil.Equal(asked.Add(10 * time.Minute)) {
			t.Errorf("fresh until %v, want 10 minutes after %v", ks.FreshUntil, asked)
		}
	})
}

func TestSlowAnswerDoesNotReplaceALaterRefresh(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("old"), 20*time.Hour))
		reg := f.register(withURI("app", uri))
		for _, r := range f.replicas {
			r.use("app")
		}
		f.sleep(time.Minute)
		f.hosts.serve(uri, belated(4*time.Second, fresh(set("older"), 20*time.Hour)))
		f.store.fail(registry.ErrUnavailable) // for half a second, so that the first has no lease
		go func() { _, _ = f.replicas[0].Refresh(t.Context(), reg) }()
		f.sleep(500 * time.Millisecond)
		f.store.fail(nil)
		f.hosts.serve(uri, fresh(set("new"), 20*time.Hour))
		if s, err := f.replicas[1].Refresh(t.Context(), reg); err != nil || s.Recipients[0].KeyID() != "new" {
			t.Fatalf("got %+v, %v; want the new key", s, err)
		}
		f.sleep(time.Minute)
		for i, r := range f.replicas {
			if got := kid(r.warm("app")); got != "new" {
				t.Errorf("replica %d uses key %s, want new: that was acknowledged", i, got)
			}
		}
	})
}

func TestSetThatIsKeptDoesNotReplaceALaterOne(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, f *fleet) {
		a, b := f.replicas[0], f.replicas[1]
		f.hosts.serve(uri, belated(4*time.Second, fresh(set("old"), 20*time.Hour)))
		slowly := make(chan struct{})
		go func() {
			defer close(slowly)
			second := withURI("second", uri)
			if _, err := b.Check(t.Context(), &second); err != nil {
				t.Error(err)
			}
			if _, err := f.store.Put(t.Context(), second, 0); err != nil {
				t.Error(err)
			}
			b.Invalidate(second.Issuer, second.ClientID)
			if err := b.Keep(t.Context(), uri); err != nil {
				t.Error(err)
			}
		}()
		f.sleep(time.Second)
		f.hosts.serve(uri, fresh(set("new"), 20*time.Hour))
		first := withURI("first", uri)
		if _, err := a.Check(t.Context(), &first); err != nil {
			t.Fatal(err)
		}
		f.register(first)
		<-slowly
		f.sleep(time.Minute)
		for i, r := range f.replicas {
			if got := kid(r.use("first")); got != "new" {
				t.Errorf("replica %d uses key %s, want new: the other was asked for before", i, got)
			}
		}
	})
}

// unnamed are leases on URLs that the index of the store has lost, while it says
// so.
type unnamed struct {
	registry.Leases
	lost *atomic.Bool
}

func (l unnamed) Claim(ctx context.Context, uri string, d time.Duration) (*registry.Claim, error) {
	if l.lost.Load() {
		return &registry.Claim{Unnamed: true}, nil
	}
	return l.Leases.Claim(ctx, uri, d)
}

func TestRefreshOfAURLThatNobodyNamesIsNotAcknowledged(t *testing.T) {
	var lost atomic.Bool
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("old"), 20*time.Hour))
		reg := f.register(withURI("app", uri))
		for _, r := range f.replicas {
			r.use("app")
		}
		f.sleep(time.Minute)
		lost.Store(true)
		f.hosts.serve(uri, fresh(set("new"), 20*time.Hour))
		if _, err := f.replicas[1].Refresh(t.Context(), reg); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v, want registry.ErrUnavailable: nothing was stored", err)
		}
		lost.Store(false)
		f.sleep(time.Minute)
		if _, err := f.replicas[1].Refresh(t.Context(), reg); err != nil {
			t.Errorf("when it is named again: %v", err)
		}
		f.sleep(time.Second)
		if got := kid(f.replicas[0].warm("app")); got != "new" {
			t.Errorf("the other uses key %s, want new", got)
		}
	}, func(c *Config) { c.Leases = unnamed{c.Leases, &lost} })
}

// TestURLThatIsRegisteredAnew: what one replica has in memory of a URL's earlier
// life is not used for the new registration, although the one who has made that
// could not store the set.
func TestURLThatIsRegisteredAnew(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		a, b := f.replicas[0], f.replicas[1]
		f.hosts.serve(uri, fresh(set("old"), 20*time.Hour))
		f.register(withURI("app", uri))
		b.use("app")
		a.use("app")
		f.sleep(time.Minute)
		f.register(tombstone("app"))
		if _, ok := f.store.stored(uri); ok {
			t.Fatal("the set of a URL that nobody names is still stored")
		}
		f.sleep(time.Hour)
		f.hosts.serve(uri, fresh(set("new"), 20*time.Hour))
		reg := withURI("second", uri)
		if _, err := b.Check(t.Context(), &reg); err != nil {
			t.Fatal(err)
		}
		if _, err := f.store.Put(t.Context(), reg, 0); err != nil {
			t.Fatal(err)
		}
		b.Invalidate(reg.Issuer, reg.ClientID)
		f.store.fail(registry.ErrUnavailable)
		if err := b.Keep(t.Context(), uri); !errors.Is(err, registry.ErrUnavailable) {
			t.Fatalf("got %v, want registry.ErrUnavailable", err)
		}
		f.store.fail(nil)
		f.sleep(time.Minute)
		a.use("second") // has the stored set looked at
		f.sleep(2 * time.Second)
		for i, r := range f.replicas {
			if got := kid(r.use("second")); got != "new" {
				t.Errorf("replica %d uses key %s, want new", i, got)
			}
		}
		if _, ok := f.store.stored(uri); !ok {
			t.Error("the new set is not stored")
		}
	})
}

// TestStoreThatWasPutBackGetsTheNewerSet soon, and not when the set is due.
func TestStoreThatWasPutBackGetsTheNewerSet(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.hosts.serve(uri, fresh(set("new"), 20*time.Hour))
		f.register(withURI("app", uri))
		for _, r := range f.replicas {
			r.use("app")
		}
		f.sleep(time.Minute)
		was, _ := f.store.stored(uri)
		newer := was.Document
		was.Document, was.FetchedAt, was.FreshUntil = set("old"), was.FetchedAt.Add(-time.Hour), was.FreshUntil.Add(-time.Hour)
		f.store.edit(func(s *memStore) { s.sets[uri] = was })
		n := f.hosts.count(uri)
		for _, r := range f.replicas {
			r.Reset()
		}
		f.sleep(10 * time.Second)
		if ks, _ := f.store.stored(uri); string(ks.Document) != string(newer) {
			t.Error("10 s later the store still has the older set")
		}
		if got := f.hosts.count(uri) - n; got != 1 {
			t.Errorf("%d fetches, want 1 for all replicas", got)
		}
		if got := kid(f.join().warm("app")); got != "new" {
			t.Errorf("a new replica uses key %s, want new", got)
		}
	})
}
