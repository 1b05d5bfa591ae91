package keycache

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/bolt"
)

// TestWithRealParts walks a client's life with the real fetcher, a host on TLS
// and the real store.
func TestWithRealParts(t *testing.T) {
	var handler atomic.Pointer[http.HandlerFunc]
	var hits, notModified atomic.Int32
	serve := func(status int, maxAge int, etag string, doc []byte) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			hits.Add(1)
			w.Header().Set("Cache-Control", "max-age="+strconv.Itoa(maxAge))
			w.Header().Set("ETag", etag)
			w.Header().Set("Content-Type", "application/jwk-set+json")
			if r.Header.Get("If-None-Match") == etag {
				notModified.Add(1)
				status = http.StatusNotModified
			}
			w.WriteHeader(status)
			if status == http.StatusOK {
				_, _ = w.Write(doc)
			}
		})
		handler.Store(&h)
	}
	host := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*handler.Load())(w, r) }))
	host.Config.ErrorLog = log.New(io.Discard, "", 0)
	host.StartTLS()
	defer host.Close()
	address, err := url.Parse(host.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(address.Port())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(host.Certificate())
	fetcher, err := fetch.New(fetch.Config{
		RootCAs: roots, AllowPorts: []int{port}, AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
	if err != nil {
		t.Fatal(err)
	}

	path := filepath.Join(t.TempDir(), "bulla.db")
	// open starts a cache over the file, and returns how to stop both.
	open := func() (*Cache, *bolt.Store, func()) {
		t.Helper()
		store, err := bolt.Open(t.Context(), bolt.Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		c, err := New(Config{Store: store, Fetcher: fetcher, ForcedEvery: time.Nanosecond})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ran <- c.Run(ctx) }()
		return c, store, func() {
			cancel()
			if err := <-ran; err != nil {
				t.Error(err)
			}
			c.Close()
			if err := store.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	use := func(c *Cache) string {
		t.Helper()
		r, err := c.Recipient(t.Context(), issuer, "app", idToken)
		if err != nil {
			t.Fatal(err)
		}
		return kid(r)
	}

	c, store, stop := open()
	serve(http.StatusInternalServerError, 86400, `"e"`, nil)
	reg := withURI("app", host.URL+"/jwks")
	if _, err := c.Check(t.Context(), &reg); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v from a host that answers 500, want ErrUnavailable", err)
	}
	first := set("k1")
	serve(http.StatusOK, 600, `"1"`, first)
	if s, err := c.Check(t.Context(), &reg); err != nil || s.State != Ready {
		t.Fatalf("got %+v, %v; want Ready", s, err)
	}
	stored, err := store.Put(t.Context(), reg, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Invalidate(issuer, "app")
	if err := c.Keep(t.Context(), reg.Source.JWKSURI); err != nil {
		t.Fatal(err)
	}
	if got := use(c); got != "k1" {
		t.Errorf("got key %s, want k1", got)
	}
	if s, err := c.Refresh(t.Context(), stored); err != nil || notModified.Load() != 1 || s.ExpiresAt.Sub(s.FetchedAt) != 24*time.Hour+10*time.Minute {
		t.Errorf("got %+v, %v, %d answers of 304; want the set renewed by one", s, err, notModified.Load())
	}
	stop()

	// Within its freshness a restart asks nobody.
	n := hits.Load()
	c, _, stop = open()
	if got := use(c); got != "k1" || hits.Load() != n {
		t.Errorf("got key %s with %d fetches after a restart, want k1 with none", got, hits.Load()-n)
	}
	// An error's headers say nothing of the set we have.
	serve(http.StatusInternalServerError, 86400, `"e"`, nil)
	before, err := c.Status(t.Context(), stored)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Refresh(t.Context(), stored); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	after, err := c.Status(t.Context(), stored)
	if err != nil {
		t.Fatal(err)
	}
	if !after.ExpiresAt.Equal(before.ExpiresAt) || after.State != Failing {
		t.Errorf("got state %v until %v, want Failing until %v as before", after.State, after.ExpiresAt, before.ExpiresAt)
	}
	stop()

	// Nor does a host that is down keep us from serving after a restart.
	host.Close()
	c, _, stop = open()
	defer stop()
	if got := use(c); got != "k1" {
		t.Errorf("got key %s, want k1", got)
	}
	if s, err := c.Status(t.Context(), stored); err != nil || s.State != Failing {
		t.Errorf("got %+v, %v; want Failing", s, err)
	}
	var f *FetchError
	if _, err := c.Refresh(t.Context(), stored); !errors.As(err, &f) || err.Error() != fmt.Sprintf("%v (incident %s)", ErrUnavailable, f.ID) {
		t.Errorf("got %v, want the fixed text", err)
	}
	if _, err := c.Recipient(t.Context(), issuer, "other", idToken); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}
