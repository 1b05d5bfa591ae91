package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
)

// benchReport is what a run found, as -o json prints it.
type benchReport struct {
	Mode        string       `json:"mode"`
	Callers     int          `json:"callers"`
	BatchSize   int          `json:"batch_size,omitempty"` // of mode batch
	Streams     int          `json:"streams,omitempty"`    // of mode stream
	Rate        float64      `json:"rate,omitempty"`       // asked for; none in a closed loop
	WarmUp      float64      `json:"warm_up_seconds"`
	Seconds     float64      `json:"seconds"`
	Tokens      int64        `json:"tokens"`
	PerSecond   float64      `json:"tokens_per_second"`
	Failed      int          `json:"failed"`
	NotBegun    int          `json:"not_begun"`
	Interrupted bool         `json:"interrupted"`
	Latency     benchLatency `json:"latency_ms"`
	Histogram   []benchBar   `json:"histogram"`
	Errors      []benchError `json:"errors"`
}

type benchLatency struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

// benchBar counts the tokens that took at most UpTo, and longer than the bar
// before.
type benchBar struct {
	UpTo  float64 `json:"up_to_ms"`
	Count int64   `json:"count"`
}

type benchError struct {
	Code    string `json:"code"`
	Reason  string `json:"reason,omitempty"`
	Count   int    `json:"count"`
	Example string `json:"example"`
}

func millis(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }

// fill adds what was recorded.
func (b *benchReport) fill(r *record) {
	s, lasted := r.latencies.snapshot(), r.lasted().Seconds()
	b.Seconds = math.Round(lasted*1e3) / 1e3
	b.Tokens, b.Failed = s.total, r.failedSoFar()
	if lasted > 0 {
		b.PerSecond = math.Round(float64(s.total)/lasted*10) / 10
	}
	b.Latency = benchLatency{
		Mean: millis(s.mean), P50: millis(s.quantile(0.5)), P90: millis(s.quantile(0.9)), P99: millis(s.quantile(0.99)),
		P999: millis(s.quantile(0.999)), Max: millis(s.most),
	}
	b.Histogram, b.Errors = []benchBar{}, []benchError{}
	for _, one := range s.bars() {
		b.Histogram = append(b.Histogram, benchBar{millis(one.upTo), one.count})
	}
	for _, f := range r.kinds() {
		b.Errors = append(b.Errors, benchError{f.Code, f.Reason, f.Count, f.Example})
	}
}

func (b *benchReport) writeJSON(w io.Writer) error { return json.NewEncoder(w).Encode(b) }

// barWidth is that of the longest bar: the drawing is as wide as a terminal of 80
// columns takes.
const barWidth = 44

// writeText draws the report.
func (b *benchReport) writeText(w io.Writer) error {
	var t strings.Builder
	fmt.Fprintf(&t, "%s, %.1f s after %.1f s of warm-up\n\n", b.how(), b.Seconds, b.WarmUp)
	fmt.Fprintf(&t, "  tokens   %10d   %.1f a second\n", b.Tokens, b.PerSecond)
	fmt.Fprintf(&t, "  failed   %10d   %s\n", b.Failed, share(int64(b.Failed), b.Tokens+int64(b.Failed)))
	if b.NotBegun > 0 {
		fmt.Fprintf(&t, "  not begun%10d   no caller was free: give --callers more, or --rate less\n", b.NotBegun)
	}
	if b.Interrupted {
		fmt.Fprintf(&t, "  interrupted; this is what there was by then\n")
	}
	if b.Tokens > 0 {
		b.writeLatencies(&t)
	}
	b.writeErrors(&t)
	_, err := io.WriteString(w, t.String())
	return err
}

func (b *benchReport) how() string {
	how := fmt.Sprintf("%s, %s", b.Mode, counted(b.Callers, "caller"))
	switch b.Mode {
	case modeBatch:
		how += fmt.Sprintf(", batches of %d", b.BatchSize)
	case modeStream:
		how += ", " + counted(b.Streams, "stream")
	}
	if b.Rate > 0 {
		return how + fmt.Sprintf(", %g tokens a second asked for", b.Rate)
	}
	return how
}

// counted is a number of things.
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func (b *benchReport) writeLatencies(t *strings.Builder) {
	l := b.Latency
	fmt.Fprintf(t, "\n  latency  p50 %s   p90 %s   p99 %s   p99.9 %s   max %s\n\n", ms(l.P50), ms(l.P90), ms(l.P99), ms(l.P999), ms(l.Max))
	var most int64
	for _, one := range b.Histogram {
		most = max(most, one.Count)
	}
	for _, one := range b.Histogram {
		line := fmt.Sprintf("  %8s  %10d %7s  %s", "≤ "+inUnits(one.UpTo, "%g"), one.Count, share(one.Count, b.Tokens), drawn(one.Count, most))
		fmt.Fprintln(t, strings.TrimRight(line, " "))
	}
}

// drawn is a bar, in eighths of a column.
func drawn(n, most int64) string {
	eighths := int(math.Round(float64(n) / float64(most) * barWidth * 8))
	if n > 0 {
		eighths = max(eighths, 1)
	}
	bar := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		bar += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return bar
}

// ms writes milliseconds with three digits that count.
func ms(v float64) string {
	switch {
	case v >= 1 && v < 10:
		return inUnits(v, "%.2f")
	case v >= 10 && v < 100:
		return inUnits(v, "%.1f")
	}
	return inUnits(v, "%.3g")
}

// inUnits writes milliseconds in the unit that suits them.
func inUnits(v float64, format string) string {
	switch {
	case v < 1:
		return fmt.Sprintf(format+" µs", v*1e3)
	case v < 1000:
		return fmt.Sprintf(format+" ms", v)
	}
	return fmt.Sprintf(format+" s", v/1e3)
}

func share(n, of int64) string {
	if of == 0 {
		return "0 %"
	}
	percent := float64(n) / float64(of) * 100
	if n > 0 && percent < 0.05 {
		return "<0.1 %"
	}
	return fmt.Sprintf("%.1f %%", percent)
}

func (b *benchReport) writeErrors(t *strings.Builder) {
	if len(b.Errors) == 0 {
		return
	}
	fmt.Fprintf(t, "\n  errors, with the text of the first of each\n")
	for _, e := range b.Errors {
		fmt.Fprintf(t, "  %10d  %s\n", e.Count, strings.TrimSpace(e.Code+" "+e.Reason))
		fmt.Fprintf(t, "              %s\n", shortened(strings.Map(harmless, e.Example), 66))
	}
}

// shortened cuts a text that does not fit.
func shortened(text string, most int) string {
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}
	return string(runes[:most-1]) + "…"
}

// benchProgress tells once a second how a run goes.
type benchProgress struct {
	to       io.Writer
	terminal bool // one line is written over and over
	last     *snapshot
	began    time.Time
}

func newBenchProgress(to io.Writer) *benchProgress {
	p := &benchProgress{to: to}
	if file, ok := to.(*os.File); ok {
		info, err := file.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// run tells until done is closed.
func (p *benchProgress) run(done <-chan struct{}, r *record, warming bool) {
	p.began, p.last = time.Now(), r.latencies.snapshot()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.tell(r, warming)
		case <-done:
			if p.terminal {
				fmt.Fprint(p.to, "\r\x1b[K")
			}
			return
		}
	}
}

func (p *benchProgress) tell(r *record, warming bool) {
	now := r.latencies.snapshot()
	second := now.since(p.last)
	p.last = now
	line := fmt.Sprintf("%4.0f s  %8d tokens/s  p99 %s  %d failed", time.Since(p.began).Seconds(), second.total, ms(millis(second.quantile(0.99))), r.failedSoFar())
	if warming {
		line += "  (warming up)"
	}
	if p.terminal {
		fmt.Fprint(p.to, "\r\x1b[K"+line)
		return
	}
	fmt.Fprintln(p.to, line)
}
