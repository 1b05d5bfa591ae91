package faults

import (
	"fmt"
	"maps"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
)

const page = "../../docs/faults.md"

// report is a run, to be printed.
type report struct {
	here, isolated, cloud []row
}

// write writes its part of the page. What missed its goal says so there too.
func (r *report) write(t *testing.T) {
	t.Helper()
	version, err := exec.CommandContext(t.Context(), "softhsm2-util", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, intro, callers, deadline, pause, goal, callers, strings.TrimSpace(string(version)), runtime.NumCPU(), sessions)
	b.WriteString(r.tables())
	b.WriteString(r.legend())
	harness.WritePart(t, page, "faults", b.String())
}

const intro = `<!-- Written by "make soak". Change e2e/faults/report_test.go and run it again. -->
# What happens when something breaks

Sessions are lost, modules hang and crash, tokens are initialized again under the service's feet, a cloud does not answer. This page is
one run of a test that does these things to the built binary, one after the other, while %d callers ask for ID tokens over gRPC with client
certificates. The test fails where a goal is missed, and the page says so. ` + "`make test`" + ` has it with stalls of a second, ` + "`make soak`" + ` with the
lengths below.

- **lasted** is how long the cause was there, with the time that it takes to bring it about.
- **requests** is those that ended between the beginning of the fault and the time when all was well again; each has a deadline of %v.
  **failed** is those that brought no token, and **with** says which reason the caller was given. A caller whose request failed asks again
  after %v, and not when RetryInfo says: while a key cannot sign, the number of failures says only how often it was asked for.
- **first token** and **last failure** count from the moment when the cause was gone. The goal for both is %v.
- **wrong** is the tokens that do not verify, when go-jose decrypts them and checks them against the issuer's JWK Set. None may, ever.
- **process** says whether the service is still the process that it was.

A fault of a moment costs at most the %d requests in flight, and none where a signature may be made once more. Some faults have to cost
more: a token that has no key cannot sign.

What modules do wrong comes out of one of our own (` + "`kms/pkcs11/faultymodule`" + `) in front of SoftHSM %s; what happens to tokens is done by
softhsm2-util and pkcs11-tool; and AWS KMS is an endpoint of our own (` + "`kms/awskms/awsfault`" + `) that really signs. The machine has %d cores and runs
the callers too. The service has %d sessions.
`

func (r *report) tables() string {
	var b strings.Builder
	table(&b, "The module in the service's process", r.here, false)
	table(&b, "The module in a worker (isolation: process)", r.isolated, true)
	table(&b, "AWS KMS", r.cloud, false)
	return b.String()
}

func table(b *strings.Builder, title string, rows []row, workers bool) {
	if len(rows) == 0 {
		return // it was not asked for
	}
	columns := []string{"fault", "lasted", "requests", "failed", "with", "first token", "last failure", "wrong", "process"}
	if workers {
		columns = append(columns, "workers started")
	}
	columns = append(columns, "goals")
	fmt.Fprintf(b, "\n## %s\n\n| %s |\n|%s\n", title, strings.Join(columns, " | "), strings.Repeat(" --- |", len(columns)))
	for _, w := range rows {
		cells := []string{
			w.name, span(w.took), fmt.Sprint(w.requests), fmt.Sprint(w.failed), strings.Join(slices.Sorted(maps.Keys(w.reasons)), ", "),
			span(w.first), span(w.all), fmt.Sprint(w.wrong), "alive",
		}
		if w.failed == 0 {
			cells[6] = "none"
		}
		if !w.alive {
			cells[8] = "died"
		}
		if workers {
			cells = append(cells, fmt.Sprint(w.restarts))
		}
		goals := "met"
		if len(w.misses) > 0 {
			goals = "**missed**: " + strings.Join(w.misses, "; ")
		}
		fmt.Fprintf(b, "| %s |\n", strings.Join(append(cells, goals), " | "))
	}
}

// legend says what is done in each row. Rows that are alike share a line.
func (r *report) legend() string {
	var b strings.Builder
	b.WriteString("\n## What is done\n\n")
	var told []string
	all := slices.Concat(r.here, r.isolated, r.cloud)
	for _, w := range all {
		if slices.Contains(told, w.name) {
			continue
		}
		var names []string
		for _, other := range all {
			if other.what == w.what && !slices.Contains(names, other.name) {
				names = append(names, other.name)
			}
		}
		told = append(told, names...)
		fmt.Fprintf(&b, "- **%s**: %s", strings.Join(names, "**, **"), w.what)
		if len(w.codes) > 1 {
			names = nil
			for _, c := range w.codes {
				names = append(names, c.Name)
			}
			fmt.Fprintf(&b, ". Once each: %s", strings.Join(names, ", "))
		}
		b.WriteString(".\n")
	}
	return b.String()
}

func span(d time.Duration) string {
	switch {
	case d < 0:
		return "never"
	case d < 10*time.Millisecond:
		return "at once"
	case d < time.Second:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
