package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

type watchStream = grpc.ServerStreamingServer[bullav1.WatchClientKeysResponse]

// scripted answers each watch by the next of its acts; after the last, the test
// ends the watcher.
type scripted struct {
	bullav1.UnimplementedClientKeyServiceServer
	acts []func(watchStream) error
	over context.CancelFunc
}

func (s *scripted) WatchClientKeys(_ *bullav1.WatchClientKeysRequest, stream watchStream) error {
	if len(s.acts) == 0 {
		s.over()
		<-stream.Context().Done()
		return nil
	}
	act := s.acts[0]
	s.acts = s.acts[1:]
	return act(stream)
}

func tell(clientID string) *bullav1.WatchClientKeysResponse {
	return &bullav1.WatchClientKeysResponse{ClientKey: &bullav1.ClientKey{ClientId: clientID}}
}

// says is an act that tells of a client and ends with err.
func says(clientID string, err error) func(watchStream) error {
	return func(stream watchStream) error {
		if sendErr := stream.Send(tell(clientID)); sendErr != nil {
			return sendErr
		}
		return err
	}
}

// refuses is an act without a watch.
func refuses(err error) func(watchStream) error { return func(watchStream) error { return err } }

// silent is an act that never begins.
func silent(stream watchStream) error {
	<-stream.Context().Done()
	return nil
}

// watchScripted watches a service that plays acts, and returns what was shown,
// what was said, and how it ended.
func watchScripted(t *testing.T, show func(*bullav1.WatchClientKeysResponse) error, acts ...func(watchStream) error) (shown []string, notes string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lis, srv := bufconn.Listen(1<<16), grpc.NewServer()
	bullav1.RegisterClientKeyServiceServer(srv, &scripted{acts: acts, over: cancel})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	defer func() {
		srv.Stop()
		<-done
	}()
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var said strings.Builder
	w := &clientWatch{
		keys: bullav1.NewClientKeyServiceClient(conn), timeout: 2 * time.Second, notes: &said, heading: func() { shown = append(shown, "heading") },
		show: func(res *bullav1.WatchClientKeysResponse) error {
			shown = append(shown, res.GetClientKey().GetClientId())
			if show != nil {
				return show(res)
			}
			return nil
		},
	}
	err = w.run(ctx)
	return shown, said.String(), err
}

func TestWatchGoesOnThroughWhatPasses(t *testing.T) {
	lost, err := status.New(codes.Unavailable, "list the clients, and watch again").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(1200 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	shown, notes, err := watchScripted(t, nil,
		says("one", lost.Err()),
		refuses(status.Error(codes.ResourceExhausted, "too many watches")),
		says("two", nil),
	)
	if err != nil {
		t.Errorf("ended with %v, want none: it was interrupted", err)
	}
	if want := []string{"heading", "one", "two"}; !slices.Equal(shown, want) {
		t.Errorf("shown %q, want %q", shown, want)
	}
	for _, want := range []string{
		"bulla: watching\n", "cut off (list the clients, and watch again); trying again in 1.2s\n",
		"cut off (too many watches)", `watching again; what changed meanwhile is not shown: "bulla client list"`, "cut off (the service ended it)",
	} {
		if !strings.Contains(notes, want) {
			t.Errorf("said\n%s\nwithout %q", notes, want)
		}
	}
	// The service's pause, then two of ours that grow.
	if took, least := time.Since(began), 1200*time.Millisecond+firstPause+2*firstPause; took < least {
		t.Errorf("three pauses took %v, want %v at least", took, least)
	}
}

func TestWatchEndsWhereTryingAgainDoesNotHelp(t *testing.T) {
	for _, test := range []struct {
		what  string
		acts  []func(watchStream) error
		code  codes.Code
		notes int // lines
	}{
		{"refused", []func(watchStream) error{refuses(status.Error(codes.PermissionDenied, "no"))}, codes.PermissionDenied, 0},
		{"never begun", []func(watchStream) error{refuses(status.Error(codes.Unavailable, "no"))}, codes.Unavailable, 0},
		{"an old service", []func(watchStream) error{refuses(status.Error(codes.Unimplemented, "no"))}, codes.Unimplemented, 0},
		{"no answer", []func(watchStream) error{silent}, codes.Unavailable, 0},
		{"the certificate has expired", []func(watchStream) error{says("one", status.Error(codes.Unauthenticated, "expired"))}, codes.Unauthenticated, 1},
		{
			"the grant is gone after a restart",
			[]func(watchStream) error{says("one", status.Error(codes.Unavailable, "stopping")), refuses(status.Error(codes.PermissionDenied, "no"))},
			codes.PermissionDenied, 2,
		},
	} {
		_, notes, err := watchScripted(t, nil, test.acts...)
		if status.Code(err) != test.code {
			t.Errorf("%s: ended with %v, want %s", test.what, err, test.code)
		}
		if n := strings.Count(notes, "\n"); n != test.notes {
			t.Errorf("%s: said\n%s\nwant %d lines", test.what, notes, test.notes)
		}
	}
}

func TestWatchEndsWhenNobodyReadsIt(t *testing.T) {
	broken := errors.New("broken pipe")
	if _, _, err := watchScripted(t, func(*bullav1.WatchClientKeysResponse) error { return broken }, says("one", nil)); !errors.Is(err, broken) {
		t.Errorf("ended with %v, want %v", err, broken)
	}
}

func TestAWatchedChangeIsOneHarmlessLine(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.FixedZone("", 3600))
	res := &bullav1.WatchClientKeysResponse{ClientKey: &bullav1.ClientKey{
		ClientId: "app", State: bullav1.ClientKeyState_CLIENT_KEY_STATE_NO_USABLE_KEY, Revision: "7", StateReason: "key \"\x1b[2J\n\tx\"",
		ChosenKeys: []*bullav1.ChosenKey{
			{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, KeyId: "kid-1", Thumbprint: "thumb"},
			{TokenKind: bullav1.TokenKind_TOKEN_KIND_USERINFO, Thumbprint: "thumb"},
			{TokenKind: bullav1.TokenKind_TOKEN_KIND_INTROSPECTION},
		},
	}}
	var line strings.Builder
	watchedRow(&line, watchedCells(res, now)...)
	want := "2026-11-22T09:00:00Z  app                       NO_USABLE_KEY  7         ID_TOKEN=kid-1,USERINFO=thumb,INTROSPECTION=(secret)  key \"\ufffd[2J\ufffd\ufffdx\"\n"
	if line.String() != want {
		t.Errorf("got\n%q, want\n%q", line.String(), want)
	}
	line.Reset()
	watchedRow(&line, watchedCells(&bullav1.WatchClientKeysResponse{Deleted: true, ClientKey: &bullav1.ClientKey{ClientId: "app", Revision: "8"}}, now)...)
	if got := strings.Fields(line.String()); !slices.Equal(got, []string{"2026-11-22T09:00:00Z", "app", "DELETED", "8", "-", "-"}) {
		t.Errorf("a deletion is shown as %q", got)
	}
}
