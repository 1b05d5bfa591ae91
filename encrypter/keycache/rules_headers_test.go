package keycache

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
)

// The rules for the headers of an answer are held here against a real host, by
// way of the real fetcher, on a clock of the test's own: reading from a socket
// takes no time on it.

// webHost is a client's web server on TLS. It says what a test tells it to.
type webHost struct {
	uri  string
	cfg  fetch.Config
	mu   sync.Mutex
	says http.HandlerFunc // guarded by mu
	hits []http.Header    // of the requests; guarded by mu
}

// startHost starts one outside the bubble, whose clock begins in the year 2000.
func startHost(t *testing.T) *webHost {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"client.example"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	h := &webHost{}
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	addr := srv.Listener.Addr().(*net.TCPAddr).AddrPort()
	h.uri = fmt.Sprintf("https://client.example:%d/jwks", addr.Port())
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	h.cfg = fetch.Config{
		RootCAs: roots, AllowPorts: []int{int(addr.Port())}, AllowCIDRs: []netip.Prefix{netip.PrefixFrom(addr.Addr(), 32)}, Resolver: hereResolver(addr.Addr()),
	}
	return h
}

// hereResolver finds every name at one address.
type hereResolver netip.Addr

func (r hereResolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.Addr(r)}, nil
}

// fetcher has the cache fetch from the host. It runs in the bubble.
func (h *webHost) fetcher(t *testing.T) func(*Config) {
	return func(c *Config) {
		client, err := fetch.New(h.cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Fetcher = client
	}
}

func (h *webHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.hits = append(h.hits, r.Header.Clone())
	says := h.says
	h.mu.Unlock()
	says(w, r)
}

func (h *webHost) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.hits)
}

func (h *webHost) last() http.Header {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hits[len(h.hits)-1]
}

// serve has the host answer with a status, a document and headers ("Age: 5"). It
// adds no Date, which would be from another clock than the test's.
func (h *webHost) serve(status int, doc []byte, headers ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.says = func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Date"] = nil
		if len(doc) > 0 {
			w.Header().Set("Content-Type", "application/jwk-set+json")
		}
		for _, line := range headers {
			name, value, _ := strings.Cut(line, ": ")
			w.Header().Add(name, value)
		}
		w.WriteHeader(status)
		_, _ = w.Write(doc)
	}
}

// at is a moment of the bubble's first day, as a header has it.
func at(d time.Duration) string {
	return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(d).Format(http.TimeFormat)
}

// mustBeFreshFor looks whether the client's set is fresh for exactly d from now.
func (w *world) mustBeFreshFor(clientID string, d time.Duration) {
	w.t.Helper()
	fetched := w.mustUse(clientID).FetchedAt
	w.sleep(time.Until(fetched.Add(d)))
	if w.mustUse(clientID).Stale {
		w.t.Fatalf("stale after %v, want fresh to the end of that", d)
	}
	w.sleep(1)
	r := w.mustUse(clientID)
	if !r.Stale {
		w.t.Fatalf("fresh for longer than %v", d)
	}
	if !r.FetchedAt.Equal(fetched) {
		w.t.Fatalf("fetched at %v, want %v: the host has failed since", r.FetchedAt, fetched)
	}
}

func TestRuleFreshnessIsWhatTheHeadersSay(t *testing.T) {
	const (
		least, most, byDefault = time.Minute, 24 * time.Hour, 10 * time.Minute
		year                   = "31536000"
	)
	doc := set("k1")
	for _, tc := range []struct {
		want    time.Duration
		headers []string
	}{
		{10 * time.Minute, []string{"Cache-Control: max-age=600"}},
		{9 * time.Minute, []string{"Cache-Control: max-age=600", "Age: 60"}},
		{9 * time.Minute, []string{"Cache-Control: public, max-age=600, must-revalidate", "Age: 60"}},
		{61 * time.Second, []string{"Cache-Control: max-age=61"}},
		{24*time.Hour - time.Second, []string{"Cache-Control: max-age=86399"}},
		{20 * time.Minute, []string{"Expires: " + at(20*time.Minute)}}, // without a Date it counts from now
		{20 * time.Minute, []string{"Expires: " + at(50*time.Minute), "Date: " + at(30*time.Minute)}},
		{19 * time.Minute, []string{"Expires: " + at(50*time.Minute), "Date: " + at(30*time.Minute), "Age: 60"}},
		{10 * time.Minute, []string{"Cache-Control: max-age=600", "Expires: " + at(time.Hour)}},
		{2 * time.Hour, []string{"Cache-Control: max-age=7200", "Expires: " + at(time.Hour)}},

		{least, []string{"Cache-Control: max-age=60"}},
		{least, []string{"Cache-Control: max-age=59"}},
		{least, []string{"Cache-Control: max-age=0"}},
		{least, []string{"Cache-Control: max-age=600", "Age: 599"}},
		{least, []string{"Cache-Control: max-age=600", "Age: " + year}},
		{least, []string{"Cache-Control: no-store"}},
		{least, []string{"Cache-Control: no-store, max-age=600"}},
		{least, []string{"Cache-Control: max-age=600", "Cache-Control: no-cache"}},
		{least, []string{"Cache-Control: no-store", "Expires: " + at(time.Hour)}},
		{least, []string{"Pragma: no-cache"}}, // RFC 2616's way to say it, which net/http knows
		{least, []string{"Expires: 0"}},
		{least, []string{"Expires: " + at(-time.Hour)}},
		{least, []string{"Expires: " + at(time.Hour), "Date: " + at(2*time.Hour)}},

		{most, []string{"Cache-Control: max-age=86400"}},
		{most, []string{"Cache-Control: max-age=86401"}},
		{most, []string{"Cache-Control: max-age=" + year}},
		{most, []string{"Cache-Control: max-age=99999999999999999999"}},
		{most, []string{"Expires: " + at(1000*day)}},

		{byDefault, nil},
		{byDefault, []string{"Age: 60"}},
		{byDefault, []string{"Cache-Control: public"}},
		{byDefault, []string{"Cache-Control: s-maxage=3600"}},
		{byDefault, []string{"ETag: \"1\"", "Last-Modified: " + at(0)}},
	} {
		t.Run(strings.Join(tc.headers, " | "), func(t *testing.T) {
			h := startHost(t)
			h.serve(http.StatusOK, doc, tc.headers...)
			inWorld(t, func(t *testing.T, w *world) {
				w.register(withURI("app", h.uri))
				w.mustUse("app")
				h.serve(http.StatusServiceUnavailable, nil)
				w.mustBeFreshFor("app", tc.want)
			}, h.fetcher(t))
		})
	}
}

// An error may say what it likes of how long it holds: the set that we have is
// fresh for as long as it was, and the next look is when we want it.
func TestRuleHeadersOfErrorsAreIgnored(t *testing.T) {
	doc := set("k1")
	bad := set("private-1")
	for name, answer := range map[string]func(h *webHost){
		"500":           func(h *webHost) { h.serve(500, doc, "Cache-Control: max-age=86400", `ETag: "2"`) },
		"503":           func(h *webHost) { h.serve(503, nil, "Retry-After: 86400", "Cache-Control: max-age=86400") },
		"429":           func(h *webHost) { h.serve(429, nil, "Retry-After: 86400", "Expires: "+at(day)) },
		"404":           func(h *webHost) { h.serve(404, doc, "Cache-Control: max-age=86400") },
		"410":           func(h *webHost) { h.serve(410, nil, "Cache-Control: max-age=86400") },
		"206":           func(h *webHost) { h.serve(206, doc, "Cache-Control: max-age=86400") },
		"204":           func(h *webHost) { h.serve(204, nil, "Cache-Control: max-age=86400") },
		"301":           func(h *webHost) { h.serve(301, nil, "Location: "+h.uri, "Cache-Control: max-age=86400") },
		"a web page":    func(h *webHost) { h.serve(200, []byte("<html>"), "Cache-Control: max-age=86400", `ETag: "2"`) },
		"a private key": func(h *webHost) { h.serve(200, bad, "Cache-Control: max-age=86400", `ETag: "2"`) },
		"compressed":    func(h *webHost) { h.serve(200, doc, "Content-Encoding: gzip", "Cache-Control: max-age=86400") },
	} {
		t.Run(name, func(t *testing.T) {
			h := startHost(t)
			h.serve(http.StatusOK, doc, "Cache-Control: max-age=600", `ETag: "1"`)
			inWorld(t, func(t *testing.T, w *world) {
				w.register(withURI("app", h.uri))
				w.mustUse("app")
				answer(h)
				w.mustBeFreshFor("app", 10*time.Minute)
				n := h.count()
				w.sleep(7 * time.Minute) // longer than the longest pause
				if h.count() == n {
					t.Error("it was not tried again")
				}
				if got := h.last().Get("If-None-Match"); got != `"1"` {
					t.Errorf("asked with ETag %q, want that of the last good set", got)
				}
				if stored, _ := w.store.stored(h.uri); stored.ETag != `"1"` || string(stored.Document) != string(doc) {
					t.Errorf("stored is the ETag %s, and the good document %v", stored.ETag, string(stored.Document) == string(doc))
				}
			}, h.fetcher(t))
		})
	}

	t.Run("of the first fetch", func(t *testing.T) {
		h := startHost(t)
		h.serve(500, nil, "Cache-Control: max-age=86400", "Retry-After: 86400")
		inWorld(t, func(t *testing.T, w *world) {
			w.register(withURI("app", h.uri))
			var f *FetchError
			if err := w.mustRefuse("app", ErrUnavailable); !errors.As(err, &f) || f.RetryAfter < 5*time.Second || f.RetryAfter > 6250*time.Millisecond {
				t.Errorf("got %#v, want a pause of 5 to 6.25 s", f)
			}
			h.serve(200, doc)
			w.sleep(6250 * time.Millisecond)
			w.mustUse("app")
		}, h.fetcher(t))
	})
}

// A 304 renews: from its own time on the set is fresh for what its own headers
// say, and its validators are those of the next request.
func TestRuleNotModifiedRenewsAndUpdates(t *testing.T) {
	doc := set("k1")
	for name, tc := range map[string]struct {
		headers []string
		want    time.Duration
		etag    string // of the request after it
	}{
		"with max-age and an ETag":    {[]string{"Cache-Control: max-age=1200", `ETag: "2"`}, 20 * time.Minute, `"2"`},
		"with max-age and Age":        {[]string{"Cache-Control: max-age=1200", "Age: 300"}, 15 * time.Minute, `"1"`},
		"with Expires":                {[]string{"Expires: " + at(2*time.Hour), "Date: " + at(time.Hour)}, time.Hour, `"1"`},
		"with no-store":               {[]string{"Cache-Control: no-store"}, time.Minute, `"1"`},
		"with max-age of a year":      {[]string{"Cache-Control: max-age=31536000"}, 24 * time.Hour, `"1"`},
		"without a word of freshness": {nil, 10 * time.Minute, `"1"`},
	} {
		t.Run(name, func(t *testing.T) {
			h := startHost(t)
			h.serve(http.StatusOK, doc, "Cache-Control: max-age=3600", `ETag: "1"`)
			inWorld(t, func(t *testing.T, w *world) {
				w.register(withURI("app", h.uri))
				first := w.mustUse("app")
				h.serve(http.StatusNotModified, nil, tc.headers...)
				for began := time.Now(); h.count() < 2; {
					w.sleep(time.Second)
					if time.Since(began) > time.Hour {
						t.Fatal("not asked again")
					}
				}
				if got := h.last().Get("If-None-Match"); got != `"1"` {
					t.Errorf("asked with ETag %q, want that of the set", got)
				}
				r := w.mustUse("app")
				if r.Recipient != first.Recipient || !r.FetchedAt.After(first.FetchedAt) || r.Stale {
					t.Errorf("got the same recipient %v, fetched %v later, stale %v; want the same, renewed", r.Recipient == first.Recipient, r.FetchedAt.Sub(first.FetchedAt), r.Stale)
				}
				h.serve(http.StatusServiceUnavailable, nil)
				w.mustBeFreshFor("app", tc.want)
				if got := h.last().Get("If-None-Match"); got != tc.etag {
					t.Errorf("asked with ETag %q, want %q", got, tc.etag)
				}
				if stored, _ := w.store.stored(h.uri); string(stored.Document) != string(doc) {
					t.Error("the document is not kept")
				}
			}, h.fetcher(t))
		})
	}
}

func TestRuleLastModifiedIsAValidatorToo(t *testing.T) {
	h := startHost(t)
	h.serve(http.StatusOK, set("k1"), "Last-Modified: "+at(-time.Hour))
	inWorld(t, func(t *testing.T, w *world) {
		w.register(withURI("app", h.uri))
		w.mustUse("app")
		h.serve(http.StatusNotModified, nil)
		w.sleep(10 * time.Minute)
		if got := h.last().Get("If-Modified-Since"); got != at(-time.Hour) {
			t.Errorf("asked with the date %q, want that of the set", got)
		}
		if w.mustUse("app").Stale {
			t.Error("not renewed")
		}
	}, h.fetcher(t))
}
