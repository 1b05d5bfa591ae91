package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names stands in for the store: which clients, each as issuer/client_id, have a URL.
type names struct {
	mu    sync.Mutex // guards what follows
	of    map[string][]string
	err   error
	hang  bool // a look lasts until its context ends
	asked []string
}

func (n *names) ClientsOf(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error {
	n.mu.Lock()
	n.asked = append(n.asked, uri)
	list, err, hang := n.of[uri], n.err, n.hang
	n.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	for _, name := range list {
		issuer, clientID, _ := strings.Cut(name, "/")
		if !yield(issuer, clientID) {
			break
		}
	}
	return err
}

func newHub(t *testing.T, cfg Config) *Hub {
	t.Helper()
	if cfg.Clients == nil {
		cfg.Clients = &names{}
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return h
}

func begin(t *testing.T, h *Hub, caller, issuer string) *Watch {
	t.Helper()
	w, err := h.Watch(caller, issuer, func(clientID string) bool { return !strings.HasPrefix(clientID, "secret-") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// told is what Next returns until nothing is left, when everybody waits.
func told(t *testing.T, w *Watch) (list []string, err error) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // of the bubble's clock
		clientID, err := w.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		list = append(list, clientID)
	}
}

func wantTold(t *testing.T, what string, w *Watch, want ...string) {
	t.Helper()
	if got, err := told(t, w); err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: told %q, %v; want %q", what, got, err, want)
	}
}

func wantEnd(t *testing.T, what string, w *Watch, want error) {
	t.Helper()
	for range 2 { // it stays ended
		if got, err := told(t, w); !errors.Is(err, want) || len(got) > 0 {
			t.Errorf("%s: told %q, %v; want %v alone", what, got, err, want)
		}
	}
}

func TestEachChangedClientIsToldOnceUntilItIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, Config{})
		h.ClientChanged("main", "before")
		main, other := begin(t, h, "a", "main"), begin(t, h, "a", "other")
		for range 3 {
			for _, id := range []string{"b", "a", "c"} {
				h.ClientChanged("main", id)
			}
		}
		h.ClientChanged("main", "secret-bank")
		wantTold(t, "main", main, "b", "a", "c")
		wantTold(t, "another issuer", other)
		h.ClientChanged("main", "a")
		wantTold(t, "a change after the look", main, "a")
	})
}

func TestAWaitEndsWithTheChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, Config{})
		w := begin(t, h, "a", "main")
		got := make(chan string, 1)
		go func() {
			id, err := w.Next(t.Context())
			got <- fmt.Sprint(id, err)
		}()
		synctest.Wait()
		began := time.Now()
		h.ClientChanged("main", "app")
		if s := <-got; s != "app<nil>" || time.Since(began) != 0 {
			t.Errorf("got %s after %v, want app at once", s, time.Since(began))
		}
		cause := errors.New("no more")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		if _, err := w.Next(ctx); !errors.Is(err, cause) {
			t.Errorf("got %v, want the cause of the context's end", err)
		}
	})
}

func TestAKeySetChangesEveryClientThatHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &names{of: map[string][]string{"u1": {"main/a", "main/b", "main/secret-c", "other/d"}, "u2": {"main/b", "main/e"}}}
		h := newHub(t, Config{Clients: store})
		h.KeySetChanged("u1") // nobody watches
		synctest.Wait()
		main, other := begin(t, h, "a", "main"), begin(t, h, "a", "other")
		for _, uri := range []string{"u1", "u2", "u1", "u3"} {
			h.KeySetChanged(uri)
		}
		synctest.Wait()
		wantTold(t, "main", main, "a", "b", "e")
		wantTold(t, "another issuer", other, "d")
		if want := []string{"u1", "u2", "u3"}; !slices.Equal(store.asked, want) {
			t.Errorf("the store was asked for %q, want %q", store.asked, want)
		}
	})
}

func TestAWatchThatMissesChangesEnds(t *testing.T) {
	some := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("main/%03d", i))
		}
		return list
	}
	for _, test := range []struct {
		what  string
		other error // what becomes of a watch of another issuer; nil: it goes on
		do    func(h *Hub, store *names)
	}{
		{"a client too many", nil, func(h *Hub, _ *names) {
			for i := range 101 {
				h.ClientChanged("main", fmt.Sprint(i))
			}
		}},
		{"a key set of too many clients", nil, func(h *Hub, store *names) {
			store.of = map[string][]string{"u": some(101)}
			h.KeySetChanged("u")
		}},
		{"too many key sets", ErrLost, func(h *Hub, store *names) {
			store.hang = true
			h.KeySetChanged("first") // is being looked at
			synctest.Wait()
			for i := range 101 {
				h.KeySetChanged(fmt.Sprint(i))
			}
		}},
		{"the store does not answer", ErrLost, func(h *Hub, store *names) {
			store.hang = true
			h.KeySetChanged("u")
			time.Sleep(patience)
		}},
		{"the store fails", ErrLost, func(h *Hub, store *names) {
			store.of, store.err = map[string][]string{"u": some(3)}, errors.New("connection lost")
			h.KeySetChanged("u")
		}},
		{"the store was put back", ErrLost, func(h *Hub, _ *names) { h.Reset() }},
	} {
		t.Run(test.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &names{}
				h := newHub(t, Config{Clients: store, MaxPending: 100})
				w, other := begin(t, h, "a", "main"), begin(t, h, "a", "other")
				test.do(h, store)
				synctest.Wait()
				wantEnd(t, test.what, w, ErrLost)
				h.ClientChanged("main", "app")
				wantEnd(t, test.what+", then a change", w, ErrLost)
				w.LookAgain("app", time.Now())
				time.Sleep(time.Minute)
				wantEnd(t, test.what+", then a time", w, ErrLost)
				// A watch that missed nothing goes on, and another may begin.
				if test.other != nil {
					wantEnd(t, test.what+", the other watch", other, test.other)
				} else {
					h.ClientChanged("other", "app")
					wantTold(t, test.what+", the other watch", other, "app")
				}
				store.mu.Lock()
				store.hang, store.err, store.of = false, nil, nil
				store.mu.Unlock()
				again := begin(t, h, "a", "main")
				h.ClientChanged("main", "app")
				synctest.Wait()
				wantTold(t, "a new watch", again, "app")
			})
		})
	}
}

func TestOneWatchThatLagsEndsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, Config{MaxPending: 10})
		slow, quick := begin(t, h, "a", "main"), begin(t, h, "a", "main")
		for i := range 11 {
			id := fmt.Sprint(i)
			h.ClientChanged("main", id)
			wantTold(t, "who keeps up", quick, id)
		}
		wantEnd(t, "who does not", slow, ErrLost)
	})
}

func TestNobodyIsAskedForWatchesThatHaveEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &names{of: map[string][]string{"u": nil}}
		for i := range 1000 {
			store.of["u"] = append(store.of["u"], fmt.Sprintf("main/%d", i))
		}
		yields := 0
		counted := clientsFunc(func(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error {
			return store.ClientsOf(ctx, uri, func(issuer, clientID string) bool { yields++; return yield(issuer, clientID) })
		})
		h := newHub(t, Config{Clients: counted, MaxPending: 10})
		w := begin(t, h, "a", "main")
		h.KeySetChanged("u")
		synctest.Wait()
		wantEnd(t, "the watch", w, ErrLost)
		if yields != 11 {
			t.Errorf("%d clients were read, want 11: the watch had ended", yields)
		}
	})
}

type clientsFunc func(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error

func (f clientsFunc) ClientsOf(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error {
	return f(ctx, uri, yield)
}

func TestWatchesAreLimited(t *testing.T) {
	h := newHub(t, Config{MaxWatches: 5, MaxPerCaller: 3})
	var list []*Watch
	for i, caller := range []string{"a", "a", "a", "b", "b"} {
		w, err := h.Watch(caller, fmt.Sprint(i%2), func(string) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, w)
	}
	want := func(caller string, want error) {
		t.Helper()
		w, err := h.Watch(caller, "main", func(string) bool { return true })
		if !errors.Is(err, want) {
			t.Errorf("a watch for %s: got %v, want %v", caller, err, want)
		}
		if w != nil {
			w.Close()
		}
	}
	want("a", ErrTooMany)
	want("b", ErrFull)
	h.Reset()
	want("a", ErrTooMany) // an ended watch counts until its call ends
	list[0].Close()
	want("a", nil)
	want("c", nil)
	h.Close()
	want("c", ErrStopping)
	for _, w := range list[1:] {
		w.Close()
	}
	if h.total != 0 || len(h.callers) != 0 || len(h.watches) != 0 {
		t.Errorf("after the end there are %d watches, %v by caller, %v by issuer", h.total, h.callers, h.watches)
	}
}

func TestCloseEndsWatchesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, Config{})
		w := begin(t, h, "a", "main")
		ended := make(chan error, 1)
		go func() {
			_, err := w.Next(t.Context())
			ended <- err
		}()
		synctest.Wait()
		began := time.Now()
		h.Close()
		if err := <-ended; !errors.Is(err, ErrStopping) || time.Since(began) != 0 {
			t.Errorf("got %v after %v, want ErrStopping at once", err, time.Since(began))
		}
	})
}

func TestAClientIsLookedAtAgainWhenItsTimeHasCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, Config{MaxPending: 3})
		w := begin(t, h, "a", "main")
		began := time.Now()
		w.LookAgain("app", began.Add(time.Hour))
		w.LookAgain("other", began.Add(time.Minute))
		w.LookAgain("other", time.Time{})
		w.LookAgain("moved", began.Add(time.Second))
		w.LookAgain("moved", began.Add(2*time.Hour))
		w.LookAgain("third", began.Add(24*time.Hour))
		w.LookAgain("too many", began.Add(time.Second))
		for _, want := range []struct {
			id string
			at time.Duration
		}{{"app", time.Hour}, {"moved", 2 * time.Hour}, {"third", 24 * time.Hour}} {
			id, err := w.Next(t.Context())
			if late := time.Since(began) - want.at; err != nil || id != want.id || late < 0 || late > clockEvery {
				t.Errorf("got %s, %v after %v; want %s after %v", id, err, time.Since(began), want.id, want.at)
			}
		}
	})
}

// TestTellingNeverWaits has many tell of more changes than may be waiting, while
// nobody reads and the store does not answer.
func TestTellingNeverWaits(t *testing.T) {
	for _, test := range []struct {
		what string
		tell func(h *Hub, name string)
	}{
		{"clients", func(h *Hub, name string) { h.ClientChanged("main", name) }},
		{"key sets", func(h *Hub, name string) { h.KeySetChanged(name) }},
	} {
		t.Run(test.what, func(t *testing.T) {
			h := newHub(t, Config{Clients: &names{hang: true}, MaxWatches: 20, MaxPerCaller: 20})
			var watches []*Watch
			for range 20 {
				watches = append(watches, begin(t, h, "a", "main"))
			}
			const tellers, each = 8, 2000
			began := time.Now()
			var all sync.WaitGroup
			for i := range tellers {
				all.Go(func() {
					for j := range each {
						test.tell(h, fmt.Sprint(i, j))
					}
				})
			}
			all.Wait()
			// A wait for the store, or for who reads, would have no end before
			// the store's time is up.
			if took := time.Since(began); took > patience/2 {
				t.Errorf("%d changes took %v", tellers*each, took)
			}
			for _, w := range watches {
				if _, err := w.Next(t.Context()); !errors.Is(err, ErrLost) {
					t.Fatalf("a watch that nobody reads: got %v after %d changes, want ErrLost", err, tellers*each)
				}
			}
		})
	}
}

func TestWatchesEndWhileChangesAreNotHeardOf(t *testing.T) {
	for _, test := range []struct {
		what string
		hang bool // the store does not answer either
	}{{"the store answers", false}, {"the store hangs", true}} {
		t.Run(test.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stale atomic.Bool
				h := newHub(t, Config{Clients: &names{hang: test.hang}, Stale: stale.Load})
				main, other := begin(t, h, "a", "main"), begin(t, h, "b", "other")
				time.Sleep(time.Minute)
				wantTold(t, "while all is well", main)
				h.KeySetChanged("u")
				stale.Store(true)
				if w, err := h.Watch("c", "main", func(string) bool { return true }); !errors.Is(err, ErrLost) {
					t.Errorf("a new watch: got %v, %v; want ErrLost", w, err)
				}
				time.Sleep(staleEvery)
				wantEnd(t, "a watch", main, ErrLost)
				wantEnd(t, "another", other, ErrLost)
				stale.Store(false)
				time.Sleep(patience) // what hangs is over too
				again := begin(t, h, "c", "main")
				h.ClientChanged("main", "app")
				time.Sleep(time.Minute)
				wantTold(t, "a watch after that", again, "app")
				wantEnd(t, "one of before", main, ErrLost)
			})
		})
	}
}

func TestAWatchSaysWhichChangeItWasToldOf(t *testing.T) {
	h := newHub(t, Config{})
	first, second := begin(t, h, "a", "main"), begin(t, h, "a", "main")
	want := func(w *Watch, id string, told uint64) {
		t.Helper()
		if got, err := w.Next(t.Context()); err != nil || got != id || w.Told() != told {
			t.Errorf("got %s, %v, told %d; want %s, told %d", got, err, w.Told(), id, told)
		}
	}
	h.ClientChanged("main", "app")
	h.ClientChanged("main", "bank")
	want(first, "app", 1)
	h.ClientChanged("other", "app")
	h.ClientChanged("main", "app")
	want(first, "bank", 2)
	want(first, "app", 4)
	want(second, "app", 4) // once, for both changes
	want(second, "bank", 2)
	if told := h.Told(); told != 4 {
		t.Errorf("the hub was told of %d changes, want 4", told)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	for what, cfg := range map[string]Config{
		"no clients": {}, "negative": {Clients: &names{}, MaxPending: -1}, "negative watches": {Clients: &names{}, MaxWatches: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
