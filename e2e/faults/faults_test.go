package faults

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/faultymodule"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// everywhere are the faults that are done to a module in the service's process
// and to one in a worker.
var everywhere = []fault{
	{
		name: "all sessions closed", most: 0, apart: true,
		what: "another user of the process calls C_CloseAllSessions, which ends the login too",
		do:   func(r *rig) func() { r.module.CloseSessions(); return nil },
	},
	{
		name: "logout", most: 0,
		what: "another user of the process calls C_Logout",
		do:   func(r *rig) func() { r.module.LogOut(); return nil },
	},
	{
		name: "all sessions closed, with room for 8", most: callers, apart: true, short: 500 * time.Millisecond, long: 10 * time.Second,
		what: "the sessions are closed and from then on the token has only 8 of them, where 16 are configured, and says nothing of it",
		do: func(r *rig) func() {
			r.module.LimitSessions(8)
			r.module.CloseSessions()
			return func() { r.module.LimitSessions(0) }
		},
	},
	{
		name: "wrong signatures", most: 64, also: []string{"SIGNING_FAULT"},
		what: "64 signatures come out of the module with a wrong bit",
		do: func(r *rig) func() {
			r.module.Twist(64)
			return func() { waitFor(r, "64 signatures", func() bool { return r.module.Twisted() == 0 }) }
		},
	},
	{
		name: "C_Sign hangs", most: unlimited, apart: true, short: time.Second, long: 30 * time.Second,
		what: "all calls of C_Sign hang, the other functions answer",
		do:   func(r *rig) func() { r.module.Hang("C_Sign", faultymodule.All); return r.module.Release },
	},
	{
		name: "the module hangs", most: unlimited, short: time.Second, long: 30 * time.Second,
		what: "all calls of all functions hang",
		do:   func(r *rig) func() { r.module.HangEverything(); return r.module.Release },
	},
	{
		name: "key deleted and restored", most: unlimited, long: 10 * time.Second,
		what: "pkcs11-tool deletes the key pair, softhsm2-util imports it again",
		do: func(r *rig) func() {
			r.token.DeleteKey(harness.KeyLabel(kms.ES256))
			return r.importSigningKey
		},
	},
	{
		name: "token initialized again", most: unlimited, long: 10 * time.Second,
		what: "softhsm2-util initializes the token in its place, and the same keys are imported",
		do:   func(r *rig) func() { r.initialize(); return r.importKeys },
	},
	{
		name: "token deleted and made anew", most: unlimited, long: 10 * time.Second,
		what: "softhsm2-util deletes the token and makes another with the same label, and the same keys are imported",
		do: func(r *rig) func() {
			r.token.Delete()
			return func() { r.token.Init(); r.importKeys() }
		},
	},
	{
		name: "token folder gone and back", most: unlimited, short: 500 * time.Millisecond, long: 30 * time.Second,
		what: "the folder with the tokens' files is moved away and back",
		do:   func(r *rig) func() { return r.token.TakeAway() },
	},
	{
		name: "login refused by the token's warning", most: unlimited, apart: true, short: 500 * time.Millisecond, long: 10 * time.Second,
		what: "the token says USER_PIN_COUNT_LOW, and the login is lost: it must not be logged in to before the warning is gone",
		do: func(r *rig) func() {
			logins := r.module.Calls("C_Login")
			r.module.SetTokenFlags(faultymodule.UserPINCountLow, 0)
			r.module.LogOut()
			return func() {
				if n := r.module.Calls("C_Login") - logins; n > 0 {
					r.t.Errorf("%d logins to a token that warns", n)
				}
				r.module.SetTokenFlags(0, 0)
			}
		},
	},
	{
		name: "PIN changed", most: unlimited,
		what: "pkcs11-tool changes the PIN, the PIN file is changed alike, and the login is lost",
		do: func(r *rig) func() {
			const changed = "654321"
			r.changePIN(softhsmtest.PIN, changed)
			r.token.SetPIN(changed)
			r.module.LogOut()
			return nil
		},
	},
}

// isolatedOnly are the faults that would end the service if the module were in
// its process.
var isolatedOnly = []fault{
	{
		name: "worker killed", most: callers, apart: true,
		what: "kill -9 of the worker",
		do:   func(r *rig) func() { r.killWorkers(); return nil },
	},
	{
		name: "module crashes", most: callers, apart: true,
		what: "a C_Sign ends the worker by a SIGSEGV",
		do: func(r *rig) func() {
			r.module.Crash("C_Sign", 1)
			return func() { waitFor(r, "the crash", func() bool { return r.module.Pending("C_Sign") == 0 }) }
		},
	},
}

// answers are the faults that C_Sign answers with each code of package pkcs11's
// table, and with one of a vendor, once. The codes that mean the same are one
// fault, but for those that cost the login: each is one of its own.
func answers() []fault {
	all := append(faultymodule.Codes(), faultymodule.Code{Value: 0x80000001, Name: "a vendor's 0x80000001", Class: faultymodule.Fault})
	var list []fault
	for _, class := range []struct{ class, what string }{
		{faultymodule.Stale, "the session, the login or a handle is no longer good: the signature is made once more, in another session"},
		{faultymodule.Full, "the token has no room: the signature is made once more, and the pool shrinks"},
		{faultymodule.Refused, "C_Sign has no business with PINs: the session is closed"},
		{faultymodule.Forbidden, "the key may not sign: its caller is told so, the session is closed"},
		{faultymodule.Unfit, "the key does not fit the mechanism: its caller is told so, the session is closed"},
		{faultymodule.Fault, "without a rule: the session is closed, and nothing is tried again that may have been done"},
		{faultymodule.Gone, "the token is gone: all callers are told so until the module is initialized again"},
	} {
		var codes []faultymodule.Code
		for _, c := range all {
			if c.Class == class.class {
				codes = append(codes, c)
			}
		}
		switch class.class {
		case faultymodule.Gone:
			for i, c := range codes {
				f := answering(class.what, unlimited, c)
				f.apart = i == 0
				list = append(list, f)
			}
		case faultymodule.Stale, faultymodule.Full:
			list = append(list, answering(class.what, 0, codes...))
		default:
			list = append(list, answering(class.what, len(codes), codes...))
		}
	}
	return list
}

// answering is the fault that C_Sign answers with each code once. Where no
// request may fail, each waits until the one before it is over: a signature that
// is made once more must not meet the next.
func answering(what string, most int, codes ...faultymodule.Code) fault {
	f := fault{
		name: "C_Sign: " + codes[0].Name, what: what, most: most, quiet: 100 * time.Millisecond, codes: codes,
		do: func(r *rig) func() {
			for i, c := range codes {
				if i > 0 && most == 0 && !r.recover(time.Now(), 0, patience) {
					return nil
				}
				r.module.Fail("C_Sign", 1, c.Value)
				waitFor(r, c.Name, func() bool { return r.module.Pending("C_Sign") == 0 })
			}
			return nil
		},
	}
	if more := len(codes) - 1; more > 0 {
		f.name = fmt.Sprintf("%s and %d more", f.name, more)
	}
	return f
}

func waitFor(r *rig, what string, done func() bool) {
	for until := time.Now().Add(deadline); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			r.t.Errorf("%s: nobody met it", what)
			return
		}
	}
}

func TestFaults(t *testing.T) {
	var r report
	t.Run("Rigs", func(t *testing.T) {
		for _, c := range []struct {
			name   string
			build  func(*rig)
			faults []fault
			rows   *[]row
		}{
			{"InProcess", inProcess, slices.Concat(answers(), everywhere), &r.here},
			{"Isolated", isolated, apart(slices.Concat(isolatedOnly, answers(), everywhere)), &r.isolated},
			{"KMS", newCloudRig, ofTheCloud, &r.cloud},
		} {
			t.Run(c.name, func(t *testing.T) {
				if !full {
					t.Parallel() // each waits more than it works; in full, figures count
				}
				rig := newRig(t, c.build)
				for _, f := range c.faults {
					t.Run(f.name, func(t *testing.T) { *c.rows = append(*c.rows, rig.try(t, f)) })
				}
			})
		}
	})
	t.Log("\n" + r.tables())
	if full || os.Getenv("BULLA_FAULTS_WRITE") != "" {
		r.write(t)
	}
}

// apart is the faults that this pass has with the module in a worker.
func apart(all []fault) []fault {
	if full {
		return all
	}
	return slices.DeleteFunc(all, func(f fault) bool { return !f.apart })
}
