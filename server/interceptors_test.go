package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/server/watch"
	"github.com/bulla-project/bulla/signer/keyring"
)

// sealer answers as it is told.
type sealer struct {
	answer func(seal.Request) (*seal.Result, error)
	bounds *time.Time // of the last call's context; nil if nobody asks
}

func (s sealer) SignAndEncrypt(ctx context.Context, r seal.Request) (*seal.Result, error) {
	if s.bounds != nil {
		*s.bounds, _ = ctx.Deadline()
	}
	return s.answer(r)
}
func (s sealer) Sign(_ context.Context, r seal.Request) (*seal.Result, error) { return s.answer(r) }

type noKeys struct{}

func (noKeys) JWKS(string) ([]byte, string, time.Time, error) {
	return nil, "", time.Time{}, keyring.ErrNotOpen
}
func (noKeys) List(string) ([]keyring.KeyInfo, error) { return nil, nil }
func (noKeys) Healthy(string) (bool, string)          { return false, "no key" }
func (noKeys) Rotate(context.Context, string, kms.Algorithm, bool) (keyring.Rotated, error) {
	return keyring.Rotated{}, keyring.ErrNoKey
}

type auditor struct {
	mu     sync.Mutex // guards events
	events []audit.Event
	err    error // what Record answers
}

func (a *auditor) Record(_ context.Context, e audit.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.events = append(a.events, e)
	}
	return a.err
}

type observer struct {
	mu      sync.Mutex // guards the rest
	panics  int
	reasons []string
	items   []string
}

func (o *observer) RPC(_, code, reason string, _ time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reasons = append(o.reasons, code+" "+reason)
}

func (o *observer) Item(_, code, reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.items = append(o.items, code+" "+reason)
}

func (o *observer) Panic() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.panics++
}

func (o *observer) HandshakeFailed() {}

func (o *observer) Begun(string) {}

// serve runs a Server in development on a connection in memory.
func serve(t *testing.T, s sealer, log *slog.Logger) (bullav1.TokenServiceClient, *observer) {
	t.Helper()
	seen := &observer{}
	conn, _ := serveOn(t, Config{
		Plaintext: true, Issuers: issuer.NewDirectory(), Sealer: s, Authorizer: authz.Development(),
		SigningKeys: noKeys{}, Auditor: &auditor{}, Observer: seen, Watches: noWatches(t), Replica: noReplica(), Logger: log,
	})
	return bullav1.NewTokenServiceClient(conn), seen
}

// noWatches is a hub that knows of no key sets.
func noWatches(t *testing.T) *watch.Hub {
	t.Helper()
	hub, err := watch.New(watch.Config{Clients: noClients{}})
	if err != nil {
		t.Fatal(err)
	}
	return hub
}

type noClients struct{}

func (noClients) ClientsOf(context.Context, string, func(issuer, clientID string) bool) error {
	return nil
}

// serveOn runs a Server on a connection in memory, until the test ends.
func serveOn(t *testing.T, cfg Config) (*grpc.ClientConn, *Server) {
	t.Helper()
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	lis := bufconn.Listen(1 << 16)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		srv.Shutdown(ctx)
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return conn, srv
}

func TestAPanicFailsOneCallAndTellsNothing(t *testing.T) {
	var log strings.Builder
	secret := `{"sub":"alice"}`
	client, seen := serve(t, sealer{answer: func(r seal.Request) (*seal.Result, error) {
		if string(r.Claims) == secret {
			panic(secret)
		}
		return &seal.Result{Token: "a.b.c"}, nil
	}}, slog.New(slog.NewTextHandler(&log, nil)))
	_, err := client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app", Claims: []byte(secret)})
	if st := status.Convert(err); st.Code() != codes.Internal || st.Message() != unknownText {
		t.Errorf("got %v, want Internal with a fixed text", err)
	}
	if res, err := client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app"}); err != nil || res.GetToken() != "a.b.c" {
		t.Errorf("the next call: %v, %v", res, err)
	}
	if seen.panics != 1 {
		t.Errorf("%d panics counted, want 1", seen.panics)
	}
	if text := log.String(); strings.Contains(text, "alice") || !strings.Contains(text, "interceptors_test.go") {
		t.Errorf("the log should hold the stack and not the value:\n%s", text)
	}
}

func TestRepliesSayThatTheRegistryIsStale(t *testing.T) {
	stale := false
	client, _ := serve(t, sealer{answer: func(seal.Request) (*seal.Result, error) {
		return &seal.Result{Token: "a.b.c", RegistryStale: stale}, nil
	}}, nil)
	for range 2 {
		encrypted, err := client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app"})
		if err != nil || encrypted.GetRegistryStale() != stale {
			t.Errorf("SignAndEncrypt: got %v, %v; want stale %v", encrypted, err, stale)
		}
		signed, err := client.Sign(t.Context(), &bullav1.SignRequest{ClientId: "app"})
		if err != nil || signed.GetRegistryStale() != stale {
			t.Errorf("Sign: got %v, %v; want stale %v", signed, err, stale)
		}
		stale = true
	}
}

func TestARetryableErrorPushesBack(t *testing.T) {
	client, seen := serve(t, sealer{answer: func(seal.Request) (*seal.Result, error) {
		return nil, &keycache.FetchError{ID: "X", RetryAfter: 7 * time.Second, Err: keycache.ErrUnavailable}
	}}, nil)
	var trailer metadata.MD
	_, err := client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app"}, grpc.Trailer(&trailer))
	if status.Code(err) != codes.Unavailable {
		t.Fatalf("got %v", err)
	}
	if got := trailer.Get(pushback); len(got) != 1 || got[0] != "7000" {
		t.Errorf("trailer %s = %v, want 7000", pushback, got)
	}
	if got := seen.reasons; len(got) != 1 || got[0] != "Unavailable CLIENT_KEYS_UNAVAILABLE" {
		t.Errorf("observed %q", got)
	}
}

func TestBadFieldsReachNoSealer(t *testing.T) {
	client, _ := serve(t, sealer{answer: func(seal.Request) (*seal.Result, error) { return nil, errors.New("reached") }}, nil)
	for name, req := range map[string]*bullav1.SignAndEncryptRequest{
		"no client":           {},
		"control characters":  {ClientId: "app\n"},
		"a long client id":    {ClientId: strings.Repeat("a", 256)},
		"a long issuer":       {ClientId: "app", Issuer: strings.Repeat("a", 256)},
		"a kind unheard of":   {ClientId: "app", TokenKind: 99},
		"a long access token": {ClientId: "app", AccessToken: strings.Repeat("a", maxInputBytes+1)},
	} {
		_, err := client.SignAndEncrypt(t.Context(), req)
		if st := status.Convert(err); st.Code() != codes.InvalidArgument {
			t.Errorf("%s: got %v, want InvalidArgument", name, err)
		}
	}
}

func TestTheDevelopmentCallerIsNamed(t *testing.T) {
	client, _ := serve(t, sealer{answer: func(r seal.Request) (*seal.Result, error) {
		return &seal.Result{Token: r.Caller + " " + r.RPC}, nil
	}}, nil)
	res, err := client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app"})
	if want := "development /bulla.v1.TokenService/SignAndEncrypt"; err != nil || res.GetToken() != want {
		t.Errorf("got %v, %v, want %q", res, err, want)
	}
}

func TestTLSAndPlaintextExcludeEachOther(t *testing.T) {
	if _, err := New(Config{Issuers: issuer.NewDirectory(), SigningKeys: noKeys{}}); err == nil {
		t.Error("a server with neither TLS nor Plaintext was made")
	}
}

func TestACallWithoutADeadlineGetsOne(t *testing.T) {
	var bounds time.Time
	client, _ := serve(t, sealer{bounds: &bounds, answer: func(seal.Request) (*seal.Result, error) { return &seal.Result{}, nil }}, nil)
	if _, err := client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app"}); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(bounds); left <= 0 || left > longestCall {
		t.Errorf("without a deadline: %v left, want up to %v", left, longestCall)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := client.SignAndEncrypt(ctx, &bullav1.SignAndEncryptRequest{ClientId: "app"}); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(bounds); left < 30*time.Minute {
		t.Errorf("with an hour's deadline: %v left", left)
	}
}
