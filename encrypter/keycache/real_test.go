package keycache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
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

	path, wrapper := filepath.Join(t.TempDir(), "bulla.db"), datakeytest.NewWrapper()
	// open starts a cache over the file, and returns how to stop both.
	open := func() (*Cache, *bolt.Store, func()) {
		t.Helper()
		store, err := bolt.Open(t.Context(), bolt.Config{Path: path, DataKeys: datakeytest.Config(wrapper)})
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

// TestSecretWithRealParts keeps a client's secret in the real store, under real
// data keys, and looks at the file as a thief and as a forger would.
func TestSecretWithRealParts(t *testing.T) {
	path, wrapper := filepath.Join(t.TempDir(), "bulla.db"), datakeytest.NewWrapper()
	// with runs f on a cache over the file.
	with := func(f func(c *Cache, store *bolt.Store, keeper *secrets.Keeper)) {
		t.Helper()
		store, err := bolt.Open(t.Context(), bolt.Config{Path: path, DataKeys: datakeytest.Config(wrapper)})
		if err != nil {
			t.Fatal(err)
		}
		keeper := secrets.New(store.Keys(), datakey.ErrTampered)
		c, err := New(Config{Store: store, Fetcher: &hosts{}, Secrets: keeper, IssuerURL: issuerURL})
		if err != nil {
			t.Fatal(err)
		}
		f(c, store, keeper)
		c.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
	key := sha256.Sum256([]byte(clientSecret))
	settings := []registry.Setting{{Kind: idToken, SigningAlgorithm: "HS512", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM"}}
	with(func(c *Cache, store *bolt.Store, keeper *secrets.Keeper) {
		m, err := secrets.Derive(clientSecret, settings)
		if err != nil {
			t.Fatal(err)
		}
		reg := registry.Registration{Issuer: issuer, ClientID: "app", Settings: settings}
		if reg.Source.Secret, err = keeper.Seal(t.Context(), issuer, "app", m, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Check(t.Context(), &reg); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Put(t.Context(), reg, 0); err != nil {
			t.Fatal(err)
		}
	})
	use := func(c *Cache) {
		t.Helper()
		r, err := c.Recipient(t.Context(), issuer, "app", idToken)
		if err != nil {
			t.Fatal(err)
		}
		opened(t, r, key[:])
		if got, err := c.SigningSecret(t.Context(), issuer, "app"); err != nil || string(got) != clientSecret {
			t.Errorf("got another secret, %v", err)
		}
	}
	with(func(c *Cache, _ *bolt.Store, _ *secrets.Keeper) { use(c) })

	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, hidden := range map[string][]byte{"the secret": []byte(clientSecret), "the derived key": key[:]} {
		for _, form := range [][]byte{
			hidden, []byte(hex.EncodeToString(hidden)),
			[]byte(base64.StdEncoding.EncodeToString(hidden))[:40], []byte(base64.RawURLEncoding.EncodeToString(hidden))[:40],
		} {
			if bytes.Contains(file, form) {
				t.Errorf("%s stands in the file as %q", what, form)
			}
		}
	}

	// While the wrapping key cannot be had, the client waits and is not lost.
	wrapper.SetDown(true)
	with(func(c *Cache, _ *bolt.Store, _ *secrets.Keeper) {
		if _, err := c.Recipient(t.Context(), issuer, "app", idToken); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v while the wrapping key is away, want ErrUnavailable", err)
		}
	})
	wrapper.SetDown(false)
	with(func(c *Cache, _ *bolt.Store, _ *secrets.Keeper) { use(c) })

	for what, edit := range map[string][2]string{
		"another algorithm": {`"A256KW"`, `"A128KW"`},
		"another client_id": {`"app"`, `"apq"`},
		"another expiry":    {`"expires_at":"2`, `"expires_at":"3`},
	} {
		forged := bytes.ReplaceAll(file, []byte(edit[0]), []byte(edit[1]))
		if bytes.Equal(forged, file) {
			t.Fatalf("%s: the file has no %s", what, edit[0])
		}
		if err := os.WriteFile(path, forged, 0o600); err != nil {
			t.Fatal(err)
		}
		with(func(c *Cache, store *bolt.Store, _ *secrets.Keeper) {
			if r, err := c.Recipient(t.Context(), issuer, "app", idToken); !errors.Is(err, registry.ErrTampered) {
				t.Errorf("%s: got %+v, %v; want ErrTampered", what, r, err)
			}
			if _, err := c.SigningSecret(t.Context(), issuer, "app"); !errors.Is(err, registry.ErrTampered) {
				t.Errorf("%s: got %v for the signing secret, want ErrTampered", what, err)
			}
			// Registering it anew mends it.
			_, err := store.Get(t.Context(), issuer, "app")
			d, err := registry.Decide(registry.Unreadable(issuer, "app", err), withSet("app", set("k1")), 0)
			if err != nil || d.Change != registry.Recreate {
				t.Fatalf("%s: got %+v, %v; want Recreate", what, d, err)
			}
			if _, err := store.Put(t.Context(), d.Record, d.Expect); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			c.Invalidate(issuer, "app")
			if r, err := c.Recipient(t.Context(), issuer, "app", idToken); err != nil || kid(r) != "k1" {
				t.Errorf("%s: got key %q, %v; want k1", what, kid(r), err)
			}
		})
	}
}
