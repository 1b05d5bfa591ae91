package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/server/config"
)

// wrappingKeys opens the configured wrapping keys, by their places as the data
// keys name them. The store comes before the backends: it asks for nothing
// until they are there.
type wrappingKeys struct {
	refs     map[string]config.KeyRef // not changed
	backends atomic.Pointer[backends]
}

func newWrappingKeys(cfg *config.Config) *wrappingKeys {
	w := &wrappingKeys{refs: make(map[string]config.KeyRef)}
	for _, ref := range append([]config.KeyRef{cfg.Wrapping.Ref()}, cfg.Wrapping.FormerKeys...) {
		w.refs[ref.String()] = ref
	}
	return w
}

// backendNames are those of the backends that hold wrapping keys.
func (w *wrappingKeys) backendNames() map[string]bool {
	names := make(map[string]bool)
	for _, ref := range w.refs {
		names[ref.Backend] = true
	}
	return names
}

// open is datakey.Config.Open.
func (w *wrappingKeys) open(ctx context.Context, location string) (kms.Wrapper, error) {
	open := w.backends.Load()
	ref, known := w.refs[location]
	switch {
	case open == nil:
		return nil, fmt.Errorf("%w: the backends are not open yet", kms.ErrUnavailable)
	case !known:
		return nil, fmt.Errorf("%w: no wrapping key %q is configured", kms.ErrReference, location)
	}
	opener, ok := open.byName[ref.Backend].(kms.WrapperOpener)
	if !ok {
		return nil, fmt.Errorf("%w: backend %s cannot wrap keys; name another in wrapping", kms.ErrReference, ref.Backend)
	}
	return opener.OpenWrapper(ctx, ref.Ref)
}

// dataKeysConfig is that of the keys that protect the store.
func dataKeysConfig(cfg *config.Config, wrapping *wrappingKeys, log *slog.Logger) datakey.Config {
	c := datakey.Config{Open: wrapping.open, Location: cfg.Wrapping.Ref().String(), Logger: log}
	for _, ref := range cfg.Wrapping.FormerKeys {
		c.Former = append(c.Former, ref.String())
	}
	return c
}
