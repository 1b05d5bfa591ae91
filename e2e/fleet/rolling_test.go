package fleet

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
)

// TestRollingRestartLosesNoRequest ends three replicas by SIGTERM, one after the
// other and each when the one before is ready again, while callers with package
// client's own retries ask for tokens. Every token is opened. An attempt may be
// refused by a replica that is leaving; a request may not fail.
func TestRollingRestartLosesNoRequest(t *testing.T) {
	building := time.Now()
	f := newFleet(t, setup{replicas: 3})
	signers, err := client.ParseSigners(f.signers(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	var clients []*known
	make := keys{t: t}
	for i := range 4 {
		id, key := fmt.Sprintf("rolling-%d", i), make.next()
		k, err := newKnown(id, setting()[0], signers, key)
		if err != nil {
			t.Fatal(err)
		}
		req := withJWKS(id, key)
		mustRegister(t, f.on(0), req)
		for replica := range f.replicas {
			until(t, time.Now(), allowed(inForce), id, func() error { return f.encryptedTo(replica, ask(id), key.KeyID) })
		}
		clients = append(clients, k)
	}
	l := startLoad(t, f, &outages{}, clients)
	began := time.Now()
	time.Sleep(500 * time.Millisecond)
	var ends []time.Duration
	for i, s := range f.replicas {
		leaving := time.Now()
		if code := s.Terminate(t); code != 0 {
			t.Errorf("replica %d ended with %d\n%s", i, code, s.Log())
		}
		ends = append(ends, time.Since(leaving))
		s.Run(t)
		s.WaitReady(t)
		s.WaitKeys(t, 1)
		f.redial(t, i)
		f.waitServing(t, i)
		// For callers to find it again.
		time.Sleep(time.Second)
	}
	took := time.Since(began)
	l.end()
	requests, attempts := l.between(began.Add(-time.Second), time.Now())
	lost := 0
	for _, q := range requests {
		switch {
		case q.reason != "":
			lost++
			t.Errorf("a request for %s failed with %s after %v", q.client.id, q.reason, q.end.Sub(q.start).Round(time.Millisecond))
		case q.wrong != nil:
			t.Errorf("a token of %s is wrong: %v", q.client.id, q.wrong)
		}
	}
	served := map[string]int{}
	for _, a := range attempts {
		served[a.reason+" on "+a.replica]++
		if a.reason != "Unavailable" {
			t.Errorf("an attempt failed with %s: %v", a.reason, a.err)
		}
	}
	t.Logf("3 replicas restarted in %v (the fleet stood after %v): %d calls, %d retries, %d lost; each ended within %v",
		took.Round(100*time.Millisecond), began.Sub(building).Round(100*time.Millisecond), len(requests), len(attempts), lost, slices.Max(ends).Round(10*time.Millisecond))
	if len(served) > 0 {
		t.Logf("attempts that were made again: %v", served)
	}
	if least := 3 * callers; len(requests) < least {
		t.Errorf("%d requests in all, want %d at least: nothing was shown", len(requests), least)
	}
	if slowest := slices.Max(ends); slowest > harness.Patience/4 {
		t.Errorf("a replica took %v to end, want less than it may drain", slowest)
	}
}
