package keycache

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// rsaKey is shared, as it takes long to make.
func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func block(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

// certificate is a certificate of key's public half, in DER.
func certificate(t *testing.T, key *ecdsa.PrivateKey, notAfter time.Time) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func withPEM(clientID string, text []byte, settings ...registry.Setting) registry.Registration {
	return registry.Registration{Issuer: issuer, ClientID: clientID, Source: registry.Source{PEM: text}, Settings: settings}
}

func TestPEMKeysOpenTheirTokens(t *testing.T) {
	rsaPrivate, ecPrivate := rsaKey(t, 2048), p256(t)
	spki, err := x509.MarshalPKIXPublicKey(&rsaPrivate.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	inWorld(t, func(t *testing.T, w *world) {
		der := certificate(t, ecPrivate, time.Now().Add(365*day))
		long, short := sha256.Sum256(der), sha1.Sum(der)
		x5tS256, x5t := base64.RawURLEncoding.EncodeToString(long[:]), base64.RawURLEncoding.EncodeToString(short[:])
		for id, tc := range map[string]struct {
			pem          []byte
			setting      registry.Setting
			key          any
			x5t          bool
			x5tS256Value any
			x5tValue     any
		}{
			"SPKI":            {block("PUBLIC KEY", spki), encrypts(idToken, "RSA-OAEP-256", "A256GCM"), rsaPrivate, false, nil, nil},
			"PKCS1":           {block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaPrivate.PublicKey)), encrypts(idToken, "RSA-OAEP", "A128CBC-HS256"), rsaPrivate, false, nil, nil},
			"certificate":     {block("CERTIFICATE", der), encrypts(idToken, "ECDH-ES+A256KW", "A256GCM"), ecPrivate, false, x5tS256, nil},
			"certificate,x5t": {block("CERTIFICATE", der), encrypts(idToken, "ECDH-ES+A256KW", "A256GCM"), ecPrivate, true, x5tS256, x5t},
		} {
			reg := withPEM(id, tc.pem, tc.setting)
			reg.X5T = tc.x5t
			checked, err := w.Check(t.Context(), &reg)
			if err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			stored := w.register(reg)
			r := w.mustUse(id)
			h := opened(t, r, tc.key)
			if h.ExtraHeaders["x5t#S256"] != tc.x5tS256Value || h.ExtraHeaders["x5t"] != tc.x5tValue || h.ExtraHeaders["iss"] != nil {
				t.Errorf("%s: got header %+v, want x5t#S256 %v and x5t %v", id, h, tc.x5tS256Value, tc.x5tValue)
			}
			for _, s := range []*Status{checked, w.status(id)} {
				if s.State != Ready || len(s.Recipients) != 1 || s.Recipients[0].Thumbprint != r.Thumbprint || len(r.Thumbprint) != 43 || !s.ExpiresAt.IsZero() {
					t.Errorf("%s: got %+v, want Ready", id, s)
				}
			}
			e, err := w.Explain(t.Context(), stored, idToken)
			if err != nil || len(e.Verdicts) != 1 || e.Verdicts[0].Outcome != jwks.Chosen {
				t.Errorf("%s: got %+v, %v; want the one key chosen", id, e, err)
			}
			if _, err := w.Refresh(t.Context(), stored); !errors.Is(err, ErrNotRefreshable) {
				t.Errorf("%s: got %v, want ErrNotRefreshable", id, err)
			}
		}
	})
}

func TestBadPEMIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		key := p256(t)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		setting := encrypts(idToken, "ECDH-ES", "A128GCM")
		for name, tc := range map[string]struct {
			pem     []byte
			setting registry.Setting
			want    error
		}{
			"private key":          {block("PRIVATE KEY", der), setting, jwks.ErrRejected},
			"no PEM":               {[]byte("ssh-ed25519 AAAA"), setting, jwks.ErrRejected},
			"lapsed certificate":   {block("CERTIFICATE", certificate(t, key, time.Now().Add(-time.Minute))), setting, jwks.ErrKeyRejected},
			"of another algorithm": {block("CERTIFICATE", certificate(t, key, time.Now().Add(365*day))), encrypts(idToken, "RSA-OAEP-256", "A128GCM"), ErrUnusable},
		} {
			reg := withPEM("app", tc.pem, tc.setting)
			if _, err := w.Check(t.Context(), &reg); !errors.Is(err, tc.want) {
				t.Errorf("%s: got %v, want %v", name, err, tc.want)
			}
		}
	})
}

func TestLogoutTokensAreEncryptedAsIDTokens(t *testing.T) {
	key := p256(t)
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(document(jwk(t, key, "k1")), time.Hour))
		secretKey := sha256.Sum256([]byte(clientSecret))
		spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		fetched, static := withURI("fetched", uri), withSet("static", document(jwk(t, key, "k1")))
		for _, tc := range []struct {
			reg registry.Registration
			key any
		}{
			{fetched, key},
			{static, key},
			{withPEM("pem", block("PUBLIC KEY", spki), encrypts(idToken, "ECDH-ES", "A128GCM")), key},
			{w.vault.withSecret("secret", clientSecret, time.Time{}, encrypts(idToken, "A256KW", "A128GCM")), secretKey[:]},
		} {
			id := tc.reg.ClientID
			if _, err := w.Check(t.Context(), &tc.reg); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			w.register(tc.reg)
			r, err := w.Recipient(t.Context(), issuer, id, registry.LogoutToken)
			if err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			idTokens := w.mustUse(id)
			if r.Setting != idTokens.Setting || r.Thumbprint != idTokens.Thumbprint || r.KeyID() != idTokens.KeyID() {
				t.Errorf("%s: got %+v, want the setting and key of ID tokens %+v", id, r, idTokens)
			}
			if h := opened(t, r, tc.key); h.ExtraHeaders["iss"] != iss {
				t.Errorf("%s: got header %+v, want iss %s", id, h, iss)
			}
			if h := opened(t, idTokens, tc.key); h.ExtraHeaders["iss"] != nil {
				t.Errorf("%s: got iss %v in the header of an ID token", id, h.ExtraHeaders["iss"])
			}
			s, err := w.Setting(t.Context(), issuer, id, registry.LogoutToken)
			if err != nil || s != idTokens.Setting {
				t.Errorf("%s: got setting %+v, %v; want that of ID tokens", id, s, err)
			}
		}
		// A change reaches both.
		w.register(withSet("static", set("k2")))
		for _, kind := range []registry.TokenKind{idToken, registry.LogoutToken} {
			if r, err := w.Recipient(t.Context(), issuer, "static", kind); err != nil || kid(r) != "k2" {
				t.Errorf("%s: got key %q, %v; want k2", kind, kid(r), err)
			}
		}
		w.register(tombstone("static"))
		if _, err := w.Recipient(t.Context(), issuer, "static", registry.LogoutToken); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("got %v for a client that was deleted, want ErrNotFound", err)
		}
		only := withSet("userinfo", set("k1"))
		only.Settings = only.Settings[1:]
		w.register(only)
		if _, err := w.Recipient(t.Context(), issuer, "userinfo", registry.LogoutToken); !errors.Is(err, ErrNoSetting) {
			t.Errorf("got %v for a client without a setting for ID tokens, want ErrNoSetting", err)
		}
	})
}

func TestLogoutTokenIsNotMadeWithoutItsIssuersURL(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reg := withSet("app", set("k1"))
		if _, err := w.Check(t.Context(), &reg); err != nil {
			t.Fatal(err)
		}
		w.register(reg)
		if _, err := w.Recipient(t.Context(), issuer, "app", registry.LogoutToken); !errors.Is(err, ErrUnusable) {
			t.Errorf("got %v, want ErrUnusable", err)
		}
		w.mustUse("app")
	}, func(c *Config) { c.IssuerURL = nil })
	inWorld(t, func(t *testing.T, w *world) {
		reg := withSet("app", set("k1"))
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), "LOGOUT_TOKEN") {
			t.Errorf("got %v, want a refusal for the sake of logout tokens", err)
		}
	}, func(c *Config) {
		c.IssuerURL = func(string) string { return "https://login.example.com/" + strings.Repeat("a", 3000) }
	})
}

// jwk is a key's public half.
func jwk(t *testing.T, key *ecdsa.PrivateKey, kid string) map[string]any {
	t.Helper()
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"kty": "EC", "crv": "P-256", "kid": kid, "use": "enc",
		"x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:]),
	}
}

func TestLegacyAlgorithmsAreForLegacyClients(t *testing.T) {
	key := rsaKey(t, 2048)
	text := block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&key.PublicKey))
	inWorld(t, func(t *testing.T, w *world) {
		for _, setting := range []registry.Setting{
			encrypts(idToken, "RSA1_5", "A128GCM"), encrypts(idToken, "RSA-OAEP", "A128CBC+HS256"), encrypts(idToken, "RSA1_5", "A128CBC+HS256"),
		} {
			reg := withPEM("app", text, setting)
			if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), "legacy") {
				t.Errorf("%+v: got %v for a client that is not registered as legacy, want ErrUnusable", setting, err)
			}
			w.register(reg)
			w.mustRefuse("app", ErrUnusable)

			reg.Legacy = true
			s, err := w.Check(t.Context(), &reg)
			if err != nil || len(s.Warnings) == 0 {
				t.Errorf("%+v: got %+v, %v; want it accepted with a warning", setting, s, err)
			}
			w.register(reg)
			r := w.mustUse("app")
			if setting.ContentEncryption == "A128GCM" {
				opened(t, r, key)
			} else if _, err := r.Encrypt([]byte(signedText)); err != nil {
				t.Error(err)
			}
		}
		reg := withPEM("app", text, encrypts(idToken, "RSA-OAEP-256", "A128CBC+HS256"))
		reg.Legacy = true
		if _, err := w.Check(t.Context(), &reg); !errors.Is(err, ErrUnusable) {
			t.Errorf("got %v for a pair that nothing opens, want ErrUnusable", err)
		}
	})
}

func TestBoundsOfAnIssuerOnRSAKeys(t *testing.T) {
	key := rsaKey(t, 3072)
	text := block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&key.PublicKey))
	for _, tc := range []struct {
		least, most int
		want        string // the end of the error's text; empty for none
	}{
		{0, 0, ""},
		{3072, 3072, ""},
		{3073, 0, "an RSA key of 3072 bits; allowed here: 3073 bits or more"},
		{3080, 4096, "an RSA key of 3072 bits; allowed here: 3080 to 4096 bits"},
		{0, 3071, "an RSA key of 3072 bits; allowed here: 2048 to 3071 bits"},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			reg := withPEM("app", text, encrypts(idToken, "RSA-OAEP-256", "A128GCM"))
			_, err := w.Check(t.Context(), &reg)
			w.register(reg)
			if tc.want == "" {
				if err != nil {
					t.Errorf("%d to %d bits: %v", tc.least, tc.most, err)
				}
				w.mustUse("app")
				return
			}
			if !errors.Is(err, ErrKeySize) || !errors.Is(err, jwks.ErrKeyRejected) || errors.Is(err, ErrUnusable) || !strings.HasSuffix(err.Error(), tc.want) {
				t.Errorf("%d to %d bits: got %v at registration, want ErrKeySize: %s", tc.least, tc.most, err, tc.want)
			}
			err = w.mustRefuse("app", ErrKeySize)
			if !errors.Is(err, ErrUnusable) || !strings.HasSuffix(err.Error(), tc.want) {
				t.Errorf("%d to %d bits: got %v, want ErrKeySize: %s", tc.least, tc.most, err, tc.want)
			}
			if s := w.status("app"); s.State != NoUsableKey || !strings.HasSuffix(s.Reason, tc.want) {
				t.Errorf("%d to %d bits: got %+v, want NoUsableKey with that text", tc.least, tc.most, s)
			}
		}, func(c *Config) {
			c.MinRSABits = func(string) int { return tc.least }
			c.MaxRSABits = func(string) int { return tc.most }
		})
	}
}

// TestKeySizeIsTheReasonOnlyWhereNothingElseIs goes by the keys of a set: those
// that would not fit do not count, those that no policy allows do.
func TestKeySizeIsTheReasonOnlyWhereNothingElseIs(t *testing.T) {
	rsaJWK := func(kid string, bits int, edit func(map[string]any)) map[string]any {
		n := bytes.Repeat([]byte{0xff}, bits/8) // its length is looked at first
		if bits >= encrypter.MinRSABits {
			n = rsaKey(t, bits).N.Bytes()
		}
		k := map[string]any{"kty": "RSA", "kid": kid, "use": "enc", "n": base64.RawURLEncoding.EncodeToString(n), "e": "AQAB"}
		if edit != nil {
			edit(k)
		}
		return k
	}
	for _, tc := range []struct {
		name string
		doc  []byte
		want bool
		text string
	}{
		{"two lengths", document(rsaJWK("a", 2048, nil), rsaJWK("b", 2056, nil)), true, "an RSA key of 2048 bits, an RSA key of 2056 bits; allowed here: 3072 bits or more"},
		{"others are for signatures", document(rsaJWK("a", 2048, nil), rsaJWK("b", 1024, func(k map[string]any) { k["use"] = "sig" })), true, "2048 bits; "},
		{"too short for any policy", document(rsaJWK("a", 1024, nil)), false, "less than the required 2048"},
		{"one is too short for any policy", document(rsaJWK("a", 2048, nil), rsaJWK("b", 1024, nil)), false, "less than the required 2048"},
		{"one is broken", document(rsaJWK("a", 2048, nil), rsaJWK("b", 2048, func(k map[string]any) { k["e"] = "AQ" })), false, "exponent"},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			reg := withSet("app", tc.doc)
			reg.Settings = []registry.Setting{encrypts(idToken, "RSA-OAEP-256", "A128GCM")}
			_, err := w.Check(t.Context(), &reg)
			if errors.Is(err, ErrKeySize) != tc.want || !errors.Is(err, jwks.ErrKeyRejected) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: got %v; want ErrKeySize: %v, and %q", tc.name, err, tc.want, tc.text)
			}
			w.register(reg)
			if err := w.mustRefuse("app", ErrUnusable); errors.Is(err, ErrKeySize) != tc.want {
				t.Errorf("%s: got %v; want ErrKeySize: %v", tc.name, err, tc.want)
			}
		}, func(c *Config) { c.MinRSABits = func(string) int { return 3072 } })
	}
}

func TestWarningsOfARegistration(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		key := p256(t)
		der := certificate(t, key, time.Now().Add(10*day))
		bare := jwk(t, key, "k1")
		delete(bare, "use")
		withX5T := withSet("x5t", set("k1"))
		withX5T.X5T = true
		ecdh := func(enc string) registry.Setting { return encrypts(idToken, "ECDH-ES", enc) }
		noUse := withSet("no use", document(bare))
		for _, tc := range []struct {
			reg  registry.Registration
			want []string // each a part of one warning, in order
		}{
			{withPEM("certificate", block("CERTIFICATE", der), ecdh("A128GCM")), []string{"ID_TOKEN: its certificate expires"}},
			{noUse, []string{"ID_TOKEN: ", "USERINFO: "}},
			{withX5T, []string{"ID_TOKEN: x5t", "USERINFO: x5t"}},
			{withPEM("512 bits", block("CERTIFICATE", certificate(t, key, time.Now().Add(365*day))), ecdh("A256CBC-HS512")), []string{"ID_TOKEN: ECDH-ES with A256CBC-HS512"}},
			{w.vault.withSecret("dir", clientSecret, time.Time{}, encrypts(idToken, "dir", "A128GCM")), []string{"ID_TOKEN: dir with A128GCM"}},
			{w.vault.withSecret("kw", clientSecret, time.Now().Add(10*day), encrypts(idToken, "A128KW", "A128GCM")), []string{"the client's secret expires"}},
			{w.vault.withSecret("fine", clientSecret, time.Now().Add(31*day), encrypts(idToken, "A128KW", "A128GCM")), nil},
		} {
			checked, err := w.Check(t.Context(), &tc.reg)
			if err != nil {
				t.Fatalf("%s: %v", tc.reg.ClientID, err)
			}
			w.register(tc.reg)
			standing := w.status(tc.reg.ClientID)
			if !slices.Equal(checked.Warnings, standing.Warnings) {
				t.Errorf("%s: got %q at registration and %q later", tc.reg.ClientID, checked.Warnings, standing.Warnings)
			}
			if !slices.EqualFunc(checked.Warnings, tc.want, strings.Contains) {
				t.Errorf("%s: got %q, want %q", tc.reg.ClientID, checked.Warnings, tc.want)
			}
		}
	})
}

func TestGeneratedKeysAreServedAsRegisteredOnes(t *testing.T) {
	public, private, err := jwks.Generate(jwks.KeySpec{Curve: "P-256", Algorithm: "ECDH-ES"})
	if err != nil {
		t.Fatal(err)
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(private); err != nil {
		t.Fatal(err)
	}
	inWorld(t, func(t *testing.T, w *world) {
		reg := withSet("app", public)
		reg.Source.Generated = true
		reg.Settings = reg.Settings[:1]
		s, err := w.Check(t.Context(), &reg)
		if err != nil || len(s.Warnings) != 0 {
			t.Fatalf("got %+v, %v; want no warnings", s, err)
		}
		w.register(reg)
		r := w.mustUse("app")
		if h := opened(t, r, key.Key); h.KeyID != key.KeyID || r.Thumbprint != key.KeyID {
			t.Errorf("got kid %q, thumbprint %q; want %q", h.KeyID, r.Thumbprint, key.KeyID)
		}
	})
}

func TestStatusOfAReasonOnReason(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.hosts.serve(uri, fresh(set("sig-1"), time.Hour))
		end := time.Now().Add(time.Hour)
		reg := w.vault.withSecret("app", clientSecret, end, encrypts(idToken, "A256KW", "A256GCM"), encrypts(userinfo, "ECDH-ES", "A128GCM"))
		reg.Source.JWKSURI = uri
		w.register(reg)
		if _, err := w.Recipient(t.Context(), issuer, "app", userinfo); !errors.Is(err, ErrUnusable) {
			t.Fatalf("got %v, want ErrUnusable", err)
		}
		if s := w.status("app"); s.State != NoUsableKey || len(s.Recipients) != 1 {
			t.Errorf("got %+v, want NoUsableKey with the key of the secret", s)
		}
		w.sleep(2 * time.Hour)
		s := w.status("app")
		if s.State != Expired || !s.Since.Equal(end) || !strings.Contains(s.Reason, "sig-1") || !strings.Contains(s.Reason, "; the client's secret expired at "+end.UTC().Format(time.RFC3339)) {
			t.Errorf("got %s, want Expired for both reasons", fmt.Sprintf("%+v", s))
		}
	})
}
