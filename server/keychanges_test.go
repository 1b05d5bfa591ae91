package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/watch"
)

// waitsStore is a registry.Waits in memory.
type waitsStore struct {
	mu      sync.Mutex
	clients map[string]*registry.Registration // by client_id, as they are stored; guarded by mu
	stray   []registry.Waiting                // in the index, and in no record; guarded by mu
	fail    error                             // what every access answers; guarded by mu
	reads   int                               // of the index; guarded by mu
	settled []string                          // guarded by mu
}

func (s *waitsStore) Waiting(_ context.Context, limit int) ([]registry.Waiting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	list := slices.Clone(s.stray)
	for id, r := range s.clients {
		if r.Pending != nil {
			list = append(list, registry.Waiting{Issuer: "main", ClientID: id, EffectiveAt: r.Pending.EffectiveAt, Revision: r.Revision})
		}
	}
	slices.SortFunc(list, func(a, b registry.Waiting) int { return a.EffectiveAt.Compare(b.EffectiveAt) })
	return list[:min(limit, len(list))], s.fail
}

func (s *waitsStore) Unsettled(_ context.Context, _, clientID string) (*registry.Registration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.clients[clientID]
	switch {
	case s.fail != nil:
		return nil, s.fail
	case r == nil:
		return nil, registry.ErrNotFound
	}
	return r, nil
}

func (s *waitsStore) Settle(_ context.Context, w registry.Waiting) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.settled = append(s.settled, w.ClientID)
	s.stray = slices.DeleteFunc(s.stray, func(o registry.Waiting) bool { return o == w })
	if r := s.clients[w.ClientID]; r != nil && r.Pending != nil && r.Pending.EffectiveAt.Equal(w.EffectiveAt) {
		s.clients[w.ClientID] = r.InForce(time.Now())
	}
	return nil
}

func (s *waitsStore) edit(f func(s *waitsStore)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// changesTo is a client whose key, one, becomes two at a time.
func changesTo(clientID, one, two string, at time.Time) *registry.Registration {
	settings := []registry.Setting{{Kind: "ID_TOKEN", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM"}}
	return &registry.Registration{
		Issuer: "main", ClientID: clientID, Source: registry.Source{JWKS: []byte(one)}, Settings: settings, Revision: 2,
		Pending: &registry.Pending{EffectiveAt: at, Source: registry.Source{JWKS: []byte(two)}, Settings: settings},
	}
}

// replicaOf runs the keyChanges of one replica.
type replicaOf struct {
	*keyChanges
	t     *testing.T
	audit *auditor
	keys  *keys
	watch *watch.Watch
	end   func()
}

type nobody struct{}

func (nobody) ClientsOf(context.Context, string, func(issuer, clientID string) bool) error {
	return nil
}

func (s *waitsStore) replica(t *testing.T) *replicaOf {
	t.Helper()
	hub, err := watch.New(watch.Config{Clients: nobody{}})
	if err != nil {
		t.Fatal(err)
	}
	w, err := hub.Watch("reader", "main", func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	r := &replicaOf{t: t, audit: &auditor{}, keys: &keys{}, watch: w}
	r.keyChanges = newKeyChanges(&Config{Waits: s, ClientKeys: r.keys, Auditor: r.audit, Watches: hub}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	var once sync.Once
	r.end = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(r.end)
	synctest.Wait()
	return r
}

// lines are what is on record.
func (r *replicaOf) lines() []string {
	r.audit.mu.Lock()
	defer r.audit.mu.Unlock()
	var list []string
	for _, e := range r.audit.events {
		list = append(list, fmt.Sprint(e.Outcome, " ", e.ClientID, " ", e.OldThumbprint, " > ", e.NewThumbprint, " ", e.Revision, " ", e.KeySource))
		if e.EffectiveAt.IsZero() || time.Now().Before(e.EffectiveAt) {
			r.t.Errorf("a line of %v before %v", e.ClientID, e.EffectiveAt)
		}
	}
	return list
}

func (r *replicaOf) want(what string, want ...string) {
	r.t.Helper()
	synctest.Wait()
	if got := r.lines(); !slices.Equal(got, want) {
		r.t.Errorf("%s, on record:\n%s\nwant:\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// told is whom those who watch are told to look at now.
func (r *replicaOf) told() string {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Millisecond)
	defer cancel()
	id, _ := r.watch.Next(ctx) // empty for nobody
	return id
}

const effect = "took_effect app ID_TOKEN=of-one > ID_TOKEN=of-two 3 jwks"

func TestEachReplicaTellsOfAChangeWhenItTakesEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &waitsStore{clients: map[string]*registry.Registration{}}
		one, two := s.replica(t), s.replica(t)
		at := time.Now().Add(3 * time.Second)
		s.edit(func(s *waitsStore) { s.clients["app"] = changesTo("app", "one", "two", at) })
		one.ClientChanged("main", "app") // the other replica hears of it by itself, and late
		time.Sleep(time.Second)
		synctest.Wait()
		if n := one.count(); n != 1 {
			t.Errorf("%d changes wait, want 1", n)
		}
		two.ClientChanged("main", "app")
		time.Sleep(time.Until(at) - 10*time.Millisecond)
		one.want("before")
		if id := one.told(); id != "" {
			t.Errorf("told of %q before", id)
		}
		time.Sleep(time.Until(at))
		for i, r := range []*replicaOf{one, two} {
			r.want(fmt.Sprintf("replica %d", i), effect)
			if id := r.told(); id != "app" {
				t.Errorf("replica %d: told of %q", i, id)
			}
		}
		if n := one.count(); n != 0 {
			t.Errorf("%d changes wait, want none", n)
		}
		s.edit(func(s *waitsStore) {
			if len(s.settled) != 0 {
				t.Errorf("settled at once: %v", s.settled)
			}
		})
		time.Sleep(settleAfter + settleSpread + readEvery)
		synctest.Wait()
		s.edit(func(s *waitsStore) {
			if r := s.clients["app"]; r.Pending != nil || r.Revision != 3 {
				t.Errorf("stored is %+v", r)
			}
		})
		time.Sleep(time.Hour)
		one.want("an hour later", effect)
		one.mu.Lock()
		defer one.mu.Unlock()
		if len(one.entries) != 0 {
			t.Errorf("still known: %v", one.entries)
		}
	})
}

func TestAChangeIsToldOfWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &waitsStore{clients: map[string]*registry.Registration{"app": changesTo("app", "one", "two", time.Now().Add(time.Hour))}}
		r := s.replica(t)
		time.Sleep(time.Minute)
		s.edit(func(s *waitsStore) { s.fail = registry.ErrUnavailable })
		time.Sleep(time.Hour)
		r.want("the store is gone", effect)
		if id := r.told(); id != "app" {
			t.Errorf("told of %q", id)
		}
		s.edit(func(s *waitsStore) { s.fail = nil })
		time.Sleep(2 * readEvery)
		r.want("the store is back", effect)
		s.edit(func(s *waitsStore) {
			if s.clients["app"].Pending != nil {
				t.Error("it is not settled")
			}
		})
	})
}

func TestAChangeThatTookEffectWhileNobodyRanIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &waitsStore{clients: map[string]*registry.Registration{"app": changesTo("app", "one", "two", time.Now().Add(-time.Hour))}}
		r := s.replica(t)
		r.want("at the start", effect)
		// Once more if it ends before it is settled, and never after.
		r.end()
		again := s.replica(t)
		again.want("at the next start", effect)
		time.Sleep(settleAfter + settleSpread + readEvery)
		again.end()
		s.replica(t).want("once it is settled")
	})
}

func TestWhatIsTakenBackIsNotToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Now().Add(time.Minute)
		s := &waitsStore{clients: map[string]*registry.Registration{"app": changesTo("app", "one", "two", at)}}
		r := s.replica(t)
		time.Sleep(30 * time.Second)
		s.edit(func(s *waitsStore) { s.clients["app"] = changesTo("app", "one", "three", at.Add(time.Minute)) })
		r.ClientChanged("main", "app")
		time.Sleep(time.Until(at) + time.Second)
		r.want("replaced")
		s.edit(func(s *waitsStore) { s.clients["app"].Pending = nil })
		r.ClientChanged("main", "app")
		time.Sleep(time.Hour)
		r.want("taken back")
		if n := r.count(); n != 0 {
			t.Errorf("%d changes wait", n)
		}
	})
}

func TestALineThatCannotBeWrittenIsWrittenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &waitsStore{clients: map[string]*registry.Registration{"app": changesTo("app", "one", "two", time.Now().Add(time.Minute))}}
		r := s.replica(t)
		r.audit.mu.Lock()
		r.audit.err = audit.ErrUnavailable
		r.audit.mu.Unlock()
		time.Sleep(10 * time.Minute)
		r.want("while the log cannot be written")
		s.edit(func(s *waitsStore) {
			if len(s.settled) != 0 {
				t.Error("settled without a line")
			}
		})
		r.audit.mu.Lock()
		r.audit.err = nil
		r.audit.mu.Unlock()
		time.Sleep(2 * retryTelling)
		r.want("when it can", effect)
	})
}

func TestWhatIsFarAwayIsCountedAndNotLookedAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Now().Add(20 * 24 * time.Hour)
		far := changesTo("app", "one", "two", at)
		far.Pending.Source = registry.Source{JWKSURI: "https://client.example/jwks"}
		s := &waitsStore{clients: map[string]*registry.Registration{"app": far}}
		r := s.replica(t)
		prepared := func() int {
			r.keys.mu.Lock()
			defer r.keys.mu.Unlock()
			return len(r.keys.prepared)
		}
		time.Sleep(18 * 24 * time.Hour)
		if n := r.count(); n != 1 || prepared() != 0 {
			t.Errorf("%d changes wait, %d times made ready; want 1 and 0", n, prepared())
		}
		time.Sleep(time.Until(at) - 23*time.Hour)
		before := prepared()
		time.Sleep(time.Hour)
		if n := prepared() - before; n < 30 || n > 61 {
			t.Errorf("made ready %d times in an hour", n)
		}
		// It takes effect whether or not it could be made ready.
		r.keys.mu.Lock()
		r.keys.unready = errors.New("the store is slow")
		r.keys.mu.Unlock()
		time.Sleep(time.Until(at))
		r.want("at its time", "took_effect app ID_TOKEN=of-one > ID_TOKEN=of- 3 https://client.example/jwks")
	})
}

// Somebody who can write the store can write the index too.
func TestAnIndexThatLiesCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &waitsStore{clients: map[string]*registry.Registration{"app": changesTo("app", "one", "two", time.Now().Add(time.Hour))}}
		for i := range 50 {
			s.stray = append(s.stray, registry.Waiting{Issuer: "main", ClientID: fmt.Sprint("nobody-", i), EffectiveAt: time.Now().Add(time.Minute).UTC()})
		}
		s.stray = append(s.stray, registry.Waiting{Issuer: "main", ClientID: "app", EffectiveAt: time.Now().Add(time.Minute).UTC()})
		r := s.replica(t)
		time.Sleep(10 * time.Minute)
		r.want("of what no record has")
		s.edit(func(s *waitsStore) {
			if len(s.stray) != 0 {
				t.Errorf("%d strays are left", len(s.stray))
			}
		})
		time.Sleep(time.Hour)
		r.want("of what one has", effect)
	})
}

// However often clients change, the index is read twice a second at most.
func TestManyChangesReadTheIndexFewTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &waitsStore{clients: map[string]*registry.Registration{}}
		r := s.replica(t)
		for range 10_000 {
			r.ClientChanged("main", "some")
			time.Sleep(time.Millisecond)
		}
		s.edit(func(s *waitsStore) {
			if s.reads > 22 {
				t.Errorf("the index was read %d times in ten seconds", s.reads)
			}
		})
		s.edit(func(s *waitsStore) { s.reads = 0 })
		time.Sleep(time.Minute)
		s.edit(func(s *waitsStore) {
			if s.reads < 3 || s.reads > 6 {
				t.Errorf("the index was read %d times in a quiet minute", s.reads)
			}
		})
	})
}
