package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
)

// benchRun is what "bulla bench -o json" prints, as far as it is looked at.
type benchRun struct {
	Mode        string
	Tokens      int
	Failed      int
	PerSecond   float64            `json:"tokens_per_second"`
	NotBegun    int                `json:"not_begun"`
	Interrupted bool               `json:"interrupted"`
	Latency     map[string]float64 `json:"latency_ms"`
	Histogram   []struct{ Count int }
	Errors      []struct {
		Code, Reason string
		Count        int
	}
}

func TestBench(t *testing.T) {
	t.Parallel()
	s := startMany(t)
	command := func(args ...string) *exec.Cmd {
		return s.Command(t, append(append([]string{"bench"}, args...), s.ConnectFlags(s.Leaf(t, limited))...)...)
	}
	for mode, flags := range map[string][]string{
		"unary":  {"--callers", "4", "--duration", "1s"},
		"batch":  {"--mode", "batch", "--batch-size", "16", "--callers", "2", "--count", "100"},
		"stream": {"--mode", "stream", "--streams", "2", "--callers", "16", "--rate", "50", "--duration", "1s"},
	} {
		t.Run(mode, func(t *testing.T) {
			before := len(s.AuditOf(t, "many-1"))
			cmd := command(append(flags, "--client", "many-1", "--warm-up", "0.1s", "-o", "json")...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr.Bytes())
			}
			var run benchRun
			if err := json.Unmarshal(out, &run); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if run.Mode != mode || run.Tokens == 0 || run.Failed != 0 || run.PerSecond == 0 || run.Latency["p50"] == 0 || run.Latency["max"] < run.Latency["p99.9"] || len(run.Errors) != 0 {
				t.Errorf("got %s", out)
			}
			if mode == "batch" && run.Tokens != 100 || mode == "stream" && run.Tokens+run.NotBegun != 50 {
				t.Errorf("%d tokens and %d not begun", run.Tokens, run.NotBegun)
			}
			if made := len(s.AuditOf(t, "many-1")) - before; made < run.Tokens {
				t.Errorf("it says %d tokens, and %d are on record", run.Tokens, made)
			}
		})
	}

	t.Run("a person reads it", func(t *testing.T) {
		cmd := command("--client", "many-1", "--callers", "2", "--duration", "1200ms", "--warm-up", "0")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr.Bytes())
		}
		for _, want := range []string{"unary, 2 callers, 1.", "  tokens ", " a second\n", "  failed            0   0.0 %", "latency  p50 ", "█"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("got\n%s\nwithout %q", out, want)
			}
		}
		if !strings.Contains(stderr.String(), " tokens/s  p99 ") {
			t.Errorf("said while it ran: %q", stderr.String())
		}
	})

	t.Run("a mistake is told at once", func(t *testing.T) {
		began := time.Now()
		out, err := command("--client", "many-none", "--duration", "1m").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "CLIENT_NOT_REGISTERED") {
			t.Errorf("got %v, %s", err, out)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
		out, err = command("--client", "many-1", "--claims", "/dev/null").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "CLAIMS_INVALID") {
			t.Errorf("got %v, %s", err, out)
		}
	})

	t.Run("an interrupt shows what there is", func(t *testing.T) {
		cmd := command("--client", "many-3", "--duration", "10m", "--warm-up", "0", "-o", "json")
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, func() error {
			if n := len(s.AuditOf(t, "many-3")); n < 20 {
				return errorf("%d tokens", n)
			}
			return nil
		})
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		var run benchRun
		if err := json.Unmarshal(out.Bytes(), &run); err != nil {
			t.Fatalf("%v: %s", err, out.Bytes())
		}
		if !run.Interrupted || run.Tokens == 0 || run.Failed != 0 {
			t.Errorf("got %s", out.Bytes())
		}
	})
}
