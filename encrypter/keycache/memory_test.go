//go:build !race

// The race detector keeps memory of its own for each value.

package keycache

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
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

// TestMemoryOfAWarmClient prints what a client with an ordinary key set takes,
// beside the goal of 1.5 KiB. A client whose set nobody shares takes more: the
// document stays in memory, so that neither a refresh nor a choice has to ask
// the store for it.
func TestMemoryOfAWarmClient(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	doc := document(map[string]any{
		"kty": "RSA", "use": "enc", "kid": "2026-01-encryption", "alg": "RSA-OAEP-256",
		"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()), "e": "AQAB",
	})
	reg := registry.Registration{
		Source: registry.Source{JWKS: doc},
		Settings: []registry.Setting{
			{Kind: idToken, SigningAlgorithm: "ES256", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM"},
		},
	}
	record, err := json.Marshal(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, ownSets := range []bool{false, true} {
		name := map[bool]string{false: "registered JWK Set", true: "jwks_uri of its own"}[ownSets]
		store := &fromJSON{record: record, document: doc, ownSets: ownSets}
		h := &hosts{answers: map[string]answer{"": store.answer}}
		const clients = 3000
		before := heapInUse()
		c, err := New(Config{Store: store, Fetcher: h})
		if err != nil {
			t.Fatal(err)
		}
		for i := range clients {
			if _, err := c.Recipient(t.Context(), issuer, fmt.Sprintf("client-%06d", i), idToken); err != nil {
				t.Fatal(err)
			}
		}
		h.requests, h.under = nil, nil
		c.clients.CleanUp()
		each := (heapInUse() - before) / clients
		runtime.KeepAlive(h)
		t.Logf("%s (%d bytes): %d bytes for each warm client, goal 1536", name, len(doc), each)
		limit := uint64(1536)
		if ownSets {
			limit += uint64(len(doc)) + 128
		}
		if each > limit {
			t.Errorf("%s: %d bytes for each warm client, want at most %d", name, each, limit)
		}
		c.Close()
	}
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
