package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// staleTokens is a service that has lost touch with its store.
type staleTokens struct {
	bullav1.UnimplementedTokenServiceServer
}

func (staleTokens) SignAndEncrypt(context.Context, *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
	return &bullav1.SignAndEncryptResponse{Token: "a.b.c.d.e", RegistryStale: true}, nil
}

func (staleTokens) Sign(context.Context, *bullav1.SignRequest) (*bullav1.SignResponse, error) {
	return &bullav1.SignResponse{Token: "a.b.c", RegistryStale: true}, nil
}

func TestIssueShowsThatTheRegistryIsStale(t *testing.T) {
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	bullav1.RegisterTokenServiceServer(srv, staleTokens{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		<-done
	})
	for _, args := range [][]string{nil, {"--sign-only"}} {
		for _, format := range []string{"text", "json"} {
			var out bytes.Buffer
			cmd := rootCommand()
			cmd.SetOut(&out)
			cmd.SetIn(strings.NewReader("{}"))
			cmd.SetArgs(append([]string{"token", "issue", "--client", "app", "--addr", lis.Addr().String(), "--plaintext", "-o", format}, args...))
			if err := cmd.ExecuteContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(out.String(), " ", "")
			if got, want := strings.Contains(text, `"registry_stale":true`), format == "json"; got != want || !strings.Contains(text, "a.b.c") {
				t.Errorf("%v as %s: got %s", args, format, out.String())
			}
		}
	}
}
