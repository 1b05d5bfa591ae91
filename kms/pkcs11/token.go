package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// errClosed is the reason of a token, or a backend, that was closed.
var errClosed = errors.New("the backend is closed")

// errStarting is the reason of a token that has not been tried yet.
var errStarting = errors.New("the token is being logged in to for the first time")

// tokenKey is how the configuration names a token.
// Tokens of one module that was initialized with different texts, in different
// processes, may have the same label and serial number (those of NSS have).
type tokenKey struct{ module, reserved, label, serial string }

// token is one token of one module, with all that brings it up and keeps it
// up. The backends of a process that name the same token share it. It
// implements vault.
type token struct {
	cfg     Config
	modules *Modules
	refs    int // guarded by modules.mu: backends that use it

	ctx    context.Context // ends when the token is closed
	cancel context.CancelFunc
	wg     sync.WaitGroup // watch, attempts and the closing of distrusted sessions
	wake   chan struct{}  // capacity 1: watch has something to look at

	mu      sync.Mutex
	mod     *module           // guarded by mu: from the first attempt that found the file
	link    *link             // guarded by mu: nil while down
	reason  error             // guarded by mu: why down
	since   time.Time         // guarded by mu: of the last change between up and down
	attempt *attempt          // guarded by mu: to bring the token up; nil if none runs
	tried   time.Time         // guarded by mu: when the last attempt began
	unsure  time.Duration     // guarded by mu: the pause after a login whose answer does not say whether the PIN was wrong
	lost    bool              // guarded by mu: the next attempt initializes the module again
	closed  bool              // guarded by mu
	faults  map[string]uint64 // guarded by mu: errors of the module by their name

	stuckLimit int  // guarded by mu: with so many calls stuck no attempt is made; 0 unless given up because of that
	stuckTold  bool // guarded by mu: OnStuck was called and the token has not been up since

	// Calls inside the module: with a session of a pool, to bring the token
	// up, to close sessions, and to generate a key.
	inUse, attempts, others, making calls
	crew                            crew          // runs calls with a session of a pool
	makeTurn                        chan struct{} // capacity 1: one key is generated at a time

	loginTurn  chan struct{} // capacity 1: guards the turn from pins.take to what became of it, and what follows
	pins       pinSource
	loginEpoch uint64 // in which a PIN was accepted last
	doubtEpoch uint64 // in which one was refused since, or could not be sent

	logins, renewals, restarts atomic.Uint64 // for Stats
	waits                      waits         // for Stats
}

// attempt is one attempt to bring a token up.
type attempt struct {
	done chan struct{} // closed when result is set
	examination
}

// open returns the token that cfg names, which is one and the same for all
// backends that name it alike. It tries nothing before it is used.
func (r *Modules) open(cfg Config) (*token, error) {
	key := tokenKey{cfg.Module, cfg.InitReserved, cfg.Token, cfg.Serial}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.agrees(cfg) {
		return nil, fmt.Errorf("pkcs11: token %s: module %s: %w", cfg.tokenName(), cfg.Module, errReserved)
	}
	if t := r.tokens[key]; t != nil {
		if t.cfg.PINFile != cfg.PINFile || t.cfg.InsistOnLogin != cfg.InsistOnLogin || t.cfg.Sessions != cfg.Sessions || t.cfg.RetryAfter != cfg.RetryAfter || t.cfg.RefusalFile != cfg.RefusalFile {
			return nil, fmt.Errorf("pkcs11: another backend uses the same token %s with other settings; name the token once and use that backend in both places", cfg.tokenName())
		}
		t.refs++
		return t, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &token{
		cfg: cfg, modules: r, refs: 1, ctx: ctx, cancel: cancel,
		reason: errStarting, since: time.Now(),
		wake: make(chan struct{}, 1), makeTurn: make(chan struct{}, 1),
		loginTurn: make(chan struct{}, 1), pins: cfg.pinSource(), faults: map[string]uint64{},
	}
	r.tokens[key] = t
	t.wg.Go(t.watch)
	return t, nil
}

// tokenName is how messages call the token.
func (c Config) tokenName() string {
	var parts []string
	if c.Token != "" {
		parts = append(parts, fmt.Sprintf("%q", c.Token))
	}
	if c.Serial != "" {
		parts = append(parts, "with serial number "+fmt.Sprintf("%q", c.Serial))
	}
	return strings.Join(parts, " ")
}

// noted counts an error of the module and returns it.
func (t *token) noted(err error) error {
	var c ckr
	if err != nil && errors.As(err, &c) {
		t.mu.Lock()
		t.faults[c.Error()]++
		t.mu.Unlock()
	}
	return err
}

// up returns the link if the token is up. If not, it sees to it that an
// attempt is made when it is time for one, and waits for it only if asked to.
func (t *token) up(ctx context.Context, wait bool) (*link, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for {
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil, down(errClosed)
		}
		if l := t.link; l != nil {
			if l.mod.epoch.Load() == l.epoch {
				t.mu.Unlock()
				return l, nil
			}
			// Another token had the module initialized again. This one is
			// well, so its callers wait for the new login.
			t.takeDown(errEpoch, false)
			t.start()
			wait = true
		}
		t.startIfDue()
		a, reason := t.attempt, t.reason
		wait = wait || errors.Is(reason, errPINChanged) // it is well too
		t.mu.Unlock()
		if a == nil || !wait {
			return nil, down(reason)
		}
		select {
		case <-a.done:
			if a.problem != nil {
				return nil, down(a.problem)
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// takeDown ends the use of the link. The caller holds mu.
func (t *token) takeDown(reason error, lost bool) {
	t.link.mod.links.Add(-1)
	t.link, t.reason, t.since, t.lost = nil, reason, time.Now(), lost
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// lose marks the token down because of an error met on l, and starts bringing
// it up again, if that is due.
func (t *token) lose(l *link, err error, lost bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.loseLocked(l, err, lost)
}

// relog has the module initialized again for the next login, at once: nothing
// is the matter but that the last login is lost and the PIN has changed.
func (t *token) relog(l *link, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.link == l && !t.closed {
		t.loseLocked(l, err, true)
		t.start()
	}
}

// loseLocked is lose for a caller that holds mu.
func (t *token) loseLocked(l *link, err error, lost bool) {
	if t.link != l || t.closed {
		return
	}
	t.takeDown(err, lost)
	t.wg.Go(func() { l.retire(t.ctx) })
	t.cfg.Logger.Warn("PKCS#11 token is down", "token", l.info.label, "serial", l.info.serial, "why", err)
	t.startIfDue()
}

// startIfDue starts an attempt if it is time for one. The caller holds mu.
func (t *token) startIfDue() {
	if t.attempt == nil && time.Since(t.tried) >= t.retryAfter() && !t.blocked() {
		t.start()
	}
}

// start starts an attempt. The caller holds mu, and there is none.
func (t *token) start() {
	if t.attempt != nil {
		return
	}
	a := &attempt{done: make(chan struct{})}
	t.attempt, t.tried = a, time.Now()
	lost := t.lost
	t.wg.Go(func() { t.bringUp(a, lost) })
}

// maxUnsure is the longest pause between logins that may have used up a try of
// the PIN.
const maxUnsure = 5 * time.Minute

// retryAfter is how long after the last attempt the next may be made. The caller
// holds mu.
func (t *token) retryAfter() time.Duration { return max(t.cfg.RetryAfter, t.unsure) }

// doubt notes how an attempt went. Some tokens refuse a PIN with a code of their
// vendor, and lock; others answer so when they are out of reach. Neither must
// use up the tries, nor need somebody to look: each pause is twice the one
// before. The caller holds mu.
func (t *token) doubt(p *problem) {
	if p == nil || !p.unsure {
		t.unsure = 0
		return
	}
	t.unsure = min(max(2*t.unsure, t.cfg.RetryAfter), maxUnsure)
}

// bringUp is one attempt: module, token, login.
func (t *token) bringUp(a *attempt, lost bool) {
	defer close(a.done)
	a.warning = pinWarning(t.cfg.PINFile)
	call := t.attempts.enter()
	l, p := t.connect(&a.examination, lost)
	t.attempts.leave(call)
	a.problem = p

	t.mu.Lock()
	defer t.mu.Unlock()
	t.attempt = nil
	t.doubt(p)
	switch {
	case p != nil:
		if t.reason == nil || t.reason.Error() != p.Error() {
			t.cfg.Logger.Warn("PKCS#11 token cannot be used", "token", t.cfg.tokenName(), "stage", p.stage, "why", p)
		}
		t.reason = p
		t.lost = t.lost || codeClass(p.err) == stale || codeClass(p.err) == gone
		if time.Since(t.tried) > t.cfg.RetryAfter {
			t.tried = time.Now() // it took long: a pause all the same
		}
		if errors.Is(p, errStuck) && t.mod.generating.Load() == 0 {
			t.tellStuck(p)
		}
	default:
		l.mod.links.Add(1)
		t.link, t.reason, t.since, t.lost = l, nil, time.Now(), false
		t.stuckLimit, t.stuckTold = 0, false
		t.cfg.Logger.Info("PKCS#11 token is up", "module", l.mod.path, "token", l.info.label, "serial", l.info.serial, "sessions", l.pool.limit())
		if a.warning != "" {
			t.cfg.Logger.Warn(a.warning)
		}
	}
}

// connect goes through the stages and tells in x how far it came. lost says
// that the module has to be initialized again.
func (t *token) connect(x *examination, lost bool) (*link, *problem) {
	mod, p := t.module()
	if p != nil {
		return nil, p
	}
	epoch, fresh, err := mod.initialize(t.ctx)
	if err != nil {
		return nil, t.moduleProblem(mod, err)
	}
	if lost && !fresh && !t.refusedStill() {
		if epoch, err = t.restart(mod, epoch); err != nil && !errors.Is(err, errTooSoon) {
			return nil, t.moduleProblem(mod, err)
		}
		fresh = err == nil
	}
	l, p := t.logInto(mod, epoch, x)
	if p == nil || fresh || !errors.Is(p, errPINChanged) && (p.stage != StepToken || p.settled) {
		return l, p
	}
	// Modules look for tokens when they are initialized, and at what tokens say
	// about their PIN; SoftHSM never does again.
	if epoch, err = t.restart(mod, epoch); err != nil {
		if errors.Is(err, errTooSoon) {
			return nil, p
		}
		return nil, t.moduleProblem(mod, err)
	}
	return t.logInto(mod, epoch, x)
}

// refusedStill reports that the PIN file has the content that was refused, so
// that there will be no login whatever is done before it.
func (t *token) refusedStill() bool {
	return t.pins.barred(t.ctx)
}

// restart initializes the module again.
func (t *token) restart(mod *module, seen uint64) (uint64, error) {
	epoch, err := mod.reinitialize(t.ctx, seen)
	if err == nil {
		t.restarts.Add(1)
	}
	if errors.Is(err, errTooSoon) {
		return seen, err
	}
	return epoch, err
}

// module finds the module's file, once.
func (t *token) module() (*module, *problem) {
	t.mu.Lock()
	mod := t.mod
	t.mu.Unlock()
	if mod != nil {
		return mod, nil
	}
	mod, err := t.modules.acquire(t.ctx, t.cfg.Module, t.cfg.InitReserved)
	if err != nil {
		text, advice := "the module "+t.cfg.Module+" cannot be opened", "let this process read the file and its folders"
		switch {
		case errors.Is(err, errReserved):
			text, advice = "the module "+t.cfg.Module+" is not initialized for this token", ""
		case errors.Is(err, fs.ErrNotExist):
			text, advice = "there is no module at "+t.cfg.Module, "install the token's PKCS#11 library (for SoftHSM: apt-get install softhsm2) or correct the path"
		}
		return nil, &problem{stage: StepModule, text: text, advice: advice, err: err}
	}
	t.mu.Lock()
	t.mod = mod
	t.mu.Unlock()
	return mod, nil
}

// moduleProblem says why the module does not work.
func (t *token) moduleProblem(mod *module, err error) *problem {
	p := &problem{stage: StepModule, text: "the module " + mod.path + " does not work", err: t.noted(err)}
	switch {
	case errors.Is(err, ckrAlreadyInitialized):
		p.text = "the module " + mod.path + " is in use by something else in this process"
		p.advice = "give all PKCS#11 backends the same registry of modules"
	case errors.Is(err, errNotLoaded):
		p.text = "the module " + mod.path + " cannot be loaded"
		p.advice = "see with `ldd` whether it is a library for this machine and finds the libraries it needs, and whether it is a PKCS#11 module at all"
	case errors.Is(err, errStuck):
		p.advice = "see why the token does not answer; the module is initialized again when the call comes back, and a restart of the service does it at once"
	case errors.Is(err, ckrArgumentsBad) && t.cfg.InitReserved == "":
		p.advice = "it may want parameters: NSS softokn, for one, needs init_reserved in this backend's configuration"
	case t.cfg.InitReserved != "":
		p.advice = "see that init_reserved is right, and what it names is there and may be read by this user; most modules want it empty"
	default:
		p.advice = "look at the module's own configuration and log (for SoftHSM: the file that SOFTHSM2_CONF names, and that this user may read the token folder)"
	}
	return p
}

// logInto finds the token and logs in to it.
func (t *token) logInto(mod *module, epoch uint64, x *examination) (*link, *problem) {
	if err := mod.enter(t.ctx, epoch); err != nil {
		return nil, t.moduleProblem(mod, err)
	}
	defer mod.gate.leave()
	lib := mod.lib
	var err error
	if x.module, err = lib.info(); err != nil {
		return nil, t.moduleProblem(mod, err)
	}
	slot, info, p := t.findToken(mod)
	if p != nil {
		return nil, p
	}
	x.token = info
	size := poolSize(t.cfg.Sessions, info.maxSessions)
	if t.cfg.Sessions > size {
		t.cfg.Logger.Warn("the token allows fewer sessions than configured", "configured", t.cfg.Sessions, "used", size)
	}
	h, err := lib.openSession(slot)
	if err != nil {
		return nil, &problem{stage: StepToken, text: fmt.Sprintf("token %q opens no session", info.label), err: t.noted(err)}
	}
	if err := t.logIn(t.ctx, lib, epoch, slot, h); err != nil {
		_ = lib.closeSession(h)
		var p *problem
		if !errors.As(err, &p) {
			p = &problem{stage: StepLogin, text: "the login was interrupted", err: err}
		}
		return nil, p
	}
	pool := newPool(size)
	pool.waits = &t.waits
	return &link{
		t: t, mod: mod, lib: lib, epoch: epoch, slot: slot, info: info,
		pool: pool, desk: make(chan struct{}, 1),
		login: session{handle: h, open: true}, places: map[keyName]place{}, told: map[selector]bool{},
	}, nil
}

// findToken finds the slot of the one token that the configuration names.
func (t *token) findToken(mod *module) (uint, tokenInfo, *problem) {
	slots, err := mod.lib.slots()
	if err != nil {
		return 0, tokenInfo{}, &problem{stage: StepToken, text: "the module cannot list its slots", err: t.noted(err)}
	}
	var slot uint
	var info tokenInfo
	var fit int
	var others []string
	for _, s := range slots {
		i, err := mod.lib.tokenInfo(s)
		if err != nil || i.flags&ckfTokenInitialized == 0 {
			continue // empty, or gone since the module looked
		}
		if (t.cfg.Token == "" || i.label == t.cfg.Token) && (t.cfg.Serial == "" || i.serial == t.cfg.Serial) {
			slot, info = s, i
			fit++
			continue
		}
		others = append(others, fmt.Sprintf("%q (serial %s)", i.label, i.serial))
	}
	p := &problem{stage: StepToken}
	switch {
	case fit == 0 && len(others) == 0:
		p.text = fmt.Sprintf("the module %s has no token %s and no other", mod.path, t.cfg.tokenName())
		p.advice = "see that the token is connected and initialized (for SoftHSM: softhsm2-util --init-token, and that SOFTHSM2_CONF is the same for both)"
	case fit == 0:
		p.text = fmt.Sprintf("the module %s has no token %s", mod.path, t.cfg.tokenName())
		p.advice = "it has " + strings.Join(others, ", ") + "; correct the label or connect the token"
	case fit > 1:
		p.text = fmt.Sprintf("the module %s has %d tokens %s", mod.path, fit, t.cfg.tokenName())
		p.advice, p.settled = "name the token by its serial number", true
	case !mod.claim(slot, t):
		p.text = fmt.Sprintf("token %q is used by another backend of this process, which names it differently", info.label)
		p.advice, p.settled = "name the token once, and use that backend in both places", true
	default:
		return slot, info, nil
	}
	return 0, tokenInfo{}, p
}

// poolSize is how many sessions sign: what is configured, or two for each
// core, within the token's limit less the login session and one to spare.
func poolSize(configured int, limit uint) int {
	n := configured
	if n == 0 {
		n = 2 * runtime.GOMAXPROCS(0)
	}
	if limit != 0 && limit != unavailableInformation && limit < uint(n)+2 {
		n = max(1, int(limit)-2)
	}
	return n
}

// Methods of vault. What a link answers is told to the state of the token,
// and becomes an error of the contract.

// use runs call on the link, and a second time if the module was initialized
// again in between, or if call was what found the token gone and the caller has
// the time to wait for it: what is opened once a second ought not to fail for
// being the first to look.
func use[T any](ctx context.Context, t *token, wait bool, call func(*link) (T, error)) (T, error) {
	for again := false; ; again = true {
		l, err := t.up(ctx, wait)
		if err != nil {
			var zero T
			return zero, err
		}
		v, err := call(l)
		if err == nil {
			return v, nil
		}
		var p *problem
		switch {
		case errors.Is(err, errEpoch):
			if !again {
				continue
			}
			err = down(err)
		case errors.Is(err, errPINChanged):
			t.relog(l, err)
			if !again {
				continue
			}
			err = down(err)
		case errors.As(err, &p):
			t.lose(l, p, false)
			err = down(p)
		case classOf(err) == gone:
			t.lose(l, err, true)
			if wait && !again {
				continue
			}
			err = down(err)
		}
		return v, contract(err)
	}
}

func (t *token) open(ctx context.Context, want wanted, kind kms.KeyType) (found, error) {
	return use(ctx, t, true, func(l *link) (found, error) { return l.find(ctx, want, kind) })
}

func (t *token) sign(ctx context.Context, key keyName, m mechanism, input []byte) ([]byte, error) {
	if m.inputSize != 0 && len(input) != m.inputSize {
		return nil, fmt.Errorf("%w: %v signs %d bytes here, not %d", kms.ErrKeyMismatch, m, m.inputSize, len(input))
	}
	signature, err := use(ctx, t, false, func(l *link) ([]byte, error) { return l.sign(ctx, key, m, input) })
	if m.inputSize == 0 && errors.Is(err, ckr(0x21)) {
		// The length is the caller's: nothing is wrong with the key.
		return nil, fmt.Errorf("%w: the token does not sign a message of %d bytes by %v: send fewer claims, or use a key of another algorithm", kms.ErrTooLong, len(input), m)
	}
	return signature, err
}

func (t *token) openWrapping(ctx context.Context, want wanted) (foundWrapping, error) {
	return use(ctx, t, true, func(l *link) (foundWrapping, error) { return l.findWrapping(ctx, want) })
}

func (t *token) seal(ctx context.Context, key keyName, mechanism uint, aad, plaintext []byte) ([]byte, error) {
	return use(ctx, t, false, func(l *link) ([]byte, error) { return l.seal(ctx, key, mechanism, aad, plaintext) })
}

func (t *token) unseal(ctx context.Context, key keyName, mechanism uint, aad, sealed []byte) ([]byte, error) {
	return use(ctx, t, false, func(l *link) ([]byte, error) { return l.unseal(ctx, key, mechanism, aad, sealed) })
}

func (t *token) offers(ctx context.Context, mechanism uint) (uint, error) {
	return use(ctx, t, true, func(l *link) (uint, error) { return l.offers(ctx, mechanism) })
}

func (t *token) check(ctx context.Context) error {
	_, err := use(ctx, t, true, func(l *link) (struct{}, error) { return struct{}{}, l.check(ctx) })
	return err
}

func (t *token) distrust() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.link; l != nil && !t.closed {
		t.wg.Go(func() { l.distrust(t.ctx) })
	}
}

func (t *token) stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Stats{
		Up: t.link != nil, Since: t.since,
		Logins: t.logins.Load(), Renewals: t.renewals.Load(), Restarts: t.restarts.Load(),
		Errors: maps.Clone(t.faults),
		Stuck:  t.stuck(), Waits: uint64(t.waits.count.Load()), WaitSeconds: time.Duration(t.waits.nanos.Load()).Seconds(), //nolint:gosec // only grows
	}
	if t.reason != nil {
		s.Reason = t.reason.Error()
	}
	if l := t.link; l != nil {
		s.Limit = l.pool.limit()
		s.Open, s.InUse, s.Waiting = int(l.pool.opened.Load()), int(l.pool.inUse.Load()), int(l.pool.waiting.Load())
	}
	return s
}

// close lets go of the token for one backend; the last one waits for its
// signatures, logs out, closes the sessions and lets go of the module.
func (t *token) close() error {
	t.modules.mu.Lock()
	t.refs--
	last := t.refs == 0
	if last {
		delete(t.modules.tokens, tokenKey{t.cfg.Module, t.cfg.InitReserved, t.cfg.Token, t.cfg.Serial})
	}
	t.modules.mu.Unlock()
	if !last {
		return nil
	}

	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.crew.close()

	// Any of the calls below may hang in the module; the process can still
	// end in order.
	ctx, cancel := context.WithTimeout(context.Background(), closeWait+2*parkLimit)
	defer cancel()
	_, err := aside(ctx, alone, func() (struct{}, error) {
		t.wg.Wait()
		t.mu.Lock()
		l, mod := t.link, t.mod
		if l != nil {
			t.takeDown(errClosed, false)
		}
		t.mu.Unlock()
		if l != nil {
			if err := l.close(ctx); err != nil {
				return struct{}{}, err
			}
		}
		if mod == nil {
			return struct{}{}, nil
		}
		mod.disclaim(t)
		return struct{}{}, mod.release(ctx)
	})
	if err != nil {
		return fmt.Errorf("pkcs11: token %s was left as it is: %w", t.cfg.tokenName(), err)
	}
	return nil
}

// examine is of vault.
func (t *token) examine(ctx context.Context) examination {
	if err := ctx.Err(); err != nil {
		return examination{err: err}
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return examination{problem: &problem{stage: StepModule, text: errClosed.Error()}}
	}
	l := t.link
	if l == nil || l.mod.epoch.Load() != l.epoch {
		if l != nil {
			t.takeDown(errEpoch, false)
		} else if t.blocked() {
			defer t.mu.Unlock()
			return examination{problem: hanging("calls do not come out of the module")}
		}
		t.start()
		a := t.attempt
		t.mu.Unlock()
		select {
		case <-a.done:
			return a.examination
		case <-ctx.Done():
			return examination{err: ctx.Err()}
		}
	}
	t.mu.Unlock()

	// It is up, or was: look whether it still is.
	x := examination{token: l.info, warning: pinWarning(t.cfg.PINFile)}
	info, err := use(ctx, t, true, func(l *link) (moduleInfo, error) {
		if err := l.check(ctx); err != nil {
			return moduleInfo{}, err
		}
		return withSession(ctx, l, func(*session) (moduleInfo, error) { return l.lib.info() })
	})
	x.module = info
	if err != nil {
		var p *problem
		switch {
		case ctx.Err() != nil:
			x.err = ctx.Err()
		case errors.As(err, &p):
			x.problem = p
		default:
			x.problem = &problem{stage: StepToken, text: "the token does not answer", advice: "it is being brought back; look again in a few seconds", err: err}
		}
	}
	return x
}
