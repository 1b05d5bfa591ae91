package harness

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// HostAddress is where a Host listens: the one address that services may fetch
// from. What lies beside it, such as 127.0.0.1, is as closed as any private
// address.
const HostAddress = "127.0.0.5"

// Answer is what a Host says to a request.
type Answer struct {
	Status int               // default: 200
	Header map[string]string // default: Content-Type application/jwk-set+json
	Body   []byte
	// Delay passes before the answer; Hang gives none at all.
	Delay time.Duration
	Hang  bool
}

// Host is an OAuth client's web server, on TLS. Any path can be given any
// answer at any time; one without is 404.
type Host struct {
	CA *CA

	leaf    *Leaf
	address string

	mu      sync.Mutex // guards what follows
	answers map[string]Answer
	hits    map[string]int
	headers map[string]http.Header // of the last request for a path
	server  *http.Server           // nil while the host is down
}

// NewHost starts a host; it ends with the test.
func NewHost(t testing.TB, ca *CA) *Host {
	t.Helper()
	h := &Host{
		CA: ca, leaf: ca.Issue(t, LeafConfig{IPs: []net.IP{net.ParseIP(HostAddress)}, DNSNames: []string{"localhost"}}),
		answers: make(map[string]Answer), hits: make(map[string]int), headers: make(map[string]http.Header), address: net.JoinHostPort(HostAddress, "0"),
	}
	h.Up(t)
	t.Cleanup(h.Down)
	return h
}

// Up starts a host that is down, at the address that it had.
func (h *Host) Up(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.server != nil {
		return
	}
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	h.address = lis.Addr().String()
	h.server = &http.Server{
		Handler: http.HandlerFunc(h.serve), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{h.leaf.Certificate}, MinVersion: tls.VersionTLS12},
	}
	server := h.server
	go func() { _ = server.ServeTLS(lis, "", "") }() // ends with Down
}

// Down lets the host refuse connections.
func (h *Host) Down() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.server != nil {
		_ = h.server.Close() // its connections are given up
		h.server = nil
	}
}

// URL is that of a path, which begins with a slash.
func (h *Host) URL(path string) string { return "https://" + h.address + path }

// Port is the port of the host.
func (h *Host) Port() int {
	_, port, err := net.SplitHostPort(h.address)
	if err != nil {
		panic(err) // it comes from a listener
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		panic(err) // likewise
	}
	return n
}

// Set gives a path its answer.
func (h *Host) Set(path string, a Answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers[path] = a
}

// Serve gives a path a JWK Set, fresh for maxAge, and returns its URL.
func (h *Host) Serve(path string, jwks []byte, maxAge time.Duration) string {
	h.Set(path, Answer{Body: jwks, Header: map[string]string{
		"Cache-Control": "max-age=" + strconv.Itoa(int(maxAge.Seconds())),
	}})
	return h.URL(path)
}

// Hits is how often a path was asked for.
func (h *Host) Hits(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hits[path]
}

// Header is that of the last request for a path.
func (h *Host) Header(path string) http.Header {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.headers[path]
}

func (h *Host) serve(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	a, ok := h.answers[r.URL.Path]
	h.hits[r.URL.Path]++
	h.headers[r.URL.Path] = r.Header.Clone()
	h.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	switch wait, cancel := context.WithTimeout(r.Context(), a.Delay); {
	case a.Hang:
		cancel()
		<-r.Context().Done()
		return
	case a.Delay > 0:
		<-wait.Done()
		cancel()
	default:
		cancel()
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	for name, value := range a.Header {
		w.Header().Set(name, value)
	}
	if a.Status != 0 {
		w.WriteHeader(a.Status)
	}
	_, _ = w.Write(a.Body) // the service may have had enough
}
