package keyring

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// Bounds of failover.
const (
	// maxShare is the longest that one place is waited for while there is
	// another to ask.
	maxShare = 2 * time.Second
	// minShare is the shortest silence that is held against a place. A caller
	// with a short deadline goes on to the next place sooner than that, and
	// only has the place looked at.
	minShare = 250 * time.Millisecond
)

// failover is one key pair that lies in one or more places: a kms.Key that
// signs at the first healthy one, in the order in which they are listed.
//
// A place that cannot sign counts as sick from the first call that notices, and
// that call goes on to the next place. Only those who look after the places
// (the loop of the issuer) say that one is well again, after it has signed a
// probe. If all are sick they are asked all the same, because a call that may
// succeed is worth more than one that was never made.
//
// One place alone is asked whatever is known of it, and for as long as the
// caller waits: there is nothing to go on to, and a backend that is down says so
// quickly by itself.
type failover struct {
	alg kms.Algorithm
	pub crypto.PublicKey
	log *slog.Logger
	// look asks for a look at the suspects. It does not block.
	look func()

	// plan is what a call needs to know, read once by each.
	plan atomic.Pointer[plan]

	mu    sync.Mutex
	sites []*site // guarded by mu: in listed order, nil where it is not open
	heals uint64  // guarded by mu: how often a place was found well again
}

var (
	_ signer.Composite = (*failover)(nil)
	_ signer.Placed    = (*failover)(nil)
	_ kms.Distruster   = (*failover)(nil)
)

// site is an open place of a key pair, as those who sign see it.
type site struct {
	of       *failover
	location Location
	key      kms.Key

	illness error     // guarded by of.mu: nil if healthy
	fell    time.Time // guarded by of.mu: when it was last found sick
	silent  bool      // guarded by of.mu: sick, and it does not even answer
	told    bool      // guarded by of.mu: the log knows of the illness
	healed  uint64    // guarded by of.mu: of.heals when it was last found well again

	// suspect is set when a look at the place is wanted.
	suspect atomic.Bool
	// taken is set while a call waits for a place known to be silent.
	taken atomic.Bool
}

// plan is the order in which the open places are asked. It is replaced as a
// whole and never changed.
type plan struct {
	order []*site // the healthy ones, the sick, the silent; each in listed order
	// well is how many are healthy, answer how many are not silent.
	well, answer int
	// heals is the failover's when the plan was made.
	heals uint64
}

// errNoPlace is the answer of a key that is open nowhere.
var errNoPlace = fmt.Errorf("%w: the key is open at none of its locations", kms.ErrUnavailable)

func newFailover(alg kms.Algorithm, pub crypto.PublicKey, log *slog.Logger, look func()) *failover {
	f := &failover{alg: alg, pub: pub, log: log, look: look}
	f.plan.Store(&plan{})
	return f
}

// Algorithm is of kms.Key.
func (f *failover) Algorithm() kms.Algorithm { return f.alg }

// Public is of kms.Key.
func (f *failover) Public() crypto.PublicKey { return f.pub }

// Backend is of signer.Placed: that of the place that is asked first now; empty
// while the key is open nowhere.
func (f *failover) Backend() string {
	if order := f.plan.Load().order; len(order) > 0 {
		return order[0].location.Backend
	}
	return ""
}

// Sign is of kms.Key.
func (f *failover) Sign(ctx context.Context, message []byte) ([]byte, error) {
	signature, _, err := f.SignBy(ctx, message)
	return signature, err
}

// SignBy is Sign, and names the place that signed. If no place could sign, the
// error wraps what each of them answered.
func (f *failover) SignBy(ctx context.Context, message []byte) ([]byte, kms.Distruster, error) {
	p := f.plan.Load()
	switch len(p.order) {
	case 0:
		return nil, nil, errNoPlace
	case 1:
		s := p.order[0]
		signature, err := s.key.Sign(ctx, message)
		if err != nil {
			s.lookAfter(ctx, err)
		}
		return signature, s, err
	}
	var errs []error
	for n := range p.order {
		signature, next, err := p.ask(ctx, n, message)
		if err == nil {
			return signature, p.order[n], nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", p.order[n].location, err))
		if !next {
			break
		}
	}
	return nil, nil, all(errs...)
}

// ask has the nth place sign. After an error it says whether the next place is
// to be asked, and has noted what is the place's fault.
func (p *plan) ask(ctx context.Context, n int, message []byte) (signature []byte, next bool, err error) {
	s := p.order[n]
	if n >= p.answer {
		// One call at a time finds out whether it answers again; the others
		// must not wait with it.
		if s.taken.Swap(true) {
			return nil, true, fmt.Errorf("%w: it does not answer", kms.ErrUnavailable)
		}
		defer s.taken.Store(false)
	}
	share := p.share(ctx, n)
	bounded := ctx
	if share > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	signature, err = s.key.Sign(bounded, message)
	switch {
	case err == nil:
		return signature, false, nil
	case over(ctx):
		// The caller has gone, or its time is over: that is no verdict.
		s.lookAfter(ctx, err)
		return nil, false, err
	case errors.Is(err, kms.ErrThrottled):
		return nil, true, err
	}
	late := share > 0 && over(bounded)
	switch {
	case late && !atFault(err):
		err = fmt.Errorf("%w: no answer within %v", kms.ErrUnavailable, share.Round(time.Millisecond))
	case errors.Is(err, context.DeadlineExceeded): // a limit of the backend's own
		err = fmt.Errorf("%w: no answer in time", kms.ErrUnavailable)
	case !atFault(err):
		// The request's fault, or nothing that another place would do better.
		return nil, false, err
	}
	if lastHealthy := n == p.well-1; !late || share >= minShare && !lastHealthy {
		s.fall(p, err, late)
	}
	s.wantLook()
	return nil, true, err
}

// share is how long the nth place is waited for; 0 is as long as the caller
// does. The last healthy one has half of the caller's time, however long that
// is, and slowness is not held against it: with nobody healthy to go on to,
// calling an overloaded place sick would only lose calls.
func (p *plan) share(ctx context.Context, n int) time.Duration {
	if n == len(p.order)-1 {
		return 0
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		return maxShare
	}
	half := max(time.Until(deadline)/2, 1)
	if n == p.well-1 {
		return half
	}
	return min(half, maxShare)
}

// atFault reports whether err says that a place cannot sign, whatever it is
// asked to.
func atFault(err error) bool {
	return errors.Is(err, kms.ErrUnavailable) || errors.Is(err, kms.ErrKeyNotFound) ||
		errors.Is(err, kms.ErrKeyDisabled) || errors.Is(err, kms.ErrKeyMismatch)
}

// over reports whether ctx has ended. Its deadline counts from the moment it
// has passed, though the timer may be late.
func over(ctx context.Context) bool {
	if ctx.Err() != nil {
		return true
	}
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline)
}

// Distrust is of kms.Distruster, for those who cannot say which place made the
// bad signature: all of them may have.
func (f *failover) Distrust() {
	for _, s := range f.plan.Load().order {
		s.forward()
	}
}

// Distrust is of kms.Distruster: the place has made a signature that does not
// verify.
func (s *site) Distrust() {
	s.forward()
	if p := s.of.plan.Load(); len(p.order) > 1 {
		s.fall(p, fmt.Errorf("%w: its signature did not verify", signer.ErrFault), false)
	}
	s.wantLook()
}

func (s *site) forward() {
	if d, ok := s.key.(kms.Distruster); ok {
		d.Distrust()
	}
}

// lookAfter wants a look at the place after err, if that may be its fault: also
// after a deadline that it has let pass, but not when the caller has gone.
func (s *site) lookAfter(ctx context.Context, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	if atFault(err) || errors.Is(err, context.DeadlineExceeded) {
		s.wantLook()
	}
}

// wantLook asks for a look at the place, once until it has been taken.
func (s *site) wantLook() {
	if !s.suspect.Swap(true) {
		s.of.look()
	}
}

// arrange makes sites the places: in listed order, nil for those that are not
// open. It reports whether that brought the key back to a place listed earlier
// than the one that signed until now, and logs it.
func (f *failover) arrange(sites []*site) (back bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.first()
	f.sites = sites
	f.replan()
	after := f.first()
	back = before != nil && f.rank(before) > f.rank(after)
	if back {
		f.back(after)
	}
	return back
}

// fall notes that a place is sick because of err; silent if it did not even
// answer. A call that followed a plan from before the place was last found well
// again comes too late to say so. What is news of a place that others can stand
// in for is logged; that nobody signs at all is told by those who look after
// the places.
func (s *site) fall(by *plan, err error, silent bool) {
	f := s.of
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.illness == nil && s.healed > by.heals {
		return
	}
	fell, before := s.illness == nil, f.first()
	s.illness = err
	if !fell && s.silent == silent {
		return
	}
	s.silent = silent
	if fell {
		s.fell = time.Now()
	}
	f.replan()
	after := f.first()
	if !fell || after == nil || f.rank(s) < 0 {
		return
	}
	s.told = true
	level := slog.LevelWarn
	if alarming(err) {
		level = slog.LevelError
	}
	if s == before {
		f.log.Log(context.Background(), level, "signing key failed over", "from", s.location.String(), "to", after.location.String(), "error", err)
	} else {
		f.log.Log(context.Background(), level, "signing key does not sign at one of its locations", "location", s.location.String(), "in_use", after.location.String(), "error", err)
	}
}

// heal notes that a place has shown that it signs. It logs what is news, unless
// quiet.
func (s *site) heal(quiet bool) {
	f := s.of
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.illness == nil {
		return
	}
	told := s.told && !quiet
	f.heals++
	s.illness, s.silent, s.told, s.healed = nil, false, false, f.heals
	f.replan()
	switch {
	case !told:
	case f.first() == s:
		f.back(s)
	default:
		f.log.Info("signing key signs again at one of its locations", "location", s.location.String(), "in_use", f.first().location.String())
	}
}

// sick is the illness of a place, nil if it is healthy, and when it fell sick;
// and whether another place signs meanwhile.
func (s *site) sick() (fell time.Time, covered bool, illness error) {
	f := s.of
	f.mu.Lock()
	defer f.mu.Unlock()
	first := f.first()
	return s.fell, first != nil && first != s, s.illness
}

// back logs that s signs now and another of lower rank did before. The caller
// holds mu.
func (f *failover) back(s *site) {
	text := "signing key back at a location listed earlier"
	if f.rank(s) == 0 {
		text = "signing key back at its first location"
	}
	f.log.Info(text, "location", s.location.String())
}

// first is the healthy place that signs now, nil if there is none. The caller
// holds mu.
func (f *failover) first() *site {
	for _, s := range f.sites {
		if s != nil && s.illness == nil {
			return s
		}
	}
	return nil
}

// rank is the place's number in listed order, -1 if it is not open any more.
// The caller holds mu.
func (f *failover) rank(s *site) int { return slices.Index(f.sites, s) }

// replan makes the plan that follows from the sites. The caller holds mu.
func (f *failover) replan() {
	var well, sick, silent []*site
	for _, s := range f.sites {
		switch {
		case s == nil:
		case s.illness == nil:
			well = append(well, s)
		case !s.silent:
			sick = append(sick, s)
		default:
			silent = append(silent, s)
		}
	}
	f.plan.Store(&plan{
		order: slices.Concat(well, sick, silent),
		well:  len(well), answer: len(well) + len(sick), heals: f.heals,
	})
}
