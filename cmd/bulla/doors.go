package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/bulla-project/bulla/server"
	"github.com/bulla-project/bulla/server/certs"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/telemetry"
)

// door is a listener as it is configured.
type door struct {
	name    string // in logs and metrics
	field   string // of the configuration
	address string
	share   int // of the connections that the process may have, in hundredths
}

// doorsOf are the listeners of a configuration.
func doorsOf(cfg *config.Config) []door {
	list := []door{
		{"grpc", "grpc.listen", cfg.GRPC.Listen, 50},
		{"http", "http.listen", cfg.HTTP.Listen, 20},
		{"ops", "ops.listen", cfg.Ops.Listen, 5},
	}
	if cfg.Ops.MetricsListen != "" {
		list = append(list, door{"metrics", "ops.metrics_listen", cfg.Ops.MetricsListen, 5})
	}
	return list
}

// doors are the listeners of the service, open.
type doors struct {
	grpc, http, ops *server.Bounded
	metrics         *server.Bounded // nil where metrics are at ops
	apiTLS, webTLS  *certs.Certs    // nil where there is no TLS
}

// openDoors reads the certificates and opens the listeners, each for a share of
// the file descriptors that the process may have; the rest is for what it opens
// itself. closing is given what is to be closed at the end.
func openDoors(ctx context.Context, cfg *config.Config, listen listenFunc, closing func(func() error), log *slog.Logger) (*doors, error) {
	d := new(doors)
	var err error
	if d.apiTLS, d.webTLS, err = loadTLS(cfg, log); err != nil {
		return nil, err
	}
	for _, one := range doorsOf(cfg) {
		lis, err := listen(ctx, one.address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; choose a free address, or stop what listens there", one.field, err)
		}
		bounded := server.Bound(lis, one.name, mostConnections()*one.share/100, log)
		closing(ignoreClosed(bounded.Close))
		switch one.name {
		case "grpc":
			d.grpc = bounded
		case "http":
			d.http = bounded
		case "ops":
			d.ops = bounded
		case "metrics":
			d.metrics = bounded
		}
	}
	return d, nil
}

// mostConnections is how many connections there may be in all, if it were for
// all listeners alike: as many as there are file descriptors, but not more than
// their memory is worth.
func mostConnections() int {
	const most = 8_000
	return min(fileDescriptors(), most)
}

// loadTLS reads the certificates of the listeners; nil for one without TLS.
func loadTLS(cfg *config.Config, log *slog.Logger) (api, web *certs.Certs, err error) {
	if t := cfg.GRPC.TLS; t != nil {
		if api, err = certs.New(certs.Config{Listener: "grpc", CertFile: t.CertFile, KeyFile: t.KeyFile, ClientCAFile: t.ClientCAFile, Logger: log}); err != nil {
			return nil, nil, fmt.Errorf("grpc.tls: %w", err)
		}
	}
	if t := cfg.HTTP.TLS; t != nil {
		// Verifiers are all kinds of libraries, some of them old.
		if web, err = certs.New(certs.Config{Listener: "http", CertFile: t.CertFile, KeyFile: t.KeyFile, MinVersion: tls.VersionTLS12, Logger: log}); err != nil {
			return nil, nil, fmt.Errorf("http.tls: %w", err)
		}
	}
	return api, web, nil
}

// certificates are those that are read again while the service runs.
func (d *doors) certificates() (list []*certs.Certs) {
	for _, c := range []*certs.Certs{d.apiTLS, d.webTLS} {
		if c != nil {
			list = append(list, c)
		}
	}
	return list
}

// follow takes up new certificates until ctx ends.
func (d *doors) follow() (parts []func(context.Context) error) {
	for _, c := range d.certificates() {
		parts = append(parts, c.Run)
	}
	return parts
}

// Reload takes up the certificates as they are in their files now. Where some
// cannot be used, the listener goes on with what it has, and the error says why.
func (d *doors) Reload(ctx context.Context) error {
	var all error
	for _, c := range d.certificates() {
		all = errors.Join(all, c.Reload(ctx))
	}
	return all
}

// webTLSConfig is nil where verifiers need no TLS.
func (d *doors) webTLSConfig() *tls.Config {
	if d.webTLS == nil {
		return nil
	}
	return d.webTLS.TLS()
}

// metricsServer serves /metrics at an address of its own; nil where it is with the
// rest.
func (d *doors) metricsServer(metrics http.Handler, log *slog.Logger) *server.Web {
	if d.metrics == nil {
		return nil
	}
	return server.NewWeb(server.MetricsHandler(metrics), nil, log)
}

// register adds what the listeners count to the metrics.
func (d *doors) register(m *telemetry.Metrics, api *server.Server) error {
	var all error
	add := func(err error) { all = errors.Join(all, err) }
	for _, c := range []struct {
		name  string
		certs *certs.Certs
	}{{"grpc", d.apiTLS}, {"http", d.webTLS}} {
		if c.certs == nil {
			continue
		}
		labels := map[string]string{"listener": c.name}
		add(m.Gauge("bulla_tls_certificate_not_after_timestamp_seconds", "When the listener's certificate ends.", labels,
			func() float64 { return float64(c.certs.NotAfter().Unix()) }))
		add(m.Counter("bulla_tls_reload_failures_total", "Times the listener's files were changed to what cannot be used: the log says why.", labels,
			func() float64 { return float64(c.certs.Failures()) }))
		add(m.Gauge("bulla_tls_reload_failing", "1 while the listener's files hold what cannot be used, so that those from before are in force.", labels,
			func() float64 { return boolean(c.certs.Failing()) }))
	}
	for _, l := range []struct {
		name string
		lis  *server.Bounded
	}{{"grpc", d.grpc}, {"http", d.http}, {"ops", d.ops}, {"metrics", d.metrics}} {
		if l.lis == nil {
			continue
		}
		labels := map[string]string{"listener": l.name}
		add(m.Gauge("bulla_connections", "Connections that are open.", labels, func() float64 { return float64(l.lis.Open()) }))
		add(m.Gauge("bulla_connections_limit", "Connections that the listener takes.", labels, func() float64 { return float64(l.lis.Most()) }))
		add(m.Counter("bulla_connections_refused_total", "Connections that were closed at once, as there were as many as the listener takes.", labels,
			func() float64 { return float64(l.lis.Refused()) }))
	}
	add(m.Counter("bulla_connections_revoked_total", "Connections that stood when the CA of their caller was taken out of client_ca_file.", nil,
		func() float64 { return float64(api.Revocations()) }))
	return all
}
