package keycache

import (
	"maps"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

func TestStatesAreCounted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		kw := encrypts(idToken, "A256KW", "A256GCM")
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.hosts.serve(uri+"-unfit", fresh(set("sig-1"), 24*time.Hour))
		w.register(withURI("a", uri))
		w.register(withURI("b", uri))
		w.register(withURI("unfit", uri+"-unfit"))
		w.register(withURI("down", uri+"-down"))
		w.register(withSet("static", set("k1")))
		w.register(withSet("none", nil))
		w.register(w.vault.withSecret("secret", clientSecret, time.Now().Add(time.Hour), kw))
		count := func(want map[State]int) {
			t.Helper()
			w.sleep(statesFor)
			if got := w.States(); !maps.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		}
		count(map[State]int{})
		for _, id := range []string{"a", "b", "unfit", "down", "static", "none", "secret"} {
			_, _ = w.recipient(id)
		}
		want := map[State]int{Ready: 4, Failing: 1, NoUsableKey: 2}
		count(want)
		got := w.States()
		got[Ready] = 99
		w.Invalidate(issuer, "static")
		if got := w.States(); !maps.Equal(got, want) {
			t.Errorf("got %v at once, want %v still", got, want)
		}
		want[Ready]--
		count(want)

		w.hosts.serve(uri, down)
		w.sleep(9*time.Minute + 35*time.Second - 3*statesFor)
		count(map[State]int{Ready: 1, Failing: 3, NoUsableKey: 2})
		w.sleep(time.Minute)
		count(map[State]int{Ready: 1, Failing: 1, Stale: 2, NoUsableKey: 2})
		w.sleep(time.Hour)
		count(map[State]int{Expired: 1, Failing: 1, Stale: 2, NoUsableKey: 2})
		w.sleep(24 * time.Hour)
		got = w.States()
		if got[Expired] != 3 || got[Stale] != 0 {
			t.Errorf("got %v, want 3 expired", got)
		}
		// Each is what a status says.
		for id, want := range map[string]State{"a": Expired, "unfit": NoUsableKey, "down": Failing, "none": NoUsableKey, "secret": Expired} {
			if s := w.status(id); s.State != want || s.Reason == "" || s.Since.IsZero() {
				t.Errorf("%s: got %+v, want %v with a reason and a time", id, s, want)
			}
		}
	})
}

func TestMaterialChangesAreTold(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		a, b := f.replicas[0], f.replicas[1]
		told := func(what string, want int) {
			t.Helper()
			for i, r := range f.replicas {
				if got := r.heard(uri); got != want {
					t.Errorf("%s: replica %d was told %d times, want %d", what, i, got, want)
				}
			}
		}
		doc := set("k1")
		f.hosts.serve(uri, fresh(doc, 10*time.Minute))
		f.register(withURI("app", uri))
		a.use("app")
		if got := a.heard(uri); got != 1 {
			t.Errorf("told %d times of the first set, want once", got)
		}
		b.use("app") // reads what is stored: no change
		told("loaded", 0)
		f.sleep(time.Hour)
		told("refreshed, and the same", 0)
		announced := f.store.count().told
		f.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		f.sleep(10 * time.Minute)
		told("another document", 1)
		if f.store.count().told != announced+1 {
			t.Errorf("%d announcements, want 1", f.store.count().told-announced)
		}
		fetchedAt := a.use("app").FetchedAt
		f.hosts.serve(uri, down)
		f.sleep(time.Until(fetchedAt.Add(9*time.Minute + 45*time.Second)))
		told("trouble began", 1)
		f.sleep(time.Until(fetchedAt.Add(10*time.Minute + time.Second)))
		told("stale, within a second", 1)
		f.sleep(time.Until(fetchedAt.Add(24*time.Hour + 9*time.Minute)))
		told("stale still", 0)
		f.sleep(time.Until(fetchedAt.Add(24*time.Hour + 10*time.Minute + time.Second)))
		told("expired, within a second", 1)
		if f.store.count().told != announced+2 {
			t.Errorf("%d announcements of the trouble, want 1 for its beginning", f.store.count().told-announced-1)
		}
		f.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		f.sleep(7 * time.Minute)
		told("fresh again", 1)

		// Nobody holds a lock: the cache may be asked.
		asked := make(chan registry.TokenKind, 1)
		c := f.join()
		c.cfg.KeySetChanged = func(string) {
			c.States()
			c.Stats()
			s, _ := c.Setting(t.Context(), issuer, "app", userinfo)
			asked <- s.Kind
		}
		c.use("app")
		f.hosts.serve(uri, fresh(set("k3"), 10*time.Minute))
		f.sleep(12 * time.Minute)
		if kind := <-asked; kind != userinfo {
			t.Errorf("got %q", kind)
		}
	})
}

func TestStatesHaveTheirNames(t *testing.T) {
	for state, want := range map[State]string{
		Ready: "READY", Stale: "STALE", Expired: "EXPIRED", Failing: "FAILING", NoUsableKey: "NO_USABLE_KEY", 0: "State(0)",
	} {
		if got := state.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
