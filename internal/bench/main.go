//go:build linux && cgo

package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// bench is one run.
type bench struct {
	rounds int
	spell  time.Duration // of a contestant in a round; some have a multiple of it
	all    bool
	jwe    bool // and nothing else
	many   bool // and nothing else

	t      *harness.Standalone // owns what is to be cleaned up
	token  *softhsmtest.Token
	report *Report
}

func main() {
	asJSON := flag.Bool("json", false, "print the report as JSON")
	quick := flag.Bool("quick", false, "take a quarter of a minute, with one round too short to be relied on")
	all := flag.Bool("all", false, "every combination of JWE algorithms and keys, and more callers, which takes a quarter of an hour")
	jwe := flag.Bool("jwe", false, "only the JWE part, which needs no HSM")
	many := flag.Bool("many", false, "only the part of batches and streams")
	answer := flag.String("answer", "", "how the tool runs a part of itself as another process")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	if *answer != "" {
		if err := runAnswerer(*answer); err != nil {
			fmt.Fprintln(os.Stderr, "bench: answerer:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{rounds: 11, spell: 200 * time.Millisecond, all: *all, jwe: *jwe, many: *many}
	if *quick {
		b.rounds, b.spell = 1, 10*time.Millisecond
	}
	os.Exit(b.run(*asJSON))
}

// run measures, prints and returns the exit code.
func (b *bench) run(asJSON bool) int {
	b.t = harness.NewStandalone("bench")
	defer b.t.Close()
	b.report = newReport(b.rounds)
	sections := []func() error{b.benchJWE}
	if !b.jwe {
		b.t.Cleanup(harness.RemoveBinary)
		b.token = softhsmtest.New(b.t, "bench") // for this process too, which loads the module
		harness.AddWrappingKey(b.token)
		harness.AddKeys(b.token, signingAlgorithms...)
		sections = append(sections, b.benchSignature, b.benchCallers, b.benchService)
	}
	if b.many {
		sections = []func() error{b.benchManyAlone}
	}
	for _, section := range sections {
		if err := section(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
	}
	write := b.report.writeText
	if asJSON {
		write = b.report.writeJSON
	}
	if err := write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	if b.t.Failed() {
		return 1
	}
	return 0
}
