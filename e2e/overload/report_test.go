package overload

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
)

const page = "../../docs/load.md"

// write writes the figures of a full run.
func write(t *testing.T, results []result) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, intro, times, length().rounds, times, 100*theGoals.good, theGoals.latency, runtime.NumCPU(), 100*ofOneCPU.good, floodWorkers)
	b.WriteString("\n| backend | in flight | peak | unloaded p99 | goodput | of the peak | p99 | times unloaded | refusals told after |\n|" + strings.Repeat(" --- |", 9) + "\n")
	for _, res := range results {
		middle := func(of func(round) time.Duration) time.Duration {
			return ms(time.Duration(res.median(func(r round) float64 { return float64(of(r)) })))
		}
		fmt.Fprintf(&b, "| %s | %d | %.0f/s | %v | %.0f/s | %.0f %% | %v | %.1f | %v |\n", res.describe(), res.rig.sessions,
			res.median(func(r round) float64 { return r.peak.rate }), middle(func(r round) time.Duration { return at(r.unloaded.took, .99) }),
			res.median(func(r round) float64 { return r.overload.rate }), 100*res.median(round.goodput),
			middle(func(r round) time.Duration { return at(r.overload.took, .99) }), res.median(round.latency),
			middle(func(r round) time.Duration { return at(r.overload.told, .5) }))
	}
	b.WriteString("\n| backend | quiet caller alone, p99 | beside the flood, p99 | turned away | the flood gets | and is turned away |\n|" + strings.Repeat(" --- |", 6) + "\n")
	for _, res := range results {
		f := res.fair
		fmt.Fprintf(&b, "| %s | %v | %v | %d of %d | %.0f/s | %d times |\n", res.describe(), ms(at(f.alone.took, .99)), ms(at(f.beside.took, .99)),
			len(f.beside.told), f.beside.asked, f.flood.rate, len(f.flood.told))
	}
	harness.WritePart(t, page, "figures", b.String())
}

func (res *result) describe() string {
	if res.rig.each > 0 {
		return fmt.Sprintf("%s, %v a signature", res.rig.name, res.rig.each)
	}
	return res.rig.name
}

const intro = `<!-- Written by "make soak". Change e2e/overload/report_test.go and run it again. -->
The built binary is asked for ID tokens over gRPC with client certificates: first one call after the other (unloaded), then by twice as many
workers as there are places (the peak), then for %d times the peak at a steady rate, each call with a deadline of 5 s. The figures are medians of
%d such rounds. The goals: at %d times the peak at least %.0f %% of it comes out as tokens, and the 99th percentile of those who get one is at most
%.0f times that of the service with nothing else to do.

The machine has %d cores. The first HSM is SoftHSM behind a module of ours that lets each signature take its time, as a network HSM does. The
second is SoftHSM at its own speed, where what signs, what is refused and what is encrypted share the same CPU: the service has half of the
cores there, a place for each, and the callers the other half. Its goal is %.0f %%, and none for the percentile.

The second table is one caller beside another that has %d calls under way all the time, and does not care what it is told.
`
