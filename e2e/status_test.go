package e2e

import (
	"encoding/json"
	"math"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestStatusShowsTheIssuersOfTheGrant has a caller with read_status for one of
// two issuers.
func TestStatusShowsTheIssuersOfTheGrant(t *testing.T) {
	const watchman = "spiffe://example.com/watchman"
	s := harness.Start(t, harness.Config{
		Token: shared.token, CA: shared.ca,
		Issuers: []harness.M{{"name": "second", "iss": "https://second.example.com", "signing_keys": harness.SigningKeys("ES256")}},
		Grants:  []harness.M{{"caller": watchman, "allow": []string{"read_status"}, "issuers": []string{"second"}}},
	})
	get := func(caller string) *bullav1.GetStatusResponse {
		t.Helper()
		res, err := s.Caller(t, caller).Status.GetStatus(t.Context(), &bullav1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if got := get(watchman).GetIssuers(); len(got) != 1 || got[0].GetName() != "second" {
		t.Errorf("the watchman sees %v", got)
	}

	// Tokens and refusals are counted, with their rate, and the clients.
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("app", harness.JWKS(anyKey())))
	before := get(harness.Admin)
	for range 3 {
		mustIssue(t, admin, idToken("app"))
	}
	_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("nobody"))
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	after := get(harness.Admin)
	if got, refused := after.GetTokensIssued()-before.GetTokensIssued(), after.GetTokensRefused()-before.GetTokensRefused(); got != 3 || refused != 1 {
		t.Errorf("3 tokens and a refusal are counted as %d and %d", got, refused)
	}
	if since := after.GetAt().AsTime().Sub(after.GetStartedAt().AsTime()); since <= 0 || since > time.Hour {
		t.Errorf("the service runs for %v", since)
	}
}

// TestStatusOfReplicas asks two services at once, one of which is stopped then.
func TestStatusOfReplicas(t *testing.T) {
	one := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	two := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	flags := one.ConnectFlags(one.Leaf(t, harness.Admin))
	for i, f := range flags {
		flags[i] = strings.Replace(f, one.GRPC, one.GRPC+","+two.GRPC, 1)
	}
	ask := func(args ...string) (out string, err error) {
		cmd := one.Command(t, append(append([]string{"status"}, flags...), args...)...)
		b, err := cmd.Output()
		return string(b), err
	}
	out, err := ask("--sample", "100ms")
	if err != nil || !strings.Contains(out, "2/2") || strings.Count(out, " ready ") != 2 {
		t.Fatalf("%v\n%s", err, out)
	}

	// The rate is that of the time between two looks.
	admin := one.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("app", harness.JWKS(anyKey())))
	var issuing sync.WaitGroup
	stop := make(chan struct{})
	issuing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				mustIssue(t, admin, idToken("app"))
			}
		}
	})
	out, err = ask("--sample", "500ms", "-o", "json")
	close(stop)
	issuing.Wait()
	var doc struct {
		Replicas []struct {
			TokensPerSecond float64 `json:"tokens_per_second"`
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || len(doc.Replicas) != 2 {
		t.Fatalf("%v\n%s", err, out)
	}
	if busy, idle := doc.Replicas[0].TokensPerSecond, doc.Replicas[1].TokensPerSecond; busy <= 0 || math.IsNaN(busy) || idle != 0 {
		t.Errorf("the busy replica issues %v a second, the idle one %v (%v)", busy, idle, err)
	}

	two.Kill(t)
	out, err = ask("--sample", "100ms", "--timeout", "5s")
	exit, ok := err.(*exec.ExitError) //nolint:errorlint // it is what Output returns
	if !ok || exit.ExitCode() != 1 || !strings.Contains(out, "NO ANSWER") || !strings.Contains(string(exit.Stderr), two.GRPC+": does not issue tokens") {
		t.Errorf("%v\n%s\n%s", err, out, exit.Stderr)
	}
}
