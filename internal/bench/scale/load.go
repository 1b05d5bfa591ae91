//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/records"
)

// dataKeys says what wraps the data keys of a store. All stores of a run share the
// wrapping key: what is exported under it is imported under the same.
func dataKeys(keys *harness.LocalKeys) datakey.Config {
	return datakey.Config{
		Location: keys.WrappingLocation(),
		Open:     func(ctx context.Context, _ string) (kms.Wrapper, error) { return keys.OpenWrapping(ctx) },
	}
}

// export makes a population and writes it to a file.
func (p *population) export(ctx context.Context, keys datakey.Config, path string) (err error) {
	store, err := records.New(ctx, records.Config{Engine: newMemory(), DataKeys: keys})
	if err != nil {
		return err
	}
	if err := p.register(ctx, store); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = store.Export(ctx, f)
	return err
}

// register puts a population into a store.
func (p *population) register(ctx context.Context, store *records.Store) error {
	keeper := secrets.New(store.Keys(), datakey.ErrTampered)
	var mu sync.Mutex
	sets := make(map[string]int) // the ranks of clients with a URL; guarded by mu
	err := inParallel(p.size, runtime.GOMAXPROCS(0), func(rank int) error {
		reg, err := p.registration(ctx, keeper, rank)
		if err != nil {
			return err
		}
		if uri := reg.Source.JWKSURI; uri != "" {
			mu.Lock()
			sets[uri] = rank
			mu.Unlock()
		}
		_, err = store.Put(ctx, reg, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("register %d clients: %w", p.size, err)
	}
	for uri, rank := range sets {
		if err := store.PutKeySet(ctx, p.keySet(uri, rank)); err != nil {
			return fmt.Errorf("put key sets: %w", err)
		}
	}
	return nil
}

// inParallel calls f with 0 to n-1, a number of them at once, until one fails.
func inParallel(n, atOnce int, f func(i int) error) error {
	var next atomic.Int64
	var failed atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, atOnce)
	for w := range errs {
		wg.Go(func() {
			for !failed.Load() {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				if errs[w] = f(i); errs[w] != nil {
					failed.Store(true)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// store is what is asked of a store from here.
type store interface {
	registry.Store
	Import(ctx context.Context, r io.Reader) (records.Counts, error)
	Keys() *datakey.Keys
	Leases() registry.Leases
	Close() error
}

// load reads an export into the store of a subject, and says how long it took.
func load(ctx context.Context, path string, open func(context.Context) (store, error)) (took time.Duration, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s, err := open(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	began := time.Now()
	_, err = s.Import(ctx, f)
	return time.Since(began), err
}
