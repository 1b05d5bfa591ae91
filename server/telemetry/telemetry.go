// Package telemetry is what the service tells of itself in Prometheus metrics.
// Every label takes its values from a closed set: methods, codes, reasons,
// stages, algorithms and configured names, never a client or a caller.
package telemetry

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulla-project/bulla/server/seal"
)

// buckets reach from a software signature to a caller's patience, in seconds.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Metrics are the metrics of calls and of the way of a token.
type Metrics struct {
	rpcs   *prometheus.CounterVec
	rpc    *prometheus.HistogramVec
	stage  *prometheus.HistogramVec
	legacy *prometheus.CounterVec
	panics prometheus.Counter
	shakes prometheus.Counter
	reg    prometheus.Registerer
}

// New registers the metrics.
func New(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		rpcs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulla_rpcs_total", Help: "Calls by method, gRPC code and error reason.",
		}, []string{"method", "code", "reason"}),
		rpc: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bulla_rpc_seconds", Help: "Duration of calls by method.", Buckets: buckets,
		}, []string{"method"}),
		stage: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bulla_stage_seconds", Help: "Duration of each stage on the way of a token, by backend and algorithm where it has them.", Buckets: buckets,
		}, []string{"stage", "backend", "algorithm"}),
		legacy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulla_legacy_tokens_total", Help: "Tokens that were encrypted with a legacy algorithm.",
		}, []string{"issuer", "alg", "enc"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulla_panics_total", Help: "Panics caught in handlers.",
		}),
		shakes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulla_tls_handshake_failures_total", Help: "Callers turned away by TLS: no certificate, an expired one, or one of another CA.",
		}),
		reg: reg,
	}
	for _, c := range []prometheus.Collector{m.rpcs, m.rpc, m.stage, m.legacy, m.panics, m.shakes} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// RPC counts a call.
func (m *Metrics) RPC(method, code, reason string, took time.Duration) {
	name := method[strings.LastIndexByte(method, '/')+1:]
	m.rpcs.WithLabelValues(name, code, reason).Inc()
	m.rpc.WithLabelValues(name).Observe(took.Seconds())
}

// Panic counts a panic.
func (m *Metrics) Panic() { m.panics.Inc() }

// HandshakeFailed counts a caller that was turned away by TLS.
func (m *Metrics) HandshakeFailed() { m.shakes.Inc() }

// Stage measures a stage of a token.
func (m *Metrics) Stage(_ context.Context, t seal.Timing) {
	m.stage.WithLabelValues(string(t.Stage), t.Backend, t.Algorithm).Observe(t.Took.Seconds())
}

// Legacy counts a token that was encrypted with a legacy algorithm.
func (m *Metrics) Legacy(issuer, alg, enc string) {
	m.legacy.WithLabelValues(issuer, alg, enc).Inc()
}

// Gauge registers a value that is read when the metrics are.
func (m *Metrics) Gauge(name, help string, labels map[string]string, value func() float64) error {
	return m.reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
}

// Counter registers a total that is read when the metrics are.
func (m *Metrics) Counter(name, help string, labels map[string]string, value func() float64) error {
	return m.reg.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, value))
}
