package telemetry

import (
	"context"

	"github.com/bulla-project/bulla/server/seal"
)

// Spans makes spans of tokens: trace.Tracer.
type Spans interface {
	seal.Tracker
	Stage(ctx context.Context, t seal.Timing)
}

// WithSpans is m as an observer of tokens that makes spans of them too.
func (m *Metrics) WithSpans(spans Spans) seal.Observer { return traced{m, spans} }

// traced measures first: making a span takes a while.
type traced struct {
	*Metrics
	spans Spans
}

// Begin is of seal.Tracker.
func (t traced) Begin(ctx context.Context) context.Context { return t.spans.Begin(ctx) }

// Stage is of seal.Observer.
func (t traced) Stage(ctx context.Context, timing seal.Timing) {
	t.Metrics.Stage(ctx, timing)
	t.spans.Stage(ctx, timing)
}

// End is of seal.Tracker.
func (t traced) End(ctx context.Context, e seal.Ending) {
	t.Metrics.End(ctx, e)
	t.spans.End(ctx, e)
}
