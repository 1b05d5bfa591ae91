package fetch

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"encoding/pem"
)

var discardLog = log.New(io.Discard, "", 0)

const document = `{"keys":[]}`

func serve(status int, header map[string]string, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestGetReturnsTheDocumentByteForByte(t *testing.T) {
	s := start(t, serve(200, map[string]string{
		"Content-Type":  "application/jwk-set+json",
		"Cache-Control": "public, max-age=600",
		"Age":           "100",
		"ETag":          `"v1"`,
		"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
	}, document+"\n "))
	got, err := s.get(t, s.config(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Document) != document+"\n " {
		t.Errorf("got document %q", got.Document)
	}
	if got.NotModified || got.ETag != `"v1"` || got.LastModified != "Wed, 21 Oct 2015 07:28:00 GMT" {
		t.Errorf("got validators %+v", got)
	}
	if want := (Freshness{For: 500 * time.Second, Stated: true}); got.Freshness != want {
		t.Errorf("got freshness %+v, want %+v", got.Freshness, want)
	}
}

func TestRequestCarriesNothingOfTheService(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("https_proxy", "http://127.0.0.1:1")
	s := start(t, func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "c", Value: "v"})
		serve(200, map[string]string{"Content-Type": "application/json"}, document)(w, r)
	})
	c := newClient(t, s.config())
	for range 2 {
		if _, err := c.Get(t.Context(), Request{URI: s.uri() + "?v=1"}); err != nil {
			t.Fatal(err)
		}
		r := <-s.hits
		for name := range r.Header {
			switch name {
			case "Accept", "Accept-Encoding", "User-Agent", "Connection":
			default:
				t.Errorf("sent header %s: %s", name, r.Header.Get(name))
			}
		}
		if got := r.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("got Accept-Encoding %q, want identity", got)
		}
		if r.Method != http.MethodGet || r.RequestURI != "/jwks.json?v=1" || r.ProtoMajor != 1 {
			t.Errorf("got %s %s %s", r.Method, r.RequestURI, r.Proto)
		}
	}
}

func TestConditionalRequestGetsNotModified(t *testing.T) {
	const etag, date = `W/"v1"`, "Wed, 21 Oct 2015 07:28:00 GMT"
	newTag := ""
	s := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != etag || r.Header.Get("If-Modified-Since") != date {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		if newTag != "" {
			w.Header().Set("ETag", newTag)
		}
		w.Header().Set("Cache-Control", "max-age=60")
		w.WriteHeader(http.StatusNotModified)
	})
	for _, newTag = range []string{"", `"v2"`} {
		got, err := s.get(t, s.config(), Request{ETag: etag, LastModified: date})
		if err != nil {
			t.Fatal(err)
		}
		want := Response{NotModified: true, ETag: etag, LastModified: date, Freshness: Freshness{For: time.Minute, Stated: true}}
		if newTag != "" {
			want.ETag, want.LastModified = newTag, ""
		}
		if !got.NotModified || got.Document != nil || got.ETag != want.ETag || got.LastModified != want.LastModified || got.Freshness != want.Freshness {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestNotModifiedWithoutConditionIsAFailure(t *testing.T) {
	s := start(t, serve(304, nil, ""))
	// A validator that is none is not sent.
	_, err := s.get(t, s.config(), Request{ETag: "v1", LastModified: "yesterday"})
	wantFailure(t, err, "status_304")
	if r := <-s.hits; r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Modified-Since") != "" {
		t.Errorf("sent the conditions %v", r.Header)
	}
}

func TestAnswersThatAreNoKeySet(t *testing.T) {
	json := map[string]string{"Content-Type": "application/json"}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 10<<20))
	_ = z.Close()

	tests := map[string]struct {
		handler http.HandlerFunc
		class   Class
	}{
		"redirect":              {serve(302, map[string]string{"Location": "https://other.example/"}, ""), ClassRedirect},
		"permanent redirect":    {serve(308, map[string]string{"Location": "/other"}, ""), ClassRedirect},
		"500 with max-age":      {serve(500, map[string]string{"Cache-Control": "max-age=86400"}, ""), "status_500"},
		"404":                   {serve(404, json, document), "status_404"},
		"204":                   {serve(204, nil, ""), "status_204"},
		"206":                   {serve(206, json, document), "status_206"},
		"web page":              {serve(200, map[string]string{"Content-Type": "text/html; charset=utf-8"}, "<p>"), ClassContentType},
		"broken type":           {serve(200, map[string]string{"Content-Type": "json; ;;"}, document), ClassContentType},
		"gzip bomb":             {serve(200, map[string]string{"Content-Type": "application/json", "Content-Encoding": "gzip"}, bomb.String()), ClassContentEncoding},
		"stated too long":       {serve(200, map[string]string{"Content-Type": "application/json", "Content-Length": strconv.Itoa(DefaultMaxBytes + 1)}, ""), ClassTooLarge},
		"one byte too many":     {serve(200, json, strings.Repeat(" ", DefaultMaxBytes+1)), ClassTooLarge},
		"shorter than it says":  {serve(200, map[string]string{"Content-Type": "application/json", "Content-Length": "100"}, document), ClassProtocol},
		"endless body":          {endless, ClassTooLarge},
		"endless headers":       {hijack(func(w io.Writer) { writeForever(w, "X-A: b\r\n", "HTTP/1.1 200 OK\r\n") }), ClassProtocol},
		"endless early answers": {hijack(func(w io.Writer) { writeForever(w, "HTTP/1.1 103 Early Hints\r\n\r\n", "") }), ClassProtocol},
		"no HTTP":               {hijack(func(w io.Writer) { _, _ = io.WriteString(w, "SSH-2.0-x\r\n\r\n") }), ClassProtocol},
		"closed at once":        {hijack(func(io.Writer) {}), ClassProtocol},
		"absurd status":         {hijack(func(w io.Writer) { _, _ = io.WriteString(w, "HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n") }), ClassStatusOther},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := start(t, tc.handler)
			resp, err := s.get(t, s.config(), Request{})
			wantFailure(t, err, tc.class)
			if resp != nil {
				t.Errorf("got a response besides the error: %+v", resp)
			}
			if n := len(s.hits); n != 1 {
				t.Errorf("the server saw %d requests, want 1", n)
			}
		})
	}
}

func TestLongestDocumentIsRead(t *testing.T) {
	s := start(t, serve(200, map[string]string{"Content-Type": "text/plain"}, strings.Repeat("x", DefaultMaxBytes)))
	got, err := s.get(t, s.config(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Document) != DefaultMaxBytes {
		t.Errorf("got %d bytes, want %d", len(got.Document), DefaultMaxBytes)
	}
}

func TestPlausibleContentTypesPass(t *testing.T) {
	for _, ct := range []string{
		"", "application/json", "application/json; charset=utf-8", "APPLICATION/JWK-SET+JSON",
		"application/jwk-set+json", "text/plain; charset=utf-8", "application/octet-stream", "binary/octet-stream",
	} {
		if !plausibleType(ct) {
			t.Errorf("Content-Type %q is refused", ct)
		}
	}
	for _, ct := range []string{"text/html", "image/png", "application/xml", "text/x+json", ";", "multipart/form-data; boundary=x"} {
		if plausibleType(ct) {
			t.Errorf("Content-Type %q passes", ct)
		}
	}
}

func endless(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	for {
		if _, err := io.WriteString(w, strings.Repeat(" ", 1<<10)); err != nil {
			return
		}
	}
}

func writeForever(w io.Writer, again, first string) {
	_, err := io.WriteString(w, first)
	for err == nil {
		_, err = io.WriteString(w, strings.Repeat(again, 100))
	}
}

// hijack answers with what talk writes on the bare connection.
func hijack(talk func(io.Writer)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer func() { _ = conn.Close() }()
		talk(conn)
	}
}

func TestSlowHostsEndWithTheTimeout(t *testing.T) {
	dribble := func(first, again string) http.HandlerFunc {
		return hijack(func(w io.Writer) {
			_, err := io.WriteString(w, first)
			for err == nil {
				time.Sleep(5 * time.Millisecond)
				_, err = io.WriteString(w, again)
			}
		})
	}
	tests := map[string]http.HandlerFunc{
		"silent":       func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"slow headers": dribble("HTTP/1.1 200 OK\r\n", "X: y\r\n"),
		"slow body":    dribble("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", " "),
	}
	for name, handler := range tests {
		t.Run(name, func(t *testing.T) {
			s := start(t, handler)
			cfg := s.config()
			cfg.Timeout = 150 * time.Millisecond
			began := time.Now()
			_, err := s.get(t, cfg, Request{})
			wantFailure(t, err, ClassTimeout)
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("took %s with a timeout of %s", took, cfg.Timeout)
			}
		})
	}
}

func TestSilenceBeforeTLSEndsWithTheTimeout(t *testing.T) {
	l := listen(t) // accepts in the kernel, never answers
	ca := newCA(t)
	c := newClient(t, Config{
		RootCAs: ca.pool, Timeout: 100 * time.Millisecond,
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		AllowPorts: []int{int(l.Port())},
	})
	_, err := c.Get(t.Context(), Request{URI: "https://" + l.String() + "/"})
	wantFailure(t, err, ClassTimeout)
}

func TestCallerWhoGivesUpIsToldSo(t *testing.T) {
	s := start(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-s.hits; cancel() }()
	_, err := newClient(t, s.config()).Get(ctx, Request{URI: s.uri()})
	wantFailure(t, err, ClassCanceled)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it to wrap context.Canceled", err)
	}
}

func TestCertificatesThatDoNotHold(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	hour := time.Now().Add(time.Hour)
	with := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	old := with(ca.issue(t, hour, testHost))
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	tests := map[string]*tls.Config{
		"wrong name":        with(ca.issue(t, hour, "other.example")),
		"address only":      with(ca.issue(t, hour, "127.0.0.1")),
		"expired":           with(ca.issue(t, time.Now().Add(-time.Hour), testHost)),
		"unknown authority": with(other.issue(t, hour, testHost)),
		"TLS 1.1":           old,
	}
	for name, cfg := range tests {
		t.Run(name, func(t *testing.T) {
			s := startWith(t, ca, "127.0.0.1:0", cfg, serve(200, nil, document))
			_, err := s.get(t, s.config(), Request{})
			wantFailure(t, err, ClassTLS)
			if len(s.hits) != 0 {
				t.Error("a request was sent")
			}
		})
	}
}

func TestCAFileIsTrusted(t *testing.T) {
	s := start(t, serve(200, nil, document))
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := s.config()
	cfg.RootCAs, cfg.CAFile = nil, file
	if _, err := s.get(t, cfg, Request{}); err != nil {
		t.Fatal(err)
	}
	cfg.CAFile = ""
	_, err := s.get(t, cfg, Request{})
	wantFailure(t, err, ClassTLS)
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		cfg  Config
		want string
	}{
		"port":         {Config{AllowPorts: []int{0}}, "allow_ports"},
		"mapped":       {Config{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}, "10.1.0.0/16"},
		"host bits":    {Config{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")}}, "10.0.0.0/8"},
		"zero prefix":  {Config{AllowCIDRs: []netip.Prefix{{}}}, "not valid"},
		"host URL":     {Config{AllowHosts: []string{"https://a.example"}}, "allow_hosts"},
		"host address": {Config{AllowHosts: []string{"10.0.0.1"}}, "allow_cidrs"},
		"star":         {Config{AllowHosts: []string{"*"}}, "allow_hosts"},
		"CA missing":   {Config{CAFile: empty + "x"}, "ca_file"},
		"CA empty":     {Config{CAFile: empty}, "PEM"},
		"two roots":    {Config{CAFile: empty, RootCAs: newCA(t).pool}, "both"},
		"negative":     {Config{MaxBytes: -1}, "negative"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := New(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestOneHostCannotHoldAllTurns(t *testing.T) {
	block := make(chan struct{})
	slow := start(t, func(w http.ResponseWriter, _ *http.Request) { <-block })
	defer close(block) // before the servers close
	quick := startWith(t, slow.ca, "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{slow.ca.issue(t, time.Now().Add(time.Hour), "quick.example")},
	}, serve(200, nil, document))

	cfg := slow.config()
	cfg.AllowPorts = append(cfg.AllowPorts, int(quick.addr.Port()))
	cfg.MaxConcurrent, cfg.MaxPerHost = 3, 2
	slow.resolver.answers["quick.example."] = [][]netip.Addr{{quick.addr.Addr()}}
	c := newClient(t, cfg)

	held, hang := make(chan error, 2), make(chan error, 4)
	get := func(errs chan<- error, timeout time.Duration) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		_, err := c.Get(ctx, Request{URI: slow.uri()})
		errs <- err
	}
	for range cap(held) {
		go get(held, time.Second)
		<-slow.hits
	}
	for range cap(hang) {
		go get(hang, 100*time.Millisecond)
	}
	uri := strings.Replace(quick.uri(), testHost, "quick.example", 1)
	if _, err := c.Get(t.Context(), Request{URI: uri}); err != nil {
		t.Errorf("the other host had to wait: %v", err)
	}
	for range cap(hang) {
		wantFailure(t, <-hang, ClassBusy)
	}
	for range cap(held) {
		wantFailure(t, <-held, ClassTimeout)
	}
	if n := len(slow.hits); n != 0 {
		t.Errorf("%d more requests reached the slow host than it may have", n)
	}
	if len(c.limits.hosts) != 0 {
		t.Errorf("%d hosts are still counted after all is over", len(c.limits.hosts))
	}
}
