package trace

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/bulla-project/bulla/server/telemetry/trace/tracetest"
)

func TestLogLinesNameTheTrace(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(LogHandler(slog.NewJSONHandler(&out, nil))).With("part", "test")
	line := func(ctx context.Context) map[string]any {
		t.Helper()
		out.Reset()
		log.InfoContext(ctx, "text", "name", "value")
		var got map[string]any
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got["msg"] != "text" || got["name"] != "value" || got["part"] != "test" {
			t.Errorf("got the line %v", got)
		}
		return got
	}
	tr, _ := tracer(t, tracetest.New(t, nil))

	got := line(t.Context())
	if got["trace_id"] != nil || got["span_id"] != nil {
		t.Errorf("a line of no call has ids: %v", got)
	}
	ctx := tr.Call(incoming(t, "traceparent", sampled), method, false)
	span := trace.SpanContextFromContext(ctx)
	if got := line(ctx); got["trace_id"] != traceID || got["span_id"] != span.SpanID().String() || got["span_id"] == parentID {
		t.Errorf("a line of a call: %v, want the trace %s and the call's span", got, traceID)
	}
	tr.Called(ctx, nil)
	// The caller's trace is named where it is not traced here, its span is not.
	if got := line(tr.Call(incoming(t, "traceparent", dropped), method, false)); got["trace_id"] != traceID || got["span_id"] != nil {
		t.Errorf("a line of a call that is not traced: %v, want the trace %s", got, traceID)
	}
	out.Reset()
	log.WithGroup("g").Info("text")
	if out.Len() == 0 {
		t.Error("a group's line is lost")
	}
}
