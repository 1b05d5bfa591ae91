package e2e

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/bulla-project/bulla/e2e/harness"
)

// TestShutdownLosesNoCallInFlight ends a service under load. Whatever is on
// record as issued must have reached its caller: a call is either answered or
// was never taken.
func TestShutdownLosesNoCallInFlight(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, shared.host.CA)
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Host: host})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("down", harness.JWKS(anyKey())))
	o := opener(t, s, anyKey(), clientConfig())
	watched := watchHealth(t, s)

	var load sync.WaitGroup
	var tokens, refused atomic.Int64
	began := make(chan struct{})
	for range 8 {
		c := s.Caller(t, harness.Admin)
		load.Go(func() {
			for {
				res, err := c.Tokens.SignAndEncrypt(t.Context(), idToken("down"))
				if err != nil {
					refused.Add(1)
					if f := failureOf(t, err); f.code != codes.Unavailable || f.reason != "" {
						t.Errorf("a call ended with %v, want UNAVAILABLE from the connection", f)
					}
					return
				}
				if tokens.Add(1) == 100 {
					close(began)
				}
				if _, err := o.Open(res.GetToken()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	<-began
	// A call that takes its time: it is in flight when the end begins.
	host.Set("/slow", harness.Answer{Body: harness.JWKS(anyKey()), Delay: 1500 * time.Millisecond})
	slow := make(chan error, 1)
	go func() {
		_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withURI("slow", host.URL("/slow")))
		slow <- err
	}()
	harness.Eventually(t, func() error {
		if host.Hits("/slow") == 0 {
			return errorf("the slow call has not begun")
		}
		return nil
	})
	end := time.Now()
	s.Signal(t, syscall.SIGTERM)
	if err := <-slow; err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	load.Wait()
	if code := s.Exit(t); code != 0 {
		t.Errorf("exit code %d, want 0\n%s", code, s.Log())
	}
	if took := time.Since(end); took > 10*time.Second {
		t.Errorf("the end took %v", took)
	}
	if got := <-watched; got != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health said %s before the end, want NOT_SERVING", got)
	}
	if refused.Load() != 8 {
		t.Errorf("%d of 8 callers were refused", refused.Load())
	}
	var issued int64
	for _, line := range s.AuditOf(t, "down") {
		if line.Outcome == "issued" {
			issued++
		}
	}
	if issued != tokens.Load() {
		t.Errorf("%d tokens are on record and %d reached their callers", issued, tokens.Load())
	}
	mustHaveOutcomes(t, s.AuditOf(t, "slow"), "changed")
}

// watchHealth returns the first health status after SERVING that a watcher is
// told, UNKNOWN if there is none.
func watchHealth(t testing.TB, s *harness.Service) <-chan healthpb.HealthCheckResponse_ServingStatus {
	t.Helper()
	told := make(chan healthpb.HealthCheckResponse_ServingStatus, 1)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := healthpb.NewHealthClient(s.Caller(t, stranger).Conn()).Watch(ctx, &healthpb.HealthCheckRequest{Service: "bulla.issuer.main"})
	if err != nil {
		t.Fatal(err)
	}
	serving := make(chan struct{})
	go func() {
		defer cancel() // a watcher leaves when it is told
		seen := false
		for {
			res, err := stream.Recv()
			if err != nil {
				told <- healthpb.HealthCheckResponse_UNKNOWN
				return
			}
			if res.GetStatus() == healthpb.HealthCheckResponse_SERVING {
				if !seen {
					close(serving)
				}
				seen = true
			} else if seen {
				told <- res.GetStatus()
				return
			}
		}
	}()
	<-serving
	return told
}

// TestShutdownDoesNotWaitForWatchers: a health watch never ends by itself.
func TestShutdownDoesNotWaitForWatchers(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	stream, err := healthpb.NewHealthClient(s.Caller(t, stranger).Conn()).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if code := s.Terminate(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the end took %v", took)
	}
}

func TestSecondStartOnTheSameFilesIsRefused(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	out, err := s.Command(t, "serve", "--config", s.ConfigFile).CombinedOutput()
	if err == nil {
		t.Fatal("a second service started on the files of the first")
	}
	if !strings.Contains(string(out), "another process") {
		t.Errorf("got %s, want that another process has the file", out)
	}
	mustRegister(t, s.Caller(t, harness.Admin), withJWKS("still-there", harness.JWKS(anyKey())))
}

func TestStartFailsForWhatAnOperatorMustEdit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what string
		edit func(harness.M)
		word string
	}{
		{"an unknown field", func(c harness.M) { c["grpcc"] = harness.M{} }, "bulla.yaml:"},
		{"no issuer", func(c harness.M) { delete(c, "issuers") }, "issuers"},
		{"a certificate that is not there", func(c harness.M) {
			c["grpc"].(harness.M)["tls"].(harness.M)["cert_file"] = "nowhere.crt"
		}, "nowhere.crt"},
		{"a key of another certificate", func(c harness.M) {
			c["grpc"].(harness.M)["tls"].(harness.M)["key_file"] = shared.ca.Issue(t, harness.LeafConfig{}).KeyFile
		}, "key_file"},
		{"an address that is taken", func(c harness.M) { c["ops"].(harness.M)["listen"] = shared.Ops }, "ops.listen"},
		{"an address for metrics that is taken", func(c harness.M) { c["ops"].(harness.M)["metrics_listen"] = shared.Ops }, "ops.metrics_listen"},
		{"two listeners on one address", func(c harness.M) { c["ops"].(harness.M)["metrics_listen"] = c["http"].(harness.M)["listen"] }, "this is the address of http.listen too"},
		{"plaintext outside development", func(c harness.M) { delete(c["grpc"].(harness.M), "tls") }, "grpc.tls"},
		{"development off loopback", func(c harness.M) {
			c["development"] = true
			c["grpc"].(harness.M)["listen"] = "0.0.0.0:8443"
		}, "loopback"},
	} {
		t.Run(test.what, func(t *testing.T) {
			s := harness.New(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: test.edit})
			s.Run(t)
			if code := s.Exit(t); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if log := s.Log(); !strings.Contains(log, test.word) {
				t.Errorf("got %q, want %q in it", log, test.word)
			}
		})
	}
}
