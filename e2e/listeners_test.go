package e2e

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/local"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// ask makes a request of the shared service and reads its answer.
func ask(t testing.TB, method, url string, header http.Header) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func TestVerifiersFetchAndCacheTheKeys(t *testing.T) {
	url := "http://" + shared.HTTP + "/jwks/main"
	res, body := ask(t, http.MethodGet, url, nil)
	etag := res.Header.Get("ETag")
	for name, want := range map[string]string{
		"Cache-Control": "public, max-age=600", "Content-Type": "application/jwk-set+json", "X-Content-Type-Options": "nosniff",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(etag, `"`) {
		t.Fatalf("got %s with ETag %s", res.Status, etag)
	}
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal([]byte(body), &set); err != nil {
		t.Fatal(err)
	}
	if len(set.Keys) != len(kms.Algorithms()) {
		t.Errorf("%d keys, want one for each of %v", len(set.Keys), kms.Algorithms())
	}
	for _, key := range set.Keys {
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k"} {
			if key[private] != nil {
				t.Errorf("a published key has the member %s", private)
			}
		}
		if key["use"] != "sig" || key["alg"] == nil || key["kid"] == nil {
			t.Errorf("got the key %v, want use sig, an alg and a kid", key)
		}
	}
	byRPC, err := shared.Caller(t, harness.Admin).SigningKeys.GetJWKS(t.Context(), &bullav1.GetJWKSRequest{Issuer: harness.Issuer})
	if err != nil || string(byRPC.GetJwks()) != body || byRPC.GetAsOf() == nil {
		t.Errorf("GetJWKS says %v (%v), the listener %s", byRPC, err, body)
	}

	for _, test := range []struct {
		method, path string
		ifNoneMatch  string
		want         int
	}{
		{"GET", "/jwks/main", etag, http.StatusNotModified},
		{"GET", "/jwks/main", `"old"`, http.StatusOK},
		{"HEAD", "/jwks/main", "", http.StatusOK},
		{"GET", "/jwks/narrow", etag, http.StatusOK},
		{"GET", "/jwks/nowhere", "", http.StatusNotFound},
		{"GET", "/jwks/", "", http.StatusNotFound},
		{"GET", "/jwks/main/x", "", http.StatusNotFound},
		{"GET", "/", "", http.StatusNotFound},
		{"GET", "/jwks", "", http.StatusNotFound},
		// What is for operators and callers is at no other place.
		{"GET", "/metrics", "", http.StatusNotFound},
		{"GET", "/readyz", "", http.StatusNotFound},
		{"GET", "/livez", "", http.StatusNotFound},
		{"GET", "/healthz", "", http.StatusNotFound},
		{"GET", "/debug/pprof/", "", http.StatusNotFound},
		{"GET", "/debug/vars", "", http.StatusNotFound},
		{"GET", "/jwks/../metrics", "", http.StatusNotFound},
		{"POST", "/grpc.health.v1.Health/Check", "", http.StatusNotFound},
		{"POST", "/bulla.v1.TokenService/SignAndEncrypt", "", http.StatusNotFound},
		{"POST", "/jwks/main", "", http.StatusMethodNotAllowed},
		{"DELETE", "/jwks/main", "", http.StatusMethodNotAllowed},
	} {
		header := http.Header{}
		if test.ifNoneMatch != "" {
			header.Set("If-None-Match", test.ifNoneMatch)
		}
		res, body := ask(t, test.method, "http://"+shared.HTTP+test.path, header)
		if res.StatusCode != test.want {
			t.Errorf("%s %s: got %s, want %d", test.method, test.path, res.Status, test.want)
		}
		if test.want == http.StatusNotModified && (body != "" || res.Header.Get("ETag") != etag || res.Header.Get("Cache-Control") == "") {
			t.Errorf("304 with %v and %q, want the ETag, Cache-Control and no body", res.Header, body)
		}
	}
}

func TestVerifiersListenerHasTLSIfConfigured(t *testing.T) {
	t.Parallel()
	var leaf *harness.Leaf
	s := harness.New(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: func(tree harness.M) {
		ip, _, err := net.SplitHostPort(tree["http"].(harness.M)["listen"].(string))
		if err != nil {
			t.Fatal(err)
		}
		leaf = shared.ca.Issue(t, harness.LeafConfig{IPs: []net.IP{net.ParseIP(ip)}})
		tree["http"].(harness.M)["tls"] = harness.M{"cert_file": leaf.CertFile, "key_file": leaf.KeyFile}
	}})
	s.Run(t)
	s.WaitReady(t)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: shared.ca.Pool(), MinVersion: tls.VersionTLS12},
	}}
	res, err := client.Get("https://" + s.HTTP + "/jwks/main")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.TLS.Version < tls.VersionTLS12 {
		t.Errorf("got %s over TLS %x", res.Status, res.TLS.Version)
	}
}

func TestOperatorsSeeHealthAndMetrics(t *testing.T) {
	for _, path := range []string{"/livez", "/readyz", "/metrics"} {
		if res, body := ask(t, http.MethodGet, "http://"+shared.Ops+path, nil); res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %s", path, res.Status, body)
		}
		if res, _ := ask(t, http.MethodPost, "http://"+shared.Ops+path, nil); res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %s, want 405", path, res.Status)
		}
	}
	admin := shared.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("metrics", harness.JWKS(anyKey())))
	mustIssue(t, admin, idToken("metrics"))
	metrics := shared.Metrics(t)
	for sample, least := range map[string]float64{
		`bulla_rpcs_total{code="OK",method="SignAndEncrypt",reason=""}`:                      1,
		`bulla_rpc_seconds_count{method="SignAndEncrypt"}`:                                   1,
		`bulla_stage_seconds_count{algorithm="ES256",backend="hsm",stage="sign"}`:            1,
		`bulla_stage_seconds_count{algorithm="ECDH-ES",backend="",stage="wrap"}`:             1,
		`bulla_stage_seconds_count{algorithm="A128GCM",backend="",stage="encrypt"}`:          1,
		`bulla_stage_seconds_count{algorithm="",backend="",stage="recipient"}`:               1,
		`bulla_stage_seconds_count{algorithm="",backend="",stage="prepare"}`:                 1,
		`bulla_stage_seconds_count{algorithm="",backend="",stage="audit"}`:                   1,
		`bulla_pkcs11_up{backend="hsm"}`:                                                     1,
		`bulla_pkcs11_logins_total{backend="hsm"}`:                                           1,
		`bulla_pkcs11_sessions_limit{backend="hsm"}`:                                         1,
		`bulla_issuer_signs{issuer="main"}`:                                                  1,
		`bulla_issuer_signs{issuer="narrow"}`:                                                1,
		`bulla_backend_up{backend="hsm",kind="pkcs11"}`:                                      1,
		`bulla_tokens_total{issuer="main",kind="ID_TOKEN"}`:                                  1,
		`bulla_tokens_total{issuer="narrow",kind="LOGOUT_TOKEN"}`:                            0,
		`bulla_rpc_in_flight{method="SignAndEncrypt"}`:                                       0,
		`bulla_signing_keys{algorithm="ES256",issuer="main",state="active"}`:                 1,
		`bulla_signing_keys{algorithm="ES256",issuer="main",state="next"}`:                   0,
		`bulla_signing_key_age_seconds{algorithm="PS256",issuer="narrow"}`:                   0.001,
		`bulla_signing_key_next_rotation_timestamp_seconds{algorithm="ES256",issuer="main"}`: 0,
		`bulla_key_set_fetches_total{result="failed"}`:                                       0,
		`bulla_key_set_fetch_seconds_count`:                                                  0,
		`bulla_rpcs_total{code="Internal",method="SignAndEncrypt",reason="SIGNING_FAULT"}`:   0,
		`bulla_clients_in_memory`:                                                            1,
		`bulla_audit_records_total`:                                                          1,
		`bulla_audit_failures_total`:                                                         0,
		`bulla_panics_total`:                                                                 0,
		`bulla_pkcs11_restarts_total{backend="hsm"}`:                                         0,
		`go_goroutines`:                 1,
		`process_resident_memory_bytes`: 1,
	} {
		if got, ok := metrics[sample]; !ok || got < least {
			t.Errorf("%s: got %v (there: %v), want at least %v", sample, got, ok, least)
		}
	}
	if metrics["bulla_panics_total"] != 0 {
		t.Errorf("%v panics", metrics["bulla_panics_total"])
	}
}

func TestSigningKeysAndMetadataSayWhatIsReallyThere(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	list, err := admin.SigningKeys.ListSigningKeys(t.Context(), &bullav1.ListSigningKeysRequest{Issuer: harness.Issuer})
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, k := range list.GetSigningKeys() {
		have = append(have, k.GetAlgorithm())
		if k.GetState() != bullav1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE || !k.GetAvailable() || !slices.Equal(k.GetBackends(), []string{"hsm"}) || k.GetActivateAt() == nil {
			t.Errorf("got %v, want an active key of hsm that signs", k)
		}
		if strings.Contains(k.String(), "object=") {
			t.Errorf("a caller is told where the key is: %v", k)
		}
	}
	for _, alg := range kms.Algorithms() {
		if !slices.Contains(have, string(alg)) {
			t.Errorf("got the keys %v, want one for %s", have, alg)
		}
	}

	res, err := admin.SigningKeys.GetProviderMetadata(t.Context(), &bullav1.GetProviderMetadataRequest{Issuer: narrow})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string][]string
	if err := json.Unmarshal(res.GetMetadata(), &got); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"id_token", "userinfo", "authorization", "introspection"} {
		for member, want := range map[string][]string{
			"_signing_alg_values_supported":    {"PS256", "HS256", "HS384", "HS512"},
			"_encryption_alg_values_supported": {"RSA-OAEP-256"}, "_encryption_enc_values_supported": {"A256GCM"},
		} {
			if !slices.Equal(got[kind+member], want) {
				t.Errorf("%s: got %v, want %v", kind+member, got[kind+member], want)
			}
		}
	}
}

// TestDevelopmentNeedsNeitherCertificatesNorAnHSM runs the development mode:
// plaintext and software keys, on loopback.
func TestDevelopmentNeedsNeitherCertificatesNorAnHSM(t *testing.T) {
	t.Parallel()
	keys := filepath.Join(t.TempDir(), "keys.json")
	ref, err := local.Create(keys, kms.ES256, "dev")
	if err != nil {
		t.Fatal(err)
	}
	wrap, err := local.CreateWrapping(keys, "wrap")
	if err != nil {
		t.Fatal(err)
	}
	s := harness.Start(t, harness.Config{
		Plaintext: true,
		Wrapping:  harness.M{"backend": "dev", "key": wrap},
		Issuers:   []harness.M{{"name": harness.Issuer, "iss": harness.IssuerURL, "signing_keys": []harness.M{{"algorithm": "ES256", "keys": []string{"dev:" + ref}}}}},
		Edit: func(tree harness.M) {
			tree["backends"] = harness.M{"dev": harness.M{"local": harness.M{"path": keys}}}
		},
	})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(harness.JWKS(anyKey())) // the service reads it or not
	}))
	t.Cleanup(web.Close)
	dev := s.Caller(t, "")
	mustRegister(t, dev, withURI("dev", web.URL))
	open(t, s, anyKey(), mustIssue(t, dev, idToken("dev")).GetToken())
	if lines := s.AuditOf(t, "dev"); len(lines) != 2 || lines[1].Caller != "development" {
		t.Errorf("got the audit lines %+v, want two of the caller development", lines)
	}
	// What is not on loopback is as closed as ever.
	_, err = dev.ClientKeys.RegisterClientKey(t.Context(), withURI("dev-2", "http://app.example.com/jwks"))
	mustFail(t, err, "URI_REJECTED")
	_, err = dev.ClientKeys.RegisterClientKey(t.Context(), withURI("dev-2", "https://10.0.0.1/jwks"))
	mustFail(t, err, "URI_REJECTED")
}
