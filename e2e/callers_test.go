package e2e

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

func TestCallersAreKnownByTheirCertificateAndGrant(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("app-callers", harness.JWKS(anyKey())))
	as := func(cfg harness.LeafConfig) *client.Client { return shared.CallerWith(t, shared.ca.Issue(t, cfg)) }
	for _, test := range []struct {
		what   string
		caller *client.Client
		issuer string
		reason string
		word   string
	}{
		{"no grant", shared.Caller(t, stranger), harness.Issuer, "CALLER_UNKNOWN", stranger},
		{"no grant, and an issuer that there is not", shared.Caller(t, stranger), "nowhere", "CALLER_UNKNOWN", stranger},
		{"a name in another case", shared.Caller(t, strings.ToUpper(idp[:6])+idp[6:]+"X"), harness.Issuer, "CALLER_UNKNOWN", ""},
		{"a DNS name without a grant", as(harness.LeafConfig{DNSNames: []string{"idp.example.com"}}), harness.Issuer, "CALLER_UNKNOWN", "idp.example.com"},
		{"two DNS names", as(harness.LeafConfig{DNSNames: []string{"a.example.com", "b.example.com"}}), harness.Issuer, "CALLER_UNKNOWN", "2 DNS SANs"},
		{"no name", as(harness.LeafConfig{}), harness.Issuer, "CALLER_UNKNOWN", "URI SAN"},
		{"a SPIFFE ID without a path", as(harness.LeafConfig{URI: "spiffe://example.com"}), harness.Issuer, "CALLER_UNKNOWN", "path"},
		{"a grant for other things", shared.Caller(t, registrar), harness.Issuer, "CALLER_NOT_ALLOWED", `"issue"`},
		{"a grant for another issuer", shared.Caller(t, idp), narrow, "CALLER_NOT_ALLOWED", narrow},
		{"a grant, and an issuer that there is not", shared.Caller(t, idp), "nowhere", "ISSUER_UNKNOWN", "nowhere"},
	} {
		t.Run(test.what, func(t *testing.T) {
			req := idToken("app-callers")
			req.Issuer = test.issuer
			_, err := test.caller.Tokens.SignAndEncrypt(t.Context(), req)
			mustFail(t, err, test.reason, test.word)
		})
	}

	// The clients of a grant: registrar has those whose names begin with app-.
	_, err := shared.Caller(t, registrar).ClientKeys.RegisterClientKey(t.Context(), withJWKS("other-app", harness.JWKS(anyKey())))
	mustFail(t, err, "CALLER_NOT_ALLOWED", "other-app")
	_, err = shared.Caller(t, registrar).SigningKeys.GetJWKS(t.Context(), &bullav1.GetJWKSRequest{Issuer: harness.Issuer})
	mustFail(t, err, "CALLER_NOT_ALLOWED", "read_signing_keys")
	_, err = shared.Caller(t, stranger).SigningKeys.ListSigningKeys(t.Context(), &bullav1.ListSigningKeysRequest{Issuer: "nowhere"})
	mustFail(t, err, "CALLER_UNKNOWN")
	_, err = shared.Caller(t, stranger).ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: "app-callers"})
	mustFail(t, err, "CALLER_UNKNOWN")
}

func TestConnectionsWithoutAGoodCertificateGetNowhere(t *testing.T) {
	other := harness.NewCA(t, "somebody else")
	good := shared.Leaf(t, harness.Admin)
	trusting := func(leaf *harness.Leaf, ca *harness.CA, highest uint16) *tls.Config {
		cfg := &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12, MaxVersion: highest, NextProtos: []string{"h2"}}
		if leaf != nil {
			cfg.Certificates = []tls.Certificate{leaf.Certificate}
		}
		return cfg
	}
	before := len(shared.Audit(t))
	for _, test := range []struct {
		what string
		tls  *tls.Config // nil: plaintext
		word string      // of the error that ends the connection
	}{
		{"no certificate", trusting(nil, shared.ca, 0), "certificate required"},
		{"an expired certificate", trusting(shared.ca.Issue(t, harness.LeafConfig{URI: harness.Admin, NotAfter: time.Now().Add(-time.Minute)}), shared.ca, 0), "expired certificate"},
		{"a certificate of another CA", trusting(other.Issue(t, harness.LeafConfig{URI: harness.Admin}), shared.ca, 0), "certificate"},
		{"TLS 1.2", trusting(good, shared.ca, tls.VersionTLS12), "protocol version"},
		{"a service of another CA", trusting(good, other, 0), "unknown authority"},
		{"plaintext", nil, ""},
	} {
		t.Run(test.what, func(t *testing.T) {
			creds := insecure.NewCredentials()
			if test.tls != nil {
				creds = credentials.NewTLS(test.tls)
				if err := handshake(t, test.tls); err == nil || !strings.Contains(err.Error(), test.word) {
					t.Errorf("the connection ended with %v, want %q", err, test.word)
				}
			}
			conn, err := grpc.NewClient(shared.GRPC, grpc.WithTransportCredentials(creds))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = bullav1.NewTokenServiceClient(conn).SignAndEncrypt(t.Context(), idToken("app-callers"))
			if f := failureOf(t, err); f.code != codes.Unavailable || f.reason != "" {
				t.Errorf("got %v, want UNAVAILABLE and no reason: no call was taken", f)
			}
			if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err == nil {
				t.Error("the health service answered")
			}
		})
	}
	if after := len(shared.Audit(t)); after != before {
		t.Errorf("%d audit lines of calls that were never taken", after-before)
	}
	// The callers were told little; the operator reads why.
	shared.WaitLog(t, "certificate has expired")
	shared.WaitLog(t, "TLS handshake failed")
	if n := shared.Metric(t, "bulla_tls_handshake_failures_total"); n < 5 {
		t.Errorf("%v failed handshakes counted, want 5 at least", n)
	}
	if _, err := shared.CallerWith(t, good).SigningKeys.GetJWKS(t.Context(), &bullav1.GetJWKSRequest{Issuer: harness.Issuer}); err != nil {
		t.Errorf("with a good certificate: %v", err)
	}
}

// handshake returns what ends a TLS connection to the shared service. In TLS 1.3
// a client learns what the server thinks of its certificate when it reads.
func handshake(t testing.TB, cfg *tls.Config) error {
	t.Helper()
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", shared.GRPC)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	// A server that takes the connection sends its settings.
	_, err = conn.Read(make([]byte, 1))
	return err
}

func services(t testing.TB, c *client.Client) ([]string, error) {
	t.Helper()
	stream, err := reflectionpb.NewServerReflectionClient(c.Conn()).ServerReflectionInfo(t.Context())
	if err != nil {
		return nil, err
	}
	defer stream.CloseSend()
	// An error of Send is that of Recv.
	_ = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	res, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range res.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	return names, nil
}

func TestReflectionAndHealthAreThereUnlessTheyAreSwitchedOff(t *testing.T) {
	names, err := services(t, shared.Caller(t, stranger))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"bulla.v1.TokenService", "bulla.v1.ClientKeyService", "bulla.v1.SigningKeyService", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("got the services %v, want %s among them", names, want)
		}
	}
	off := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: func(tree harness.M) {
		tree["grpc"].(harness.M)["reflection"], tree["grpc"].(harness.M)["health"] = false, false
	}})
	if names, err := services(t, off.Caller(t, harness.Admin)); status.Code(err) != codes.Unimplemented {
		t.Errorf("switched off: got %v (%v), want UNIMPLEMENTED", names, err)
	}
	health := healthpb.NewHealthClient(off.Caller(t, harness.Admin).Conn())
	if res, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("switched off: health says %v (%v), want UNIMPLEMENTED", res, err)
	}
}

func TestHealthIsThatOfEachIssuer(t *testing.T) {
	health := healthpb.NewHealthClient(shared.Caller(t, stranger).Conn())
	for _, service := range []string{"", "bulla.issuer.main", "bulla.issuer.narrow"} {
		harness.Eventually(t, func() error {
			res, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
			if err == nil && res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
				err = status.Errorf(codes.Unavailable, "%q is %s", service, res.GetStatus())
			}
			return err
		})
	}
	_, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "bulla.issuer.nowhere"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("an issuer that there is not: got %v, want NOT_FOUND", err)
	}
}
