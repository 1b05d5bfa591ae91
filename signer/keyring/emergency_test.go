package keyring

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// unfinished puts an intent of another replica into the ring.
func (w *world) unfinished(t *testing.T, backend string, claimed time.Time) {
	t.Helper()
	w.store.edit(t, kms.ES256, func(r *Ring) {
		r.Intent = &Intent{Tag: "bulla-main-es256-abc", Backend: backend, Owner: "another", ClaimedAt: claimed}
	})
}

// Where nobody else uses the store, whoever wrote a claim is dead.
func TestAClaimBindsNobodyWhoIsAlone(t *testing.T) {
	for _, emergency := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			m := newMaker(t, w.hsm)
			cfg := w.creating(m, listed(kms.ES256, "a"))
			cfg.Alone = true
			w.startConfig(t, cfg)()
			w.unfinished(t, "hsm", time.Now())
			w.startConfig(t, cfg)
			begin := time.Now()
			w.rotate(t, emergency)
			limit := 40 * time.Second // a key that was made may not be listed yet
			if emergency {
				limit = 5 * time.Second
			}
			if took := time.Since(begin); took > limit {
				t.Errorf("emergency %t: it took %v, want at most %v", emergency, took, limit)
			}
			w.wantMade(t, m, kms.ES256, 1)
		})
	}
}

// A clock that ran ahead must not hold everything up until then.
func TestAClaimFromTheFutureBindsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))()
		w.unfinished(t, "hsm", time.Now().Add(365*24*time.Hour))
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a")))
		begin := time.Now()
		w.rotate(t, false)
		if took := time.Since(begin); took > 5*time.Minute {
			t.Errorf("it took %v", took)
		}
		w.wantMade(t, m, kms.ES256, 1)
	})
}

// A key that waits in another backend is there for the case that the first one
// does not answer.
func TestAnEmergencyGoesAroundAnIntentInADeadBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a"), listed(kms.ES256, "b")))()
		w.unfinished(t, "cloud", time.Now())
		w.startConfig(t, w.creating(m, listed(kms.ES256, "a"), listed(kms.ES256, "b")))
		begin := time.Now()
		w.rotate(t, true)
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		w.wantKey(t, kms.ES256, "b")
		if ring := w.ring(t, kms.ES256); ring.Intent != nil || len(ring.Dropped) != 1 || ring.Dropped[0].Tag != "bulla-main-es256-abc" {
			t.Errorf("the ring is %+v, want no intent and its tag remembered", ring)
		}
	})
}

func TestAnAlgorithmThatIsNotConfiguredGetsNoNewKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		w.hsm.keys["ed"] = newPrivate(t, kms.EdDSA)
		daily := func(keys ...Key) Config {
			cfg := w.creating(m, keys...)
			cfg.Issuers[0].Rotation.Every = 24 * time.Hour
			cfg.ProbeInterval, cfg.ReloadInterval = time.Hour, 5*time.Minute
			return cfg
		}
		w.startConfig(t, daily(listed(kms.ES256, "a"), listed(kms.EdDSA, "ed")))()
		w.startConfig(t, daily(listed(kms.EdDSA, "ed")))
		wait(72 * time.Hour)
		if ring := w.ring(t, kms.ES256); len(ring.Entries) != 1 || ring.Intent != nil {
			t.Errorf("the ring of the algorithm that is not configured has %d keys, intent %v", len(ring.Entries), ring.Intent)
		}
		if ring := w.ring(t, kms.EdDSA); len(ring.Entries) < 3 {
			t.Errorf("the ring of the other has %d keys, want some more", len(ring.Entries))
		}
	})
}

// Each change is told once, by whoever wrote it, whoever asked.
func TestChangesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := newMaker(t, w.hsm)
		var told []Change
		cfg := w.creating(m, listed(kms.ES256, "a"))
		cfg.Issuers[0].Rotation.Every = 24 * time.Hour
		cfg.ProbeInterval = time.Hour
		cfg.Changed = func(_ context.Context, c Change) { told = append(told, c) }
		w.startConfig(t, cfg)
		wait(25 * time.Hour)
		w.rotate(t, true)
		wait(time.Minute)
		synctest.Wait()
		if len(told) != 2 {
			t.Fatalf("told of %+v, want a change by the schedule and one on request", told)
		}
		first := w.hsm.kid(t, "a")
		if c := told[0]; c.Issuer != "main" || c.Algorithm != kms.ES256 || c.OldKeyID != first || c.Emergency || c.Requested || c.ActivateAt.IsZero() {
			t.Errorf("of the schedule: %+v", c)
		}
		if c := told[1]; c.OldKeyID != told[0].NewKeyID || !c.Emergency || !c.Requested {
			t.Errorf("of the request: %+v", c)
		}
	})
}
