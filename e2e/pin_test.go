package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/faultymodule"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// witnessed is a service, not started, on a token behind a module that counts
// logins.
func witnessed(t *testing.T, label string) (*harness.Service, *softhsmtest.Token, *faultymodule.Module) {
	t.Helper()
	token := harness.NewToken(t, label, kms.ES256)
	module := faultymodule.New(t, token.Module)
	s := harness.New(t, harness.Config{Token: token, CA: shared.ca, Env: module.Env(), Edit: func(tree harness.M) {
		tree["backends"].(harness.M)["hsm"].(harness.M)["pkcs11"].(harness.M)["module"] = module.Path
	}})
	return s, token, module
}

// mustStayUp starts the service and waits until it has said why it cannot sign.
func mustStayUp(t *testing.T, s *harness.Service, why string) {
	t.Helper()
	s.Run(t)
	s.WaitLive(t)
	harness.Eventually(t, func() error {
		code, _, body := s.Get(t, s.Ops, "/readyz")
		if code == http.StatusOK {
			t.Fatal("/readyz: 200 of a service that cannot log in")
		}
		if !strings.Contains(body, why) {
			return errorf("/readyz: %d %q, want %q in it", code, body, why)
		}
		return nil
	})
}

// mustDiagnose runs the doctor, which must find that there is no login.
func mustDiagnose(t *testing.T, s *harness.Service, why string) {
	t.Helper()
	out, err := s.Command(t, "doctor", "--config", s.ConfigFile).CombinedOutput()
	if err == nil || !strings.Contains(string(out), why) {
		t.Errorf("doctor: %v, want a failure and %q:\n%s", err, why, out)
	}
}

// mustHaveLoggedIn checks how often C_Login was called, and how often it was
// refused.
func mustHaveLoggedIn(t *testing.T, m *faultymodule.Module, calls, refused int) {
	t.Helper()
	if n, r := m.Calls("C_Login"), m.Counts().RefusedLogins; n != calls || r != refused {
		t.Errorf("%d logins, %d of them refused; want %d and %d", n, r, calls, refused)
	}
}

func TestTokenThatWarnsIsNotLoggedInTo(t *testing.T) {
	t.Parallel()
	s, _, module := witnessed(t, "e2e-warns")
	for _, c := range []struct {
		flag uint
		name string
	}{
		{faultymodule.UserPINCountLow, "USER_PIN_COUNT_LOW"},
		{faultymodule.UserPINFinalTry, "USER_PIN_FINAL_TRY"},
		{faultymodule.UserPINLocked, "USER_PIN_LOCKED"},
	} {
		module.SetTokenFlags(c.flag, 0)
		mustStayUp(t, s, c.name)
		mustDiagnose(t, s, c.name)
		s.Terminate(t)
		mustDiagnose(t, s, c.name)
	}
	mustHaveLoggedIn(t, module, 0, 0)

	// The warning goes when somebody has logged in by hand.
	mustStayUp(t, s, "USER_PIN_LOCKED")
	pid := s.PID(t)
	module.SetTokenFlags(0, 0)
	s.WaitReady(t)
	mustHaveLoggedIn(t, module, 1, 0)
	if s.PID(t) != pid {
		t.Error("the service was restarted")
	}
}

// TestWrongPINIsSentOnceWhateverIsRestarted is about a token that warns after
// the first refusal, as SoftHSM does.
func TestWrongPINIsSentOnceWhateverIsRestarted(t *testing.T) {
	t.Parallel()
	s, token, module := witnessed(t, "e2e-restarts")
	token.SetPIN("000000")
	mustStayUp(t, s, "PIN")
	mustHaveLoggedIn(t, module, 1, 1)
	for range 4 {
		s.Terminate(t)
		mustStayUp(t, s, "PIN")
		mustDiagnose(t, s, "PIN")
	}
	mustHaveLoggedIn(t, module, 1, 1)
	for _, secret := range []string{"000000", softhsmtest.PIN} {
		if strings.Contains(s.Log(), secret) {
			t.Error("the log has a PIN")
		}
	}
}

// TestDoctorSendsAWrongPINOnce is the same for an operator who has not started
// the service yet.
func TestDoctorSendsAWrongPINOnce(t *testing.T) {
	t.Parallel()
	s, token, module := witnessed(t, "e2e-doctor")
	token.SetPIN("000000")
	for range 3 {
		mustDiagnose(t, s, "PIN")
	}
	mustHaveLoggedIn(t, module, 1, 1)
}

// TestWrongPINOnATokenThatDoesNotWarn is about a token that refuses a PIN and
// says nothing of it after, until it locks.
func TestWrongPINOnATokenThatDoesNotWarn(t *testing.T) {
	t.Parallel()
	s, token, module := witnessed(t, "e2e-silent")
	const flags = faultymodule.UserPINCountLow | faultymodule.UserPINFinalTry | faultymodule.UserPINLocked
	module.SetTokenFlags(0, flags)
	token.SetPIN("000000")
	logins := 1 // in all
	for i := range 2 {
		mustStayUp(t, s, "PIN")
		mustHaveLoggedIn(t, module, logins, logins)
		mustDiagnose(t, s, "PIN")
		mustHaveLoggedIn(t, module, logins, logins)
		if i == 0 {
			s.Terminate(t)
		}
	}

	// Another wrong PIN is worth one try, the right one heals.
	pid := s.PID(t)
	token.SetPIN("111111")
	logins++
	harness.Eventually(t, func() error {
		if n := module.Counts().RefusedLogins; n != logins {
			return errorf("%d refused logins, want %d", n, logins)
		}
		return nil
	})
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if code, _, _ := s.Get(t, s.Ops, "/readyz"); code == http.StatusOK {
			t.Fatal("ready with a wrong PIN")
		}
	}
	mustHaveLoggedIn(t, module, logins, logins)
	token.SetPIN(softhsmtest.PIN)
	s.WaitReady(t)
	mustHaveLoggedIn(t, module, logins+1, logins)
	if s.PID(t) != pid {
		t.Error("the service was restarted")
	}
}
