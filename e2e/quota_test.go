package e2e

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestRegistrationsAreNoFloodForAHost registers URLs of one host as fast as it
// goes: after ten seconds' worth Bulla asks the host no more than it may.
func TestRegistrationsAreNoFloodForAHost(t *testing.T) {
	t.Parallel()
	const atOnce, perSecond = 50, 5 // the defaults
	host := harness.NewHost(t, shared.host.CA)
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Host: host})
	admin := s.Caller(t, harness.Admin)
	began := time.Now()
	register := func(i int, opts ...grpc.CallOption) error {
		path := fmt.Sprintf("/flood-%d", i)
		_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withURI("flood"+path[1:], host.Serve(path, harness.JWKS(anyKey()), time.Hour)), opts...)
		return err
	}
	n := 0
	var err error
	var md metadata.MD
	for ; err == nil && n < 20*atOnce; n++ {
		err = register(n, grpc.Trailer(&md))
	}
	refused := n - 1
	f := mustFail(t, err, "QUOTA_EXCEEDED", "host")
	mustHavePushback(t, md)
	if f.retry < time.Second || f.retry > 10*time.Second {
		t.Errorf("to be tried again after %v, want a second or so", f.retry)
	}
	if most := atOnce + int(time.Since(began).Seconds()*perSecond) + 1; refused < atOnce || refused > most {
		t.Errorf("refused after %d, want %d at once and %d each second", refused, atOnce, perSecond)
	}
	// It has not been asked, nothing is registered, and it is on record.
	if hits := host.Hits(fmt.Sprintf("/flood-%d", refused)); hits != 0 {
		t.Errorf("the host was asked %d times all the same", hits)
	}
	id := fmt.Sprintf("floodflood-%d", refused)
	_, err = admin.ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: id})
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	mustHaveOutcomes(t, s.AuditOf(t, id), "denied QUOTA_EXCEEDED")
	// Other keys are registered, tokens issued, and after a while this one too.
	mustRegister(t, admin, withJWKS("flood-set", harness.JWKS(anyKey())))
	open(t, s, anyKey(), mustIssue(t, admin, idToken("floodflood-0")).GetToken())
	time.Sleep(f.retry)
	if err := register(refused); err != nil {
		t.Error(err)
	}
}

// TestTokensOfACallerAreLimited has three callers: one as all, one with limits of
// its own, one with none.
func TestTokensOfACallerAreLimited(t *testing.T) {
	t.Parallel()
	const slow, free = "spiffe://example.com/slow", "spiffe://example.com/free"
	grant := func(caller string) harness.M {
		return harness.M{"caller": caller, "allow": []string{"issue"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN"}, "clients": []string{"*"}}
	}
	s := harness.Start(t, harness.Config{
		Token: shared.token, CA: shared.ca, Grants: []harness.M{grant(slow), grant(free)},
		Edit: func(tree harness.M) {
			tree["limits"] = harness.M{"tokens": 2, "callers": []harness.M{{"caller": slow, "tokens": 0.2}, {"caller": free, "tokens": 0, "in_flight": 2}}}
			tree["admission"] = harness.M{"queue": 32, "backends": harness.M{"hsm": harness.M{"in_flight": 3}}}
		},
	})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("limited", harness.JWKS(anyKey())))

	for caller, atOnce := range map[string]int{harness.Admin: 20, slow: 2} {
		c := s.Caller(t, caller)
		began := time.Now()
		n := 0
		var err error
		var md metadata.MD
		for ; err == nil && n < 10*atOnce+1000; n++ {
			_, err = c.Tokens.SignAndEncrypt(t.Context(), idToken("limited"), grpc.Trailer(&md))
		}
		f := mustFail(t, err, "QUOTA_EXCEEDED", "tokens", "slow down")
		mustHavePushback(t, md)
		perSecond := float64(atOnce) / 10
		if most := atOnce + int(time.Since(began).Seconds()*perSecond) + 1; n-1 < atOnce || n-1 > most {
			t.Errorf("%s: %d tokens, want %d at once and %v each second", caller, n-1, atOnce, perSecond)
		}
		if f.retry < time.Second || f.retry > 5*time.Second {
			t.Errorf("%s: to be tried again after %v, want 1 s to 5 s", caller, f.retry)
		}
	}
	var all sync.WaitGroup
	var issued, refused atomic.Int64
	c := s.Caller(t, free)
	for range 8 {
		all.Go(func() {
			for range 20 {
				if _, err := c.Tokens.SignAndEncrypt(t.Context(), idToken("limited")); err == nil {
					issued.Add(1)
				} else if f := failureOf(t, err); f.reason == "QUOTA_EXCEEDED" && f.retry >= time.Second {
					refused.Add(1)
				} else {
					t.Errorf("got %v", f)
				}
			}
		})
	}
	all.Wait()
	if issued.Load() == 0 || refused.Load() == 0 {
		t.Errorf("of 8 calls at once where 2 may be, %d went well and %d were refused", issued.Load(), refused.Load())
	}

	denied := 0
	for _, line := range s.AuditOf(t, "limited") {
		if line.Outcome == "denied" && line.Reason == "QUOTA_EXCEEDED" {
			denied++
		}
	}
	m := s.Metrics(t)
	for sample, want := range map[string]float64{
		`bulla_quota_exceeded_total{limit="tokens"}`:        2,
		`bulla_quota_exceeded_total{limit="in_flight"}`:     float64(refused.Load()),
		`bulla_quota_exceeded_total{limit="registrations"}`: 0,
		`bulla_backend_in_flight_limit{backend="hsm"}`:      3,
		`bulla_backend_in_flight{backend="hsm"}`:            0,
		`bulla_backend_queued{backend="hsm"}`:               0,
		`bulla_overloaded_total{backend="hsm"}`:             0,
		`bulla_backend_in_flight{backend=""}`:               0,
	} {
		if got, ok := m[sample]; !ok || got != want {
			t.Errorf("%s is %v (%v), want %v", sample, got, ok, want)
		}
	}
	if want := 2 + int(refused.Load()); denied != want {
		t.Errorf("%d denials are on record, want %d", denied, want)
	}
	if waited := m[`bulla_stage_seconds_count{algorithm="ES256",backend="hsm",stage="queue"}`]; waited != m[`bulla_stage_seconds_count{algorithm="ES256",backend="hsm",stage="sign"}`] || waited == 0 {
		t.Errorf("the stage queue was told %v times, want as often as sign", waited)
	}
}
