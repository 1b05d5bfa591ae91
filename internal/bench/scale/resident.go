//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

const mebibyte = 1 << 20

// residentOf is the resident memory of a process in MiB, without pages of files:
// those that a bolt file is read by are the kernel's to take away.
func residentOf(pid int) (float64, error) {
	doc, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(doc)) {
		rest, ok := strings.CutPrefix(line, "RssAnon:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/status: %q: %w", pid, line, err)
		}
		return kib * 1024 / mebibyte, nil
	}
	return 0, fmt.Errorf("/proc/%d/status has no RssAnon", pid)
}

// liveHeap is what the garbage collector has left in use the last time, in
// bytes. It is had from the size at which the collector runs next, which grows
// with what was left by the percentage of GOGC; so the stacks and globals that it
// counts too are in it, a part of a megabyte. Below 4 MiB it says 4 MiB.
func liveHeap(metrics map[string]float64) (float64, error) {
	next, percent := metrics["go_memstats_next_gc_bytes"], metrics["go_gc_gogc_percent"]
	if next <= 0 || percent <= 0 {
		return 0, fmt.Errorf("the service's metrics do not tell its heap: next_gc %v, GOGC %v", next, percent)
	}
	return next / (1 + percent/100), nil
}

// collections is how often the garbage collector has run.
func collections(metrics map[string]float64) float64 {
	return metrics["go_gc_duration_seconds_count"]
}

// manyClients is how many it takes for their memory to stand out.
const manyClients = 10_000

// memoryTurn measures the memory of services whose clients are warm, once the
// garbage collector has run since. small is the one with the fewest clients:
// what another holds more than it, it holds for its clients.
func memoryTurn(b *bench, small *subject, others []*subject) error {
	all := append([]*subject{small}, others...)
	live := make([]float64, len(all))
	clients := make([]float64, len(all))
	for i, s := range all {
		metrics, err := s.afterCollection(b)
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		if live[i], err = liveHeap(metrics); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		clients[i] = metrics["bulla_clients_in_memory"]
		resident, err := residentOf(s.pid)
		if err != nil {
			return err
		}
		s.add(warmMemory, resident)
		s.add(liveMemory, live[i]/mebibyte)
		s.add(warmClients, clients[i])
		if more := clients[i] - clients[0]; more >= manyClients {
			s.add(eachClient, (live[i]-live[0])/more/1024)
		}
	}
	return nil
}

// afterCollection has a service work until its garbage collector has run, and
// returns its metrics then.
func (s *subject) afterCollection(b *bench) (map[string]float64, error) {
	before := collections(s.service.Metrics(b.t))
	for range 10_000 {
		// For the few that are used most: nothing is to become warm by it.
		if err := s.issueAll(b.ctx, 0, min(s.clients.size, 1000)); err != nil {
			return nil, err
		}
		if metrics := s.service.Metrics(b.t); collections(metrics) > before {
			return metrics, nil
		}
	}
	return nil, errors.New("the garbage collector of the service does not run")
}
