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
	StepKey       = "key"       // the reference names one key that fits its purpose
	StepMechanism = "mechanism" // the token offers a mechanism for it
	StepProbe     = "probe"     // the key signs, and its public key verifies; or it wraps and unwraps
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

// KeyRef is a key to look at: a reference and what the key is for.
type KeyRef struct {
	Ref       string
	Algorithm kms.Algorithm // of a signing key
	Wrapping  bool          // it is a wrapping key, and has no Algorithm
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

// Diagnose walks from the module to a signature of each signing key and a round
// trip of each wrapping key, and tells at each step what it saw and what to do. It works beside running calls and
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
		k := newKeySteps(ref)
		if ref.Wrapping {
			b.diagnoseWrapping(ctx, ref, up, k)
		} else {
			b.diagnoseKey(ctx, ref, up, k)
		}
		steps = append(steps, k.found, k.mechanism, k.probe)
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

// keySteps are the steps about one key.
type keySteps struct{ found, mechanism, probe Step }

func newKeySteps(ref KeyRef) *keySteps {
	step := func(name string) Step { return Step{Name: name, Key: clip(ref.Ref), Outcome: Skipped} }
	return &keySteps{step(StepKey), step(StepMechanism), step(StepProbe)}
}

// diagnoseKey tells of one signing key.
func (b *Backend) diagnoseKey(ctx context.Context, ref KeyRef, up bool, k *keySteps) {
	r, err := b.reference(ref.Ref, ref.Algorithm)
	if err != nil {
		k.found.fail(err)
		return
	}
	if !up {
		return
	}
	f, err := b.vault.open(ctx, r.want, ref.Algorithm.KeyType())
	if err != nil {
		k.found.fail(err)
		return
	}
	k.found.Outcome, k.found.Detail = Passed, fmt.Sprintf("%s private key with %d public", ref.Algorithm.KeyType(), len(f.publics))
	if f.extractable {
		k.found.warnExtractable()
	}

	m := mechanismOf(ref.Algorithm)
	switch flags, err := b.vault.offers(ctx, m.kind); {
	case err != nil:
		k.mechanism.fail(err)
	case flags&ckfSign == 0:
		// Some modules' lists leave out what they can do; the probe decides.
		k.mechanism.Outcome = Warned
		k.mechanism.Detail = fmt.Sprintf("the token does not list %v for signing", m)
		k.mechanism.Advice = fmt.Sprintf("if the probe fails, %s cannot be used on this token: choose another algorithm", ref.Algorithm)
	default:
		k.mechanism.Outcome, k.mechanism.Detail = Passed, m.String()
	}

	if _, err := b.bind(ctx, r.want.selector, f, ref.Algorithm); err != nil {
		k.probe.fail(err)
	} else {
		k.probe.Outcome, k.probe.Detail = Passed, fmt.Sprintf("a signature with %s verifies", ref.Algorithm)
	}
}

// diagnoseWrapping tells of one wrapping key. The mechanism is the one that a
// data key was wrapped by, so it is known only if the probe passed.
func (b *Backend) diagnoseWrapping(ctx context.Context, ref KeyRef, up bool, k *keySteps) {
	r, err := b.anyReference(ref.Ref)
	if err != nil {
		k.found.fail(err)
		return
	}
	if !up {
		return
	}
	f, err := b.vault.openWrapping(ctx, r.want)
	if err != nil {
		k.found.fail(err)
		return
	}
	k.found.Outcome, k.found.Detail = Passed, "RSA private key, which wraps by its signatures"
	if f.kind == kms.Oct {
		k.found.Detail = fmt.Sprintf("AES key of %d bits", f.bits)
	}
	if f.extractable {
		k.found.warnExtractable()
	}
	_, mechanism, err := b.bindWrapper(ctx, r.want.selector, f)
	if err != nil {
		k.probe.fail(err)
		return
	}
	k.mechanism.Outcome, k.mechanism.Detail = Passed, mechanismName(mechanism)
	k.probe.Outcome, k.probe.Detail = Passed, "a random data key was wrapped and unwrapped"
	if f.kind == kms.RSA {
		k.probe.Detail = "a signature, which wraps, verifies"
	}
}

// warnExtractable says that the token would give the key away.
func (s *Step) warnExtractable() {
	s.Outcome = Warned
	s.Advice = "the token would give this key away (CKA_EXTRACTABLE is true): make a new key that is sensitive and not extractable"
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
		{kms.ErrKeyMismatch, "use a key that fits the purpose (for signing, the algorithm), or an algorithm that fits the key"},
		{kms.ErrKeyDisabled, "use a key whose attributes allow what it is for"},
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
