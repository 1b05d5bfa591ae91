package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Modules is the registry of the PKCS#11 modules that a process has loaded.
// PKCS#11 lets a process initialize a module once, so all backends on one
// module have to share one registry: main makes it and gives it to each
// Config. It is safe for concurrent use.
type Modules struct {
	load loader

	mu      sync.Mutex
	modules map[string]*module   // guarded by mu: by resolved path; never removed
	tokens  map[tokenKey]*token  // guarded by mu: those with a backend
	remotes map[tokenKey]*remote // guarded by mu: the same of those in a worker process
}

// NewModules returns an empty registry.
func NewModules() *Modules { return newModules(loadModule) }

func newModules(load loader) *Modules {
	return &Modules{load: load, modules: map[string]*module{}, tokens: map[tokenKey]*token{}, remotes: map[tokenKey]*remote{}}
}

// errEpoch: the module was initialized again since, or the link was retired,
// so that every handle from before means nothing, or something else.
var errEpoch = errors.New("the token has to be logged in to again")

// errStuck: a call has not come out of the module, so nothing may be done that
// has to be done alone.
var errStuck = fmt.Errorf("a call is stuck inside the module for more than %v", parkLimit)

// errTooSoon: other tokens of the module are at work, and a short while ago it
// was initialized, or could not be because a call was stuck in it.
var errTooSoon = errors.New("the module serves other tokens, and was initialized again, or could not be, a short while ago")

// How often a lost token may have a module initialized again that other tokens
// are using, as it costs them all their sessions: a few times quickly, then with
// pauses that double, until it was left alone for a while.
const (
	quickPause   = time.Second // less than the usual Config.RetryAfter, with which it is asked for
	quickTimes   = 4
	longestPause = time.Minute
	calmTime     = 30 * time.Second // or twice the pause, if that is more
)

// stuckPause is how often it is tried while a call is stuck in the module: that
// costs the other tokens a standstill of parkLimit for nothing.
const stuckPause = time.Minute

// pacing says when a module may be initialized again that others are using.
type pacing struct {
	last  time.Time // when it was initialized
	times int       // how often again, since it was left alone
}

// pause is the time to the next one.
func (p pacing) pause() time.Duration {
	pause := quickPause
	for n := quickTimes; n < p.times && pause < longestPause; n++ {
		pause *= 2
	}
	return min(pause, longestPause)
}

func (p pacing) due(now time.Time) bool { return now.Sub(p.last) >= p.pause() }

// again notes that the module is initialized again now.
func (p *pacing) again(now time.Time) {
	if now.Sub(p.last) >= max(calmTime, 2*p.pause()) {
		p.times = 0
	}
	p.times++
	p.last = now
}

// module is one loaded PKCS#11 library.
type module struct {
	path string
	load loader
	gate gate // before every call

	// epoch counts the times the module was initialized; 0 while it is not.
	// It is read inside the gate, and changed only while parked.
	epoch atomic.Uint64
	links atomic.Int64 // tokens that are up

	generating atomic.Int64 // key pairs, of any token, which takes long

	life      chan struct{} // capacity 1: held for lifecycle calls; guards what follows
	lib       cryptoki      // nil until loaded, then constant
	reserved  string        // for C_Initialize; constant while there are users, or the module is initialized
	users     int           // tokens that hold on to the module
	count     uint64        // the last epoch
	pacing    pacing
	lastStuck time.Time // when it last could not be initialized again for a stuck call

	mu     sync.Mutex
	claims map[uint]*token // guarded by mu: who uses a slot, in this epoch
}

// errReserved: one module was to be initialized in two ways.
var errReserved = errors.New("another backend on the same module has another init_reserved, and a process initializes a module once: " +
	"give both the same, or isolation: process to one of them")

// agrees reports whether no other token of the module that cfg names is
// initialized with another text. The caller holds mu.
func (r *Modules) agrees(cfg Config) bool {
	path := resolved(cfg.Module)
	for _, t := range r.tokens {
		if t.cfg.InitReserved != cfg.InitReserved && resolved(t.cfg.Module) == path {
			return false
		}
	}
	return true
}

// resolved is the path that module paths are compared by.
func resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return filepath.Clean(path) // not there yet
}

// acquire returns the module whose library is at path, held until release. It
// fails with errReserved if others hold it who have it initialized with another
// text.
func (r *Modules) acquire(ctx context.Context, path, reserved string) (*module, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	m := r.modules[resolved]
	if m == nil {
		m = &module{path: resolved, load: r.load, life: make(chan struct{}, 1), claims: map[uint]*token{}}
		r.modules[resolved] = m
	}
	r.mu.Unlock()
	if err := m.lock(ctx); err != nil {
		return nil, err
	}
	defer m.unlock()
	if (m.users > 0 || m.epoch.Load() != 0) && m.reserved != reserved {
		return nil, errReserved
	}
	m.users++
	m.reserved = reserved
	return m, nil
}

func (m *module) lock(ctx context.Context) error {
	select {
	case m.life <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *module) unlock() { <-m.life }

// enter waits at the gate, and fails with errEpoch if the module is not the
// one that handles of the given epoch belong to. After nil call gate.leave.
func (m *module) enter(ctx context.Context, epoch uint64) error {
	if err := m.gate.enter(ctx); err != nil {
		return err
	}
	if m.epoch.Load() != epoch {
		m.gate.leave()
		return errEpoch
	}
	return nil
}

// alone runs f while no other call is inside the module. The caller holds
// life.
func (m *module) alone(f func() error) error {
	if !m.gate.park(parkLimit) {
		return errStuck
	}
	defer m.gate.reopen()
	return f()
}

// initialize loads the library and calls C_Initialize, unless that has been
// done. fresh reports that it was done just now.
func (m *module) initialize(ctx context.Context) (epoch uint64, fresh bool, err error) {
	if err := m.lock(ctx); err != nil {
		return 0, false, err
	}
	defer m.unlock()
	if m.lib == nil {
		lib, err := m.load(m.path)
		if err != nil {
			return 0, false, err
		}
		m.lib = lib
	}
	if e := m.epoch.Load(); e != 0 {
		return e, false, nil
	}
	if err := m.alone(m.start); err != nil {
		return 0, false, err
	}
	return m.epoch.Load(), true, nil
}

// start calls C_Initialize. The caller is alone.
func (m *module) start() error {
	if err := m.lib.initialize(m.reserved); err != nil {
		return err
	}
	m.count++
	m.pacing.last = time.Now()
	m.mu.Lock()
	clear(m.claims)
	m.mu.Unlock()
	m.epoch.Store(m.count)
	return nil
}

// stop calls C_Finalize. If that fails the epoch goes on: the module counts as
// initialized to itself, so it would refuse C_Initialize, and C_Finalize has to
// be tried again. The caller is alone.
func (m *module) stop() error {
	if err := m.lib.finalize(); err != nil && !errors.Is(err, ckrNotInitialized) {
		return err
	}
	m.epoch.Store(0)
	return nil
}

// reinitialize calls C_Finalize and C_Initialize, unless somebody else has
// done so since the epoch that the caller saw. It fails with errStuck or
// errTooSoon without having done anything.
func (m *module) reinitialize(ctx context.Context, seen uint64) (epoch uint64, err error) {
	if err := m.lock(ctx); err != nil {
		return 0, err
	}
	defer m.unlock()
	if e := m.epoch.Load(); e != 0 && e != seen {
		return e, nil
	}
	if m.links.Load() > 0 && (!m.pacing.due(time.Now()) || time.Since(m.lastStuck) < stuckPause) {
		return 0, errTooSoon
	}
	err = m.alone(func() error {
		m.pacing.again(time.Now())
		if m.epoch.Load() != 0 {
			if err := m.stop(); err != nil {
				return err
			}
		}
		return m.start()
	})
	if errors.Is(err, errStuck) {
		m.lastStuck = time.Now()
	}
	return m.epoch.Load(), err
}

// claim makes the token in slot t's own in this epoch, and reports false if it
// is another's: two users of one token in one process share its login, and
// would log each other out.
func (m *module) claim(slot uint, t *token) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if owner := m.claims[slot]; owner != nil && owner != t {
		return false
	}
	m.claims[slot] = t
	return true
}

// disclaim lets go of all that t claimed.
func (m *module) disclaim(t *token) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for slot, owner := range m.claims {
		if owner == t {
			delete(m.claims, slot)
		}
	}
}

// release lets go of the module; the last to do so finalizes it. The library
// stays loaded (see loader).
func (m *module) release(ctx context.Context) error {
	if err := m.lock(ctx); err != nil {
		return err
	}
	defer m.unlock()
	m.users--
	if m.users > 0 || m.epoch.Load() == 0 {
		return nil
	}
	return m.alone(m.stop)
}
