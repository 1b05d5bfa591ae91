package keycache

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// inWays are n clients of one URL that choose from its set in different ways:
// each pins another of the kids.
func inWays(n int) (regs []registry.Registration, kids []string) {
	for i := range n {
		kids = append(kids, fmt.Sprint("key-", i))
		reg := withURI(fmt.Sprint("app-", i), uri)
		for s := range reg.Settings {
			reg.Settings[s].KeyID = kids[i]
		}
		regs = append(regs, reg)
	}
	return regs, kids
}

// TestNewSetIsChosenFromWithoutTheStore in however many ways its clients do.
func TestNewSetIsChosenFromWithoutTheStore(t *testing.T) {
	for _, ways := range []int{1, maxVariants, maxVariants + 1, 4 * maxVariants} {
		for name, run := range map[string]func(*testing.T, func(*testing.T, *world), ...func(*Config)){
			"alone": inWorld,
			"in a fleet": func(t *testing.T, test func(*testing.T, *world), edit ...func(*Config)) {
				inFleet(t, 1, func(t *testing.T, f *fleet) {
					test(t, &world{Cache: f.replicas[0].Cache, t: t, store: f.store.memStore, hosts: f.hosts})
				}, edit...)
			},
		} {
			t.Run(fmt.Sprintf("%d ways, %s", ways, name), func(t *testing.T) {
				run(t, func(t *testing.T, w *world) {
					regs, kids := inWays(ways)
					first, second := set(kids...), set(kids...)
					w.hosts.serve(uri, fresh(first, 10*time.Minute))
					for _, reg := range regs {
						w.register(reg)
					}
					before := make(map[string]string)
					for i, reg := range regs {
						r := w.mustUse(reg.ClientID)
						if before[reg.ClientID] = r.Thumbprint; kid(r) != kids[i] {
							t.Fatalf("%s: got key %s, want %s", reg.ClientID, kid(r), kids[i])
						}
					}
					src := w.sources.get(uri)
					if got := src.text.Load() != nil; got != (ways > maxVariants) {
						t.Errorf("the document is in memory: %v", got)
					}
					w.hosts.serve(uri, fresh(second, 10*time.Minute))
					w.store.edit(func(s *memStore) {
						s.failGet, s.failKeySet, s.failPutKeySet = registry.ErrUnavailable, registry.ErrUnavailable, registry.ErrUnavailable
					})
					w.sleep(10 * time.Minute)
					for i, reg := range regs {
						r := w.mustUse(reg.ClientID)
						if kid(r) != kids[i] || r.Thumbprint == before[reg.ClientID] {
							t.Errorf("%s: got key %s, another than before %v; want the new %s", reg.ClientID, kid(r), r.Thumbprint != before[reg.ClientID], kids[i])
						}
					}
				})
			})
		}
	}
}

func TestClientsThatChooseAlikeShareTheirKeys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), time.Hour))
		w.register(withURI("a", uri))
		w.register(withURI("b", uri))
		pinned := withURI("c", uri)
		pinned.Settings[0].KeyID = "k1"
		w.register(pinned)
		if w.mustUse("a").Recipient != w.mustUse("b").Recipient {
			t.Error("two clients that choose alike have a recipient each")
		}
		if w.mustUse("a").Recipient == w.mustUse("c").Recipient {
			t.Error("two clients with different settings share a recipient")
		}
	})
}

// TestLateClientFindsItsKeysInTheStore though the document is not in memory any
// more.
func TestLateClientFindsItsKeysInTheStore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		regs, kids := inWays(2)
		w.hosts.serve(uri, fresh(set(kids...), time.Hour))
		for _, reg := range regs {
			w.register(reg)
		}
		w.mustUse("app-0")
		if w.sources.get(uri).text.Load() != nil {
			t.Fatal("the document is in memory")
		}
		w.store.edit(func(s *memStore) { s.failKeySet = registry.ErrUnavailable })
		w.mustRefuse("app-1", registry.ErrUnavailable)
		w.store.edit(func(s *memStore) { s.failKeySet = nil })
		if r := w.mustUse("app-1"); kid(r) != kids[1] {
			t.Errorf("got key %s, want %s", kid(r), kids[1])
		}
		if got := w.hosts.count(uri); got != 1 {
			t.Errorf("%d fetches, want 1", got)
		}
		// If the store has lost it, the host is asked, and it is stored again.
		third := withURI("third", uri)
		third.Settings = third.Settings[:1]
		w.register(third)
		w.store.edit(func(s *memStore) { delete(s.sets, uri) })
		w.mustUse("third")
		if got, stored := w.hosts.count(uri), len(w.store.sets[uri].Document) > 0; got != 2 || !stored {
			t.Errorf("%d fetches, stored %v; want 2, and stored", got, stored)
		}
		if got := w.hosts.last().ETag; got != "" {
			t.Error("asked with the validator of a document that is nowhere")
		}
	})
}

func TestStatusAndExplanationReadTheStore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("sig-1", "k1"), time.Hour))
		reg := w.register(withURI("app", uri))
		w.mustUse("app")
		e, err := w.Explain(t.Context(), reg, idToken)
		if err != nil || len(e.Verdicts) != 2 {
			t.Errorf("got %+v, %v; want both keys", e, err)
		}
		other := *reg // another revision, of which nothing is ready
		other.Revision++
		if s, err := w.Status(t.Context(), &other); err != nil || len(s.Recipients) != 2 || s.State != Ready {
			t.Errorf("got %+v, %v; want Ready with two keys", s, err)
		}
		other.Revision++
		w.facts.InvalidateAll()
		w.store.edit(func(s *memStore) { s.failKeySet = registry.ErrUnavailable })
		if _, err := w.Explain(t.Context(), reg, idToken); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v while the store is gone, want registry.ErrUnavailable", err)
		}
		if _, err := w.Status(t.Context(), &other); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v while the store is gone, want registry.ErrUnavailable", err)
		}
		// What is ready for use needs no store.
		if s, err := w.Status(t.Context(), reg); err != nil || len(s.Recipients) != 2 {
			t.Errorf("got %+v, %v; want two keys", s, err)
		}
	})
}

// TestTamperedSetIsReplacedWithoutAPause: the store gives out nothing that fails
// its authentication, and what is in memory stays in use until the host is asked.
func TestTamperedSetIsReplacedWithoutAPause(t *testing.T) {
	doc := set("k1")
	for name, run := range map[string]func(*testing.T, func(*testing.T, *world), ...func(*Config)){
		"alone": inWorld,
		"in a fleet": func(t *testing.T, test func(*testing.T, *world), edit ...func(*Config)) {
			inFleet(t, 1, func(t *testing.T, f *fleet) {
				test(t, &world{Cache: f.replicas[0].Cache, t: t, store: f.store.memStore, hosts: f.hosts})
			}, edit...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.hosts.serve(uri, notModified(doc, 10*time.Minute))
				w.register(withURI("app", uri))
				w.mustUse("app")
				w.store.edit(func(s *memStore) { delete(s.sets, uri) })
				for range 60 {
					w.sleep(10 * time.Second)
					if w.mustUse("app").Stale {
						t.Fatal("stale")
					}
				}
				if stored, _ := w.store.stored(uri); !bytes.Equal(stored.Document, doc) {
					t.Error("not stored again")
				}
			})
		})
	}
}
