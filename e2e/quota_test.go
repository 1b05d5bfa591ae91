package e2e

import (
	"fmt"
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
