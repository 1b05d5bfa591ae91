package storetest

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/envelope"
)

// Leases runs the suite of registry.Leases, of stores that processes share.
func Leases(t *testing.T, open func(t *testing.T) *Victim) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, v *Victim)
	}{
		{"HolderFetchesForAll", fetchesForAll},
		{"NothingIsKeptOfAURIThatNobodyNames", claimOfUnnamed},
		{"TamperedKeySetIsClaimedAsNone", claimOfTampered},
		{"NothingIsClaimedUnderARetiredDataKey", claimAfterRetirement},
		{"DataKeyThatIsBeingRetiredTakesNoClaimedSet", claimWhileRetiring},
		{"BackendThatIsDownHoldsNoLease", claimWithoutBackend},
		{"LeaseEndsAfterAMinute", longLease},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, open(t)) })
	}
}

const leaseURI = "https://a.example/"

func leaseOf(t *testing.T, v *Victim) *registry.Claim {
	t.Helper()
	c, err := v.Store.Leases().Claim(t.Context(), leaseURI, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if c.Lease == "" || c.Unnamed {
		t.Fatalf("got %+v, want the lease", c)
	}
	return c
}

func putClaimed(t *testing.T, v *Victim, set registry.KeySet, lease string) {
	t.Helper()
	if err := v.Store.Leases().PutClaimed(t.Context(), set, lease, true); err != nil {
		t.Fatal(err)
	}
}

func fetchesForAll(t *testing.T, v *Victim) {
	put(t, v.Store, Client("app", leaseURI), 0)
	l := v.Store.Leases()
	first := leaseOf(t, v)
	if first.Set != nil {
		t.Errorf("got %+v of a URI that was never fetched", first.Set)
	}
	_, err := v.Store.KeySet(t.Context(), leaseURI)
	want(t, "KeySet while it is fetched for the first time", err, registry.ErrNotFound)

	second, err := l.Claim(t.Context(), leaseURI, time.Minute)
	if err != nil || second.Lease != "" || second.Unnamed || second.Set != nil || second.Until.Before(time.Now().Add(50*time.Second)) {
		t.Errorf("got %+v, %v; want that another has the lease for a minute", second, err)
	}
	set := keySet(leaseURI)
	want(t, "PutClaimed with another lease", l.PutClaimed(t.Context(), set, "x", true), registry.ErrLeaseLost)
	putClaimed(t, v, set, first.Lease)
	got, err := v.Store.KeySet(t.Context(), leaseURI)
	if diff := cmp.Diff(&set, got); err != nil || diff != "" {
		t.Errorf("KeySet: %v (-want +got):\n%s", err, diff)
	}
	again := l.PutClaimed(t.Context(), set, first.Lease, true)
	want(t, "PutClaimed once more", again, registry.ErrLeaseLost)
	if errors.Is(again, registry.ErrUnavailable) {
		t.Errorf("%v is ErrUnavailable; trying again does not help", again)
	}

	third := leaseOf(t, v)
	if diff := cmp.Diff(&set, third.Set); diff != "" {
		t.Errorf("the set with the lease (-want +got):\n%s", diff)
	}
	if err := l.Release(t.Context(), leaseURI, third.Lease); err != nil {
		t.Error(err)
	}
	want(t, "PutClaimed after Release", l.PutClaimed(t.Context(), set, third.Lease, true), registry.ErrLeaseLost)

	// A set that was put without a lease ends it.
	fourth := leaseOf(t, v)
	if err := v.Store.PutKeySet(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	want(t, "PutClaimed after PutKeySet", l.PutClaimed(t.Context(), set, fourth.Lease, true), registry.ErrLeaseLost)
}

func claimOfUnnamed(t *testing.T, v *Victim) {
	l := v.Store.Leases()
	c, err := l.Claim(t.Context(), leaseURI, time.Minute)
	if err != nil || !c.Unnamed || c.Lease != "" || c.Set != nil {
		t.Errorf("got %+v, %v; want Unnamed", c, err)
	}
	put(t, v.Store, Client("app", leaseURI), 0)
	lease := leaseOf(t, v).Lease
	put(t, v.Store, tombstone("app"), 1)
	want(t, "PutClaimed after the client was deleted", l.PutClaimed(t.Context(), keySet(leaseURI), lease, true), registry.ErrLeaseLost)
	_, err = v.Store.KeySet(t.Context(), leaseURI)
	want(t, "KeySet", err, registry.ErrNotFound)
	if c, err := l.Claim(t.Context(), leaseURI, time.Minute); err != nil || !c.Unnamed {
		t.Errorf("got %+v, %v; want Unnamed again", c, err)
	}
}

func claimOfTampered(t *testing.T, v *Victim) {
	put(t, v.Store, Client("app", leaseURI), 0)
	set := keySet(leaseURI)
	putClaimed(t, v, set, leaseOf(t, v).Lease)
	sound := v.value(t, setRow(leaseURI))
	for name, value := range map[string][]byte{
		"changed": bytes.Replace(sound, []byte("incident-1"), []byte("incident-2"), 1),
		"empty":   {},
		"cut":     sound[:len(sound)-1],
	} {
		v.Write(setRow(leaseURI), value)
		c := leaseOf(t, v)
		if c.Set != nil {
			t.Errorf("%s: got %+v", name, c.Set)
		}
		putClaimed(t, v, set, c.Lease)
		if got, err := v.Store.KeySet(t.Context(), leaseURI); err != nil || got.Failure != set.Failure {
			t.Errorf("%s: after it was fetched anew: got %+v, %v", name, got, err)
		}
	}
	if v.Store.Tampered() == 0 {
		t.Error("no alarm")
	}
}

// claimAfterRetirement has another replica replace the data key, and retire it,
// between the claim and the write.
func claimAfterRetirement(t *testing.T, v *Victim) {
	ctx := t.Context()
	put(t, v.Store, Client("app", leaseURI), 0)
	old, err := v.Store.Keys().Current(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lease := leaseOf(t, v).Lease
	cfg := datakeytest.Config(v.Wrapper)
	cfg.Store = v.Store
	other, err := datakey.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	current, err := other.Replace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v.Write(clientRow("app"), nil) // which is under the old one
	if err := other.Retire(ctx, old); err != nil {
		t.Fatal(err)
	}
	putClaimed(t, v, keySet(leaseURI), lease)
	if id := envelope.KeyID(v.value(t, setRow(leaseURI))); id != current {
		t.Errorf("the row is under %s, want %s", id, current)
	}
}

// claimWhileRetiring writes with leases while data keys are replaced and retired:
// what was acknowledged must open at the end.
func claimWhileRetiring(t *testing.T, v *Victim) {
	ctx := t.Context()
	put(t, v.Store, Client("app", leaseURI), 0)
	stop := make(chan struct{})
	var wrote, failed atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := v.Store.Leases().Claim(ctx, leaseURI, time.Minute)
			if err != nil || c.Lease == "" {
				t.Errorf("got %+v, %v; want the lease", c, err)
				return
			}
			switch err := v.Store.Leases().PutClaimed(ctx, keySet(leaseURI), c.Lease, false); {
			case err == nil:
				wrote.Add(1)
			case errors.Is(err, registry.ErrUnavailable):
				failed.Add(1)
				if err := v.Store.Leases().Release(ctx, leaseURI, c.Lease); err != nil {
					t.Error(err)
				}
			case !errors.Is(err, registry.ErrLeaseLost): // by Reseal
				t.Error(err)
			}
		}
	})
	retired := 0
	for rounds := 0; (wrote.Load() < 20 || retired < 5) && rounds < 1000 && !t.Failed(); rounds++ {
		old, err := v.Store.Keys().Current(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Store.Keys().Replace(ctx); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if _, err := v.Store.Reseal(ctx, nil); err != nil {
				t.Fatal(err)
			}
			err := v.Store.Keys().Retire(ctx, old)
			if err == nil {
				retired++
				break
			}
			if !errors.Is(err, datakey.ErrInUse) {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	wg.Wait()
	if wrote.Load() < 20 || retired < 5 {
		t.Fatalf("%d sets were written and %d data keys retired; the test has no force", wrote.Load(), retired)
	}
	t.Logf("%d sets were written, %d were refused, %d data keys retired", wrote.Load(), failed.Load(), retired)
	v.reopen()
	if _, err := v.Store.KeySet(ctx, leaseURI); err != nil {
		t.Errorf("what was written last: %v", err)
	}
	if v.Store.Tampered() != 0 {
		t.Errorf("got %d alarms, want none", v.Store.Tampered())
	}
}

func claimWithoutBackend(t *testing.T, v *Victim) {
	put(t, v.Store, Client("app", leaseURI), 0)
	putClaimed(t, v, keySet(leaseURI), leaseOf(t, v).Lease)
	v.Wrapper.SetDown(true)
	v.reopen()
	_, err := v.Store.Leases().Claim(t.Context(), leaseURI, time.Minute)
	want(t, "Claim", err, registry.ErrUnavailable)
	want(t, "what Claim wraps", err, kms.ErrUnavailable)
	v.Wrapper.SetDown(false)
	v.reopen()
	if c := leaseOf(t, v); c.Set == nil {
		t.Error("got no set")
	}
}

func longLease(t *testing.T, v *Victim) {
	put(t, v.Store, Client("app", leaseURI), 0)
	c, err := v.Store.Leases().Claim(t.Context(), leaseURI, 24*time.Hour)
	if err != nil || c.Lease == "" || c.Until.After(time.Now().Add(time.Minute+time.Second)) {
		t.Errorf("got %+v, %v; want a lease of a minute at most", c, err)
	}
}
