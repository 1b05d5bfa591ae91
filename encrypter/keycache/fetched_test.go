package keycache

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
)

// TestEachFetchIsTold, with what came of it and how long it took.
func TestEachFetchIsTold(t *testing.T) {
	type told struct {
		what Fetched
		took time.Duration
	}
	var mu sync.Mutex
	var all []told // guarded by mu
	inWorld(t, func(t *testing.T, w *world) {
		const uri = "https://app.example.com/jwks"
		one, two := set("one"), set("two")
		reg := w.register(withURI("app", uri))
		want := func(step string, want ...told) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(all, want) {
				t.Fatalf("%s: told %v, want %v", step, all, want)
			}
			all = nil
		}
		w.hosts.serve(uri, slow(300*time.Millisecond, fresh(one, time.Hour)))
		if _, err := w.recipient("app"); err != nil {
			t.Fatal(err)
		}
		want("the first fetch", told{FetchedChanged, 300 * time.Millisecond})
		for _, step := range []struct {
			name   string
			answer answer
			what   Fetched
			took   time.Duration
		}{
			{"304", notModified(one, time.Hour), FetchedUnchanged, 0},
			{"the same document", fresh(one, time.Hour), FetchedUnchanged, 0},
			{"another document", slow(time.Second, fresh(two, time.Hour)), FetchedChanged, time.Second},
			{"no key set", fresh([]byte("<html>"), time.Hour), FetchedNothing, 0},
			{"a host that is down", fails(fetch.ClassConnect, errors.New("connection refused")), FetchedNothing, 0},
			{"a host that hangs", hangs, FetchedNothing, 5 * time.Second},
			{"a fetcher that panics", func(context.Context, fetch.Request) (*fetch.Response, error) { panic("no") }, FetchedNothing, 0},
		} {
			w.sleep(time.Minute) // what is tried again meanwhile is not asked for here
			w.hosts.serve(uri, step.answer)
			mu.Lock()
			all = nil
			mu.Unlock()
			_, _ = w.Refresh(t.Context(), reg) // what was told says how it went
			want(step.name, told{step.what, step.took})
		}
	}, func(c *Config) {
		c.Fetched = func(what Fetched, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, told{what, took})
		}
		c.ForcedEvery = time.Second
	})
}
