package client

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// failed is an error as the service sends it; wait is negative for no RetryInfo.
func failed(t testing.TB, code codes.Code, domain, reason string, wait time.Duration) error {
	t.Helper()
	var details []protoadapt.MessageV1
	if reason != "" {
		details = append(details, &errdetails.ErrorInfo{Domain: domain, Reason: reason})
	}
	if wait >= 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	}
	st, err := status.New(code, "not now").WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestCallsAreMadeAgainByReason(t *testing.T) {
	t.Parallel()
	const soon = 30 * time.Millisecond
	for _, test := range []struct {
		name  string
		err   error
		calls int32
	}{
		{"OVERLOADED", failed(t, codes.Unavailable, "bulla", "OVERLOADED", soon), 2},
		{"SIGNING_KEY_UNAVAILABLE", failed(t, codes.Unavailable, "bulla", "SIGNING_KEY_UNAVAILABLE", soon), 2},
		{"QUOTA_EXCEEDED", failed(t, codes.ResourceExhausted, "bulla", "QUOTA_EXCEEDED", soon), 2},
		{"SIGNING_THROTTLED", failed(t, codes.ResourceExhausted, "bulla", "SIGNING_THROTTLED", soon), 2},
		{"REFRESH_LIMITED", failed(t, codes.ResourceExhausted, "bulla", "REFRESH_LIMITED", soon), 1},
		{"the reason of somebody else", failed(t, codes.ResourceExhausted, "example.com", "QUOTA_EXCEEDED", soon), 1},
		{"RESOURCE_EXHAUSTED by gRPC", failed(t, codes.ResourceExhausted, "", "", -1), 1},
		{"SIGNING_FAULT", failed(t, codes.Internal, "bulla", "SIGNING_FAULT", -1), 1},
		{"CLIENT_NOT_REGISTERED", failed(t, codes.NotFound, "bulla", "CLIENT_NOT_REGISTERED", -1), 1},
		{"a pause that is longer than anybody waits", failed(t, codes.Unavailable, "bulla", "CLIENT_KEYS_UNAVAILABLE", time.Minute), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReplica(t)
			r.failure = test.err
			r.failing.Store(1)
			c := dialTo(t, Config{}, r)
			began := time.Now()
			_, err := issue(t, c)
			if r.calls.Load() != test.calls || (err == nil) != (test.calls == 2) {
				t.Errorf("%d calls and %v, want %d calls", r.calls.Load(), err, test.calls)
			}
			if took := time.Since(began); test.calls == 2 && took < soon {
				t.Errorf("it called again after %v, and was asked to wait for %v", took, soon)
			}
		})
	}
}

func TestAPauseBeyondTheDeadlineIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	r.failure = failed(t, codes.Unavailable, "bulla", "SIGNING_KEY_UNAVAILABLE", 25*time.Second)
	r.failing.Store(1)
	c := dialTo(t, Config{}, r)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := time.Now()
	_, err := c.Tokens.SignAndEncrypt(ctx, &bullav1.SignAndEncryptRequest{})
	if reasonOf(err) != "SIGNING_KEY_UNAVAILABLE" {
		t.Errorf("got %v, want the reason of the failure and not of the wait", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it was told after %v", took)
	}
}

func TestAServiceThatWantsNoOtherAttemptGetsNone(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	r.wait = "-1"
	r.failing.Store(1)
	c := dialTo(t, Config{}, r)
	if _, err := issue(t, c); status.Code(err) != codes.Unavailable || r.calls.Load() != 1 {
		t.Errorf("%d calls and %v, want one that failed", r.calls.Load(), err)
	}
}

func TestAnOverloadedReplicaIsLeftForAnother(t *testing.T) {
	t.Parallel()
	busy, idle := newReplica(t), newReplica(t)
	busy.failure = failed(t, codes.Unavailable, "bulla", "OVERLOADED", 10*time.Millisecond)
	busy.failing.Store(1 << 20)
	c := dialTo(t, Config{Attempts: 5}, busy, idle)
	for range 20 {
		if got, err := issue(t, c); err != nil || got != idle.address {
			t.Fatalf("got %q, %v, want a token of %q", got, err, idle.address)
		}
	}
	if busy.calls.Load() == 0 {
		t.Error("the busy one was never asked: the test proves nothing")
	}
}

func TestTrailersReachWhoAsksForThem(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	r.wait = "1"
	r.failing.Store(10)
	c := dialTo(t, Config{Attempts: 2}, r)
	var trailer metadata.MD
	_, err := c.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{}, grpc.Trailer(&trailer))
	if err == nil || len(trailer.Get(pushback)) != 1 {
		t.Errorf("got %v and the trailer %v", err, trailer)
	}
}

// Whoever adds a call to the API decides here whether it may be made twice.
func TestWhatChangesIsNeverMadeAgain(t *testing.T) {
	changes := []string{"RegisterClientKey", "GenerateClientKey", "DeleteClientKey", "RefreshClientKey", "RotateSigningKey"}
	streams := []string{"StreamSignAndEncrypt", "WatchClientKeys"}
	for _, service := range []grpc.ServiceDesc{bullav1.TokenService_ServiceDesc, bullav1.ClientKeyService_ServiceDesc, bullav1.SigningKeyService_ServiceDesc} {
		for _, m := range service.Methods {
			again := slices.Contains(repeatable(), "/"+service.ServiceName+"/"+m.MethodName)
			if again == slices.Contains(changes, m.MethodName) {
				t.Errorf("%s is made again: %v", m.MethodName, again)
			}
		}
		for _, m := range service.Streams {
			if !slices.Contains(streams, m.StreamName) {
				t.Errorf("%s is a stream that this test does not know", m.StreamName)
			}
		}
	}
	for _, method := range repeatable() {
		if strings.HasSuffix(method, "Generate") || strings.Contains(method, "Rotate") {
			t.Errorf("%s is made again", method)
		}
	}
}

func TestPausesOfOurOwnGrow(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 50 * time.Millisecond, 2: 150 * time.Millisecond, 3: 450 * time.Millisecond, 4: time.Second, 1000: time.Second} {
		if got := ownPause(n); got != want {
			t.Errorf("pause %d is %v, want %v", n, got, want)
		}
		got, ok := pauseAfter(n, status.Error(codes.Unavailable, ""), nil)
		if !ok || got < want || got > want+want/5+1 {
			t.Errorf("after %d failures it waits %v, want %v and a fifth at most", n, got, want)
		}
	}
}
