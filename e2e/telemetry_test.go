package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc/metadata"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/server/telemetry/trace/tracetest"
)

// collector starts a collector with a certificate of the shared CA, and returns
// the tracing section for it.
func collector(t *testing.T, sample float64) (*tracetest.Collector, harness.M) {
	t.Helper()
	leaf := shared.ca.Issue(t, harness.LeafConfig{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	c := tracetest.New(t, &tls.Config{Certificates: []tls.Certificate{leaf.Certificate}, MinVersion: tls.VersionTLS12})
	t.Cleanup(func() {
		if len(c.Spans()) == 0 {
			t.Error("no traces are left to be searched for secrets")
		}
		harness.Written("the traces", c.Text())
	})
	return c, harness.M{"endpoint": c.Address, "ca_file": shared.ca.File, "sample": sample}
}

// Trace ids of callers.
const (
	traceIssue    = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceUnwanted = "4bf92f3577b34da6a3ce929d0e0e4737"
	traceRegister = "4bf92f3577b34da6a3ce929d0e0e4738"
	traceUnknown  = "4bf92f3577b34da6a3ce929d0e0e4739"
	callersSpan   = "00f067aa0ba902b7"
)

// traced is a context of a caller that traces, or has decided not to.
func traced(t *testing.T, traceID string, sampled bool) context.Context {
	t.Helper()
	flags := "00"
	if sampled {
		flags = "01"
	}
	return metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+traceID+"-"+callersSpan+"-"+flags, "tracestate", "vendor=value")
}

// TestTracesAndMetricsOfAService are those of one service, as its traces tell on
// each other.
func TestTracesAndMetricsOfAService(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, shared.host.CA)
	c, section := collector(t, 0) // only what callers trace
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Host: host, Edit: func(tree harness.M) { tree["tracing"] = section }})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withURI("traced", host.Serve("/traced", harness.JWKS(anyKey()), time.Hour)))

	t.Run("the stages of a token", func(t *testing.T) { stagesOfAToken(t, s, c, admin) })
	t.Run("a failure", func(t *testing.T) { tracedFailure(t, s, c, admin, host) })
	t.Run("the page of metrics", func(t *testing.T) { metricsPage(t, s) })
	t.Run("a collector in trouble", func(t *testing.T) { collectorInTrouble(t, s, c, admin) })
}

func stagesOfAToken(t *testing.T, s *harness.Service, c *tracetest.Collector, admin *client.Client) {
	if _, err := admin.Tokens.SignAndEncrypt(traced(t, traceUnwanted, false), idToken("traced")); err != nil {
		t.Fatal(err)
	}
	mustIssue(t, admin, idToken("traced"))
	if _, err := admin.Tokens.SignAndEncrypt(traced(t, traceIssue, true), idToken("traced")); err != nil {
		t.Fatal(err)
	}
	const rpc = "bulla.v1.TokenService/SignAndEncrypt"
	stages := []string{"bulla.recipient", "bulla.prepare", "bulla.queue", "bulla.sign", "bulla.wrap", "bulla.encrypt", "bulla.audit"}
	spans := c.Wait(t, traceIssue, 2+len(stages))
	if got := spans[rpc]; got.ParentID != callersSpan || got.Kind != "SPAN_KIND_SERVER" || got.State != "vendor=value" || got.Attributes["bulla.caller"] != harness.Admin {
		t.Errorf("the span of the call is %+v, want one below that of its caller", got)
	}
	token := spans["bulla.token"]
	if token.ParentID != spans[rpc].SpanID {
		t.Errorf("the token is below %q, want the call %q", token.ParentID, spans[rpc].SpanID)
	}
	wantToken := map[string]string{
		"bulla.caller": harness.Admin, "bulla.issuer": harness.Issuer, "bulla.client_id": "traced", "bulla.token_kind": "ID_TOKEN",
		"bulla.signing_algorithm": "ES256", "bulla.signing_key_id": token.Attributes["bulla.signing_key_id"],
		"bulla.encryption_algorithm": "ECDH-ES", "bulla.encryption_key_id": token.Attributes["bulla.encryption_key_id"], "bulla.content_encryption": "A128GCM",
	}
	if diff := cmp.Diff(wantToken, token.Attributes); diff != "" || token.Attributes["bulla.signing_key_id"] == "" {
		t.Errorf("attributes of the token (-want +got):\n%s", diff)
	}
	// Times of spans are those of the clock, and durations are not, so that the two
	// may differ by a little.
	const slack = time.Millisecond
	before := spans[rpc].Began
	for _, name := range stages {
		span := spans[name]
		if span.ParentID != token.SpanID {
			t.Errorf("%s is below %q, want the token %q", name, span.ParentID, token.SpanID)
		}
		if span.Began.Before(before.Add(-slack)) || span.End.Before(span.Began) || span.End.After(spans[rpc].End.Add(slack)) {
			t.Errorf("%s is from %v to %v, want it after %v and within the call, which ends at %v", name, span.Began, span.End, before, spans[rpc].End)
		}
		before = span.End
	}
	if got := spans["bulla.sign"].Attributes; got["bulla.backend"] != "hsm" || got["bulla.algorithm"] != "ES256" {
		t.Errorf("attributes of the signature: %v", got)
	}
	if got := c.Service(); got["service.name"] != "bulla" || got["service.version"] == "" {
		t.Errorf("the spans are of %v", got)
	}
	// With a share of 0 nothing is here that no caller traces, though it was before.
	for _, span := range c.Spans() {
		if span.TraceID != traceIssue {
			t.Errorf("nobody asked for %+v", span)
		}
	}
}

func tracedFailure(t *testing.T, s *harness.Service, c *tracetest.Collector, admin *client.Client, host *harness.Host) {
	host.Set("/broken", harness.Answer{Status: 500})
	_, err := admin.ClientKeys.RegisterClientKey(traced(t, traceRegister, true), withURI("broken", host.URL("/broken")))
	mustFail(t, err, "CLIENT_KEYS_UNAVAILABLE")
	span := c.Wait(t, traceRegister, 1)["bulla.v1.ClientKeyService/RegisterClientKey"]
	if span.Failed != "CLIENT_KEYS_UNAVAILABLE" || span.Attributes["bulla.reason"] != "CLIENT_KEYS_UNAVAILABLE" || span.Attributes["rpc.grpc.status_code"] != "int_value:14" {
		t.Errorf("got %+v, want the reason", span)
	}
	if header := host.Header("/broken"); header == nil || header.Get("traceparent") != "" || header.Get("tracestate") != "" {
		t.Errorf("a client's host was sent the header %v, want one without a trace", header)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(s.WaitLog(t, `"msg":"call failed"`)), &line); err != nil {
		t.Fatal(err)
	}
	if line["trace_id"] != traceRegister || line["span_id"] != span.SpanID {
		t.Errorf("the log line is %v, want it to name the trace %s and the span %s", line, traceRegister, span.SpanID)
	}

	_, err = admin.Tokens.SignAndEncrypt(traced(t, traceUnknown, true), idToken("nobody-knows"))
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	spans := c.Wait(t, traceUnknown, 4)
	for _, name := range []string{"bulla.recipient", "bulla.token", "bulla.v1.TokenService/SignAndEncrypt"} {
		if got := spans[name].Attributes["bulla.reason"]; got != "CLIENT_NOT_REGISTERED" {
			t.Errorf("%s has the reason %q, want CLIENT_NOT_REGISTERED", name, got)
		}
	}
	if _, ok := spans["bulla.sign"]; ok {
		t.Error("a token was signed for a client that does not exist")
	}
}

// metricsPage holds docs/observability.md against what the service says, and that
// against the conventions of Prometheus.
func metricsPage(t *testing.T, s *harness.Service) {
	_, _, body := s.Get(t, s.Ops, "/metrics")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "bulla_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}

	page, err := os.ReadFile(filepath.Join("..", "docs", "observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]string) // when a metric is there, by its name
	for _, row := range regexp.MustCompile("(?m)^\\| `(bulla_[a-z0-9_]+)(?:\\{([a-z_,]*)\\})?` \\| ([^|]+) \\| ([^|]+) \\|$").FindAllStringSubmatch(string(page), -1) {
		name := row[1]
		if _, twice := told[name]; twice {
			t.Errorf("the page explains %s twice", name)
		}
		told[name] = strings.TrimSpace(row[4])
		checkLabels(t, body, name, row[2])
	}
	there := make(map[string]bool)
	for _, line := range regexp.MustCompile(`(?m)^# TYPE (bulla_\S+) `).FindAllStringSubmatch(body, -1) {
		there[line[1]] = true
		if _, ok := told[line[1]]; !ok {
			t.Errorf("the page does not explain %s", line[1])
		}
	}
	for name, when := range told {
		switch when {
		case "always", "PKCS#11", "tracing":
			if !there[name] {
				t.Errorf("the page explains %s (%s), and the service has none", name, when)
			}
		case "PostgreSQL", "once it happens":
		default:
			t.Errorf("%s: the page says that it is there %q, which means nothing here", name, when)
		}
	}
	if len(told) < 40 {
		t.Errorf("the page explains %d metrics only", len(told))
	}
}

// checkLabels holds the labels that the page names against those of the first
// sample.
func checkLabels(t *testing.T, body, name, labels string) {
	t.Helper()
	sample := regexp.MustCompile(`(?m)^` + name + `(?:_count)?(?:\{(.*)\})? [^ ]+$`).FindStringSubmatch(body)
	if sample == nil {
		return
	}
	var got []string
	for _, label := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(sample[1], -1) {
		got = append(got, label[1])
	}
	want := strings.Split(labels, ",")
	if labels == "" {
		want = nil
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s has the labels %v, and the page says %v", name, got, want)
	}
}

// collectorInTrouble is the end of the service: with a collector that hangs.
func collectorInTrouble(t *testing.T, s *harness.Service, c *tracetest.Collector, admin *client.Client) {
	issue := func(n int) {
		t.Helper()
		for range n {
			ctx, cancel := context.WithTimeout(traced(t, traceIssue, true), 10*time.Second)
			_, err := admin.Tokens.SignAndEncrypt(ctx, idToken("traced"))
			cancel()
			if err != nil {
				t.Fatalf("a call fails with the collector in trouble: %v", err)
			}
		}
	}
	c.Down()
	issue(50)
	s.WaitLog(t, "the collector does not take spans")
	metrics := s.Metrics(t)
	if made, exported := metrics["bulla_trace_spans_total"], metrics["bulla_trace_spans_exported_total"]; made < exported+50 || exported == 0 {
		t.Errorf("%v spans were made and %v exported, want 50 that are lost", made, exported)
	}
	c.Up(t)
	c.Hang()
	issue(50)
	began := time.Now()
	if code := s.Terminate(t); code != 0 {
		t.Errorf("exit code %d, want 0\n%s", code, s.Log())
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the end took %v", took)
	}
	if n := strings.Count(s.Log(), "the collector does not take spans"); n > 2 {
		t.Errorf("the log says %d times that spans are lost", n)
	}
}
