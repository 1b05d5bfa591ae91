package keycache

import (
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// static, fetched and secret name clients in the caches of benchmarks, by where
// their keys come from.
const (
	static  = "static"
	fetched = "fetched"
	secret  = "secret"
)

// warmCache is a cache with clients that have been used.
func warmCache(t testing.TB) *Cache {
	t.Helper()
	store := newMemStore()
	h := &hosts{answers: map[string]answer{uri: fresh(set("k1"), time.Hour)}}
	v := newVault()
	c, err := New(Config{Store: store, Fetcher: h, Secrets: v.keeper(), IssuerURL: issuerURL, Feed: steady{time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	derived := v.withSecret(secret, clientSecret, time.Now().Add(time.Hour),
		registry.Setting{Kind: idToken, SigningAlgorithm: "HS256", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM"})
	for _, reg := range []registry.Registration{withSet(static, set("k1")), withURI(fetched, uri), derived} {
		if _, err := store.Put(t.Context(), reg, 0); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			for _, kind := range []registry.TokenKind{idToken, registry.LogoutToken} {
				if _, err := c.Recipient(t.Context(), issuer, reg.ClientID, kind); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if _, err := c.SigningSecret(t.Context(), issuer, secret); err != nil {
		t.Fatal(err)
	}
	return c
}

// steady is a feed that has always told all.
type steady struct{ now time.Time }

func (s steady) Current() time.Time { return s.now }

func TestWarmClientAllocatesNothing(t *testing.T) {
	c := warmCache(t)
	ctx := t.Context()
	for _, id := range []string{static, fetched, secret} {
		for _, kind := range []registry.TokenKind{idToken, registry.LogoutToken} {
			got := testing.AllocsPerRun(1000, func() {
				if _, err := c.Recipient(ctx, issuer, id, kind); err != nil {
					t.Error(err)
				}
			})
			if got != 0 {
				t.Errorf("%s %s: %v allocations, want none", id, kind, got)
			}
		}
	}
	got := testing.AllocsPerRun(1000, func() {
		if _, err := c.SigningSecret(ctx, issuer, secret); err != nil {
			t.Error(err)
		}
	})
	if got != 0 {
		t.Errorf("signing secret: %v allocations, want none", got)
	}
}

func BenchmarkRecipient(b *testing.B) {
	c := warmCache(b)
	ctx := b.Context()
	for _, id := range []string{static, fetched, secret} {
		b.Run(id, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := c.Recipient(ctx, issuer, id, idToken); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
