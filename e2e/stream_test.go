package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

type tokenStream = grpc.BidiStreamingClient[bullav1.StreamSignAndEncryptRequest, bullav1.StreamSignAndEncryptResponse]

func mustOpenStream(t testing.TB, c *client.Client) tokenStream {
	t.Helper()
	stream, err := c.Tokens.StreamSignAndEncrypt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// answers reads a stream to its end.
func answers(stream tokenStream) (all []*bullav1.StreamSignAndEncryptResponse, end error) {
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, res)
	}
}

func message(id string, req *bullav1.SignAndEncryptRequest) *bullav1.StreamSignAndEncryptRequest {
	return &bullav1.StreamSignAndEncryptRequest{CorrelationId: id, Request: req}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	s := startMany(t)
	o := opener(t, s, anyKey(), clientConfig())
	caller := s.Caller(t, limited)

	t.Run("messages fail alone, and a half-close ends it", func(t *testing.T) {
		stream := mustOpenStream(t, caller)
		for _, m := range []*bullav1.StreamSignAndEncryptRequest{
			message("good", idToken("many-1")), message("foreign", idToken("foreign")), message("unknown", idToken("many-none")), message("bare", nil), message("", idToken("many-2")),
		} {
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		all, err := answers(stream)
		if err != nil || len(all) != 5 {
			t.Fatalf("%d answers and the end %v, want 5 and none", len(all), err)
		}
		for _, a := range all {
			switch err := status.ErrorProto(a.GetStatus()); a.GetCorrelationId() {
			case "good", "":
				if _, err := o.Open(a.GetReply().GetToken()); err != nil {
					t.Errorf("%q: %v", a.GetCorrelationId(), err)
				}
			case "foreign":
				mustFail(t, err, "CALLER_NOT_ALLOWED", "foreign")
			case "unknown":
				mustFail(t, err, "CLIENT_NOT_REGISTERED")
			case "bare":
				mustBe(t, err, codes.InvalidArgument, "request")
			default:
				t.Errorf("an answer to %q", a.GetCorrelationId())
			}
		}
		if got := s.Metrics(t)[`bulla_items_total{code="OK",method="StreamSignAndEncrypt",reason=""}`]; got != 2 {
			t.Errorf("%v tokens counted, want 2", got)
		}
	})

	t.Run("who does not read is not waited for", func(t *testing.T) {
		const all = 1500
		large := idToken("many-2")
		large.Claims = append(append([]byte(`{"sub":"alice","x":"`), bytes.Repeat([]byte{'x'}, 16<<10)...), `"}`...)
		stream := mustOpenStream(t, caller)
		sent := make(chan error, 1)
		go func() {
			for i := range all {
				if err := stream.Send(message(fmt.Sprint(i), large)); err != nil {
					sent <- err
					return
				}
			}
			sent <- stream.CloseSend()
		}()
		made := func() int { return len(s.AuditOf(t, "many-2")) }
		settled := 0
		harness.Eventually(t, func() error {
			before := made()
			time.Sleep(500 * time.Millisecond)
			if settled = made(); settled != before || settled == 0 {
				return errorf("%d tokens are made, and more of them", settled)
			}
			return nil
		})
		if settled > 1100 { // 16 MiB of HTTP/2 window are 600 tokens
			t.Errorf("%d of %d tokens were made for a caller who reads none", settled, all)
		}
		// Others are served meanwhile.
		if _, err := o.Open(mustIssue(t, s.Caller(t, harness.Admin), idToken("many-1")).GetToken()); err != nil {
			t.Error(err)
		}
		got, err := answers(stream)
		if err != nil || len(got) != all {
			t.Errorf("%d answers and the end %v, want %d and none", len(got), err, all)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		t.Logf("%d were made unread", settled)
	})

	t.Run("callers who stream at once get about as much each", func(t *testing.T) {
		var made [4]atomic.Int64
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var load sync.WaitGroup
		for i := range made {
			stream := s.Caller(t, harness.Admin).NewStream(client.StreamConfig{InFlight: 16})
			defer stream.Close()
			for range 16 {
				load.Go(func() {
					for ctx.Err() == nil {
						_, err := stream.SignAndEncrypt(ctx, idToken("many-0"))
						switch {
						case err == nil:
							made[i].Add(1)
						case ctx.Err() == nil:
							t.Error(err)
							return
						}
					}
				})
			}
		}
		load.Wait()
		least, most := made[0].Load(), made[0].Load()
		for i := range made {
			least, most = min(least, made[i].Load()), max(most, made[i].Load())
		}
		if least == 0 || most > 3*least {
			t.Errorf("the callers got %d to %d tokens", least, most)
		}
		t.Logf("%d to %d tokens each", least, most)
	})
}

// TestShutdownAnswersWhatWasReadOfAStream ends a service while callers stream:
// what is on record as issued has reached them.
func TestShutdownAnswersWhatWasReadOfAStream(t *testing.T) {
	t.Parallel()
	s := startMany(t)
	var load sync.WaitGroup
	var tokens atomic.Int64
	for range 3 {
		stream := mustOpenStream(t, s.Caller(t, limited))
		load.Go(func() {
			for i := 0; stream.Send(message(fmt.Sprint(i), idToken("many-1"))) == nil; i++ { // until the stream has ended
			}
		})
		load.Go(func() {
			for {
				res, err := stream.Recv()
				if err != nil {
					mustBe(t, err, codes.Unavailable, "stopping")
					return
				}
				if res.GetReply().GetToken() != "" {
					tokens.Add(1)
				}
			}
		})
	}
	harness.Eventually(t, func() error {
		if n := tokens.Load(); n < 100 {
			return errorf("%d tokens", n)
		}
		return nil
	})
	began := time.Now()
	s.Signal(t, syscall.SIGTERM)
	load.Wait()
	if code := s.Exit(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the end took %v", took)
	}
	var issued int64
	for _, line := range s.AuditOf(t, "many-1") {
		if line.Outcome == "issued" {
			issued++
		}
	}
	if issued != tokens.Load() {
		t.Errorf("%d tokens are on record and %d reached their callers", issued, tokens.Load())
	}
}

// TestAStreamOutlivesItsReplicas kills the replicas one after the other under a
// Stream of package client, which loses no call.
func TestAStreamOutlivesItsReplicas(t *testing.T) {
	t.Parallel()
	db := pgtest.Start(t).NewDatabase(t)
	replicas := []*harness.Service{newReplica(t, harness.Config{}, db.DSN()), newReplica(t, harness.Config{}, db.DSN())}
	for _, s := range replicas {
		s.Run(t)
		s.WaitReady(t)
	}
	mustRegister(t, replicas[0].Caller(t, harness.Admin), withJWKS("streamed", harness.JWKS(anyKey())))
	leaf := replicas[0].Leaf(t, harness.Admin)
	c, err := client.Dial(client.Config{Address: replicas[0].GRPC + "," + replicas[1].GRPC, CAFile: shared.ca.File, CertFile: leaf.CertFile, KeyFile: leaf.KeyFile})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stream := c.NewStream(client.StreamConfig{})
	defer stream.Close()
	o := opener(t, replicas[0], anyKey(), clientConfig())

	var load sync.WaitGroup
	var tokens atomic.Int64
	over := make(chan struct{})
	more := func() {
		t.Helper()
		before := tokens.Load()
		harness.Eventually(t, func() error {
			if n := tokens.Load() - before; n < 50 {
				return errorf("%d tokens more", n)
			}
			return nil
		})
	}
	// called waits until the client is connected to a replica and finds it ready:
	// before that nothing else may die.
	called := func(s *harness.Service) {
		t.Helper()
		lines := len(s.AuditOf(t, "streamed"))
		harness.Eventually(t, func() error {
			for range 4 {
				if _, err := c.Tokens.SignAndEncrypt(t.Context(), idToken("streamed")); err != nil {
					return err
				}
			}
			if len(s.AuditOf(t, "streamed")) == lines {
				return errorf("a replica that is ready is not called yet")
			}
			return nil
		})
	}
	called(replicas[0]) // it says so a moment after it is ready
	called(replicas[1])
	for range 8 {
		load.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				res, err := stream.SignAndEncrypt(t.Context(), idToken("streamed"))
				if err != nil {
					t.Errorf("a call was lost: %v", err)
					return
				}
				if _, err := o.Open(res.GetToken()); err != nil {
					t.Error(err)
				}
				tokens.Add(1)
			}
		})
	}
	for i, s := range replicas {
		called(replicas[1-i])
		s.Kill(t)
		more()
		s.Run(t)
		s.WaitReady(t)
	}
	close(over)
	load.Wait()
	t.Logf("%d tokens", tokens.Load())
}
