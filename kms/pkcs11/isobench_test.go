//go:build cgo

package pkcs11

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// BenchmarkIsolation sets signatures by a worker process against the same in
// this process: callers with deadlines, as many as said, in rounds of one and the
// other in turn. It reports the medians of signatures a second and of processor
// time for each (of both processes together), and the medians of the ratios
// isolated/direct of the former and direct/isolated of the latter. On a machine
// that is busy with other things only the second means something, as two
// processes get more of it than one. Run it with -benchtime=1x.
func BenchmarkIsolation(b *testing.B) {
	const rounds, round = 11, 400 * time.Millisecond
	hsm := softhsmtest.New(b, "bench")
	hsm.GenerateKey("ES256", "01", kms.ES256)
	hsm.GenerateKey("RS256", "02", kms.RS256)
	message := make([]byte, 600)
	direct := start(b, hsm, func(c *Config) { c.Sessions = 0 })
	worker := start(b, hsm, func(c *Config) { c.Sessions = 0 }, isolated())
	pid := workerPID(b, worker)

	for _, alg := range []kms.Algorithm{kms.RS256, kms.ES256} {
		keys := [2]kms.Key{direct.key(b, "object="+string(alg), alg), worker.key(b, "object="+string(alg), alg)}
		for _, callers := range []int{16, 1} {
			b.Run(fmt.Sprintf("%s/%d", alg, callers), func(b *testing.B) {
				for b.Loop() {
					var rates, costs [2][]float64
					var faster, cheaper []float64
					for n := range rounds {
						for side, k := range keys {
							before := cpuTime(b) + cpuOf(b, pid)
							signed, took := hammer(b, k, message, callers, round)
							rates[side] = append(rates[side], signed/took.Seconds())
							costs[side] = append(costs[side], float64((cpuTime(b)+cpuOf(b, pid)-before).Microseconds())/signed)
						}
						faster = append(faster, rates[1][n]/rates[0][n])
						cheaper = append(cheaper, costs[0][n]/costs[1][n])
					}
					b.ReportMetric(median(rates[0]), "direct-sigs/s")
					b.ReportMetric(median(rates[1]), "isolated-sigs/s")
					b.ReportMetric(median(faster), "isolated/direct")
					b.ReportMetric(median(costs[0]), "direct-cpu-µs")
					b.ReportMetric(median(costs[1]), "isolated-cpu-µs")
					b.ReportMetric(median(cheaper), "direct/isolated-cpu")
				}
			})
		}
	}
}

// workerPID is the process id of a backend's worker.
func workerPID(tb testing.TB, b *bench) int {
	tb.Helper()
	var pid int
	eventually(tb, "a worker", func() error {
		r := b.vault.(*remote)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.line == nil {
			return errFirstWorker
		}
		pid = r.line.pid
		return nil
	})
	return pid
}

// cpuOf is the processor time that another process has used (proc(5)).
func cpuOf(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after)
	var ticks time.Duration
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond // USER_HZ is 100
}

// hammer has so many callers sign for a while, and tells how many signatures
// they got in how much time.
func hammer(tb testing.TB, k kms.Key, message []byte, callers int, d time.Duration) (signed float64, took time.Duration) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var n atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range callers {
		wg.Go(func() {
			for time.Since(begin) < d {
				if _, err := k.Sign(ctx, message); err != nil {
					tb.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(n.Load()), time.Since(begin)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
