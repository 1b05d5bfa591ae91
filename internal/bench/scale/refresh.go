//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/internal/bench/measure"
)

// Of the part about fetches.
const (
	// freshFor is for how long the hosts say that a set is fresh.
	freshFor = 4 * time.Second
	// used is how many clients are used, of all that have a jwks_uri.
	used = 100
)

// FetchRow is what a service fetched in a time.
type FetchRow struct {
	Name       string
	Registered int
	Used       int
	Seconds    float64
	GETs       int
	URLs       int     // different ones
	PerSecond  float64 // GETs
	Micros     float64 // processor time of the service for a GET
}

// benchFetches counts what a service fetches when many clients have a jwks_uri
// of their own and few of them are used; and how much it can fetch when all are.
func (b *bench) benchFetches() error {
	h, err := newHosts(b.t, b.keys.rsa[0], freshFor)
	if err != nil {
		return err
	}
	// What is stored is out of date, so that a use is all that it takes to have
	// it fetched, and nobody waits for it.
	b.progress("fetches, with %d clients that have a jwks_uri", b.fetched)
	clients := &population{size: b.fetched, keys: b.keys, own: h.uri, freshUntil: time.Now().Add(-time.Minute)}
	path := filepath.Join(b.dir, "fetched.jsonl")
	if err := clients.export(b.ctx, dataKeys(b.local), path); err != nil {
		return err
	}
	place, err := b.newBolt("fetched")
	if err != nil {
		return err
	}
	if _, err := load(b.ctx, path, place.open); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	s := b.newSubject(place, clients, func(tree harness.M) { tree["fetch"] = h.fetch() })
	if _, _, err := s.start(b, 0); err != nil {
		return err
	}
	// Nobody uses any: what is fetched is for the one client of the first token.
	spell := func(name string, used int, lasting time.Duration) error {
		h.count()
		cpu, err := measure.CPUTime(s.pid)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := sleep(b.ctx, lasting); err != nil {
			return err
		}
		took := time.Since(began)
		gets, urls := h.count()
		now, err := measure.CPUTime(s.pid)
		if err != nil {
			return err
		}
		row := FetchRow{Name: name, Registered: clients.size, Used: used, Seconds: took.Seconds(), GETs: gets, URLs: urls, PerSecond: float64(gets) / took.Seconds()}
		if gets > 0 {
			row.Micros = microseconds(now-cpu) / float64(gets)
		}
		b.report.Fetches = append(b.report.Fetches, row)
		return nil
	}
	if err := spell("one is used", 1, b.watch); err != nil {
		return err
	}
	if err := s.issueAll(b.ctx, 0, used); err != nil {
		return err
	}
	if err := spell("few are used", used, b.watch); err != nil {
		return err
	}
	b.progress("fetches for %d of them", min(b.busy, clients.size))
	if err := s.issueAll(b.ctx, 0, min(b.busy, clients.size)); err != nil {
		return err
	}
	if err := spell("more are used than can be fetched in time", min(b.busy, clients.size), b.watch); err != nil {
		return err
	}
	return s.stop(b)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting: %w", ctx.Err())
	}
}
