package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/certs"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/seal"
)

// gateway is a Server with TLS on the network, and the files of its TLS.
type gateway struct {
	*Server
	t       *testing.T
	service *clientKeyService
	record  *auditor
	certs   *certs.Certs
	ca      *harness.CA // of the server's certificate
	dir     string
	address string
	log     *logged
}

// logged is what a server logs; many may write it.
type logged struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newGateway starts a Server whose callers come from these CAs. It ends with the
// test.
func newGateway(t *testing.T, edit func(*Config), callers ...*harness.CA) *gateway {
	t.Helper()
	g := &gateway{t: t, ca: harness.NewCA(t, "the service"), dir: t.TempDir(), log: &logged{}}
	g.renew()
	g.bundle(callers...)
	log := slog.New(slog.NewTextHandler(g.log, nil))
	var err error
	if g.certs, err = certs.New(certs.Config{
		Listener: "grpc", CertFile: g.file("tls.crt"), KeyFile: g.file("tls.key"), ClientCAFile: g.file("ca.crt"), Logger: log,
	}); err != nil {
		t.Fatal(err)
	}
	var cache *keys
	g.service, g.record, cache = newClientKeys(t)
	s := g.service
	cfg := Config{
		TLS: g.certs, Health: true, Reflection: true,
		Issuers: s.gate.issuers, Sealer: sealer{}, Authorizer: s.gate.authorizer, Store: s.store, ClientKeys: cache,
		Secrets: s.secrets, SigningKeys: noKeys{}, Auditor: g.record, Observer: &observer{}, Watches: s.watches, Replica: noReplica(), CheckURI: s.checkURI, Logger: log,
	}
	if edit != nil {
		edit(&cfg)
	}
	if g.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.address = lis.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := g.Serve(lis); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	running.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		ending, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		g.Shutdown(ending)
		stop()
		running.Wait()
	})
	return g
}

func (g *gateway) file(name string) string { return filepath.Join(g.dir, name) }

func (g *gateway) copy(from, to string) []byte {
	g.t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(g.file(to), data, 0o600)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return data
}

// renew writes a new certificate.
func (g *gateway) renew() {
	g.t.Helper()
	leaf := g.ca.Issue(g.t, harness.LeafConfig{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	g.copy(leaf.CertFile, "tls.crt")
	g.copy(leaf.KeyFile, "tls.key")
}

// bundle writes the CAs of callers.
func (g *gateway) bundle(callers ...*harness.CA) {
	g.t.Helper()
	var all []byte
	for _, ca := range callers {
		all = append(all, g.copy(ca.File, "ca.crt")...)
	}
	if err := os.WriteFile(g.file("ca.crt"), all, 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) reload() {
	g.t.Helper()
	if err := g.certs.Reload(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
}

// dial connects with a certificate, and never a second time by itself.
func (g *gateway) dial(leaf *harness.Leaf) *grpc.ClientConn {
	g.t.Helper()
	conn, err := grpc.NewClient(g.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{leaf.Certificate}, RootCAs: g.ca.Pool(), MinVersion: tls.VersionTLS13,
	})))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	return conn
}

// get makes a call, and returns the peer that answered it.
func get(ctx context.Context, conn grpc.ClientConnInterface) (*peer.Peer, error) {
	var from peer.Peer
	_, err := bullav1.NewClientKeyServiceClient(conn).GetClientKey(ctx, &bullav1.GetClientKeyRequest{ClientId: "app"}, grpc.Peer(&from))
	return &from, err
}

// mustBeUnknown holds what a caller got against UNAUTHENTICATED.
func mustBeUnknown(t *testing.T, what string, err error, word string) {
	t.Helper()
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(status.Convert(err).Message(), word) {
		t.Errorf("%s: got %v, want UNAUTHENTICATED and %q", what, err, word)
	}
}

func startWatching(t *testing.T, conn grpc.ClientConnInterface) grpc.ServerStreamingClient[bullav1.WatchClientKeysResponse] {
	t.Helper()
	stream, err := bullav1.NewClientKeyServiceClient(conn).WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// TestACATakenOutIsRevokedOnConnectionsThatStand has callers of two CAs, each with
// a call, a watch, a watch of the health and a stream that waits for its caller,
// when one CA is taken out.
func TestACATakenOutIsRevokedOnConnectionsThatStand(t *testing.T) {
	t.Parallel()
	a, b := harness.NewCA(t, "a"), harness.NewCA(t, "b")
	g := newGateway(t, nil, a, b)
	register(t, g.service, registration("app", "one", ""))
	ofA, ofB := g.dial(a.Issue(t, harness.LeafConfig{URI: registrar})), g.dial(b.Issue(t, harness.LeafConfig{URI: registrar}))
	var local [2]string
	for i, conn := range []*grpc.ClientConn{ofA, ofB} {
		from, err := get(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		local[i] = from.LocalAddr.String()
	}
	watchA, watchB := startWatching(t, ofA), startWatching(t, ofB)
	healthA, err := healthpb.NewHealthClient(ofA).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := healthA.Recv(); err != nil {
		t.Fatal(err)
	}
	idleA, err := reflectionpb.NewServerReflectionClient(ofA).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	// What changes nothing for callers ends nothing.
	g.renew()
	g.bundle(b, a)
	g.reload()
	for i, conn := range []*grpc.ClientConn{ofA, ofB} {
		if from, err := get(t.Context(), conn); err != nil || from.LocalAddr.String() != local[i] {
			t.Errorf("after a new certificate: got %v, on the same connection %t", err, from.LocalAddr.String() == local[i])
		}
	}

	g.bundle(b)
	g.reload()
	began := time.Now()
	_, err = get(t.Context(), ofA)
	mustBeUnknown(t, "the next call", err, "trusted no more")
	_, err = healthpb.NewHealthClient(ofA).Check(t.Context(), &healthpb.HealthCheckRequest{})
	mustBeUnknown(t, "the next look at the health", err, "trusted no more")
	_, err = watchA.Recv()
	mustBeUnknown(t, "the watch", err, "trusted no more")
	if _, err := healthA.Recv(); err == nil {
		t.Error("the health is still told")
	}
	if _, err := idleA.Recv(); err == nil {
		t.Error("the stream that waited for its caller goes on")
	}
	for ofA.GetState() == connectivity.Ready {
		if time.Since(began) > 30*time.Second {
			t.Fatal("the connection stands still")
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("the connection stood for %v more", time.Since(began).Round(time.Millisecond))
	if _, err := get(t.Context(), ofA); status.Code(err) != codes.Unavailable {
		t.Errorf("another connection: got %v, want UNAVAILABLE", err)
	}
	if from, err := get(t.Context(), ofB); err != nil || from.LocalAddr.String() != local[1] {
		t.Errorf("a caller of the other CA: got %v, on the same connection %t", err, from.LocalAddr.String() == local[1])
	}
	register(t, g.service, registration("app-next", "two", ""))
	if res, err := watchB.Recv(); err != nil || res.GetClientKey().GetClientId() != "app-next" {
		t.Errorf("the watch of the other: got %v, %v", res, err)
	}
	if n := g.Revocations(); n != 1 {
		t.Errorf("%d revocations counted, want 1", n)
	}
	if !strings.Contains(g.log.String(), "connections revoked") {
		t.Errorf("the operator reads nothing of it:\n%s", g.log)
	}
	// Denials are on record.
	g.record.mu.Lock()
	defer g.record.mu.Unlock()
	if !slices.ContainsFunc(g.record.events, func(e audit.Event) bool { return e.Outcome == audit.Denied && e.Reason == "CALLER_UNKNOWN" }) {
		t.Errorf("on record: %+v", g.record.events)
	}
}

// TestNobodyKeepsARevokedConnectionInTheBackground: who makes no call is found too,
// and a CA that comes back does not bring the connection back.
func TestNobodyKeepsARevokedConnectionInTheBackground(t *testing.T) {
	t.Parallel()
	a, b := harness.NewCA(t, "a"), harness.NewCA(t, "b")
	g := newGateway(t, nil, a, b)
	register(t, g.service, registration("app", "one", ""))
	conn := g.dial(a.Issue(t, harness.LeafConfig{URI: registrar}))
	if _, err := get(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	g.bundle(b)
	g.reload()
	for g.Revocations() == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	g.bundle(a, b)
	g.reload()
	_, err := get(t.Context(), conn)
	mustBeUnknown(t, "a connection from before", err, "trusted no more")
	if _, err := get(t.Context(), g.dial(a.Issue(t, harness.LeafConfig{URI: registrar}))); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}

func TestACallersCertificateEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	a := harness.NewCA(t, "a")
	g := newGateway(t, nil, a)
	register(t, g.service, registration("app", "one", ""))
	end := time.Now().Add(3 * time.Second)
	conn := g.dial(a.Issue(t, harness.LeafConfig{URI: registrar, NotAfter: end}))
	if _, err := get(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	watched := startWatching(t, conn)
	_, err := watched.Recv()
	mustBeUnknown(t, "the watch", err, "has expired")
	// X.509 counts seconds.
	if early := end.Truncate(time.Second); time.Now().Before(early) {
		t.Errorf("it ended %v before the certificate", time.Until(early))
	}
	_, err = get(t.Context(), conn)
	mustBeUnknown(t, "the next call", err, "has expired")
}

func TestTheFirstLinkThatBreaksEndsAChain(t *testing.T) {
	at := func(hours int) time.Time { return time.Unix(0, 0).Add(time.Duration(hours) * time.Hour) }
	chain := func(hours ...int) (list []*x509.Certificate) {
		for _, h := range hours {
			list = append(list, &x509.Certificate{NotAfter: at(h)})
		}
		return list
	}
	for _, test := range []struct {
		chains [][]*x509.Certificate
		want   int
	}{
		{[][]*x509.Certificate{chain(1, 5, 9)}, 1},
		{[][]*x509.Certificate{chain(5, 1, 9)}, 1},
		{[][]*x509.Certificate{chain(9, 5, 2)}, 2},
		{[][]*x509.Certificate{chain(9, 5, 2), chain(9, 5, 3)}, 3},
	} {
		if got := endOf(test.chains); !got.Equal(at(test.want)) {
			t.Errorf("got %v, want %v", got, at(test.want))
		}
	}
}

// TestAConnectionThatStandsCostsNothing: no call verifies a chain, or allocates,
// unless the bundle has changed.
func TestAConnectionThatStandsCostsNothing(t *testing.T) {
	a := harness.NewCA(t, "a")
	g := newGateway(t, nil, a)
	conn := g.dial(a.Issue(t, harness.LeafConfig{URI: registrar}))
	_, _ = get(t.Context(), conn) // there is no such client
	g.connections.mu.Lock()
	defer g.connections.mu.Unlock()
	if len(g.connections.open) != 1 {
		t.Fatalf("%d connections stand, want 1", len(g.connections.open))
	}
	for c := range g.connections.open {
		now := g.certs.Authorities()
		if n := testing.AllocsPerRun(100, func() {
			if err := c.standing(now); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations a call", n)
		}
	}
}

func TestSwitchesOfHealthAndReflection(t *testing.T) {
	for _, on := range []bool{true, false} {
		conn, _ := serveOn(t, Config{
			Plaintext: true, Health: on, Reflection: on, Issuers: issuer.NewDirectory(), Sealer: sealer{}, Authorizer: authz.Development(),
			SigningKeys: noKeys{}, Auditor: &auditor{}, Observer: &observer{}, Watches: noWatches(t), Replica: noReplica(),
		})
		want := map[bool]codes.Code{true: codes.OK, false: codes.Unimplemented}[on]
		if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); status.Code(err) != want {
			t.Errorf("on %t: health answered %v", on, err)
		}
		stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
		if _, err := stream.Recv(); status.Code(err) != want {
			t.Errorf("on %t: reflection answered %v", on, err)
		}
		_ = stream.CloseSend()
	}
}

func TestMessagesThatAreTooLargeAreRefusedWithTheirSize(t *testing.T) {
	token := ""
	client, _ := serve(t, sealer{answer: func(seal.Request) (*seal.Result, error) { return &seal.Result{Token: token}, nil }}, nil)
	_, err := client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app", Claims: make([]byte, maxMessage+1)})
	if st := status.Convert(err); st.Code() != codes.ResourceExhausted || !strings.Contains(st.Message(), "4194304") {
		t.Errorf("a large request: got %v, want RESOURCE_EXHAUSTED and what would fit", err)
	}
	token = strings.Repeat("a", maxReply)
	_, err = client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app"}, grpc.MaxCallRecvMsgSize(2*maxReply))
	if st := status.Convert(err); st.Code() != codes.ResourceExhausted || !strings.Contains(st.Message(), "8388608") {
		t.Errorf("a large reply: got %v, want RESOURCE_EXHAUSTED and what would fit", err)
	}
	token = strings.Repeat("a", maxReply-1000)
	if _, err = client.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{ClientId: "app"}, grpc.MaxCallRecvMsgSize(2*maxReply)); err != nil {
		t.Errorf("a reply that fits: %v", err)
	}
}

// TestOldConnectionsAreReplacedWithoutLosingACall has callers without a second
// attempt.
func TestOldConnectionsAreReplacedWithoutLosingACall(t *testing.T) {
	t.Parallel()
	a := harness.NewCA(t, "a")
	g := newGateway(t, func(cfg *Config) { cfg.MaxConnectionAge = time.Second }, a)
	register(t, g.service, registration("app", "one", ""))
	var calls, made atomic.Int64
	var callers sync.WaitGroup
	for range 4 {
		conn := g.dial(a.Issue(t, harness.LeafConfig{URI: registrar}))
		callers.Go(func() {
			last := ""
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
				from, err := get(t.Context(), conn)
				if err != nil {
					t.Errorf("call %d: %v", calls.Load(), err)
					return
				}
				if local := from.LocalAddr.String(); local != last {
					last = local
					made.Add(1)
				}
				calls.Add(1)
			}
		})
	}
	callers.Wait()
	t.Logf("%d calls on %d connections of 4 callers", calls.Load(), made.Load())
	if made.Load() < 8 {
		t.Errorf("%d connections were made by 4 callers in 4s, want a new one about each second", made.Load())
	}
}

func TestAPanicInAStreamEndsThatStream(t *testing.T) {
	client, srv := watchedServer(t)
	var broken atomic.Bool
	srv.cfg.ClientKeys.(*keys).state = func(*registry.Registration) *keycache.Status {
		if broken.Load() {
			panic("at the disco")
		}
		return &keycache.Status{State: keycache.Ready}
	}
	if _, err := client.RegisterClientKey(t.Context(), registration("app", "one", "")); err != nil {
		t.Fatal(err)
	}
	watched, err := client.WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watched.Header(); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	srv.cfg.Watches.ClientChanged("main", "app")
	if _, err := watched.Recv(); status.Code(err) != codes.Internal || status.Convert(err).Message() != unknownText {
		t.Errorf("the watch ended with %v, want INTERNAL and a fixed text", err)
	}
	seen := srv.cfg.Observer.(*observer)
	seen.mu.Lock()
	if seen.panics != 1 {
		t.Errorf("%d panics counted, want 1", seen.panics)
	}
	seen.mu.Unlock()
	broken.Store(false)
	if _, err := client.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{ClientId: "app"}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// TestShutdownIsNotHeldUpByAWatchThatIsNotRead: more is told than the connection
// takes, so that the watch waits for its caller.
func TestShutdownIsNotHeldUpByAWatchThatIsNotRead(t *testing.T) {
	t.Parallel()
	client, srv := watchedServer(t)
	stalled, err := client.WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stalled.Header(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := client.RegisterClientKey(t.Context(), wide("app-"+string(rune('a'+i%26))+string(rune('a'+i/26)))); err != nil {
			t.Fatal(err)
		}
	}
	const patience = 3 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	srv.Shutdown(ctx)
	if took := time.Since(began); took > patience+10*time.Second {
		t.Errorf("the end took %v, want about %v", took, patience)
	}
	for err == nil {
		_, err = stalled.Recv()
	}
	if errors.Is(err, io.EOF) {
		t.Error("the watch ended as if all was told")
	}
}

func TestAListenerTakesOnlySoManyConnections(t *testing.T) {
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log logged
	bounded := Bound(lis, "http", 2, slog.New(slog.NewTextHandler(&log, nil)))
	web := NewWeb(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) }), nil, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- web.Serve(bounded) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		web.Shutdown(ctx)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	connect := func() net.Conn {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	first, second := connect(), connect()
	for bounded.Open() < 2 {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		refused := connect()
		_ = refused.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := refused.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a third connection: got %v, want that it is closed", err)
		}
	}
	if bounded.Refused() != 3 || bounded.Open() != 2 || bounded.Most() != 2 {
		t.Errorf("%d refused, %d of %d open", bounded.Refused(), bounded.Open(), bounded.Most())
	}
	if n := strings.Count(log.String(), "connection refused"); n != 1 {
		t.Errorf("logged %d times, want once for all of them:\n%s", n, log.String())
	}
	_ = first.Close()
	for bounded.Open() > 1 {
		time.Sleep(time.Millisecond)
	}
	for _, conn := range []net.Conn{connect(), second} {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Errorf("with room again: %v", err)
		}
	}
}

// TestWhoDoesNotShakeHandsHoldsAPlaceForSeconds: connections that are opened and
// left alone are closed.
func TestWhoDoesNotShakeHandsHoldsAPlaceForSeconds(t *testing.T) {
	t.Parallel()
	g := newGateway(t, nil, harness.NewCA(t, "a"))
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(40 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want that it is closed", err)
	}
}
