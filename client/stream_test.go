package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// StreamSignAndEncrypt makes each token by r.makes, all at once; errEnd ends the
// stream.
func (r *replica) StreamSignAndEncrypt(stream grpc.BidiStreamingServer[bullav1.StreamSignAndEncryptRequest, bullav1.StreamSignAndEncryptResponse]) error {
	r.streams.Add(1)
	if err := r.call(stream.Context()); err != nil {
		return err
	}
	var mu sync.Mutex // guards Send
	var making sync.WaitGroup
	defer making.Wait()
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				making.Wait()
				if errors.Is(err, io.EOF) {
					err = nil
				}
				ended <- err
				return
			}
			making.Go(func() {
				res := &bullav1.StreamSignAndEncryptResponse{CorrelationId: m.GetCorrelationId()}
				reply, err := r.makes(stream.Context(), m.GetRequest())
				var end *endOfStream
				switch {
				case errors.As(err, &end):
					select {
					case ended <- end.err:
					default:
					}
					return
				case err != nil:
					res.Result = &bullav1.StreamSignAndEncryptResponse_Status{Status: status.Convert(err).Proto()}
				default:
					res.Result = &bullav1.StreamSignAndEncryptResponse_Reply{Reply: reply}
				}
				mu.Lock()
				defer mu.Unlock()
				_ = stream.Send(res) // the stream may be gone
			})
		}
	}()
	return <-ended
}

// endOfStream is what makes returns to end the stream.
type endOfStream struct{ err error }

func (e *endOfStream) Error() string { return e.err.Error() }

func newStream(t *testing.T, c *Client, cfg StreamConfig) *Stream {
	t.Helper()
	s := c.NewStream(cfg)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// askMany has many goroutines ask for tokens, and wants all of them.
func askMany(t *testing.T, s *Stream, callers, each int) {
	t.Helper()
	var asking sync.WaitGroup
	for i := range callers {
		asking.Go(func() {
			for j := range each {
				id := fmt.Sprintf("app-%d-%d", i, j)
				res, err := s.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: id})
				if err != nil || res.GetToken() != "for."+id {
					t.Errorf("%s: %v, %v", id, res, err)
					return
				}
			}
		})
	}
	asking.Wait()
}

func TestEachCallOfAStreamGetsItsAnswer(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	r := newReplica(t)
	var now, most atomic.Int32
	r.makes = func(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(rand.N(5 * time.Millisecond))
		return tokenFor(ctx, req)
	}
	s := newStream(t, dialTo(t, Config{}, r), StreamConfig{InFlight: 8})
	askMany(t, s, 20, 20)
	if got := r.streams.Load(); got != 1 {
		t.Errorf("%d streams, want 1", got)
	}
	if got := most.Load(); got < 2 || got > 8 {
		t.Errorf("%d in flight, want up to 8", got)
	}
}

func TestAStreamGoesOnThroughWhatCutsItOff(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what string
		end  error
	}{
		{"a replica that stops", failed(t, codes.Unavailable, "", "", 0)},
		{"one that is overloaded", failed(t, codes.Unavailable, "bulla", "OVERLOADED", 20*time.Millisecond)},
		{"too many streams", failed(t, codes.ResourceExhausted, "bulla", "QUOTA_EXCEEDED", 20*time.Millisecond)},
		{"an end without a reason", nil},
	} {
		t.Run(test.what, func(t *testing.T) {
			r := newReplica(t)
			var made atomic.Int32
			r.makes = func(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
				if made.Add(1)%60 == 0 {
					return nil, &endOfStream{test.end}
				}
				return tokenFor(ctx, req)
			}
			s := newStream(t, dialTo(t, Config{}, r), StreamConfig{})
			askMany(t, s, 10, 20)
			if got := r.streams.Load(); got < 3 {
				t.Errorf("%d streams, want some: the test proves nothing", got)
			}
		})
	}
}

func TestAStreamGoesOnAtAnotherReplica(t *testing.T) {
	t.Parallel()
	a, b := newReplica(t), newReplica(t)
	var onA, onB atomic.Int32
	counts := func(n *atomic.Int32) func(context.Context, *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		return func(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
			n.Add(1)
			time.Sleep(time.Millisecond)
			return tokenFor(ctx, req)
		}
	}
	a.makes, b.makes = counts(&onA), counts(&onB)
	s := newStream(t, dialTo(t, Config{}, a, b), StreamConfig{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		askMany(t, s, 8, 300)
	}()
	for onA.Load()+onB.Load() < 200 {
		time.Sleep(time.Millisecond)
	}
	if onA.Load() > 0 {
		a.stop()
	} else {
		b.stop()
	}
	<-done
	if onA.Load() == 0 || onB.Load() == 0 {
		t.Errorf("%d tokens of one replica and %d of the other, want some of both", onA.Load(), onB.Load())
	}
}

func TestAStreamFailsForWhatDoesNotPass(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what     string
		attempts int
		end      error
		streams  int32
		want     codes.Code
	}{
		{"an expired certificate", 0, failed(t, codes.Unauthenticated, "bulla", "CALLER_UNKNOWN", -1), 1, codes.Unauthenticated},
		{"an old service", 0, status.Error(codes.Unimplemented, "no"), 1, codes.Unimplemented},
		{"what does not pass in time", 3, status.Error(codes.Unavailable, "no"), 3, codes.Unavailable},
		{"what is not to be tried again", 1, status.Error(codes.Unavailable, "no"), 1, codes.Unavailable},
	} {
		t.Run(test.what, func(t *testing.T) {
			r := newReplica(t)
			r.makes = tokenFor
			r.failure = test.end
			r.failing.Store(test.streams)
			s := newStream(t, dialTo(t, Config{Attempts: test.attempts}, r), StreamConfig{})
			if _, err := s.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "x"}); status.Code(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
			if got := r.streams.Load(); got != test.streams {
				t.Errorf("%d streams, want %d", got, test.streams)
			}
			askMany(t, s, 1, 1) // the next call opens another one
		})
	}
}

func TestATokenThatFailsForNowIsAskedForBySingleCall(t *testing.T) {
	t.Parallel()
	a, b := newReplica(t), newReplica(t)
	refuses := func(context.Context, *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		return nil, failed(t, codes.Unavailable, "bulla", "OVERLOADED", 20*time.Millisecond)
	}
	a.makes, b.makes = refuses, refuses
	c := dialTo(t, Config{}, a, b)
	s := newStream(t, c, StreamConfig{})
	if res, err := s.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{}); err != nil || res.GetToken() != a.address && res.GetToken() != b.address {
		t.Errorf("got %v, %v, want a token of a single call", res, err)
	}
	a.makes = func(context.Context, *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		return nil, failed(t, codes.InvalidArgument, "bulla", "CLAIMS_INVALID", -1)
	}
	b.makes = a.makes
	calls := a.calls.Load() + b.calls.Load()
	if _, err := s.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{}); reasonOf(err) != "CLAIMS_INVALID" {
		t.Errorf("got %v, want CLAIMS_INVALID", err)
	}
	if got := a.calls.Load() + b.calls.Load(); got != calls {
		t.Errorf("%d more calls for what will not pass", got-calls)
	}
}

// The call on the stream is the first of Config.Attempts.
func TestATokenOfAStreamIsAskedForNoMoreOftenThanByCalls(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	refusal := failed(t, codes.Unavailable, "bulla", "OVERLOADED", 10*time.Millisecond)
	r.failure = refusal
	r.makes = func(context.Context, *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		r.failing.Store(100) // the single calls
		return nil, refusal
	}
	for _, attempts := range []int32{1, 2, 4} {
		r.failing.Store(0)
		s := newStream(t, dialTo(t, Config{Attempts: int(attempts)}, r), StreamConfig{})
		before := r.calls.Load()
		if _, err := s.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{}); reasonOf(err) != "OVERLOADED" {
			t.Errorf("got %v, want OVERLOADED", err)
		}
		if got := r.calls.Load() - before; got != attempts { // the stream is one of them
			t.Errorf("asked %d times, want %d", got, attempts)
		}
	}
}

func TestACallOfAStreamEndsWithItsContext(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	r.makes = func(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		if req.GetClientId() == "never" {
			<-ctx.Done()
		}
		return tokenFor(ctx, req)
	}
	s := newStream(t, dialTo(t, Config{}, r), StreamConfig{InFlight: 1})
	for range 3 { // the place in flight is free again each time
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := s.SignAndEncrypt(ctx, &bullav1.SignAndEncryptRequest{ClientId: "never"}); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		cancel()
	}
	askMany(t, s, 3, 3)
	if got := r.streams.Load(); got != 1 {
		t.Errorf("%d streams, want 1", got)
	}
}

func TestCloseAnswersWhatIsInFlight(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	begun, letGo := make(chan struct{}), make(chan struct{})
	r.makes = func(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		close(begun)
		<-letGo
		return tokenFor(ctx, req)
	}
	s := dialTo(t, Config{}, r).NewStream(StreamConfig{})
	answered := make(chan error, 1)
	go func() {
		_, err := s.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "x"})
		answered <- err
	}()
	<-begun
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = s.Close()
	}()
	<-s.closing
	if _, err := s.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{}); !errors.Is(err, ErrStreamClosed) {
		t.Errorf("a call on a closed stream: %v", err)
	}
	close(letGo)
	if err := <-answered; err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	<-closed
	_ = s.Close() // again
}

func TestCloseDoesNotWaitForever(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	begun := make(chan struct{})
	r.makes = func(ctx context.Context, _ *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		close(begun)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s := dialTo(t, Config{}, r).NewStream(StreamConfig{})
	answered := make(chan error, 1)
	go func() {
		_, err := s.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "x"})
		answered <- err
	}()
	<-begun
	_ = s.Close()
	if err := <-answered; !errors.Is(err, ErrStreamClosed) {
		t.Errorf("the call in flight: %v, want ErrStreamClosed", err)
	}
}
