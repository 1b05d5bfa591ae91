package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
)

// OpenShared returns two engines on the same rows, of which there are none yet,
// as two processes have them. They are to be closed at the end of t.
type OpenShared func(t *testing.T) (a, b records.Shared)

// inForce is how long it may take until the others know of a write.
const inForce = time.Second

// Shared runs the suite of records.Shared: what engines have to do besides those
// of Engine, if processes share their rows.
func Shared(t *testing.T, open OpenShared) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, a, b records.Shared)
	}{
		{"OneOfManyGetsTheLease", oneLease},
		{"NobodyHasALeaseOnWhatNoClientNames", unnamedLease},
		{"LeaseEndsByItsTime", leaseTime},
		{"LongLeaseHoldsAgainstWhoAsksForAShortOne", longerLease},
		{"HolderWritesAndThatEndsTheLease", holderWrites},
		{"LeaseThatIsLostWritesNothing", lostLease},
		{"LeaseGoesWithItsKeySet", leaseGoes},
		{"GuardThatHasChangedStopsTheWrite", guardChanged},
		{"ReleasedLeaseIsFree", releasedLease},
		{"UpdateAndHolderDoNotOverlap", updateAgainstHolder},
		{"IncrementsOfProcessesAreNotLost", sharedIncrements},
		{"FollowersAreToldOfAllThatIsAnnounced", follow},
		{"CurrentKeepsUp", current},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := open(t)
			tc.run(t, a, b)
		})
	}
}

const sharedURI = "https://a.example/jwks"

var sharedKey = []byte(sharedURI)

// noGuard is a guard that holds: a row that there is.
func noGuard(t *testing.T, e records.Shared) records.Guard {
	t.Helper()
	putRow(t, e, records.DataKeys, "dk-1", "the data key")
	return records.Guard{Table: records.DataKeys, Key: []byte("dk-1"), Value: []byte("the data key")}
}

// name makes a client name the URI, as far as an engine knows.
func name(t *testing.T, e records.Shared) {
	t.Helper()
	putRow(t, e, records.URIs, string(envelope.Key(sharedURI, issuer, "app")), "")
}

func claim(t *testing.T, e records.Shared, d time.Duration) records.Claim {
	t.Helper()
	c, err := e.Claim(t.Context(), sharedKey, d)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// claimed is a lease, which must be had.
func claimed(t *testing.T, e records.Shared, d time.Duration) records.Claim {
	t.Helper()
	before := time.Now()
	c := claim(t, e, d)
	if c.Lease == "" || c.Unnamed {
		t.Fatalf("got %+v, want the lease", c)
	}
	if c.Until.Before(before.Add(d-inForce)) || c.Until.After(time.Now().Add(d+inForce)) {
		t.Errorf("the lease of %s ends at %s, want it to end at about %s", d, c.Until, before.Add(d))
	}
	return c
}

// wantTaken fails the test unless another has the lease.
func wantTaken(t *testing.T, e records.Shared, until time.Time) records.Claim {
	t.Helper()
	c := claim(t, e, time.Minute)
	if c.Lease != "" || c.Unnamed {
		t.Fatalf("got %+v, want that another has the lease", c)
	}
	if d := c.Until.Sub(until).Abs(); d > inForce {
		t.Errorf("another has the lease until %s, which was told that it ends at %s", c.Until, until)
	}
	return c
}

func oneLease(t *testing.T, a, b records.Shared) {
	name(t, a)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		held []string // guarded by mu
	)
	for w := range 8 {
		wg.Go(func() {
			e := []records.Shared{a, b}[w%2]
			c, err := e.Claim(context.Background(), sharedKey, time.Minute)
			if err != nil || c.Unnamed || c.Value != nil {
				t.Errorf("got %+v, %v", c, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if c.Lease != "" {
				held = append(held, c.Lease)
			}
		})
	}
	wg.Wait()
	if len(held) != 1 {
		t.Errorf("%d of 8 have the lease, want 1", len(held))
	}
	wantRow(t, a, records.KeySets, sharedURI, "", false)
	if keys, _ := scanAll(t, a, records.KeySets, "", "", 10); len(keys) != 0 {
		t.Errorf("got key sets %q; a lease is none", keys)
	}
}

func unnamedLease(t *testing.T, a, b records.Shared) {
	putRow(t, a, records.URIs, string(envelope.Key(sharedURI+"2", issuer, "app")), "") // merely begins alike
	for _, e := range []records.Shared{a, b} {
		if c := claim(t, e, time.Minute); !c.Unnamed || c.Lease != "" || c.Value != nil {
			t.Errorf("got %+v, want Unnamed", c)
		}
	}
	name(t, a)
	claimed(t, b, time.Minute)
}

func leaseTime(t *testing.T, a, b records.Shared) {
	name(t, a)
	first := claimed(t, a, 300*time.Millisecond)
	wantTaken(t, b, first.Until)
	wantTaken(t, a, first.Until) // the process that has it, too
	deadline := time.Now().Add(10 * time.Second)
	for {
		c := claim(t, b, time.Minute)
		if c.Lease != "" {
			if c.Lease == first.Lease {
				t.Error("the second lease has the name of the first")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the lease does not end")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if now := time.Now(); now.Before(first.Until.Add(-50 * time.Millisecond)) {
		t.Errorf("the lease was taken over at %s, and it ended at %s", now, first.Until)
	}
	err := a.PutClaimed(t.Context(), sharedKey, []byte("late"), first.Lease, noGuard(t, a), true)
	want(t, "PutClaimed after it was taken over", err, records.ErrLeaseLost)
	wantRow(t, a, records.KeySets, sharedURI, "", false)
}

// While a setting is changed in one process after the other, they ask for leases
// of different lengths.
func longerLease(t *testing.T, a, b records.Shared) {
	name(t, a)
	first := claimed(t, a, records.MaxLease)
	if c := claim(t, b, time.Second); c.Lease != "" {
		t.Fatal("a lease was taken over that lasts for longer than one given now")
	}
	if err := a.PutClaimed(t.Context(), sharedKey, []byte("value"), first.Lease, noGuard(t, a), true); err != nil {
		t.Errorf("PutClaimed by the holder: %v", err)
	}
}

func holderWrites(t *testing.T, a, b records.Shared) {
	name(t, a)
	guard := noGuard(t, a)
	for i, value := range []string{"one", "two"} {
		c := claimed(t, a, time.Minute)
		if err := a.PutClaimed(t.Context(), sharedKey, []byte(value), c.Lease, guard, i == 0); err != nil {
			t.Fatal(err)
		}
		wantRow(t, b, records.KeySets, sharedURI, value, true)
		again := a.PutClaimed(t.Context(), sharedKey, []byte("again"), c.Lease, guard, true)
		want(t, "PutClaimed once more", again, records.ErrLeaseLost)
	}
	if c := claimed(t, b, time.Minute); string(c.Value) != "two" {
		t.Errorf("got value %q with the lease, want what is stored", c.Value)
	} else if c := wantTaken(t, a, c.Until); string(c.Value) != "two" {
		t.Errorf("got value %q without the lease, want what is stored", c.Value)
	}
}

func lostLease(t *testing.T, a, b records.Shared) {
	name(t, a)
	guard := noGuard(t, a)
	c := claimed(t, a, time.Minute)
	for what, lease := range map[string]string{"another lease": c.Lease + "x", "no lease": "", "no uuid": "'; --"} {
		err := b.PutClaimed(t.Context(), sharedKey, []byte("evil"), lease, guard, true)
		want(t, "PutClaimed with "+what, err, records.ErrLeaseLost)
		if err := b.Release(t.Context(), sharedKey, lease); err != nil {
			t.Errorf("Release with %s: %v", what, err)
		}
	}
	other := b.PutClaimed(t.Context(), []byte(sharedURI+"2"), []byte("evil"), c.Lease, guard, true)
	want(t, "PutClaimed of another key set", other, records.ErrLeaseLost)
	wantTaken(t, b, c.Until)
	if keys, _ := scanAll(t, a, records.KeySets, "", "", 10); len(keys) != 0 {
		t.Errorf("got key sets %q", keys)
	}
}

func leaseGoes(t *testing.T, a, b records.Shared) {
	name(t, a)
	guard := noGuard(t, a)
	first := claimed(t, a, time.Minute)
	putRow(t, b, records.KeySets, sharedURI, "by hand")
	err := a.PutClaimed(t.Context(), sharedKey, []byte("late"), first.Lease, guard, true)
	want(t, "PutClaimed after a Put", err, records.ErrLeaseLost)
	wantRow(t, a, records.KeySets, sharedURI, "by hand", true)

	second := claimed(t, a, time.Minute)
	update(t, b, func(tx records.Tx) error {
		return errors.Join(
			tx.Delete(records.URIs, envelope.Key(sharedURI, issuer, "app")),
			tx.Delete(records.KeySets, sharedKey),
		)
	})
	err = a.PutClaimed(t.Context(), sharedKey, []byte("late"), second.Lease, guard, true)
	want(t, "PutClaimed after a Delete", err, records.ErrLeaseLost)
	wantRow(t, a, records.KeySets, sharedURI, "", false)
	if c := claim(t, a, time.Minute); !c.Unnamed {
		t.Errorf("got %+v, want Unnamed", c)
	}

	// A lease without a key set goes by a Delete too.
	name(t, a)
	third := claimed(t, a, time.Minute)
	update(t, b, func(tx records.Tx) error { return tx.Delete(records.KeySets, sharedKey) })
	err = a.PutClaimed(t.Context(), sharedKey, []byte("late"), third.Lease, guard, true)
	want(t, "PutClaimed after a Delete of nothing", err, records.ErrLeaseLost)
}

func guardChanged(t *testing.T, a, b records.Shared) {
	name(t, a)
	guard := noGuard(t, a)
	c := claimed(t, a, time.Minute)
	for what, g := range map[string]records.Guard{
		"another value": {Table: records.DataKeys, Key: guard.Key, Value: []byte("another")},
		"no value":      {Table: records.DataKeys, Key: guard.Key, Value: []byte{}},
		"no such row":   {Table: records.DataKeys, Key: []byte("dk-2"), Value: guard.Value},
	} {
		err := a.PutClaimed(t.Context(), sharedKey, []byte("value"), c.Lease, g, true)
		want(t, "PutClaimed with "+what, err, records.ErrGuard)
	}
	putRow(t, b, records.DataKeys, "dk-1", "retiring")
	err := a.PutClaimed(t.Context(), sharedKey, []byte("value"), c.Lease, guard, true)
	want(t, "PutClaimed after the guard was changed", err, records.ErrGuard)
	wantRow(t, b, records.KeySets, sharedURI, "", false)
	guard.Value = []byte("retiring")
	if err := a.PutClaimed(t.Context(), sharedKey, []byte("value"), c.Lease, guard, true); err != nil {
		t.Errorf("with the guard as it is: %v; the lease is still in force", err)
	}
	wantRow(t, b, records.KeySets, sharedURI, "value", true)
}

func releasedLease(t *testing.T, a, b records.Shared) {
	name(t, a)
	first := claimed(t, a, time.Minute)
	if err := a.Release(t.Context(), sharedKey, first.Lease); err != nil {
		t.Fatal(err)
	}
	second := claimed(t, b, time.Minute)
	for range 2 {
		if err := a.Release(t.Context(), sharedKey, first.Lease); err != nil {
			t.Errorf("Release of a lease that is lost: %v", err)
		}
	}
	wantTaken(t, a, second.Until)
	err := a.PutClaimed(t.Context(), sharedKey, []byte("late"), first.Lease, noGuard(t, a), true)
	want(t, "PutClaimed after Release", err, records.ErrLeaseLost)
}

// What an Update has read of a key set stays until its end: its write must not
// undo one it has not seen.
func updateAgainstHolder(t *testing.T, a, b records.Shared) {
	name(t, a)
	guard := noGuard(t, a)
	for _, there := range []bool{false, true} {
		if there {
			putRow(t, a, records.KeySets, sharedURI, "before")
		}
		c := claimed(t, a, time.Minute)
		done := make(chan error, 1)
		update(t, b, func(tx records.Tx) error {
			before, err := tx.Get(records.KeySets, sharedKey)
			if err != nil {
				return err
			}
			go func() {
				done <- a.PutClaimed(context.Background(), sharedKey, []byte("by the holder"), c.Lease, guard, true)
			}()
			time.Sleep(100 * time.Millisecond)
			now, err := tx.Get(records.KeySets, sharedKey)
			if err != nil || string(now) != string(before) {
				t.Errorf("the key set became %q in the middle of an Update, %v", now, err)
			}
			return tx.Put(records.KeySets, sharedKey, []byte("by the Update"))
		})
		want(t, fmt.Sprintf("PutClaimed beside an Update, with a key set before: %t", there), <-done, records.ErrLeaseLost)
		wantRow(t, a, records.KeySets, sharedURI, "by the Update", true)
	}
}

func sharedIncrements(t *testing.T, a, b records.Shared) {
	const workers, rounds = 8, 10
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			e := []records.Shared{a, b}[w%2]
			for range rounds {
				if err := e.Update(context.Background(), func(tx records.Tx) error {
					text, err := tx.Get(records.Registrations, []byte("counter"))
					if err != nil {
						return err
					}
					return tx.Put(records.Registrations, []byte("counter"), append(text, '.'))
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if text, _ := getRow(t, a, records.Registrations, "counter"); len(text) != workers*rounds {
		t.Errorf("got %d of %d increments", len(text), workers*rounds)
	}
}

// witness is a records.Follower that remembers.
type witness struct {
	mu     sync.Mutex
	told   map[string]int // guarded by mu
	resets int            // guarded by mu
}

func (w *witness) Changed(t records.Table, key []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told == nil {
		w.told = map[string]int{}
	}
	w.told[string(t)+" "+string(key)]++
}

func (w *witness) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resets++
}

// take returns what it was told, and forgets it.
func (w *witness) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for what := range w.told {
		all = append(all, what)
	}
	w.told = nil
	slices.Sort(all)
	return all
}

// following runs Follow on an engine until the end of the test.
func following(t *testing.T, e records.Shared) *witness {
	t.Helper()
	w := &witness{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Follow(ctx, w) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Follow: %v", err)
		}
	})
	wantCurrent(t, e, time.Now())
	w.take()
	return w
}

// wantCurrent waits until an engine has told of all before a moment.
func wantCurrent(t *testing.T, e records.Shared, moment time.Time) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); e.Current().Before(moment); {
		if time.Now().After(deadline) {
			t.Fatalf("Current is %s, and it is %s", e.Current(), time.Now())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func follow(t *testing.T, a, b records.Shared) {
	fill(t, a, records.Registrations, "before")
	name(t, a)
	guard := noGuard(t, a)
	told := []*witness{following(t, a), following(t, b)}

	told2 := func(what string, want ...string) {
		t.Helper()
		moment := time.Now()
		for i, e := range []records.Shared{a, b} {
			wantCurrent(t, e, moment)
			if took := time.Since(moment); took > inForce {
				t.Errorf("%s: it took %s until it was in force", what, took)
			}
			if diff := cmp.Diff(want, told[i].take()); diff != "" {
				t.Errorf("%s: follower %d (-want +got):\n%s", what, i, diff)
			}
		}
	}
	update(t, a, func(tx records.Tx) error {
		var err error
		for _, table := range records.Tables() {
			err = errors.Join(err, tx.Put(table, []byte("k\x00"+string(table)), []byte("v")))
		}
		return err
	})
	told2("an Update of every table", "keysets k\x00keysets", "registrations k\x00registrations", "rings k\x00rings")

	fill(t, b, records.Registrations, "x\x00y", "\xff")
	told2("an Update of the other", "registrations x\x00y", "registrations \xff")

	update(t, a, func(tx records.Tx) error {
		return errors.Join(tx.Put(records.KeySets, sharedKey, []byte("v")), tx.Delete(records.Registrations, []byte("x\x00y")), tx.Delete(records.KeySets, []byte("k\x00keysets")))
	})
	moment := time.Now()
	wantCurrent(t, a, moment)
	wantCurrent(t, b, moment)
	if all := told[1].take(); !slices.Contains(all, "keysets "+sharedURI) {
		t.Errorf("got %q, want the key set among it", all)
	}
	told[0].take()

	for _, announce := range []bool{true, false} {
		c := claimed(t, a, time.Minute)
		told2("a lease")
		if err := a.PutClaimed(t.Context(), sharedKey, []byte("v2"), c.Lease, guard, announce); err != nil {
			t.Fatal(err)
		}
		if announce {
			told2("PutClaimed", "keysets "+sharedURI)
		} else {
			told2("PutClaimed that is not announced")
		}
	}
	failed := errors.New("the error of a test")
	want(t, "Update", a.Update(t.Context(), func(tx records.Tx) error {
		return errors.Join(tx.Put(records.Registrations, []byte("undone"), []byte("v")), failed)
	}), failed)
	told2("an Update that was undone")
	for i, w := range told {
		w.mu.Lock()
		if w.resets != 0 {
			t.Errorf("follower %d was reset %d times", i, w.resets)
		}
		w.mu.Unlock()
	}
}

func current(t *testing.T, a, b records.Shared) {
	if at := b.Current(); !at.IsZero() {
		t.Errorf("before Follow: got %s, want zero", at)
	}
	w := following(t, b)
	for i := range 5 {
		key := fmt.Sprint("k", i)
		fill(t, a, records.Rings, key)
		acknowledged := time.Now()
		wantCurrent(t, b, acknowledged)
		if took := time.Since(acknowledged); took > inForce {
			t.Errorf("it took %s until it was in force", took)
		}
		if all := w.take(); !slices.Contains(all, "rings "+key) {
			t.Errorf("Current is past the write, and it was told %q", all)
		}
	}
	if b.Current().After(time.Now()) {
		t.Error("Current is to come")
	}
}
