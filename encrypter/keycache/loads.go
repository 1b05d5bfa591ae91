package keycache

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// loads lets all who look for the same thing at once share one look-up. It
// goes on for the others if one of them leaves. The zero value is ready.
type loads[K comparable, V any] struct {
	mu      sync.Mutex
	running map[K]*load[V] // guarded by mu
}

type load[V any] struct {
	done  chan struct{}
	value V     // set before done is closed
	err   error // likewise
}

// do returns what look returns for key. look runs on a goroutine of start,
// which reports false if it runs nothing any more.
func (l *loads[K, V]) do(ctx context.Context, key K, start func(func()) bool, look func() (V, error)) (V, error) {
	ld := l.join(key, start, look)
	select {
	case <-ld.done:
		return ld.value, ld.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

func (l *loads[K, V]) join(key K, start func(func()) bool, look func() (V, error)) *load[V] {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ld, ok := l.running[key]; ok {
		return ld
	}
	ld := &load[V]{done: make(chan struct{})}
	started := start(func() {
		defer close(ld.done)
		defer l.end(key, ld)
		// It is not the callers' goroutine, where a panic ends one call.
		defer func() {
			if p := recover(); p != nil {
				ld.err = fmt.Errorf("panic of type %T\n%s", p, debug.Stack())
			}
		}()
		ld.value, ld.err = look()
	})
	if !started {
		ld.err = errClosed
		close(ld.done)
		return ld
	}
	if l.running == nil {
		l.running = make(map[K]*load[V])
	}
	l.running[key] = ld
	return ld
}

// forget makes those who come from now on look anew.
func (l *loads[K, V]) forget(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.running, key)
}

// forgetAll is forget for all.
func (l *loads[K, V]) forgetAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.running)
}

func (l *loads[K, V]) end(key K, ld *load[V]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running[key] == ld {
		delete(l.running, key)
	}
}
