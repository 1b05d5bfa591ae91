package client

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// replica is a service that counts calls, of which the first ones fail.
type replica struct {
	bullav1.UnimplementedTokenServiceServer
	bullav1.UnimplementedClientKeyServiceServer

	address string
	health  *health.Server
	stop    func()
	calls   atomic.Int32
	failing atomic.Int32 // how many calls more fail
	code    codes.Code
	wait    string                                                                                                 // milliseconds that a failed call asks for
	failure error                                                                                                  // of failed calls; nil for one of code
	makes   func(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) // tokens of batches and streams
	streams atomic.Int32
}

func newReplica(t *testing.T) *replica {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{address: lis.Addr().String(), health: health.NewServer(), code: codes.Unavailable}
	s := grpc.NewServer()
	bullav1.RegisterTokenServiceServer(s, r)
	bullav1.RegisterClientKeyServiceServer(s, r)
	healthpb.RegisterHealthServer(s, r.health)
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	r.stop = s.Stop
	t.Cleanup(func() { s.Stop(); <-served })
	return r
}

func (r *replica) call(ctx context.Context) error {
	r.calls.Add(1)
	if r.failing.Add(-1) < 0 {
		return nil
	}
	if r.wait != "" {
		if err := grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", r.wait)); err != nil {
			return err
		}
	}
	if r.failure != nil {
		return r.failure
	}
	return status.Error(r.code, "not now")
}

func (r *replica) SignAndEncrypt(ctx context.Context, _ *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
	if err := r.call(ctx); err != nil {
		return nil, err
	}
	return &bullav1.SignAndEncryptResponse{Token: r.address}, nil
}

func (r *replica) RegisterClientKey(ctx context.Context, _ *bullav1.RegisterClientKeyRequest) (*bullav1.RegisterClientKeyResponse, error) {
	return &bullav1.RegisterClientKeyResponse{}, r.call(ctx)
}

func dialTo(t *testing.T, cfg Config, replicas ...*replica) *Client {
	t.Helper()
	var addresses []string
	for _, r := range replicas {
		addresses = append(addresses, r.address)
	}
	cfg.Address, cfg.Plaintext = strings.Join(addresses, ","), true
	c, err := Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func issue(t *testing.T, c *Client) (string, error) {
	t.Helper()
	res, err := c.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{})
	return res.GetToken(), err
}

func TestCallsAreMadeAgainWhereThatDoesNoHarm(t *testing.T) {
	for _, test := range []struct {
		name     string
		attempts int
		failing  int32
		code     codes.Code
		register bool
		calls    int32
		want     codes.Code
	}{
		{"nothing fails", 0, 0, codes.Unavailable, false, 1, codes.OK},
		{"three failures by default", 0, 3, codes.Unavailable, false, 4, codes.OK},
		{"four are too many", 0, 4, codes.Unavailable, false, 4, codes.Unavailable},
		{"not again", 1, 1, codes.Unavailable, false, 1, codes.Unavailable},
		{"another error", 0, 1, codes.ResourceExhausted, false, 1, codes.ResourceExhausted},
		{"a change", 0, 1, codes.Unavailable, true, 1, codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReplica(t)
			r.code = test.code
			r.failing.Store(test.failing)
			c := dialTo(t, Config{Attempts: test.attempts}, r)
			var err error
			if test.register {
				_, err = c.ClientKeys.RegisterClientKey(t.Context(), &bullav1.RegisterClientKeyRequest{})
			} else {
				_, err = issue(t, c)
			}
			if got := status.Code(err); got != test.want || r.calls.Load() != test.calls {
				t.Errorf("got %v after %d calls, want %v after %d", got, r.calls.Load(), test.want, test.calls)
			}
		})
	}
}

func TestServiceSaysWhenToTryAgain(t *testing.T) {
	r := newReplica(t)
	r.failing.Store(1)
	r.wait = "300"
	began := time.Now()
	if _, err := issue(t, dialTo(t, Config{}, r)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("it called again after %v", took)
	}
}

func TestReplicasAreCalledInTurnAndOnlyThoseThatAreReady(t *testing.T) {
	a, b, idle := newReplica(t), newReplica(t), newReplica(t)
	idle.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	c := dialTo(t, Config{}, a, b, idle)
	// The connections come up one after the other.
	for deadline := time.Now().Add(10 * time.Second); a.calls.Load() < 10 || b.calls.Load() < 10; {
		if _, err := issue(t, c); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d and %d calls, want 10 of each", a.calls.Load(), b.calls.Load())
		}
	}
	if n := idle.calls.Load(); n != 0 {
		t.Errorf("%d calls to a replica that is not ready", n)
	}
	idle.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	for deadline := time.Now().Add(10 * time.Second); idle.calls.Load() == 0; {
		if _, err := issue(t, c); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("no calls to a replica that is ready again")
		}
	}
	// Whatever dies, the others serve.
	a.stop()
	idle.stop()
	for range 20 {
		if got, err := issue(t, c); err != nil || got != b.address {
			t.Fatalf("got %q, %v, want %q", got, err, b.address)
		}
	}
}

// TestOneNameForSeveralAddressesIsCalledInTurn, which is what the name of a
// headless Service in Kubernetes is. A resolver of the test's own stands for DNS.
func TestOneNameForSeveralAddressesIsCalledInTurn(t *testing.T) {
	a, b := newReplica(t), newReplica(t)
	dns := manual.NewBuilderWithScheme("dns")
	dns.InitialState(resolver.State{Endpoints: []resolver.Endpoint{
		{Addresses: []resolver.Address{{Addr: a.address}}}, {Addresses: []resolver.Address{{Addr: b.address}}},
	}})
	c, err := Dial(Config{Address: "localhost:8443", Plaintext: true, Options: []grpc.DialOption{grpc.WithResolvers(dns)}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(30 * time.Second); a.calls.Load() == 0 || b.calls.Load() == 0; {
		if _, err := issue(t, c); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("one had %d calls, the other %d", a.calls.Load(), b.calls.Load())
		}
	}
	b.stop() // and what is left does all of it
	for range 20 {
		if _, err := issue(t, c); err != nil {
			t.Errorf("with one of two gone: %v", err)
		}
	}
}

func TestAddressesThatCannotBeCalled(t *testing.T) {
	for _, cfg := range []Config{
		{Address: "localhost", Plaintext: true},
		{Address: "127.0.0.1:1,", Plaintext: true},
		{Address: "127.0.0.1:1,10.0.0.1:1", Plaintext: true},
		{Address: "127.0.0.1:1", Plaintext: true, Attempts: 6},
		{Address: "127.0.0.1:1", Plaintext: true, Attempts: -1},
		{Address: "127.0.0.1:1,127.0.0.1:2"},
	} {
		if c, err := Dial(cfg); err == nil {
			_ = c.Close()
			t.Errorf("%+v: no error", cfg)
		}
	}
}
