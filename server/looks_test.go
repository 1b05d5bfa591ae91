package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/watch"
)

// looking counts looks, each of which lasts a while and returns its number.
type looking struct {
	looks
	n, told atomic.Uint64
	takes   time.Duration
	err     error
}

func (l *looking) share(ctx context.Context, told uint64) (string, error) {
	res, err := l.looks.share(ctx, lookAt{"main", "app"}, told, l.told.Load, func(ctx context.Context) (*bullav1.WatchClientKeysResponse, error) {
		n := l.n.Add(1)
		select {
		case <-time.After(l.takes):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return &bullav1.WatchClientKeysResponse{ClientKey: &bullav1.ClientKey{Revision: fmt.Sprint(n)}}, l.err
	})
	return res.GetClientKey().GetRevision(), err
}

func TestALookIsSharedOnlyWithThoseToldBeforeItBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &looking{takes: 10 * time.Millisecond}
		want := func(what string, told uint64, want string) {
			t.Helper()
			if got, err := l.share(t.Context(), told); err != nil || got != want {
				t.Errorf("%s: got look %s, %v; want look %s", what, got, err, want)
			}
		}
		var all sync.WaitGroup
		l.told.Store(7) // five are told of two changes, while others change too
		for range 5 {
			all.Go(func() { want("at the same time", 3, "1") })
		}
		synctest.Wait() // the look has begun
		l.told.Store(8) // the client changes again
		all.Go(func() { want("told while it is looked at", 8, "2") })
		synctest.Wait()
		all.Go(func() { want("told before, and late", 3, "2") })
		all.Wait()
		want("once more", 8, "2")
		l.told.Store(9)
		want("another change", 9, "3")
		time.Sleep(lookShared)
		want("too late", 9, "4")
		time.Sleep(lookShared)
		synctest.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		if n := len(l.last); n != 0 {
			t.Errorf("%d looks are kept, want none", n)
		}
	})
}

func TestALookThatIsLeftOrFailsIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &looking{takes: time.Second}
		leaving, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := l.share(leaving, 0); !errors.Is(err, context.Canceled) {
				t.Errorf("who leaves: got %v", err)
			}
		})
		synctest.Wait()
		for range 3 {
			all.Go(func() {
				if got, err := l.share(t.Context(), 0); err != nil || got != "2" {
					t.Errorf("who stays: got look %s, %v; want the second", got, err)
				}
			})
		}
		synctest.Wait()
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := l.share(impatient, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who does not wait: got %v", err)
		}
		leave()
		all.Wait()

		time.Sleep(lookShared)
		l.takes, l.err = time.Millisecond, registry.ErrUnavailable
		for range 3 {
			all.Go(func() {
				if _, err := l.share(t.Context(), 0); !errors.Is(err, registry.ErrUnavailable) {
					t.Errorf("the store fails: got %v", err)
				}
			})
		}
		all.Wait()
		l.err = nil
		if got, err := l.share(t.Context(), 0); err != nil || got != "4" {
			t.Errorf("after the failure: got look %s, %v; want the fourth", got, err)
		}
		time.Sleep(lookShared)
	})
}

// counted is a store that counts the registrations that are read, each of which
// takes a while.
type counted struct {
	registry.Store
	reads atomic.Int64
}

func (c *counted) Get(ctx context.Context, issuer, clientID string) (*registry.Registration, error) {
	c.reads.Add(1)
	time.Sleep(2 * time.Millisecond)
	return c.Store.Get(ctx, issuer, clientID)
}

func TestWatchesOfTheSameClientsReadThemOnce(t *testing.T) {
	const watches, clients, uri = 9, 40, "https://client.example/jwks"
	s, _, _ := newClientKeys(t)
	of := func(_ context.Context, _ string, yield func(issuer, clientID string) bool) error {
		for i := range clients {
			yield("main", fmt.Sprintf("app-%02d", i))
		}
		return nil
	}
	var err error
	if s.watches, err = watch.New(watch.Config{Clients: clientsOf(of)}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = s.watches.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	for i := range clients {
		req := registration(fmt.Sprintf("app-%02d", i), "", "")
		req.KeySource = &bullav1.RegisterClientKeyRequest_JwksUri{JwksUri: uri}
		register(t, s, req)
	}
	store := &counted{Store: s.store}
	s.store = store
	var all []*watching
	for range watches {
		all = append(all, startWatch(as(t, registrar), t, s))
	}
	s.watches.KeySetChanged(uri)
	for _, w := range all {
		for i := range clients {
			if got, want := w.next(t), fmt.Sprintf("app-%02d READY 1 of-", i); got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		}
	}
	// One each; some more where a watch is far behind the others.
	if n := store.reads.Load(); n < clients || n > 2*clients {
		t.Errorf("%d reads for %d watches of %d clients, want about %d", n, watches, clients, clients)
	}
}

type clientsOf func(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error

func (f clientsOf) ClientsOf(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error {
	return f(ctx, uri, yield)
}
