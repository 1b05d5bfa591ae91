package e2e

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestWhatWasAcknowledgedSurvivesAKill registers and changes clients from four
// goroutines while the service is killed, again and again.
func TestWhatWasAcknowledgedSurvivesAKill(t *testing.T) {
	t.Parallel()
	s := harness.New(t, harness.Config{Token: shared.token, CA: shared.ca})
	leaf := s.Leaf(t, harness.Admin)

	var mu sync.Mutex // guards acknowledged
	acknowledged := map[string]string{}
	for round := range 6 {
		s.Run(t)
		s.WaitReady(t)                 // nothing is stored while the wrapping key cannot be had
		admin := s.CallerWith(t, leaf) // a new connection: none that waits before it tries again
		var workers sync.WaitGroup
		for w := range 4 {
			workers.Go(func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("r%d-w%d-%d", round, w, i)
					req := withJWKS(id, harness.JWKS(anyKey()))
					// Each is registered, and every other one changed.
					for range 1 + i%2 {
						res, err := admin.ClientKeys.RegisterClientKey(t.Context(), req)
						if err != nil {
							return // the service is gone
						}
						mu.Lock()
						acknowledged[id] = res.GetClientKey().GetRevision()
						mu.Unlock()
						req = withJWKS(id, harness.JWKS(otherKey()))
						req.Revision = res.GetClientKey().GetRevision()
					}
				}
			})
		}
		// By what was done and not by the clock: a busy disk takes its time.
		count := func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(acknowledged)
		}
		before := count()
		harness.Eventually(t, func() error {
			if n := count() - before; n < 4 {
				return errorf("%d registrations were acknowledged", n)
			}
			return nil
		})
		time.Sleep(rand.N(200 * time.Millisecond))
		s.Kill(t)
		workers.Wait()
	}

	s.Run(t)
	s.WaitReady(t)
	admin := s.CallerWith(t, leaf)
	stored := map[string]*bullav1.ClientKey{}
	req := &bullav1.ListClientKeysRequest{Issuer: harness.Issuer, PageSize: 1000}
	for {
		res, err := admin.ClientKeys.ListClientKeys(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range res.GetClientKeys() {
			stored[k.GetClientId()] = k
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	onRecord := map[string]uint64{}
	for _, line := range s.Audit(t) {
		if line.Outcome == "changed" {
			onRecord[line.ClientID] = max(onRecord[line.ClientID], line.Revision)
		}
	}
	if len(acknowledged) < 20 {
		t.Errorf("only %d registrations were acknowledged: the test proves little", len(acknowledged))
	}
	for id, revision := range acknowledged {
		switch got, ok := stored[id]; {
		case !ok:
			t.Errorf("%s was acknowledged and is lost", id)
		case len(got.GetRevision()) < len(revision) || len(got.GetRevision()) == len(revision) && got.GetRevision() < revision:
			t.Errorf("%s was acknowledged at revision %s and is at %s", id, revision, got.GetRevision())
		case fmt.Sprint(onRecord[id]) < revision:
			t.Errorf("%s was acknowledged at revision %s and the audit log ends with %d", id, revision, onRecord[id])
		}
	}
	for id := range stored {
		if onRecord[id] == 0 {
			t.Errorf("%s is registered and not on record", id)
		}
	}
	t.Logf("%d acknowledged, %d stored", len(acknowledged), len(stored))
}
