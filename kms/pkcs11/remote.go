package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// remote is a token in a worker process: a vault whose methods are served over
// a socket. The backends of a process that name the same token share it, and
// with it the memory of refused PINs, which outlives the workers.
//
// A worker that ends takes only the calls in flight with it. Those that may be
// made twice are made once more on the next worker, if their callers have the
// time.
type remote struct {
	cfg     Config
	modules *Modules
	refs    int // guarded by modules.mu: backends that use it
	pins    *pinFile
	pool    waiterPool

	ctx    context.Context // ends when the last backend is closed
	cancel context.CancelFunc
	ended  chan struct{} // closed when supervise has returned

	mu       sync.Mutex
	line     *line         // guarded by mu: to the worker that is ready; nil if there is none
	changed  chan struct{} // guarded by mu: closed, and made anew, when anything here changes
	reason   error         // guarded by mu: why there is none
	since    time.Time     // guarded by mu: since when there is none
	soon     bool          // guarded by mu: there will be one in a moment
	restarts uint64        // guarded by mu
	before   Stats         // guarded by mu: what former workers counted
}

var _ vault = (*remote)(nil)

// errFirstWorker is the reason of a token whose first worker is not ready.
var errFirstWorker = errors.New("the PKCS#11 worker process is being started")

// vault returns the token that cfg names, in this process or in a worker, which
// is one and the same for all backends that name it alike. start begins to
// bring it up, and waits for that while its context lives.
func (r *Modules) vault(cfg Config) (v vault, start func(context.Context), err error) {
	key := tokenKey{cfg.Module, cfg.InitReserved, cfg.Token, cfg.Serial}
	r.mu.Lock()
	_, local := r.tokens[key]
	_, away := r.remotes[key]
	r.mu.Unlock()
	if local && cfg.Worker != nil || away && cfg.Worker == nil {
		return nil, nil, fmt.Errorf("pkcs11: another backend uses the same token %s with another isolation; name the token once and use that backend in both places", cfg.tokenName())
	}
	if cfg.Worker == nil {
		t, err := r.open(cfg)
		if err != nil {
			return nil, nil, err
		}
		return t, func(ctx context.Context) { _, _ = t.up(ctx, true) }, nil
	}
	w, err := r.openRemote(key, cfg)
	if err != nil {
		return nil, nil, err
	}
	return w, func(ctx context.Context) { _, _ = w.worker(ctx, 0) }, nil
}

// stats is of vault.
func (r *remote) stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Stats{Since: r.since, Errors: map[string]uint64{}}
	if r.reason != nil {
		s.Reason = r.reason.Error()
	}
	if r.line != nil {
		if told := r.line.stats.Load(); told != nil {
			s = *told
			s.Errors = maps.Clone(told.Errors)
		}
	}
	addStats(&s, r.before)
	s.Isolated, s.WorkerRestarts, s.Logins = true, r.restarts, r.pins.taken()
	return s
}

// addStats adds the counts of more to s.
func addStats(s *Stats, more Stats) {
	s.Renewals += more.Renewals
	s.Restarts += more.Restarts
	s.Waits += more.Waits
	s.WaitSeconds += more.WaitSeconds
	if s.Errors == nil {
		s.Errors = map[string]uint64{}
	}
	for name, n := range more.Errors {
		s.Errors[name] += n
	}
}

// worker returns the line to the worker. If there is none it waits while one
// can be expected in a moment, for the given time at most (0: for as long as
// ctx lives).
func (r *remote) worker(ctx context.Context, limit time.Duration) (*line, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var late <-chan time.Time
	for {
		r.mu.Lock()
		l, changed, reason, soon := r.line, r.changed, r.reason, r.soon
		r.mu.Unlock()
		switch {
		case r.ctx.Err() != nil:
			return nil, down(errClosed)
		case l != nil && !l.dead():
			return l, nil
		case l == nil && !soon:
			return nil, down(reason)
		}
		if late == nil && limit > 0 {
			timer := time.NewTimer(limit)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-late:
			return nil, down(reason)
		}
	}
}

// twice makes a call on the worker, and once more on the next one if the first
// ends before it has answered.
func twice[T any](ctx context.Context, r *remote, do func(*line) (T, error)) (T, error) {
	v, err := once(ctx, r, do)
	if errors.Is(err, errEnded) {
		v, err = once(ctx, r, do)
	}
	return v, err
}

// once makes a call on the worker.
func once[T any](ctx context.Context, r *remote, do func(*line) (T, error)) (T, error) {
	l, err := r.worker(ctx, r.cfg.tempo.patience)
	if err != nil {
		var zero T
		return zero, err
	}
	return do(l)
}

// asking makes the function that calls c on a line and reads its result.
func asking[T any](ctx context.Context, r *remote, c request, read func(*body) T) func(*line) (T, error) {
	return func(l *line) (T, error) {
		var zero T
		b, err := l.call(ctx, &r.pool, c)
		if err != nil {
			return zero, err
		}
		d := &body{b: b}
		v := read(d)
		if d.done() != nil {
			return zero, l.garbled()
		}
		return v, nil
	}
}

func (r *remote) open(ctx context.Context, want wanted, kind kms.KeyType) (found, error) {
	return twice(ctx, r, asking(ctx, r, request{method: methodOpen, want: want, kind: kind}, readFound))
}

func (r *remote) sign(ctx context.Context, key keyName, m mechanism, input []byte) ([]byte, error) {
	k := &signKey{key, m}
	return twice(ctx, r, func(l *line) ([]byte, error) { return l.sign(ctx, &r.pool, k, input) })
}

func (r *remote) openWrapping(ctx context.Context, want wanted) (foundWrapping, error) {
	return twice(ctx, r, asking(ctx, r, request{method: methodOpenWrapping, want: want}, readFoundWrapping))
}

// readRest is the reader of results that are bytes.
func readRest(d *body) []byte { return d.rest() }

func (r *remote) seal(ctx context.Context, key keyName, mechanism uint, aad, plaintext []byte) ([]byte, error) {
	return twice(ctx, r, asking(ctx, r, request{method: methodSeal, key: key, mechanism: mechanism, aad: aad, data: plaintext}, readRest))
}

func (r *remote) unseal(ctx context.Context, key keyName, mechanism uint, aad, sealed []byte) ([]byte, error) {
	return twice(ctx, r, asking(ctx, r, request{method: methodUnseal, key: key, mechanism: mechanism, aad: aad, data: sealed}, readRest))
}

func (r *remote) offers(ctx context.Context, mechanism uint) (uint, error) {
	return twice(ctx, r, asking(ctx, r, request{method: methodOffers, mechanism: mechanism}, func(d *body) uint { return uint(d.number()) }))
}

func (r *remote) check(ctx context.Context) error {
	_, err := twice(ctx, r, asking(ctx, r, request{method: methodCheck}, func(*body) struct{} { return struct{}{} }))
	return err
}

// create is made once only: a second key of the same tag would be the worse
// answer to a worker that ended.
func (r *remote) create(ctx context.Context, spec kms.KeySpec, tag string) (selector, error) {
	return once(ctx, r, asking(ctx, r, request{method: methodCreate, spec: spec, tag: tag}, readSelector))
}

func (r *remote) tagged(ctx context.Context, tag string) ([]selector, error) {
	return twice(ctx, r, asking(ctx, r, request{method: methodTagged, tag: tag}, readSelectors))
}

func (r *remote) examine(ctx context.Context) examination {
	x, err := twice(ctx, r, asking(ctx, r, request{method: methodExamine}, readExamination))
	switch {
	case err == nil:
		return x
	case ctx.Err() != nil:
		return examination{err: ctx.Err()}
	case errors.Is(err, errClosed):
		return examination{problem: &problem{stage: StepModule, text: errClosed.Error()}}
	}
	return examination{problem: &problem{
		stage: StepModule, text: "the worker process that runs the module " + r.cfg.Module + " is not there", err: err,
		advice: "it is started again by itself; if it does not stay, look at the log of this service and at the module's own for what ends it",
	}}
}

func (r *remote) distrust() {
	r.mu.Lock()
	l := r.line
	r.mu.Unlock()
	if l != nil {
		_ = l.out.send(frameDistrust, 0) // a worker that ended has no sessions
	}
}
