package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// disk is a place where files go, which can be full.
type disk struct {
	dir  string
	fill func(*harness.Service)
	free func(*harness.Service)
}

// onFullDisks runs a test on a small file system that runs full (which takes a
// user who may mount one), and with a limit to the size of the service's files,
// which comes to the same and anybody can set.
func onFullDisks(t *testing.T, test func(*testing.T, disk)) {
	t.Run("file system", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Skipf("this user may mount no file system (%v); the limit of files below is the same test", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		filler := filepath.Join(dir, "filler")
		test(t, disk{
			dir: dir,
			fill: func(*harness.Service) {
				f, err := os.Create(filler)
				if err != nil {
					t.Fatal(err)
				}
				for block := make([]byte, 4096); err == nil; {
					_, err = f.Write(block)
				}
				_ = f.Close() // the disk is full
			},
			free: func(*harness.Service) {
				if err := os.Remove(filler); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
	t.Run("file size limit", func(t *testing.T) {
		t.Parallel()
		limit := func(s *harness.Service, size string) {
			t.Helper()
			out, err := exec.CommandContext(t.Context(), "prlimit", "--pid", strconv.Itoa(s.PID(t)), "--fsize="+size+":unlimited").CombinedOutput()
			if err != nil {
				t.Fatalf("prlimit: %v %s", err, out)
			}
		}
		test(t, disk{
			dir:  t.TempDir(),
			fill: func(s *harness.Service) { limit(s, "1") },
			free: func(s *harness.Service) { limit(s, "unlimited") },
		})
	})
}

func TestNothingIsIssuedWhileTheAuditLogIsFull(t *testing.T) {
	t.Parallel()
	onFullDisks(t, func(t *testing.T, disk disk) {
		s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: func(tree harness.M) {
			tree["audit"].(harness.M)["path"] = filepath.Join(disk.dir, "audit.log")
		}})
		admin := s.Caller(t, harness.Admin)
		mustRegister(t, admin, withJWKS("full", harness.JWKS(anyKey())))
		issued := 1
		mustIssue(t, admin, idToken("full"))

		disk.fill(s)
		mustDeny := func(call func() error) {
			t.Helper()
			// What is left of the last block may still hold some lines.
			var err error
			for range 20 {
				if err = call(); err != nil {
					break
				}
			}
			mustFail(t, err, "AUDIT_UNAVAILABLE", "nothing is issued")
		}
		mustDeny(func() error {
			_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("full"))
			if err == nil {
				issued++
			}
			return err
		})
		mustDeny(func() error {
			_, err := admin.Tokens.Sign(t.Context(), &bullav1.SignRequest{Issuer: harness.Issuer, TokenKind: kindAccess, Claims: []byte(`{"sub":"a","aud":"b","client_id":"c"}`)})
			return err
		})
		registered := 0
		mustDeny(func() error {
			_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS(fmt.Sprintf("full-%d", registered), harness.JWKS(anyKey())))
			if err == nil {
				registered++
			}
			return err
		})
		refused := fmt.Sprintf("full-%d", registered)
		_, err := s.Caller(t, stranger).ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: "full"})
		if err == nil {
			t.Error("a denial that cannot be put on record became a permission")
		}
		// What needs no record goes on.
		mustGet(t, admin, "full")
		_, err = admin.ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: refused})
		mustFail(t, err, "CLIENT_NOT_REGISTERED")
		if n := s.Metric(t, "bulla_audit_failures_total"); n < 3 {
			t.Errorf("bulla_audit_failures_total: got %v, want all of them", n)
		}
		s.WaitLog(t, "audit log")

		disk.free(s)
		harness.Eventually(t, func() error {
			_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("full"))
			return err
		})
		issued++
		mustRegister(t, admin, withJWKS(refused, harness.JWKS(anyKey())))
		// The log is whole, and has one line for each token.
		var lines int
		for _, line := range s.AuditOf(t, "full") {
			if line.Outcome == "issued" {
				lines++
			}
		}
		if lines != issued {
			t.Errorf("%d tokens and %d lines", issued, lines)
		}
	})
}

func TestNothingIsRegisteredWhileTheStoreIsFull(t *testing.T) {
	t.Parallel()
	onFullDisks(t, func(t *testing.T, disk disk) {
		s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: func(tree harness.M) {
			tree["store"].(harness.M)["bolt"].(harness.M)["path"] = filepath.Join(disk.dir, "bulla.db")
			tree["audit"].(harness.M)["path"] = "-" // elsewhere
		}})
		admin := s.Caller(t, harness.Admin)
		// Large enough not to fit into what the store has to spare.
		large := bytes.Replace(harness.JWKS(anyKey()), []byte(`{"keys"`), []byte(`{"x":"`+strings.Repeat("x", 100<<10)+`","keys"`), 1)
		mustRegister(t, admin, withJWKS("full", harness.JWKS(anyKey())))

		disk.fill(s)
		var err error
		var refused string
		registered := map[string]bool{}
		for i := range 20 {
			refused = fmt.Sprintf("full-%d", i)
			if _, err = admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS(refused, large)); err != nil {
				break
			}
			registered[refused] = true
		}
		mustFail(t, err, "REGISTRY_UNAVAILABLE", "repeat a change")
		_, err = admin.ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: refused})
		mustFail(t, err, "CLIENT_NOT_REGISTERED")
		_, err = admin.Tokens.SignAndEncrypt(t.Context(), idToken(refused))
		mustFail(t, err, "CLIENT_NOT_REGISTERED")
		open(t, s, anyKey(), mustIssue(t, admin, idToken("full")).GetToken())
		harness.Eventually(t, func() error {
			got := outcomes(s.AuditOf(t, refused))
			if len(got) < 2 || got[0] != "changed" || got[1] != "failed REGISTRY_UNAVAILABLE" {
				return errorf("the audit log says %q of a change that failed", got)
			}
			return nil
		})

		disk.free(s)
		var key *bullav1.RegisterClientKeyResponse
		harness.Eventually(t, func() (err error) {
			key, err = admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS(refused, harness.JWKS(anyKey())))
			return err
		})
		open(t, s, anyKey(), mustIssue(t, admin, idToken(refused)).GetToken())

		// The file is sound: all of it is there after a kill.
		s.Kill(t)
		s.Run(t)
		s.WaitReady(t)
		if got := mustGet(t, admin, refused).GetRevision(); got != key.GetClientKey().GetRevision() {
			t.Errorf("after a kill the client is at revision %s, want %s", got, key.GetClientKey().GetRevision())
		}
		for id := range registered {
			mustGet(t, admin, id)
		}
	})
}

func TestRotatedAuditLogIsContinuedInANewFile(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("rotated-log", harness.JWKS(anyKey())))
	log := filepath.Join(s.Dir, "audit.log")
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	mustIssue(t, admin, idToken("rotated-log")) // into the old file still
	s.Signal(t, syscall.SIGHUP)
	s.WaitLog(t, "audit log reopened")
	mustIssue(t, admin, idToken("rotated-log"))
	mustHaveOutcomes(t, s.AuditOf(t, "rotated-log"), "issued")
	old, err := os.ReadFile(log + ".1")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(old, []byte(`"client_id":"rotated-log"`)); n != 2 {
		t.Errorf("the old file has %d lines, want the registration and one token", n)
	}
}
