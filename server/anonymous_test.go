package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http/httptest"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/seal"
)

// TestNobodyIsAnonymousOutsideDevelopment: a connection without a verified
// certificate is nobody's, even if TLS were set up to let it in, and a grant for
// the development caller is nobody's either. (That LoadTLS lets none in, and that
// a configuration without TLS outside of development fails, is tested elsewhere.)
func TestNobodyIsAnonymousOutsideDevelopment(t *testing.T) {
	web := httptest.NewTLSServer(nil)
	own := web.TLS.Certificates
	web.Close()
	for what, mode := range map[string]tls.ClientAuthType{
		"no certificate is asked for": tls.NoClientCert,
		"any certificate is taken":    tls.RequireAnyClientCert,
	} {
		t.Run(what, func(t *testing.T) {
			record := &auditor{}
			policy, err := authz.New([]authz.Grant{{
				Caller: authz.DevelopmentCaller, Allow: authz.Permissions(), Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN"}, Clients: []string{"*"},
			}})
			if err != nil {
				t.Fatal(err)
			}
			srv, err := New(Config{
				TLS:     &tls.Config{Certificates: own, ClientAuth: mode, MinVersion: tls.VersionTLS13},
				Issuers: issuer.NewDirectory(), Authorizer: policy, SigningKeys: noKeys{}, Auditor: record, Observer: &observer{}, Watches: noWatches(t), Replica: noReplica(), Logger: slog.New(slog.DiscardHandler),
				Sealer: sealer{answer: func(seal.Request) (*seal.Result, error) {
					t.Error("the call has come as far as the keys")
					return &seal.Result{}, nil
				}},
			})
			if err != nil {
				t.Fatal(err)
			}
			lis := bufconn.Listen(1 << 16)
			done := make(chan error, 1)
			go func() { done <- srv.Serve(lis) }()
			defer func() {
				srv.Shutdown(t.Context())
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			// Who the server is does not matter here.
			creds := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: own})
			conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(creds),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = bullav1.NewTokenServiceClient(conn).SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app"})
			info := detail[*errdetails.ErrorInfo](status.Convert(err).Details())
			if status.Code(err) != codes.Unauthenticated || info.GetReason() != "CALLER_UNKNOWN" {
				t.Errorf("got %v with %v, want CALLER_UNKNOWN", err, info)
			}
			if len(record.events) != 1 || record.events[0].Outcome != audit.Denied || record.events[0].Caller != "" {
				t.Errorf("on record: %+v, want one denial of nobody", record.events)
			}
		})
	}
}
