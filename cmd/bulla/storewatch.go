package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	// storeEvery is how often the store is looked at, and storePatience how
	// long one look may take.
	storeEvery    = time.Second
	storePatience = 2 * time.Second

	// feedLate is how long after the last news from the store a replica says
	// that it misses them. They come within a second, and so do their absence's.
	feedLate = 5 * time.Second
)

// watchedStore is what a storeWatch looks at.
type watchedStore interface {
	Check(ctx context.Context) error
	Current() time.Time
}

// storeWatch looks at the store again and again, so that probes and metrics
// only have to read what it saw.
type storeWatch struct {
	store  watchedStore
	shared bool
	log    *slog.Logger
	began  time.Time // what the lag is counted from while there were no news

	seen atomic.Pointer[storeTrouble] // nil if it answers; written by run
}

// storeTrouble is why the store cannot be used.
type storeTrouble struct {
	err   error
	since time.Time
}

func newStoreWatch(store *openedStore, log *slog.Logger) *storeWatch {
	return &storeWatch{store: store, shared: store.shared, log: log, began: time.Now()}
}

// run looks until ctx ends. It returns nil then.
func (w *storeWatch) run(ctx context.Context) error {
	tick := time.NewTicker(storeEvery)
	defer tick.Stop()
	for {
		w.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *storeWatch) look(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	err := w.store.Check(bounded)
	if ctx.Err() != nil {
		return // its end is no trouble of the store's
	}
	before := w.seen.Load()
	switch {
	case err == nil && before != nil:
		w.say(slog.LevelInfo, "the store answers again", "after", time.Since(before.since).Round(time.Millisecond).String())
		w.seen.Store(nil)
	case err != nil && before == nil:
		w.say(slog.LevelError, "the store cannot be used: what is in memory is served, and nothing can be changed", "error", err)
		w.seen.Store(&storeTrouble{err: err, since: time.Now()})
	case err != nil:
		w.seen.Store(&storeTrouble{err: err, since: before.since})
	}
}

// say logs what a database has not said of itself.
func (w *storeWatch) say(level slog.Level, what string, args ...any) {
	if !w.shared {
		w.log.Log(context.Background(), level, what, args...)
	}
}

// up reports whether the store answered when it was looked at last.
func (w *storeWatch) up() bool { return w.seen.Load() == nil }

// lag is for how long changes of other replicas may have been missed.
func (w *storeWatch) lag() time.Duration {
	if !w.shared {
		return 0
	}
	last := w.store.Current()
	if last.IsZero() {
		last = w.began
	}
	return max(time.Since(last), 0)
}

// degraded is server.Ops.Degraded.
func (w *storeWatch) degraded() error {
	if t := w.seen.Load(); t != nil {
		return fmt.Errorf("the store cannot be used since %s: %w", t.since.UTC().Format(time.RFC3339), t.err)
	}
	if lag := w.lag(); lag > feedLate {
		return fmt.Errorf("what other replicas change has not been heard of for %v", lag.Round(time.Second))
	}
	return nil
}
