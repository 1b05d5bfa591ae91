package e2e

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// mustNotSign checks what a service says that is up and cannot sign: to its
// operator why, to its caller when to try again.
func mustNotSign(t testing.TB, s *harness.Service, admin *client.Client, clientID, why string) {
	t.Helper()
	s.WaitLive(t)
	harness.Eventually(t, func() error {
		code, _, body := s.Get(t, s.Ops, "/readyz")
		if code == http.StatusOK {
			t.Fatal("/readyz: 200 of a service that cannot sign")
		}
		if !strings.Contains(body, why) {
			return errorf("/readyz: %d %q, want %q in it", code, body, why)
		}
		return nil
	})
	_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken(clientID))
	f := mustFail(t, err, "SIGNING_KEY_UNAVAILABLE", "try again later")
	if strings.Contains(f.text, why) || strings.Contains(f.text, s.Dir) {
		t.Errorf("the caller is told what is the operator's concern: %s", f.text)
	}
	mustHavePushback(t, trailer(t, func(ctx context.Context, opts ...grpc.CallOption) error {
		_, err := admin.Tokens.SignAndEncrypt(ctx, idToken(clientID), opts...)
		return err
	}))
	for _, service := range []string{"", "bulla.issuer.main"} {
		res, err := healthpb.NewHealthClient(admin.Conn()).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || res.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Errorf("health of %q: got %v (%v), want NOT_SERVING", service, res, err)
		}
	}
	if up := s.Metric(t, `bulla_issuer_signs{issuer="main"}`); up != 0 {
		t.Errorf("bulla_issuer_signs: got %v, want 0", up)
	}
}

// mustSignAgain waits until the service is ready, and opens a token of it.
func mustSignAgain(t testing.TB, s *harness.Service, admin *client.Client, clientID string) {
	t.Helper()
	s.WaitReady(t)
	open(t, s, anyKey(), mustIssue(t, admin, idToken(clientID)).GetToken())
}

func TestWrongPINIsTriedOnce(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-pin", kms.ES256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("pin", harness.JWKS(anyKey())))
	s.Terminate(t)
	token.SetPIN("000000")
	s.Run(t)
	mustNotSign(t, s, admin, "pin", "PIN")
	// The service goes on trying to open its keys, and callers go on asking.
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("pin"))
		mustFail(t, err, "SIGNING_KEY_UNAVAILABLE")
	}
	const logins = `bulla_pkcs11_logins_total{backend="hsm"}`
	if n := s.Metric(t, logins); n != 1 {
		t.Errorf("%v logins with a wrong PIN, want one", n)
	}
	if n := strings.Count(s.Log(), "000000") + strings.Count(s.Log(), softhsmtest.PIN); n != 0 {
		t.Errorf("the log has a PIN %d times", n)
	}

	// The token warns of the failed login until somebody logs in by hand.
	token.Tool("--list-objects")
	token.SetPIN(softhsmtest.PIN)
	mustSignAgain(t, s, admin, "pin")
	if n := s.Metric(t, logins); n != 2 {
		t.Errorf("%v logins after the PIN was put right, want two", n)
	}
}

func TestMissingTokenIsWaitedFor(t *testing.T) {
	t.Parallel()
	token := harness.PrepareToken(t, "e2e-missing")
	s := harness.New(t, harness.Config{Token: token, CA: shared.ca})
	s.Run(t)
	s.WaitLive(t)
	admin := s.Caller(t, harness.Admin)
	// Nothing is stored that nothing could authenticate.
	_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS("token", harness.JWKS(anyKey())))
	mustFail(t, err, "SIGNING_KEY_UNAVAILABLE", "try again later")
	harness.Eventually(t, func() error {
		if _, _, body := s.Get(t, s.Ops, "/readyz"); !strings.Contains(body, "e2e-missing") {
			return errorf("/readyz: %q, want the token's name in it", body)
		}
		return nil
	})
	// An empty set, once cached, would outlive the trouble.
	if code, header, body := s.Get(t, s.HTTP, "/jwks/main"); code != http.StatusServiceUnavailable || header.Get("Cache-Control") != "" {
		t.Errorf("jwks of keys that nobody has seen: %d %v %s, want 503 and nothing to cache", code, header, body)
	}
	token.Init()
	harness.AddWrappingKey(token)
	harness.AddKeys(token, kms.ES256)
	s.WaitReady(t)
	mustRegister(t, admin, withJWKS("token", harness.JWKS(anyKey())))
	mustSignAgain(t, s, admin, "token")
}

func TestMissingModuleIsWaitedFor(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-module", kms.ES256)
	module := filepath.Join(t.TempDir(), "module.so")
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("module", harness.JWKS(anyKey())))
	s.Terminate(t)
	s.Reconfigure(t, func(tree harness.M) {
		tree["backends"].(harness.M)["hsm"].(harness.M)["pkcs11"].(harness.M)["module"] = module
	})
	s.Run(t)
	mustNotSign(t, s, admin, "module", module)
	if err := os.Symlink(token.Module, module); err != nil {
		t.Fatal(err)
	}
	mustSignAgain(t, s, admin, "module")
}

func TestKeysArePublishedWhileTheTokenIsGone(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-gone", kms.ES256, kms.RS256)
	s := harness.Start(t, harness.Config{Token: token, Algorithms: []kms.Algorithm{kms.ES256, kms.RS256}, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("gone", harness.JWKS(anyKey())))
	mustIssue(t, admin, idToken("gone"))
	_, header, jwks := s.Get(t, s.HTTP, "/jwks/main")

	s.Kill(t)
	bringBack := token.TakeAway()
	s.Run(t)
	mustNotSign(t, s, admin, "gone", "e2e-gone")
	code, now, doc := s.Get(t, s.HTTP, "/jwks/main")
	if code != http.StatusOK || doc != jwks || now.Get("ETag") != header.Get("ETag") {
		t.Errorf("jwks without the token: %d %s, want what it was: %s", code, doc, jwks)
	}
	bringBack()
	mustSignAgain(t, s, admin, "gone")
}

// TestForeignKeyUnderAKnownNameIsNotUsed puts another key in the place of a
// published one: nobody could verify its signatures.
func TestForeignKeyUnderAKnownNameIsNotUsed(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-foreign", kms.ES256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("foreign", harness.JWKS(anyKey())))
	s.Kill(t)
	token.DeleteKey(harness.KeyLabel(kms.ES256))
	harness.AddKeys(token, kms.ES256)
	s.Run(t)
	mustNotSign(t, s, admin, "foreign", "put the old key back")
}

// TestAStartThatFailsSendsNoPIN: a supervisor starts the service again and
// again, and a real token locks.
func TestAStartThatFailsSendsNoPIN(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-restart", kms.ES256)
	token.SetPIN("000000")
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := harness.New(t, harness.Config{Token: token, CA: shared.ca, Edit: func(tree harness.M) {
		tree["ops"] = harness.M{"listen": taken.Addr().String()}
	}})
	s.Run(t)
	if code := s.Exit(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if log := s.Log(); !strings.Contains(log, "ops.listen") || strings.Contains(log, "C_Login") || strings.Contains(log, "CKR_") {
		t.Errorf("want a word about ops.listen and none about a login:\n%s", log)
	}
}
