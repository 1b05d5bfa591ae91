//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/internal/bench/measure"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// metric is something that is measured of a subject.
type metric string

const (
	listening   metric = "start: listening, ms"
	firstToken  metric = "start: first token, ms"
	startCPU    metric = "start: processor time, ms"
	storeRead   metric = "store: one registration read, µs"
	coldCall    metric = "first call of a client, µs"
	warmCall    metric = "second call of a client, µs"
	missCost    metric = "cost of a miss, µs"
	pageOf100   metric = "a page of 100 clients, ms"
	pageOf1000  metric = "a page of 1000 clients, ms"
	pageAgain   metric = "the same page once more, ms"
	coldMemory  metric = "resident memory cold, MiB"
	warmMemory  metric = "resident memory warm, MiB"
	liveMemory  metric = "of it in use by the heap, MiB"
	warmClients metric = "clients in memory, warm"
	eachClient  metric = "KiB a warm client"
	p50         metric = "p50 of a call, ms"
	p99         metric = "p99 of a call, ms"
	callCPU     metric = "processor time of a call, µs"
	beyondWarm  metric = "calls for clients that were not warm, %"
)

// startsATurn is how often a service is started in a round, to be measured.
const startsATurn = 5

// startTurns starts services in turns, again and again. What counts of a round
// is the median of its starts.
func startTurns(b *bench, subjects []*subject, round int) error {
	times := make([][3][]float64, len(subjects)) // listening, first token, processor time
	for n := range startsATurn {
		for i, s := range subjects {
			pick := s.clients.uniform(uint64(round)<<16 | uint64(n)<<8 | 1)
			up, token, err := s.start(b, pick())
			if err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
			used, err := measure.CPUTime(s.pid)
			if err != nil {
				return err
			}
			for k, d := range []time.Duration{up, token, used} {
				times[i][k] = append(times[i][k], milliseconds(d))
			}
			if err := s.stop(b); err != nil {
				return err
			}
		}
	}
	for i, s := range subjects {
		for k, m := range []metric{listening, firstToken, startCPU} {
			s.add(m, measure.Median(times[i][k]))
		}
	}
	return nil
}

// coldTurn is the turn of a subject that does not run: what its store takes for
// itself, and what a service takes that has just started.
func (s *subject) coldTurn(b *bench, round int) error {
	if err := s.readTurn(b, round); err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	pick := s.clients.uniform(uint64(round)<<8 | 3)
	if _, _, err := s.start(b, pick()); err != nil {
		return err
	}
	memory, err := residentOf(s.pid)
	if err != nil {
		return err
	}
	s.add(coldMemory, memory)
	if err := s.pageTurn(b); err != nil {
		return fmt.Errorf("pages: %w", err)
	}
	if err := s.missTurn(b, pick); err != nil {
		return fmt.Errorf("first calls: %w", err)
	}
	return s.stop(b)
}

// readTurn reads registrations from the store, as the service does for a client
// that it has not in memory.
func (s *subject) readTurn(b *bench, round int) (err error) {
	opened, err := s.open(b.ctx)
	if err != nil {
		return err
	}
	defer func() {
		if closed := opened.Close(); err == nil {
			err = closed
		}
	}()
	pick := s.clients.uniform(uint64(round)<<8 | 2)
	var took []time.Duration
	for i := range b.calls / 5 {
		began := time.Now()
		if _, err := opened.Get(b.ctx, harness.Issuer, clientID(pick())); err != nil {
			return err
		}
		if i >= b.calls/50 { // after a few that warm it up
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	s.add(storeRead, microseconds(measure.Quantile(took, 0.5)))
	return nil
}

// missTurn calls for clients that are not in memory, and for each of them once
// more.
func (s *subject) missTurn(b *bench, pick func() int) error {
	var cold, warm, more []float64
	seen := make(map[int]bool)
	for range b.calls / 8 {
		rank := pick()
		if seen[rank] {
			continue
		}
		seen[rank] = true
		var took [2]float64
		for i := range took {
			began := time.Now()
			if err := s.issue(b.ctx, rank); err != nil {
				return err
			}
			took[i] = microseconds(time.Since(began))
		}
		cold, warm, more = append(cold, took[0]), append(warm, took[1]), append(more, took[0]-took[1])
	}
	s.add(coldCall, measure.Median(cold))
	s.add(warmCall, measure.Median(warm))
	s.add(missCost, measure.Median(more))
	return nil
}

// pageTurn lists the first hundred clients, and then a thousand that follow,
// none of which anybody has asked for before; and those once more. Where fewer
// follow, it counts as if there were a thousand.
func (s *subject) pageTurn(b *bench) error {
	token := ""
	for _, page := range []struct {
		size int32
		m    metric
	}{{100, pageOf100}, {1000, pageOf1000}, {1000, pageAgain}} {
		began := time.Now()
		res, err := s.client.ClientKeys.ListClientKeys(b.ctx, &bullav1.ListClientKeysRequest{
			Issuer: harness.Issuer, PageSize: page.size, PageToken: token,
		})
		if err != nil {
			return err
		}
		took := milliseconds(time.Since(began))
		n := len(res.GetClientKeys())
		if n == 0 {
			return fmt.Errorf("a page of %d is empty", page.size)
		}
		s.add(page.m, took*float64(page.size)/float64(n))
		if page.m == pageOf100 {
			token = res.GetNextPageToken()
		}
	}
	return nil
}

// warmUp starts the service and uses the clients that are used most, as many as
// are to be warm.
func (s *subject) warmUp(b *bench) error {
	if _, _, err := s.start(b, 0); err != nil {
		return err
	}
	return s.issueAll(b.ctx, 0, min(b.warm, s.clients.size))
}

// callTurns makes a spell of calls, each to the next of some subjects in turn, so
// that what disturbs the machine for a moment disturbs all of them. The calls
// are made at an even pace, whether or not those before have been answered. A
// call is timed from the moment it is let go, so that it counts if callers have
// to wait for each other.
func callTurns(b *bench, subjects []*subject, round int) error {
	spells := make([]*callSpell, len(subjects))
	for i, s := range subjects {
		cpu, err := measure.CPUTime(s.pid)
		if err != nil {
			return err
		}
		spells[i] = &callSpell{pick: s.clients.zipf(uint64(round)), cpu: -cpu}
	}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	work := make(chan call, b.calls*len(subjects))
	done := make(chan call, b.calls*len(subjects))
	for range b.inFlight {
		go func() {
			for c := range work {
				c.err = subjects[c.subject].issue(ctx, c.rank)
				c.took = time.Since(c.at)
				done <- c
			}
		}()
	}
	tick := time.NewTicker(time.Second / time.Duration(b.rate))
	defer tick.Stop()
	for range b.calls {
		for i, spell := range spells {
			<-tick.C
			rank := spell.pick()
			if rank >= b.warm {
				spell.beyond++
			}
			work <- call{subject: i, rank: rank, at: time.Now()}
		}
	}
	close(work)
	for range cap(done) {
		c := <-done
		if c.err != nil {
			return fmt.Errorf("%s: %w", subjects[c.subject], c.err)
		}
		spells[c.subject].latencies = append(spells[c.subject].latencies, c.took)
	}
	for i, s := range subjects {
		cpu, err := measure.CPUTime(s.pid)
		if err != nil {
			return err
		}
		spells[i].cpu += cpu
		spells[i].end(s)
	}
	return nil
}

// call is a call before, and after, it is made.
type call struct {
	subject, rank int
	at            time.Time

	took time.Duration
	err  error
}

// callSpell is the calls of a round to one subject.
type callSpell struct {
	pick      func() int
	latencies []time.Duration
	cpu       time.Duration
	beyond    int // calls for clients that were not warm at the beginning
}

func (c *callSpell) end(s *subject) {
	slices.Sort(c.latencies)
	s.add(p50, milliseconds(measure.Quantile(c.latencies, 0.5)))
	s.add(p99, milliseconds(measure.Quantile(c.latencies, 0.99)))
	s.add(callCPU, microseconds(c.cpu)/float64(len(c.latencies)))
	s.add(beyondWarm, 100*float64(c.beyond)/float64(len(c.latencies)))
}

func (s *subject) String() string { return fmt.Sprintf("%s with %d clients", s.engine, s.clients.size) }

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }
func microseconds(d time.Duration) float64 { return d.Seconds() * 1e6 }
