package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/kms"
)

// The steps of Diagnose, in their order.
const (
	StepModule    = "module"    // the library loads and answers
	StepToken     = "token"     // the module has the token
	StepLogin     = "login"     // the token accepts the PIN
	StepKey       = "key"       // the reference names one key that fits its algorithm
	StepMechanism = "mechanism" // the token offers the algorithm's mechanism
	StepProbe     = "probe"     // the key signs, and its public key verifies
)

// Outcome is how a step went.
type Outcome string

// The outcomes of a step.
const (
	Passed  Outcome = "ok"
	Warned  Outcome = "warning" // works, and should be changed
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped" // a step before it failed
)

// KeyRef is a key to look at: a reference and the algorithm it is to sign
// with.
type KeyRef struct {
	Ref       string
	Algorithm kms.Algorithm
}

// Step is one line of a diagnosis.
type Step struct {
	Name    string // one of the Step constants
	Key     string // the reference, of the steps about a key
	Outcome Outcome
	Detail  string // what was seen
	Advice  string // what to do, "" if nothing
	Err     error  // of a failed step: wraps the sentinel of package kms
}

// Diagnose walks from the module to a signature of each key, and tells at each
// step what it saw and what to do. It works beside running signatures and
// beside other processes, uses this backend's own sessions, changes nothing on
// the token, and obeys the rules for PINs: it makes no login that the backend
// would not make.
func (b *Backend) Diagnose(ctx context.Context, refs []KeyRef) []Step {
	if err := b.enter(ctx); err != nil {
		return []Step{{Name: StepModule, Outcome: Failed, Detail: err.Error(), Err: err}}
	}
	defer b.leave()
	x := b.vault.examine(ctx)
	steps := b.stages(x)
	up := x.problem == nil && x.err == nil
	for _, ref := range refs {
		steps = append(steps, b.diagnoseKey(ctx, ref, up)...)
	}
	return steps
}

// stages tells of module, token and login.
func (b *Backend) stages(x examination) []Step {
	steps := []Step{
		{Name: StepModule, Detail: fmt.Sprintf("%s: %s %s by %s", b.cfg.Module, x.module.description, x.module.version, x.module.manufacturer)},
		{Name: StepToken, Detail: fmt.Sprintf("%q, serial %s, model %s", x.token.label, x.token.serial, x.token.model)},
		{Name: StepLogin, Detail: "logged in with the PIN of " + b.cfg.PINFile},
	}
	failedAt := StepLogin
	if x.err != nil {
		failedAt = StepModule
	} else if x.problem != nil {
		failedAt = x.problem.stage
	}
	failed := false
	for i := range steps {
		s := &steps[i]
		switch {
		case failed:
			s.Outcome, s.Detail = Skipped, ""
		case x.err != nil:
			failed = true
			s.Outcome, s.Err = Failed, x.err
			s.Detail = "no answer in time: " + x.err.Error()
			s.Advice = "the module or its token may hang; allow more time, or look at the token's own log"
		case x.problem != nil && s.Name == failedAt:
			failed = true
			s.Outcome, s.Err = Failed, down(x.problem)
			s.Detail, s.Advice = x.problem.text, x.problem.advice
			if x.problem.err != nil {
				s.Detail += ": " + x.problem.err.Error()
			}
		case s.Name == StepLogin && x.warning != "":
			s.Outcome, s.Advice = Warned, x.warning
		default:
			s.Outcome = Passed
		}
	}
	return steps
}

// diagnoseKey tells of one key.
func (b *Backend) diagnoseKey(ctx context.Context, ref KeyRef, up bool) []Step {
	name := clip(ref.Ref)
	found := Step{Name: StepKey, Key: name, Outcome: Skipped}
	mech := Step{Name: StepMechanism, Key: name, Outcome: Skipped}
	probed := Step{Name: StepProbe, Key: name, Outcome: Skipped}
	done := func() []Step { return []Step{found, mech, probed} }

	r, err := b.reference(ref.Ref, ref.Algorithm)
	if err != nil {
		found.fail(err)
		return done()
	}
	if !up {
		return done()
	}
	f, err := b.vault.open(ctx, r.want, ref.Algorithm.KeyType())
	if err != nil {
		found.fail(err)
		return done()
	}
	found.Outcome, found.Detail = Passed, fmt.Sprintf("%s private key with %d public", ref.Algorithm.KeyType(), len(f.publics))
	if f.extractable {
		found.Outcome = Warned
		found.Advice = "the token would give this private key away (CKA_EXTRACTABLE is true): make a new key that is sensitive and not extractable"
	}

	m := mechanismOf(ref.Algorithm)
	switch ok, err := b.vault.canSign(ctx, m); {
	case err != nil:
		mech.fail(err)
	case !ok:
		// Some modules' lists leave out what they can do; the probe decides.
		mech.Outcome = Warned
		mech.Detail = fmt.Sprintf("the token does not list %v for signing", m)
		mech.Advice = fmt.Sprintf("if the probe fails, %s cannot be used on this token: choose another algorithm", ref.Algorithm)
	default:
		mech.Outcome, mech.Detail = Passed, m.String()
	}

	if _, err := b.bind(ctx, r.want.selector, f, ref.Algorithm); err != nil {
		probed.fail(err)
	} else {
		probed.Outcome, probed.Detail = Passed, fmt.Sprintf("a signature with %s verifies", ref.Algorithm)
	}
	return done()
}

// fail fills in what went wrong and the advice that goes with it.
func (s *Step) fail(err error) {
	s.Outcome, s.Detail, s.Err = Failed, err.Error(), err
	for _, a := range []struct {
		err    error
		advice string
	}{
		{kms.ErrReference, "correct the key reference in the configuration"},
		{kms.ErrKeyNotFound, "correct the reference, or create the key on the token"},
		{kms.ErrKeyMismatch, "use a key that fits the algorithm, or the algorithm that fits the key"},
		{kms.ErrKeyDisabled, "use a key that is allowed to sign"},
		{kms.ErrThrottled, "lower the number of sessions, or free sessions on the token"},
		{kms.ErrUnavailable, "see the steps before, and look again in a few seconds"},
		{context.DeadlineExceeded, "the module or its token may hang; allow more time, or look at the token's own log"},
	} {
		if errors.Is(err, a.err) {
			s.Advice = a.advice
			return
		}
	}
}
