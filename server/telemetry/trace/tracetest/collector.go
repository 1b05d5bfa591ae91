// Package tracetest is a collector of traces for tests: the service of OTLP over
// gRPC, as collectors have it, that keeps what it gets, and can fall silent.
package tracetest

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// patience is how long spans are waited for: machines that test are busy.
const patience = 60 * time.Second

// Collector keeps the spans it gets.
type Collector struct {
	// Address is where it listens, host:port.
	Address string

	security []grpc.ServerOption

	mu      sync.Mutex // guards what follows
	server  *grpc.Server
	err     error
	hangs   bool
	calls   int
	all     []Span
	service map[string]string
	text    strings.Builder
}

// Span is a span as the collector got it.
type Span struct {
	Name, Kind, State         string
	TraceID, SpanID, ParentID string // in hex; no parent is ""
	Links                     []string
	Attributes                map[string]string
	// Failed is the description of an error status, "" for none.
	Failed     string
	Began, End time.Time
}

// New starts a collector on loopback, with TLS if there is any. It ends with the
// test.
func New(t testing.TB, security *tls.Config) *Collector {
	t.Helper()
	c := &Collector{Address: "127.0.0.1:0"}
	if security != nil {
		c.security = []grpc.ServerOption{grpc.Creds(credentials.NewTLS(security))}
	}
	c.Up(t)
	t.Cleanup(c.Down)
	return c
}

// Up starts a collector that is down, at the address that it had.
func (c *Collector) Up(t testing.TB) {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", c.Address)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Address = lis.Addr().String()
	server := grpc.NewServer(c.security...)
	c.server = server
	collectorpb.RegisterTraceServiceServer(server, &service{c: c})
	go func() { _ = server.Serve(lis) }() // ends with Down
}

// Down lets the collector refuse connections.
func (c *Collector) Down() {
	c.mu.Lock()
	server := c.server
	c.server = nil
	c.mu.Unlock()
	if server != nil {
		server.Stop()
	}
}

// Hang makes the collector take what it is given and say nothing.
func (c *Collector) Hang() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hangs = true
}

// Refuse makes the collector answer with an error; none if code is OK.
func (c *Collector) Refuse(code codes.Code, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = status.Error(code, text)
}

// Calls is how often the collector was called.
func (c *Collector) Calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls
}

// Spans are all spans that came.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.all...)
}

// Trace are the spans of a trace that came, by name; several of a name are one.
func (c *Collector) Trace(id string) map[string]Span {
	spans := make(map[string]Span)
	for _, s := range c.Spans() {
		if s.TraceID == id {
			spans[s.Name] = s
		}
	}
	return spans
}

// Service is what the spans said of the service they are of.
func (c *Collector) Service() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.service
}

// Text is all that came, as text to search in.
func (c *Collector) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// Wait waits until a trace has want spans, and returns them by name.
func (c *Collector) Wait(t testing.TB, traceID string, want int) map[string]Span {
	t.Helper()
	c.WaitFor(t, func() error {
		if got := len(c.Trace(traceID)); got < want {
			return fmt.Errorf("%d spans of the trace %s came, want %d", got, traceID, want)
		}
		return nil
	})
	return c.Trace(traceID)
}

// WaitFor waits until f returns nil.
func (c *Collector) WaitFor(t testing.TB, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// service is the collector's face.
type service struct {
	collectorpb.UnsafeTraceServiceServer
	c *Collector
}

var _ collectorpb.TraceServiceServer = (*service)(nil)

// Export is of the OTLP trace service.
func (s *service) Export(ctx context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	if s.c.called() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.c.take(req)
}

// called counts a call, and reports whether it is to hang.
func (c *Collector) called() (hangs bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return c.hangs
}

func (c *Collector) take(req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	c.text.WriteString(protojson.Format(req))
	for _, of := range req.GetResourceSpans() {
		c.service = attributes(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.all = append(c.all, read(span))
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func read(span *tracepb.Span) Span {
	s := Span{
		Name: span.GetName(), Kind: span.GetKind().String(), State: span.GetTraceState(),
		TraceID: hex.EncodeToString(span.GetTraceId()), SpanID: hex.EncodeToString(span.GetSpanId()), ParentID: hex.EncodeToString(span.GetParentSpanId()),
		Attributes: attributes(span.GetAttributes()),
		Began:      time.Unix(0, int64(span.GetStartTimeUnixNano())), //nolint:gosec // it fits until 2262
		End:        time.Unix(0, int64(span.GetEndTimeUnixNano())),   //nolint:gosec // likewise
	}
	if span.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		s.Failed = span.GetStatus().GetMessage()
	}
	for _, link := range span.GetLinks() {
		s.Links = append(s.Links, hex.EncodeToString(link.GetTraceId())+"/"+hex.EncodeToString(link.GetSpanId()))
	}
	return s
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	values := make(map[string]string)
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			values[a.GetKey()] = v.StringValue
		default:
			values[a.GetKey()] = strings.TrimSpace(a.GetValue().String())
		}
	}
	return values
}
