package postgres

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

// A round trip costs a millisecond where the database is in another zone.
func TestRoundTripsAreFew(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	s := open(t, Config{DSN: d.Via(p.Addr()), Migrate: true})
	if _, err := s.Put(t.Context(), storetest.Client("first", uri), 0); err != nil { // opens a connection, makes a data key
		t.Fatal(err)
	}
	e := s.engine
	lease := ""
	for _, tc := range []struct {
		what string
		want int
		call func() error
	}{
		{"a read", 1, func() error { _, err := s.Get(t.Context(), "main", "first"); return err }},
		{"a registration", 4, func() error { _, err := s.Put(t.Context(), storetest.Client("app", uri), 0); return err }},
		{"a lease", 1, func() error {
			c, err := e.Claim(t.Context(), []byte(uri), time.Minute)
			lease = c.Lease
			return err
		}},
		{"a write by its holder", 2, func() error {
			return e.PutClaimed(t.Context(), []byte(uri), []byte("v"), lease, records.Guard{}, true)
		}},
		{"the end of a lease", 1, func() error { return e.Release(t.Context(), []byte(uri), lease) }},
		{"an Update that only writes", 2, func() error {
			return e.Update(t.Context(), func(tx records.Tx) error { return tx.Put(records.Rings, []byte("k"), []byte("v")) })
		}},
		{"an Update that does nothing", 0, func() error {
			return e.Update(t.Context(), func(records.Tx) error { return nil })
		}},
	} {
		before := p.Asked()
		if err := tc.call(); err != nil {
			t.Errorf("%s: %v", tc.what, err)
		}
		if got := p.Asked() - before; got != tc.want {
			t.Errorf("%s took %d round trips, want %d", tc.what, got, tc.want)
		}
	}
}

// BenchmarkRegistration is a new client with a jwks_uri, by several callers.
func BenchmarkRegistration(b *testing.B) {
	d := cluster.NewDatabase(b)
	s, err := Open(b.Context(), Config{DSN: d.TCP(), Migrate: true, DataKeys: datakeytest.Config(wrapper)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var serial atomic.Int64
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			n := serial.Add(1)
			if _, err := s.Put(context.Background(), storetest.Client(fmt.Sprint("app", n), fmt.Sprint("https://client.example/", n)), 0); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkMiss is what a client costs that is not in memory.
func BenchmarkMiss(b *testing.B) {
	d := cluster.NewDatabase(b)
	s, err := Open(b.Context(), Config{DSN: d.TCP(), Migrate: true, DataKeys: datakeytest.Config(wrapper)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := s.Put(b.Context(), storetest.Client("app", uri), 0); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Get(context.Background(), "main", "app"); err != nil {
				b.Error(err)
			}
		}
	})
}

// The longest names that a client can have fit the database's indexes.
func TestLongestNamesFit(t *testing.T) {
	s, _ := opener(t)
	name := func(n int) string { // of bytes that do not compress
		text := ""
		for i := 0; len(text) < n; i++ {
			text += fmt.Sprintf("%x", (i*7919+13)*104729)
		}
		return text[:n]
	}
	long := "https://a.example/" + name(registry.MaxJWKSURI-len("https://a.example/"))
	reg := storetest.Client(name(registry.MaxName), long)
	reg.Issuer = name(registry.MaxName)
	if _, err := s.Put(t.Context(), reg, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.PutKeySet(t.Context(), registry.KeySet{URI: long, Document: []byte("{}")}); err != nil {
		t.Error(err)
	}
	if _, err := s.KeySet(t.Context(), long); err != nil {
		t.Error(err)
	}
}
