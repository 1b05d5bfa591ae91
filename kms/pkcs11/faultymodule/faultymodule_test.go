//go:build cgo

package faultymodule_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11"
	"github.com/bulla-project/bulla/kms/pkcs11/faultymodule"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a backend on a SoftHSM token behind the module.
type bench struct {
	*faultymodule.Module
	hsm     *softhsmtest.Token
	backend *pkcs11.Backend
	key     kms.Key
}

// newModule makes the module before SoftHSM, with a token that has one key.
func newModule(t *testing.T) (*faultymodule.Module, *softhsmtest.Token) {
	t.Helper()
	hsm := softhsmtest.New(t, "faulty")
	hsm.GenerateKey("sign", "01", kms.ES256)
	m := faultymodule.New(t, hsm.Module)
	m.Setenv(t)
	return m, hsm
}

func open(t *testing.T, change ...func(*pkcs11.Config)) *bench {
	t.Helper()
	b := &bench{}
	b.Module, b.hsm = newModule(t)
	cfg := pkcs11.Config{Module: b.Path, Token: b.hsm.Label, PINFile: b.hsm.PINFile, Sessions: 4, RetryAfter: 20 * time.Millisecond}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if b.backend, err = pkcs11.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Clear()
		if err := b.backend.Close(); err != nil {
			t.Error(err)
		}
		if c := b.Counts(); c.Overlaps != 0 || c.Intrusions != 0 || c.Open != 0 {
			t.Errorf("the module saw %+v", c)
		}
	})
	if b.key, err = b.backend.OpenKey(t.Context(), "object=sign", kms.ES256); err != nil {
		t.Fatal(err)
	}
	return b
}

// sign signs once, with a second's patience.
func (b *bench) sign(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	message := []byte("header.payload")
	signature, err := b.key.Sign(ctx, message)
	if err != nil {
		return err
	}
	return kms.Verify(kms.ES256, b.key.Public(), message, signature)
}

func (b *bench) mustSign(t *testing.T) {
	t.Helper()
	if err := b.sign(t); err != nil {
		t.Fatal(err)
	}
}

func TestFunctionsAreThoseOfTheStandard(t *testing.T) {
	names := faultymodule.Functions()
	if len(names) != 68 || names[0] != "C_Initialize" || names[43] != "C_Sign" || names[67] != "C_WaitForSlotEvent" {
		t.Errorf("got %d functions: %v", len(names), names)
	}
}

func TestCallsAreCounted(t *testing.T) {
	b := open(t)
	before := b.Calls("C_Sign")
	for range 3 {
		b.mustSign(t)
	}
	if n := b.Calls("C_Sign") - before; n != 3 {
		t.Errorf("%d calls of C_Sign for 3 signatures", n)
	}
	if i, l := b.Calls("C_Initialize"), b.Calls("C_Login"); i != 1 || l != 1 {
		t.Errorf("%d calls of C_Initialize and %d of C_Login, want one of each", i, l)
	}
	if c := b.Counts(); c.Open < 2 || c.OpenMost < c.Open {
		t.Errorf("the login session and one that signed are open, but: %+v", c)
	}
}

func TestCallFailsWithTheCodeAskedFor(t *testing.T) {
	b := open(t)
	for _, function := range []string{"C_SignInit", "C_Sign"} {
		failed := b.Failed(function)
		b.Fail(function, 1, 0x80000123)
		if err := b.sign(t); err == nil || !strings.Contains(err.Error(), function+": vendor error 0x80000123") {
			t.Errorf("%s: got %v", function, err)
		}
		if n := b.Failed(function) - failed; n != 1 || b.Pending(function) != 0 {
			t.Errorf("%s failed %d times and will %d times more, want once", function, n, b.Pending(function))
		}
		b.mustSign(t)
	}
}

func TestLostSessionsAreReplaced(t *testing.T) {
	b := open(t)
	for name, lose := range map[string]func(){
		"closed": b.CloseSessions, "logged out": b.LogOut,
		"one is invalid": func() { b.Fail("C_Sign", 1, 0xB3) },
	} {
		failed := b.Failed("C_SignInit") + b.Failed("C_Sign")
		lose()
		b.mustSign(t)
		if b.Failed("C_SignInit")+b.Failed("C_Sign") == failed {
			t.Errorf("%s: the signature met no error", name)
		}
	}
}

func TestSessionsAreLimited(t *testing.T) {
	b := open(t)
	b.LimitSessions(2) // one to sign, one for the login
	b.CloseSessions()
	b.mustSign(t)
	failed := b.Failed("C_OpenSession")
	b.LimitSessions(1)
	b.CloseSessions()
	if err := b.sign(t); err == nil {
		t.Error("one session is enough for the login and a signature")
	}
	if b.Failed("C_OpenSession") == failed || b.Counts().Open != 1 {
		t.Errorf("C_OpenSession failed as often as before, with %d sessions open", b.Counts().Open)
	}
}

func TestCallHangsUntilItIsReleased(t *testing.T) {
	b := open(t)
	b.Hang("C_Sign", 1)
	if err := b.sign(t); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a signature that hangs ended with %v", err)
	}
	if c := b.Counts(); c.Hanging != 1 {
		t.Errorf("%+v, want one that hangs", c)
	}
	b.mustSign(t) // in another session
	b.Release()
	for until := time.Now().Add(5 * time.Second); b.Counts().Hanging != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it still hangs after the release")
		}
	}
	const length = 30 * time.Millisecond
	b.HangFor("C_Sign", 1, length)
	began := time.Now()
	b.mustSign(t)
	if took := time.Since(began); took < length {
		t.Errorf("a signature that hangs for %v took %v", length, took)
	}
}

func TestSignatureIsWrong(t *testing.T) {
	b := open(t)
	b.Twist(1)
	if err := b.sign(t); err == nil {
		t.Error("a twisted signature verifies")
	}
	b.mustSign(t)
}

func TestLoginIsRefusedAndFlagsWarn(t *testing.T) {
	b := open(t)
	restart := func() {
		b.Fail("C_Sign", 1, 0x32) // the device is gone: initialize, log in
		if err := b.sign(t); !errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		time.Sleep(30 * time.Millisecond) // RetryAfter
	}
	b.SetTokenFlags(faultymodule.UserPINCountLow, 0)
	restart()
	if err := b.backend.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "USER_PIN_COUNT_LOW") {
		t.Errorf("got %v", err)
	}
	if n := b.Calls("C_Login"); n != 1 {
		t.Errorf("%d logins, want one, before the warning", n)
	}
	b.SetTokenFlags(0, 0)
	b.Fail("C_Login", 1, 0xA0)
	time.Sleep(30 * time.Millisecond) // RetryAfter
	if err := b.backend.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
	if c := b.Counts(); c.RefusedLogins != 1 || b.Calls("C_Login") != 2 {
		t.Errorf("%d refused logins of %d, want one of 2", c.RefusedLogins, b.Calls("C_Login"))
	}
}

// TestCrashEndsTheProcess crashes one that is not the test's.
func TestCrashEndsTheProcess(t *testing.T) {
	m, hsm := newModule(t)
	dir := t.TempDir()
	digest := filepath.Join(dir, "digest")
	if err := os.WriteFile(digest, make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	sign := func() error {
		cmd := exec.Command("pkcs11-tool", "--module", m.Path, "--token-label", hsm.Label, "--login", "--pin", softhsmtest.PIN,
			"--sign", "--mechanism", "ECDSA", "--label", "sign", "--input-file", digest, "--output-file", filepath.Join(dir, "signature"))
		cmd.Env = append(hsm.Env(), m.Env()...)
		return cmd.Run()
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	m.Crash("C_SignInit", 1)
	var exit *exec.ExitError
	if err := sign(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSEGV {
		t.Errorf("got %v, want the end by SIGSEGV", err)
	}
	if err := sign(); err != nil {
		t.Errorf("after one crash: %v", err)
	}
}

// TestWhatWouldCrashIsWitnessed breaks the rules that package pkcs11 keeps.
func TestWhatWouldCrashIsWitnessed(t *testing.T) {
	m, _ := newModule(t)
	lib := p11.New(m.Path)
	if lib == nil {
		t.Fatal("the module does not load")
	}
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	session, err := lib.OpenSession(slots[0], p11.CKF_SERIAL_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	m.Hang("C_GetSessionInfo", 1)
	done := make(chan error)
	go func() {
		_, err := lib.GetSessionInfo(session)
		done <- err
	}()
	for m.Counts().Hanging == 0 {
		time.Sleep(time.Millisecond)
	}
	if c := m.Counts(); c.Overlaps != 0 || c.Intrusions != 0 {
		t.Errorf("nothing was done wrong yet, but: %+v", c)
	}
	if _, err := lib.GenerateRandom(session, 1); err != nil {
		t.Error(err)
	}
	if n := m.Counts().Overlaps; n != 1 {
		t.Errorf("%d overlaps, want 1", n)
	}
	if err := lib.Finalize(); err != nil {
		t.Error(err)
	}
	if n := m.Counts().Intrusions; n != 1 {
		t.Errorf("%d intrusions, want 1", n)
	}
	m.Release()
	if err := <-done; err == nil {
		t.Error("a call came well out of a module that was finalized meanwhile")
	}
}
