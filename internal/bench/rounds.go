//go:build linux && cgo

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/internal/bench/measure"
)

// contestant is one of the ways to do a piece of work.
type contestant struct {
	name string
	// callers is how many do it at once. Default: 1.
	callers int
	// caller makes one of them: a function that does the work once.
	caller func() (func() error, error)
	// many is how often doing the work once does what is counted: the tokens of a
	// batch. Default: 1.
	many int
	// pids are the processes that are charged beside this one.
	pids []int

	ops int // in a spell
	// spells are what was measured, one a round.
	spells []spell
}

// spell is one turn of one contestant.
type spell struct {
	cpu  time.Duration // for each operation
	rate float64       // operations a second
	// latencies of the operations, sorted.
	latencies []time.Duration
}

// interleave lets contestants take turns for a number of rounds. A spell
// lasts for about the given time.
func interleave(rounds int, lasting time.Duration, contestants ...*contestant) error {
	work := make([][]func() error, len(contestants))
	for i, c := range contestants {
		if c.callers == 0 {
			c.callers = 1
		}
		for range c.callers {
			f, err := c.caller()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			work[i] = append(work[i], f)
		}
		if err := c.calibrate(work[i], lasting); err != nil {
			return err
		}
	}
	for round := range rounds {
		order := make([]int, len(contestants))
		for i := range order {
			order[i] = i
		}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, i := range order {
			c := contestants[i]
			s, err := c.turn(work[i], c.ops)
			if err != nil {
				return err
			}
			c.spells = append(c.spells, s)
		}
	}
	return nil
}

// calibrate finds how many operations last for the given time, and warms up.
func (c *contestant) calibrate(work []func() error, lasting time.Duration) error {
	for c.ops = 4 * len(work); ; c.ops *= 4 {
		s, err := c.turn(work, c.ops)
		if err != nil {
			return err
		}
		rate := s.rate / float64(max(c.many, 1)) // of the work
		if took := time.Duration(float64(c.ops) / rate * float64(time.Second)); took > lasting/5 {
			c.ops = max(len(work), int(rate*lasting.Seconds()))
			return nil
		}
	}
}

// turn is one spell of ops operations.
func (c *contestant) turn(work []func() error, ops int) (spell, error) {
	runtime.GC()
	latencies := make([]time.Duration, ops)
	pids := append([]int{os.Getpid()}, c.pids...)
	before, err := measure.CPUTime(pids...)
	if err != nil {
		return spell{}, err
	}
	began := time.Now()
	err = spread(work, latencies)
	took := time.Since(began)
	if err != nil {
		return spell{}, fmt.Errorf("%s: %w", c.name, err)
	}
	after, err := measure.CPUTime(pids...)
	if err != nil {
		return spell{}, err
	}
	slices.Sort(latencies)
	done := ops * max(c.many, 1)
	return spell{
		cpu:       (after - before) / time.Duration(done),
		rate:      float64(done) / took.Seconds(),
		latencies: latencies,
	}, nil
}

// spread does as many operations as there is room for latencies, as many at
// once as there are workers.
func spread(work []func() error, latencies []time.Duration) error {
	var next atomic.Int64
	if len(work) == 1 {
		return serve(work[0], latencies, &next)
	}
	var wg sync.WaitGroup
	errs := make([]error, len(work))
	for i, f := range work {
		wg.Go(func() { errs[i] = serve(f, latencies, &next) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// serve does what is left to do, one after the other.
func serve(f func() error, latencies []time.Duration, next *atomic.Int64) error {
	for began := time.Now(); ; {
		i := next.Add(1) - 1
		if i >= int64(len(latencies)) {
			return nil
		}
		if err := f(); err != nil {
			return err
		}
		ended := time.Now()
		latencies[i] = ended.Sub(began)
		began = ended
	}
}

// micros is the processor time of an operation in µs, the median of the rounds.
func (c *contestant) micros() float64 {
	return measure.Median(measure.Each(c.spells, func(s spell) float64 { return s.cpu.Seconds() * 1e6 }))
}

// perSecond is the throughput, the median of the rounds.
func (c *contestant) perSecond() float64 {
	return measure.Median(measure.Each(c.spells, func(s spell) float64 { return s.rate }))
}

// latency is the q-quantile of the operations' durations in ms, the median of
// the rounds.
func (c *contestant) latency(q float64) float64 {
	return measure.Median(measure.Each(c.spells, func(s spell) float64 { return measure.Quantile(s.latencies, q).Seconds() * 1e3 }))
}

// ratios of c to the sum of parts, one a round.
func (c *contestant) ratios(parts ...*contestant) []float64 {
	ratios := make([]float64, len(c.spells))
	for round, s := range c.spells {
		var floor time.Duration
		for _, p := range parts {
			floor += p.spells[round].cpu
		}
		ratios[round] = float64(s.cpu) / float64(floor)
	}
	return ratios
}

// sum of the medians of parts, in µs.
func sum(parts ...*contestant) float64 {
	var all float64
	for _, p := range parts {
		all += p.micros()
	}
	return all
}
