package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority issues certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string, end time.Time) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, NotAfter: end}
	a.cert, a.key = a.issue(template)
	return a
}

// issue signs a template; with itself, where there is no certificate yet.
func (a *authority) issue(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = new(big.Int).SetBytes([]byte(rand.Text()))
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-2 * time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// pair is a certificate for a server or a client, in PEM.
func (a *authority) pair(edit func(*x509.Certificate)) (cert, key []byte) {
	a.t.Helper()
	template := &x509.Certificate{
		DNSNames: []string{"bulla.example.com"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	c, k := a.issue(template)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return inPEM("CERTIFICATE", c.Raw), inPEM("PRIVATE KEY", der)
}

func (a *authority) pem() []byte { return inPEM("CERTIFICATE", a.cert.Raw) }

func inPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// site is the files of a listener.
type site struct {
	t      *testing.T
	dir    string
	server *authority // of the listener's own certificate
	log    *lines
}

// lines are what is logged.
type lines struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

func newSite(t *testing.T, callers ...*authority) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), server: newAuthority(t, "servers", time.Now().Add(24*time.Hour)), log: &lines{}}
	s.renew(nil)
	s.bundle(callers...)
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// renew writes a new certificate and its key.
func (s *site) renew(edit func(*x509.Certificate)) {
	s.t.Helper()
	cert, key := s.server.pair(edit)
	s.write("tls.crt", cert)
	s.write("tls.key", key)
}

func (s *site) bundle(callers ...*authority) {
	s.t.Helper()
	var all []byte
	for _, c := range callers {
		all = append(all, c.pem()...)
	}
	s.write("ca.crt", all)
}

func (s *site) config() Config {
	return Config{
		Listener: "grpc", CertFile: s.path("tls.crt"), KeyFile: s.path("tls.key"), ClientCAFile: s.path("ca.crt"),
		Logger: slog.New(slog.NewTextHandler(s.log, nil)),
	}
}

func (s *site) open() *Certs {
	s.t.Helper()
	c, err := New(s.config())
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// serial is that of the certificate that a handshake shows.
func serial(c *Certs) string { return c.current.Load().cert.Leaf.SerialNumber.String() }

// onDisk is the serial number in a file.
func (s *site) onDisk(name string) string {
	s.t.Helper()
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	list, err := certificates(data)
	if err != nil {
		s.t.Fatal(err)
	}
	return list[0].SerialNumber.String()
}

func TestWhatCannotBeUsedFailsTheStart(t *testing.T) {
	callers := newAuthority(t, "callers", time.Now().Add(time.Hour))
	for name, spoil := range spoilers(callers) {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, callers)
			word := spoil(s)
			if _, err := New(s.config()); err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("got %v, want %q", err, word)
			}
		})
	}
	if _, err := New(Config{Listener: "grpc"}); err == nil {
		t.Error("a listener without files was made")
	}
}

// spoilers put a listener's files in disorder, and return a word of what is said
// of it.
func spoilers(callers *authority) map[string]func(*site) string {
	return map[string]func(*site) string{
		"a key of another certificate": func(s *site) string {
			_, key := s.server.pair(nil)
			s.write("tls.key", key)
			return "private key does not match"
		},
		"an expired certificate": func(s *site) string {
			s.renew(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
			return "expired at"
		},
		"a certificate of tomorrow": func(s *site) string {
			s.renew(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
			return "not valid before"
		},
		"half a certificate": func(s *site) string {
			cert, _ := s.server.pair(nil)
			s.write("tls.crt", cert[:len(cert)/2])
			return "not whole"
		},
		"a chain that was cut off": func(s *site) string {
			cert, key := s.server.pair(nil)
			s.write("tls.key", key)
			s.write("tls.crt", append(cert, s.server.pem()[:100]...))
			return "1 of 2 PEM blocks are not whole"
		},
		"no certificate": func(s *site) string { s.write("tls.crt", nil); return "cert_file" },
		"no key file":    func(s *site) string { s.remove("tls.key"); return "key_file" },
		"no CA file":     func(s *site) string { s.remove("ca.crt"); return "client_ca_file" },
		"an empty CA file": func(s *site) string {
			s.write("ca.crt", nil)
			return "client_ca_file: holds no PEM certificate"
		},
		"a CA file of something else": func(s *site) string {
			s.write("ca.crt", inPEM("PUBLIC KEY", []byte("x")))
			return "client_ca_file: holds no PEM certificate"
		},
		"a CA that cannot be read": func(s *site) string {
			s.write("ca.crt", append(callers.pem(), inPEM("CERTIFICATE", []byte("x"))...))
			return "certificate 2 cannot be read"
		},
		"a CA that was cut off": func(s *site) string {
			s.write("ca.crt", append(callers.pem(), callers.pem()[:200]...))
			return "not whole"
		},
		"a CA that has expired": func(s *site) string {
			s.bundle(newAuthority(s.t, "old", time.Now().Add(-time.Minute)))
			return "have expired"
		},
		"a huge file": func(s *site) string {
			s.write("ca.crt", bytes.Repeat([]byte("x"), maxFile+1))
			return "larger than"
		},
	}
}

func (s *site) remove(name string) {
	s.t.Helper()
	if err := os.Remove(s.path(name)); err != nil {
		s.t.Fatal(err)
	}
}

func TestWhatCannotBeUsedChangesNothingAndIsToldOnce(t *testing.T) {
	callers := newAuthority(t, "callers", time.Now().Add(time.Hour))
	for name, spoil := range spoilers(callers) {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, callers)
			c := s.open()
			before, authorities := serial(c), c.Authorities()
			word := spoil(s)
			for range 4 {
				c.look(t.Context())
			}
			if serial(c) != before || c.Authorities() != authorities {
				t.Error("the listener has changed")
			}
			if !c.Failing() {
				t.Error("it does not say that it fails")
			}
			if n := c.Failures(); n != 1 || s.log.count("level=ERROR") != 1 || s.log.count(word) == 0 {
				t.Errorf("%d failures counted, and logged %d times, want once and %q:\n%s", n, s.log.count("level=ERROR"), word, s.log.text.String())
			}
			if err := c.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("Reload: got %v, want %q", err, word)
			}
			if c.Failures() != 1 {
				t.Error("the same was counted again")
			}
			// Whatever it was, all is well with new files.
			s.renew(nil)
			s.bundle(callers)
			if err := c.Reload(t.Context()); err != nil || serial(c) != s.onDisk("tls.crt") {
				t.Errorf("with good files again: %v", err)
			}
			if c.Failing() {
				t.Error("it says that it fails, with good files")
			}
			spoil(s)
			if err := c.Reload(t.Context()); err == nil || c.Failures() != 2 {
				t.Errorf("the second time: %v, and %d failures", err, c.Failures())
			}
		})
	}
}

func TestACertificateIsTriedAgainWhenItsTimeComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, newAuthority(t, "callers", time.Now().Add(time.Hour)))
		c := s.open()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		s.renew(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
		time.Sleep(50 * time.Second)
		if serial(c) == s.onDisk("tls.crt") || c.Failures() != 1 || !c.Failing() {
			t.Errorf("before its time: in force %t, %d failures", serial(c) == s.onDisk("tls.crt"), c.Failures())
		}
		time.Sleep(20 * time.Second)
		if serial(c) != s.onDisk("tls.crt") || c.Failures() != 1 || c.Failing() {
			t.Errorf("in its time: in force %t, %d failures", serial(c) == s.onDisk("tls.crt"), c.Failures())
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestNewFilesTakeEffect follows each way in which files are changed.
func TestNewFilesTakeEffect(t *testing.T) {
	// As Kubernetes mounts them: tls.crt -> ..data/tls.crt, ..data -> ..1, and the
	// link ..data is replaced.
	mount := func(s *site, generation string) {
		s.t.Helper()
		if err := os.Mkdir(s.path(generation), 0o700); err != nil {
			s.t.Fatal(err)
		}
		cert, key := s.server.pair(nil)
		s.write(generation+"/tls.crt", cert)
		s.write(generation+"/tls.key", key)
		if err := os.Symlink(generation, s.path("..new")); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Rename(s.path("..new"), s.path("..data")); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name            string
		prepare, change func(*site)
	}{
		{"written in place", func(*site) {}, func(s *site) { s.renew(nil) }},
		{"renamed", func(*site) {}, func(s *site) {
			cert, key := s.server.pair(nil)
			for name, data := range map[string][]byte{"tls.crt": cert, "tls.key": key} {
				s.write(name+".new", data)
				if err := os.Rename(s.path(name+".new"), s.path(name)); err != nil {
					s.t.Fatal(err)
				}
			}
		}},
		{"mounted", func(s *site) {
			mount(s, "..1")
			for _, name := range []string{"tls.crt", "tls.key"} {
				s.remove(name)
				if err := os.Symlink("..data/"+name, s.path(name)); err != nil {
					s.t.Fatal(err)
				}
			}
		}, func(s *site) { mount(s, "..2") }},
		{"the same size and time", func(*site) {}, func(s *site) {
			info, err := os.Stat(s.path("tls.crt"))
			if err != nil {
				s.t.Fatal(err)
			}
			s.renew(nil)
			for _, name := range []string{"tls.crt", "tls.key"} {
				if err := os.Chtimes(s.path(name), info.ModTime(), info.ModTime()); err != nil {
					s.t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, newAuthority(t, "callers", time.Now().Add(time.Hour)))
			test.prepare(s)
			c := s.open()
			authorities, changed := c.Authorities(), c.Changed()
			test.change(s)
			want := s.onDisk("tls.crt")
			c.look(t.Context())
			if serial(c) == want {
				t.Error("one look was enough: it may have seen half of a change")
			}
			c.look(t.Context())
			if serial(c) != want || c.Failures() != 0 {
				t.Errorf("after two looks: in force %t, %d failures", serial(c) == want, c.Failures())
			}
			select {
			case <-changed:
				t.Error("the authorities are said to have changed")
			default:
			}
			if c.Authorities() != authorities {
				t.Error("the authorities are others")
			}
			if !c.NotAfter().Equal(c.current.Load().cert.Leaf.NotAfter) {
				t.Error("NotAfter is not the certificate's")
			}
		})
	}
}

func TestAChangeThatIsUnderWayIsWaitedFor(t *testing.T) {
	s := newSite(t, newAuthority(t, "callers", time.Now().Add(time.Hour)))
	c := s.open()
	before := serial(c)
	cert, key := s.server.pair(nil)
	s.write("tls.crt", cert)
	c.look(t.Context()) // between the two
	s.write("tls.key", key)
	c.look(t.Context())
	if serial(c) != before || c.Failures() != 0 {
		t.Errorf("half way: changed %t, %d failures", serial(c) != before, c.Failures())
	}
	c.look(t.Context())
	if serial(c) != s.onDisk("tls.crt") || c.Failures() != 0 || s.log.count("ERROR") != 0 {
		t.Errorf("at the end: in force %t, %d failures", serial(c) == s.onDisk("tls.crt"), c.Failures())
	}
}

func TestABundleThatIsPutBackInOrderIsTheSame(t *testing.T) {
	a, b := newAuthority(t, "a", time.Now().Add(time.Hour)), newAuthority(t, "b", time.Now().Add(time.Hour))
	s := newSite(t, a, b)
	c := s.open()
	before, changed := c.Authorities(), c.Changed()
	s.write("ca.crt", slices.Concat([]byte("# our callers\n"), b.pem(), a.pem(), b.pem()))
	if err := c.Reload(t.Context()); err != nil || c.Authorities() != before {
		t.Errorf("in another order: %v, changed %t", err, c.Authorities() != before)
	}
	s.bundle(b)
	if err := c.Reload(t.Context()); err != nil || c.Authorities() == before {
		t.Errorf("without one of them: %v, changed %t", err, c.Authorities() != before)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the change")
	}
}

// talk makes a connection to a listener with this TLS, and returns what became of
// it: a byte comes back from a server that takes the client.
func talk(t *testing.T, listener, cfg *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = tls.Server(conn, listener).Write([]byte{1}) // the client sees its errors
	})
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", lis.Addr().String())
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 1))
	return conn.(*tls.Conn).ConnectionState(), err
}

// caller is the TLS of a client with a certificate of an authority.
func (s *site) caller(a *authority) *tls.Config {
	s.t.Helper()
	pair, err := tls.X509KeyPair(a.pair(nil))
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(s.server.cert)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: "bulla.example.com", MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"}, ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}
}

func TestNewHandshakesGoByTheNewFiles(t *testing.T) {
	a, b := newAuthority(t, "a", time.Now().Add(time.Hour)), newAuthority(t, "b", time.Now().Add(time.Hour))
	s := newSite(t, a, b)
	c := s.open()
	listener, ofA, ofB := c.TLS(), s.caller(a), s.caller(b)
	for range 3 {
		state, err := talk(t, listener, ofA)
		if err != nil || state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "h2" {
			t.Fatalf("got %v, TLS %x, %q", err, state.Version, state.NegotiatedProtocol)
		}
		// What a ticket says was true once.
		if state.DidResume {
			t.Error("a session was resumed")
		}
		if got := state.PeerCertificates[0].SerialNumber.String(); got != serial(c) {
			t.Errorf("shown %s, want %s", got, serial(c))
		}
		s.renew(nil)
		if err := c.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.bundle(b)
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := talk(t, listener, ofA); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a caller of a CA that was taken out: got %v, want a refusal", err)
	}
	if _, err := talk(t, listener, ofB); err != nil {
		t.Errorf("a caller of another CA: %v", err)
	}
}

// TestAuthoritiesVerifyAsTLSDoes holds Verify against handshakes.
func TestAuthoritiesVerifyAsTLSDoes(t *testing.T) {
	a, b := newAuthority(t, "a", time.Now().Add(time.Hour)), newAuthority(t, "b", time.Now().Add(time.Hour))
	// A CA between a and its callers.
	below := &authority{t: t}
	below.cert, below.key = a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "below a"}, IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)})
	s := newSite(t, a)
	c := s.open()
	for _, test := range []struct {
		name  string
		of    *authority
		chain [][]byte
		edit  func(*x509.Certificate)
		good  bool
	}{
		{"a caller", a, nil, nil, true},
		{"of another CA", b, nil, nil, false},
		{"by an intermediate that it shows", below, [][]byte{below.pem()}, nil, true},
		{"by an intermediate that it does not show", below, nil, nil, false},
		{"for servers only", a, nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, false},
		{"expired", a, nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			cert, key := test.of.pair(test.edit)
			pair, err := tls.X509KeyPair(append(cert, slices.Concat(test.chain...)...), key)
			if err != nil {
				t.Fatal(err)
			}
			cfg := s.caller(a)
			cfg.Certificates = []tls.Certificate{pair}
			if _, err := talk(t, c.TLS(), cfg); (err == nil) != test.good {
				t.Errorf("a handshake: got %v, want good %t", err, test.good)
			}
			var shown []*x509.Certificate
			for _, der := range pair.Certificate {
				one, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				shown = append(shown, one)
			}
			if err := c.Authorities().Verify(shown); (err == nil) != test.good {
				t.Errorf("Verify: got %v, want good %t", err, test.good)
			}
		})
	}
	if err := c.Authorities().Verify(nil); err == nil {
		t.Error("nothing was verified")
	}
}

func TestAListenerWithoutCallers(t *testing.T) {
	s := newSite(t)
	cfg := s.config()
	cfg.ClientCAFile, cfg.MinVersion, cfg.Listener = "", tls.VersionTLS12, "http"
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client := s.caller(newAuthority(t, "any", time.Now().Add(time.Hour)))
	client.Certificates, client.MaxVersion = nil, tls.VersionTLS12
	for range 2 {
		state, err := talk(t, c.TLS(), client)
		if err != nil || state.PeerCertificates[0].SerialNumber.String() != s.onDisk("tls.crt") {
			t.Errorf("got %v, another certificate %t", err, err == nil)
		}
		s.renew(nil)
		client.ClientSessionCache = nil
		if err := c.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if c.Authorities() != nil {
		t.Error("there are authorities")
	}
	client.MinVersion, client.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, err := talk(t, c.TLS(), client); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
}

// BenchmarkLook is what following the files costs, every few seconds.
func BenchmarkLook(b *testing.B) {
	t := &testing.T{}
	s := &site{t: t, dir: b.TempDir(), server: newAuthority(t, "servers", time.Now().Add(time.Hour)), log: &lines{}}
	s.renew(nil)
	s.bundle(s.server)
	c := s.open()
	for b.Loop() {
		c.look(b.Context())
	}
}
