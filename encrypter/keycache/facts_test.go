package keycache

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// manyRSA is a set of n RSA keys that pass all checks. They share a modulus,
// which nobody looks at.
func manyRSA(t testing.TB, n int) []byte {
	t.Helper()
	// Large enough for the checks to cost what they do.
	key := rsaKey(t, 2048)
	keys := make([]map[string]any, n)
	for i := range keys {
		keys[i] = map[string]any{
			"kty": "RSA", "kid": fmt.Sprintf("k%d", i), "use": "enc",
			"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()), "e": "AQAB",
		}
	}
	return document(keys...)
}

func rsaSettings(reg registry.Registration) registry.Registration {
	reg.Settings = []registry.Setting{encrypts(idToken, "RSA-OAEP-256", "A256GCM"), encrypts(userinfo, "RSA-OAEP", "A128GCM")}
	return reg
}

// TestStatusIsCheapTheSecondTime counts allocations: those of parsing a set of
// 100 keys go into the thousands.
func TestStatusIsCheapTheSecondTime(t *testing.T) {
	doc := manyRSA(t, 100)
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(doc, 24*time.Hour))
		w.register(rsaSettings(withSet("static", doc)))
		w.register(rsaSettings(withURI("fetched", uri)))
		w.register(w.vault.withSecret("secret", clientSecret, time.Time{}, encrypts(idToken, "A256KW", "A256GCM")))
		sigs := withSet("unfit", doc) // which none of the keys fits
		w.register(sigs)
		if _, err := w.Recipient(t.Context(), issuer, "fetched", idToken); err != nil {
			t.Fatal(err)
		}
		cheap := func(id string) {
			t.Helper()
			first := w.status(id)
			opens := w.vault.count()
			if got := testing.AllocsPerRun(10, func() { w.status(id) }); got > 60 {
				t.Errorf("%s: %v allocations, want no more than 60", id, got)
			}
			if got := w.vault.count(); got != opens {
				t.Errorf("%s: its secret was opened %d times for a status", id, got-opens)
			}
			if again := w.status(id); fmt.Sprintf("%+v", first) != fmt.Sprintf("%+v", again) {
				t.Errorf("%s: got\n%+v at first, then\n%+v", id, first, again)
			}
		}
		ids := []string{"static", "fetched", "secret", "unfit"}
		for _, id := range ids {
			cheap(id)
		}
		w.restart() // now the set is in the store only
		for _, id := range ids {
			cheap(id)
		}
		if got := w.Stats(); got.Clients != 0 || got.KeySets != 0 {
			t.Errorf("got %+v, want nothing made ready", got)
		}
	})
}

func TestStatusOfAReadyClientParsesAndOpensNothing(t *testing.T) {
	doc := manyRSA(t, 100)
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(doc, 24*time.Hour))
		w.register(rsaSettings(withSet("static", doc)))
		w.register(rsaSettings(withURI("fetched", uri)))
		w.register(w.vault.withSecret("secret", clientSecret, time.Time{}, encrypts(idToken, "A256KW", "A256GCM")))
		ids := []string{"static", "fetched", "secret"}
		cold := make(map[string]string)
		for _, id := range ids {
			for _, kind := range []registry.TokenKind{idToken, userinfo} {
				_, _ = w.Recipient(t.Context(), issuer, id, kind)
			}
			w.facts.InvalidateAll()
		}
		opens := w.vault.count()
		for _, id := range ids {
			reg, err := w.store.Get(t.Context(), issuer, id)
			if err != nil {
				t.Fatal(err)
			}
			got := testing.AllocsPerRun(10, func() {
				w.facts.InvalidateAll() // as if each status were the first
				s := w.status(id)
				cold[id] = fmt.Sprintf("%+v", s.Recipients)
			})
			if got > 300 {
				t.Errorf("%s: %v allocations, want no more than 300", id, got)
			}
			if w.remembered(reg) != nil {
				t.Errorf("%s: remembered, though it is in memory already", id)
			}
		}
		if got := w.vault.count(); got != opens {
			t.Errorf("the secret was opened %d times for a status", got-opens)
		}
		w.restart()
		for _, id := range ids {
			if s := w.status(id); fmt.Sprintf("%+v", s.Recipients) != cold[id] {
				t.Errorf("%s: got\n%+v when cold and\n%s when ready", id, s.Recipients, cold[id])
			}
		}
	})
}

// TestWarningsFollowTheClock though the keys that they are on are remembered, or
// ready for use.
func TestWarningsFollowTheClock(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		key := p256(t)
		end := time.Now().Add(40 * day)
		der := certificate(t, key, end)
		withX5C := jwk(t, key, "k1")
		withX5C["x5c"] = []string{base64.StdEncoding.EncodeToString(der)}
		w.hosts.serve(uri, fresh(document(withX5C), time.Hour))
		ecdh := encrypts(idToken, "ECDH-ES", "A128GCM")
		fetched := withURI("fetched", uri)
		fetched.Settings = []registry.Setting{ecdh}
		ready := withPEM("ready", block("CERTIFICATE", der), ecdh)
		for _, reg := range []registry.Registration{withPEM("static", block("CERTIFICATE", der), ecdh), ready, fetched,
			w.vault.withSecret("secret", clientSecret, end, encrypts(idToken, "A128KW", "A128GCM"))} {
			w.register(reg)
		}
		w.mustUse("ready")
		w.mustUse("fetched")
		look := func(want map[string]string) {
			t.Helper()
			for range 2 {
				for _, id := range []string{"static", "ready", "fetched", "secret"} {
					text := want[id]
					if text == "" {
						text = want[""]
					}
					s := w.status(id)
					if got := strings.Join(s.Warnings, "|"); (text == "") != (got == "") || !strings.Contains(got, text) {
						t.Errorf("%s: got warnings %q, want %q", id, got, text)
					}
				}
			}
		}
		look(nil)
		w.sleep(11 * day)
		look(map[string]string{"": "in 29 days", "secret": "in 29 days"})
		w.sleep(20 * day)
		look(map[string]string{"": "in 9 days", "static": "in 9 days: register a new one, or the public key alone", "fetched": "in 9 days: publish a new one"})
		w.sleep(8*day + 23*time.Hour)
		if s := w.status("secret"); s.State != Ready {
			t.Errorf("got %+v before the end of the secret, want Ready", s)
		}
		w.sleep(2 * time.Hour)
		for _, id := range []string{"static", "ready", "fetched"} {
			if s := w.status(id); len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "certificate expired") {
				t.Errorf("%s: got %q, want that the certificate expired", id, s.Warnings)
			}
		}
		if s := w.status("secret"); s.State != Expired || len(s.Recipients) != 0 {
			t.Errorf("got %+v, want Expired without a key", s)
		}
	})
}

func TestStatusFollowsEveryChange(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		kids := func(id string) string {
			var list []string
			for _, k := range w.status(id).Recipients {
				list = append(list, k.KeyID())
			}
			return strings.Join(slices.Compact(list), ",")
		}
		want := func(id, kid string) {
			t.Helper()
			for range 2 {
				if got := kids(id); got != kid {
					t.Errorf("%s: got key %s, want %s", id, got, kid)
				}
			}
		}
		w.register(withSet("static", set("k1")))
		want("static", "k1")
		stored := w.register(withSet("static", set("k2")))
		want("static", "k2")

		// An older revision, at which another caller looks, does not stay, nor is
		// it mixed up with what is ready for use.
		w.mustUse("static")
		old := withSet("static", set("k1"))
		old.Revision, old.UpdatedAt = 1, stored.UpdatedAt
		if s, err := w.Status(t.Context(), &old); err != nil || s.Recipients[0].KeyID() != "k1" {
			t.Errorf("got %+v, %v; want k1", s, err)
		}
		want("static", "k2")

		// A record that is put in place of a tampered one may repeat a revision.
		w.Invalidate(issuer, "static")
		want("static", "k2")
		other := withSet("static", set("k3"))
		other.Revision, other.UpdatedAt = stored.Revision, stored.UpdatedAt.Add(time.Second)
		if s, err := w.Status(t.Context(), &other); err != nil || s.Recipients[0].KeyID() != "k3" {
			t.Errorf("got %+v, %v; want k3", s, err)
		}

		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("fetched", uri))
		want("fetched", "")
		w.mustUse("fetched")
		want("fetched", "k1")
		w.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		w.sleep(10 * time.Minute)
		want("fetched", "k2")
		w.restart()
		want("fetched", "k2")
		w.store.edit(func(s *memStore) {
			changed := s.sets[uri]
			changed.Document = set("k3")
			s.sets[uri] = changed
		})
		want("fetched", "k3")
	})
}

func TestSecretIsTakenToOpenForMinutesOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(w.vault.withSecret("app", clientSecret, time.Time{}, encrypts(idToken, "A128KW", "A128GCM")))
		state := func(want State) {
			t.Helper()
			if s := w.status("app"); s.State != want || (want == Ready) != (len(s.Recipients) == 1) {
				t.Errorf("got %+v, want state %v", s, want)
			}
		}
		state(Ready)
		w.vault.set(registry.ErrUnavailable, 0)
		w.sleep(openedFor - time.Second)
		state(Ready)
		w.sleep(time.Second)
		state(Failing)
		w.vault.set(nil, 0)
		state(Ready)
		if got := w.vault.count(); got != 3 {
			t.Errorf("opened %d times, want 3", got)
		}
	})
}

// TestWhatIsRememberedIsSmallAndPublic by the entries themselves.
func TestWhatIsRememberedIsSmallAndPublic(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		key := p256(t)
		der := certificate(t, key, time.Now().Add(40*day))
		reg := w.register(withPEM("app", block("CERTIFICATE", der), encrypts(idToken, "ECDH-ES", "A128GCM")))
		w.status("app")
		f := w.remembered(reg)
		if f == nil || f.public[0].key == nil || f.public[0].key.Public != nil {
			t.Fatalf("got %+v, want a key without its material", f)
		}
		// Far more clients than there is room for, with much to remember of each.
		long := strings.Repeat("r", 8<<10)
		for i := range 4000 {
			w.facts.Set(clientKey{issuer, fmt.Sprint(i)}, &facts{public: []fact{{reason: long}}})
		}
		w.facts.CleanUp()
		if got := w.facts.WeightedSize(); got > maxFacts {
			t.Errorf("%d bytes are remembered, want at most %d", got, maxFacts)
		}
		// Nearly all registered clients are remembered at once all the same.
		thumbprint := rand.Text() + rand.Text()[:17]
		usual := weightOfFacts(clientKey{issuer, "client-000000"}, &facts{public: []fact{{keyID: "2026-01-encryption", thumbprint: thumbprint}, {}}})
		if n := maxFacts / usual; n < 10_000 {
			t.Errorf("there is room for %d usual clients, want 10 000", n)
		}
	})
}

// TestReadyClientsStayInTheirSizeClass holds the parts of which there are most to
// the sizes that the allocator rounds to.
func TestReadyClientsStayInTheirSizeClass(t *testing.T) {
	if got := unsafe.Sizeof(client{}); got > 128 {
		t.Errorf("a client takes %d bytes, want at most 128", got)
	}
	if got := unsafe.Sizeof(pick{}); got > 40 {
		t.Errorf("a pick takes %d bytes, want at most 40", got)
	}
}

// BenchmarkStatus is the status of a client that has registered 100 RSA keys.
func BenchmarkStatus(b *testing.B) {
	store := newMemStore()
	c, err := New(Config{Store: store, Fetcher: &hosts{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	reg, err := store.Put(b.Context(), rsaSettings(withSet("app", manyRSA(b, 100))), 0)
	if err != nil {
		b.Fatal(err)
	}
	for name, forget := range map[string]bool{"cold": true, "again": false} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if forget {
					c.facts.InvalidateAll()
				}
				if _, err := c.Status(b.Context(), reg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
