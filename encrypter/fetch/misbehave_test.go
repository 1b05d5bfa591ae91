package fetch

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/jwks"
)

// The hosts here do what no HTTP server does by itself. Whatever it is, a fetch
// ends in time, has read no more than it may, and is a failure of a named class.

// startTalk has talk hold the conversation on each connection, after the TLS
// handshake and the request. It returns a client's way to it.
func startTalk(t *testing.T, talk func(conn *tls.Conn)) *site {
	t.Helper()
	ca := newCA(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(time.Hour), testHost)}, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{ca: ca, hits: make(chan *http.Request, 100), addr: l.Addr().(*net.TCPAddr).AddrPort()}
	s.resolver = &fakeResolver{answers: map[string][][]netip.Addr{testHost + ".": {{s.addr.Addr()}}}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = conn.Close() }()
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				s.hits <- req
				talk(conn.(*tls.Conn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return s
}

// says writes one text.
func says(text string) func(*tls.Conn) {
	return func(conn *tls.Conn) { _, _ = io.WriteString(conn, text) }
}

// floods writes one text, and then another until the connection breaks.
func floods(first, again string) func(*tls.Conn) {
	return func(conn *tls.Conn) { writeForever(conn, again, first) }
}

// frame is an HTTP/2 frame (RFC 9113, section 4.1).
func frame(kind, flags byte, stream uint32, payload string) string {
	head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[5:], stream)
	return string(head) + payload
}

// HTTP/2 frame types (RFC 9113, section 6).
const (
	rstStream = 0x3
	settings  = 0x4
	goAway    = 0x7
)

func reset(conn *tls.Conn) {
	tcp := conn.NetConn().(*net.TCPConn)
	_ = tcp.SetLinger(0) // close sends RST
	_ = tcp.Close()
}

const jsonHead = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

func TestConversationsThatAreNoHTTP(t *testing.T) {
	const chunked = jsonHead + "Transfer-Encoding: chunked\r\n\r\n"
	for name, tc := range map[string]struct {
		talk  func(*tls.Conn)
		class Class
	}{
		"TCP reset":                  {reset, ClassProtocol},
		"TCP reset within the head":  {func(c *tls.Conn) { says(jsonHead)(c); reset(c) }, ClassProtocol},
		"TCP reset within the body":  {func(c *tls.Conn) { says(jsonHead + "Content-Length: 99\r\n\r\n{")(c); reset(c) }, ClassProtocol},
		"closed within the head":     {says(jsonHead), ClassProtocol},
		"HTTP/2: settings, goaway":   {says(frame(settings, 0, 0, "") + frame(goAway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00")), ClassProtocol},
		"HTTP/2: reset of a stream":  {says(frame(settings, 0, 0, "") + frame(rstStream, 0, 1, "\x00\x00\x00\x08")), ClassProtocol},
		"HTTP/2: flood of settings":  {floods("", frame(settings, 0, 0, "")), ClassProtocol},
		"HTTP/2: flood of resets":    {floods("", frame(rstStream, 0, 1, "\x00\x00\x00\x08")), ClassProtocol},
		"HTTP/2 by upgrade":          {floods("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", frame(settings, 0, 0, "")), "status_101"},
		"HTTP/2 in the status line":  {says("HTTP/2 200\r\nContent-Type: application/json\r\n\r\n" + document), ClassProtocol},
		"HTTP/9.9":                   {says("HTTP/9.9 200 OK\r\nContent-Type: text/html\r\n\r\n"), ClassContentType},
		"flood of 100 Continue":      {floods("", "HTTP/1.1 100 Continue\r\n\r\n"), ClassProtocol},
		"flood of 102 Processing":    {floods("", "HTTP/1.1 102 Processing\r\nX: y\r\n\r\n"), ClassProtocol},
		"flood of links":             {floods("", "HTTP/1.1 103 Early Hints\r\nLink: <https://10.0.0.1/>; rel=preload\r\n\r\n"), ClassProtocol},
		"one header of 1 MiB":        {says("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"), ClassProtocol},
		"a header that never ends":   {floods("HTTP/1.1 200 OK\r\nX: ", "xxxxxxxxxxxxxxxx"), ClassProtocol},
		"10 000 headers":             {says("HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Header: y\r\n", 10_000) + "\r\n"), ClassProtocol},
		"a status that never ends":   {floods("HTTP/1.1 200 ", "xxxxxxxxxxxxxxxx"), ClassProtocol},
		"headers without a colon":    {says("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"), ClassProtocol},
		"shorter than it says":       {says(jsonHead + "Content-Length: 100\r\n\r\n" + document), ClassProtocol},
		"two lengths":                {says(jsonHead + "Content-Length: 11\r\nContent-Length: 12\r\n\r\n" + document), ClassProtocol},
		"a negative length":          {says(jsonHead + "Content-Length: -1\r\n\r\n" + document), ClassProtocol},
		"a length of 2^64":           {says(jsonHead + "Content-Length: 18446744073709551616\r\n\r\n" + document), ClassProtocol},
		"a length in hex":            {says(jsonHead + "Content-Length: 0xb\r\n\r\n" + document), ClassProtocol},
		"a length of 8 EiB":          {says(jsonHead + "Content-Length: 9223372036854775807\r\n\r\n" + document), ClassTooLarge},
		"chunks cut off":             {says(chunked + "b\r\n" + document + "\r\n"), ClassProtocol},
		"chunk cut off":              {says(chunked + "ff\r\n" + document), ClassProtocol},
		"a chunk of 2^64":            {says(chunked + "10000000000000000\r\n" + document), ClassProtocol},
		"a chunk of 8 EiB":           {floods(chunked+"7fffffffffffffff\r\n", "          "), ClassTooLarge},
		"a chunk of -1":              {says(chunked + "-1\r\n" + document), ClassProtocol},
		"chunk extensions for ever":  {floods(chunked+"b;", "xxxxxxxxxxxxxxxx"), ClassProtocol},
		"chunks of one byte":         {floods(chunked, "1\r\n \r\n"), ClassTooLarge},
		"chunks of mostly extension": {floods(chunked, "1;"+strings.Repeat("x", 1000)+"\r\n \r\n"), ClassProtocol},
		"trailers for ever":          {floods(chunked+"b\r\n"+document+"\r\n0\r\n", "X-Trailer: y\r\n"), ClassProtocol},
		"gzip on the way":            {says(jsonHead + "Transfer-Encoding: gzip\r\n\r\n" + document), ClassProtocol},
		"gzip, chunked on the way":   {says(jsonHead + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), ClassProtocol},
		"endless, and no length":     {floods(jsonHead+"\r\n", "                "), ClassTooLarge},
		"endless, of HTTP/1.0":       {floods("HTTP/1.0 200 OK\r\n\r\n", "                "), ClassTooLarge},
		"many redirects at once":     {floods("", "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"), ClassRedirect},
		"refresh in a header":        {says("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nRefresh: 0; url=http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"), ClassContentType},
		"other place of the content": {says("HTTP/1.1 201 Created\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"), "status_201"},
		"use of a proxy is asked":    {says("HTTP/1.1 305 Use Proxy\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"), ClassRedirect},
		"authentication is asked":    {says("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n"), "status_401"},
		"a proxy's authentication":   {says("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"), "status_407"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startTalk(t, tc.talk)
			cfg := s.config()
			cfg.Timeout = time.Minute // what ends only by this has not been noticed
			began := time.Now()
			resp, err := s.get(t, cfg, Request{})
			wantFailure(t, err, tc.class)
			if resp != nil {
				t.Errorf("got a response besides the error: %+v", resp)
			}
			if took := time.Since(began); took > 50*time.Second {
				t.Errorf("took %v: it ended by the timeout only", took)
			}
			if n := len(err.Error()); n > 2<<10 {
				t.Errorf("the log gets %d bytes that the host has written", n)
			}
			if n := len(s.hits); n != 1 {
				t.Errorf("the host saw %d requests, want 1", n)
			}
		})
	}
}

// Many small answers do not make the time longer.
func TestFloodsThatDribbleEndWithTheTimeout(t *testing.T) {
	for name, text := range map[string]struct{ first, again string }{
		"early answers": {"", "HTTP/1.1 103 Early Hints\r\n\r\n"},
		"header":        {"HTTP/1.1 200 OK\r\nX: ", "x"},
		"chunks":        {jsonHead + "Transfer-Encoding: chunked\r\n\r\n", "1\r\n \r\n"},
		"trailers":      {jsonHead + "Transfer-Encoding: chunked\r\n\r\n0\r\n", "X: y\r\n"},
		"frames":        {"", frame(settings, 0, 0, "")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startTalk(t, func(conn *tls.Conn) {
				_, err := io.WriteString(conn, text.first)
				for err == nil {
					time.Sleep(20 * time.Millisecond)
					_, err = io.WriteString(conn, text.again)
				}
			})
			cfg := s.config()
			cfg.Timeout = 300 * time.Millisecond
			began := time.Now()
			_, err := s.get(t, cfg, Request{})
			wantFailure(t, err, ClassTimeout)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v with a timeout of %v", took, cfg.Timeout)
			}
		})
	}
}

// What comes behind the stated length is not read, and a length that is given
// twice alike is one (RFC 9112, section 6.3). Where none is stated, a body that
// somebody on the way cuts off looks whole, and then is no JSON: no part of an
// object is one.
func TestOddAnswersThatAreHTTPAreRead(t *testing.T) {
	for name, talk := range map[string]func(*tls.Conn){
		"longer than it says":  says(jsonHead + "Content-Length: 11\r\n\r\n" + document + "more"),
		"endless behind":       floods(jsonHead+"Content-Length: 11\r\n\r\n"+document, "more"),
		"chunks and a length":  says(jsonHead + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + document + "\r\n0\r\n\r\n"),
		"the same twice":       says(jsonHead + "Content-Length: 11\r\nContent-Length: 11\r\n\r\n" + document),
		"until the connection": says(jsonHead + "\r\n" + document),
		"cut off without close": func(c *tls.Conn) {
			says(jsonHead + "\r\n" + document)(c)
			_ = c.NetConn().Close()
		},
		"of HTTP/1.0":          says("HTTP/1.0 200 OK\r\n\r\n" + document),
		"after an early hint":  says("HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n" + jsonHead + "Content-Length: 11\r\n\r\n" + document),
		"with identity stated": says(jsonHead + "Content-Encoding: identity\r\nContent-Length: 11\r\n\r\n" + document),
	} {
		t.Run(name, func(t *testing.T) {
			s := startTalk(t, talk)
			got, err := s.get(t, s.config(), Request{})
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Document) != document {
				t.Errorf("got %q", got.Document)
			}
		})
	}
}

// What gets through in form and is no key set is refused by the parser that
// every document meets; here it is only seen that it has stayed small.
func TestWhatIsNoKeySetIsHandedOnSmallAndRefusedByTheParser(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 10<<20))
	_ = z.Close()
	for name, tc := range map[string]struct{ contentType, body string }{
		"a web page as plain text":     {"text/plain", "<!doctype html><title>Sign in</title>"},
		"a web page without a type":    {"", "<!doctype html><title>Sign in</title>"},
		"gzip that is not called that": {"application/json", bomb.String()},
		"gzip as octets":               {"application/octet-stream", bomb.String()},
		"10 000 keys":                  {"application/jwk-set+json", `{"keys":[` + strings.Repeat(`{"kty":""},`, 9_999) + `{"kty":""}]}`},
		"deep nesting":                 {"application/json", strings.Repeat("[", 60_000) + strings.Repeat("]", 60_000)},
		"nothing":                      {"application/json", ""},
		"two documents":                {"application/json", `{"keys":[]}{"keys":[]}`},
		"a JWK and no set":             {"application/jwk+json", `{"kty":"OKP","crv":"X25519","x":"AA"}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = nil // else the server guesses
				if tc.contentType != "" {
					w.Header().Set("Content-Type", tc.contentType)
				}
				_, _ = io.WriteString(w, tc.body)
			})
			got, err := s.get(t, s.config(), Request{})
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Document) != tc.body || len(got.Document) > DefaultMaxBytes {
				t.Errorf("got %d bytes, want the %d as they were sent", len(got.Document), len(tc.body))
			}
			if set, err := jwks.Parse(got.Document, jwks.Limits{}); err == nil {
				t.Errorf("the parser made %+v of it", set)
			}
		})
	}
}

// HTTP/2 is not offered, so a host cannot choose it.
func TestHTTP2IsNotSpoken(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, time.Now().Add(time.Hour), testHost)
	s := startWith(t, ca, "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{leaf}, NextProtos: []string{"h2", "http/1.1"}}, serve(200, nil, document))
	if _, err := s.get(t, s.config(), Request{}); err != nil {
		t.Fatal(err)
	}
	if r := <-s.hits; r.ProtoMajor != 1 || r.TLS.NegotiatedProtocol != "http/1.1" {
		t.Errorf("got %s by %q, want HTTP/1.1", r.Proto, r.TLS.NegotiatedProtocol)
	}

	// One that speaks nothing that is offered has nothing to say.
	other := startWith(t, ca, "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{leaf}, NextProtos: []string{"other/1"}}, serve(200, nil, document))
	_, err := other.get(t, other.config(), Request{})
	wantFailure(t, err, ClassTLS)
	if len(other.hits) != 0 {
		t.Error("a request was sent")
	}
}

// issueAs is testCA.issue with changes to the certificate.
func (ca *testCA) issueAs(t *testing.T, edit func(*x509.Certificate)) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(3), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{testHost},
	}
	edit(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func TestCertificatesThatAlmostHold(t *testing.T) {
	ca := newCA(t)
	demanding := ca.issueAs(t, func(*x509.Certificate) {})
	demanding.ClientAuth, demanding.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12 // 1.3 says it later
	self := func() *tls.Config {
		lone := newCA(t)
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{lone.cert.Raw}, PrivateKey: lone.key}}}
	}
	for name, cfg := range map[string]*tls.Config{
		"not yet valid":                 ca.issueAs(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }),
		"for clients":                   ca.issueAs(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }),
		"name in the common name":       ca.issueAs(t, func(c *x509.Certificate) { c.DNSNames, c.Subject = nil, pkix.Name{CommonName: testHost} }),
		"another name below the suffix": ca.issueAs(t, func(c *x509.Certificate) { c.DNSNames = []string{"*.client.example"} }),
		"wildcard of everything":        ca.issueAs(t, func(c *x509.Certificate) { c.DNSNames = []string{"*"} }),
		"many names":                    ca.issueAs(t, func(c *x509.Certificate) { c.DNSNames = manyNames() }),
		"self-signed":                   self(),
		"a client's is demanded":        demanding,
	} {
		t.Run(name, func(t *testing.T) {
			s := startWith(t, ca, "127.0.0.1:0", cfg, serve(200, nil, document))
			_, err := s.get(t, s.config(), Request{})
			wantFailure(t, err, ClassTLS)
			if len(s.hits) != 0 {
				t.Error("a request was sent")
			}
			if n := len(err.Error()); n > 2<<10 {
				t.Errorf("the log gets %d bytes that the host has written", n)
			}
		})
	}
	t.Run("a client's is demanded after the handshake", func(t *testing.T) {
		cfg := ca.issueAs(t, func(*x509.Certificate) {})
		cfg.ClientAuth, cfg.MinVersion = tls.RequireAnyClientCert, tls.VersionTLS13
		s := startWith(t, ca, "127.0.0.1:0", cfg, serve(200, nil, document))
		_, err := s.get(t, s.config(), Request{})
		wantFailure(t, err, ClassProtocol)
	})
}

// manyNames would make a long line of "certificate is valid for …".
func manyNames() []string {
	names := make([]string, 90)
	for i := range names {
		names[i] = strings.Repeat("a", 60) + strconv.Itoa(i) + "." + strings.Repeat(strings.Repeat("b", 60)+".", 3) + "example"
	}
	return names
}

// startTCP has talk hold the conversation on each connection, without TLS.
func startTCP(t *testing.T, talk func(net.Conn)) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = conn.Close() }()
				talk(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	s := &site{ca: newCA(t), addr: l.Addr().(*net.TCPAddr).AddrPort()}
	s.resolver = &fakeResolver{answers: map[string][][]netip.Addr{testHost + ".": {{s.addr.Addr()}}}}
	return s
}

func TestHandshakesThatAreNone(t *testing.T) {
	hello := []byte{22, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc} // a ServerHello of 16 KiB begins
	for name, tc := range map[string]struct {
		talk  func(net.Conn)
		class Class
	}{
		"plain HTTP":       {func(c net.Conn) { _, _ = io.WriteString(c, jsonHead+"\r\n"+document) }, ClassTLS},
		"closed":           {func(net.Conn) {}, ClassTLS},
		"endless alerts":   {func(c net.Conn) { writeForever(c, "\x15\x03\x03\x00\x02\x01\x00", "") }, ClassTLS},
		"endless records":  {func(c net.Conn) { writeForever(c, string(hello)+strings.Repeat("x", 0x4000-5), "") }, ClassTLS},
		"dribbled records": {dribbled(string(hello)), ClassTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startTCP(t, func(c net.Conn) {
				_, _ = c.Read(make([]byte, 4096)) // the ClientHello
				tc.talk(c)
			})
			cfg := s.config()
			cfg.Timeout = 20 * time.Second
			if tc.class == ClassTimeout {
				cfg.Timeout = 500 * time.Millisecond
			}
			began := time.Now()
			_, err := s.get(t, cfg, Request{})
			wantFailure(t, err, tc.class)
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("took %v with a timeout of %v", took, cfg.Timeout)
			}
		})
	}
}

func dribbled(first string) func(net.Conn) {
	return func(c net.Conn) {
		_, err := io.WriteString(c, first)
		for err == nil {
			time.Sleep(10 * time.Millisecond)
			_, err = io.WriteString(c, "x")
		}
	}
}

// slowResolver answers after a while.
type slowResolver struct {
	*fakeResolver
	after time.Duration
}

func (r slowResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	select {
	case <-time.After(r.after):
		return r.fakeResolver.LookupNetIP(ctx, network, host)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// The time is one for the whole way: each part would be quick enough by itself.
func TestTimeIsCountedFromFirstToLast(t *testing.T) {
	const part, timeout = 300 * time.Millisecond, time.Second
	s := startTalk(t, func(conn *tls.Conn) {
		for _, text := range []string{"HTTP/1.1 200 OK\r\n", "Content-Type: application/json\r\n", "Content-Length: 11\r\n\r\n", document[:5], document[5:]} {
			time.Sleep(part)
			if _, err := io.WriteString(conn, text); err != nil {
				return
			}
		}
	})
	cfg := s.config()
	cfg.Timeout, cfg.Resolver = timeout, slowResolver{s.resolver, part}
	began := time.Now()
	_, err := s.get(t, cfg, Request{})
	wantFailure(t, err, ClassTimeout)
	if took := time.Since(began); took < timeout || took > timeout+3*time.Second {
		t.Errorf("took %v, want %v", took, timeout)
	}
}

func TestNameServerThatHangs(t *testing.T) {
	c := newClient(t, Config{Timeout: 100 * time.Millisecond, Resolver: slowResolver{&fakeResolver{}, time.Hour}})
	_, err := c.Get(t.Context(), Request{URI: "https://" + testHost + "/"})
	wantFailure(t, err, ClassTimeout)
}

func TestBoundsAreThoseOfTheDesign(t *testing.T) {
	c := newClient(t, Config{})
	if c.timeout != 5*time.Second || c.maxBytes != 128<<10 || fmt.Sprint(c.ports) != "[443]" || c.loopback || len(c.addrs.opened) != 0 {
		t.Errorf("got %v, %d bytes, ports %v, loopback %v, opened %v; want 5 s, 128 KiB, 443, nothing", c.timeout, c.maxBytes, c.ports, c.loopback, c.addrs.opened)
	}
	if cap(c.limits.all) != 64 || c.limits.perHost != 4 {
		t.Errorf("got %d at once and %d of one host, want 64 and 4", cap(c.limits.all), c.limits.perHost)
	}
}

// However many hosts there are, only so many requests are under way.
func TestRequestsUnderWayAreBoundedInAll(t *testing.T) {
	const hosts, atOnce = 12, 3
	names := make([]string, hosts)
	for i := range names {
		names[i] = fmt.Sprintf("h%d.example", i)
	}
	var mu sync.Mutex
	underWay, high := 0, 0
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		underWay += n
		high = max(high, underWay)
	}
	ca := newCA(t)
	s := startWith(t, ca, "127.0.0.1:0", ca.issueAs(t, func(c *x509.Certificate) { c.DNSNames = names }), func(w http.ResponseWriter, r *http.Request) {
		count(1)
		time.Sleep(30 * time.Millisecond)
		count(-1)
		serve(200, nil, document)(w, r)
	})
	cfg := s.config()
	cfg.MaxConcurrent, cfg.Timeout = atOnce, time.Minute
	c := newClient(t, cfg)
	var all sync.WaitGroup
	for _, name := range names {
		s.resolver.answers[name+"."] = [][]netip.Addr{{s.addr.Addr()}}
	}
	for _, name := range names {
		all.Go(func() {
			if _, err := c.Get(t.Context(), Request{URI: fmt.Sprintf("https://%s:%d/", name, s.addr.Port())}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if high > atOnce || high < 2 {
		t.Errorf("%d requests were under way at once, want more than one and at most %d", high, atOnce)
	}
}

// The log must not be a way to fill the disk, nor lose what matters.
func TestFailureIsCutForTheLog(t *testing.T) {
	s := startTalk(t, says(strings.Repeat("ü", 10_000)+"\r\n\r\n"))
	_, err := s.get(t, s.config(), Request{})
	wantFailure(t, err, ClassProtocol)
	if text := err.Error(); len(text) > 2<<10 || !strings.HasPrefix(text, "jwks_uri could not be fetched: protocol: ") || !strings.HasSuffix(text, "…") {
		t.Errorf("got %d bytes: %.100s", len(text), text)
	}
	short := &Failure{Class: ClassDNS, Cause: errors.New("no such host")}
	if got, want := short.Error(), "jwks_uri could not be fetched: dns: no such host"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
