package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/certs"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/limit"
	"github.com/bulla-project/bulla/server/watch"
)

// Authorizer decides what a caller may do: authz.Live, or an authz.Policy that
// never changes.
type Authorizer interface {
	// Now is the policy in force, and a channel that is closed when it no longer
	// is. A call keeps to the one it began with.
	Now() (policy *authz.Policy, replaced <-chan struct{})
	Allow(caller string, r authz.Request) error
	AllowSome(caller string, permission authz.Permission, issuer string) error
	NextClient(caller string, permission authz.Permission, issuer, from string) (next string, ok bool)
}

// Auditor writes the audit log: audit.Log.
type Auditor interface {
	Record(ctx context.Context, e audit.Event) error
}

// Config is what a Server is made of. Everything is required but what says
// otherwise.
type Config struct {
	// TLS holds the server's certificate and the CAs of its callers, as they
	// stand in their files; the caller runs it. It is nil if Plaintext is set, and
	// only then.
	TLS *certs.Certs
	// Plaintext serves without TLS and takes every caller for the development
	// caller.
	Plaintext bool
	// Health serves gRPC's health service, Reflection the API's description.
	Health, Reflection bool
	// MaxConnectionAge is how long a connection is used before its caller is asked
	// to make another. Default: for ever.
	MaxConnectionAge time.Duration

	Issuers    *issuer.Directory
	Sealer     Sealer
	Authorizer Authorizer
	Store      registry.Store
	// Waits is what Store can do for changes of clients that wait. Default: none
	// wait.
	Waits       registry.Waits
	ClientKeys  ClientKeys
	Secrets     Secrets
	SigningKeys SigningKeys
	Auditor     Auditor
	// Watches tells those who watch client keys of changes. The Server tells it of
	// its own, runs it, and closes it.
	Watches *watch.Hub
	// CheckURI decides from a jwks_uri's text alone: fetch.Client.
	CheckURI func(uri string) error
	// Limits hold back callers who register too fast. Default: the defaults of
	// package limit.
	Limits   *limit.Limits
	Observer Observer
	// Replica is what StatusService tells beside the issuers and their keys.
	Replica Replica
	// Tracer makes spans of calls. Default: none.
	Tracer Tracer
	// Logger gets what callers are not told. Default: none.
	Logger *slog.Logger
}

// Server is the gRPC server.
type Server struct {
	cfg    Config
	log    *slog.Logger
	grpc   *grpc.Server
	health *health.Server
	// changes tells of changes of clients that waited and take effect; nil for none.
	changes *keyChanges

	connections *connections // nil if Plaintext is set

	stopping atomic.Bool // from Shutdown on
	streams  *streams    // of tokens; Shutdown ends them
	// watching ends the health watches: by endWatches, in Shutdown.
	watching   context.Context //nolint:containedctx // it is the life of the server
	endWatches context.CancelFunc
}

// maxMessage bounds a request: a batch may hold 3 MiB of claims. maxReply bounds a
// reply: its tokens are not twice as long as the claims, and some headers. What is
// larger ends with RESOURCE_EXHAUSTED and both sizes, by gRPC itself.
const (
	maxMessage = 4 << 20
	maxReply   = 8 << 20
)

// streamWindow is how much of a call's messages is taken that nobody has read
// yet, and connectionWindow how much may be on its way on a connection. gRPC lets
// the former grow to 16 MiB by itself where the network carries as much: a stream
// of tokens that is not read further, since its caller takes no answers, would
// hold that many requests beyond those that it counts.
const (
	streamWindow     = 256 << 10
	connectionWindow = 4 << 20
)

// oldConnectionsLeave is how long calls on a connection may go on that has reached
// its age: longer than any call without a stream should take. A watch that goes
// on until then is cut off, and begins anew elsewhere.
const oldConnectionsLeave = time.Minute

// streamWorkers is how many goroutines are kept for calls, which saves the
// start of one and the growth of its stack for each.
const streamWorkers = 32

// New makes a Server that is ready to serve.
func New(cfg Config) (*Server, error) {
	if (cfg.TLS == nil) != cfg.Plaintext {
		return nil, errors.New("server: either TLS or Plaintext is required")
	}
	if cfg.Issuers == nil || cfg.Sealer == nil || cfg.Authorizer == nil || cfg.SigningKeys == nil || cfg.Auditor == nil || cfg.Observer == nil || cfg.Watches == nil || !cfg.Replica.complete() {
		return nil, errors.New("server: a required field of Config is missing")
	}
	for _, i := range cfg.Issuers.All() {
		if i.KeyChangeDelay() > 0 && cfg.Waits == nil {
			return nil, fmt.Errorf("server: changes of clients of %s wait, and Waits is missing", i.Name())
		}
	}
	if cfg.Limits == nil {
		var err error
		if cfg.Limits, err = limit.New(limit.Config{}); err != nil {
			return nil, fmt.Errorf("server: %w", err)
		}
	}
	s := &Server{cfg: cfg, log: cfg.Logger, health: health.NewServer(), streams: newStreams()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.changes = newKeyChanges(&cfg, s.log)
	s.watching, s.endWatches = context.WithCancel(context.Background())
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		s.connections = &connections{certs: cfg.TLS, log: s.log, open: make(map[*connection]struct{})}
		creds = newHandshakes(cfg.TLS, s.connections, cfg.Observer, s.log)
	}
	unary, stream := s.interceptors()
	s.grpc = grpc.NewServer(
		grpc.Creds(creds),
		grpc.ChainUnaryInterceptor(unary...),
		grpc.ChainStreamInterceptor(stream...),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxReply),
		grpc.MaxConcurrentStreams(1000),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Minute, Timeout: 20 * time.Second,
			MaxConnectionAge: cfg.MaxConnectionAge, MaxConnectionAgeGrace: oldConnectionsLeave,
		}),
	)
	bullav1.RegisterTokenServiceServer(s.grpc, &tokenService{sealer: cfg.Sealer, streams: s.streams, server: s})
	entrance := gate{issuers: cfg.Issuers, authorizer: cfg.Authorizer, auditor: cfg.Auditor}
	bullav1.RegisterClientKeyServiceServer(s.grpc, &clientKeyService{
		gate: entrance, store: cfg.Store, keys: cfg.ClientKeys, secrets: cfg.Secrets, watches: cfg.Watches, changes: s.changes, generating: make(chan struct{}, maxGenerating),
		checkURI: cfg.CheckURI, limits: cfg.Limits, log: s.log,
	})
	bullav1.RegisterSigningKeyServiceServer(s.grpc, &signingKeyService{gate: entrance, keys: cfg.SigningKeys})
	bullav1.RegisterStatusServiceServer(s.grpc, &statusService{gate: entrance, keys: cfg.SigningKeys, replica: cfg.Replica, ready: s.Ready})
	if cfg.Health {
		healthpb.RegisterHealthServer(s.grpc, s.health)
	}
	if cfg.Reflection {
		reflection.Register(s.grpc)
	}
	s.updateHealth()
	return s, nil
}

// Serve answers calls on lis until Shutdown. It returns nil then.
func (s *Server) Serve(lis net.Listener) error {
	if _, ok := lis.(*Bounded); !ok {
		lis = Bound(lis, "grpc", math.MaxInt, s.log) // which keeps track of connections
	}
	if err := s.grpc.Serve(lis); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil // Shutdown was faster
}

// healthEvery is how often the health of issuers is looked at. The signing
// keys are probed in the background; looking costs nothing.
const healthEvery = time.Second

// KeyChanges is to be told of what any replica writes, this one among them, and
// counts the changes of clients that wait.
func (s *Server) KeyChanges() (told registry.Follower, count func() int) {
	return s.changes, s.changes.count
}

// Run keeps the health service true, watches told, changes of clients that wait
// looked after, and connections worth their callers' certificates until ctx ends.
// It returns nil then.
func (s *Server) Run(ctx context.Context) error {
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return s.cfg.Watches.Run(ctx) })
	parts.Go(func() error { return s.changes.run(ctx) })
	parts.Go(func() error { return s.keepHealth(ctx) })
	if s.connections != nil {
		parts.Go(func() error { return s.connections.follow(ctx) })
	}
	return parts.Wait()
}

func (s *Server) keepHealth(ctx context.Context) error {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.updateHealth()
		case <-ctx.Done():
			return nil
		}
	}
}

// updateHealth says for each issuer, and for the service as a whole, whether
// tokens can be signed. The whole serves while any issuer does.
func (s *Server) updateHealth() {
	whole := healthpb.HealthCheckResponse_NOT_SERVING
	for _, i := range s.cfg.Issuers.All() {
		one := healthpb.HealthCheckResponse_NOT_SERVING
		if ok, _ := s.cfg.SigningKeys.Healthy(i.Name()); ok {
			one, whole = healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_SERVING
		}
		s.health.SetServingStatus("bulla.issuer."+i.Name(), one)
	}
	s.health.SetServingStatus("", whole)
}

// Ready returns nil if calls are taken and at least one issuer can sign, else
// why not.
func (s *Server) Ready() error {
	if s.stopping.Load() {
		return errors.New("the service is stopping")
	}
	var all error
	for _, i := range s.cfg.Issuers.All() {
		ok, reason := s.cfg.SigningKeys.Healthy(i.Name())
		if ok {
			return nil
		}
		all = errors.Join(all, fmt.Errorf("issuer %s cannot sign: %s", i.Name(), reason))
	}
	return all
}

// watchersLeave is how long those who watch the health have to leave by
// themselves, once they are told that the service ends. A watch has no end of
// its own, and would hold the service up for as long as it drains.
const watchersLeave = 500 * time.Millisecond

// Revocations counts the connections that were ended because the CA of their
// caller was taken out of the bundle.
func (s *Server) Revocations() uint64 {
	if s.connections == nil {
		return 0
	}
	return s.connections.revocations.Load()
}

// Shutdown takes no more calls, waits for those in flight until ctx ends, and
// cuts off what is left.
func (s *Server) Shutdown(ctx context.Context) {
	s.stopping.Store(true)
	s.health.Shutdown()
	s.cfg.Watches.Close()
	s.streams.close()
	leave := time.AfterFunc(watchersLeave, s.endWatches)
	defer leave.Stop()
	defer s.endWatches()
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
}
