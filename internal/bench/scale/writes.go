//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
	"github.com/bulla-project/bulla/internal/bench/measure"
	"github.com/bulla-project/bulla/kms/datakey"
)

// WriteRow is how many writes a store takes, each of them durable.
type WriteRow struct {
	Store, Name string
	Writers     int // at once
	PerSecond   float64
	P50, P99    float64 // ms
}

// benchWrites asks how many writes a store of each kind takes. They are the last
// things that are done to it.
func (b *bench) benchWrites(subjects []*subject) error {
	row, err := b.syncs()
	if err != nil {
		return err
	}
	b.report.Writes = append(b.report.Writes, row)
	for _, s := range subjects {
		if err := b.writesOf(s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// syncs asks how often the disk below can be waited for.
func (b *bench) syncs() (row WriteRow, err error) {
	f, err := os.Create(filepath.Join(b.dir, "syncs"))
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	page := make([]byte, 4096)
	return b.write("the disk itself", "a page and fsync", 1, func(n int) error {
		if _, err := f.WriteAt(page, int64(n%256)*4096); err != nil {
			return err
		}
		return f.Sync()
	})
}

func (b *bench) writesOf(s *subject) (err error) {
	opened, err := s.open(b.ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	keeper := secrets.New(opened.Keys(), datakey.ErrTampered)
	next := s.clients.size // the rank of the next client to be registered
	uris := s.clients.ownURIs(4096)
	for _, writers := range []int{1, 16} {
		first := next
		row, err := b.write(s.engine, "registrations", writers, func(n int) error {
			reg, err := s.clients.registration(b.ctx, keeper, first+n)
			if err != nil {
				return err
			}
			_, err = opened.Put(b.ctx, reg, 0)
			return err
		})
		if err != nil {
			return err
		}
		b.report.Writes = append(b.report.Writes, row)
		next += 1 << 24
		refresh := func(n int) error { return opened.PutKeySet(b.ctx, s.clients.keySet(uris[n%len(uris)], n)) }
		if leases := opened.Leases(); leases != nil {
			refresh = func(n int) error { return refreshed(b.ctx, leases, s.clients.keySet(uris[n%len(uris)], n)) }
		}
		if row, err = b.write(s.engine, "refreshed key sets", writers, refresh); err != nil {
			return err
		}
		b.report.Writes = append(b.report.Writes, row)
	}
	return nil
}

// refreshed writes a key set as a replica does that has fetched it for all: with
// a lease, and without telling the others of it where only its times are new.
func refreshed(ctx context.Context, leases registry.Leases, set registry.KeySet) error {
	claim, err := leases.Claim(ctx, set.URI, 10*time.Second)
	if err != nil {
		return err
	}
	if claim.Lease == "" {
		return fmt.Errorf("no lease on %s: another has it until %v, unnamed %v", set.URI, claim.Until, claim.Unnamed)
	}
	return leases.PutClaimed(ctx, set, claim.Lease, false)
}

// write has some writers write for a spell.
func (b *bench) write(store, name string, writers int, f func(n int) error) (WriteRow, error) {
	var next atomic.Int64
	var mu sync.Mutex
	var all []time.Duration // guarded by mu
	var wg sync.WaitGroup
	errs := make([]error, writers)
	began := time.Now()
	for w := range writers {
		wg.Go(func() {
			var mine []time.Duration
			for at := began; at.Sub(began) < b.writing && errs[w] == nil; {
				errs[w] = f(int(next.Add(1) - 1))
				now := time.Now()
				mine = append(mine, now.Sub(at))
				at = now
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
		})
	}
	wg.Wait()
	took := time.Since(began)
	if err := errors.Join(errs...); err != nil {
		return WriteRow{}, fmt.Errorf("%s, %d writers: %w", name, writers, err)
	}
	slices.Sort(all)
	return WriteRow{
		Store: store, Name: name, Writers: writers, PerSecond: float64(len(all)) / took.Seconds(),
		P50: milliseconds(measure.Quantile(all, 0.5)), P99: milliseconds(measure.Quantile(all, 0.99)),
	}, nil
}

// ownURIs are the jwks_uri of up to n clients that have one of their own.
func (p *population) ownURIs(n int) []string {
	var uris []string
	for rank := 0; rank < p.size && len(uris) < n; rank++ {
		if p.kind(rank) == ownURI {
			uris = append(uris, p.uri(rank))
		}
	}
	return uris
}
