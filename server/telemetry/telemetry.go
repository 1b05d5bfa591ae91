// Package telemetry is what the service tells of itself in Prometheus metrics.
// Every label takes its values from a closed set: methods, codes, reasons,
// stages, algorithms and configured names, never a client or a caller. Series that
// alerts are made of are there from the start (Expect): a counter whose first
// sample is 1 has never risen, as Prometheus sees it.
//
// Metrics that parts keep of themselves are registered where the parts are known
// (cmd/bulla). docs/observability.md explains all of them, and a test holds it to
// that.
package telemetry

import (
	"context"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/server/seal"
)

// buckets reach from a software signature to a caller's patience, in seconds.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Metrics are the metrics of calls, of the way of a token and of fetches.
type Metrics struct {
	rpcs    *prometheus.CounterVec
	rpc     *prometheus.HistogramVec
	flying  *prometheus.GaugeVec
	items   *prometheus.CounterVec
	tokens  *prometheus.CounterVec
	stage   *prometheus.HistogramVec
	legacy  *prometheus.CounterVec
	fetches *prometheus.CounterVec
	fetch   prometheus.Histogram
	panics  prometheus.Counter
	shakes  prometheus.Counter
	reg     prometheus.Registerer
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
		flying: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "bulla_rpc_in_flight", Help: "Calls that are under way by method.",
		}, []string{"method"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulla_tokens_total", Help: "Tokens issued by issuer and token kind.",
		}, []string{"issuer", "kind"}),
		items: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulla_items_total", Help: "Tokens of batches and streams by method, gRPC code and error reason.",
		}, []string{"method", "code", "reason"}),
		stage: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bulla_stage_seconds", Help: "Duration of each stage on the way of a token that went well, by backend and algorithm where it has them.", Buckets: buckets,
		}, []string{"stage", "backend", "algorithm"}),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulla_key_set_fetches_total", Help: "Fetches of client key sets by what came of them.",
		}, []string{"result"}),
		fetch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bulla_key_set_fetch_seconds", Help: "Duration of fetches of client key sets.", Buckets: buckets,
		}),
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
	for _, c := range []prometheus.Collector{m.rpcs, m.rpc, m.flying, m.items, m.tokens, m.stage, m.legacy, m.fetches, m.fetch, m.panics, m.shakes} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Begun counts a call as under way, until RPC is told of its end.
func (m *Metrics) Begun(method string) { m.flying.WithLabelValues(short(method)).Inc() }

// RPC counts a call that has ended.
func (m *Metrics) RPC(method, code, reason string, took time.Duration) {
	name := short(method)
	m.flying.WithLabelValues(name).Dec()
	m.rpcs.WithLabelValues(name, code, reason).Inc()
	m.rpc.WithLabelValues(name).Observe(took.Seconds())
}

// short is a method without its service.
func short(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }

// Item counts a token of a batch or a stream.
func (m *Metrics) Item(method, code, reason string) {
	m.items.WithLabelValues(short(method), code, reason).Inc()
}

// Panic counts a panic.
func (m *Metrics) Panic() { m.panics.Inc() }

// HandshakeFailed counts a caller that was turned away by TLS.
func (m *Metrics) HandshakeFailed() { m.shakes.Inc() }

// Stage measures a stage of a token. One that failed would only blur how long it
// takes: bulla_rpcs_total counts it, by its reason.
func (m *Metrics) Stage(_ context.Context, t seal.Timing) {
	if t.Reason != "" {
		return
	}
	m.stage.WithLabelValues(string(t.Stage), t.Backend, t.Algorithm).Observe(t.Took.Seconds())
}

// Begin is of seal.Tracker.
func (*Metrics) Begin(ctx context.Context) context.Context { return ctx }

// End is of seal.Tracker: it counts a token that was issued.
func (m *Metrics) End(_ context.Context, e seal.Ending) {
	if e.Reason == "" {
		m.tokens.WithLabelValues(e.Issuer, string(e.Kind)).Inc()
	}
}

// Fetched measures a fetch of a client's key set.
func (m *Metrics) Fetched(what keycache.Fetched, took time.Duration) {
	m.fetches.WithLabelValues(string(what)).Inc()
	m.fetch.Observe(took.Seconds())
}

// Legacy counts a token that was encrypted with a legacy algorithm.
func (m *Metrics) Legacy(issuer, alg, enc string) {
	m.legacy.WithLabelValues(issuer, alg, enc).Inc()
}

// Build tells which build this is.
func (m *Metrics) Build(version string) error {
	build := map[string]string{"version": version, "go_version": runtime.Version()}
	return m.Gauge("bulla_build_info", "Which build this is, in its labels; the value is 1.", build, func() float64 { return 1 })
}

// Gauge registers a value that is read when the metrics are.
func (m *Metrics) Gauge(name, help string, labels map[string]string, value func() float64) error {
	return m.reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
}

// Counter registers a total that is read when the metrics are.
func (m *Metrics) Counter(name, help string, labels map[string]string, value func() float64) error {
	return m.reg.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, value))
}
