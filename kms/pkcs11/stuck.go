package pkcs11

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// A call that hangs inside the module cannot be called back. It costs its
// caller the deadline and the pool one session. This file finds out when it
// costs more than that: when no session is left, or when something has to be
// done that has to be done alone. Then the token is down, without any more
// calls being lost in it, until enough of them have come out.

// The bounds on how long a call may be inside the module.
const (
	stuckAfter   = 5 * time.Second  // then it is counted as stuck
	attemptLimit = 30 * time.Second // for an attempt to bring the token up, which may have to reach it over a network
	makingLimit  = 10 * time.Minute // for the generation of a key pair
	lookEvery    = 500 * time.Millisecond
)

// errHangs is in the reason of a token that was given up because calls do not
// come out of it.
var errHangs = errors.New("the token hangs")

// calls are those inside the module now. The zero value has none.
type calls struct {
	mu    sync.Mutex
	last  uint64
	began map[uint64]time.Time // guarded by mu
}

// enter notes that a call goes in, leave that it came out.
func (c *calls) enter() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.began == nil {
		c.began = map[uint64]time.Time{}
	}
	c.last++
	c.began[c.last] = time.Now()
	return c.last
}

func (c *calls) leave(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.began, id)
}

// longer counts the calls that have been inside for longer than limit.
func (c *calls) longer(limit time.Duration) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, began := range c.began {
		if time.Since(began) > limit {
			n++
		}
	}
	return n
}

// watch looks after the token until it is closed: whether it hangs, and while
// it is down, whether it can be brought up again. Without it a replica that
// nobody calls would never heal.
func (t *token) watch() {
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-t.wake:
		case <-timer.C:
		}
		timer.Reset(t.look())
	}
}

// look is one look of watch, and says when to look again.
func (t *token) look() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed || t.tried.IsZero():
		return lookEvery
	case t.link != nil:
		if l, stuck := t.link, t.inUse.longer(stuckAfter); stuck >= l.pool.limit() {
			t.stuckLimit = l.pool.limit()
			t.loseLocked(l, hanging(fmt.Sprintf("%d calls have not come out of the module for more than %v, and no session is left", stuck, stuckAfter)), false)
			t.tellStuck(t.reason)
		}
		return lookEvery
	case t.attempt != nil:
		if t.attempts.longer(attemptLimit) > 0 && !errors.Is(t.reason, errHangs) {
			t.reason = hanging(fmt.Sprintf("the attempt to log in to the token has not come out of the module for more than %v", attemptLimit))
			t.cfg.Logger.Warn("PKCS#11 token hangs", "token", t.cfg.tokenName(), "why", t.reason)
			t.tellStuck(t.reason)
		}
		return lookEvery
	case t.blocked():
		return lookEvery
	}
	if wait := t.retryAfter() - time.Since(t.tried); wait > 0 {
		return wait
	}
	t.start()
	return lookEvery
}

// blocked reports that so many calls are stuck that an attempt would only lose
// more of them: with those of the links before, no pool is ever more than once
// lost. The caller holds mu.
func (t *token) blocked() bool {
	return t.stuckLimit > 0 && t.inUse.longer(stuckAfter) >= t.stuckLimit
}

// hanging is the reason of a token that hangs.
func hanging(text string) *problem {
	return &problem{
		stage: StepToken, text: text,
		advice: "see why the token does not answer (its network, its load, its own log); it is used again when the calls come back, and a restart of the service does it at once",
		err:    errHangs,
	}
}

// tellStuck calls Config.OnStuck, once until the token is up again. The caller
// holds mu.
func (t *token) tellStuck(err error) {
	if t.stuckTold || t.closed {
		return
	}
	t.stuckTold = true
	if f := t.cfg.OnStuck; f != nil {
		t.wg.Go(func() { f(err) })
	}
}

// stuck counts all calls of the token that do not come out.
func (t *token) stuck() int {
	return t.inUse.longer(stuckAfter) + t.attempts.longer(stuckAfter) + t.others.longer(stuckAfter) + t.making.longer(makingLimit)
}
