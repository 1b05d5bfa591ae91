package fetch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testHost = "client.example"

// testCA is a certificate authority of one test.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t *testing.T) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &testCA{cert: cert, key: key, pool: pool}
}

// issue returns a certificate for the names and addresses, valid until end.
func (ca *testCA) issue(t *testing.T, end time.Time, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// site is a TLS server of a test, and a client that may reach it.
type site struct {
	ca       *testCA
	addr     netip.AddrPort
	resolver *fakeResolver
	hits     chan *http.Request // one for each request that came in
}

// start serves handler on a loopback address with a certificate for testHost.
func start(t *testing.T, handler http.HandlerFunc) *site {
	t.Helper()
	ca := newCA(t)
	return startWith(t, ca, "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(time.Hour), testHost)},
		MinVersion:   tls.VersionTLS12,
	}, handler)
}

func startWith(t *testing.T, ca *testCA, listen string, cfg *tls.Config, handler http.HandlerFunc) *site {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{ca: ca, hits: make(chan *http.Request, 100)}
	srv := &httptest.Server{
		Listener: l,
		Config: &http.Server{
			ReadHeaderTimeout: 10 * time.Second,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				s.hits <- r
				handler(w, r)
			}),
			ErrorLog: discardLog,
		},
		TLS: cfg,
	}
	if cfg != nil {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	s.addr = l.Addr().(*net.TCPAddr).AddrPort()
	s.resolver = &fakeResolver{answers: map[string][][]netip.Addr{testHost + ".": {{s.addr.Addr()}}}}
	return s
}

// config allows what the site needs and nothing else.
func (s *site) config() Config {
	return Config{
		RootCAs:    s.ca.pool,
		AllowCIDRs: []netip.Prefix{netip.PrefixFrom(s.addr.Addr(), s.addr.Addr().BitLen())},
		AllowPorts: []int{int(s.addr.Port())},
		Resolver:   s.resolver,
	}
}

func (s *site) uri() string { return fmt.Sprintf("https://%s:%d/jwks.json", testHost, s.addr.Port()) }

func (s *site) get(t *testing.T, cfg Config, req Request) (*Response, error) {
	t.Helper()
	if req.URI == "" {
		req.URI = s.uri()
	}
	return newClient(t, cfg).Get(t.Context(), req)
}

func newClient(t testing.TB, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fakeResolver gives the answers of a name one after the other, then the last
// again and again.
type fakeResolver struct {
	mu      sync.Mutex
	answers map[string][][]netip.Addr
	asked   []string
}

func (r *fakeResolver) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.asked = append(r.asked, host)
	list := r.answers[host]
	if len(list) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(list) > 1 {
		r.answers[host] = list[1:]
	}
	return list[0], nil
}

// wantFailure fails the test unless err is an ErrFetch of the class.
func wantFailure(t *testing.T, err error, class Class) {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) || !errors.Is(err, ErrFetch) || errors.Is(err, ErrURI) {
		t.Fatalf("got error %v, want a Failure of class %s", err, class)
	}
	if f.Class != class {
		t.Errorf("got class %s (%v), want %s", f.Class, err, class)
	}
}
