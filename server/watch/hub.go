// Package watch tells those who watch the clients of an issuer which of them
// have changed: by name, so that whoever is told looks for himself and never
// sees what is out of date.
//
// A Hub hears of changes from all who make or notice one: this replica's own
// calls, its cache of key sets, and the feed of a store that several replicas
// share. The same change may come from two of them. Telling the Hub costs
// nothing worth mentioning and never waits, however slow those are who watch: a
// Watch holds the names that are to be looked at, each once, and a client that
// changes again before it has been looked at is still one name. A Watch that
// falls too far behind, as any whose Hub has lost count of the changes or cannot
// hear of them, ends with ErrLost. It never goes on as if nothing had happened:
// who watches can rely on it that what was not told has not changed.
//
// The change of a key set concerns every client that registered its URL. Who
// they are is asked of the store, on the goroutine of Run.
//
// What is said of a client that has changed is for others (package server), and
// so is who may watch what. Those who are told of the same change may look
// together: Hub.Told and Watch.Told say whether a look began after a change.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Errors of a watch.
var (
	// ErrTooMany: the caller has as many watches as one caller may have. It ends
	// one first.
	ErrTooMany = errors.New("too many watches of this caller: end one first")

	// ErrFull: this replica has as many watches as it takes. Another one may
	// have room.
	ErrFull = errors.New("too many watches on this replica: try another one, or later")

	// ErrLost: changes have happened that are not told. Whoever watches lists
	// the clients, and watches again.
	ErrLost = errors.New("changes were lost")

	// ErrStopping: the service is ending. Whoever watches goes to another
	// replica, and lists the clients there.
	ErrStopping = errors.New("the service is stopping")
)

// Clients knows which clients use a key set: records.Store.
type Clients interface {
	// ClientsOf calls yield for each live client that registered the URL, until
	// yield returns false. yield does not wait.
	ClientsOf(ctx context.Context, uri string, yield func(issuer, clientID string) bool) error
}

// Config is what a Hub is made of.
type Config struct {
	// Clients knows which clients use a key set. Required.
	Clients Clients
	// Stale reports whether there may be changes that the Hub has not been told,
	// as those who tell it do not hear of them. All watches end then, and none
	// begins. It is asked every second and for each new watch, and does not wait.
	// Default: never.
	Stale func() bool
	// MaxWatches is how many watches there may be at once. Default 100.
	MaxWatches int
	// MaxPerCaller is how many of them one caller may have. Default 10.
	MaxPerCaller int
	// MaxPending is how many clients may wait to be looked at in one watch, and
	// how many key sets in the hub. Default 10 000.
	MaxPending int
	// Logger gets what an operator should look at. Default: none.
	Logger *slog.Logger
}

// Hub is told of changes and tells those who watch. It is safe for concurrent
// use, and is a registry.Follower.
type Hub struct {
	cfg Config
	// wake has a token when there may be something in uris.
	wake chan struct{}

	// mu guards what follows, and the state of all watches. It is held for
	// moments only: nothing waits while it is held.
	mu      sync.Mutex
	watches map[string]map[*Watch]struct{} // by issuer
	total   int                            // of watches
	callers map[string]int                 // watches by caller
	uris    queue                          // whose clients are to be told of
	told    uint64                         // of how many changes, of all clients
	closed  bool
}

// New makes a Hub. The caller starts Run, and calls Close when the service ends.
func New(cfg Config) (*Hub, error) {
	if cfg.Clients == nil {
		return nil, errors.New("watch: Clients is required")
	}
	for _, n := range []struct {
		value *int
		or    int
	}{{&cfg.MaxWatches, 100}, {&cfg.MaxPerCaller, 10}, {&cfg.MaxPending, 10_000}} {
		if *n.value < 0 {
			return nil, errors.New("watch: a number is negative; leave it at zero for its default")
		}
		if *n.value == 0 {
			*n.value = n.or
		}
	}
	if cfg.Stale == nil {
		cfg.Stale = func() bool { return false }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Hub{
		cfg: cfg, wake: make(chan struct{}, 1),
		watches: make(map[string]map[*Watch]struct{}), callers: make(map[string]int), uris: queue{most: cfg.MaxPending},
	}, nil
}

// ClientChanged is called after the registration of a client was written, or
// may have been.
func (h *Hub) ClientChanged(issuer, clientID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told++
	for w := range h.watches[issuer] {
		w.add(clientID)
	}
}

// Told is how many changes of clients the Hub has been told.
func (h *Hub) Told() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.told
}

// KeySetChanged is called after what is known of a jwks_uri has changed.
func (h *Hub) KeySetChanged(uri string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.total == 0 {
		return
	}
	if !h.uris.add(uri, 0) {
		h.lose()
		return
	}
	signal(h.wake)
}

// Reset is called when anything may have changed. It ends all watches.
func (h *Hub) Reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lose()
}

// lose ends all watches, as there is something that they are not told. The
// caller holds mu.
func (h *Hub) lose() {
	h.uris.clear()
	for _, watches := range h.watches {
		for w := range watches {
			w.end(ErrLost)
		}
	}
}

// Close ends all watches, at once and for good.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.uris.clear()
	for _, watches := range h.watches {
		for w := range watches {
			w.end(ErrStopping)
		}
	}
}

// staleEvery is how often the Hub looks whether it still hears of changes.
const staleEvery = time.Second

// Run tells of the clients whose key sets have changed, and ends all watches
// when there may be changes that the Hub has not been told, until ctx ends. It
// returns nil then.
func (h *Hub) Run(ctx context.Context) error {
	var looking sync.WaitGroup
	defer looking.Wait()
	looking.Go(func() { h.mind(ctx) }) // also while a store does not answer
	for {
		select {
		case <-h.wake:
		case <-ctx.Done():
			return nil
		}
		for uri, ok := h.next(); ok && ctx.Err() == nil; uri, ok = h.next() {
			h.keySet(ctx, uri)
		}
	}
}

// mind ends all watches while there may be changes that the Hub has not been
// told.
func (h *Hub) mind(ctx context.Context) {
	tick := time.NewTicker(staleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if h.cfg.Stale() && h.watched() {
			h.cfg.Logger.WarnContext(ctx, "watches of client keys ended: this replica does not hear of changes")
			h.Reset()
		}
	}
}

// keySet tells of the clients that registered a URL, or ends all watches if it is
// not to be found out who they are.
func (h *Hub) keySet(ctx context.Context, uri string) {
	if err := h.tellClientsOf(ctx, uri); err != nil && ctx.Err() == nil {
		h.cfg.Logger.WarnContext(ctx, "watches of client keys ended: the store does not say whose keys have changed", "jwks_uri", uri, "error", err)
		h.Reset()
	}
}

func (h *Hub) next() (uri string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	uri, _, ok = h.uris.take()
	return uri, ok
}

// patience is how long the store may take to name the next client.
const patience = 15 * time.Second

// tellClientsOf tells of the clients that registered a URL, for as long as
// there is somebody to tell.
func (h *Hub) tellClientsOf(ctx context.Context, uri string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(patience, func() { cancel(fmt.Errorf("no answer for %s", patience)) })
	defer late.Stop()
	err := h.cfg.Clients.ClientsOf(ctx, uri, func(issuer, clientID string) bool {
		late.Reset(patience)
		h.ClientChanged(issuer, clientID)
		return h.watched()
	})
	if ctx.Err() != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return err
}

// watched reports whether there is a watch that goes on.
func (h *Hub) watched() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, watches := range h.watches {
		for w := range watches {
			if w.ended == nil {
				return true
			}
		}
	}
	return false
}

// signal puts a token into a channel with room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
