package e2e

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// soakClient is a client under load, with what opens its tokens.
type soakClient struct {
	req    *bullav1.SignAndEncryptRequest
	opener *client.Opener
}

// TestSoak has 32 callers ask for tokens of different clients and algorithms at
// once: for 3 seconds, with BULLA_SOAK=1 for 60. Every token must open, and
// afterwards the service must hold no more than before.
func TestSoak(t *testing.T) {
	length, callers := 3*time.Second, 32
	if os.Getenv("BULLA_SOAK") != "" {
		length = time.Minute
	}
	algorithms := []kms.Algorithm{kms.ES256, kms.RS256, kms.PS256, kms.EdDSA}
	host := harness.NewHost(t, shared.host.CA)
	s := harness.Start(t, harness.Config{
		Token: shared.token, Algorithms: algorithms, CA: shared.ca, Host: host, Fetch: harness.M{"min_refresh": "1s"},
	})
	leaf := s.Leaf(t, harness.Admin)
	dial := func() *client.Client {
		c, err := client.Dial(client.Config{Address: s.GRPC, CAFile: s.CA.File, CertFile: leaf.CertFile, KeyFile: leaf.KeyFile, Attempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}

	admin := dial()
	var clients []soakClient
	for i, c := range []struct{ alg, enc, curve string }{
		{"RSA-OAEP-256", "A256GCM", ""}, {"RSA-OAEP", "A128CBC-HS256", ""},
		{"ECDH-ES", "A128GCM", "P-256"}, {"ECDH-ES+A256KW", "A256CBC-HS512", "P-256"},
		{"ECDH-ES+A128KW", "A128CBC-HS256", "P-384"}, {"ECDH-ES+A192KW", "A192GCM", "P-521"},
	} {
		key := harness.NewClientKey(t, c.curve, fmt.Sprintf("soak-%d", i))
		for j, alg := range algorithms {
			id := fmt.Sprintf("soak-%d-%d", i, j)
			req := withJWKS(id, harness.JWKS(key), setting(c.alg, c.enc))
			if j%2 == 1 {
				// Fresh for two seconds: refreshed under load again and again.
				path := fmt.Sprintf("/soak-%d", i)
				req = withURI(id, host.Serve(path, harness.JWKS(key), 2*time.Second), setting(c.alg, c.enc))
			}
			mustRegister(t, admin, req)
			ask := idToken(id)
			ask.SigningAlgorithm = string(alg)
			clients = append(clients, soakClient{ask, opener(t, s, key, client.OpenConfig{
				Issuer: harness.IssuerURL, Audience: id, KeyAlgorithms: []string{c.alg}, ContentEncryptions: []string{c.enc}, SignatureAlgorithms: []string{string(alg)},
			})})
		}
	}
	for _, c := range clients {
		mustIssue(t, admin, c.req)
	}
	if err := admin.Close(); err != nil {
		t.Fatal(err)
	}
	// Connections that were closed take a moment to go.
	rest := func() map[string]float64 {
		t.Helper()
		m := s.Metrics(t)
		for still := 0; still < 5; {
			time.Sleep(50 * time.Millisecond)
			now := s.Metrics(t)
			if now["go_goroutines"] < m["go_goroutines"] {
				still = 0
			} else {
				still++
			}
			m = now
		}
		return m
	}
	before := rest()

	var mu sync.Mutex // guards took
	var took []time.Duration
	var load sync.WaitGroup
	began := time.Now()
	for w := range callers {
		load.Go(func() {
			c := dial()
			defer c.Close()
			var mine []time.Duration
			for i := w; time.Since(began) < length; i++ {
				one := clients[i%len(clients)]
				asked := time.Now()
				res, err := c.Tokens.SignAndEncrypt(t.Context(), one.req)
				if err != nil {
					t.Errorf("%s: %v", one.req.GetClientId(), err)
					break
				}
				mine = append(mine, time.Since(asked))
				if _, err := one.opener.Open(res.GetToken()); err != nil {
					t.Errorf("%s: a token does not open: %v", one.req.GetClientId(), err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	load.Wait()
	lasted := time.Since(began)
	if len(took) < callers { // with the race detector on a busy machine it is not much more
		t.Fatalf("only %d tokens", len(took))
	}
	slices.Sort(took)
	at := func(part float64) time.Duration {
		return took[int(part*float64(len(took)-1))].Round(10 * time.Microsecond)
	}
	t.Logf("%d tokens in %v by %d callers, all opened: %.0f tokens/s, p50 %v, p99 %v, max %v (opening them takes CPU of the same machine)",
		len(took), lasted.Round(time.Millisecond), callers, float64(len(took))/lasted.Seconds(), at(.5), at(.99), at(1))

	// Goroutines of the background come and go; those of callers would stay by
	// the dozen.
	harness.Eventually(t, func() error {
		if after := s.Metrics(t)["go_goroutines"]; after > before["go_goroutines"]+5 {
			return errorf("%v goroutines, %v before", after, before["go_goroutines"])
		}
		return nil
	})
	after := s.Metrics(t)
	sample := func(name string) string { return fmt.Sprintf(`bulla_pkcs11_%s{backend="hsm"}`, name) }
	if in := after[sample("sessions_in_use")]; in > 1 { // a probe may be under way
		t.Errorf("%v sessions are in use after the load", in)
	}
	if open, limit := after[sample("sessions_open")], after[sample("sessions_limit")]; open > limit || limit != before[sample("sessions_limit")] {
		t.Errorf("%v sessions are open, the limit is %v and was %v", open, limit, before[sample("sessions_limit")])
	}
	for _, name := range []string{"waiting", "renewals_total", "restarts_total"} {
		if n := after[sample(name)]; n != 0 {
			t.Errorf("%s: got %v, want 0", name, n)
		}
	}
	if n := after[sample("logins_total")]; n != 1 {
		t.Errorf("%v logins, want 1", n)
	}
	if n := after[`bulla_panics_total`]; n != 0 {
		t.Errorf("%v panics", n)
	}
	if n, want := after["bulla_audit_records_total"], float64(len(took)+2*len(clients)); n != want {
		t.Errorf("%v audit records, want %v", n, want)
	}
	t.Logf("goroutines %v before, %v after; resident memory %.1f MiB before, %.1f MiB after; sessions open %v of %v",
		before["go_goroutines"], after["go_goroutines"], before["process_resident_memory_bytes"]/(1<<20), after["process_resident_memory_bytes"]/(1<<20),
		after[sample("sessions_open")], after[sample("sessions_limit")])
}
