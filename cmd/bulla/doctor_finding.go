package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/server/config"
)

// outcome is how a check went, in the word that is printed.
type outcome string

const (
	good   outcome = "ok"
	warned outcome = "warn" // works, and should be changed
	failed outcome = "FAIL"
)

// finding is what a check saw: one line of text, or one object of the JSON
// array.
type finding struct {
	// Check is what was looked at, from a fixed list: config, policy, files,
	// file, tls, module, token, login, key, wrapping, mechanism, probe, region,
	// service, store, audit, fetch, grants, listener, running, locations,
	// datakeys.
	Check string `json:"check"`
	// Subject is which one: a backend, a key, a file or a field of the
	// configuration.
	Subject string  `json:"subject"`
	Outcome outcome `json:"outcome"`
	Detail  string  `json:"detail"`
	// Advice is what to do; empty if nothing.
	Advice string `json:"advice"`

	// backend is its name, of a finding about a backend or its keys.
	backend string
}

// label begins the finding's line.
func (f finding) label() string {
	if f.backend != "" {
		return f.backend + ": " + f.Check
	}
	return f.Check
}

// text is the finding without its outcome and label.
func (f finding) text() string {
	var parts []string
	if f.Subject != f.backend {
		parts = append(parts, f.Subject)
	}
	for _, s := range []string{f.Detail, f.Advice} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

func count(all []finding, o outcome) (n int) {
	for _, f := range all {
		if f.Outcome == o {
			n++
		}
	}
	return n
}

// printer writes findings as aligned text.
type printer struct {
	out   io.Writer
	width int // of the longest label
}

// fit makes room for the longest label that a configuration can lead to, so
// that lines can be printed before all are known.
func (p *printer) fit(cfg *config.Config) {
	p.width = len("locations")
	for name := range cfg.Backends {
		p.width = max(p.width, len(name+": mechanism"))
	}
}

func (p *printer) print(found []finding) {
	for _, f := range found {
		_, _ = fmt.Fprintf(p.out, "%-4s  %-*s  %s\n", f.Outcome, p.width, oneLine(f.label()), oneLine(f.text()))
	}
}

// oneLine keeps on their line what tokens, files and other services say of
// themselves, and keeps their control sequences from the terminal.
func oneLine(s string) string {
	return strings.Map(harmless, strings.NewReplacer("\n", " ", "\t", " ").Replace(s))
}

func printJSON(out io.Writer, all []finding) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(all)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// plural is "1 key" or "3 keys".
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
