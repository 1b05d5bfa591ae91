package awskms_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/bulla-project/bulla/kms/awskms/awstest"
)

// proxy stands before an emulator and does to calls what a network or an
// unwell service would do.
type proxy struct {
	URL string

	mu    sync.Mutex // guards fault and calls
	fault fault      // nil: pass everything on
	calls []call     // what was asked, in order

	// translate replaces error codes in the emulator's answers to Decrypt. Set
	// before use.
	translate map[string]string
}

// fault answers an operation (such as "Sign"), or reports false to have it
// passed on to the emulator.
type fault func(w http.ResponseWriter, r *http.Request, op string) bool

// call is one request.
type call struct{ op, body string }

func newProxy(t testing.TB, s *awstest.Server) *proxy {
	t.Helper()
	target, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 32}
	p := &proxy{}
	reverse := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport,
		ModifyResponse: func(r *http.Response) error {
			if p.translate == nil || operation(r.Request) != "Decrypt" || r.StatusCode == http.StatusOK {
				return nil
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			for from, to := range p.translate {
				body = bytes.ReplaceAll(body, []byte(from), []byte(to))
				for name, values := range r.Header {
					for i := range values {
						r.Header[name][i] = strings.ReplaceAll(values[i], from, to)
					}
				}
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Length", strconv.Itoa(len(body)))
			return nil
		},
		// Callers go away while they are answered: that is what is tested.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		op := operation(r)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		p.mu.Lock()
		f := p.fault
		p.calls = append(p.calls, call{op, string(body)})
		p.mu.Unlock()
		if f == nil || !f(w, r, op) {
			reverse.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		p.set(nil)
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	p.URL = server.URL
	return p
}

// operation is what a request asks for.
func operation(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
}

// set replaces the fault and forgets the calls so far.
func (p *proxy) set(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.calls = f, nil
}

// seen returns the calls since set.
func (p *proxy) seen() []call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]call(nil), p.calls...)
}

// down makes every call fail as if nothing listened.
func (p *proxy) down(testing.TB) (up func()) {
	p.set(func(http.ResponseWriter, *http.Request, string) bool { panic(http.ErrAbortHandler) })
	return func() { p.set(nil) }
}

// stall makes every call hang.
func (p *proxy) stall(testing.TB) (release func()) {
	released := make(chan struct{})
	p.set(func(_ http.ResponseWriter, r *http.Request, _ string) bool {
		select {
		case <-released:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	})
	return func() {
		p.set(nil)
		close(released)
	}
}

// refuse answers as KMS reports errors (AWS JSON 1.1 protocol).
func refuse(status int, code string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"__type":%q,"message":"said the test"}`, code)
		return true
	}
}

// answer answers op with body, and passes other operations on.
func answer(op, body string) fault {
	return func(w http.ResponseWriter, _ *http.Request, got string) bool {
		if got != op {
			return false
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		io.WriteString(w, body)
		return true
	}
}
