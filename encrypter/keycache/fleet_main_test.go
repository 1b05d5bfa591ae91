package keycache

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// sharedStore is a store in memory that several replicas share: a memStore with
// leases and a feed.
type sharedStore struct {
	*memStore

	shared    sync.Mutex
	leases    map[string]lease    // by URL; guarded by shared
	made      int                 // leases that were given; guarded by shared
	followers []registry.Follower // guarded by shared
	lost      int                 // how many of the next PutClaimed find their lease lost; guarded by shared
	gone      error               // what every access answers, nil if the store is there; guarded by shared
	told      int                 // key sets that were announced; guarded by shared
	released  int                 // guarded by shared
}

type lease struct {
	name  string
	until time.Time
}

// newsTakes is how long a change takes to reach the followers.
const newsTakes = 50 * time.Millisecond

var (
	_ registry.Store  = (*sharedStore)(nil)
	_ registry.Leases = (*sharedStore)(nil)
)

func newSharedStore() *sharedStore {
	return &sharedStore{memStore: newMemStore(), leases: make(map[string]lease)}
}

// fail makes every access answer err; nil makes all well again.
func (s *sharedStore) fail(err error) {
	s.shared.Lock()
	s.gone = err
	s.shared.Unlock()
	s.edit(func(m *memStore) { m.failGet, m.failKeySet, m.failPutKeySet = err, err, err })
}

func (s *sharedStore) failure() error {
	s.shared.Lock()
	defer s.shared.Unlock()
	return s.gone
}

// tell calls f for each follower after a while.
func (s *sharedStore) tell(f func(registry.Follower)) {
	s.shared.Lock()
	defer s.shared.Unlock()
	for _, to := range s.followers {
		time.AfterFunc(newsTakes, func() { f(to) })
	}
}

func (s *sharedStore) Put(ctx context.Context, reg registry.Registration, expect uint64) (*registry.Registration, error) {
	if err := s.failure(); err != nil {
		return nil, err
	}
	stored, err := s.memStore.Put(ctx, reg, expect)
	if err == nil {
		s.tell(func(f registry.Follower) { f.ClientChanged(reg.Issuer, reg.ClientID) })
	}
	return stored, err
}

// PutKeySet is for one who has a store of his own.
func (s *sharedStore) PutKeySet(context.Context, registry.KeySet) error {
	panic("a key set was written without a lease")
}

func (s *sharedStore) Claim(ctx context.Context, uri string, d time.Duration) (*registry.Claim, error) {
	if err := s.failure(); err != nil {
		return nil, err
	}
	if d <= 0 || d > time.Minute {
		return nil, fmt.Errorf("a lease of %v was claimed", d)
	}
	c := &registry.Claim{}
	s.edit(func(m *memStore) { c.Unnamed = !m.named(uri) })
	set, err := s.KeySet(ctx, uri)
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	if err == nil {
		c.Set = set
	}
	if c.Unnamed {
		return c, nil
	}
	s.shared.Lock()
	defer s.shared.Unlock()
	now := time.Now()
	if l, ok := s.leases[uri]; ok && now.Before(l.until) {
		c.Until = l.until
		return c, nil
	}
	s.made++
	l := lease{name: fmt.Sprint(s.made), until: now.Add(d)}
	s.leases[uri] = l
	c.Lease, c.Until = l.name, l.until
	return c, nil
}

func (s *sharedStore) PutClaimed(ctx context.Context, set registry.KeySet, name string, announce bool) error {
	if err := s.failure(); err != nil {
		return err
	}
	s.shared.Lock()
	l, ok := s.leases[set.URI]
	if !ok || l.name != name || !time.Now().Before(l.until) {
		s.shared.Unlock()
		return registry.ErrLeaseLost
	}
	delete(s.leases, set.URI)
	lost := s.lost > 0
	if lost {
		s.lost--
	}
	if announce && !lost {
		s.told++
	}
	s.shared.Unlock()
	if lost {
		return registry.ErrLeaseLost
	}
	if err := s.memStore.PutKeySet(ctx, set); err != nil {
		return err
	}
	if announce {
		s.tell(func(f registry.Follower) { f.KeySetChanged(set.URI) })
	}
	return nil
}

func (s *sharedStore) Release(_ context.Context, uri, name string) error {
	s.shared.Lock()
	defer s.shared.Unlock()
	if s.gone != nil {
		return s.gone
	}
	if s.leases[uri].name == name {
		delete(s.leases, uri)
		s.released++
	}
	return nil
}

// storeCounts is what a sharedStore has counted.
type storeCounts struct{ leases, told, released int }

func (s *sharedStore) count() storeCounts {
	s.shared.Lock()
	defer s.shared.Unlock()
	return storeCounts{s.made, s.told, s.released}
}

// held reports whether somebody has the lease on a URL.
func (s *sharedStore) held(uri string) bool {
	s.shared.Lock()
	defer s.shared.Unlock()
	l, ok := s.leases[uri]
	return ok && time.Now().Before(l.until)
}

// feed is how far a replica has heard: all the time, until it is cut.
type feed struct {
	mu  sync.Mutex
	cut bool      // guarded by mu
	at  time.Time // when it was cut; guarded by mu
}

func (f *feed) Current() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut {
		return f.at
	}
	return time.Now()
}

func (f *feed) stop(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut, f.at = true, at
}

func (f *feed) resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = false
}

// fleet is several caches on one store, on one clock.
type fleet struct {
	t        *testing.T
	store    *sharedStore
	hosts    *hosts
	logs     *logs
	replicas []*replica
	edit     []func(*Config)
}

// replica is one of them.
type replica struct {
	*Cache
	t    *testing.T
	feed *feed

	mu     sync.Mutex
	events []string // URLs that were told of; guarded by mu
}

func inFleet(t *testing.T, n int, test func(t *testing.T, f *fleet), edit ...func(*Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, store: newSharedStore(), hosts: &hosts{answers: make(map[string]answer)}, logs: &logs{}, edit: edit}
		for range n {
			f.join()
		}
		test(t, f)
	})
}

// join adds a replica.
func (f *fleet) join() *replica {
	f.t.Helper()
	r := &replica{t: f.t, feed: &feed{}}
	cfg := Config{
		Store: f.store, Leases: f.store, Feed: r.feed, Fetcher: f.hosts, IssuerURL: issuerURL,
		Logger: slog.New(slog.NewJSONHandler(f.logs, nil)),
		KeySetChanged: func(uri string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, uri)
		},
	}
	for _, e := range f.edit {
		e(&cfg)
	}
	var err error
	if r.Cache, err = New(cfg); err != nil {
		f.t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- r.Run(context.Background()) }()
	f.t.Cleanup(func() {
		r.Close()
		if err := <-ran; err != nil {
			f.t.Errorf("Run: %v", err)
		}
	})
	f.store.shared.Lock()
	f.store.followers = append(f.store.followers, r.Cache)
	f.store.shared.Unlock()
	f.replicas = append(f.replicas, r)
	return r
}

// register stores a client by way of the first replica, and lets all hear of it.
func (f *fleet) register(reg registry.Registration) *registry.Registration {
	f.t.Helper()
	var revision uint64
	if old, err := f.store.Get(f.t.Context(), issuer, reg.ClientID); err == nil {
		revision = old.Revision
	}
	stored, err := f.store.Put(f.t.Context(), reg, revision)
	if err != nil {
		f.t.Fatal(err)
	}
	by := f.replicas[0]
	by.Invalidate(reg.Issuer, reg.ClientID)
	if reg.Source.JWKSURI != "" {
		if err := by.Keep(f.t.Context(), reg.Source.JWKSURI); err != nil {
			f.t.Fatal(err)
		}
	}
	f.sleep(2 * newsTakes)
	return stored
}

func (f *fleet) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// use asks for the client's recipient, which must be there.
func (r *replica) use(clientID string) Recipient {
	r.t.Helper()
	got, err := r.Recipient(r.t.Context(), issuer, clientID, idToken)
	if err != nil {
		r.t.Fatalf("%s: %v", clientID, err)
	}
	return got
}

// warm is use for one who must not have to wait.
func (r *replica) warm(clientID string) Recipient {
	r.t.Helper()
	began := time.Now()
	got := r.use(clientID)
	if took := time.Since(began); took != 0 {
		r.t.Fatalf("%s: waited %v, want not at all", clientID, took)
	}
	return got
}

// heard returns how often the replica was told of a URL, and forgets it.
func (r *replica) heard(uri string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, u := range r.events {
		if u == uri {
			n++
		}
	}
	r.events = nil
	return n
}
