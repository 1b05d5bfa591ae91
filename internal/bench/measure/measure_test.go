//go:build linux

package measure

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestMedianAndQuantiles(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{[]float64{5}, 5}, {[]float64{9, 1, 4}, 4}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := Median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.values, got, c.want)
		}
	}
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, c := range []struct {
		sorted []time.Duration
		q      float64
		want   time.Duration
	}{{hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred[:10], 0.99, 10}, {hundred[:1], 0.5, 1}} {
		if got := Quantile(c.sorted, c.q); got != c.want {
			t.Errorf("quantile(%d values, %v) = %d, want %d", len(c.sorted), c.q, got, c.want)
		}
	}
}

// A process that computes is charged for it, and one that sleeps is not.
func TestProcessorTimeOfAnotherProcess(t *testing.T) {
	start := func(script string) int {
		cmd := exec.Command("sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd.Process.Pid
	}
	busy, idle := start("while :; do :; done"), start("sleep 60")
	deadline := time.Now().Add(30 * time.Second)
	for {
		used, err := CPUTime(busy)
		if err != nil {
			t.Fatal(err)
		}
		if used > 50*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a busy process was charged %v", used)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if used, err := CPUTime(idle); err != nil || used > 40*time.Millisecond {
		t.Errorf("a sleeping process was charged %v, %v", used, err)
	}
	if used, err := CPUTime(os.Getpid()); err != nil || used <= 0 {
		t.Errorf("this process was charged %v, %v", used, err)
	}
	if _, err := CPUTime(1<<22 + 1); err == nil { // above the largest process number
		t.Error("a process that does not exist was charged")
	}
}
