package server

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer"
	"github.com/bulla-project/bulla/signer/keyring"
)

// published is what an issuer publishes.
type published struct {
	set keyring.PublicKeys
	err error
}

func (p published) PublicKeys(string) (keyring.PublicKeys, error) { return p.set, p.err }

func oneKey() published {
	return published{set: keyring.PublicKeys{JWKS: []byte(`{"keys":[{}]}`), ETag: `"tag"`}}
}

func oneIssuer(t *testing.T) *issuer.Directory {
	t.Helper()
	i, err := issuer.New(issuer.Config{
		Name: "main", Token: signer.Issuer{URL: "https://login.example.com"},
		DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.ES256},
	})
	if err != nil {
		t.Fatal(err)
	}
	return issuer.NewDirectory(i)
}

func ask(t *testing.T, h http.Handler, method, path, ifNoneMatch string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	if ifNoneMatch != "" {
		req.Header.Set("If-None-Match", ifNoneMatch)
	}
	res := httptest.NewRecorder()
	h.ServeHTTP(res, req)
	return res
}

func TestVerifiersGetTheKeySet(t *testing.T) {
	h := JWKSHandler(oneIssuer(t), oneKey(), func(string) time.Duration { return 10 * time.Minute })
	res := ask(t, h, http.MethodGet, "/jwks/main", "")
	if res.Code != http.StatusOK || res.Body.String() != `{"keys":[{}]}` || res.Header().Get("Content-Type") != "application/jwk-set+json" {
		t.Errorf("got %d %q %v", res.Code, res.Body, res.Header())
	}
	if got := res.Header().Get("Cache-Control"); got != "public, max-age=600" {
		t.Errorf("Cache-Control %q", got)
	}
	if res = ask(t, h, http.MethodGet, "/jwks/main", `"tag"`); res.Code != http.StatusNotModified || res.Body.Len() != 0 {
		t.Errorf("with a matching tag: %d %q, want 304", res.Code, res.Body)
	}
	for path, want := range map[string]int{"/jwks/other": 404, "/jwks/": 404, "/": 404, "/metrics": 404, "/livez": 404} {
		if res := ask(t, h, http.MethodGet, path, ""); res.Code != want {
			t.Errorf("%s: %d, want %d", path, res.Code, want)
		}
	}
	if res := ask(t, h, http.MethodPost, "/jwks/main", ""); res.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d, want 405", res.Code)
	}
}

func TestAKeySetThatIsNotKnownIsNotCached(t *testing.T) {
	h := JWKSHandler(oneIssuer(t), published{err: keyring.ErrNotOpen}, func(string) time.Duration { return time.Hour })
	res := ask(t, h, http.MethodGet, "/jwks/main", "")
	if res.Code != http.StatusServiceUnavailable || res.Header().Get("Cache-Control") != "" {
		t.Errorf("got %d %v, want 503 that nobody caches", res.Code, res.Header())
	}
}

// Else a forged set would outlive the time in which it cannot be told.
func TestAKeySetThatIsNotVerifiedIsNotCached(t *testing.T) {
	keys := oneKey()
	keys.set.Unverified = true
	h := JWKSHandler(oneIssuer(t), keys, func(string) time.Duration { return time.Hour })
	res := ask(t, h, http.MethodGet, "/jwks/main", "")
	if res.Code != http.StatusOK || res.Header().Get("Cache-Control") != "no-store" || res.Body.String() != `{"keys":[{}]}` {
		t.Errorf("got %d %v %q, want the keys, to be kept by nobody", res.Code, res.Header(), res.Body)
	}
}

func TestReadinessSaysWhyNot(t *testing.T) {
	problem := errors.New("issuer main cannot sign: no token")
	h := OpsHandler(Ops{Ready: func() error { return problem }, Metrics: http.NotFoundHandler()})
	if res := ask(t, h, http.MethodGet, "/readyz", ""); res.Code != http.StatusServiceUnavailable || !strings.Contains(res.Body.String(), "no token") {
		t.Errorf("got %d %q", res.Code, res.Body)
	}
	if res := ask(t, h, http.MethodGet, "/livez", ""); res.Code != http.StatusOK {
		t.Errorf("livez: %d", res.Code)
	}
	problem = nil
	if res := ask(t, h, http.MethodGet, "/readyz", ""); res.Code != http.StatusOK {
		t.Errorf("readyz when ready: %d", res.Code)
	}
}

// A replica without its store serves what it has in memory; so do all others, and
// a load balancer that took them out would leave nobody.
func TestAServiceThatIsDegradedIsReadyAndSaysSo(t *testing.T) {
	var down, lacks error
	h := OpsHandler(Ops{Ready: func() error { return down }, Degraded: func() error { return lacks }, Metrics: http.NotFoundHandler()})
	if res := ask(t, h, http.MethodGet, "/readyz", ""); res.Code != http.StatusOK || res.Body.String() != "ok\n" {
		t.Errorf("with all there is: got %d %q", res.Code, res.Body)
	}
	lacks = errors.New("the store does not answer: <refused>")
	res := ask(t, h, http.MethodGet, "/readyz", "")
	if res.Code != http.StatusOK || res.Body.String() != "ok, but degraded: the store does not answer: <refused>\n" || !strings.HasPrefix(res.Header().Get("Content-Type"), "text/plain") {
		t.Errorf("without the store: got %d %q %v", res.Code, res.Body, res.Header())
	}
	down = errors.New("issuer main cannot sign: no token")
	if res := ask(t, h, http.MethodGet, "/readyz", ""); res.Code != http.StatusServiceUnavailable || strings.Contains(res.Body.String(), "store") {
		t.Errorf("without anybody who signs: got %d %q", res.Code, res.Body)
	}
}
