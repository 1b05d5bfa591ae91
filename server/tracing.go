package server

import (
	"context"

	"google.golang.org/grpc"
)

// Tracer makes a span of each call that is to be traced: trace.Tracer. Whose
// they are and how many is its decision.
type Tracer interface {
	// Call begins the span of a call and returns the context to go on with.
	Call(ctx context.Context, method string, stream bool) context.Context
	// Caller notes who calls, once that is known.
	Caller(ctx context.Context, name string)
	// Called ends the span, with the status that the caller gets.
	Called(ctx context.Context, err error)
}

// traces reports whether calls of a method may be traced. Probes and reflection
// are not: nobody asks what they did.
func (s *Server) traces(method string) bool { return s.cfg.Tracer != nil && ours(method) }

// traceUnary is around all others: what they log has the ids of the trace.
func (s *Server) traceUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !s.traces(info.FullMethod) {
		return next(ctx, req)
	}
	ctx = s.cfg.Tracer.Call(ctx, info.FullMethod, false)
	res, err := next(ctx, req)
	s.cfg.Tracer.Called(ctx, err)
	return res, err
}

func (s *Server) traceStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if !s.traces(info.FullMethod) {
		return next(srv, stream)
	}
	ctx := s.cfg.Tracer.Call(stream.Context(), info.FullMethod, true)
	err := next(srv, traced{stream, ctx})
	s.cfg.Tracer.Called(ctx, err)
	return err
}

// traced is a stream with the span in its context.
type traced struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a gRPC stream is its context
}

func (s traced) Context() context.Context { return s.ctx }
