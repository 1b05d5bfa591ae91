package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// stateByName is the state that a client's name ends with, such as "app-0001-2".
func stateByName(clientID string) keycache.State {
	return keycache.Ready + keycache.State(clientID[len(clientID)-1]-'0')
}

// TestPagesTogetherHoldEachClientOnce lists 2500 clients in all states, by pages
// of several sizes, each state and all, while others come and go between them.
func TestPagesTogetherHoldEachClientOnce(t *testing.T) {
	const clients, states = 2500, 5
	s, _, cache := newClientKeys(t)
	cache.state = func(reg *registry.Registration) *keycache.Status {
		return &keycache.Status{State: stateByName(reg.ClientID), Since: reg.UpdatedAt}
	}
	put := func(ctx context.Context, id string, deleted bool, expect uint64) error {
		reg := registry.Registration{Issuer: "main", ClientID: id, Deleted: deleted}
		if !deleted {
			reg.Source = registry.Source{JWKS: []byte("{}")}
			reg.Settings = []registry.Setting{{Kind: registry.IDToken, EncryptionAlgorithm: "ECDH-ES", ContentEncryption: "A256GCM"}}
		}
		_, err := s.store.Put(ctx, reg, expect)
		return err
	}
	want := make(map[keycache.State][]string)
	var filling sync.WaitGroup
	for i := range clients {
		// Not evenly: the states' clients lie in runs of different lengths.
		id := fmt.Sprintf("app-%04d-%d", i, (i/7+i*i)%states)
		want[stateByName(id)] = append(want[stateByName(id)], id)
		want[0] = append(want[0], id)
		if i%50 == 49 {
			filling.Wait() // so many share a write to the disk
		}
		filling.Go(func() {
			if err := put(t.Context(), id, false, 0); err != nil {
				t.Error(err)
			}
		})
	}
	filling.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	var coming sync.WaitGroup
	for worker := range 2 {
		coming.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				// Before, between and after the others, and in every state.
				id := fmt.Sprintf("app-%04d-x%d-%d-%d", (i*617)%clients, worker, i, i%states)
				if i%10 == 0 {
					id = "aaa-" + id
				}
				for revision, deleted := range []bool{false, true} {
					if err := put(ctx, id, deleted, uint64(revision)); err != nil && ctx.Err() == nil {
						t.Errorf("%s, deleted %v: %v", id, deleted, err)
					}
				}
			}
		})
	}
	defer coming.Wait()
	defer cancel()

	for state := keycache.State(0); state <= states; state++ {
		for _, size := range []int32{0, 37, 1000, 5000} {
			var got []string
			pages, last := 0, ""
			for token := ""; ; pages++ {
				res, err := s.ListClientKeys(as(t, registrar), &bullav1.ListClientKeysRequest{PageSize: size, PageToken: token, State: stateOf(state)})
				if err != nil {
					t.Fatal(err)
				}
				if n := len(res.GetClientKeys()); n > maxPage || size > 0 && n > int(size) || size == 0 && n > defaultPage {
					t.Errorf("state %d, pages of %d: a page of %d", state, size, n)
				}
				for _, k := range res.GetClientKeys() {
					id := k.GetClientId()
					if id <= last {
						t.Fatalf("state %d, pages of %d: %s after %s", state, size, id, last)
					}
					if last = id; state != 0 && k.GetState() != stateOf(state) {
						t.Errorf("%s is %s, want %s", id, k.GetState(), stateOf(state))
					}
					if k.GetStateSince() == nil {
						t.Errorf("%s has no time since when", id)
					}
					if !strings.Contains(id, "-x") {
						got = append(got, id)
					}
				}
				if token = res.GetNextPageToken(); token == "" {
					break
				}
			}
			if !slices.Equal(got, want[state]) {
				t.Errorf("state %d, pages of %d: %d clients on %d pages, want %d, each once and in order", state, size, len(got), pages+1, len(want[state]))
			}
		}
	}
}

// TestAPageThatTakesTooLongIsShort has a look at each client take longer than a
// page may: it then holds one, and the next one follows.
func TestAPageThatTakesTooLongIsShort(t *testing.T) {
	s, _, cache := newClientKeys(t)
	for _, id := range []string{"app-1", "app-2", "app-3"} {
		register(t, s, registration(id, "one", ""))
	}
	cache.state = func(*registry.Registration) *keycache.Status {
		time.Sleep(pagePatience + time.Millisecond)
		return &keycache.Status{State: keycache.Ready}
	}
	var got []string
	for token := ""; ; {
		res, err := s.ListClientKeys(as(t, registrar), &bullav1.ListClientKeysRequest{PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(res.GetClientKeys()); n != 1 {
			t.Errorf("a page of %d, want 1", n)
		}
		got = append(got, res.GetClientKeys()[0].GetClientId())
		if token = res.GetNextPageToken(); token == "" {
			break
		}
	}
	if want := []string{"app-1", "app-2", "app-3"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
