package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// TestAReplicaThatHearsOfNoChangesLetsNobodyWatch takes the database away from a
// service that is watched.
func TestAReplicaThatHearsOfNoChangesLetsNobodyWatch(t *testing.T) {
	cluster := pgtest.Start(t)
	s := databaseSite(t, cluster.NewDatabase(t).DSN(), "", "")
	s.TLS = false
	serveSite(t, s)
	conn, err := grpc.NewClient(s.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	watch := func() (bullav1.ClientKeyService_WatchClientKeysClient, error) {
		t.Helper()
		stream, err := bullav1.NewClientKeyServiceClient(conn).WatchClientKeys(ctx, &bullav1.WatchClientKeysRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if md, err := stream.Header(); err != nil || md != nil {
			return stream, err
		}
		_, err = stream.Recv() // there are no headers: it has ended
		return nil, err
	}
	wantLost := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), "list the clients") {
			t.Errorf("%s: got %v, want UNAVAILABLE and that changes were missed", what, err)
		}
	}
	stream, err := watch()
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.Stop(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = stream.Recv()
	wantLost("a watch", err)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it ended after %v, want a few seconds", took)
	}
	_, err = watch()
	wantLost("another one", err)
}
