package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/server/admit"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/limit"
)

// Observer is told of every call.
type Observer interface {
	// Begun is told that a call of a method has begun, for which RPC is told when
	// it ends.
	Begun(method string)
	// RPC is told a call's method, gRPC code, error reason (empty if it went
	// well) and duration.
	RPC(method, code, reason string, took time.Duration)
	// Item is told the same of each token of a batch or a stream.
	Item(method, code, reason string)
	// Panic counts a panic that was caught.
	Panic()
	// HandshakeFailed counts a caller that was turned away by TLS.
	HandshakeFailed()
}

// pushback is the trailer by which gRPC clients are told when to try again
// (gRFC A6).
const pushback = "grpc-retry-pushback-ms"

// interceptors is what every call passes through, from the outside in.
func (s *Server) interceptors() (unary []grpc.UnaryServerInterceptor, stream []grpc.StreamServerInterceptor) {
	return []grpc.UnaryServerInterceptor{
			s.traceUnary,
			s.observeUnary,
			s.recoverUnary,
			s.identifyUnary,
			s.boundUnary,
		}, []grpc.StreamServerInterceptor{
			s.traceStream,
			s.observeStream,
			s.recoverStream,
			s.identifyStream,
		}
}

// observeUnary turns the error of a call into a status, counts it, and logs
// what the caller is not told.
func (s *Server) observeUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	began := time.Now()
	s.cfg.Observer.Begun(info.FullMethod)
	res, err := next(ctx, req)
	err = s.finish(ctx, info.FullMethod, began, err, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
	return res, err
}

func (s *Server) observeStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	began := time.Now()
	s.cfg.Observer.Begun(info.FullMethod)
	err := next(srv, stream)
	return s.finish(stream.Context(), info.FullMethod, began, err, stream.SetTrailer)
}

func (s *Server) finish(ctx context.Context, method string, began time.Time, err error, setTrailer func(metadata.MD)) error {
	if err == nil {
		s.cfg.Observer.RPC(method, codes.OK.String(), "", time.Since(began))
		return nil
	}
	if !ours(method) {
		s.cfg.Observer.RPC(method, status.Code(err).String(), "", time.Since(began))
		return err
	}
	st := statusOf(err)
	s.cfg.Observer.RPC(method, st.Code().String(), Reason(err), time.Since(began))
	s.log.LogAttrs(ctx, levelOf(st.Code(), err), "call failed",
		slog.String("rpc", method), slog.String("code", st.Code().String()),
		slog.String("reason", Reason(err)), slog.Any("error", err))
	for _, d := range st.Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			setTrailer(metadata.Pairs(pushback, strconv.FormatInt(retry.GetRetryDelay().AsDuration().Milliseconds(), 10)))
		}
	}
	return st.Err()
}

// levelOf keeps what callers do wrong out of the operator's way.
// Calls that were turned away are too many for a line each: package admit has one
// for them now and then, and the metrics count them.
func levelOf(code codes.Code, err error) slog.Level {
	if errors.Is(err, admit.ErrOverloaded) || errors.Is(err, limit.ErrExceeded) {
		return slog.LevelDebug
	}
	switch code {
	case codes.Internal:
		return slog.LevelError
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// recoverUnary keeps the process alive through a panic in a handler. The
// caller learns nothing of it; the log gets the stack.
func (s *Server) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (res any, err error) {
	defer s.caught(ctx, info.FullMethod, &err)
	return next(ctx, req)
}

func (s *Server) recoverStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer s.caught(stream.Context(), info.FullMethod, &err)
	return next(srv, stream)
}

func (s *Server) caught(ctx context.Context, method string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	s.cfg.Observer.Panic()
	// The value may hold what a request held; its type and the stack do not.
	s.log.ErrorContext(ctx, "panic", "rpc", method, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
	*err = fmt.Errorf("panic in %s", method)
}

// call is what is known of a call before its request is looked at.
type call struct {
	rpc, caller string
	until       time.Time // when the caller's certificate ends; zero for never
}

type callKey struct{}

func callOf(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// identifyUnary finds out who calls. Health checks and reflection need no
// identity beyond the connection's certificate.
func (s *Server) identifyUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := s.identify(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) identifyStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := s.identify(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if !ours(info.FullMethod) {
		var cancel, release context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.watching, cancel)()
		ctx, release = whileIdentified(ctx)
		defer release()
	}
	return next(srv, identified{stream, ctx})
}

// longestCall bounds a call whose caller names no deadline: a signing backend
// that hangs must not collect them.
const longestCall = 15 * time.Second

func (s *Server) boundUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if _, ok := ctx.Deadline(); ok {
		return next(ctx, req)
	}
	ctx, cancel := context.WithTimeout(ctx, longestCall)
	defer cancel()
	return next(ctx, req)
}

// identified is a stream with the identity in its context.
type identified struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a gRPC stream is its context
}

func (s identified) Context() context.Context { return s.ctx }

func (s *Server) identify(ctx context.Context, method string) (context.Context, error) {
	if !ours(method) {
		if err := s.standing(ctx); err != nil {
			return nil, statusOf(err).Err()
		}
		return ctx, nil
	}
	caller, until, err := s.caller(ctx)
	if err != nil {
		if failed := s.cfg.Auditor.Record(ctx, audit.Event{Outcome: audit.Denied, RPC: method, Reason: Reason(err)}); failed != nil {
			s.log.ErrorContext(ctx, "denial not audited", "rpc", method, "error", failed)
		}
		return nil, err
	}
	if s.cfg.Tracer != nil {
		s.cfg.Tracer.Caller(ctx, caller)
	}
	return context.WithValue(ctx, callKey{}, call{rpc: method, caller: caller, until: until}), nil
}

// caller is the identity in the verified certificate of the connection, and when
// that ends. In development, where there is none, everybody is the development
// caller.
func (s *Server) caller(ctx context.Context) (name string, until time.Time, err error) {
	if s.cfg.Plaintext {
		return authz.DevelopmentCaller, time.Time{}, nil
	}
	if err := s.standing(ctx); err != nil {
		return "", time.Time{}, err
	}
	c := connectionOf(ctx)
	return c.caller, c.until, c.noName
}

// standing returns nil while the connection is worth the certificate that it was
// made with.
func (s *Server) standing(ctx context.Context) error {
	if s.cfg.Plaintext {
		return nil
	}
	c := connectionOf(ctx)
	if c == nil {
		return authz.ErrNoIdentity // there is no call without a handshake
	}
	return c.standing(s.cfg.TLS.Authorities())
}

// connectionOf is the connection of a call; nil if it has no TLS.
func connectionOf(ctx context.Context) *connection {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	c, _ := p.AuthInfo.(*connection)
	return c
}

// ours reports whether a method belongs to this API, and not to the services
// that come with gRPC.
func ours(method string) bool { return strings.HasPrefix(method, "/bulla.v1.") }
