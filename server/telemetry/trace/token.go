package trace

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/bulla-project/bulla/server/seal"
)

// Attributes of spans.
const (
	attrCaller     = "bulla.caller"
	attrIssuer     = "bulla.issuer"
	attrClient     = "bulla.client_id"
	attrKind       = "bulla.token_kind"
	attrReason     = "bulla.reason"
	attrBackend    = "bulla.backend"
	attrAlgorithm  = "bulla.algorithm"
	attrSigning    = "bulla.signing_algorithm"
	attrSigningKey = "bulla.signing_key_id"
	attrEncryption = "bulla.encryption_algorithm"
	attrEncKey     = "bulla.encryption_key_id"
	attrContent    = "bulla.content_encryption"
)

var _ seal.Tracker = (*Tracer)(nil)

// Begin is of seal.Tracker: it begins the span of a token, if its call is traced.
func (t *Tracer) Begin(ctx context.Context) context.Context {
	c := callOf(ctx)
	if c == nil {
		return ctx
	}
	if c.span != nil && c.left.Add(-1) >= 0 {
		if c.forced && !t.forced.Allow() {
			return unrecorded(ctx)
		}
		ctx, _ = t.tracer.Start(ctx, "bulla.token")
		return ctx
	}
	if !c.own || !t.chosen() {
		return unrecorded(ctx)
	}
	options := []trace.SpanStartOption{trace.WithNewRoot()}
	if c.span != nil {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: c.span.SpanContext()}))
	}
	ctx, _ = t.tracer.Start(ctx, "bulla.token", options...)
	return ctx
}

// unrecorded is ctx without a span that records, so that the stages of a token
// without a span do not become the call's. The ids stay, for the log.
func unrecorded(ctx context.Context) context.Context {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return ctx
	}
	return trace.ContextWithSpanContext(ctx, trace.SpanContextFromContext(ctx))
}

// Stage makes the span of a stage that is over, if the token has one.
func (t *Tracer) Stage(ctx context.Context, s seal.Timing) {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return
	}
	_, span := t.tracer.Start(ctx, "bulla."+string(s.Stage), at(s.Began))
	set(span, attrBackend, s.Backend)
	set(span, attrAlgorithm, s.Algorithm)
	failed(span, s.Reason)
	span.End(at(s.Began.Add(s.Took)))
}

// End is of seal.Tracker: it ends the span of a token.
func (t *Tracer) End(ctx context.Context, e seal.Ending) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	set(span, attrCaller, e.Caller)
	set(span, attrIssuer, e.Issuer)
	set(span, attrClient, e.ClientID)
	set(span, attrKind, string(e.Kind))
	set(span, attrSigning, string(e.SigningAlgorithm))
	set(span, attrSigningKey, e.SigningKeyID)
	set(span, attrEncryption, string(e.EncryptionAlgorithm))
	set(span, attrEncKey, e.EncryptionKeyID)
	set(span, attrContent, string(e.ContentEncryption))
	failed(span, e.Reason)
	span.End()
}

// set sets an attribute that has a value.
func set(span trace.Span, key, value string) {
	if value != "" {
		span.SetAttributes(attribute.String(key, value))
	}
}

// failed notes why something failed, if it did.
func failed(span trace.Span, reason string) {
	if reason != "" {
		span.SetAttributes(attribute.String(attrReason, reason))
		span.SetStatus(otelcodes.Error, reason)
	}
}
