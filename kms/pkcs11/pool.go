package pkcs11

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// A pool that shrank tries one session more each regrowPause after the last
// capacity error. When that meets the limit again the pause doubles, up to
// maxRegrowPause, so that a token that really has room for fewer is not asked
// for more all the time.
const (
	regrowPause    = 3 * time.Second
	maxRegrowPause = 5 * time.Minute
)

// At most minQueue calls wait for a session, or queuePerSession for each session
// if that is more. Callers without a deadline would else
// pile up without bound before a module that hangs.
const (
	minQueue        = 1024
	queuePerSession = 64
)

// waits sums up how long calls waited for a session.
type waits struct {
	count, nanos atomic.Int64
}

// since counts one wait that began at begin.
func (w *waits) since(begin time.Time) {
	w.count.Add(1)
	w.nanos.Add(int64(time.Since(begin)))
}

// session is the right to one session of the token, and once open the session
// itself. Whoever got it from the pool has it alone, until it goes back by put
// or release.
type session struct {
	handle     uint
	open       bool
	spoiled    bool   // met an error: not to be used again
	dead       bool   // the module does not know it any more: not to be closed either
	generation uint64 // of the pool when it was opened
}

// pool bounds the sessions of a token. It makes no calls into the module: its
// users open sessions and close them.
//
// At any time size = idle + rights + those handed out.
type pool struct {
	idle       chan *session // open, ready
	rights     chan struct{} // sessions that may be opened
	generation atomic.Uint64 // sessions of an older one are not used again
	retired    atomic.Bool   // no session is used again
	gone       chan struct{} // closed with it: nobody waits for a session any more

	waiting, inUse, opened atomic.Int64 // for Stats
	waits                  *waits       // for Stats, of the token

	full  int         // as configured, constant
	small atomic.Bool // size < full

	mu      sync.Mutex
	size    int           // guarded by mu: at least 1, at most full
	changed time.Time     // guarded by mu: when it last shrank or grew
	grew    bool          // guarded by mu: the last change was that it grew
	pause   time.Duration // guarded by mu: from changed to the next growth
}

func newPool(size int) *pool {
	p := &pool{
		idle:   make(chan *session, size),
		rights: make(chan struct{}, size),
		gone:   make(chan struct{}),
		size:   size,
		full:   size,
		pause:  regrowPause,
		waits:  new(waits),
	}
	for range size {
		p.rights <- struct{}{}
	}
	return p
}

// get waits for a session; an open one is taken first. It waits for half of the
// time that ctx leaves: a session that comes later would be used for a signature
// that nobody waits for any more, and while more is asked for than the token can
// do, all of them would. If too many wait already it fails at once.
func (p *pool) get(ctx context.Context) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case s := <-p.idle:
		p.inUse.Add(1)
		return s, nil
	default:
	}
	select {
	case <-p.rights:
		p.inUse.Add(1)
		return &session{}, nil
	default:
	}
	defer p.waits.since(time.Now())
	defer p.waiting.Add(-1)
	if queue := int64(max(minQueue, queuePerSession*p.full)); p.waiting.Add(1) > queue {
		return nil, fmt.Errorf("%w: too many signatures wait for a session (%d); the token is too slow for the load, or hangs", kms.ErrThrottled, queue)
	}
	var late <-chan time.Time
	if deadline, ok := ctx.Deadline(); ok {
		timer := time.NewTimer(time.Until(deadline) / 2)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case s := <-p.idle:
		p.inUse.Add(1)
		return s, nil
	case <-p.rights:
		p.inUse.Add(1)
		return &session{}, nil
	case <-p.gone:
		return nil, errEpoch
	case <-late:
		return nil, fmt.Errorf("%w: none of %d sessions was free in half of the time that was left", kms.ErrThrottled, p.limit())
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for one of %d sessions: %w", p.limit(), ctx.Err())
	}
}

// retire ends the use of the pool.
func (p *pool) retire() {
	if !p.retired.Swap(true) {
		close(p.gone)
	}
}

// put gives an open, healthy session back.
func (p *pool) put(s *session) {
	p.inUse.Add(-1)
	p.idle <- s
	p.regrow()
}

// release gives the right to a session back, after it was closed.
func (p *pool) release() {
	p.inUse.Add(-1)
	p.rights <- struct{}{}
	p.regrow()
}

// shrink gives up the right to a session because the token has no room for
// it. It reports false, and acts like release, if that was the last one.
func (p *pool) shrink() bool {
	p.mu.Lock()
	if p.size == 1 {
		p.mu.Unlock()
		p.release()
		return false
	}
	defer p.mu.Unlock()
	p.inUse.Add(-1)
	p.size--
	if p.grew && time.Since(p.changed) <= 2*p.pause { // it met the limit again
		p.pause = min(2*p.pause, maxRegrowPause)
	} else if p.grew {
		p.pause = regrowPause
	}
	p.changed, p.grew = time.Now(), false
	p.small.Store(true)
	return true
}

// regrow adds a right when the last capacity error is some time ago.
func (p *pool) regrow() {
	if !p.small.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size == p.full || time.Since(p.changed) < p.pause {
		return
	}
	p.size++
	p.changed, p.grew = time.Now(), true
	p.small.Store(p.size < p.full)
	p.rights <- struct{}{}
}

func (p *pool) limit() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size
}

// current reports whether s may be used again: it was opened after the last
// distrust.
func (p *pool) current(s *session) bool {
	return s.generation == p.generation.Load() && !p.retired.Load()
}

// distrust makes all sessions old, and returns those that are idle, to be
// closed and released.
func (p *pool) distrust() []*session {
	p.generation.Add(1)
	var old []*session
	for range cap(p.idle) {
		select {
		case s := <-p.idle:
			p.inUse.Add(1)
			if p.current(s) {
				p.put(s)
				continue
			}
			old = append(old, s)
		default:
			return old
		}
	}
	return old
}

// drain takes all sessions away, for good, and returns the open ones. It
// reports false if some have not come back within limit.
func (p *pool) drain(limit time.Duration) ([]*session, bool) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var open []*session
	for range p.limit() {
		select {
		case s := <-p.idle:
			open = append(open, s)
		case <-p.rights:
		case <-timer.C:
			return open, false
		}
	}
	return open, true
}
