package keycache

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

const clientSecret = "fUjXn2r5u8x-A_DGKaPdSgVkYp3s6v9y-B_E=H@McQeThWmZq4t7w!z%C*F)J@Nc"

// signedText is what tests enclose: three parts, like a signed token.
const signedText = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.AAAA"

func encrypts(kind registry.TokenKind, alg, enc string) registry.Setting {
	return registry.Setting{Kind: kind, EncryptionAlgorithm: alg, ContentEncryption: enc}
}

// opened decrypts what r makes with a key and returns its header.
func opened(t *testing.T, r Recipient, key any) jose.Header {
	t.Helper()
	token, err := r.Encrypt([]byte(signedText))
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := jose.ParseEncryptedCompact(token,
		[]jose.KeyAlgorithm{jose.KeyAlgorithm(r.Setting.EncryptionAlgorithm)}, []jose.ContentEncryption{jose.ContentEncryption(r.Setting.ContentEncryption)})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := jwe.Decrypt(key)
	if err != nil || string(plain) != signedText {
		t.Fatalf("%s %s: go-jose opens it to %q, %v", r.Setting.EncryptionAlgorithm, r.Setting.ContentEncryption, plain, err)
	}
	return jwe.Header
}

func TestSymmetricTokensOpenWithTheSecret(t *testing.T) {
	short, middle, long := sha256.Sum256([]byte(clientSecret)), sha512.Sum384([]byte(clientSecret)), sha512.Sum512([]byte(clientSecret))
	inWorld(t, func(t *testing.T, w *world) {
		for _, tc := range []struct {
			alg, enc string
			key      []byte
		}{
			{"A128KW", "A128GCM", short[:16]},
			{"A192KW", "A256CBC-HS512", short[:24]},
			{"A256KW", "A256GCM", short[:]},
			{"A128GCMKW", "A128CBC-HS256", short[:16]},
			{"A192GCMKW", "A192GCM", short[:24]},
			{"A256GCMKW", "A192CBC-HS384", short[:]},
			{"dir", "A128GCM", short[:16]},
			{"dir", "A192GCM", short[:24]},
			{"dir", "A256GCM", short[:]},
			{"dir", "A128CBC-HS256", short[:]},
			{"dir", "A192CBC-HS384", middle[:]},
			{"dir", "A256CBC-HS512", long[:]},
		} {
			id := tc.alg + " " + tc.enc
			reg := w.vault.withSecret(id, clientSecret, time.Time{}, encrypts(idToken, tc.alg, tc.enc))
			if _, err := w.Check(t.Context(), &reg); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			w.register(reg)
			for range 2 { // when it is opened, and from memory
				r := w.mustUse(id)
				if h := opened(t, r, tc.key); h.KeyID != "" || r.Thumbprint != "" || r.KeyID() != "" {
					t.Errorf("%s: got kid %q, thumbprint %q; want neither", id, h.KeyID, r.Thumbprint)
				}
				if r.Stale || !r.FetchedAt.IsZero() {
					t.Errorf("%s: got %+v", id, r)
				}
			}
		}
	})
}

func TestOneSettingBySecretAnotherByURL(t *testing.T) {
	key := sha256.Sum256([]byte(clientSecret))
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), time.Hour))
		reg := w.vault.withSecret("app", clientSecret, time.Time{}, encrypts(idToken, "A256KW", "A256GCM"), encrypts(userinfo, "ECDH-ES", "A128GCM"))
		reg.Source.JWKSURI = uri
		checked, err := w.Check(t.Context(), &reg)
		if err != nil {
			t.Fatal(err)
		}
		w.register(reg)
		for _, s := range []*Status{checked, w.status("app")} {
			if s.State != Ready || len(s.Recipients) != 2 || s.Recipients[0].Thumbprint != "" || s.Recipients[1].KeyID() != "k1" {
				t.Errorf("got %+v, want Ready with a key for two kinds", s)
			}
		}
		opened(t, w.mustUse("app"), key[:])
		if r, err := w.Recipient(t.Context(), issuer, "app", userinfo); err != nil || kid(r) != "k1" {
			t.Errorf("got key %q, %v; want k1", kid(r), err)
		}

		// Neither half waits for the other.
		w.vault.set(errors.New("the HSM is away"), 0)
		w.restart()
		if r, err := w.Recipient(t.Context(), issuer, "app", userinfo); err != nil || kid(r) != "k1" {
			t.Errorf("while secrets cannot be opened: got key %q, %v; want k1", kid(r), err)
		}
		w.mustRefuse("app", registry.ErrUnavailable)
		w.vault.set(nil, 0)
		w.hosts.serve(uri, down)
		w.sleep(3 * day)
		opened(t, w.mustUse("app"), key[:])
		if _, err := w.Recipient(t.Context(), issuer, "app", userinfo); !errors.Is(err, ErrExpired) {
			t.Errorf("got %v for keys that could not be refreshed, want ErrExpired", err)
		}
	})
}

func TestSecretIsOpenedOnceWhenItIsNeeded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		hmac := registry.Setting{Kind: "INTROSPECTION", SigningAlgorithm: "HS256"}
		w.register(w.vault.withSecret("app", clientSecret, time.Time{}, encrypts(idToken, "A128KW", "A128GCM"), hmac, registry.Setting{Kind: userinfo}))
		for _, kind := range []registry.TokenKind{"INTROSPECTION", userinfo} {
			if _, err := w.Setting(t.Context(), issuer, "app", kind); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Recipient(t.Context(), issuer, "app", kind); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.vault.count(); got != 0 {
			t.Errorf("opened %d times before anything needed it", got)
		}
		w.vault.set(nil, time.Second)
		var callers sync.WaitGroup
		for i := range 50 {
			callers.Go(func() {
				var err error
				if i%2 == 0 {
					_, err = w.recipient("app")
				} else {
					_, err = w.SigningSecret(t.Context(), issuer, "app")
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		w.mustUse("app")
		if got, err := w.SigningSecret(t.Context(), issuer, "app"); err != nil || string(got) != clientSecret {
			t.Errorf("got another secret, %v", err)
		}
		if got := w.vault.count(); got != 1 {
			t.Errorf("opened %d times, want once", got)
		}
	})
}

func TestSigningSecretIsForThoseWhoSignWithIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(w.vault.withSecret("encrypts", clientSecret, time.Time{}, encrypts(idToken, "A128KW", "A128GCM")))
		w.register(withSet("public", set("k1")))
		for _, id := range []string{"encrypts", "public"} {
			if got, err := w.SigningSecret(t.Context(), issuer, id); !errors.Is(err, ErrNoSetting) || got != nil {
				t.Errorf("%s: got %v, want ErrNoSetting", id, err)
			}
		}
		if _, err := w.SigningSecret(t.Context(), issuer, "nobody"); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
		if got := w.vault.count(); got != 0 {
			t.Errorf("a secret was opened for nothing")
		}
	})
}

func TestSecretThatCannotBeOpenedNowIsNotRemembered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reg := w.vault.withSecret("app", clientSecret, time.Time{}, encrypts(idToken, "A128KW", "A128GCM"), registry.Setting{Kind: userinfo, SigningAlgorithm: "HS256"})
		w.register(reg)
		for _, trouble := range []struct {
			fail error
			slow time.Duration
		}{{errors.New("the HSM at 10.0.0.7 is away"), 0}, {nil, time.Minute}} {
			w.vault.set(trouble.fail, trouble.slow)
			start := time.Now()
			err := w.mustRefuse("app", registry.ErrUnavailable)
			if _, signing := w.SigningSecret(t.Context(), issuer, "app"); !errors.Is(signing, registry.ErrUnavailable) {
				t.Errorf("got %v for the signing secret, want ErrUnavailable", signing)
			}
			if errors.Is(err, registry.ErrTampered) || errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v, want registry.ErrUnavailable alone", err)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %v, want 5 s at most for each", took)
			}
			s := w.status("app")
			if s.State != Failing || !strings.Contains(s.Reason, "secret") || strings.Contains(s.Reason, "10.0.0.7") || len(s.Recipients) != 0 {
				t.Errorf("got %+v, want Failing for the secret's sake", s)
			}
			if _, err := w.Check(t.Context(), &reg); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("got %v from a check, want ErrUnavailable", err)
			}
		}
		w.vault.set(nil, 0)
		w.mustUse("app")
		// From now on it stays.
		w.vault.set(errors.New("away again"), 0)
		w.mustUse("app")
		if _, err := w.SigningSecret(t.Context(), issuer, "app"); err != nil {
			t.Error(err)
		}
	})
}

func TestLeavingCallerDoesNotStopTheOpening(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.register(w.vault.withSecret("app", clientSecret, time.Time{}, encrypts(idToken, "A128KW", "A128GCM")))
		w.vault.set(nil, 2*time.Second)
		stayed := make(chan error)
		go func() {
			_, err := w.recipient("app")
			stayed <- err
		}()
		synctest.Wait()
		w.Close() // nobody waits longer than that
		if err := <-stayed; !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("who waited while the cache was closed got %v, want ErrUnavailable", err)
		}
		w.mustRefuse("app", ErrUnavailable)
	})
}

func TestExpiredSecretStopsOnlyWhatNeedsIt(t *testing.T) {
	key := sha256.Sum256([]byte(clientSecret))
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), 24*time.Hour))
		end := time.Now().Add(40 * day)
		reg := w.vault.withSecret("app", clientSecret, end,
			encrypts(idToken, "A256KW", "A256GCM"), encrypts(userinfo, "ECDH-ES", "A128GCM"), registry.Setting{Kind: "INTROSPECTION", SigningAlgorithm: "HS256"})
		reg.Source.JWKSURI = uri
		if s, err := w.Check(t.Context(), &reg); err != nil || len(s.Warnings) != 0 {
			t.Fatalf("got %+v, %v; want no warnings", s, err)
		}
		w.register(reg)
		w.register(w.vault.withSecret("alone", clientSecret, end, encrypts(idToken, "A256KW", "A256GCM")))
		if s := w.status("alone"); !s.ExpiresAt.Equal(end) || s.State != Ready {
			t.Errorf("got %+v, want Ready until %v", s, end)
		}
		if s := w.status("app"); !s.ExpiresAt.Equal(s.FetchedAt.Add(48 * time.Hour)) {
			t.Errorf("got %+v, want the end of the set, which comes first", s)
		}
		w.sleep(11 * day)
		if s := w.status("alone"); len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "in 29 days") {
			t.Errorf("got warnings %q, want one that the end is near", s.Warnings)
		}
		w.sleep(29*day - time.Second)
		opened(t, w.mustUse("app"), key[:])
		w.sleep(time.Second)

		for _, id := range []string{"app", "alone"} {
			err := w.mustRefuse(id, ErrExpired)
			var expired *SecretExpiredError
			if !errors.As(err, &expired) || !expired.ExpiredAt.Equal(end) || !strings.Contains(err.Error(), "register the client's new secret") {
				t.Errorf("%s: got %v, want a SecretExpiredError with advice", id, err)
			}
			if _, err := w.Recipient(t.Context(), issuer, id, registry.LogoutToken); !errors.Is(err, ErrExpired) {
				t.Errorf("%s: got %v for a logout token, want ErrExpired", id, err)
			}
		}
		if _, err := w.SigningSecret(t.Context(), issuer, "app"); !errors.Is(err, ErrExpired) {
			t.Errorf("got %v for the signing secret, want ErrExpired", err)
		}
		if r, err := w.Recipient(t.Context(), issuer, "app", userinfo); err != nil || kid(r) != "k1" {
			t.Errorf("got key %q, %v; want k1, which has nothing to do with the secret", kid(r), err)
		}
		s := w.status("app")
		if s.State != Expired || !s.Since.Equal(end) || !strings.Contains(s.Reason, "secret expired") || len(s.Recipients) != 1 || s.Recipients[0].Stale {
			t.Errorf("got %+v, want Expired, with the one key that goes on", s)
		}
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("got %v for a registration with a secret that has expired, want ErrInvalid", err)
		}
		e, err := w.Explain(t.Context(), &reg, idToken)
		if err != nil || e.Verdicts[1].Outcome != jwks.Unusable || !strings.Contains(e.Verdicts[1].Reason, "expired") {
			t.Errorf("got %+v, %v; want the secret unusable", e, err)
		}
		// A new secret is a new registration.
		w.register(w.vault.withSecret("app", clientSecret+"2", time.Time{}, reg.Settings[0]))
		again := sha256.Sum256([]byte(clientSecret + "2"))
		opened(t, w.mustUse("app"), again[:])
	})
}

func TestTamperedRegistrationIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.store.edit(func(s *memStore) { s.failGet = fmt.Errorf("reading app: %w", &registry.TamperedError{Revision: 7}) })
		for range 10 {
			err := w.mustRefuse("app", registry.ErrTampered)
			if errors.Is(err, registry.ErrNotFound) {
				t.Errorf("%v is ErrNotFound", err)
			}
			if _, err := w.Setting(t.Context(), issuer, "app", userinfo); !errors.Is(err, registry.ErrTampered) {
				t.Errorf("got %v for a setting, want ErrTampered", err)
			}
			if _, err := w.SigningSecret(t.Context(), issuer, "app"); !errors.Is(err, registry.ErrTampered) {
				t.Errorf("got %v for the signing secret, want ErrTampered", err)
			}
		}
		if reads, _, _ := w.store.counts(); reads != 1 {
			t.Errorf("%d reads, want 1", reads)
		}
		if got := w.logs.errors(); len(got) != 1 || !strings.Contains(got[0], "somebody changed the store") {
			t.Errorf("the log has %q, want one alarm", got)
		}
		s, err := w.Status(t.Context(), &registry.Registration{Issuer: issuer, ClientID: "app", Revision: 7, Tampered: true})
		if err != nil || s.State != NoUsableKey || !strings.Contains(s.Reason, "authentication") || len(s.Recipients) != 0 {
			t.Errorf("got %+v, %v; want NoUsableKey", s, err)
		}
		w.store.edit(func(s *memStore) { s.failGet = nil })
		w.register(withSet("app", set("k1")))
		w.mustUse("app")
	})
}

func TestSecretOfAnotherClientIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		settings := []registry.Setting{encrypts(idToken, "A128KW", "A128GCM"), {Kind: userinfo, SigningAlgorithm: "HS256"}}
		moved := w.vault.withSecret("other", clientSecret, time.Time{}, settings...)
		moved.ClientID = "app"
		w.register(moved)
		for range 2 {
			w.mustRefuse("app", registry.ErrTampered)
			if _, err := w.SigningSecret(t.Context(), issuer, "app"); !errors.Is(err, registry.ErrTampered) {
				t.Errorf("got %v for the signing secret, want ErrTampered", err)
			}
		}
		if got := w.vault.count(); got != 1 {
			t.Errorf("tried %d times, want once", got)
		}
		if got := w.logs.errors(); len(got) != 1 {
			t.Errorf("the log has %q, want one alarm", got)
		}
		if s := w.status("app"); s.State != NoUsableKey || !strings.Contains(s.Reason, "authentication") {
			t.Errorf("got %+v, want NoUsableKey", s)
		}
		if _, err := w.Check(t.Context(), &moved); !errors.Is(err, registry.ErrTampered) {
			t.Errorf("got %v from a check, want ErrTampered", err)
		}
	})
}

func TestTamperedKeySetCountsAsNeverFetched(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), time.Hour))
		w.register(withURI("app", uri))
		w.mustUse("app")
		w.store.edit(func(s *memStore) { s.failKeySet = registry.ErrTampered })
		w.restart()
		if r := w.mustUse("app"); kid(r) != "k1" || w.hosts.count(uri) != 2 || w.hosts.last().ETag != "" {
			t.Errorf("got key %s after %d fetches, want k1 after a whole second one", kid(r), w.hosts.count(uri))
		}
		if got := w.logs.errors(); len(got) == 0 || !strings.Contains(got[0], "key set refused") {
			t.Errorf("the log has %q, want an alarm", got)
		}
		w.hosts.serve(uri, down)
		w.restart()
		w.mustRefuse("app", ErrUnavailable)
	})
}

func TestWithoutSecretsOnlyTheSecretIsMissing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reg := w.vault.withSecret("app", clientSecret, time.Time{}, encrypts(idToken, "A128KW", "A128GCM"), encrypts(userinfo, "ECDH-ES", "A128GCM"))
		reg.Source.JWKS = set("k1")
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnusable) {
			t.Errorf("got %v, want ErrUnusable", err)
		}
		w.register(reg)
		w.mustRefuse("app", ErrUnusable)
		if _, err := w.Recipient(t.Context(), issuer, "app", userinfo); err != nil {
			t.Error(err)
		}
		if s := w.status("app"); s.State != NoUsableKey || len(s.Recipients) != 1 {
			t.Errorf("got %+v, want NoUsableKey with one key", s)
		}
	}, func(c *Config) { c.Secrets = nil })
}

func TestSettingsAndSourcesThatDoNotGoTogether(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1"), time.Hour))
		symmetric, asymmetric := encrypts(idToken, "A128KW", "A128GCM"), encrypts(idToken, "ECDH-ES", "A128GCM")
		hmac := registry.Setting{Kind: idToken, SigningAlgorithm: "HS256"}
		pinned := symmetric
		pinned.KeyID = "k1"
		secret := w.vault.withSecret("app", clientSecret, time.Time{}, symmetric).Source.Secret
		past := w.vault.withSecret("app", clientSecret, time.Now(), symmetric).Source.Secret
		tests := map[string]struct {
			source  registry.Source
			setting registry.Setting
			text    string // empty: it is accepted
		}{
			"secret for a symmetric alg":     {registry.Source{Secret: secret}, symmetric, ""},
			"URL for a public-key alg":       {registry.Source{JWKSURI: uri}, asymmetric, ""},
			"URL for a symmetric alg":        {registry.Source{JWKSURI: uri}, symmetric, "ID_TOKEN: A128KW takes the client's secret"},
			"secret for a public-key alg":    {registry.Source{Secret: secret}, asymmetric, "ID_TOKEN: ECDH-ES takes a public key"},
			"nothing for HS256":              {registry.Source{}, hmac, "ID_TOKEN: HS256 signs with the client's secret"},
			"URL for HS256":                  {registry.Source{JWKSURI: uri}, hmac, "ID_TOKEN: HS256 signs with the client's secret"},
			"pin of a derived key":           {registry.Source{Secret: secret}, pinned, "no kid to pin"},
			"secret that has expired":        {registry.Source{Secret: past}, symmetric, "expired already"},
			"nothing for a signed-only kind": {registry.Source{}, registry.Setting{Kind: idToken, SigningAlgorithm: "ES256"}, ""},
		}
		for name, tc := range tests {
			reg := registry.Registration{Issuer: issuer, ClientID: "app", Source: tc.source, Settings: []registry.Setting{tc.setting}}
			before := w.hosts.count(uri)
			_, err := w.Check(t.Context(), &reg)
			if tc.text == "" {
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			var invalid *registry.InvalidError
			if !errors.As(err, &invalid) || !strings.Contains(invalid.Problem, tc.text) {
				t.Errorf("%s: got %v, want an InvalidError that says %q", name, err, tc.text)
			}
			if w.hosts.count(uri) != before {
				t.Errorf("%s: the URL was fetched first", name)
			}
		}
	})
}

func TestExplainOfASecret(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("k1", "sig-1"), time.Hour))
		reg := w.vault.withSecret("app", clientSecret, time.Time{}, encrypts(idToken, "A128KW", "A128GCM"), encrypts(userinfo, "ECDH-ES", "A128GCM"))
		reg.Source.JWKSURI = uri
		stored := w.register(reg)

		explain := func(kind registry.TokenKind) []jwks.Verdict {
			t.Helper()
			e, err := w.Explain(t.Context(), stored, kind)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range e.Verdicts {
				if v.Key.Index != i {
					t.Errorf("%s: key %d has index %d", kind, i, v.Key.Index)
				}
			}
			return e.Verdicts
		}
		// Before the URL was ever fetched.
		if got := explain(idToken); len(got) != 1 || got[0].Outcome != jwks.Chosen {
			t.Errorf("got %+v, want the secret's alone", got)
		}
		if _, err := w.Explain(t.Context(), stored, userinfo); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v for the URL's, want ErrUnavailable", err)
		}
		if _, err := w.Refresh(t.Context(), stored); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []registry.TokenKind{idToken, registry.LogoutToken} {
			got := explain(kind)
			if len(got) != 3 || got[2].Outcome != jwks.Chosen || got[0].Outcome != jwks.Unfit || got[1].Outcome != jwks.Unfit {
				t.Fatalf("%s: got %+v, want the secret's chosen, and two that do not fit", kind, got)
			}
			if k := got[2].Key; k.Type != "oct" || k.Thumbprint != "" || k.KeyID != "" || got[2].Reason != "it is derived from the client's secret for A128KW" {
				t.Errorf("%s: got %+v, %q", kind, k, got[2].Reason)
			}
		}
		got := explain(userinfo)
		if len(got) != 3 || got[0].Outcome != jwks.Chosen || got[2].Outcome != jwks.Unfit || !strings.Contains(got[2].Reason, "takes a public key") {
			t.Errorf("got %+v, want the first chosen, and the secret's unfit", got)
		}
		if got := w.vault.count(); got != 1 { // by Refresh, for its status
			t.Errorf("the secret was opened %d times, want once: an explanation needs nothing of it", got)
		}
	})
}

// TestNothingOfASecretShows: a hash, a thumbprint or a part of a key that is
// derived from a secret lets the secret be guessed off line.
func TestNothingOfASecretShows(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reg := w.vault.withSecret("app", clientSecret, time.Now().Add(10*day), encrypts(idToken, "A256KW", "A128GCM"), registry.Setting{Kind: userinfo, SigningAlgorithm: "HS256"})
		status, err := w.Check(t.Context(), &reg)
		if err != nil {
			t.Fatal(err)
		}
		stored := w.register(reg)
		explained, err := w.Explain(t.Context(), stored, idToken)
		if err != nil {
			t.Fatal(err)
		}
		if s := w.status("app"); len(s.Recipients) != 1 || w.remembered(stored) == nil {
			t.Fatalf("got %+v, want one key, remembered", s)
		}
		recipient := w.mustUse("app")
		token, err := recipient.Encrypt([]byte(signedText))
		if err != nil {
			t.Fatal(err)
		}
		header, _, _ := strings.Cut(token, ".")
		plain, err := base64.RawURLEncoding.DecodeString(header)
		if err != nil {
			t.Fatal(err)
		}
		var shown []string
		for _, v := range explained.Verdicts {
			shown = append(shown, fmt.Sprintf("%+v", *v.Key), v.Reason)
		}
		text, err := json.Marshal(status)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, fmt.Sprintf("%+v", *w.remembered(stored)), string(text), fmt.Sprintf("%+v", *status), string(plain), recipient.Thumbprint, w.logs.lines.String())
		all := strings.Join(shown, "\n")

		key := sha256.Sum256([]byte(clientSecret))
		thumbprint := sha256.Sum256(fmt.Appendf(nil, `{"k":%q,"kty":"oct"}`, base64.RawURLEncoding.EncodeToString(key[:]))) // RFC 7638, section 3.2
		twice := sha256.Sum256(key[:])
		for what, hidden := range map[string][]byte{"the key": key[:], "its thumbprint": thumbprint[:], "its hash": twice[:]} {
			for _, form := range []string{fmt.Sprintf("%x", hidden[:8]), base64.RawURLEncoding.EncodeToString(hidden[:9]), base64.StdEncoding.EncodeToString(hidden[:9]), fmt.Sprintf("%d", hidden[:6])[1:]} {
				if strings.Contains(all, strings.TrimSuffix(form, "]")) {
					t.Errorf("%s shows as %q in:\n%s", what, form, all)
				}
			}
		}
		if strings.Contains(all, clientSecret[:8]) {
			t.Errorf("the secret shows in:\n%s", all)
		}
	})
}

func TestKeysAreWipedAfterUse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reg := w.vault.withSecret("app", clientSecret, time.Time{}, encrypts(idToken, "dir", "A128GCM"))
		m, err := w.vault.keeper().Open(t.Context(), &reg)
		if err != nil {
			t.Fatal(err)
		}
		w.cfg.Secrets = handsOut{m}
		w.restart()
		w.register(reg)
		key := sha256.Sum256([]byte(clientSecret))
		opened(t, w.mustUse("app"), key[:16])
		if slices.ContainsFunc(m.Keys[16], func(b byte) bool { return b != 0 }) {
			t.Error("the key that was handed out is still in memory")
		}
	})
}

func TestSecretIsInMemoryOnceOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		stored := w.register(w.vault.withSecret("app", clientSecret, time.Time{},
			registry.Setting{Kind: idToken, SigningAlgorithm: "HS256", EncryptionAlgorithm: "A128KW", ContentEncryption: "A128GCM"}))
		for _, kind := range []registry.TokenKind{idToken, registry.LogoutToken} {
			if _, err := w.Recipient(t.Context(), issuer, "app", kind); err != nil {
				t.Fatal(err)
			}
		}
		cl, ok := w.clients.GetIfPresent(clientKey{issuer, "app"})
		if !ok {
			t.Fatal("not in memory")
		}
		if cl.secret.opened.Load().signing == nil || cl.secret.sealed.Load() != nil {
			t.Error("want the secret in memory, and its sealed form no longer")
		}

		// A status has no use for the secret itself.
		m, err := w.vault.keeper().Open(t.Context(), stored)
		if err != nil {
			t.Fatal(err)
		}
		w.cfg.Secrets = handsOut{m}
		w.restart()
		if s := w.status("app"); s.State != Ready {
			t.Errorf("got %+v, want Ready", s)
		}
		if slices.ContainsFunc(m.Secret, func(b byte) bool { return b != 0 }) {
			t.Error("a status leaves the secret in memory")
		}
	})
}

func TestChangeOfSecretIsSeenByEveryKind(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		settings := []registry.Setting{encrypts(idToken, "A256KW", "A256GCM"), {Kind: userinfo, SigningAlgorithm: "HS256"}}
		for i := range 3 {
			secret := make([]byte, 48)
			_, _ = rand.Read(secret)
			text := base64.StdEncoding.EncodeToString(secret)
			w.register(w.vault.withSecret("app", text, time.Time{}, settings...))
			key := sha256.Sum256([]byte(text))
			opened(t, w.mustUse("app"), key[:])
			r, err := w.Recipient(t.Context(), issuer, "app", registry.LogoutToken)
			if err != nil {
				t.Fatal(err)
			}
			opened(t, r, key[:])
			if got, err := w.SigningSecret(t.Context(), issuer, "app"); err != nil || string(got) != text {
				t.Errorf("change %d: got an old secret, %v", i, err)
			}
		}
	})
}
