package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
)

// TestNobodyIsAnonymousOutsideDevelopment: a connection without a verified
// certificate is nobody's, even if TLS had let it in, and a grant for the
// development caller is nobody's either. (That TLS lets none in, and that a
// configuration without TLS outside of development fails, is tested elsewhere.)
func TestNobodyIsAnonymousOutsideDevelopment(t *testing.T) {
	callers := harness.NewCA(t, "callers")
	leaf := callers.Issue(t, harness.LeafConfig{URI: "spiffe://example.com/idp"}).Certificate.Leaf
	policy, err := authz.New([]authz.Grant{{
		Caller: authz.DevelopmentCaller, Allow: authz.Permissions(), Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN"}, Clients: []string{"*"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, func(c *Config) { c.Authorizer = policy }, callers)
	for what, state := range map[string]*tls.ConnectionState{
		"no TLS":                           nil,
		"no certificate":                   {},
		"a certificate that is not proven": {PeerCertificates: []*x509.Certificate{leaf}},
	} {
		t.Run(what, func(t *testing.T) {
			g.record.events = nil
			p := &peer.Peer{}
			if state != nil {
				p.AuthInfo = g.connections.newConnection(credentials.TLSInfo{State: *state}, nil, g.certs.Authorities())
			}
			const rpc = "/bulla.v1.TokenService/SignAndEncrypt"
			ctx, err := g.identify(peer.NewContext(context.Background(), p), rpc)
			if err == nil || Reason(err) != "CALLER_UNKNOWN" {
				t.Errorf("got %v as %+v, want CALLER_UNKNOWN", err, ctx)
			}
			if e := g.record.events; len(e) != 1 || e[0].Outcome != audit.Denied || e[0].Caller != "" || e[0].RPC != rpc {
				t.Errorf("on record: %+v, want one denial of nobody", e)
			}
		})
	}
}
