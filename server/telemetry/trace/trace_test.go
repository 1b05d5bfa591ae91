package trace

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/server/telemetry/trace/tracetest"
	"github.com/bulla-project/bulla/signer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const method = "/bulla.v1.TokenService/SignAndEncrypt"

// A caller's trace.
const (
	traceID  = "0af7651916cd43dd8448eb211c80319c"
	parentID = "b7ad6b7169203331"
	sampled  = "00-" + traceID + "-" + parentID + "-01"
	dropped  = "00-" + traceID + "-" + parentID + "-00"
)

// tracer is a Tracer to a collector, with the log that it writes.
func tracer(t *testing.T, c *tracetest.Collector, edit ...func(*Config)) (*Tracer, *logs) {
	t.Helper()
	l := &logs{}
	cfg := Config{Endpoint: c.Address, Insecure: true, Sample: 1, Version: "v1", Logger: slog.New(slog.NewJSONHandler(l, nil))}
	for _, e := range edit {
		e(&cfg)
	}
	tr, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Shutdown(context.Background()) })
	return tr, l
}

type logs struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func incoming(t testing.TB, pairs ...string) context.Context {
	t.Helper()
	return metadata.NewIncomingContext(t.Context(), metadata.Pairs(pairs...))
}

// issue makes the spans of a call that issues a token, and returns its trace id;
// empty if it is not traced.
func issue(ctx context.Context, tr *Tracer) string {
	ctx = tr.Call(ctx, method, false)
	tr.Caller(ctx, "spiffe://example.com/idp")
	token(ctx, tr)
	tr.Called(ctx, nil)
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		return span.TraceID().String()
	}
	return ""
}

// arrived are the spans of a trace, by name, once want of them have come.
func arrived(t *testing.T, tr *Tracer, c *tracetest.Collector, traceID string, want int) map[string]tracetest.Span {
	t.Helper()
	if err := tr.provider.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c.Wait(t, traceID, want)
}

func token(ctx context.Context, tr *Tracer) context.Context {
	ctx = tr.Begin(ctx)
	began := time.Now().Add(-time.Minute)
	tr.Stage(ctx, seal.Timing{Stage: seal.StageRecipient, Began: began, Took: time.Second})
	tr.Stage(ctx, seal.Timing{Stage: seal.StageSign, Backend: "hsm", Algorithm: "ES256", Began: began.Add(time.Second), Took: 2 * time.Second})
	tr.End(ctx, seal.Ending{
		Caller: "spiffe://example.com/idp", Issuer: "main", ClientID: "app-1", Kind: signer.IDToken, SigningKeyID: "kid", SigningAlgorithm: "ES256",
		EncryptionKeyID: "rp", EncryptionAlgorithm: "ECDH-ES", ContentEncryption: "A128GCM",
	})
	return ctx
}

func TestSpansOfACall(t *testing.T) {
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c)
	id := issue(incoming(t), tr)
	spans := arrived(t, tr, c, id, 4)
	call, tok, recipient, sign := spans["bulla.v1.TokenService/SignAndEncrypt"], spans["bulla.token"], spans["bulla.recipient"], spans["bulla.sign"]
	if call.ParentID != "" || tok.ParentID != call.SpanID || recipient.ParentID != tok.SpanID || sign.ParentID != tok.SpanID {
		t.Errorf("parents: %+v", spans)
	}
	if call.Kind != "SPAN_KIND_SERVER" || tok.Kind != "SPAN_KIND_INTERNAL" {
		t.Errorf("kinds %s and %s", call.Kind, tok.Kind)
	}
	for name, want := range map[string]map[string]string{
		"bulla.v1.TokenService/SignAndEncrypt": {
			"rpc.system": "grpc", "rpc.service": "bulla.v1.TokenService", "rpc.method": "SignAndEncrypt", "rpc.grpc.status_code": "int_value:0",
			"bulla.caller": "spiffe://example.com/idp",
		},
		"bulla.token": {
			"bulla.caller": "spiffe://example.com/idp", "bulla.issuer": "main", "bulla.client_id": "app-1", "bulla.token_kind": "ID_TOKEN",
			"bulla.signing_algorithm": "ES256", "bulla.signing_key_id": "kid", "bulla.encryption_algorithm": "ECDH-ES", "bulla.encryption_key_id": "rp", "bulla.content_encryption": "A128GCM",
		},
		"bulla.recipient": {},
		"bulla.sign":      {"bulla.backend": "hsm", "bulla.algorithm": "ES256"},
	} {
		if diff := cmp.Diff(want, spans[name].Attributes); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if spans[name].Failed != "" {
			t.Errorf("%s failed: %s", name, spans[name].Failed)
		}
	}
	if took := sign.End.Sub(sign.Began); took != 2*time.Second || !sign.Began.Equal(recipient.End) || time.Since(sign.Began) < 50*time.Second {
		t.Errorf("the signature was %v from %v on, want 2s after %v, a minute ago", took, sign.Began, recipient.End)
	}
	service := c.Service()
	if service["service.name"] != "bulla" || service["service.version"] != "v1" || service["service.instance.id"] == "" {
		t.Errorf("got the service %v", service)
	}
}

func TestEnvironmentNamesTheReplica(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=replica-3,zone=eu")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1") // the configuration has another
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c)
	arrived(t, tr, c, issue(incoming(t), tr), 4)
	if s := c.Service(); s["service.instance.id"] != "replica-3" || s["zone"] != "eu" || s["service.name"] != "bulla" {
		t.Errorf("got the service %v", s)
	}
}

func TestCallerDecidesForItself(t *testing.T) {
	for _, test := range []struct {
		name   string
		sample float64
		header []string
		traced bool
		joins  bool // the caller's trace
	}{
		{"sampled by the caller", 0, []string{"traceparent", sampled}, true, true},
		{"not sampled by the caller", 1, []string{"traceparent", dropped}, false, true},
		{"no caller's trace, all", 1, nil, true, false},
		{"no caller's trace, none", 0, nil, false, false},
		{"two parents", 1, []string{"traceparent", sampled, "traceparent", sampled}, true, false},
		{"a broken parent", 0, []string{"traceparent", "00-" + strings.Repeat("0", 32) + "-" + parentID + "-01"}, false, false},
		{"no parent", 0, []string{"traceparent", "x"}, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := tracetest.New(t, nil)
			tr, _ := tracer(t, c, func(c *Config) { c.Sample = test.sample })
			ctx := tr.Call(incoming(t, test.header...), method, false)
			token(ctx, tr)
			tr.Called(ctx, nil)
			tr.Shutdown(t.Context())
			if joins := trace.SpanContextFromContext(ctx).TraceID().String() == traceID; joins != test.joins {
				t.Errorf("in the caller's trace: %v, want %v", joins, test.joins)
			}
			if got := len(c.Spans()) > 0; got != test.traced {
				t.Errorf("traced: %v, want %v", got, test.traced)
			}
			if test.traced && test.joins {
				if got := c.Trace(traceID)["bulla.v1.TokenService/SignAndEncrypt"].ParentID; got != parentID {
					t.Errorf("the call's parent is %q, want %s", got, parentID)
				}
			}
		})
	}
}

func TestShareOfCallsIsTraced(t *testing.T) {
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c, func(c *Config) { c.Sample = 0.25 })
	n := 0
	for range 4000 {
		ctx := tr.Call(incoming(t), method, false)
		if trace.SpanContextFromContext(ctx).IsSampled() {
			n++
		}
		tr.Called(ctx, nil)
	}
	if n < 800 || n > 1200 { // more than seven standard deviations
		t.Errorf("%d of 4000 calls are traced, want about 1000", n)
	}
}

// TestCallersCannotForceWithoutBound: one that asks for every call gets some.
func TestCallersCannotForceWithoutBound(t *testing.T) {
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c, func(c *Config) { c.Sample = 0 })
	began, n := time.Now(), 0
	for range 20 * maxForced {
		if issue(incoming(t, "traceparent", sampled), tr) != "" {
			n++
		}
	}
	// Two for each call, its span and its token's; but one where there is no more.
	most := maxForced/2 + int(time.Since(began).Seconds()*maxForced) + 2
	if n < maxForced/4 || n > most {
		t.Errorf("%d calls were traced, want at most %d", n, most)
	}
}

func TestTraceStateIsBounded(t *testing.T) {
	for _, size := range []int{400, 600} {
		c := tracetest.New(t, nil)
		tr, _ := tracer(t, c)
		// Of several members, as one may have 256 bytes at most.
		state := "a=" + strings.Repeat("x", size/2) + ",b=" + strings.Repeat("y", size/2-5)
		issue(incoming(t, "traceparent", sampled, "tracestate", state), tr)
		spans := arrived(t, tr, c, traceID, 4)
		if got := spans["bulla.token"].State; (got == state) != (size <= maxTraceState) || got != "" && got != state {
			t.Errorf("of %d bytes of tracestate %d are passed on", size, len(got))
		}
	}
}

func TestFailuresAreReasonsOnly(t *testing.T) {
	const secret = "the PIN is 1234"
	withReason := func(code codes.Code, reason string) error {
		st, err := status.New(code, secret).WithDetails(&errdetails.ErrorInfo{Domain: "bulla", Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c)
	for _, test := range []struct {
		err            error
		reason, failed string
	}{
		{withReason(codes.Unavailable, "SIGNING_KEY_UNAVAILABLE"), "SIGNING_KEY_UNAVAILABLE", "SIGNING_KEY_UNAVAILABLE"},
		{withReason(codes.InvalidArgument, "CLAIMS_INVALID"), "CLAIMS_INVALID", ""},
		{status.Error(codes.Internal, secret), "Internal", "Internal"},
		{errors.New(secret), "Unknown", "Unknown"},
		{status.Error(codes.Canceled, secret), "Canceled", ""},
	} {
		ctx := tr.Call(incoming(t), method, false)
		inner := tr.Begin(ctx)
		tr.Stage(inner, seal.Timing{Stage: seal.StageSign, Began: time.Now(), Took: time.Second, Reason: test.reason})
		tr.End(inner, seal.Ending{Reason: test.reason})
		tr.Called(ctx, test.err)
		spans := arrived(t, tr, c, trace.SpanContextFromContext(ctx).TraceID().String(), 3)
		for name, span := range spans {
			want := test.reason // of the inner ones
			if strings.Contains(name, "/") {
				want = test.failed
			}
			if span.Attributes["bulla.reason"] != test.reason || span.Failed != want {
				t.Errorf("%v: %s has the reason %q and the status %q, want %q and %q", test.err, name, span.Attributes["bulla.reason"], span.Failed, test.reason, want)
			}
		}
	}
	if strings.Contains(c.Text(), secret) {
		t.Error("a span holds the text of an error")
	}
}

// TestTokensOfAStream: the first are the stream's, further ones stand for
// themselves.
func TestTokensOfAStream(t *testing.T) {
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c)
	ctx := tr.Call(incoming(t), "/bulla.v1.TokenService/StreamSignAndEncrypt", true)
	stream := trace.SpanContextFromContext(ctx)
	for range maxChildren {
		if inner := trace.SpanContextFromContext(token(ctx, tr)); inner.TraceID() != stream.TraceID() {
			t.Fatal("a token of the stream is not in its trace")
		}
	}
	further := trace.SpanContextFromContext(token(ctx, tr))
	if further.TraceID() == stream.TraceID() {
		t.Fatal("the trace of a stream has no end")
	}
	tr.Called(ctx, nil)
	spans := arrived(t, tr, c, further.TraceID().String(), 3)
	if got, want := spans["bulla.token"].Links, stream.TraceID().String()+"/"+stream.SpanID().String(); len(got) != 1 || got[0] != want {
		t.Errorf("got the links %v, want %s", got, want)
	}
}

// TestTokensOfAStreamThatIsNotTraced have their chance, unless its caller said
// no.
func TestTokensOfAStreamThatIsNotTraced(t *testing.T) {
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c, func(c *Config) { c.Sample = 0 })
	ctx := tr.Call(incoming(t), "/s/m", true)
	no := tr.Call(incoming(t, "traceparent", dropped), "/s/m", true)
	tr.sample = 1
	id := trace.SpanContextFromContext(token(ctx, tr)).TraceID().String()
	token(no, tr)
	tr.Called(ctx, nil)
	tr.Called(no, nil)
	tr.Shutdown(t.Context())
	if got := len(c.Trace(id)); got != 3 || len(c.Spans()) != 3 {
		t.Errorf("%d spans of the token and %d in all, want 3", got, len(c.Spans()))
	}
}

// TestTokensWithoutASpanAddNothing: their stages are not the call's.
func TestTokensWithoutASpanAddNothing(t *testing.T) {
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c)
	ctx := tr.Call(incoming(t), method, false)
	for range maxChildren + 10 {
		token(ctx, tr)
	}
	tr.Called(ctx, nil)
	tr.Shutdown(t.Context())
	if got, want := len(c.Spans()), 1+3*maxChildren; got != want {
		t.Errorf("%d spans, want %d", got, want)
	}
	if id := trace.SpanContextFromContext(token(ctx, tr)).TraceID(); id != trace.SpanContextFromContext(ctx).TraceID() {
		t.Error("the log of a token without a span does not name the trace of its call")
	}
}

func TestWhatIsNotTracedAllocatesNothing(t *testing.T) {
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c, func(c *Config) { c.Sample = 0 })
	ctx := incoming(t)
	if n := testing.AllocsPerRun(100, func() {
		ctx := tr.Call(ctx, method, false)
		tr.Caller(ctx, "caller")
		token(ctx, tr)
		tr.Called(ctx, nil)
	}); n != 0 {
		t.Errorf("%v allocations for a call that is not traced, want none", n)
	}
}

// TestCollectorThatIsInTroubleHarmsNobody: calls take as long as ever, spans are
// lost and counted, and the log says so once.
func TestCollectorThatIsInTroubleHarmsNobody(t *testing.T) {
	for _, test := range []struct {
		name    string
		trouble func(*tracetest.Collector)
	}{
		{"down", func(c *tracetest.Collector) { c.Down() }},
		{"hanging", func(c *tracetest.Collector) { c.Hang() }},
		{"refusing", func(c *tracetest.Collector) { c.Refuse(codes.InvalidArgument, "no") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := tracetest.New(t, nil)
			test.trouble(c)
			tr, l := tracer(t, c)
			longest := time.Duration(0)
			for range maxQueue {
				began := time.Now()
				issue(incoming(t), tr)
				longest = max(longest, time.Since(began))
			}
			if longest > 2*time.Second {
				t.Errorf("a call took %v", longest)
			}
			began := time.Now()
			tr.Shutdown(t.Context())
			if took := time.Since(began); took > flushTime+10*time.Second {
				t.Errorf("the end took %v", took)
			}
			if s := tr.Stats(); s.Made != 4*maxQueue || s.Exported != 0 {
				t.Errorf("got %+v, want %d made and none exported", s, 4*maxQueue)
			}
			harmless := func() error {
				if n := strings.Count(l.String(), "the collector does not take spans"); n != 1 {
					return fmt.Errorf("the log says %d times that spans are lost, want once:\n%s", n, l)
				}
				return nil
			}
			c.WaitFor(t, harmless)
		})
	}
}

func TestSpansGoOnWhenTheCollectorIsBack(t *testing.T) {
	c := tracetest.New(t, nil)
	c.Refuse(codes.InvalidArgument, "no")
	tr, l := tracer(t, c)
	issue(incoming(t), tr)
	c.WaitFor(t, func() error {
		if !strings.Contains(l.String(), "does not take spans") {
			return errors.New("the log does not say that spans are lost")
		}
		return nil
	})
	c.Refuse(codes.OK, "")
	id := issue(incoming(t), tr)
	arrived(t, tr, c, id, 4)
	tr.Shutdown(t.Context())
	if s := tr.Stats(); s.Made != 8 || s.Exported != 4 || !strings.Contains(l.String(), "takes spans again") {
		t.Errorf("got %+v, want 8 made and 4 exported, and a log that says so:\n%s", s, l)
	}
}

func TestShutdownSendsWhatWaits(t *testing.T) {
	c := tracetest.New(t, nil)
	tr, _ := tracer(t, c)
	id := issue(incoming(t), tr)
	tr.Shutdown(t.Context())
	if got := len(c.Trace(id)); got != 4 {
		t.Errorf("%d spans came before the end, want 4", got)
	}
	tr.Shutdown(t.Context()) // again, for those who defer it
}

func TestCollectorsCertificateIsChecked(t *testing.T) {
	ca, cert := certificate(t)
	otherCA, _ := certificate(t)
	c := tracetest.New(t, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	good, _ := tracer(t, c, func(c *Config) { c.Insecure, c.CAFile = false, ca })
	arrived(t, good, c, issue(incoming(t), good), 4)
	for name, edit := range map[string]func(*Config){
		"another CA":          func(c *Config) { c.Insecure, c.CAFile = false, otherCA },
		"those of the system": func(c *Config) { c.Insecure = false },
		"plaintext":           func(*Config) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr, _ := tracer(t, c, edit)
			issue(incoming(t), tr)
			tr.Shutdown(t.Context())
			if s := tr.Stats(); s.Made != 4 || s.Exported != 0 || c.Calls() != 1 {
				t.Errorf("got %+v, want no span to leave", s)
			}
		})
	}
}

// certificate makes a self-signed certificate for loopback, and a file with it.
func certificate(t *testing.T) (file string, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestBadConfigIsRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"no endpoint": {}, "a share above 1": {Endpoint: "c:4317", Sample: 2}, "a share below 0": {Endpoint: "c:4317", Sample: -1},
		"no such file": {Endpoint: "c:4317", CAFile: empty + "x"}, "no PEM": {Endpoint: "c:4317", CAFile: empty},
	} {
		if _, err := New(t.Context(), cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
