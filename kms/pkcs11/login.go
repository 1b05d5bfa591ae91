package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// logIn logs the user in, on one of the sessions, under the rules that keep a
// PIN from being tried until the token locks:
//
//   - no login while the token reports failed attempts, unless insisted;
//   - no second login with a PIN file whose content was refused;
//   - no login with a PIN that the module, in this epoch, may not know yet;
//   - one login at a time.
//
// Errors are *problem, or the context's. One that wraps errPINChanged says that
// the module has to be initialized again first.
func (t *token) logIn(ctx context.Context, lib cryptoki, epoch uint64, slot, session uint) error {
	select {
	case t.loginTurn <- struct{}{}:
		defer func() { <-t.loginTurn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	fail := func(text, advice string, err error) *problem {
		return &problem{stage: StepLogin, text: text, advice: advice, err: err}
	}

	if in, err := lib.loggedIn(session); err == nil && in {
		return nil // somebody was faster
	}
	info, err := lib.tokenInfo(slot)
	if err != nil {
		return fail("the token does not tell whether it may be logged in to", "", t.noted(err))
	}
	if info.flags&ckfLoginRequired == 0 {
		return nil
	}
	noPIN := func(err error) *problem {
		return fail(fmt.Sprintf("token %q has no user PIN yet", info.label),
			"set one with the security officer's PIN: "+toolCommand(t.cfg.Module, info.label, "--init-pin --login --login-type so"), err)
	}
	if info.flags&ckfUserPINInitialized == 0 {
		return noPIN(nil)
	}
	byHand := "log in once by hand with the right PIN, which takes the warning away (" + toolCommand(t.cfg.Module, info.label, "--login --list-objects") + ")"
	flags := pinFlags(info.flags)
	if flags != "" && !t.cfg.InsistOnLogin {
		t.doubtEpoch = epoch
		return fail(fmt.Sprintf("token %q reports wrong PINs since the last good one (%s), so it is not logged in to: one more wrong PIN may lock it", info.label, flags),
			"make sure that the right PIN is in "+t.cfg.PINFile+", then "+byHand+
				", or set insist_on_login: true for this backend, which then sends the PIN all the same", nil)
	}
	q := pinQuestion{warning: flags, token: info.name()}
	switch epoch {
	case t.doubtEpoch:
		q.trust = trustNone
	case t.loginEpoch:
		q.trust = trustSame
	}
	p, err := t.pins.take(ctx, q)
	switch {
	case errors.Is(err, errPINChanged):
		return fail(fmt.Sprintf("the PIN of token %q may have been changed, so the module is initialized again before one is sent", info.label), "", err)
	case err != nil:
		if ctx.Err() == nil {
			t.doubtEpoch = epoch
		}
		return err
	}
	defer p.clear()

	t.logins.Add(1)
	err = t.noted(lib.login(session, p.bytes()))
	switch {
	case err == nil:
		t.loginEpoch, t.doubtEpoch = epoch, 0
		t.pins.accepted()
		return nil
	case errors.Is(err, ckrAlreadyLoggedIn):
		t.pins.undecided()
		if in, err := lib.loggedIn(session); err == nil && in {
			return nil
		}
		return fail(fmt.Sprintf("token %q says both that the user is logged in and that he is not", info.label), "", err)
	case errors.Is(err, ckrPINNotInitialized):
		// There was nothing to hold the PIN against, so it was not refused:
		// somebody is initializing the token, or the module read it while another
		// process wrote it, which SoftHSM does at each login. It looks again when
		// it is initialized again.
		t.pins.undecided()
		p := noPIN(err)
		p.stage = StepToken
		return p
	case codeClass(err) == refused:
		t.doubtEpoch = epoch
		t.pins.refused(err)
		return fail(fmt.Sprintf("token %q refused the PIN in %s", info.label, t.cfg.PINFile),
			"put the right PIN into the file (the PIN is not sent again before the file's content changes); "+
				"and if the token warns that few tries are left, also "+byHand, err)
	default:
		t.pins.undecided()
		return &problem{stage: StepLogin, text: fmt.Sprintf("token %q cannot be logged in to", info.label), err: err, unsure: !beforeThePIN(err)}
	}
}

// beforeThePIN reports that a login ended for a reason that comes before the PIN
// is looked at: the token, the session or room for it is gone.
func beforeThePIN(err error) bool {
	c := classOf(err)
	return c == gone || c == full || errors.Is(err, ckr(0xB3)) || errors.Is(err, ckr(0xB0)) || errors.Is(err, ckr(0x02))
}

// toolCommand is a command for the operator's shell: pkcs11-tool on one token,
// with further arguments. What a token calls itself is not to be trusted, so it
// is quoted.
func toolCommand(module, label, arguments string) string {
	if strings.HasPrefix(filepath.Base(module), "libsoftokn") {
		return nssCommand(arguments)
	}
	return "pkcs11-tool --module " + shellWord(module) + " --token-label " + shellWord(label) + " " + arguments
}

// nssCommand is what does for a database of NSS softokn what pkcs11-tool does
// with these arguments for other tokens. It cannot open one: it has no way to
// give a module parameters.
func nssCommand(arguments string) string {
	command := "-K" // which logs in and lists
	switch {
	case strings.Contains(arguments, "--init-pin"):
		command = "-W"
	case strings.Contains(arguments, "--keygen"):
		command = "-G -k rsa -g 3072 --keyAttrFlags token,private,sensitive,unextractable"
	}
	return "certutil " + command + " -d sql:FOLDER"
}

// shellWord quotes s for a shell if it needs that. What cannot be printed
// becomes a question mark.
func shellWord(s string) string {
	plain := s != ""
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("/._-", r):
			return r
		}
		plain = false
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// pinFlags names the flags of a token that warn of failed logins.
func pinFlags(flags uint) string {
	var names []string
	for _, f := range []struct {
		flag uint
		name string
	}{
		{ckfUserPINCountLow, "USER_PIN_COUNT_LOW"},
		{ckfUserPINFinalTry, "USER_PIN_FINAL_TRY"},
		{ckfUserPINLocked, "USER_PIN_LOCKED"},
	} {
		if flags&f.flag != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, ", ")
}
