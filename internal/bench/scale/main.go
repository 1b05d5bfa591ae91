//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// bench is one run.
type bench struct {
	rounds   int
	sizes    []int // in ascending order
	engines  []string
	warm     int           // clients that are made warm
	calls    int           // in a spell
	rate     int           // calls a second
	inFlight int           // at most
	fetched  int           // clients with a jwks_uri of their own, in the part about fetches
	busy     int           // of them used at once, to be more than can be fetched
	watch    time.Duration // for how long fetches are counted
	writing  time.Duration // a spell of writes
	keep     string        // folder for stores

	ctx    context.Context //nolint:containedctx // that of the whole run
	t      *harness.Standalone
	dir    string
	local  *harness.LocalKeys // of all services
	keys   *pool
	report *Report

	cluster *pgtest.Cluster // nil until it is needed
}

func main() {
	b := &bench{
		warm: 100_000, calls: 2500, rate: 500, inFlight: 8,
		fetched: 100_000, busy: 10_000, watch: 20 * time.Second, writing: 4 * time.Second,
	}
	sizes := flag.String("sizes", "1000,100000,1000000", "how many registered clients, from few to many")
	engines := flag.String("stores", "bolt,postgres", "which stores")
	flag.IntVar(&b.rounds, "rounds", 7, "how many rounds")
	flag.StringVar(&b.keep, "dir", "", "a folder for the stores, on the disk that is to be measured (default: that for temporary files)")
	quick := flag.Bool("quick", false, "take half a minute, with one round too short to be relied on")
	asJSON := flag.Bool("json", false, "print the report as JSON")
	flag.Parse()
	if *quick {
		*sizes, b.rounds = "200,2000,5000", 1
		b.warm, b.calls, b.fetched, b.busy, b.watch, b.writing = 1000, 400, 2000, 1000, 5*time.Second, 100*time.Millisecond
	}
	if err := b.setSizes(*sizes, *engines); err != nil || flag.NArg() > 0 || b.rounds < 1 {
		fmt.Fprintln(os.Stderr, "scale: the arguments are wrong:", flag.Args(), err)
		os.Exit(2)
	}
	os.Exit(b.main(*asJSON))
}

func (b *bench) setSizes(sizes, engines string) error {
	for text := range strings.SplitSeq(sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 100 {
			return fmt.Errorf("-sizes: %q is no number from 100 on", text)
		}
		b.sizes = append(b.sizes, n)
	}
	slices.Sort(b.sizes)
	for name := range strings.SplitSeq(engines, ",") {
		if name != "bolt" && name != "postgres" {
			return fmt.Errorf("-stores: there is no %q", name)
		}
		b.engines = append(b.engines, name)
	}
	return nil
}

// main measures, prints and returns the exit code.
func (b *bench) main(asJSON bool) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b.ctx = ctx
	b.t = harness.NewStandalone("scale")
	defer b.t.Close()
	b.t.Cleanup(harness.RemoveBinary)
	b.report = newReport(b)
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		return 1
	}
	write := b.report.writeText
	if asJSON {
		write = b.report.writeJSON
	}
	if err := write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		return 1
	}
	if b.t.Failed() {
		return 1
	}
	return 0
}

// run measures.
func (b *bench) run() error {
	debug.SetGCPercent(300) // populations are made of much that is dropped at once
	dir, err := os.MkdirTemp(b.keep, "bulla-scale-")
	if err != nil {
		return err
	}
	b.dir = dir
	b.t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a temporary folder
	b.local = harness.NewLocalKeys(b.t, kms.ES256)
	b.keys = newPool(b.t, 32)
	if err := b.benchFetches(); err != nil {
		return fmt.Errorf("fetches: %w", err)
	}
	subjects, err := b.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	for round := range b.rounds {
		b.progress("round %d of %d: starts", round+1, b.rounds)
		if err := startTurns(b, b.order(subjects, round), round); err != nil {
			return fmt.Errorf("starts: %w", err)
		}
		for _, s := range b.order(subjects, round) {
			if err := s.coldTurn(b, round); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
	}
	for _, s := range subjects {
		b.progress("warm up %s", s)
		if err := s.warmUp(b); err != nil {
			return fmt.Errorf("warm up %s: %w", s, err)
		}
	}
	for _, engine := range b.engines {
		of := b.of(subjects, engine)
		if err := memoryTurn(b, of[0], of[1:]); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	for round := range b.rounds {
		b.progress("round %d of %d: calls", round+1, b.rounds)
		if err := callTurns(b, b.order(subjects, round), round); err != nil {
			return fmt.Errorf("calls: %w", err)
		}
	}
	for _, s := range subjects {
		if err := s.stop(b); err != nil {
			return err
		}
	}
	var written []*subject
	for _, engine := range b.engines {
		of := b.of(subjects, engine)
		b.report.addStore(engine, of)
		written = append(written, of[len(of)/2])
	}
	return b.benchWrites(written)
}

// load makes the populations and puts each into every store.
func (b *bench) load() ([]*subject, error) {
	var subjects []*subject
	for _, size := range b.sizes {
		clients := &population{size: size, keys: b.keys, freshUntil: time.Now().Add(24 * time.Hour)}
		path := filepath.Join(b.dir, fmt.Sprintf("%d.jsonl", size))
		began := time.Now()
		if err := clients.export(b.ctx, dataKeys(b.local), path); err != nil {
			return nil, err
		}
		b.progress("%d clients made in %.1f s", size, time.Since(began).Seconds())
		for _, engine := range b.engines {
			make := b.newBolt
			if engine == "postgres" {
				make = b.newPostgres
			}
			place, err := make(fmt.Sprintf("scale-%d", size))
			if err != nil {
				return nil, err
			}
			took, err := load(b.ctx, path, place.open)
			if err != nil {
				return nil, fmt.Errorf("%s, %d clients: %w", engine, size, err)
			}
			b.progress("%d clients loaded into %s in %.1f s", size, engine, took.Seconds())
			b.report.Loads = append(b.report.Loads, LoadRow{Store: engine, Clients: size, Seconds: took.Seconds(), PerSecond: float64(size) / took.Seconds()})
			subjects = append(subjects, b.newSubject(place, clients, nil))
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return subjects, nil
}

// order is the order of turns in a round.
func (b *bench) order(subjects []*subject, round int) []*subject {
	order := slices.Clone(subjects)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	return order
}

// of are the subjects with an engine, the smallest first.
func (b *bench) of(subjects []*subject, engine string) []*subject {
	return slices.DeleteFunc(slices.Clone(subjects), func(s *subject) bool { return s.engine != engine })
}

// progress tells whoever waits.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
