package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// isolated has the module run in a process of its own.
func isolated(tree harness.M) {
	tree["backends"].(harness.M)["hsm"].(harness.M)["pkcs11"].(harness.M)["isolation"] = "process"
}

// worker is the process that the service has started for its module.
func worker(t testing.TB, s *harness.Service) int {
	t.Helper()
	pid := 0
	harness.Eventually(t, func() error {
		children, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range children {
			stat, err := os.ReadFile(path)
			if err != nil {
				continue // it has gone
			}
			_, after, _ := bytes.Cut(stat, []byte(") "))
			fields := strings.Fields(string(after))
			if len(fields) > 1 && fields[0] != "Z" && fields[1] == strconv.Itoa(s.PID(t)) {
				pid, err = strconv.Atoi(filepath.Base(filepath.Dir(path)))
				return err
			}
		}
		return fmt.Errorf("the service %d has no child", s.PID(t))
	})
	return pid
}

func TestModuleRunsInAProcessOfItsOwn(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-isolated", kms.ES256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca, Edit: isolated})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("isolated", harness.JWKS(anyKey())))
	open(t, s, anyKey(), mustIssue(t, admin, idToken("isolated")).GetToken())

	service, first := s.PID(t), worker(t, s)
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", first, file))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte(softhsmtest.PIN)) {
			t.Errorf("the PIN is in the worker's %s", file)
		}
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", service))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(maps, []byte("softhsm")) {
		t.Error("the service itself has loaded the module")
	}
	out, err := s.Command(t, "doctor", "--config", s.ConfigFile).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("a signature with ES256 verifies")) {
		t.Errorf("doctor beside it: %v\n%s", err, out)
	}

	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		old := worker(t, s)
		if err := syscall.Kill(old, sig); err != nil {
			t.Fatal(err)
		}
		// The call waits for the next worker.
		open(t, s, anyKey(), mustIssue(t, admin, idToken("isolated")).GetToken())
		if now := worker(t, s); now == old {
			t.Errorf("after %v the worker is still %d", sig, old)
		}
	}
	if got := s.PID(t); got != service {
		t.Errorf("the service is %d now and was %d", got, service)
	}
	if n := s.Metric(t, `bulla_pkcs11_worker_restarts_total{backend="hsm"}`); n != 2 {
		t.Errorf("%v restarts of the worker, want 2", n)
	}

	// What is sent to the whole group, as by a terminal, ends the service in
	// order and the worker with it.
	last := worker(t, s)
	if err := syscall.Kill(last, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	open(t, s, anyKey(), mustIssue(t, admin, idToken("isolated")).GetToken())
	if got := worker(t, s); got != last {
		t.Errorf("SIGTERM has ended the worker %d; it is %d now", last, got)
	}
	if code := s.Terminate(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	harness.Eventually(t, func() error {
		if err := syscall.Kill(last, 0); err == nil {
			return fmt.Errorf("the worker %d has outlived the service", last)
		}
		return nil
	})
}
