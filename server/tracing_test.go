package server

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/seal"
)

// callTracer notes what it is told of calls.
type callTracer struct {
	mu   sync.Mutex
	told []string // guarded by mu
}

type tracedCall struct{}

func (c *callTracer) note(ctx context.Context, what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	method, _ := ctx.Value(tracedCall{}).(string)
	c.told = append(c.told, method[strings.LastIndexByte(method, '/')+1:]+" "+what)
}

func (c *callTracer) Call(ctx context.Context, method string, stream bool) context.Context {
	ctx = context.WithValue(ctx, tracedCall{}, method)
	if c.note(ctx, "begins"); stream {
		c.note(ctx, "streams")
	}
	return ctx
}
func (c *callTracer) Caller(ctx context.Context, name string) { c.note(ctx, "by "+name) }
func (c *callTracer) Called(ctx context.Context, err error) {
	c.note(ctx, "ends with "+status.Code(err).String())
}

func TestCallsAreTracedFromOutside(t *testing.T) {
	tracer := &callTracer{}
	conn, _ := serveOn(t, Config{
		Plaintext: true, Issuers: issuer.NewDirectory(), Authorizer: authz.Development(),
		SigningKeys: noKeys{}, Auditor: &auditor{}, Observer: &observer{}, Watches: noWatches(t), Replica: noReplica(), Health: true, Tracer: tracer,
		Sealer: sealer{answer: func(r seal.Request) (*seal.Result, error) {
			switch r.ClientID {
			case "panic":
				panic("no")
			case "fails":
				return nil, issuer.ErrUnknown
			}
			return &seal.Result{Token: "a.b.c"}, nil
		}},
	})
	tokens := bullav1.NewTokenServiceClient(conn)
	wantTold := func(name string, want ...string) {
		t.Helper()
		tracer.mu.Lock()
		defer tracer.mu.Unlock()
		if !slices.Equal(tracer.told, want) {
			t.Errorf("%s: told %q, want %q", name, tracer.told, want)
		}
		tracer.told = nil
	}
	const begins, by = "SignAndEncrypt begins", "SignAndEncrypt by development"
	for client, code := range map[string]codes.Code{"app": codes.OK, "fails": codes.NotFound, "panic": codes.Internal} {
		_, err := tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: client})
		if status.Code(err) != code {
			t.Fatalf("%s: got %v, want %s", client, err, code)
		}
		wantTold(client, begins, by, "SignAndEncrypt ends with "+code.String())
	}
	stream, err := bullav1.NewClientKeyServiceClient(conn).WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{Issuer: "another"})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.NotFound {
		t.Fatalf("got %v, want NotFound", err)
	}
	wantTold("a stream", "WatchClientKeys begins", "WatchClientKeys streams", "WatchClientKeys by development", "WatchClientKeys ends with NotFound")
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	wantTold("a probe")
}

func TestFaultsAreNobodyElses(t *testing.T) {
	seen := make(map[string]string)
	for code, reason := range Faults() {
		seen[reason] = code
	}
	for reason, code := range map[string]string{
		"SIGNING_FAULT": "Internal", "Internal": "Internal", "SIGNING_KEY_UNAVAILABLE": "Unavailable", "SIGNING_THROTTLED": "ResourceExhausted",
		"AUDIT_UNAVAILABLE": "Unavailable", "CLAIMS_INVALID": "", "CALLER_NOT_ALLOWED": "", "Canceled": "", "DeadlineExceeded": "DeadlineExceeded",
	} {
		if seen[reason] != code {
			t.Errorf("%s is a fault with the code %q, want %q", reason, seen[reason], code)
		}
	}
}
