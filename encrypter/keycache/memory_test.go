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
	"fmt"
	"runtime"
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
	limit  uint64
}

// TestMemoryOfAWarmClient prints what a client takes, by its key source, beside
// the goal of 1.5 KiB. Three take more: one whose set nobody shares, as the
// document stays in memory so that neither a refresh nor a choice has to ask the
// store for it; one of A*GCMKW, for which the standard library keeps tables
// beside the key; and one that gets encrypted logout tokens, as it has a second
// recipient for them.
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
	pem := recordOf(t, registry.Source{PEM: block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&key.PublicKey))}, asymmetric)
	symmetric := func(alg string) []byte {
		return recordOf(t, registry.Source{Secret: &registry.Secret{DataKey: "2026-01-data-key", Sealed: make([]byte, 540), ExpiresAt: time.Now().Add(day)}},
			registry.Setting{Kind: idToken, SigningAlgorithm: "HS256", EncryptionAlgorithm: alg, ContentEncryption: "A256GCM"})
	}
	for _, w := range []warmed{
		{"registered JWK Set", &fromJSON{record: registered}, false, goal},
		{"public key in PEM", &fromJSON{record: pem}, false, goal},
		{"client secret, A256KW", &fromJSON{record: symmetric("A256KW")}, false, goal},
		{"client secret, A256GCMKW", &fromJSON{record: symmetric("A256GCMKW")}, false, goal + 384},
		{"client secret, dir", &fromJSON{record: symmetric("dir")}, false, goal},
		{"jwks_uri of its own", &fromJSON{record: registered, ownSets: true}, false, goal + uint64(len(doc)) + 128},
		{"registered JWK Set, logout tokens too", &fromJSON{record: registered}, true, goal + 1024},
	} {
		w.store.document = doc
		each := memoryOf(t, w)
		t.Logf("%s: %d bytes for each warm client, goal %d", w.name, each, goal)
		if each > w.limit {
			t.Errorf("%s: %d bytes for each warm client, want at most %d", w.name, each, w.limit)
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

// memoryOf is what each of many warm clients takes, in bytes.
func memoryOf(t *testing.T, w warmed) uint64 {
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
	c.clients.CleanUp()
	each := (heapInUse() - before) / clients
	runtime.KeepAlive(h)
	runtime.KeepAlive(c)
	return each
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
