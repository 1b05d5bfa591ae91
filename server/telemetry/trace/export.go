package trace

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/time/rate"
)

// exporter sends spans to the collector, and keeps what goes wrong there to
// itself, the log and two numbers: OpenTelemetry would hand it to a global
// handler, which prints it.
type exporter struct {
	sdk.SpanExporter
	log    *slog.Logger
	rarely rate.Sometimes

	made, exported atomic.Uint64
	failing        atomic.Bool

	// ctx ends with stop, which cuts an export short that does not end.
	ctx  context.Context //nolint:containedctx // it is the life of the exporter
	stop context.CancelFunc
}

func newExporter(to sdk.SpanExporter, log *slog.Logger) *exporter {
	e := &exporter{SpanExporter: to, log: log, rarely: rate.Sometimes{First: 1, Interval: time.Minute}}
	e.ctx, e.stop = context.WithCancel(context.Background())
	return e
}

// ExportSpans is of sdk.SpanExporter. It never fails: spans that the collector
// does not take are lost.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.failing.Store(true)
		e.rarely.Do(func() {
			e.log.WarnContext(ctx, "the collector does not take spans, which are lost: calls go on; this is said once a minute", "spans", len(spans), "error", err)
		})
		return nil
	}
	e.exported.Add(uint64(len(spans)))
	if e.failing.Swap(false) {
		e.log.InfoContext(ctx, "the collector takes spans again")
	}
	return nil
}

// counting counts the spans that come to a processor.
type counting struct {
	sdk.SpanProcessor
	in *exporter
}

// OnEnd is of sdk.SpanProcessor.
func (c counting) OnEnd(s sdk.ReadOnlySpan) {
	c.in.made.Add(1)
	c.SpanProcessor.OnEnd(s)
}
