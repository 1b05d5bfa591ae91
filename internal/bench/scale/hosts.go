//go:build linux

package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
)

// hostCount is how many hosts there are, at addresses of their own: a service
// gives one host only a part of its fetches.
const hostCount = 16

// hostRange holds their addresses.
const hostRange = "127.0.1.0/24"

// hosts are clients' web servers, on TLS, that give the same set to whoever
// asks.
type hosts struct {
	ca   *harness.CA
	port int

	mu   sync.Mutex
	gets map[string]int // by path; guarded by mu
}

func newHosts(t *harness.Standalone, set []byte, maxAge time.Duration) (*hosts, error) {
	h := &hosts{ca: harness.NewCA(t, "clients"), gets: make(map[string]int)}
	var ips []net.IP
	for i := range hostCount {
		ips = append(ips, net.ParseIP(hostIP(i)))
	}
	leaf := h.ca.Issue(t, harness.LeafConfig{IPs: ips, NotAfter: time.Now().Add(12 * time.Hour)})
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{leaf.Certificate}, MinVersion: tls.VersionTLS12},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.mu.Lock()
			h.gets[r.URL.Path]++
			h.mu.Unlock()
			w.Header().Set("Content-Type", "application/jwk-set+json")
			w.Header().Set("Cache-Control", fmt.Sprintf("max-age=%d", int(maxAge.Seconds())))
			_, _ = w.Write(set) // the service may have had enough
		}),
	}
	t.Cleanup(func() { _ = server.Close() }) // its connections are given up
	for i := range hostCount {
		lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(hostIP(i), fmt.Sprint(h.port)))
		if err != nil {
			return nil, err
		}
		h.port = lis.Addr().(*net.TCPAddr).Port
		go func() { _ = server.ServeTLS(lis, "", "") }() // ends with Close
	}
	return h, nil
}

func hostIP(i int) string { return fmt.Sprintf("127.0.1.%d", i+1) }

// uri is a URL of its own for the client of a rank.
func (h *hosts) uri(rank int) string {
	return fmt.Sprintf("https://%s:%d/%s", hostIP(rank%hostCount), h.port, clientID(rank))
}

// count says how many GETs there were, of how many URLs, since it was last
// asked.
func (h *hosts) count() (gets, urls int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.gets {
		gets += n
	}
	urls = len(h.gets)
	clear(h.gets)
	return gets, urls
}

// fetch is the configuration of a service that may fetch from them, and finds a
// set out of date as soon as it is told so.
func (h *hosts) fetch() harness.M {
	return harness.M{
		"ca_file": h.ca.File, "allow_cidrs": []string{hostRange}, "allow_ports": []int{h.port},
		"min_refresh": "1s", "default_refresh": "1s",
	}
}
