package trace

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxChildren is how many tokens of one call have spans below that of the call:
// as many as a batch may have.
const maxChildren = 256

// call is what is known of a call whose tokens may be traced. Calls that are not
// traced have none.
type call struct {
	span trace.Span // that of the call; nil for a stream that is not traced itself
	// forced says that its caller asked for it.
	forced bool
	// own says that tokens beyond maxChildren are traces of their own.
	own  bool
	left atomic.Int64 // of maxChildren
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// Call begins the span of a call of a method such as "/bulla.v1.TokenService/Sign",
// if it is to be traced, and returns the context to go on with. The metadata of
// the call is in ctx.
func (t *Tracer) Call(ctx context.Context, method string, stream bool) context.Context {
	parent := parentOf(ctx)
	switch {
	case !parent.IsValid() && !t.chosen():
		if stream { // each of its tokens has its chance
			return context.WithValue(ctx, callKey{}, &call{own: true})
		}
		return ctx
	case parent.IsValid() && (!parent.IsSampled() || !t.forced.Allow()):
		// Log lines name the trace all the same: its caller has it.
		return trace.ContextWithRemoteSpanContext(ctx, parent.WithTraceFlags(0))
	case parent.IsValid():
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	c := &call{own: stream, forced: parent.IsValid()}
	name := strings.TrimPrefix(method, "/")
	service, rpc, _ := strings.Cut(name, "/")
	ctx, c.span = t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", rpc),
	))
	c.left.Store(maxChildren)
	return context.WithValue(ctx, callKey{}, c)
}

// Caller notes who calls.
func (t *Tracer) Caller(ctx context.Context, name string) {
	if c := callOf(ctx); c != nil && c.span != nil {
		c.span.SetAttributes(attribute.String(attrCaller, name))
	}
}

// Called ends the span of a call, with the status that its caller gets. ctx is
// that of Call.
func (t *Tracer) Called(ctx context.Context, err error) {
	c := callOf(ctx)
	if c == nil || c.span == nil {
		return
	}
	st := status.Convert(err)
	c.span.SetAttributes(attribute.Int64("rpc.grpc.status_code", int64(st.Code())))
	if err != nil {
		reason := st.Code().String()
		for _, d := range st.Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				reason = info.GetReason()
			}
		}
		c.span.SetAttributes(attribute.String(attrReason, reason))
		if fault(st.Code()) {
			c.span.SetStatus(otelcodes.Error, reason)
		}
	}
	c.span.End()
}

// fault reports whether a code is the service's fault, as OpenTelemetry's
// conventions for the server's side of gRPC have it. What a caller does wrong is
// no error of the span.
func fault(code codes.Code) bool {
	switch code {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}

// maxTraceState is the longest tracestate that is passed on to the collector, in
// bytes (W3C Trace Context, section 3.3.1.5: what everybody has to pass on).
const maxTraceState = 512

// parentOf is the caller's span, which is not valid if the call has none.
func parentOf(ctx context.Context) trace.SpanContext {
	parent := metadata.ValueFromIncomingContext(ctx, "traceparent")
	if len(parent) != 1 { // section 3.2: more than one is none
		return trace.SpanContext{}
	}
	h := header{parent: parent[0]}
	if state := strings.Join(metadata.ValueFromIncomingContext(ctx, "tracestate"), ","); len(state) <= maxTraceState {
		h.state = state
	}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), h))
}

// header is a call's trace context as propagation reads it.
type header struct{ parent, state string }

// Get is of propagation.TextMapCarrier.
func (h header) Get(key string) string {
	switch key {
	case "traceparent":
		return h.parent
	case "tracestate":
		return h.state
	}
	return ""
}

// Set is of propagation.TextMapCarrier. Nothing is written.
func (header) Set(string, string) {}

// Keys is of propagation.TextMapCarrier.
func (header) Keys() []string { return []string{"traceparent", "tracestate"} }

// at is when a span begins or ends.
func at(when time.Time) trace.SpanEventOption { return trace.WithTimestamp(when) }
