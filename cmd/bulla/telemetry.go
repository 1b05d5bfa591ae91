package main

import (
	"context"
	"log/slog"

	"github.com/bulla-project/bulla/server"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/server/telemetry"
	"github.com/bulla-project/bulla/server/telemetry/trace"
	"github.com/bulla-project/bulla/signer/keyring"
)

// tracing is the tracer, if there is one.
type tracing struct{ *trace.Tracer }

// openTracing makes a tracer if the configuration wants one.
func openTracing(ctx context.Context, cfg *config.Config, log *slog.Logger) (tracing, error) {
	c := cfg.Tracing
	if c.Endpoint == "" {
		return tracing{}, nil
	}
	t, err := trace.New(ctx, trace.Config{
		Endpoint: c.Endpoint, CAFile: c.CAFile, Insecure: c.Insecure, Sample: c.Sample, Version: version(), Logger: log,
	})
	return tracing{t}, err
}

// shutdown sends what is left.
func (t tracing) shutdown(ctx context.Context) {
	if t.Tracer != nil {
		t.Shutdown(ctx)
	}
}

// calls makes the spans of calls; nil for none.
func (t tracing) calls() server.Tracer {
	if t.Tracer == nil {
		return nil
	}
	return t.Tracer
}

// tokens is who observes tokens.
func (t tracing) tokens(m *telemetry.Metrics) seal.Observer {
	if t.Tracer == nil {
		return m
	}
	return m.WithSpans(t.Tracer)
}

// register adds what the tracer counts to the metrics.
func (t tracing) register(m *telemetry.Metrics) error {
	if t.Tracer == nil {
		return nil
	}
	if err := m.Counter("bulla_trace_spans_total", "Spans that have ended.", nil, func() float64 { return float64(t.Stats().Made) }); err != nil {
		return err
	}
	return m.Counter("bulla_trace_spans_exported_total", "Spans that the collector has taken.", nil, func() float64 { return float64(t.Stats().Exported) })
}

// registerService adds what is told of the service as a whole: its build, its
// backends, and its issuers' keys and tokens.
func registerService(m *telemetry.Metrics, cfg *config.Config, watch *backendWatch, issuers *issuer.Directory, keys *keyring.Keyring) error {
	var names []string
	for _, i := range issuers.All() {
		names = append(names, i.Name())
	}
	m.Expect(names, server.Faults())
	if err := m.Build(version()); err != nil {
		return err
	}
	for name, b := range cfg.Backends {
		err := m.Gauge("bulla_backend_up", "1 while the backend answers.", map[string]string{"backend": name, "kind": b.Kind()},
			func() float64 { return boolean(watch.up(name)) })
		if err != nil {
			return err
		}
	}
	return m.SigningKeys(keys, names)
}
