package keycache

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

func TestRecipientIsMadeAsTheSettingSays(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("sig-1", "k1"), 10*time.Minute))
		w.register(withURI("fetched", uri))
		w.register(withSet("static", set("sig-1", "k1")))
		for _, id := range []string{"fetched", "static"} {
			for kind, want := range map[registry.TokenKind]string{idToken: "ECDH-ES A256GCM", userinfo: "ECDH-ES+A128KW A128CBC-HS256"} {
				r, err := w.Recipient(t.Context(), issuer, id, kind)
				if err != nil {
					t.Fatalf("%s %s: %v", id, kind, err)
				}
				got := fmt.Sprintf("%s %s", r.Algorithm(), r.ContentEncryption())
				if got != want || r.KeyID() != "k1" || r.Setting.Kind != kind || len(r.Thumbprint) != 43 || r.Stale {
					t.Errorf("%s %s: got %s, %+v; want %s with k1", id, kind, got, r, want)
				}
				if r.FetchedAt.IsZero() != (id == "static") {
					t.Errorf("%s: got fetched at %v", id, r.FetchedAt)
				}
				if _, err := r.Encrypt([]byte("a.b.c")); err != nil {
					t.Errorf("%s %s: %v", id, kind, err)
				}
			}
			if _, err := w.Recipient(t.Context(), issuer, id, "OTHER"); !errors.Is(err, ErrNoSetting) {
				t.Errorf("%s: got %v for a kind without a setting, want ErrNoSetting", id, err)
			}
			if _, err := w.Setting(t.Context(), issuer, id, "OTHER"); !errors.Is(err, ErrNoSetting) {
				t.Errorf("%s: got %v for a kind without a setting, want ErrNoSetting", id, err)
			}
		}
	})
}

func TestMissingSettingIsNamed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reg := withSet("app", set("k1"))
		reg.Settings = reg.Settings[2:] // INTROSPECTION, signed only
		stored := w.register(reg)
		for kind, want := range map[registry.TokenKind]string{
			userinfo:             ": USERINFO; register one for USERINFO",
			registry.LogoutToken: ": LOGOUT_TOKEN; register one for ID_TOKEN",
		} {
			_, recipient := w.Recipient(t.Context(), issuer, "app", kind)
			_, setting := w.Setting(t.Context(), issuer, "app", kind)
			_, explain := w.Explain(t.Context(), stored, kind)
			for what, err := range map[string]error{"Recipient": recipient, "Setting": setting, "Explain": explain} {
				if !errors.Is(err, ErrNoSetting) || !strings.HasSuffix(err.Error(), want) {
					t.Errorf("%s of %s: got %v, want ErrNoSetting%s", what, kind, err, want)
				}
			}
		}
		if _, err := w.Explain(t.Context(), stored, "INTROSPECTION"); !errors.Is(err, ErrNoSetting) || !strings.HasSuffix(err.Error(), "that encrypts: INTROSPECTION") {
			t.Errorf("got %v for a kind that is signed only", err)
		}
	})
}

func TestSignedOnlyKindNeedsNoKeys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(withURI("down", uri))                          // no host answers
		w.register(withSet("refused", []byte(`{"keys":"none"}`))) // passed under other limits
		w.register(withSet("none", nil))
		for _, id := range []string{"down", "refused", "none"} {
			r, err := w.Recipient(t.Context(), issuer, id, "INTROSPECTION")
			if err != nil || r.Recipient != nil || r.Setting.SigningAlgorithm != "ES256" {
				t.Errorf("%s: got %+v, %v; want a setting without a recipient", id, r, err)
			}
			s, err := w.Setting(t.Context(), issuer, id, "INTROSPECTION")
			if err != nil || s.SigningAlgorithm != "ES256" {
				t.Errorf("%s: got %+v, %v", id, s, err)
			}
		}
		if got := w.hosts.count(uri); got != 0 {
			t.Errorf("%d fetches, want none", got)
		}
		w.mustRefuse("refused", ErrUnusable)
		w.mustRefuse("none", ErrUnusable)
		if s := w.status("refused"); s.State != NoUsableKey || s.Reason == "" {
			t.Errorf("got status %+v, want NoUsableKey", s)
		}
		if s := w.status("none"); s.State != NoUsableKey || s.Reason == "" {
			t.Errorf("got status %+v, want NoUsableKey", s)
		}
	})
}

func TestOneURLIsFetchedOnceForAllItsClients(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		for i := range 20 {
			w.register(withURI(fmt.Sprint("app-", i), uri))
		}
		for i := range 20 {
			w.mustUse(fmt.Sprint("app-", i))
		}
		w.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		w.sleep(10 * time.Minute)
		for i := range 20 {
			if r := w.mustUse(fmt.Sprint("app-", i)); kid(r) != "k2" {
				t.Errorf("app-%d got key %s, want k2", i, kid(r))
			}
		}
		if got := w.hosts.count(uri); got != 2 {
			t.Errorf("%d fetches, want 2", got)
		}
		if got := w.Stats(); got.Clients != 20 || got.KeySets != 1 || got.Bytes < 20*500 || got.Bytes > 20*1000+2000 {
			t.Errorf("got %+v", got)
		}
	})
}

func TestColdCallersShareOneReadAndOneFetch(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, slow(time.Second, fresh(set("k1"), 10*time.Minute)))
		w.register(withURI("app", uri))
		w.store.onGet = func(string) { time.Sleep(time.Second) }
		before, _, _ := w.store.counts()
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() {
				if _, err := w.recipient("app"); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if after, _, _ := w.store.counts(); after-before != 1 {
			t.Errorf("%d reads of the client, want 1", after-before)
		}
		if got := w.hosts.count(uri); got != 1 {
			t.Errorf("%d fetches, want 1", got)
		}
		if _, sets, _ := w.store.counts(); sets != 1 {
			t.Errorf("%d reads of the key set, want 1", sets)
		}
	})
}

func TestColdCallersOfAFailingHostShareOneFetch(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, hangs)
		w.register(withURI("app", uri))
		start := time.Now()
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() { w.mustRefuse("app", ErrUnavailable) })
		}
		callers.Wait()
		if got, took := w.hosts.count(uri), time.Since(start); got != 1 || took != 5*time.Second {
			t.Errorf("%d fetches in %v, want 1 in 5 s", got, took)
		}
	})
}

// TestColdCallersOnManyThreads is for the moments between the steps of a call,
// which a bubble does not show.
func TestColdCallersOnManyThreads(t *testing.T) {
	store := newMemStore()
	h := &hosts{answers: map[string]answer{}}
	c, err := New(Config{Store: store, Fetcher: h})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const clients, callers = 300, 8
	doc := set("k1")
	for i := range clients {
		u := fmt.Sprint(uri, i)
		h.answers[u] = down
		if i%2 == 0 {
			h.answers[u] = fresh(doc, time.Hour)
		}
		if _, err := store.Put(t.Context(), withURI(fmt.Sprint("app-", i), u), 0); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for i := range clients {
				_, err := c.Recipient(t.Context(), issuer, fmt.Sprint("app-", i), idToken)
				if i%2 == 0 && err != nil || i%2 == 1 && !errors.Is(err, ErrUnavailable) {
					t.Errorf("app-%d: got %v", i, err)
				}
			}
		})
	}
	all.Wait()
	for i := range clients {
		if got := h.count(fmt.Sprint(uri, i)); got != 1 {
			t.Errorf("%d fetches of one URL, want 1", got)
		}
	}
}

func TestUnknownClientIsRememberedForASecond(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for range 10 {
			w.mustRefuse("app", registry.ErrNotFound)
		}
		if reads, _, _ := w.store.counts(); reads != 1 {
			t.Errorf("%d reads, want 1", reads)
		}
		// Registered elsewhere: nobody tells us.
		reg := withSet("app", set("k1"))
		if _, err := w.store.Put(t.Context(), reg, 0); err != nil {
			t.Fatal(err)
		}
		w.mustRefuse("app", registry.ErrNotFound)
		w.sleep(time.Second)
		w.mustUse("app")
	})
}

func TestRegistrationIsSeenRightAfterAnUnknownLookUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.mustRefuse("app", registry.ErrNotFound)
		w.register(withSet("app", set("k1")))
		w.mustUse("app")
		w.register(tombstone("app"))
		w.mustRefuse("app", registry.ErrNotFound)
		w.register(withSet("app", set("k2")))
		if r := w.mustUse("app"); kid(r) != "k2" {
			t.Errorf("got key %s, want k2", kid(r))
		}
	})
}

func TestUnknownClientsAreBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i := range 3 * maxRefused {
			if _, err := w.recipient(fmt.Sprint("nobody-", i)); !errors.Is(err, registry.ErrNotFound) {
				t.Fatal(err)
			}
		}
		w.refused.CleanUp()
		if got := w.refused.EstimatedSize(); got > maxRefused {
			t.Errorf("%d remembered, want at most %d", got, maxRefused)
		}
	})
}

func TestLookUpRacingWithAChangeLeavesNothingBehind(t *testing.T) {
	for name, before := range map[string]registry.Registration{
		"registered before": withSet("app", set("old")),
		"unknown before":    tombstone("app"),
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.register(before)
			w.store.onGet = func(string) { time.Sleep(time.Second) }
			early := make(chan string)
			go func() {
				r, _ := w.recipient("app")
				early <- kid(r)
			}()
			synctest.Wait() // the look-up has read the old record
			w.store.edit(func(s *memStore) { s.onGet = nil })
			w.register(withSet("app", set("new")))
			if r := w.mustUse("app"); kid(r) != "new" {
				t.Errorf("%s: got key %q while an old look-up is under way, want new", name, kid(r))
			}
			<-early
			if r := w.mustUse("app"); kid(r) != "new" {
				t.Errorf("%s: got key %q after an old look-up has ended, want new", name, kid(r))
			}
			if _, ok := w.refused.GetIfPresent(clientKey{issuer, "app"}); ok {
				t.Errorf("%s: remembered as unknown", name)
			}
		})
	}
}

func TestChangeReachesEveryTokenKind(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("fetched"), 10*time.Minute))
		w.hosts.serve(uri+"2", fresh(set("elsewhere"), 10*time.Minute))
		pinned := withSet("app", set("a", "b"))
		for i := range pinned.Settings[:2] {
			pinned.Settings[i].KeyID = "b"
		}
		for _, step := range []struct {
			reg  registry.Registration
			want string
		}{
			{withSet("app", set("static")), "static"},
			{withURI("app", uri), "fetched"},
			{withURI("app", uri+"2"), "elsewhere"},
			{pinned, "b"},
		} {
			w.register(step.reg)
			for _, kind := range []registry.TokenKind{idToken, userinfo} {
				r, err := w.Recipient(t.Context(), issuer, "app", kind)
				if err != nil || kid(r) != step.want {
					t.Errorf("%s: got key %q, %v; want %s", kind, kid(r), err, step.want)
				}
			}
		}
		less := withSet("app", set("static"))
		less.Settings = less.Settings[:1]
		w.register(less)
		if _, err := w.Recipient(t.Context(), issuer, "app", userinfo); !errors.Is(err, ErrNoSetting) {
			t.Errorf("got %v for a kind that was taken away, want ErrNoSetting", err)
		}
	})
}

func TestLeavingCallerDoesNotFailOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, slow(time.Second, fresh(set("k1"), 10*time.Minute)))
		w.register(withURI("app", uri))
		w.store.onGet = func(string) { time.Sleep(time.Second) }
		for _, leaveAfter := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), leaveAfter)
			left, stayed := make(chan error, 1), make(chan error, 1)
			go func() {
				_, err := w.Recipient(ctx, issuer, "app", idToken)
				left <- err
			}()
			synctest.Wait()
			go func() {
				_, err := w.recipient("app")
				stayed <- err
			}()
			if err := <-left; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("who left got %v", err)
			}
			if err := <-stayed; err != nil {
				t.Errorf("who stayed got %v", err)
			}
			cancel()
			if got := w.hosts.count(uri); got != 1 {
				t.Errorf("%d fetches, want 1", got)
			}
			w.hosts.requests = nil
			w.store.edit(func(s *memStore) { clear(s.sets) })
			w.restart()
		}
	})
}

func TestRefreshBeginsAfterTheCall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, slow(3*time.Second, fresh(set("old"), 10*time.Minute)))
		reg := w.register(withURI("app", uri))
		cold := make(chan error)
		go func() {
			_, err := w.recipient("app")
			cold <- err
		}()
		w.sleep(time.Second) // that fetch is under way
		w.hosts.serve(uri, fresh(set("new"), 10*time.Minute))
		s, err := w.Refresh(t.Context(), reg)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-cold; err != nil {
			t.Fatal(err)
		}
		if len(s.Recipients) != 2 || s.Recipients[0].KeyID() != "new" || s.State != Ready {
			t.Errorf("got %+v, want the set of after the call", s)
		}
		if r := w.mustUse("app"); kid(r) != "new" {
			t.Errorf("got key %s, want new", kid(r))
		}
		if got := w.hosts.count(uri); got != 2 || w.hosts.overlap {
			t.Errorf("%d fetches, overlapping %v; want 2, one after the other", got, w.hosts.overlap)
		}
		if stored, _ := w.store.stored(uri); !strings.Contains(string(stored.Document), "new") {
			t.Error("the refresh was answered before its result was stored")
		}
	})
}

func TestRefreshIsLimitedForEachURL(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve("", fresh(set("k1"), 10*time.Minute))
		a, b, other := w.register(withURI("a", uri)), w.register(withURI("b", uri)), w.register(withURI("c", uri+"2"))
		refresh := func(reg *registry.Registration) error {
			_, err := w.Refresh(t.Context(), reg)
			return err
		}
		if err := refresh(a); err != nil {
			t.Fatal(err)
		}
		w.sleep(4 * time.Second)
		err := refresh(b)
		var limit *LimitError
		if !errors.Is(err, ErrLimited) || !errors.As(err, &limit) || limit.RetryAfter != 6*time.Second {
			t.Errorf("got %v, want a LimitError of 6 s", err)
		}
		if err := refresh(other); err != nil {
			t.Errorf("another URL: %v", err)
		}
		w.sleep(6 * time.Second)
		if err := refresh(b); err != nil {
			t.Errorf("after the limit: %v", err)
		}
		if got := w.hosts.count(uri); got != 2 {
			t.Errorf("%d fetches, want 2", got)
		}
		if err := refresh(w.register(withSet("static", set("k")))); !errors.Is(err, ErrNotRefreshable) {
			t.Errorf("got %v for keys that come from no URL, want ErrNotRefreshable", err)
		}
	})
}

func TestRefreshDoesNotWaitForThePauseAfterAFailure(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reg := w.register(withURI("app", uri))
		w.mustRefuse("app", ErrUnavailable)
		if _, err := w.Refresh(t.Context(), reg); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		w.sleep(10 * time.Second)
		w.hosts.serve(uri, fresh(set("k1"), time.Hour))
		if s, err := w.Refresh(t.Context(), reg); err != nil || s.State != Ready {
			t.Errorf("got %+v, %v; want Ready", s, err)
		}
		w.mustUse("app")

		w.sleep(10 * time.Second)
		w.hosts.serve(uri, down)
		if _, err := w.Refresh(t.Context(), reg); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		w.mustUse("app")
	})
}

func TestCheck(t *testing.T) {
	private := set("private-1")
	tests := map[string]struct {
		reg    registry.Registration
		answer answer
		want   error
	}{
		"good set":           {withSet("app", set("k1")), nil, nil},
		"good URL":           {withURI("app", uri), fresh(set("k1"), 0), nil},
		"private member":     {withSet("app", private), nil, jwks.ErrRejected},
		"not JSON":           {withSet("app", []byte("<html>")), nil, jwks.ErrRejected},
		"no usable key":      {withSet("app", set("sig-1")), nil, ErrUnusable},
		"no key source":      {withSet("app", nil), nil, registry.ErrInvalid},
		"URL, no usable key": {withURI("app", uri), fresh(set("sig-1"), 0), ErrUnusable},
		// What is wrong with an answer is not told apart from none.
		"URL, private member": {withURI("app", uri), fresh(private, 0), ErrUnavailable},
		"URL, not JSON":       {withURI("app", uri), fresh([]byte("<html>"), 0), ErrUnavailable},
		"URL, down":           {withURI("app", uri), down, ErrUnavailable},
		"URL, hanging":        {withURI("app", uri), hangs, ErrUnavailable},
	}
	for name, tc := range tests {
		inWorld(t, func(t *testing.T, w *world) {
			if tc.answer != nil {
				w.hosts.serve(uri, tc.answer)
			}
			start := time.Now()
			s, err := w.Check(t.Context(), &tc.reg)
			if !errors.Is(err, tc.want) {
				t.Fatalf("%s: got %v, want %v", name, err, tc.want)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("%s: took %v, want 5 s at most", name, took)
			}
			if err != nil {
				if f := (*FetchError)(nil); errors.As(err, &f) != errors.Is(tc.want, ErrUnavailable) {
					t.Errorf("%s: got %T", name, err)
				}
				return
			}
			if s.State != Ready || len(s.Recipients) != 2 || s.Recipients[1].KeyID() != "k1" {
				t.Errorf("%s: got %+v, want Ready with a key for two kinds", name, s)
			}
		})
	}
}

func TestCheckFetchesWithinTheCall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reg := withURI("app", uri)
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
		// Its owner repairs it and tries again at once.
		w.hosts.serve(uri, fresh(set("sig-1"), time.Hour))
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnusable) {
			t.Fatalf("got %v, want ErrUnusable", err)
		}
		w.hosts.serve(uri, fresh(set("k1"), time.Hour))
		if s, err := w.Check(t.Context(), &reg); err != nil || s.State != Ready {
			t.Fatalf("got %+v, %v; want Ready", s, err)
		}
		w.register(reg)
		w.mustUse("app")
		if stored, ok := w.store.stored(uri); !ok || len(stored.Document) == 0 {
			t.Error("the set that the check fetched was not kept")
		}
		w.hosts.serve(uri, down)
		w.restart()
		w.mustUse("app")
	})
}

func TestCheckTellsNothingOfAnOldSet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, down)
		w.sleep(25 * time.Hour)
		w.mustRefuse("app", ErrExpired)
		reg := withURI("other", uri)
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrExpired) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
	})
}

func TestLapsedCertificateIsRefusedOnlyAtRegistration(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(60 * day),
		}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		doc := document(map[string]any{
			"kty": "EC", "crv": "P-256", "kid": "k1", "use": "enc",
			"x":   base64.RawURLEncoding.EncodeToString(point[1:33]),
			"y":   base64.RawURLEncoding.EncodeToString(point[33:]),
			"x5c": []string{base64.StdEncoding.EncodeToString(der)},
		})
		w.hosts.serve(uri, fresh(doc, time.Hour))
		regs := []registry.Registration{withURI("fetched", uri), withSet("static", doc)}
		for _, reg := range regs {
			if _, err := w.Check(t.Context(), &reg); err != nil {
				t.Fatalf("%s: %v", reg.ClientID, err)
			}
			w.register(reg)
			if s := w.status(reg.ClientID); len(s.Warnings) != 0 {
				t.Errorf("%s: got warnings %q, want none", reg.ClientID, s.Warnings)
			}
		}
		w.sleep(31 * day)
		for _, reg := range regs {
			checked, err := w.Check(t.Context(), &reg)
			if err != nil {
				t.Fatalf("%s: %v", reg.ClientID, err)
			}
			w.mustUse(reg.ClientID)
			for _, s := range []*Status{checked, w.status(reg.ClientID)} {
				if s.State != Ready || len(s.Warnings) != 2 || !strings.Contains(s.Warnings[0], "in 29 days") {
					t.Errorf("%s: got %+v, want Ready with a warning for each kind that the end is near", reg.ClientID, s)
				}
			}
		}
		w.sleep(30 * day)
		for _, reg := range regs {
			if _, err := w.Check(t.Context(), &reg); !errors.Is(err, jwks.ErrKeyRejected) {
				t.Errorf("%s: got %v at a registration, want ErrKeyRejected", reg.ClientID, err)
			}
			if r := w.mustUse(reg.ClientID); kid(r) != "k1" {
				t.Errorf("%s: got key %s, want k1", reg.ClientID, kid(r))
			}
			s := w.status(reg.ClientID)
			if s.State != Ready || len(s.Warnings) != 2 || !strings.Contains(s.Warnings[0], "expired") {
				t.Errorf("%s: got %+v, want Ready with a warning for each kind", reg.ClientID, s)
			}
		}
	})
}

func TestEvictedSetComesBackFromTheStore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve("", fresh(set("k1"), 10*time.Hour))
		const many = 50
		use := func(i int) { w.mustUse(fmt.Sprint("app-", i)) }
		for i := range many {
			w.register(withURI(fmt.Sprint("app-", i), fmt.Sprint(uri, i)))
			use(i)
		}
		for range 3 {
			for i := range many {
				use(i)
			}
		}
		w.clients.CleanUp()
		if got := w.Stats(); got.Clients > 8 || got.KeySets > 8 {
			t.Errorf("got %+v, want at most 8 of each", got)
		} else if got.Bytes > 12<<10 {
			t.Errorf("got %+v, want at most 12 KiB", got)
		}
		for i := range many {
			if got := w.hosts.count(fmt.Sprint(uri, i)); got != 1 {
				t.Errorf("%d fetches of one URL, want 1", got)
			}
		}
	}, func(c *Config) { c.MaxMemory = 12 << 10 })
}

func TestSetsInUseAreEvictedLast(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve("", fresh(set("k1"), 10*time.Hour))
		w.register(withURI("busy", uri))
		w.mustUse("busy")
		busy := w.sources.get(uri)
		for i := range 1000 {
			w.sleep(61 * time.Second)
			w.mustUse("busy")
			reg := withURI("tried", fmt.Sprint(uri, i))
			if _, err := w.Check(t.Context(), &reg); err != nil {
				t.Fatal(err)
			}
		}
		if w.sources.get(uri) != busy {
			t.Error("sets that were only tried out have driven out one in use")
		}
	}, func(c *Config) { c.MaxMemory = 48 << 10 })
}

func TestRestartWhileTheHostIsDown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.hosts.serve(uri, hangs)

		w.restart()
		if r := w.mustUse("app"); kid(r) != "k1" || r.Stale {
			t.Errorf("got key %s, stale %v; want k1, fresh", kid(r), r.Stale)
		}
		w.sleep(time.Minute)
		if got := w.hosts.count(uri); got != 1 {
			t.Errorf("%d fetches of a set that is fresh, want 1", got)
		}
		w.sleep(20 * time.Minute)
		w.restart()
		if r := w.mustUse("app"); kid(r) != "k1" || !r.Stale {
			t.Errorf("got key %s, stale %v; want k1, stale", kid(r), r.Stale)
		}
		w.sleep(25 * time.Hour)
		w.restart()
		w.mustRefuse("app", ErrExpired)
	})
}

func TestStricterLimitsRefuseTheStoredSet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1", "k2", "k3"), time.Hour))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.cfg.Limits.MaxKeys = 2
		w.restart()
		w.mustRefuse("app", ErrUnavailable)
		if got := w.hosts.last(); got.ETag != "" {
			t.Errorf("asked with the validator of a set that is not in use: %+v", got)
		}
		w.hosts.serve(uri, fresh(set("k2"), time.Hour))
		w.sleep(10 * time.Second)
		w.mustUse("app")
	})
}

func TestSetThatCannotBeStoredIsServed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		w.store.edit(func(s *memStore) { s.failPutKeySet = registry.ErrUnavailable })
		w.mustUse("app")
		w.sleep(time.Hour)
		if w.mustUse("app").Stale {
			t.Error("not refreshed while the store cannot be written")
		}
		if _, ok := w.store.stored(uri); ok {
			t.Fatal("the store did not fail")
		}
		// Nor does it matter that the store cannot be read.
		w.store.edit(func(s *memStore) { s.failKeySet, s.failGet = registry.ErrUnavailable, registry.ErrUnavailable })
		w.sleep(time.Hour)
		if w.mustUse("app").Stale {
			t.Error("not refreshed while the store cannot be read")
		}
		w.mustRefuse("other", registry.ErrUnavailable)
		w.store.edit(func(s *memStore) { s.failKeySet, s.failGet, s.failPutKeySet = nil, nil, nil })
		w.sleep(10 * time.Minute)
		if _, ok := w.store.stored(uri); !ok {
			t.Error("not stored although the store has come back")
		}
	})
}

func TestHangingStoreIsUnavailable(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(withSet("app", set("k1")))
		w.store.onGet = func(string) { time.Sleep(time.Minute) }
		err := w.mustRefuse("app", registry.ErrUnavailable)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("the cache's own deadline looks like the caller's")
		}
		w.store.edit(func(s *memStore) { s.onGet, s.onKeySet = nil, func() { time.Sleep(time.Minute) } })
		w.register(withURI("app", uri))
		w.mustRefuse("app", registry.ErrUnavailable)
	})
}

func TestStoredSetIsTakenWithCare(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k2"), 10*time.Minute))
		w.register(withURI("app", uri))
		// Stored when the clock was years ahead.
		ahead := time.Now().Add(9999 * time.Hour)
		w.store.edit(func(s *memStore) {
			s.sets[uri] = registry.KeySet{URI: uri, Document: set("k1"), FetchedAt: ahead, FreshUntil: ahead.Add(time.Hour)}
		})
		w.mustUse("app")
		w.sleep(25 * time.Hour)
		if r := w.mustUse("app"); kid(r) != "k2" {
			t.Errorf("got key %s, want k2: the set is never refreshed", kid(r))
		}
		// Stored without the document that its validator is of.
		w.store.edit(func(s *memStore) { s.sets[uri] = registry.KeySet{URI: uri, ETag: `"1"`} })
		w.restart()
		w.mustUse("app")
		if got := w.hosts.last().ETag; got != "" {
			t.Errorf("asked with ETag %s for a set that we do not have", got)
		}
	})
}

func TestSetInDemandIsNotIdle(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(withURI("app", uri)) // no host answers
		w.mustRefuse("app", ErrUnavailable)
		src := w.sources.get(uri)
		for range 60 {
			w.sleep(time.Minute)
			w.mustRefuse("app", ErrUnavailable)
		}
		if w.sources.get(uri) != src {
			t.Error("a set was dropped as idle while callers asked for it")
		}
	}, func(c *Config) { c.IdleAfter = 10 * time.Minute })
}

func TestFetchThatIsNoLongerDueIsNotMade(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.register(withURI("app", uri))
		src, err := w.source(t.Context(), uri)
		if err != nil {
			t.Fatal(err)
		}
		other, err := w.source(t.Context(), "https://not.registered.yet/")
		if err != nil {
			t.Fatal(err)
		}
		w.sleep(time.Second)
		if w.sources.get(other.uri) != other {
			t.Error("what a caller is about to fetch was forgotten")
		}
		w.mustUse("app")
		w.refreshDue(t.Context(), src) // taken from the queue before that fetch
		if got := w.hosts.count(uri); got != 1 {
			t.Errorf("%d fetches, want 1", got)
		}
	})
}

func TestIncidentLeadsToTheLogAndTellsNothingElse(t *testing.T) {
	causes := map[string]error{
		"dns":     &fetch.Failure{Class: fetch.ClassDNS, Cause: &net.DNSError{Err: "no such host", Name: "intranet.local"}},
		"blocked": &fetch.Failure{Class: fetch.ClassBlockedAddress, Cause: errors.New("10.0.0.7 is private")},
		"timeout": &fetch.Failure{Class: fetch.ClassTimeout, Cause: context.DeadlineExceeded},
		"uri":     fmt.Errorf("%w: port 8443 is not allowed", fetch.ErrURI),
	}
	texts := make(map[string]bool)
	for name, cause := range causes {
		inWorld(t, func(t *testing.T, w *world) {
			w.hosts.serve(uri, func(context.Context, fetch.Request) (*fetch.Response, error) { return nil, cause })
			reg := withURI("app", uri)
			_, tried := w.Check(t.Context(), &reg)
			w.register(reg)
			w.sleep(5 * time.Second)
			for _, err := range []error{tried, w.mustRefuse("app", ErrUnavailable)} {
				var f *FetchError
				if !errors.As(err, &f) || len(f.ID) < 20 {
					t.Fatalf("%s: got %#v, want a FetchError with an id", name, err)
				}
				line := w.logs.find(f.ID)
				if line == nil || line["error"] != cause.Error() || line["jwks_uri"] != uri {
					t.Errorf("%s: the log has %v under incident %s, want the cause", name, line, f.ID)
				}
				texts[strings.ReplaceAll(err.Error(), f.ID, "")] = true
				for _, hidden := range []error{fetch.ErrFetch, fetch.ErrURI, context.DeadlineExceeded, cause} {
					if errors.Is(err, hidden) {
						t.Errorf("%s: %v shows in the error", name, hidden)
					}
				}
			}
			if s := w.status("app"); w.logs.find(strings.TrimSuffix(s.Reason[strings.LastIndex(s.Reason, " ")+1:], ")")) == nil {
				t.Errorf("%s: the incident in status %q is not in the log", name, s.Reason)
			}
		})
	}
	if len(texts) != 1 {
		t.Errorf("the texts tell causes apart: %v", texts)
	}
}

func TestExplain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		explain := func(reg *registry.Registration, kind registry.TokenKind) (*Explanation, error) {
			return w.Explain(t.Context(), reg, kind)
		}
		fetched, static := w.register(withURI("fetched", uri)), w.register(withSet("static", set("sig-1", "k1")))
		e, err := explain(static, idToken)
		if err != nil || len(e.Verdicts) != 2 || e.Verdicts[1].Outcome != jwks.Chosen || !e.FetchedAt.IsZero() {
			t.Errorf("got %+v, %v; want the second key chosen", e, err)
		}
		var f *FetchError
		if _, err := explain(fetched, idToken); !errors.Is(err, ErrUnavailable) || errors.As(err, &f) {
			t.Errorf("got %v before any fetch, want ErrUnavailable without an incident", err)
		}
		w.mustRefuse("fetched", ErrUnavailable)
		if _, err := explain(fetched, idToken); !errors.As(err, &f) || f.ID == "" {
			t.Errorf("got %v after a failed fetch, want an incident", err)
		}
		w.hosts.serve(uri, fresh(set("sig-1"), time.Hour))
		w.sleep(10 * time.Second)
		n := w.hosts.count(uri)
		e, err = explain(fetched, userinfo)
		if err != nil || len(e.Verdicts) != 1 || e.Verdicts[0].Outcome != jwks.Unfit || e.FetchedAt.IsZero() {
			t.Errorf("got %+v, %v; want one key that is unfit", e, err)
		}
		if got := w.hosts.count(uri); got != n {
			t.Error("it was fetched for an explanation")
		}
		for _, kind := range []registry.TokenKind{"INTROSPECTION", "OTHER"} {
			if _, err := explain(static, kind); !errors.Is(err, ErrNoSetting) {
				t.Errorf("%s: got %v, want ErrNoSetting", kind, err)
			}
		}
	})
}

func TestStatusLeavesNoTrace(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(withURI("app", uri))
		if s := w.status("app"); s.State != Failing || !strings.Contains(s.Reason, "not been fetched yet") {
			t.Errorf("got %+v, want Failing: not fetched yet", s)
		}
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.mustUse("app")
		now := time.Now()
		s := w.status("app")
		if s.State != Ready || !s.FetchedAt.Equal(now) || !s.ExpiresAt.Equal(now.Add(24*time.Hour+10*time.Minute)) ||
			s.NextRefreshAt.Before(now.Add(8*time.Minute)) || s.NextRefreshAt.After(now.Add(570*time.Second)) {
			t.Errorf("got %+v", s)
		}
		w.restart()
		if s := w.status("app"); s.State != Ready || !s.NextRefreshAt.Equal(now.Add(8*time.Minute)) {
			t.Errorf("got %+v from the store", s)
		}
		if got := w.Stats(); got.KeySets != 0 {
			t.Errorf("got %+v, want nothing in memory", got)
		}
	})
}

func TestClosedCacheServesWhatItHas(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 10*time.Minute))
		w.hosts.serve(uri+"2", hangs)
		w.register(withURI("app", uri))
		w.register(withURI("hanging", uri+"2"))
		w.mustUse("app")
		waiting := make(chan error)
		go func() {
			_, err := w.recipient("hanging")
			waiting <- err
		}()
		synctest.Wait()
		start := time.Now()
		go w.Close()
		if err := <-waiting; !errors.Is(err, ErrUnavailable) {
			t.Errorf("who waited got %v, want ErrUnavailable", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("Close took %v", took)
		}
		w.mustUse("app")
		w.mustRefuse("cold", ErrUnavailable)
		w.mustRefuse("hanging", ErrUnavailable)
		if stored, ok := w.store.stored(uri + "2"); ok {
			t.Errorf("a fetch that was cut short is on record: %+v", stored)
		}
	})
}
