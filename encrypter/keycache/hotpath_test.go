package keycache

import (
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// static and fetched name clients in the caches of benchmarks.
const (
	static  = "static"
	fetched = "fetched"
)

// warmCache is a cache with two clients that have been used.
func warmCache(t testing.TB) *Cache {
	t.Helper()
	store := newMemStore()
	h := &hosts{answers: map[string]answer{uri: fresh(set("k1"), time.Hour)}}
	c, err := New(Config{Store: store, Fetcher: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	for _, reg := range []registry.Registration{withSet(static, set("k1")), withURI(fetched, uri)} {
		if _, err := store.Put(t.Context(), reg, 0); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if _, err := c.Recipient(t.Context(), issuer, reg.ClientID, idToken); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

func TestWarmClientAllocatesNothing(t *testing.T) {
	c := warmCache(t)
	ctx := t.Context()
	for _, id := range []string{static, fetched} {
		got := testing.AllocsPerRun(1000, func() {
			if _, err := c.Recipient(ctx, issuer, id, idToken); err != nil {
				t.Error(err)
			}
		})
		if got != 0 {
			t.Errorf("%s: %v allocations, want none", id, got)
		}
	}
}

func BenchmarkRecipient(b *testing.B) {
	c := warmCache(b)
	ctx := b.Context()
	for _, id := range []string{static, fetched} {
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
