// Package e2e tests the built binary from outside: as a service with a SoftHSM
// token, called over gRPC with client certificates, with clients' hosts on TLS
// beside it and other people's JOSE libraries to open its tokens.
//
// What is tested here is what only the whole can show: that the parts are
// wired, that each mistake and each outage reaches its caller as the reason
// that the API promises, that what was acknowledged survives a kill, and that
// no secret appears where it must not. What one package can show alone is
// tested there; so is the one case that needs a resolver under control: a
// jwks_uri whose address changes between look-up and dial (encrypter/fetch).
//
// BULLA_BINARY names a binary to test in place of one that is built first.
// BULLA_SOAK=1 runs TestSoak at full length.
package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
	"github.com/bulla-project/bulla/server/telemetry/trace/tracetest"
)

// world is what the tests share: one service, and what stands around it. Tests
// that disturb it make a service of their own, mostly on the same token.
type world struct {
	*harness.Service
	ca    *harness.CA
	host  *harness.Host
	token *softhsmtest.Token
}

var shared *world

// Callers of the shared service, beside harness.Admin.
const (
	idp       = "spiffe://example.com/idp"       // issues for all clients of main
	registrar = "spiffe://example.com/registrar" // creates and reads app-…
	replacer  = "spiffe://example.com/replacer"  // replaces app-…, and no more
	stranger  = "spiffe://example.com/stranger"  // has no grant
)

// narrow is a second issuer, with a policy.
const narrow = "narrow"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	// The tests wait for others more than they compute. A -parallel that was
	// given stays.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("8"); err != nil {
			panic(err) // it is a number
		}
	}
	t := harness.NewStandalone("e2e")
	t.Cleanup(harness.RemoveBinary)
	defer t.Close()

	ca := harness.NewCA(t, "callers and services")
	host := harness.NewHost(t, harness.NewCA(t, "the web"))
	token := harness.NewToken(t, "bulla-e2e", kms.Algorithms()...)
	harness.AddAuditKey(token)
	traces := tracetest.New(t, nil)
	shared = &world{ca: ca, host: host, token: token}
	shared.Service = harness.Start(t, harness.Config{
		Token: token, Algorithms: kms.Algorithms(), CA: ca, Host: host,
		Fetch: harness.M{"min_refresh": "1s"},
		Edit: func(tree harness.M) {
			tree["tracing"] = harness.M{"endpoint": traces.Address, "insecure": true, "sample": 1}
		},
		Issuers: []harness.M{{
			"name": narrow, "iss": "https://narrow.example.com", "signing_keys": harness.SigningKeys(kms.PS256),
			"policy": harness.M{"encryption": []string{"RSA-OAEP-256"}, "content_encryption": []string{"A256GCM"}},
		}},
		Grants: []harness.M{
			{"caller": idp, "allow": []string{"issue"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN", "USERINFO"}, "clients": []string{"*"}},
			{"caller": registrar, "allow": []string{"create_client_key", "read_client_keys", "refresh_client_key"}, "issuers": []string{harness.Issuer}, "clients": []string{"app-*"}},
			{"caller": replacer, "allow": []string{"replace_client_key"}, "issuers": []string{harness.Issuer}, "clients": []string{"app-*"}},
		},
	})
	code := m.Run()
	if end := shared.Terminate(t); end != 0 || traces.Text() == "" { // it sends the last spans
		t.Errorf("the shared service ended with %d, after traces of %d bytes", end, len(traces.Text()))
	}
	harness.Written("the traces", traces.Text())
	t.Close()
	if t.Failed() {
		return 1
	}
	if err := errors.Join(harness.SearchEvidence(), goleak.Find()); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
