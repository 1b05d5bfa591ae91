package admit

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// gate is the way to one backend: its places, and the queue before them.
type gate struct {
	backend string
	longest int // how many may wait at most
	most    int // places as configured; 0 for as many as there is room for
	room    func() int
	base    time.Time // times in here are counted from it
	log     *slog.Logger
	waiters sync.Pool    // of *waiter
	report  atomic.Int64 // when the log may be told next that calls are turned away
	waits   atomic.Bool  // that somebody may be waiting; changed with mu

	mu    sync.Mutex    // guards what follows; of others only room is called with it
	limit int           // places that there are
	busy  int           // places that are taken
	spare *place        // those that nobody has
	moved time.Duration // when one was last taken or given back
	queue queue
	pace  pace
}

// place is the right to ask for one signature. Whoever has it calls leave.
type place struct {
	gate  *gate
	began time.Duration
	taken bool
	next  *place // among those that nobody has
	leave func() // made once, so that to enter allocates nothing
}

func newGate(name string, b Backend, queueSize int, log *slog.Logger) *gate {
	g := &gate{backend: name, longest: queueSize, most: b.InFlight, room: b.Room, base: time.Now(), log: log}
	g.queue.lines = make(map[string]*line)
	if g.limit = g.most; g.limit == 0 {
		g.limit = runtime.GOMAXPROCS(0)
	}
	g.limit = g.places()
	g.pace.freed(0)
	return g
}

// now is the time since base; it is cheaper than the time of day.
func (g *gate) now() time.Duration { return time.Since(g.base) }

// places is how many there should be now. While a backend does not know, as one
// that is down, it is as many as before.
func (g *gate) places() int {
	if g.room == nil {
		return g.most
	}
	switch room := g.room(); {
	case room < 1:
		return g.limit
	case g.most > 0 && room > g.most:
		return g.most
	default:
		return room
	}
}

func (g *gate) enter(ctx context.Context, caller string) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	now := g.now()
	g.look(now)
	if g.queue.waiting == 0 && g.busy < g.limit {
		p := g.take(now)
		g.mu.Unlock()
		return p.leave, nil
	}
	w, refused := g.join(ctx, caller, now)
	g.mu.Unlock()
	if refused != nil {
		return nil, g.turnedAway(ctx, refused)
	}
	return g.wait(ctx, w)
}

// take takes a place, which there is.
func (g *gate) take(now time.Duration) *place {
	p := g.spare
	if p == nil {
		p = &place{gate: g}
		p.leave = p.done
	} else {
		g.spare, p.next = p.next, nil
	}
	p.began, p.taken = now, true
	g.moved = now
	if g.busy++; g.busy == g.limit {
		g.pace.full(now)
	}
	return p
}

// done gives the place back, to the next in the queue if there is one.
func (p *place) done() {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if !p.taken {
		return
	}
	now := g.now()
	g.pace.served(now - p.began)
	g.giveBack(p, now)
	g.look(now)
	g.admit(now)
}

func (g *gate) giveBack(p *place, now time.Duration) {
	p.taken, p.next, g.spare = false, g.spare, p
	if g.busy--; g.busy == g.limit-1 {
		g.pace.freed(now)
	}
	g.moved = now
}

// admit lets those in for whom there are places, callers in turn. Who could not
// make use of one any more is turned away instead.
func (g *gate) admit(now time.Duration) {
	for g.busy < g.limit {
		w := g.queue.pop()
		if w == nil {
			g.waits.Store(false)
			return
		}
		if w.until > 0 && now+g.pace.service > w.until {
			g.turnAway(w)
			continue
		}
		w.turn <- verdict{place: g.take(now)}
	}
}

// look sees, a few times a second, how many places there are, and what the
// queue should be.
func (g *gate) look(now time.Duration) {
	if now < g.pace.next {
		return
	}
	if limit := g.places(); limit != g.limit {
		g.pace.full(now) // what was free until now is counted
		if g.limit = limit; g.busy < limit {
			g.pace.freed(now)
		}
	}
	g.pace.judge(now, g.busy < g.limit)
	g.admit(now)
}

// mayWait is how many may wait now.
func (g *gate) mayWait() int {
	if g.pace.short {
		return min(g.limit, g.longest)
	}
	return g.longest
}

// join puts a call in the queue, or says why not.
func (g *gate) join(ctx context.Context, caller string, now time.Duration) (*waiter, *OverloadedError) {
	own := g.queue.lines[caller]
	left, bounded := timeLeft(ctx)
	victim, ok := g.may(own, now, left, bounded)
	if !ok {
		return nil, g.refuse()
	}
	if victim != nil {
		g.queue.remove(victim)
		g.turnAway(victim)
	}
	var patience, until time.Duration
	if bounded {
		patience, until = left/2, now+left
	}
	w, _ := g.waiters.Get().(*waiter)
	if w == nil {
		w = &waiter{turn: make(chan verdict, 1)}
	}
	w.patience, w.until = patience, until
	g.queue.push(caller, w)
	g.waits.Store(true)
	return w, nil
}

// may says whether one more of a caller may wait, that has so much time left if
// it is bounded. If the queue is full that is at the cost of the caller with the
// most in it, if that has more than this one will have: victim is then whom to
// turn away. A caller with nothing in a queue that is only short has room anyhow.
func (g *gate) may(own *line, now, left time.Duration, bounded bool) (victim *waiter, ok bool) {
	if bounded {
		if wait := g.waitOf(own, now, left/2); wait > left/2 || wait+g.pace.service > left {
			return nil, false
		}
	}
	if g.queue.waiting < g.mayWait() {
		return nil, true
	}
	if longest := g.queue.longest(); longest.n > own.len()+1 {
		return longest.tail, true
	}
	return nil, own == nil && g.queue.waiting < g.longest
}

func timeLeft(ctx context.Context) (left time.Duration, bounded bool) {
	deadline, bounded := ctx.Deadline()
	if !bounded {
		return 0, false
	}
	return time.Until(deadline), true
}

// refuses says whether a call would be turned away if it came now.
func (g *gate) refuses(ctx context.Context, caller string) error {
	if !g.waits.Load() {
		return nil
	}
	left, bounded := timeLeft(ctx)
	g.mu.Lock()
	now := g.now()
	g.look(now)
	var refused *OverloadedError
	if g.queue.waiting > 0 {
		if _, ok := g.may(g.queue.lines[caller], now, left, bounded); !ok {
			refused = g.refuse()
		}
	}
	g.mu.Unlock()
	if refused == nil {
		return nil
	}
	return g.turnedAway(ctx, refused)
}

// waitOf estimates how long one waits that comes behind so many of its caller. A
// rough estimate will do where that is within enough.
func (g *gate) waitOf(own *line, now, enough time.Duration) time.Duration {
	each := g.pace.service / time.Duration(g.limit)
	wait := each * time.Duration(g.queue.waiting+1)
	if wait > enough {
		wait = each * time.Duration(g.queue.ahead(own)+1)
	}
	// A place has been waited for this long already, and none was given back.
	return max(wait, now-g.moved)
}

// refuse counts a call that is turned away, and says when to come again.
func (g *gate) refuse() *OverloadedError {
	g.pace.refused++
	g.pace.refusedAll++
	return &OverloadedError{RetryAfter: g.pace.pause(g.pace.service / time.Duration(g.limit) * time.Duration(g.queue.waiting+1))}
}

func (g *gate) turnAway(w *waiter) { w.turn <- verdict{refused: g.refuse()} }

// wait waits for the verdict on a call in the queue, for as long as its patience
// lasts.
func (g *gate) wait(ctx context.Context, w *waiter) (func(), error) {
	var late <-chan time.Time
	if w.patience > 0 {
		if w.timer == nil {
			w.timer = time.NewTimer(w.patience)
		} else {
			w.timer.Reset(w.patience)
		}
		defer w.timer.Stop()
		late = w.timer.C
	}
	var v verdict
	select {
	case v = <-w.turn:
	case <-late:
		v = g.leaveQueue(w, true)
	case <-ctx.Done():
		v = g.leaveQueue(w, false)
	}
	g.waiters.Put(w)
	if v.refused != nil {
		return nil, g.turnedAway(ctx, v.refused)
	}
	if err := ctx.Err(); err != nil {
		if v.place != nil {
			v.place.leave()
		}
		return nil, fmt.Errorf("waiting for the backend: %w", err)
	}
	return v.place.leave, nil
}

// leaveQueue takes a call out of the queue, refused because it is late or because
// nobody waits for it any more, and returns the verdict: an earlier one if there
// is one.
func (g *gate) leaveQueue(w *waiter, late bool) verdict {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.line == nil {
		return <-w.turn // it was sent before
	}
	g.queue.remove(w)
	if !late {
		return verdict{}
	}
	return verdict{refused: g.refuse()}
}

// turnedAway is the error for a call that was turned away. The log hears of it
// now and then.
func (g *gate) turnedAway(ctx context.Context, e *OverloadedError) error {
	due := g.report.Load()
	if now := g.now(); int64(now) < due || !g.report.CompareAndSwap(due, int64(now+reportEvery)) {
		return e
	}
	s := g.stats()
	g.log.WarnContext(ctx, "calls are turned away: the backend is asked for more signatures than it can make in time",
		"backend", g.backend, "in_flight_limit", s.Limit, "queued", s.Queued, "turned_away_since_start", s.Refused)
	return e
}

func (g *gate) stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.look(g.now())
	return Stats{InFlight: g.busy, Limit: g.limit, Queued: g.queue.waiting, Short: g.pace.short, Refused: g.pace.refusedAll}
}
