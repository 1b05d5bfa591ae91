package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/keycache"
	clientregistry "github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/server"
	"github.com/bulla-project/bulla/server/admit"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/limit"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/server/telemetry"
	"github.com/bulla-project/bulla/server/telemetry/trace"
	"github.com/bulla-project/bulla/server/watch"
	"github.com/bulla-project/bulla/signer/keyring"
)

func serveCommand() *cobra.Command {
	var file string
	level := slog.LevelInfo
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the service",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			log := slog.New(trace.LogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
			return serve(cmd.Context(), cfg, log, listenTCP, func(addresses) {})
		},
	}
	cmd.Flags().StringVar(&file, "config", "bulla.yaml", "the configuration")
	cmd.Flags().TextVar(&level, "log-level", slog.LevelInfo, "what is logged at least: DEBUG, INFO, WARN or ERROR")
	return cmd
}

// drain is how long calls in flight may take to end when the service stops.
const drain = 15 * time.Second

// listenFunc opens the listener of a configured address.
type listenFunc func(ctx context.Context, address string) (net.Listener, error)

func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", address)
}

// addresses are where the service listens.
type addresses struct{ grpc, http, ops net.Addr }

// serve runs the service until ctx ends. What an operator must edit fails the
// start; what may heal by itself does not. started is called once all
// listeners are up.
//
// The order of shutdown is the reverse of the order below: first no new calls
// and the end of those in flight, then what works in the background, then the
// stores, and the keys last.
func serve(ctx context.Context, cfg *config.Config, log *slog.Logger, listen listenFunc, started func(addresses)) (err error) {
	var closers []func() error
	closing := func(f func() error) { closers = append(closers, f) }
	defer func() {
		for i := len(closers) - 1; i >= 0; i-- {
			err = errors.Join(err, closers[i]())
		}
	}()

	collectLess(cfg)
	if err := checkFiles(cfg, log); err != nil {
		return err
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics, err := telemetry.New(registry)
	if err != nil {
		return err
	}

	spans, err := openTracing(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer spans.shutdown(context.WithoutCancel(ctx)) // unless it was before

	auditLog, err := audit.Open(ctx, auditConfig(cfg, log))
	if err != nil {
		return err
	}
	closing(auditLog.Close)
	hangup := catchHangup(auditLog, log)
	defer hangup.stop()

	wrapping := newWrappingKeys(cfg)
	store, err := openStore(ctx, cfg, storeUse{keys: dataKeysConfig(cfg, wrapping, log), log: log, migrate: true})
	if err != nil {
		return err
	}
	closing(store.Close)

	issuers, err := newIssuers(cfg)
	if err != nil {
		return err
	}
	policy, err := newPolicy(cfg)
	if err != nil {
		return err
	}
	grants := authz.NewLive(policy)
	limits, err := limit.New(limitConfig(cfg))
	if err != nil {
		return err
	}
	hangup.reload = newReload(cfg, auditLog, log, swapGrants(cfg, grants), swapLimits(limits))
	fetcher, err := fetch.New(fetchConfig(cfg, log))
	if err != nil {
		return err
	}
	doors, err := openDoors(ctx, cfg, listen, closing, log)
	if err != nil {
		return err
	}
	hangup.doors = doors

	// Last of all that can fail, for it sends a PIN: a start that fails again
	// and again must not use up a token's tries.
	backends, err := openBackends(ctx, cfg, nil, log)
	if err != nil {
		return err
	}
	closing(backends.Close)
	wrapping.backends.Store(backends)

	keys, err := keyring.New(ctx, keyringConfig(cfg, store, backends.byName, auditLog, log))
	if err != nil {
		return err
	}
	keeper := secrets.New(store.Keys(), datakey.ErrTampered)
	// The cache tells the watches of key sets, and they ask it whether it still
	// hears of changes, once there are any.
	var cache *keycache.Cache
	watches, err := watch.New(watch.Config{Clients: store, Stale: func() bool { return cache.RegistryStale() }, Logger: log})
	if err != nil {
		return err
	}
	cache, err = keycache.New(keycacheConfig(cfg, store, fetcher, keeper, watches.KeySetChanged, metrics.Fetched, log))
	if err != nil {
		return err
	}
	closing(func() error { cache.Close(); return nil })

	admission, err := admit.New(admissionConfig(cfg, backends, log))
	if err != nil {
		return err
	}
	sealer, err := seal.New(seal.Config{
		Issuers: issuers, Authorizer: grants, Recipients: cache, Keys: keys,
		Auditor: auditLog, Observer: spans.tokens(metrics), Reason: server.Reason, Admission: admission, Quota: limits, Logger: log,
	})
	if err != nil {
		return err
	}
	looking, answering := newStoreWatch(store, log), newBackendWatch(backends, log)
	api, err := server.New(server.Config{
		TLS: doors.apiTLS, Plaintext: cfg.Plaintext(), Health: cfg.GRPC.Health, Reflection: cfg.GRPC.Reflection, MaxConnectionAge: cfg.GRPC.MaxConnectionAge,
		Issuers: issuers, Sealer: sealer, Authorizer: grants, Store: store, Waits: store,
		ClientKeys: cache, Secrets: keeper, SigningKeys: keys, Auditor: auditLog, Watches: watches,
		CheckURI: fetcher.CheckURI, Limits: limits, Observer: metrics, Tracer: spans.calls(), Logger: log,
		Replica: replica(cfg, backends, answering, store, looking, cache, sealer),
	})
	if err != nil {
		return err
	}
	web := server.NewWeb(server.JWKSHandler(issuers, keys, jwksMaxAge(cfg)), doors.webTLSConfig(), log)
	metricsHandler := promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry})
	toOps := server.Ops{Ready: api.Ready, Degraded: looking.degraded, Metrics: metricsHandler}
	toCollectors := doors.metricsServer(metricsHandler, log)
	if toCollectors != nil {
		toOps.Metrics = nil
	}
	ops := server.NewWeb(server.OpsHandler(toOps), nil, log)
	if err := registerStats(metrics, backends, store, looking, cache, auditLog, issuers, keys); err != nil {
		return err
	}
	changes, waiting := api.KeyChanges()
	if err := errors.Join(
		registerService(metrics, cfg, answering, issuers, keys), registerKeyChanges(metrics, waiting), registerLoad(metrics, admission, limits),
		doors.register(metrics, api), spans.register(metrics), hangup.reload.register(metrics),
	); err != nil {
		return err
	}

	// background outlives ctx: calls in flight still need it while the
	// listeners drain.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, failed := errgroup.WithContext(background)
	follow := func(ctx context.Context) error {
		return store.Follow(ctx, follower{clients: []clientregistry.Follower{cache, watches, changes}, keys: keys})
	}
	for _, part := range append(doors.follow(),
		follow, looking.run, answering.run, keys.Run, cache.Run, api.Run, hangup.run, checkpoints(cfg, auditLog, backends, keys),
	) {
		group.Go(func() error { return part(background) })
	}
	group.Go(func() error {
		select {
		case err := <-backends.stuck:
			return err
		case <-background.Done():
			return nil
		}
	})
	group.Go(func() error { return api.Serve(doors.grpc) })
	group.Go(func() error { return web.Serve(doors.http) })
	group.Go(func() error { return ops.Serve(doors.ops) })
	if toCollectors != nil {
		group.Go(func() error { return toCollectors.Serve(doors.metrics) })
	}
	log.Info("serving", "version", version(), "grpc", doors.grpc.Addr().String(),
		"http", doors.http.Addr().String(), "ops", doors.ops.Addr().String(), "grants_sha256", hashOfGrants(cfg))
	started(addresses{doors.grpc.Addr(), doors.http.Addr(), doors.ops.Addr()})

	select {
	case <-ctx.Done():
	case <-failed.Done():
	}
	log.Info("stopping")
	draining, cancel := context.WithTimeout(background, drain)
	defer cancel()
	api.Shutdown(draining)
	web.Shutdown(draining)
	ops.Shutdown(draining)
	if toCollectors != nil {
		toCollectors.Shutdown(draining)
	}
	spans.shutdown(draining)
	stop()
	return group.Wait()
}

// checkFiles looks for the files that the configuration names. Those of a
// backend, a PKCS#11 module or a PIN, may be mounted or written later: the
// backend is down until then. Without the others there is nothing to start.
func checkFiles(cfg *config.Config, log *slog.Logger) error {
	problems, warnings := cfg.CheckFiles()
	for _, w := range warnings {
		log.Warn("configuration", "warning", w.String())
	}
	var fatal config.Problems
	for _, p := range problems {
		if strings.HasPrefix(p.Path, "backends.") {
			log.Warn("configuration", "problem", p.String())
		} else {
			fatal = append(fatal, p)
		}
	}
	if len(fatal) > 0 {
		return fatal
	}
	return nil
}

// ignoreClosed is for what a server that was shut down has closed already.
func ignoreClosed(closeIt func() error) func() error {
	return func() error {
		if err := closeIt(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// collectLess has garbage collected less often than is usual: most of it is
// short-lived, and that saves CPU, for memory. With many clients in memory it
// would cost hundreds of megabytes, so there is a bound beyond which it is
// collected more often again: about twice what the clients may take. Whoever
// sets GOGC or GOMEMLIMIT decides for himself.
func collectLess(cfg *config.Config) {
	const rest = 192 << 20 // what the service needs beside its clients, with much to spare
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(2*int64(cfg.Cache.Memory) + rest)
	}
}
