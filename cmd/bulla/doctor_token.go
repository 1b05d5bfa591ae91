package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/kms/pkcs11"
	"github.com/bulla-project/bulla/server/config"
)

// pkcs11 is the walk through a token.
func (w *walk) pkcs11(ctx context.Context, c *config.PKCS11) {
	// New waits for the first login by itself, and not for long. Were its
	// context to end, it would close the backend, which may take as long
	// again, and what is known of the login would be lost.
	const firstLogin = 6 * time.Second
	start := time.Now()
	o, ok := within(ctx, max(w.step, firstLogin), func(context.Context) openedBackend[*pkcs11.Backend] {
		b, err := pkcs11.New(context.WithoutCancel(ctx), pkcs11Config(c, refusalFile(w.cfg), w.modules, slog.New(slog.DiscardHandler)))
		return openedBackend[*pkcs11.Backend]{b, err}
	})
	if !ok {
		w.hung(ctx, pkcs11.StepModule, nil)
		return
	}
	if o.err != nil {
		w.add(pkcs11.StepModule, failed, o.err.Error(), "correct the backend in the configuration, or use a build of Bulla with cgo")
		w.leaveOut(w.keys)
		return
	}
	w.keep(o.backend)
	if first := o.backend.Stats(); !first.Up && time.Since(start) >= w.step {
		w.hung(ctx, hungAt(first), nil)
		return
	}
	if !w.stages(ctx, c, o.backend) {
		return
	}
	for i, k := range w.keys {
		if check, ok := w.tokenKey(ctx, o.backend, k); !ok {
			w.hung(ctx, check, w.keys[i:])
			return
		}
	}
}

// stages goes through module, token and login.
func (w *walk) stages(ctx context.Context, c *config.PKCS11, b *pkcs11.Backend) bool {
	// The first attempt has been made. Only that one can have sent a PIN; a
	// second attempt reports the rule by which it did not.
	first := b.Stats()
	steps, ok := within(ctx, w.step, func(ctx context.Context) []pkcs11.Step { return b.Diagnose(ctx, nil) })
	if !ok || slices.ContainsFunc(steps, hangs) {
		w.hung(ctx, hungAt(b.Stats()), nil)
		return false
	}
	refused := !first.Up && first.Logins > 0 && b.Stats().Logins == first.Logins
	for _, s := range steps {
		if s.Name == pkcs11.StepLogin && s.Outcome == pkcs11.Failed && refused {
			// The advice after the semicolon is for a service.
			s.Detail, _, _ = strings.Cut(first.Reason, "; ")
			s.Advice = "write the right PIN into the file before the doctor or the service runs again: a token locks after a few wrong ones"
		}
		if s.Name == pkcs11.StepToken && s.Outcome == pkcs11.Failed && strings.Contains(c.Module, "softhsm") && c.Token != "" && !strings.Contains(s.Advice, "softhsm2-util") {
			s.Advice += fmt.Sprintf("; or create it: softhsm2-util --init-token --free --label %q", c.Token)
		}
		if o, looked := stepOutcome(s); looked {
			w.add(s.Name, o, s.Detail, orElse(s.Advice, o, "see the token's own log"))
		}
		if s.Outcome == pkcs11.Failed {
			w.leaveOut(w.keys)
			return false
		}
	}
	return true
}

// hungAt is the step at which a token that does not come up hangs: a login is
// counted when it begins.
func hungAt(s pkcs11.Stats) string {
	if s.Logins > 0 {
		return pkcs11.StepLogin
	}
	return pkcs11.StepModule
}

// tokenKey goes through a key of a token. If that hangs, ok is false and check
// is the step at which it does.
func (w *walk) tokenKey(ctx context.Context, b *pkcs11.Backend, k doctorKey) (check string, ok bool) {
	refs := []pkcs11.KeyRef{{Ref: k.ref.Ref, Algorithm: k.algorithm, Wrapping: k.wraps}}
	steps, ok := within(ctx, w.step, func(ctx context.Context) []pkcs11.Step { return b.Diagnose(ctx, refs) })
	if !ok {
		return k.check(), false
	}
	fine := true
	for _, s := range steps {
		if hangs(s) {
			if s.Key == "" { // the token hangs, which answered a moment ago
				return k.check(), false
			}
			return checkOf(s, k), false
		}
		o, looked := stepOutcome(s)
		switch {
		case s.Key == "" && s.Outcome == pkcs11.Failed:
			w.addKey(k.check(), k, failed, "the token was lost: "+s.Detail, orElse(s.Advice, failed, "run the doctor again"))
			return "", true
		case s.Key == "" || !looked:
			continue
		}
		fine = fine && o != failed
		if k.wraps {
			if o == failed {
				s.Advice = w.wrappingAdvice(k, s.Err)
			}
			if s.Name == pkcs11.StepProbe && o == good {
				continue // a harder one follows
			}
		}
		w.addKey(checkOf(s, k), k, o, s.Detail, orElse(s.Advice, o, k.advice(s.Err)))
	}
	switch {
	case fine && k.wraps:
		return w.tokenWrapping(ctx, b, k)
	case !fine || k.alone:
		return "", true
	}
	// Diagnose keeps the public key to itself.
	key, err := w.openKey(ctx, b, k)
	if errors.Is(err, errNoAnswer) {
		return pkcs11.StepProbe, false
	}
	if err == nil {
		w.proofs.add(k.ref, key.Public())
	}
	return "", true
}

// tokenWrapping has a wrapping key of a token, which Diagnose has found well,
// do what it is for. Its results are those of tokenKey.
func (w *walk) tokenWrapping(ctx context.Context, b *pkcs11.Backend, k doctorKey) (check string, ok bool) {
	wrapper, err := w.openWrapper(ctx, b, k)
	switch {
	case errors.Is(err, errNoAnswer):
		return checkProbe, false
	case err != nil:
		w.addKey(checkProbe, k, failed, err.Error(), w.wrappingAdvice(k, err))
		return "", true
	}
	return w.wrapProbe(ctx, wrapper, k)
}

// checkOf is what the finding of a step about a key is called.
func checkOf(s pkcs11.Step, k doctorKey) string {
	if s.Name == pkcs11.StepKey {
		return k.check()
	}
	return s.Name
}

// hangs reports whether a step failed because it was not waited for longer.
func hangs(s pkcs11.Step) bool {
	return s.Outcome == pkcs11.Failed && errors.Is(s.Err, context.DeadlineExceeded)
}

// stepOutcome is the outcome of a step that was taken.
func stepOutcome(s pkcs11.Step) (o outcome, looked bool) {
	switch s.Outcome {
	case pkcs11.Passed:
		return good, true
	case pkcs11.Warned:
		return warned, true
	case pkcs11.Failed:
		return failed, true
	case pkcs11.Skipped:
	}
	return "", false
}

// orElse sees to it that there is advice wherever something is wrong.
func orElse(advice string, o outcome, otherwise string) string {
	if advice == "" && o != good {
		return otherwise
	}
	return advice
}
