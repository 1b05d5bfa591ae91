package keycache

import (
	"errors"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// after is a registration that becomes another at a time.
func after(reg, next registry.Registration, at time.Time) registry.Registration {
	reg.Pending = &registry.Pending{EffectiveAt: at, Source: next.Source, Settings: next.Settings, Legacy: next.Legacy, X5T: next.X5T}
	return reg
}

// gone has every access to the store fail.
func (w *world) gone() {
	w.store.edit(func(s *memStore) {
		s.failGet, s.failKeySet, s.failPutKeySet = registry.ErrUnavailable, registry.ErrUnavailable, registry.ErrUnavailable
	})
}

// stored is the record of a client as it is stored.
func (w *world) stored(clientID string) *registry.Registration {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	return w.store.clients[clientKey{issuer, clientID}]
}

func TestKeyChangesByTheClockAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		at := time.Now().Add(day)
		w.register(after(withSet("app", set("old")), withSet("app", set("new")), at))
		if got := kid(w.mustUse("app")); got != "old" {
			t.Fatalf("before: key %q", got)
		}
		w.gone()
		w.sleep(day - time.Nanosecond)
		if got := kid(w.mustUse("app")); got != "old" {
			t.Errorf("a moment before: key %q", got)
		}
		w.sleep(time.Nanosecond)
		if got := kid(w.mustUse("app")); got != "new" {
			t.Errorf("at its time: key %q", got)
		}
		// The one that was in force is let go of.
		cl, ok := w.clients.GetIfPresent(clientKey{issuer, "app"})
		if !ok || cl.next != nil || cl.revision != 2 {
			t.Errorf("in memory is %+v", cl)
		}
		if r, err := w.Recipient(t.Context(), issuer, "app", registry.LogoutToken); err != nil || kid(r) != "new" {
			t.Errorf("logout tokens: key %q, %v", kid(r), err)
		}
		if got := kid(w.mustUse("app")); got != "new" {
			t.Errorf("once more: key %q", got)
		}
	})
}

func TestAllOfARegistrationChangesTogether(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		// From encrypted to signed only, and for another kind of token.
		next := withSet("app", set("new"))
		next.Settings = []registry.Setting{{Kind: idToken, SigningAlgorithm: "ES256"}}
		w.register(after(withSet("app", set("old")), next, time.Now().Add(time.Hour)))
		setting := func(want string) {
			t.Helper()
			s, err := w.Setting(t.Context(), issuer, "app", idToken)
			if err != nil || s.EncryptionAlgorithm != want {
				t.Errorf("got %+v, %v; want alg %q", s, err, want)
			}
		}
		setting("ECDH-ES")
		if _, err := w.Setting(t.Context(), issuer, "app", userinfo); err != nil {
			t.Error(err)
		}
		w.sleep(time.Hour)
		setting("")
		if r := w.mustUse("app"); r.Recipient != nil {
			t.Errorf("ID tokens are encrypted with %q", kid(r))
		}
		if _, err := w.Setting(t.Context(), issuer, "app", userinfo); !errors.Is(err, ErrNoSetting) {
			t.Errorf("userinfo: got %v", err)
		}
	})
}

func TestADeletedClientIsServedWhenItsTimeHasCome(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		at := time.Now().Add(day)
		w.register(after(tombstone("app"), withSet("app", set("new")), at))
		err := w.mustRefuse("app", registry.ErrNotFound)
		var waits *registry.WaitingError
		if !errors.As(err, &waits) || !waits.EffectiveAt.Equal(at) {
			t.Errorf("got %v, want when it is back", err)
		}
		w.gone()
		w.sleep(day - time.Second)
		w.mustRefuse("app", registry.ErrWaiting)
		if states := w.States(); states[Ready] != 0 {
			t.Errorf("states are %v", states)
		}
		w.sleep(time.Second)
		if got := kid(w.mustUse("app")); got != "new" {
			t.Errorf("key %q", got)
		}
		w.sleep(statesFor)
		if states := w.States(); states[Ready] != 1 {
			t.Errorf("states are %v", states)
		}
	})
}

func TestAChangeThatIsTakenBackNeverCounts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		old, third := withSet("app", set("old")), withSet("app", set("third"))
		w.register(after(old, withSet("app", set("new")), time.Now().Add(time.Hour)))
		w.mustUse("app")
		w.sleep(30 * time.Minute)
		w.register(old)
		w.sleep(time.Hour)
		if got := kid(w.mustUse("app")); got != "old" {
			t.Errorf("taken back: key %q", got)
		}
		w.register(after(old, withSet("app", set("new")), time.Now().Add(time.Hour)))
		w.mustUse("app")
		w.register(after(old, third, time.Now().Add(2*time.Hour)))
		w.sleep(time.Hour)
		if got := kid(w.mustUse("app")); got != "old" {
			t.Errorf("replaced: key %q", got)
		}
		w.sleep(time.Hour)
		if got := kid(w.mustUse("app")); got != "third" {
			t.Errorf("replaced, and its time has come: key %q", got)
		}
		w.register(after(third, old, time.Now().Add(time.Hour)))
		w.mustUse("app")
		w.register(tombstone("app"))
		w.mustRefuse("app", registry.ErrNotFound)
		w.sleep(2 * time.Hour)
		if err := w.mustRefuse("app", registry.ErrNotFound); errors.Is(err, registry.ErrWaiting) {
			t.Errorf("deleted: got %v", err)
		}
	})
}

// TestAChangeTakenBackElsewhereIsNotShownInForce: what waited would have had the
// revision by which it was taken back.
func TestAChangeTakenBackElsewhereIsNotShownInForce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		old := withSet("app", set("old"))
		waits := w.register(after(old, withSet("app", set("new")), time.Now().Add(time.Hour)))
		w.mustUse("app")
		if next, err := w.Upcoming(t.Context(), waits); err != nil || next.Recipients[0].KeyID() != "new" {
			t.Fatalf("got %+v, %v of what waits", next, err)
		}
		// Another replica has written it, and nobody has told this one.
		back, err := w.store.Put(t.Context(), old, waits.Revision)
		if err != nil || back.Revision != waits.Successor().Revision {
			t.Fatalf("revision %d, %v", back.Revision, err)
		}
		status, err := w.Status(t.Context(), back)
		if err != nil || len(status.Recipients) == 0 || status.Recipients[0].KeyID() != "old" {
			t.Errorf("got %+v, %v; want key old", status, err)
		}
	})
}

// What Prepare is called for every minute is there at the moment of the change
// without the store and without the host, and is as fresh as if it had been used.
func TestPreparedURLIsReadyAtItsTime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const other = "https://client.example/other"
		w.hosts.serve(uri, fresh(set("old"), time.Hour))
		w.hosts.serve(other, fresh(set("new-0"), time.Hour))
		w.register(withURI("app", uri))
		w.mustUse1st("app")
		// As the server does: it is tried out, which fetches, and stored.
		next := withURI("app", other)
		if _, err := w.Check(t.Context(), &next); err != nil {
			t.Fatal(err)
		}
		const wait = 10 * day // longer than what nobody uses is kept fresh
		w.register(after(withURI("app", uri), next, time.Now().Add(wait)))
		if err := w.Keep(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		w.mustUse("app")
		if n := w.hosts.count(other); n != 1 {
			t.Fatalf("the URL that waits was fetched %d times, want once", n)
		}
		for begun := time.Now(); time.Since(begun) < wait-time.Minute; {
			if err := w.Prepare(t.Context(), w.stored("app")); err != nil {
				t.Fatal(err)
			}
			w.sleep(10 * time.Minute)
		}
		if n := w.hosts.count(other); n < 24*9 {
			t.Errorf("the URL that waits was fetched %d times in ten days, want every hour", n)
		}
		w.hosts.serve(other, fresh(set("new-1"), time.Hour))
		w.sleep(time.Hour)
		// The time has come a while ago.
		w.gone()
		w.hosts.serve(other, down)
		r := w.mustUse("app")
		if kid(r) != "new-1" || r.Stale {
			t.Errorf("key %q, stale %v; want the newest, fresh", kid(r), r.Stale)
		}
	})
}

// mustUse1st is mustUse for one who may have to wait.
func (w *world) mustUse1st(clientID string) {
	w.t.Helper()
	if _, err := w.recipient(clientID); err != nil {
		w.t.Fatal(err)
	}
}

// A URL that gave nothing until its time has come is as any that gives nothing.
func TestURLThatFailsAtItsTimeIsTriedAsAnyOther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, down)
		w.register(after(withSet("app", set("old")), withURI("app", uri), time.Now().Add(time.Hour)))
		if err := w.Prepare(t.Context(), w.stored("app")); err != nil {
			t.Errorf("Prepare waits for a host: %v", err)
		}
		w.mustUse("app")
		w.sleep(time.Hour)
		w.mustRefuse("app", ErrUnavailable)
		w.hosts.serve(uri, fresh(set("new"), time.Hour))
		w.sleep(time.Hour)
		if r, err := w.recipient("app"); err != nil || kid(r) != "new" {
			t.Errorf("key %q, %v", kid(r), err)
		}
	})
}

func TestSecretIsOpenedBeforeItsTime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		by := registry.Setting{Kind: idToken, SigningAlgorithm: "HS256", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM"}
		next := w.vault.withSecret("app", clientSecret, time.Time{}, by)
		w.register(after(withSet("app", set("old")), next, time.Now().Add(time.Hour)))
		w.mustUse("app")
		if _, err := w.SigningSecret(t.Context(), issuer, "app"); !errors.Is(err, ErrNoSetting) {
			t.Errorf("before: got %v", err)
		}
		if n := w.vault.count(); n != 0 {
			t.Fatalf("%d secrets were opened before they were needed", n)
		}
		if err := w.Prepare(t.Context(), w.stored("app")); err != nil {
			t.Fatal(err)
		}
		w.vault.set(errors.New("the backend is gone"), 0)
		w.gone()
		w.sleep(time.Hour)
		if r := w.mustUse("app"); r.Algorithm() != "A256KW" {
			t.Errorf("alg %s", r.Algorithm())
		}
		if got, err := w.SigningSecret(t.Context(), issuer, "app"); err != nil || string(got) != clientSecret {
			t.Errorf("the secret: %v", err)
		}
	})
}

func TestStatusShowsWhatIsInForceAndUpcomingWhatFollows(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(after(withSet("app", set("old")), withSet("app", set("new")), time.Now().Add(time.Hour)))
		look := func(what, inForce, upcoming string) {
			t.Helper()
			reg, err := w.store.Get(t.Context(), issuer, "app")
			if err != nil {
				t.Fatal(err)
			}
			now, err := w.Status(t.Context(), reg)
			if err != nil || now.State != Ready || now.Recipients[0].KeyID() != inForce {
				t.Errorf("%s: in force is %+v, %v; want %s", what, now, err, inForce)
			}
			next, err := w.Upcoming(t.Context(), reg)
			switch {
			case err != nil || (next == nil) != (upcoming == ""):
				t.Errorf("%s: what follows is %+v, %v; want %q", what, next, err, upcoming)
			case next != nil && (next.State != Ready || next.Recipients[0].KeyID() != upcoming):
				t.Errorf("%s: what follows is %+v, want %s", what, next, upcoming)
			}
		}
		look("cold", "old", "new")
		look("remembered", "old", "new")
		w.mustUse("app")
		look("warm", "old", "new")
		w.sleep(time.Hour)
		look("in force, and not asked for", "new", "")
		w.mustUse("app")
		look("in force", "new", "")

		w.register(after(tombstone("app"), withSet("app", set("third")), time.Now().Add(time.Hour)))
		reg, err := w.store.Get(t.Context(), issuer, "app")
		if err != nil {
			t.Fatal(err)
		}
		if s, err := w.Status(t.Context(), reg); err != nil || s.State != NoUsableKey || s.Reason != reg.Missing().Error() || len(s.Recipients) != 0 {
			t.Errorf("deleted: got %+v, %v", s, err)
		}
		if s, err := w.Upcoming(t.Context(), reg); err != nil || s.Recipients[0].KeyID() != "third" {
			t.Errorf("deleted: what follows is %+v, %v", s, err)
		}
	})
}

// Every replica changes over by itself, also one that has not heard of anything
// for a while, and one that reads the client for the first time after it.
func TestReplicasChangeOverTogether(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, f *fleet) {
		at := time.Now().Add(time.Hour)
		f.register(after(withSet("app", set("old")), withSet("app", set("new")), at))
		for _, r := range f.replicas[:2] {
			if got := kid(r.use("app")); got != "old" {
				t.Errorf("before: key %q", got)
			}
		}
		f.sleep(time.Until(at) - time.Minute)
		f.store.fail(registry.ErrUnavailable)
		for _, r := range f.replicas {
			r.feed.stop(time.Now())
		}
		f.sleep(time.Until(at))
		for i, r := range f.replicas[:2] {
			if got := r.warm("app"); kid(got) != "new" || !got.RegistryStale {
				t.Errorf("replica %d: key %q, registry stale %v; want the new one, flagged", i, kid(got), got.RegistryStale)
			}
		}
		f.store.fail(nil)
		if got := kid(f.replicas[2].use("app")); got != "new" {
			t.Errorf("read after it: key %q", got)
		}
	})
}
