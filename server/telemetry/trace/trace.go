// Package trace makes OpenTelemetry traces of calls and tokens, and sends them
// to a collector by OTLP over gRPC.
//
// A call is one server span. Below it each token is a span "bulla.token", and
// each of its stages (see server/seal) one below that: bulla.recipient,
// bulla.prepare, bulla.sign and so on. A batch has a span for each of its items.
// A stream has one for each of its first messages; it may last for days, so
// further messages are traces of their own, sampled each by itself and linked to
// the span of the stream.
//
// # Who decides what is traced
//
// A call with a traceparent (W3C Trace Context) is traced if its caller traces
// it, and not if he does not; of all others the configured share is. So a caller
// decides for himself, within a bound: what callers ask for beyond maxForced a
// second is not traced. He cannot turn the share of others into more or less of
// theirs, and nothing of his but his identity, the names in his request, his
// trace id and up to 512 bytes of tracestate reach the collector. Traces are for
// finding out what is slow. They are no record: a caller can keep his calls out
// of them. The record is the audit log.
//
// # What it promises
//
//   - A collector that is slow, hangs or is gone delays no call and fails none:
//     spans wait in a queue of bounded size, and what does not fit is lost. The
//     log says so once a minute at most.
//   - A span holds names, algorithms, key ids, times and the reason of a failure
//     as the API names it. It never holds a token, a claim, a secret or the text
//     of an error. That it names client and caller is what sets it apart from
//     metrics: each span stands for one call, so they cost nothing there, and it
//     is the first that is asked of a slow call.
//   - Trace ids go to nobody but the collector and the log: not to the hosts of
//     clients, and not to AWS.
//   - A call that is not traced costs a random number, and allocates nothing
//     unless it has a traceparent.
//
// LogHandler puts the ids into log lines.
//
// No global of OpenTelemetry is set. Of its environment variables
// OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are for naming a replica, and
// OTEL_EXPORTER_OTLP_HEADERS for collectors that want a header; what the
// configuration says comes from the configuration.
package trace

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
)

// Config says where spans go, and how many there are.
type Config struct {
	// Endpoint is the collector's host:port. Required.
	Endpoint string
	// CAFile holds the CA certificates, in PEM, that the collector's certificate
	// is issued by. Default: "", which is the system's.
	CAFile string
	// Insecure sends spans without TLS. Default: false.
	Insecure bool
	// Sample is the share of the calls without a traceparent that is traced, from
	// 0 to 1. Default: 0, none.
	Sample float64
	// Version is that of the service, for the collector. Default: none.
	Version string
	// Logger hears of spans that the collector does not take. Default: none.
	Logger *slog.Logger
}

const (
	// maxQueue is how many spans wait for the collector, and maxBatch how many go
	// at once: 2 MiB or so, and a quarter of that.
	maxQueue = 2048
	maxBatch = 512
	// flushEvery is how often they go, if there are fewer.
	flushEvery = time.Second
	// exportTime is how long the collector has for a batch, all attempts
	// together.
	exportTime = 5 * time.Second
	// flushTime is how long Shutdown waits for the collector.
	flushTime = 3 * time.Second

	// maxForced is how many spans of calls and tokens a second callers may ask
	// for, all of them together. A call has two of these: about a hundred calls.
	maxForced = 200
)

// Tracer makes spans. It is safe for concurrent use.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	export   *exporter
	sample   float64
	forced   *rate.Limiter
	log      *slog.Logger
}

// New makes a Tracer. It does not wait for the collector, which may come later.
// The caller calls Shutdown at the end.
func New(ctx context.Context, cfg Config) (*Tracer, error) {
	if cfg.Endpoint == "" || cfg.Sample < 0 || cfg.Sample > 1 {
		return nil, errors.New("trace: an endpoint and a share from 0 to 1 are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	security := otlptracegrpc.WithInsecure()
	if !cfg.Insecure {
		creds, err := transport(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("trace: %w", err)
		}
		security = otlptracegrpc.WithTLSCredentials(creds)
	}
	about, err := describe(ctx, cfg.Version)
	if err != nil {
		return nil, fmt.Errorf("trace: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otlp, err := otlptracegrpc.New(ctx,
		otlptracegrpc.WithEndpoint(cfg.Endpoint), security, otlptracegrpc.WithTimeout(exportTime),
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
			Enabled: true, InitialInterval: exportTime / 10, MaxInterval: exportTime / 2, MaxElapsedTime: exportTime,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	export := newExporter(otlp, cfg.Logger)
	provider := sdk.NewTracerProvider(
		sdk.WithSpanProcessor(counting{sdk.NewBatchSpanProcessor(export,
			sdk.WithMaxQueueSize(maxQueue), sdk.WithMaxExportBatchSize(maxBatch),
			sdk.WithBatchTimeout(flushEvery), sdk.WithExportTimeout(exportTime),
		), export}),
		sdk.WithResource(about),
		// It is decided before a span is begun: see Call and Begin.
		sdk.WithSampler(sdk.AlwaysSample()),
		sdk.WithRawSpanLimits(sdk.SpanLimits{
			AttributeValueLengthLimit: maxValue, AttributeCountLimit: 32, LinkCountLimit: 1,
			EventCountLimit: 0, AttributePerEventCountLimit: 0, AttributePerLinkCountLimit: 0,
		}),
	)
	return &Tracer{
		provider: provider, tracer: provider.Tracer("github.com/bulla-project/bulla"), export: export,
		sample: cfg.Sample, forced: rate.NewLimiter(maxForced, maxForced), log: cfg.Logger,
	}, nil
}

// maxValue bounds an attribute, in bytes: what the names in requests are held to
// is shorter.
const maxValue = 1024

// transport is TLS to a collector.
func transport(caFile string) (credentials.TransportCredentials, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		doc, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("read the collector's CA: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(doc) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", caFile)
		}
	}
	return credentials.NewTLS(cfg), nil
}

// describe says which service the spans are of. Each life of a replica has an id
// of its own; the environment may name it better.
func describe(ctx context.Context, version string) (*resource.Resource, error) {
	return resource.New(ctx,
		resource.WithAttributes(
			attribute.String("service.name", "bulla"),
			attribute.String("service.version", version),
			attribute.String("service.instance.id", rand.Text()),
		),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv(),
	)
}

// chosen reports whether a call or token that nobody has decided on is traced.
func (t *Tracer) chosen() bool {
	return t.sample > 0 && mathrand.Float64() < t.sample //nolint:gosec // nothing hangs on it
}

// Stats counts spans.
type Stats struct {
	// Made is how many have ended, Exported how many of them the collector has
	// taken. What is missing waits, for a second or so, or was lost.
	Made, Exported uint64
}

// Stats counts spans.
func (t *Tracer) Stats() Stats {
	return Stats{Made: t.export.made.Load(), Exported: t.export.exported.Load()}
}

// Shutdown sends what waits, for as long as ctx allows and for 3 seconds at
// most. Spans that end later are lost. It may be called more than once.
func (t *Tracer) Shutdown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	err := t.provider.Shutdown(ctx)
	t.export.stop()
	if err != nil {
		t.log.WarnContext(ctx, "the last spans may not have reached the collector", "error", err)
	}
}
