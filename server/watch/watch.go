package watch

import (
	"context"
	"time"
)

// Watch is told which clients of an issuer have changed since it began.
type Watch struct {
	hub            *Hub
	issuer, caller string
	may            func(clientID string) bool
	// wake has a token when there may be something for Next.
	wake chan struct{}

	// What follows is guarded by hub.mu.
	pending queue                // clients to be looked at
	again   map[string]time.Time // when clients are to be looked at again
	told    uint64               // Told
	ended   error                // why the watch tells nothing any more
}

// Watch begins a watch of an issuer's clients: those for which may says so,
// which is asked often and does not wait. What changes after Watch has returned
// is told. Whoever watches calls Close. Errors: ErrTooMany, ErrFull, ErrStopping,
// and ErrLost while there may be changes that the Hub has not been told.
func (h *Hub) Watch(caller, issuer string, may func(clientID string) bool) (*Watch, error) {
	stale := h.cfg.Stale()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return nil, ErrStopping
	case h.callers[caller] >= h.cfg.MaxPerCaller:
		return nil, ErrTooMany
	case h.total >= h.cfg.MaxWatches:
		return nil, ErrFull
	case stale:
		return nil, ErrLost
	}
	w := &Watch{
		hub: h, issuer: issuer, caller: caller, may: may, wake: make(chan struct{}, 1),
		pending: queue{most: h.cfg.MaxPending}, again: make(map[string]time.Time),
	}
	if h.watches[issuer] == nil {
		h.watches[issuer] = make(map[*Watch]struct{})
	}
	h.watches[issuer][w] = struct{}{}
	h.total++
	h.callers[caller]++
	return w, nil
}

// Close ends the watch. It is called once.
func (w *Watch) Close() {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watches[w.issuer], w)
	if len(h.watches[w.issuer]) == 0 {
		delete(h.watches, w.issuer)
	}
	if h.callers[w.caller]--; h.callers[w.caller] == 0 {
		delete(h.callers, w.caller)
	}
	if h.total--; h.total == 0 {
		h.uris.clear()
	}
}

// clockEvery is how often a watch looks whose time has come.
const clockEvery = 5 * time.Second

// Next waits for a client that has changed. What happens to it from now on is
// told again. Errors: ErrLost, ErrStopping, or the cause of the context's end.
func (w *Watch) Next(ctx context.Context) (clientID string, err error) {
	clock := time.NewTicker(clockEvery)
	defer clock.Stop()
	for {
		if clientID, ok, err := w.take(); ok || err != nil {
			return clientID, err
		}
		select {
		case <-w.wake:
		case now := <-clock.C:
			w.strike(now)
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

func (w *Watch) take() (clientID string, ok bool, err error) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.ended != nil {
		return "", false, w.ended
	}
	clientID, told, ok := w.pending.take()
	if ok {
		w.told = told
	}
	return clientID, ok, nil
}

// Told is what Hub.Told was when the watch was told last of the client that Next
// returned last. A look that began when Hub.Told was at least that has seen the
// change.
func (w *Watch) Told() uint64 {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	return w.told
}

// LookAgain has Next return a client some seconds after the given time at the
// latest, whether it has changed or not; the zero time takes that back. It is for
// changes that nobody makes: those that the clock brings. As many clients are
// remembered as may be pending.
func (w *Watch) LookAgain(clientID string, at time.Time) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	_, there := w.again[clientID]
	switch {
	case at.IsZero():
		delete(w.again, clientID)
	case there || len(w.again) < w.pending.most:
		w.again[clientID] = at
	}
}

// strike adds the clients whose time has come.
func (w *Watch) strike(now time.Time) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for clientID, at := range w.again {
		if !now.Before(at) {
			delete(w.again, clientID)
			w.add(clientID)
		}
	}
}

// add has a client looked at. The caller holds hub.mu.
func (w *Watch) add(clientID string) {
	switch {
	case w.ended != nil || !w.may(clientID):
	case w.pending.add(clientID, w.hub.told):
		signal(w.wake)
	default:
		w.end(ErrLost)
	}
}

// end lets Next return why the watch tells nothing any more. The caller holds
// hub.mu.
func (w *Watch) end(why error) {
	if w.ended == nil {
		w.ended = why
		w.pending.clear()
		clear(w.again)
		signal(w.wake)
	}
}
