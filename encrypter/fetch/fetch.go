// Package fetch makes the one outgoing request of Bulla that strangers can
// aim: the GET of a client's jwks_uri.
//
// Whoever registers a client chooses the URL, so the request must not become
// a way into the operator's own network (server-side request forgery), nor a
// way to tie the service up. The package promises:
//
//   - Only https, only to allowed ports, without userinfo, proxy, cookies or
//     credentials of any kind, and without following redirects.
//   - The host is resolved once, every answer is checked, and the connection
//     goes to an address that was checked: a second DNS answer cannot move it.
//     Only public addresses are dialed, except those an operator has opened.
//   - One request takes at most Config.Timeout from first to last, holds at
//     most Config.MaxBytes of body, and a slow host cannot hold more than its
//     share of the requests in flight.
//   - What a caller can be told is decided from the text of the URL alone
//     (ErrURI, with advice). Everything that happens from the DNS look-up on
//     is ErrFetch: its text is for the log, never for the caller, or answers
//     would map the network behind the service.
//
// It reads the cache headers of an answer but remembers nothing: how long a
// key set is used, and when to ask again, is for the cache that calls it. It
// does not look into the document either; package jwks does.
package fetch

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// Defaults of Config.
const (
	DefaultTimeout       = 5 * time.Second
	DefaultMaxBytes      = 128 << 10
	DefaultMaxConcurrent = 64
	DefaultMaxPerHost    = 4
	defaultPort          = 443
)

// Resolver turns a host name into addresses. *net.Resolver is one.
type Resolver interface {
	// LookupNetIP is called with network "ip" and must return when ctx ends.
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Config says what may be fetched and at what cost. The zero value allows
// https on port 443 of public addresses, trusting the system's roots.
type Config struct {
	// CAFile names a PEM file of certificates to trust beside the system's
	// roots. Default: none.
	CAFile string

	// RootCAs, if not nil, is trusted instead of the system's roots. It cannot
	// be combined with CAFile.
	RootCAs *x509.CertPool

	// AllowHosts, if not empty, lists the only hosts that may be named: exact
	// names, or "*.example.com" for every name below example.com. A name that
	// is refused otherwise (of a single label, or under localhost) may be
	// named if it is listed exactly. The list is of names: literal addresses
	// are a matter of AllowCIDRs alone, and what a listed name resolves to is
	// checked all the same. Default: every host.
	AllowHosts []string

	// AllowCIDRs opens ranges that are not public, exactly these, and allows
	// literal addresses inside them in a URL. Default: none.
	AllowCIDRs []netip.Prefix

	// AllowPorts lists the ports that may be named. Default: 443.
	AllowPorts []int

	// AllowLoopbackHTTP is for development: it allows http beside https, any
	// port and loopback addresses, all three only where the host is localhost
	// or a literal loopback address. Default: false.
	AllowLoopbackHTTP bool

	// Timeout bounds one Get from first to last, the wait for its turn
	// included. Default: 5 s.
	Timeout time.Duration

	// MaxBytes is the longest document that is read. Default: 128 KiB.
	MaxBytes int64

	// MaxConcurrent is how many requests are under way at once. Default: 64.
	MaxConcurrent int

	// MaxPerHost is how many of them go to one host. Default: 4.
	MaxPerHost int

	// Logger gets one line at level debug for each request. Default: none.
	Logger *slog.Logger

	// Resolver looks names up. Default: Go's own resolver, which reads
	// /etc/hosts and /etc/resolv.conf.
	Resolver Resolver
}

// Client fetches key sets. Any number of goroutines may use it at once. It
// keeps no connection and no goroutine between requests, so there is nothing
// to close.
type Client struct {
	hosts    hostRules
	ports    []int
	addrs    addressRules
	loopback bool
	roots    *x509.CertPool
	timeout  time.Duration
	maxBytes int64
	limits   *limiter
	resolver Resolver
	log      *slog.Logger
}

// New returns a client. An error says which field of the configuration is
// wrong and what to write instead.
func New(cfg Config) (*Client, error) {
	hosts, err := newHostRules(cfg.AllowHosts)
	if err != nil {
		return nil, err
	}
	addrs, err := newAddressRules(cfg.AllowCIDRs)
	if err != nil {
		return nil, err
	}
	for _, p := range cfg.AllowPorts {
		if p < 1 || p > 65535 {
			return nil, fmt.Errorf("fetch: allow_ports: %d is not a port; ports are 1 to 65535", p)
		}
	}
	if cfg.Timeout < 0 || cfg.MaxBytes < 0 || cfg.MaxConcurrent < 0 || cfg.MaxPerHost < 0 {
		return nil, errors.New("fetch: a limit is negative; leave it at zero for its default")
	}
	roots, err := loadRoots(cfg)
	if err != nil {
		return nil, err
	}
	c := &Client{
		hosts:    hosts,
		ports:    slices.Clone(cfg.AllowPorts),
		addrs:    addrs,
		loopback: cfg.AllowLoopbackHTTP,
		roots:    roots,
		timeout:  orDefault(cfg.Timeout, DefaultTimeout),
		maxBytes: orDefault(cfg.MaxBytes, DefaultMaxBytes),
		limits: newLimiter(
			orDefault(cfg.MaxConcurrent, DefaultMaxConcurrent),
			orDefault(cfg.MaxPerHost, DefaultMaxPerHost)),
		resolver: cfg.Resolver,
		log:      cfg.Logger,
	}
	if len(c.ports) == 0 {
		c.ports = []int{defaultPort}
	}
	if c.resolver == nil {
		// Go's own resolver gives up when the context ends; the C library's
		// would keep a thread.
		c.resolver = &net.Resolver{PreferGo: true}
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// loadRoots returns the roots to trust; nil means the system's.
func loadRoots(cfg Config) (*x509.CertPool, error) {
	switch {
	case cfg.CAFile == "":
		return cfg.RootCAs, nil
	case cfg.RootCAs != nil:
		return nil, errors.New("fetch: CAFile and RootCAs are both set; choose one")
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("fetch: ca_file cannot be read; name a PEM file of certificates or leave it empty: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		// No system roots is a state of the machine, not a mistake: a
		// container may well hold nothing but the operator's own roots.
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("fetch: ca_file %s holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", cfg.CAFile)
	}
	return pool, nil
}

// hostRules is Config.AllowHosts in lower case.
type hostRules struct {
	exact    map[string]bool
	suffixes []string // with the leading dot
}

func newHostRules(allow []string) (hostRules, error) {
	r := hostRules{exact: make(map[string]bool)}
	for _, h := range allow {
		name := strings.ToLower(h)
		base, wild := strings.CutPrefix(name, "*.")
		if _, err := netip.ParseAddr(base); err == nil {
			return hostRules{}, fmt.Errorf("fetch: allow_hosts: %q is an address; addresses are opened by allow_cidrs", h)
		}
		if problem := dnsNameProblem(base); problem != "" {
			return hostRules{}, fmt.Errorf("fetch: allow_hosts: %q is neither a host name nor of the form *.example.com: %s", h, problem)
		}
		if wild {
			r.suffixes = append(r.suffixes, "."+base)
		} else {
			r.exact[name] = true
		}
	}
	return r, nil
}

// named reports whether the operator listed exactly this host (lower case).
func (r hostRules) named(host string) bool { return r.exact[host] }

// allow reports whether host (lower case) may be fetched from.
func (r hostRules) allow(host string) bool {
	if len(r.exact) == 0 && len(r.suffixes) == 0 {
		return true
	}
	return r.exact[host] || slices.ContainsFunc(r.suffixes, func(s string) bool {
		return len(host) > len(s) && strings.HasSuffix(host, s)
	})
}
