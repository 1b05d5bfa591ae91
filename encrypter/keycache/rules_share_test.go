package keycache

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
)

// The fetches of a URL do not grow with those who share it.
func TestRuleSharedURLIsFetchedAsIfItWereOnes(t *testing.T) {
	const life, span = 10 * time.Minute, 24 * time.Hour
	for _, clients := range []int{1, 50} {
		t.Run(fmt.Sprint(clients), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.hosts.serve(uri, slow(time.Second, fresh(set("k1"), life)))
				var cold sync.WaitGroup
				for i := range clients {
					w.register(withURI(fmt.Sprint(i), uri))
				}
				for i := range clients {
					cold.Go(func() {
						if _, err := w.recipient(fmt.Sprint(i)); err != nil {
							t.Error(err)
						}
					})
				}
				cold.Wait()
				if n := w.hosts.count(uri); n != 1 {
					t.Fatalf("%d first fetches, want 1", n)
				}
				for i, end := 0, time.Now().Add(span); time.Now().Before(end); i++ {
					w.mustUse(fmt.Sprint(i % clients))
					w.sleep(time.Second)
				}
				if n := w.hosts.count(uri); n < int(span/life) || n > int(span/(life*80/100))+1 {
					t.Errorf("%d fetches in a day, want one each 8 to 10 minutes", n)
				}
				if w.hosts.overlap {
					t.Error("two fetches of the URL were under way at once")
				}
			})
		})
	}
}

// However it is asked for, a URL has one fetch under way.
func TestRuleOneFetchOfAURLAtATime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, slow(3*time.Second, fresh(set("k1"), time.Minute)))
		reg := w.register(withURI("app", uri))
		var all sync.WaitGroup
		for i := range 200 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 137 * time.Millisecond)
				var err error
				switch i % 3 {
				case 0:
					_, err = w.recipient("app")
				case 1:
					_, err = w.Refresh(t.Context(), reg)
				case 2:
					tried := withURI("tried", uri)
					_, err = w.Check(t.Context(), &tried)
				}
				if err != nil && !errors.Is(err, ErrLimited) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if w.hosts.overlap {
			t.Error("two fetches of the URL were under way at once")
		}
	})
}

// counter counts the fetches under way of a Fetcher.
type counter struct {
	Fetcher
	mu    sync.Mutex
	hosts map[string]int // guarded by mu
	all   int            // guarded by mu
	high  struct{ all, host int }
}

func (c *counter) add(host string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts[host] += n
	c.all += n
	c.high.all, c.high.host = max(c.high.all, c.all), max(c.high.host, c.hosts[host])
}

func (c *counter) Get(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
	u, err := url.Parse(req.URI)
	if err != nil {
		return nil, err
	}
	c.add(u.Hostname(), 1)
	defer c.add(u.Hostname(), -1)
	return c.Fetcher.Get(ctx, req)
}

func (c *counter) highest() (all, host int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.high.all, c.high.host
}

// In the background so many fetches run at once and no more, a quarter of them
// to one host.
func TestRuleRefreshesAtOnceAreBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		urls                 func(i int) string
		most, least, perHost int
	}{
		"of many hosts": {func(i int) string { return fmt.Sprintf("https://%d.example/", i) }, 8, 6, 1},
		"of one host":   {func(i int) string { return fmt.Sprintf("https://one.example/%d", i) }, 2, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			count := &counter{hosts: make(map[string]int)}
			inWorld(t, func(t *testing.T, w *world) {
				const many = 100
				doc := set("k1")
				for i := range many {
					u := tc.urls(i)
					w.hosts.serve(u, fresh(doc, time.Minute))
					w.register(withURI(fmt.Sprint(i), u))
					w.mustUse(fmt.Sprint(i))
					w.hosts.serve(u, slow(2*time.Second, fresh(doc, time.Hour)))
				}
				w.sleep(10 * time.Minute)
				all, host := count.highest()
				if all > tc.most || all < tc.least || host > tc.perHost {
					t.Errorf("%d at once, %d of one host; want %d to %d, and %d", all, host, tc.least, tc.most, tc.perHost)
				}
				for i := range many {
					if n := w.hosts.count(tc.urls(i)); n < 2 {
						t.Errorf("%s has not had its turn", tc.urls(i))
					}
				}
			}, func(c *Config) {
				c.Fetchers = 8
				count.Fetcher, c.Fetcher = c.Fetcher, count
			})
		})
	}
}

// URLs that fail take half of the fetches in the background at most, so that the
// others go on in time.
func TestRuleFailingURLsLeaveRoom(t *testing.T) {
	count := &counter{hosts: make(map[string]int)}
	inWorld(t, func(t *testing.T, w *world) {
		var cold sync.WaitGroup
		for i := range 100 {
			u := fmt.Sprintf("https://%d.down.example/", i)
			w.hosts.serve(u, hangs)
			w.register(withURI(fmt.Sprint(i), u))
			cold.Go(func() {
				if _, err := w.recipient(fmt.Sprint(i)); !errors.Is(err, ErrUnavailable) {
					t.Errorf("got %v, want ErrUnavailable", err)
				}
			})
		}
		cold.Wait()
		count.mu.Lock()
		count.high.all = 0
		count.mu.Unlock()
		w.hosts.serve(uri, fresh(set("k1"), time.Minute))
		w.register(withURI("app", uri))
		for range 60 * 60 {
			if w.mustUse("app").Stale {
				t.Fatal("a hundred hosts that hang kept another's set from being refreshed")
			}
			w.sleep(time.Second)
		}
		if all, _ := count.highest(); all > 8/2+1 {
			t.Errorf("%d at once, want half of 8 for those that fail, and the other", all)
		}
		for i := range 100 {
			if n := w.hosts.count(fmt.Sprintf("https://%d.down.example/", i)); n < 5 {
				t.Errorf("%d attempts at one that fails in an hour, want it to have its turn", n)
			}
		}
	}, func(c *Config) {
		c.Fetchers = 8
		count.Fetcher, c.Fetcher = c.Fetcher, count
	})
}
