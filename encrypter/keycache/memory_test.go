//go:build !race

// The race detector keeps memory of its own for each value.

package keycache

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
)

// fromJSON is a store as those on disk are: each record is read anew.
type fromJSON struct {
	registry.Store
	record   []byte // of a registration; the client_id and URL are put in
	document []byte
	ownSets  bool // each client has a URL of its own
}

func (s *fromJSON) Get(_ context.Context, issuer, clientID string) (*registry.Registration, error) {
	var reg registry.Registration
	if err := json.Unmarshal(s.record, &reg); err != nil {
		return nil, err
	}
	if s.ownSets {
		reg.Source = registry.Source{JWKSURI: "https://" + clientID + ".example.com/oauth/jwks.json"}
	}
	reg.Issuer, reg.ClientID = issuer, clientID
	return &reg, nil
}

func (s *fromJSON) KeySet(context.Context, string) (*registry.KeySet, error) {
	return nil, registry.ErrNotFound
}
func (s *fromJSON) PutKeySet(context.Context, registry.KeySet) error { return nil }

func (s *fromJSON) answer(context.Context, fetch.Request) (*fetch.Response, error) {
	return &fetch.Response{
		Document: bytes.Clone(s.document), ETag: `"5f3c1e7a9b"`,
		Freshness: fetch.Freshness{For: time.Hour, Stated: true},
	}, nil
}

// warmed is what is asked for until a client counts as warm.
type warmed struct {
	name   string
	store  *fromJSON
	logout bool // whether it gets logout tokens too
	// waits says that a change of the client waits: it is in memory twice.
	waits bool
}

// TestMemoryOfAWarmClient holds what a client takes, by its key source, against
// the goal of 1.5 KiB, and what the cache believes that it takes against that.
func TestMemoryOfAWarmClient(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	doc := document(map[string]any{
		"kty": "RSA", "use": "enc", "kid": "2026-01-encryption", "alg": "RSA-OAEP-256",
		"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()), "e": "AQAB",
	})
	const goal = 1536
	asymmetric := registry.Setting{Kind: idToken, SigningAlgorithm: "ES256", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM"}
	registered := recordOf(t, registry.Source{JWKS: doc}, asymmetric)
	changing := changingRecord(t, registry.Source{JWKS: doc}, asymmetric)
	pem := recordOf(t, registry.Source{PEM: block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&key.PublicKey))}, asymmetric)
	symmetric := func(alg string) []byte {
		return recordOf(t, registry.Source{Secret: &registry.Secret{DataKey: "2026-01-data-key", Sealed: make([]byte, 540), ExpiresAt: time.Now().Add(day)}},
			registry.Setting{Kind: idToken, SigningAlgorithm: "HS256", EncryptionAlgorithm: alg, ContentEncryption: "A256GCM"})
	}
	for _, w := range []warmed{
		{"registered JWK Set", &fromJSON{record: registered}, false, false},
		{"public key in PEM", &fromJSON{record: pem}, false, false},
		{"client secret, A256KW", &fromJSON{record: symmetric("A256KW")}, false, false},
		{"client secret, A256GCMKW", &fromJSON{record: symmetric("A256GCMKW")}, false, false},
		{"client secret, dir", &fromJSON{record: symmetric("dir")}, false, false},
		{"jwks_uri of its own", &fromJSON{record: registered, ownSets: true}, false, false},
		{"registered JWK Set, logout tokens too", &fromJSON{record: registered}, true, false},
		{"registered JWK Set, of which a change waits", &fromJSON{record: changing}, false, true},
	} {
		w.store.document = doc
		each, believed := memoryOf(t, w)
		t.Logf("%s: %d bytes for each warm client, believed to be %d, goal %d", w.name, each, believed, goal)
		most := uint64(goal)
		if w.waits {
			most *= 2
		}
		if each > most {
			t.Errorf("%s: %d bytes for each warm client, want at most %d", w.name, each, most)
		}
		// What is believed is what Config.MaxMemory bounds.
		if each > believed || believed > each*5/4 {
			t.Errorf("%s: %d bytes for each warm client are believed to be %d, want no less, and at most a quarter more", w.name, each, believed)
		}
	}
}

// recordOf is a registration as a store keeps it.
func recordOf(t *testing.T, source registry.Source, setting registry.Setting) []byte {
	t.Helper()
	record, err := json.Marshal(registry.Registration{Source: source, Settings: []registry.Setting{setting}})
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// changingRecord is recordOf one that becomes the same once more.
func changingRecord(t *testing.T, source registry.Source, setting registry.Setting) []byte {
	t.Helper()
	settings := []registry.Setting{setting}
	record, err := json.Marshal(registry.Registration{
		Source: source, Settings: settings,
		Pending: &registry.Pending{EffectiveAt: time.Now().Add(day), Source: source, Settings: settings},
	})
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// memoryOf is what each of many warm clients takes, in bytes, and what the cache
// believes it to be.
func memoryOf(t *testing.T, w warmed) (each, believed uint64) {
	t.Helper()
	h := &hosts{answers: map[string]answer{"": w.store.answer}}
	const clients = 2000
	before := heapInUse()
	c, err := New(Config{Store: w.store, Fetcher: h, Secrets: freshMaterial{}, IssuerURL: issuerURL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range clients {
		id := fmt.Sprintf("client-%06d", i)
		if _, err := c.Recipient(t.Context(), issuer, id, idToken); err != nil {
			t.Fatal(err)
		}
		if !w.logout {
			continue
		}
		if _, err := c.Recipient(t.Context(), issuer, id, registry.LogoutToken); err != nil {
			t.Fatal(err)
		}
	}
	h.requests, h.under = nil, nil
	// 100 000 of them must fit, each kind into its share; those that wait are few.
	sets := c.sources.total() / clients * 100_000
	ready := int64(c.clients.WeightedSize()) / clients * 100_000
	if all := c.cfg.MaxMemory; !w.waits && (sets > forSources(all) || sets+ready > all) {
		t.Errorf("%s: 100 000 do not fit into the default: %d MiB for key sets and %d MiB for clients", w.name, sets>>20, ready>>20)
	}
	c.clients.CleanUp()
	each = (heapInUse() - before) / clients
	stats := c.Stats()
	if stats.Clients != clients {
		t.Errorf("%s: %d clients in memory, want %d", w.name, stats.Clients, clients)
	}
	runtime.KeepAlive(h)
	runtime.KeepAlive(c)
	return each, uint64(stats.Bytes) / clients
}

// freshMaterial opens every secret to the same, in memory of its own.
type freshMaterial struct{}

func (freshMaterial) Open(_ context.Context, reg *registry.Registration) (*secrets.Material, error) {
	return secrets.Derive(clientSecret, reg.Settings)
}

// heapInUse is what is in use after a collection.
func heapInUse() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestMemoryIsBoundedWhateverIsRegistered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		// Large documents, of which nothing fits: the reasons are long.
		many := make([]string, 100)
		for i := range many {
			many[i] = fmt.Sprint("sig-", i, strings.Repeat("x", 100))
		}
		large := set(many...)
		if len(large) < 20<<10 {
			t.Fatalf("the document has %d bytes", len(large))
		}
		w.hosts.serve("", fresh(large, 12*time.Hour))
		bound := w.Cache.cfg.MaxMemory
		base := heapInUse()
		for i := range 300 {
			id := fmt.Sprintf("client-%05d", i)
			reg := withURI(id, fmt.Sprint(uri, i))
			if i%3 == 0 {
				reg = withSet(id, large)
			}
			reg.Settings = nil
			for k := range registry.MaxSettings { // as many settings as may be, each pinned
				reg.Settings = append(reg.Settings, registry.Setting{
					Kind: registry.TokenKind(fmt.Sprint("KIND_", k)), EncryptionAlgorithm: "ECDH-ES", ContentEncryption: "A256GCM",
					KeyID: fmt.Sprint(strings.Repeat("k", 200), i, k),
				})
			}
			w.store.edit(func(s *memStore) {
				clear(s.clients)
				clear(s.sets)
				s.clients[clientKey{issuer, id}] = &reg
			})
			if _, err := w.Recipient(t.Context(), issuer, id, "KIND_0"); !errors.Is(err, ErrUnusable) {
				t.Fatalf("got %v, want ErrUnusable", err)
			}
			w.hosts.requests = w.hosts.requests[:0]
		}
		w.hosts.requests, w.hosts.under = nil, nil
		w.clients.CleanUp()
		w.store.edit(func(s *memStore) { clear(s.clients); clear(s.sets) })
		if got := w.Stats(); got.Bytes > bound || got.Clients == 0 || got.KeySets == 0 {
			t.Errorf("got %+v, want at most %d bytes, and some of each", got, bound)
		}
		if took := int64(heapInUse()) - int64(base); took > bound*11/10 {
			t.Errorf("the heap has grown by %d bytes, want no more than about %d", took, bound)
		}
	}, func(c *Config) { c.MaxMemory = 2 << 20 })
}
