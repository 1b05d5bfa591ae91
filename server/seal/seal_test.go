package seal

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer"
)

// world is everything around a Sealer. It notes the order of what is asked of
// it.
type world struct {
	steps  []string
	events []audit.Event

	denied, recipientErr, settingErr, keyErr, signErr, auditErr, secretErr error

	policy *authz.Policy // of what is not denied
	stale  bool          // the registry

	setting registry.Setting
	secret  []byte
	client  *rsa.PrivateKey
	to      *encrypter.Recipient
	key     *ecdsa.PrivateKey
	signing *signer.SigningKey
}

func (w *world) step(name string) { w.steps = append(w.steps, name) }

func (w *world) Authorize(caller string, r authz.Request) (authz.Terms, error) {
	w.step("authorize " + string(r.Permission))
	if w.denied != nil {
		return authz.Terms{}, w.denied
	}
	return w.policy.Authorize(caller, r)
}

// kinds are those that grants of these tests cover, if they cover any.
var kinds = []string{"ID_TOKEN", "LOGOUT_TOKEN", "USERINFO", "ACCESS_TOKEN", "FUTURE_TOKEN"}

// grant lets the caller have tokens for some clients.
func grant(claims *authz.ClaimPolicy, clients ...string) authz.Grant {
	return authz.Grant{
		Caller: "caller", Allow: []authz.Permission{authz.Issue, authz.SignUnencrypted}, Issuers: []string{"main"},
		TokenKinds: kinds, Clients: clients, Claims: claims,
	}
}

// allow has these grants, and no others.
func (w *world) allow(t *testing.T, grants ...authz.Grant) {
	t.Helper()
	var err error
	if w.policy, err = authz.New(grants); err != nil {
		t.Fatal(err)
	}
}

func (w *world) Recipient(context.Context, string, string, registry.TokenKind) (keycache.Recipient, error) {
	w.step("recipient")
	return keycache.Recipient{Setting: w.setting, Recipient: w.to, Thumbprint: "thumb", RegistryStale: w.stale}, w.recipientErr
}

func (w *world) RegistryStale() bool { return w.stale }

func (w *world) Setting(context.Context, string, string, registry.TokenKind) (registry.Setting, error) {
	w.step("setting")
	return w.setting, w.settingErr
}

func (w *world) Key(_ string, alg kms.Algorithm) (*signer.SigningKey, error) {
	w.step("key " + string(alg))
	return w.signing, w.keyErr
}

func (w *world) Record(_ context.Context, e audit.Event) error {
	w.step("audit " + string(e.Outcome))
	w.events = append(w.events, e)
	return w.auditErr
}

func (w *world) SigningSecret(context.Context, string, string) ([]byte, error) {
	w.step("secret")
	return w.secret, w.secretErr
}

func (w *world) Stage(context.Context, Timing)  {}
func (w *world) Legacy(issuer, alg, enc string) { w.step("legacy " + issuer + " " + alg + " " + enc) }

// The world is the backend's key too.
func (w *world) Algorithm() kms.Algorithm { return kms.ES256 }
func (w *world) Public() crypto.PublicKey { return &w.key.PublicKey }
func (w *world) Sign(_ context.Context, message []byte) ([]byte, error) {
	w.step("sign")
	if w.signErr != nil {
		return nil, w.signErr
	}
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, w.key, digest[:])
	if err != nil {
		return nil, err
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), nil
}

// clientKey is the client's key in all tests: making one takes a while.
var clientKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newWorld(t *testing.T) (*world, *Sealer) {
	t.Helper()
	w := &world{setting: registry.Setting{Kind: "ID_TOKEN", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM"}}
	w.allow(t, grant(nil, "*"))
	var err error
	if w.client, err = clientKey(); err != nil {
		t.Fatal(err)
	}
	if w.to, err = encrypter.NewRecipient(encrypter.RecipientConfig{
		Key: &w.client.PublicKey, KeyID: "rp", Algorithm: encrypter.RSAOAEP256, ContentEncryption: encrypter.A256GCM,
	}); err != nil {
		t.Fatal(err)
	}
	if w.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if w.signing, err = signer.NewSigningKey(w, signer.Options{}); err != nil {
		t.Fatal(err)
	}
	i, err := issuer.New(issuer.Config{
		Name: "main", DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.ES256, kms.PS256},
		Token: signer.Issuer{URL: "https://login.example.com", DefaultLifetime: time.Minute, MaxLifetime: time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Issuers: issuer.NewDirectory(i), Authorizer: w, Recipients: w, Keys: w, Auditor: w, Observer: w,
		Reason: func(err error) string { return "reason: " + err.Error() },
	})
	if err != nil {
		t.Fatal(err)
	}
	return w, s
}

func request() Request {
	return Request{
		RPC: "/rpc", Caller: "caller", ClientID: "app", Kind: signer.IDToken, Claims: []byte(`{"sub":"alice"}`),
	}
}

func wantSteps(t *testing.T, w *world, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, w.steps); diff != "" {
		t.Errorf("the way of the token (-want +got):\n%s", diff)
	}
}

func TestTheWayOfAToken(t *testing.T) {
	w, s := newWorld(t)
	result, err := s.SignAndEncrypt(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	wantSteps(t, w, "authorize issue", "recipient", "key ES256", "sign", "audit issued")

	jwe, err := jose.ParseEncryptedCompact(result.Token, []jose.KeyAlgorithm{jose.RSA_OAEP_256}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := jwe.Decrypt(w.client)
	if err != nil {
		t.Fatalf("go-jose does not decrypt: %v", err)
	}
	jws, err := jose.ParseSignedCompact(string(inner), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jws.Verify(&w.key.PublicKey)
	if err != nil || !strings.Contains(string(claims), `"aud":"app"`) {
		t.Errorf("go-jose verifies %s, %v", claims, err)
	}
	e := w.events[0]
	if e.TokenSHA256 != sha256.Sum256([]byte(result.Token)) || e.EncryptionKeyThumbprint != "thumb" || e.SigningKeyID != w.signing.KeyID() ||
		e.Issuer != "main" || e.ClientID != "app" || e.Caller != "caller" || e.TokenKind != "ID_TOKEN" {
		t.Errorf("audit event %+v", e)
	}
}

// TestAResultSaysWhetherTheRegistryIsStale: of all tokens that a registration had
// a say in.
func TestAResultSaysWhetherTheRegistryIsStale(t *testing.T) {
	for _, stale := range []bool{false, true} {
		w, s := newWorld(t)
		w.stale = stale
		encrypted, err := s.SignAndEncrypt(t.Context(), request())
		if err != nil || encrypted.RegistryStale != stale {
			t.Errorf("an encrypted token: got stale %v, %v; want %v", encrypted.RegistryStale, err, stale)
		}
		w.setting = registry.Setting{Kind: "ID_TOKEN"}
		signed, err := s.Sign(t.Context(), request())
		if err != nil || signed.RegistryStale != stale {
			t.Errorf("a signed token: got stale %v, %v; want %v", signed.RegistryStale, err, stale)
		}
		access := request()
		access.Kind, access.ClientID, access.Claims = signer.AccessToken, "", []byte(`{"sub":"alice","aud":"api","client_id":"app"}`)
		unbound, err := s.Sign(t.Context(), access)
		if err != nil || unbound.RegistryStale {
			t.Errorf("a token that is bound to no client: got stale %v, %v; want false", unbound.RegistryStale, err)
		}
	}
}

// A failure costs no more than it must, and is on record.
func TestWhereATokenStops(t *testing.T) {
	broken := errors.New("broken")
	for _, test := range []struct {
		name  string
		set   func(*world, *Request)
		want  error
		steps []string
	}{
		{"denied", func(w *world, _ *Request) { w.denied = authz.ErrNotAllowed }, authz.ErrNotAllowed, []string{"authorize issue", "audit denied"}},
		{"unknown issuer", func(_ *world, r *Request) { r.Issuer = "nobody" }, issuer.ErrUnknown, []string{"authorize issue", "audit denied"}},
		{"unknown issuer, unknown caller", func(w *world, r *Request) { r.Issuer, w.denied = "nobody", authz.ErrCallerUnknown }, authz.ErrCallerUnknown, []string{"authorize issue", "audit denied"}},
		{"unknown client", func(w *world, _ *Request) { w.recipientErr = registry.ErrNotFound }, registry.ErrNotFound, []string{"authorize issue", "recipient", "audit failed"}},
		{"no key of the client", func(w *world, _ *Request) { w.recipientErr = keycache.ErrUnusable }, keycache.ErrUnusable, []string{"authorize issue", "recipient", "audit failed"}},
		{"signed-only client", func(w *world, _ *Request) { w.to = nil }, keycache.ErrNoSetting, []string{"authorize issue", "recipient", "audit failed"}},
		{"access token", func(_ *world, r *Request) { r.Kind = signer.AccessToken }, ErrSignedOnly, []string{"authorize issue", "audit failed"}},
		{"kind of later", func(_ *world, r *Request) { r.Kind = "FUTURE_TOKEN" }, signer.ErrKindUnsupported, []string{"authorize issue", "audit failed"}},
		{"algorithm without a key", func(_ *world, r *Request) { r.SigningAlgorithm = kms.RS256 }, issuer.ErrAlgorithm, []string{"authorize issue", "recipient", "audit failed"}},
		{"a secret that nobody registered to sign with", func(_ *world, r *Request) { r.SigningAlgorithm = kms.HS256 }, issuer.ErrAlgorithm, []string{"authorize issue", "recipient", "audit failed"}},
		{"no secret is kept", func(w *world, _ *Request) { w.setting.SigningAlgorithm, w.secretErr = "HS256", broken }, broken, []string{"authorize issue", "recipient", "secret", "audit failed"}},
		{"another algorithm than registered", func(w *world, r *Request) { w.setting.SigningAlgorithm, r.SigningAlgorithm = "PS256", "ES256" }, issuer.ErrAlgorithm, []string{"authorize issue", "recipient", "audit failed"}},
		{"key not open", func(w *world, _ *Request) { w.keyErr = broken }, broken, []string{"authorize issue", "recipient", "key ES256", "audit failed"}},
		{"bad claims", func(_ *world, r *Request) { r.Claims = []byte(`{}`) }, signer.ErrClaims, []string{"authorize issue", "recipient", "key ES256", "audit failed"}},
		{"signing fails", func(w *world, _ *Request) { w.signErr = kms.ErrUnavailable }, kms.ErrUnavailable, []string{"authorize issue", "recipient", "key ES256", "sign", "audit failed"}},
		{"audit fails", func(w *world, _ *Request) { w.auditErr = audit.ErrUnavailable }, audit.ErrUnavailable, []string{"authorize issue", "recipient", "key ES256", "sign", "audit issued"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, s := newWorld(t)
			req := request()
			test.set(w, &req)
			result, err := s.SignAndEncrypt(t.Context(), req)
			if !errors.Is(err, test.want) || result != nil {
				t.Errorf("got %v, %v, want %v and no token", result, err, test.want)
			}
			wantSteps(t, w, test.steps...)
			if e := w.events[len(w.events)-1]; !errors.Is(test.want, audit.ErrUnavailable) && e.Reason == "" {
				t.Errorf("audit event without a reason: %+v", e)
			}
		})
	}
}

func TestPlaintextIsNeverAFallback(t *testing.T) {
	for _, test := range []struct {
		name       string
		encrypted  bool
		settingErr error
		allow      bool
		want       error
	}{
		{"registered as signed only", false, nil, false, nil},
		{"registered for encryption", true, nil, false, ErrEncryptionRequired},
		{"registered for encryption, and allowed", true, nil, true, nil},
		{"says nothing of this kind", false, keycache.ErrNoSetting, false, ErrEncryptionRequired},
		{"says nothing of this kind, and allowed", false, keycache.ErrNoSetting, true, nil},
		{"unknown", false, registry.ErrNotFound, false, registry.ErrNotFound},
		{"unknown, and allowed", false, registry.ErrNotFound, true, registry.ErrNotFound},
		{"store down", false, registry.ErrUnavailable, false, registry.ErrUnavailable},
		{"store down, and allowed", false, registry.ErrUnavailable, true, registry.ErrUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, s := newWorld(t)
			w.settingErr = test.settingErr
			if !test.encrypted {
				w.setting = registry.Setting{Kind: "ID_TOKEN"}
			}
			req := request()
			req.AllowUnencrypted = test.allow
			result, err := s.Sign(t.Context(), req)
			if !errors.Is(err, test.want) || (err == nil) != (result != nil) {
				t.Errorf("got %v, %v, want %v", result, err, test.want)
			}
			permission := "authorize issue"
			if test.allow {
				permission = "authorize sign_unencrypted"
			}
			if w.steps[0] != permission {
				t.Errorf("asked for %q, want %q", w.steps[0], permission)
			}
			if err != nil && slices.Contains(w.steps, "sign") {
				t.Error("the key signed a token that was not to be")
			}
		})
	}
}

func TestAnAccessTokenNeedsNoClient(t *testing.T) {
	w, s := newWorld(t)
	req := request()
	req.Kind, req.ClientID, req.Claims = signer.AccessToken, "", []byte(`{"sub":"alice","aud":"api","client_id":"app"}`)
	if _, err := s.Sign(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, w, "authorize issue", "key ES256", "sign", "audit issued")
	if w.events[0].JTI == "" {
		t.Error("the jti is not on record")
	}
}

func TestAPolicyThatBecameStricterStopsARegisteredClient(t *testing.T) {
	w, s := newWorld(t)
	i, err := issuer.New(issuer.Config{
		Name: "main", DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.ES256},
		Encryption: []encrypter.KeyAlgorithm{encrypter.ECDHES},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Issuers = issuer.NewDirectory(i)
	if _, err := s.SignAndEncrypt(t.Context(), request()); !errors.Is(err, issuer.ErrAlgorithm) || !strings.Contains(fmt.Sprint(err), "ECDH-ES") {
		t.Errorf("got %v, want ErrAlgorithm that names what is allowed", err)
	}
	if slices.Contains(w.steps, "sign") {
		t.Error("the key signed")
	}
}

func TestARegisteredSecretSignsInsteadOfTheIssuersKey(t *testing.T) {
	w, s := newWorld(t)
	w.setting.SigningAlgorithm = "HS256"
	w.setting.EncryptionAlgorithm, w.setting.ContentEncryption = "", ""
	w.secret = []byte("thirty-two octets, which it takes")
	req := request()
	result, err := s.Sign(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	wantSteps(t, w, "authorize issue", "setting", "secret", "audit issued")
	if result.SigningKeyID != "" || result.SigningAlgorithm != kms.HS256 {
		t.Errorf("got kid %q and %s, want none and HS256", result.SigningKeyID, result.SigningAlgorithm)
	}
	signed, err := jose.ParseSignedCompact(result.Token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signed.Verify(w.secret); err != nil || signed.Signatures[0].Header.KeyID != "" {
		t.Errorf("go-jose: %v, kid %q", err, signed.Signatures[0].Header.KeyID)
	}
}

func TestLegacyAlgorithmsAreCounted(t *testing.T) {
	w, s := newWorld(t)
	i, err := issuer.New(issuer.Config{
		Name: "main", DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.ES256}, Legacy: true,
		Encryption: []encrypter.KeyAlgorithm{encrypter.RSA15},
		Token:      signer.Issuer{URL: "https://login.example.com", DefaultLifetime: time.Minute, MaxLifetime: time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Issuers = issuer.NewDirectory(i)
	if w.to, err = encrypter.NewRecipient(encrypter.RecipientConfig{
		Key: &w.client.PublicKey, Algorithm: encrypter.RSA15, ContentEncryption: encrypter.A256GCM,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SignAndEncrypt(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, w, "authorize issue", "recipient", "key ES256", "sign", "legacy main RSA1_5 A256GCM", "audit issued")
}

// A token that names another client in aud is worth something to that client:
// whoever may not issue for it cannot have it made in passing.
func TestEveryAudienceNeedsAGrant(t *testing.T) {
	for _, test := range []struct {
		claims string
		want   error
	}{
		{`{"sub":"alice","aud":"app"}`, nil},
		{`{"sub":"alice","aud":["app","friend"]}`, nil},
		{`{"sub":"alice","aud":["app","victim"]}`, authz.ErrClaimsNotAllowed},
		{`{"sub":"alice","aud":["victim","app"],"azp":"app"}`, authz.ErrClaimsNotAllowed},
	} {
		w, s := newWorld(t)
		w.allow(t, grant(nil, "app", "friend"))
		req := request()
		req.Claims = []byte(test.claims)
		if _, err := s.SignAndEncrypt(t.Context(), req); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.claims, err, test.want)
		}
		if test.want != nil && (slices.Contains(w.steps, "sign") || w.events[0].Outcome != audit.Denied) {
			t.Errorf("%s: steps %v, on record as %s", test.claims, w.steps, w.events[0].Outcome)
		}
	}
}
