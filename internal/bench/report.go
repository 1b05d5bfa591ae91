//go:build linux && cgo

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/bulla-project/bulla/internal/bench/measure"
)

// Report is one run, as -json prints it.
type Report struct {
	Time   time.Time
	Go     string // version
	CPU    string // model
	Cores  int
	Load   string // of the machine in the minute before, as /proc/loadavg has it
	Rounds int

	Sections []*Section
}

// Section is a table of the report.
type Section struct {
	Title string
	Rows  []Row        `json:",omitempty"`
	Parts []Part       `json:",omitempty"` // of which floors are made
	Rates []RateRow    `json:",omitempty"`
	Loads []LatencyRow `json:",omitempty"`
}

// Row is one comparison: processor time in µs for each operation, medians of
// the rounds.
type Row struct {
	Name  string
	Ours  float64
	Floor float64
	// Ratio is the median of the rounds' ratios, which lie between Low and
	// High.
	Ratio, Low, High float64
	Goal             float64 // of Ratio
	OK               bool

	// Peer is another way to do the same; its ratio is that to the floor too.
	Peer                  string  `json:",omitempty"`
	PeerMicros, PeerRatio float64 `json:",omitempty"`
	// Slower says that ours took no less than a peer that it should beat, by
	// the median of the rounds.
	Slower bool `json:",omitempty"`

	Allocs *Allocs `json:",omitempty"`
}

// Allocs are allocations for each operation.
type Allocs struct {
	Ours, Floor float64
	Peer        float64 `json:",omitempty"`
	Goal        float64 `json:",omitempty"` // of what Ours has more than Floor
}

// Part is processor time in µs of something that floors are made of.
type Part struct {
	Name   string
	Micros float64
}

// RateRow compares operations a second, medians of the rounds.
type RateRow struct {
	Name             string
	Ours, Other      float64
	Ratio, Low, High float64
	Goal             float64 `json:",omitempty"` // the least of Ratio
	OK               bool
}

// LatencyRow tells what callers see.
type LatencyRow struct {
	Name      string
	InFlight  int
	P50, P99  float64 // ms
	PerSecond float64
	Micros    float64 // processor time for each call
	Goal      float64 `json:",omitempty"` // of P99
	OK        bool
}

func newReport(rounds int) *Report {
	return &Report{
		Time: time.Now().UTC().Truncate(time.Second), Go: runtime.Version(), CPU: measure.CPUModel(),
		Cores: runtime.NumCPU(), Load: measure.LoadAverage(), Rounds: rounds,
	}
}

func (r *Report) section(title string) { r.Sections = append(r.Sections, &Section{Title: title}) }

func (r *Report) add(row Row) {
	s := r.Sections[len(r.Sections)-1]
	s.Rows = append(s.Rows, row)
}

func (r *Report) addPart(name string, micros float64) {
	s := r.Sections[len(r.Sections)-1]
	s.Parts = append(s.Parts, Part{name, micros})
}

func (r *Report) addLatency(row LatencyRow) {
	s := r.Sections[len(r.Sections)-1]
	s.Loads = append(s.Loads, row)
}

func (r *Report) addRate(row RateRow) {
	s := r.Sections[len(r.Sections)-1]
	s.Rates = append(s.Rates, row)
}

// newRate compares the throughput of ours to that of other.
func newRate(name string, goal float64, ours, other *contestant) RateRow {
	ratios := make([]float64, len(ours.spells))
	for round, s := range ours.spells {
		ratios[round] = s.rate / other.spells[round].rate
	}
	row := RateRow{
		Name: name, Ours: ours.perSecond(), Other: other.perSecond(),
		Ratio: measure.Median(ratios), Low: slices.Min(ratios), High: slices.Max(ratios), Goal: goal,
	}
	row.OK = row.Ratio >= goal
	return row
}

// newRow compares ours to the sum of floor.
func newRow(name string, goal float64, ours *contestant, floor ...*contestant) Row {
	ratios := ours.ratios(floor...)
	row := Row{
		Name: name, Ours: ours.micros(), Floor: sum(floor...),
		Ratio: measure.Median(ratios), Low: slices.Min(ratios), High: slices.Max(ratios), Goal: goal,
	}
	row.OK = row.Ratio <= goal
	return row
}

// writeJSON writes the report as one JSON object.
func (r *Report) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// writeText writes the report as tables.
func (r *Report) writeText(w io.Writer) error {
	var t bytes.Buffer
	fmt.Fprintf(&t, "%s, %d cores, %s, load %s; %s; medians of %d rounds\n", r.CPU, r.Cores, r.Go, r.Load, r.Time.Format("2006-01-02 15:04 MST"), r.Rounds)
	for _, s := range r.Sections {
		fmt.Fprintf(&t, "\n%s\n\n", s.Title)
		s.writeRows(&t)
		s.writeParts(&t)
		s.writeRates(&t)
		s.writeLoads(&t)
	}
	_, err := w.Write(t.Bytes())
	return err
}

func (s *Section) writeRows(t *bytes.Buffer) {
	if len(s.Rows) == 0 {
		return
	}
	peer := ""
	for _, r := range s.Rows {
		peer = cmp.Or(peer, r.Peer)
	}
	head := []string{"", "ours µs", "floor µs", "ratio", "(low–high)", "goal", "", "allocs", "floor's", "beyond", "goal", ""}
	if peer != "" {
		head = append(head, peer+" µs", "ratio", "allocs", "")
	}
	rows := [][]string{head}
	for _, r := range s.Rows {
		line := []string{
			r.Name, measure.Number(r.Ours), measure.Number(r.Floor), fmt.Sprintf("%.2f", r.Ratio), fmt.Sprintf("(%.2f–%.2f)", r.Low, r.High),
			fmt.Sprintf("%.2f", r.Goal), measure.Verdict(r.OK),
		}
		line = append(line, r.Allocs.columns()...)
		switch {
		case r.Peer != "":
			line = append(line, measure.Number(r.PeerMicros), fmt.Sprintf("%.2f", r.PeerRatio), r.Allocs.peer(), r.slower())
		case peer != "":
			line = append(line, "", "", "", "") // has not got it
		}
		rows = append(rows, line)
	}
	measure.WriteTable(t, rows)
}

// slower is what to see of Slower.
func (r Row) slower() string {
	if r.Slower {
		return "faster than ours"
	}
	return ""
}

// columns are allocs, floor's, beyond, goal and verdict.
func (a *Allocs) columns() []string {
	if a == nil {
		return []string{"", "", "", "", ""}
	}
	beyond := a.Ours - a.Floor
	goal, ok := "", ""
	if a.Goal > 0 {
		goal, ok = fmt.Sprintf("%.0f", a.Goal), measure.Verdict(beyond <= a.Goal)
	}
	return []string{fmt.Sprintf("%.0f", a.Ours), fmt.Sprintf("%.0f", a.Floor), fmt.Sprintf("%.0f", beyond), goal, ok}
}

// peer is the column of the peer's allocations.
func (a *Allocs) peer() string {
	if a == nil || a.Peer == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f", a.Peer)
}

func (s *Section) writeParts(t *bytes.Buffer) {
	if len(s.Parts) == 0 {
		return
	}
	rows := [][]string{{"the floor's parts", "µs"}}
	for _, p := range s.Parts {
		rows = append(rows, []string{p.Name, measure.Number(p.Micros)})
	}
	fmt.Fprintln(t)
	measure.WriteTable(t, rows)
}

func (s *Section) writeRates(t *bytes.Buffer) {
	if len(s.Rates) == 0 {
		return
	}
	rows := [][]string{{"", "ours/s", "other/s", "ratio", "(low–high)", "goal", ""}}
	for _, r := range s.Rates {
		goal, ok := "", ""
		if r.Goal > 0 {
			if goal, ok = fmt.Sprintf("≥ %.2f", r.Goal), "ok"; !r.OK {
				ok = "under"
			}
		}
		rows = append(rows, []string{
			r.Name, fmt.Sprintf("%.0f", r.Ours), fmt.Sprintf("%.0f", r.Other),
			fmt.Sprintf("%.2f", r.Ratio), fmt.Sprintf("(%.2f–%.2f)", r.Low, r.High), goal, ok,
		})
	}
	measure.WriteTable(t, rows)
}

func (s *Section) writeLoads(t *bytes.Buffer) {
	if len(s.Loads) == 0 {
		return
	}
	rows := [][]string{{"", "in flight", "p50 ms", "p99 ms", "goal", "", "tokens/s", "CPU µs"}}
	for _, l := range s.Loads {
		goal, ok := "", ""
		if l.Goal > 0 {
			goal, ok = measure.Number(l.Goal), measure.Verdict(l.OK)
		}
		rows = append(rows, []string{
			l.Name, strconv.Itoa(l.InFlight), fmt.Sprintf("%.2f", l.P50), fmt.Sprintf("%.2f", l.P99), goal, ok,
			fmt.Sprintf("%.0f", l.PerSecond), measure.Number(l.Micros),
		})
	}
	measure.WriteTable(t, rows)
}
