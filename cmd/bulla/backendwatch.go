package main

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
)

const (
	// backendEvery is how often a backend is looked at, and backendPatience how
	// long one look may take.
	backendEvery    = 15 * time.Second
	backendPatience = 5 * time.Second
)

// backendWatch looks at the backends again and again, so that metrics only have
// to read what it saw. PKCS#11 tokens keep their state themselves, and are not
// looked at by it.
type backendWatch struct {
	backends *backends
	log      *slog.Logger
	seen     map[string]*atomic.Bool // by name, but for tokens: whether it answered last
}

func newBackendWatch(b *backends, log *slog.Logger) *backendWatch {
	w := &backendWatch{backends: b, log: log, seen: make(map[string]*atomic.Bool)}
	for name := range b.byName {
		if b.tokens[name] == nil {
			w.seen[name] = new(atomic.Bool)
		}
	}
	return w
}

// run looks until ctx ends. It returns nil then.
func (w *backendWatch) run(ctx context.Context) error {
	var looks sync.WaitGroup
	for name, up := range w.seen {
		looks.Go(func() { w.watch(ctx, name, w.backends.byName[name], up) })
	}
	looks.Wait()
	return nil
}

func (w *backendWatch) watch(ctx context.Context, name string, backend kms.Backend, up *atomic.Bool) {
	tick := time.NewTicker(backendEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		err := w.look(ctx, backend)
		if ctx.Err() != nil {
			return // its end is no trouble of the backend's
		}
		switch before := up.Swap(err == nil); {
		case err != nil && (before || first):
			w.log.WarnContext(ctx, "the backend does not answer", "backend", name, "error", err)
		case err == nil && !before && !first:
			w.log.InfoContext(ctx, "the backend answers again", "backend", name)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (w *backendWatch) look(ctx context.Context, backend kms.Backend) error {
	ctx, cancel := context.WithTimeout(ctx, backendPatience)
	defer cancel()
	return backend.Check(ctx)
}

// up reports whether a backend answers, as far as is known without asking it.
func (w *backendWatch) up(name string) bool {
	if token := w.backends.tokens[name]; token != nil {
		return token.Stats().Up
	}
	return w.seen[name].Load()
}
