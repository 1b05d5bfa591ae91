//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/bulla-project/bulla/internal/bench/measure"
)

// Goals of the issue that this tool was made for.
const (
	goalRatio  = 1.2 // of the largest size to the smallest
	goalMemory = 1.5 // KiB a warm client
)

// Report is one run, as -json prints it.
type Report struct {
	Time     time.Time
	Go       string // version
	CPU      string // model
	Cores    int
	Load     string // of the machine in the minute before
	Rounds   int
	Rate     int // calls a second
	Sizes    []int
	InFlight int

	Stores  []StoreTable
	Loads   []LoadRow
	Fetches []FetchRow
	Writes  []WriteRow
}

// StoreTable is what was measured on a store.
type StoreTable struct {
	Store string
	Rows  []Row
}

// Row is one metric at each size, the medians of the rounds.
type Row struct {
	Name   string
	Values []*float64 // nil where it was not measured
	// Ratio is that of the largest size to the smallest, the median of the
	// rounds' ratios, which lie between Low and High.
	Ratio, Low, High float64 `json:",omitempty"`
	Goal             float64 `json:",omitempty"` // of Ratio, or of the largest of Values
	OK               bool    `json:",omitempty"`
}

// LoadRow is a population read into a store.
type LoadRow struct {
	Store     string
	Clients   int
	Seconds   float64
	PerSecond float64
}

func newReport(b *bench) *Report {
	return &Report{
		Time: time.Now().UTC().Truncate(time.Second), Go: runtime.Version(), CPU: measure.CPUModel(),
		Cores: runtime.NumCPU(), Load: measure.LoadAverage(), Rounds: b.rounds, Rate: b.rate, Sizes: b.sizes, InFlight: b.inFlight,
	}
}

// addStore adds what was measured of the subjects of a store, the smallest
// first.
func (r *Report) addStore(name string, subjects []*subject) {
	table := StoreTable{Store: name}
	for _, m := range []metric{
		listening, firstToken, startCPU, coldMemory, warmMemory, liveMemory, warmClients, eachClient,
		p50, p99, callCPU, beyondWarm, coldCall, warmCall, missCost, storeRead, pageOf100, pageOf1000, pageAgain,
	} {
		table.Rows = append(table.Rows, newRow(m, subjects))
	}
	r.Stores = append(r.Stores, table)
}

// newRow compares what was measured of the subjects.
func newRow(m metric, subjects []*subject) Row {
	row := Row{Name: string(m)}
	for _, s := range subjects {
		var value *float64
		if list := s.samples[m]; len(list) > 0 {
			v := measure.Median(list)
			value = &v
		}
		row.Values = append(row.Values, value)
	}
	switch m {
	case eachClient:
		row.Goal, row.OK = goalMemory, true
		for _, v := range row.Values {
			row.OK = row.OK && (v == nil || *v <= goalMemory)
		}
		return row
	case warmMemory, liveMemory, warmClients, beyondWarm:
		return row // it grows with the number of warm clients
	}
	few, many := subjects[0].samples[m], subjects[len(subjects)-1].samples[m]
	if len(few) == 0 || len(few) != len(many) || len(subjects) == 1 {
		return row
	}
	ratios := make([]float64, len(few))
	for i := range few {
		ratios[i] = many[i] / few[i]
	}
	row.Ratio, row.Low, row.High = measure.Median(ratios), slices.Min(ratios), slices.Max(ratios)
	if m == firstToken || m == listening || m == p99 {
		row.Goal, row.OK = goalRatio, row.Ratio <= goalRatio
	}
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
	for _, s := range r.Stores {
		fmt.Fprintf(&t, "\nA service on %s, by the number of registered clients; %d calls a second, to all services in turn\n\n", s.Store, r.Rate)
		measure.WriteTable(&t, r.storeRows(s))
	}
	fmt.Fprintf(&t, "\nFetches from the jwks_uri of clients, sets being fresh for %v\n\n", freshFor)
	rows := [][]string{{"", "registered", "used", "seconds", "GETs", "of URLs", "GETs/s", "service's CPU µs a GET"}}
	for _, f := range r.Fetches {
		micros := ""
		if f.Micros > 0 {
			micros = measure.Number(f.Micros)
		}
		rows = append(rows, []string{
			f.Name, strconv.Itoa(f.Registered), strconv.Itoa(f.Used), fmt.Sprintf("%.0f", f.Seconds),
			strconv.Itoa(f.GETs), strconv.Itoa(f.URLs), fmt.Sprintf("%.0f", f.PerSecond), micros,
		})
	}
	measure.WriteTable(&t, rows)
	fmt.Fprintf(&t, "\nWrites, each durable when it is answered\n\n")
	rows = [][]string{{"", "writers", "writes/s", "p50 ms", "p99 ms"}}
	for _, x := range r.Writes {
		rows = append(rows, []string{
			x.Store + ": " + x.Name, strconv.Itoa(x.Writers), fmt.Sprintf("%.0f", x.PerSecond), measure.Number(x.P50), measure.Number(x.P99),
		})
	}
	measure.WriteTable(&t, rows)
	fmt.Fprintf(&t, "\nAn export read into an empty store (bulla registry import)\n\n")
	rows = [][]string{{"", "clients", "seconds", "clients/s"}}
	for _, l := range r.Loads {
		rows = append(rows, []string{l.Store, strconv.Itoa(l.Clients), fmt.Sprintf("%.1f", l.Seconds), fmt.Sprintf("%.0f", l.PerSecond)})
	}
	measure.WriteTable(&t, rows)
	_, err := w.Write(t.Bytes())
	return err
}

func (r *Report) storeRows(s StoreTable) [][]string {
	head := []string{""}
	for _, size := range r.Sizes {
		head = append(head, strconv.Itoa(size))
	}
	rows := [][]string{append(head, "ratio", "(low–high)", "goal", "")}
	for _, row := range s.Rows {
		line := []string{row.Name}
		for _, v := range row.Values {
			text := ""
			if v != nil {
				text = measure.Number(*v)
			}
			line = append(line, text)
		}
		ratio, between, goal, verdict := "", "", "", ""
		if row.Ratio > 0 {
			ratio, between = fmt.Sprintf("%.2f", row.Ratio), fmt.Sprintf("(%.2f–%.2f)", row.Low, row.High)
		}
		if row.Goal > 0 {
			goal, verdict = fmt.Sprintf("%.2f", row.Goal), measure.Verdict(row.OK)
		}
		rows = append(rows, append(line, ratio, between, goal, verdict))
	}
	return rows
}
