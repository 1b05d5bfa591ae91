package e2e

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// header is the protected header of a token that is in no need of a key.
func header(t testing.TB, token string) map[string]any {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(token[:strings.IndexByte(token, '.')])
	if err != nil {
		t.Fatal(err)
	}
	var h map[string]any
	if err := json.Unmarshal(text, &h); err != nil {
		t.Fatal(err)
	}
	return h
}

// openWith decrypts a token by go-jose and verifies its inside: with secret if
// one is given, else with the issuer's published keys. It returns the claims.
func openWith(t testing.TB, s *harness.Service, token string, key any, secret []byte) map[string]any {
	t.Helper()
	h := header(t, token)
	alg, enc := jose.KeyAlgorithm(h["alg"].(string)), jose.ContentEncryption(h["enc"].(string))
	jwe, err := jose.ParseEncryptedCompact(token, []jose.KeyAlgorithm{alg}, []jose.ContentEncryption{enc})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := jwe.Decrypt(key)
	if err != nil {
		t.Fatalf("%s %s: %v", alg, enc, err)
	}
	if h["cty"] != "JWT" {
		t.Errorf("got cty %v, want JWT", h["cty"])
	}
	return verifyWith(t, s, string(inner), secret)
}

func verifyWith(t testing.TB, s *harness.Service, jws string, secret []byte) map[string]any {
	t.Helper()
	algorithms := []jose.SignatureAlgorithm{jose.ES256, jose.RS256}
	if secret != nil {
		algorithms = []jose.SignatureAlgorithm{jose.HS256, jose.HS384, jose.HS512}
	}
	signed, err := jose.ParseSignedCompact(jws, algorithms)
	if err != nil {
		t.Fatal(err)
	}
	var verifier any = secret
	if secret == nil {
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(signers(t, s), &set); err != nil {
			t.Fatal(err)
		}
		verifier = set
	}
	payload, err := signed.Verify(verifier)
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func pemBlock(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func spki(t testing.TB, pub any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return pemBlock("PUBLIC KEY", der)
}

// certificate makes a self-signed certificate of an RSA key.
func certificate(t testing.TB, key *rsa.PrivateKey, until time.Time) []byte {
	t.Helper()
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "client"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func withPEM(clientID, text string, settings ...*bullav1.ResponseSetting) *bullav1.RegisterClientKeyRequest {
	return &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: clientID, Settings: settings,
		KeySource: &bullav1.RegisterClientKeyRequest_PublicKeyPem{PublicKeyPem: text},
	}
}

func withSecret(clientID, secret string, settings ...*bullav1.ResponseSetting) *bullav1.RegisterClientKeyRequest {
	return &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: clientID, Settings: settings,
		KeySource: &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: secret},
	}
}

func withMetadata(clientID, doc string, settings ...*bullav1.ResponseSetting) *bullav1.RegisterClientKeyRequest {
	return &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: clientID, Settings: settings,
		KeySource: &bullav1.RegisterClientKeyRequest_ClientMetadata{ClientMetadata: []byte(doc)},
	}
}

func rsaPair(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestPublicKeysInPEM(t *testing.T) {
	t.Parallel()
	admin := shared.Caller(t, harness.Admin)
	rsaKey := rsaPair(t)
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		pem, alg string
		key      any
	}{
		"pem-spki-rsa": {spki(t, &rsaKey.PublicKey), "RSA-OAEP-256", rsaKey},
		"pem-pkcs1":    {pemBlock("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)), "RSA-OAEP", rsaKey},
		"pem-spki-ec":  {spki(t, &ecKey.PublicKey), "ECDH-ES+A256KW", ecKey},
	} {
		got := mustRegister(t, admin, withPEM(name, tc.pem, setting(tc.alg, "A256GCM")))
		if got.GetSource() != bullav1.KeySource_KEY_SOURCE_PUBLIC_KEY_PEM || got.GetState() != stateReady || len(got.GetChosenKeys()) != 1 {
			t.Errorf("%s: got %v", name, got)
		}
		token := mustIssue(t, admin, idToken(name)).GetToken()
		if claims := openWith(t, shared.Service, token, tc.key, nil); claims["aud"] != name {
			t.Errorf("%s: got the claims %v", name, claims)
		}
	}
}

func TestCertificateNamesItselfInTheHeader(t *testing.T) {
	t.Parallel()
	admin, key := shared.Caller(t, harness.Admin), rsaPair(t)
	der := certificate(t, key, time.Now().Add(90*24*time.Hour))
	sum1, sum256 := sha1.Sum(der), sha256.Sum256(der)
	for _, x5t := range []bool{false, true} {
		id := map[bool]string{false: "cert", true: "cert-x5t"}[x5t]
		req := withPEM(id, pemBlock("CERTIFICATE", der), setting("RSA-OAEP", "A128GCM"))
		req.X5T = x5t
		if got := mustRegister(t, admin, req); len(got.GetWarnings()) != 0 {
			t.Errorf("%s: got the warnings %v", id, got.GetWarnings())
		}
		token := mustIssue(t, admin, idToken(id)).GetToken()
		openWith(t, shared.Service, token, key, nil)
		h := header(t, token)
		if want := base64.RawURLEncoding.EncodeToString(sum256[:]); h["x5t#S256"] != want {
			t.Errorf("%s: got x5t#S256 %v, want %s", id, h["x5t#S256"], want)
		}
		want := any(nil)
		if x5t {
			want = base64.RawURLEncoding.EncodeToString(sum1[:])
		}
		if h["x5t"] != want {
			t.Errorf("%s: got x5t %v, want %v", id, h["x5t"], want)
		}
	}

	soon := mustRegister(t, admin, withPEM("cert-soon", pemBlock("CERTIFICATE", certificate(t, key, time.Now().Add(24*time.Hour))), setting("RSA-OAEP", "")))
	if !slices.ContainsFunc(soon.GetWarnings(), func(w string) bool { return strings.Contains(w, "certificate") }) {
		t.Errorf("a certificate that ends tomorrow: got the warnings %v", soon.GetWarnings())
	}
	_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withPEM("cert-over", pemBlock("CERTIFICATE", certificate(t, key, time.Now().Add(-time.Minute))), setting("RSA-OAEP", "")))
	mustFail(t, err, "KEY_REJECTED", "certificate")
	private := pemBlock("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withPEM("cert-private", private, setting("RSA-OAEP", "")))
	mustFail(t, err, "KEY_REJECTED", "private")
}

// leftmost is the key that a secret gives for an algorithm: OpenID Connect Core
// 1.0, section 10.2.
func leftmost(secret string, size int) []byte {
	switch {
	case size <= 32:
		sum := sha256.Sum256([]byte(secret))
		return sum[:size]
	case size <= 48:
		sum := sha512.Sum384([]byte(secret))
		return sum[:size]
	}
	sum := sha512.Sum512([]byte(secret))
	return sum[:size]
}

func TestClientSecretGivesTheKeys(t *testing.T) {
	t.Parallel()
	const secret = "a client secret of good length, for HS384 too: Zm9vYmFyYmF6"
	admin := shared.Caller(t, harness.Admin)
	for _, tc := range []struct {
		id, alg, enc, sign string
		size               int
	}{
		{"secret-a128kw", "A128KW", "A128CBC-HS256", "", 16},
		{"secret-a192kw", "A192KW", "A192GCM", "", 24},
		{"secret-a256kw", "A256KW", "A256CBC-HS512", "", 32},
		{"secret-a128gcmkw", "A128GCMKW", "A128GCM", "HS256", 16},
		{"secret-a256gcmkw", "A256GCMKW", "A256GCM", "", 32},
		{"secret-dir-32", "dir", "A128CBC-HS256", "HS384", 32},
		{"secret-dir-48", "dir", "A192CBC-HS384", "", 48},
		{"secret-dir-64", "dir", "A256CBC-HS512", "", 64},
		{"secret-dir-gcm", "dir", "A256GCM", "", 32},
	} {
		s := setting(tc.alg, tc.enc)
		s.SigningAlgorithm = tc.sign
		registered := mustRegister(t, admin, withSecret(tc.id, secret, s))
		if registered.GetSource() != bullav1.KeySource_KEY_SOURCE_CLIENT_SECRET || registered.GetState() != stateReady {
			t.Errorf("%s: got %v", tc.id, registered)
		}
		if chosen := registered.GetChosenKeys(); len(chosen) != 1 || chosen[0].GetThumbprint() != "" || chosen[0].GetKeyId() != "" {
			t.Errorf("%s: got the chosen keys %v: a hash of a secret's key must not be shown", tc.id, chosen)
		}
		var mac []byte
		if tc.sign != "" {
			mac = []byte(secret)
		}
		res := mustIssue(t, admin, idToken(tc.id))
		openWith(t, shared.Service, res.GetToken(), leftmost(secret, tc.size), mac)
		if (res.GetSigningKeyId() == "") != (tc.sign != "") {
			t.Errorf("%s: got the signing key id %q", tc.id, res.GetSigningKeyId())
		}
		again := mustRegister(t, admin, withSecret(tc.id, secret, s))
		if again.GetRevision() != registered.GetRevision() {
			t.Errorf("%s: the same secret again made revision %s of %s", tc.id, again.GetRevision(), registered.GetRevision())
		}
	}

	// Another secret is a replacement, at once.
	changed := withSecret("secret-a128kw", secret+"2", setting("A128KW", "A128CBC-HS256"))
	_, err := admin.ClientKeys.RegisterClientKey(t.Context(), changed)
	mustFail(t, err, "CLIENT_ALREADY_REGISTERED")
	changed.Revision = mustGet(t, admin, "secret-a128kw").GetRevision()
	mustRegister(t, admin, changed)
	openWith(t, shared.Service, mustIssue(t, admin, idToken("secret-a128kw")).GetToken(), leftmost(secret+"2", 16), nil)

	// What a secret cannot do.
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withSecret("secret-rsa", secret, setting("RSA-OAEP", "")))
	if err == nil {
		t.Error("RSA-OAEP with a secret alone was accepted")
	}
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS("no-secret", harness.JWKS(anyKey()), setting("A128KW", "")))
	mustBe(t, err, codes.InvalidArgument, "client_secret")
	hs := setting("ECDH-ES", "")
	hs.SigningAlgorithm = "HS256"
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS("no-secret", harness.JWKS(anyKey()), hs))
	mustBe(t, err, codes.InvalidArgument, "client_secret")
	short := setting("dir", "A128GCM")
	short.SigningAlgorithm = "HS512"
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withSecret("short-secret", "only thirty-two octets, not more", short))
	mustFail(t, err, "KEY_REJECTED", "64")
	req := idToken("secret-a192kw")
	req.SigningAlgorithm = "HS256"
	_, err = admin.Tokens.SignAndEncrypt(t.Context(), req)
	mustFail(t, err, "ALGORITHM_NOT_ALLOWED", "register")

	// The issuer's published keys have none of it.
	if bytes.Contains(signers(t, shared.Service), []byte(`"oct"`)) {
		t.Error("the JWKS has a symmetric key")
	}
}

func TestExpiredClientSecretIsRefused(t *testing.T) {
	t.Parallel()
	admin := shared.Caller(t, harness.Admin)
	until := time.Now().Add(4 * time.Second).Unix()
	doc, err := json.Marshal(map[string]any{
		"client_secret": "a secret that ends in a moment: 0123456789", "client_secret_expires_at": until,
		"id_token_encrypted_response_alg": "A256KW", "id_token_signed_response_alg": "ES256",
	})
	if err != nil {
		t.Fatal(err)
	}
	got := mustRegister(t, admin, withMetadata("secret-ends", string(doc)))
	if got.GetExpiresAt().AsTime().Unix() != until {
		t.Errorf("got expires_at %v, want %d", got.GetExpiresAt(), until)
	}
	mustIssue(t, admin, idToken("secret-ends"))
	harness.Eventually(t, func() error {
		_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("secret-ends"))
		if err == nil {
			return errorf("it is still taken")
		}
		mustFail(t, err, "CLIENT_KEYS_EXPIRED", "secret")
		return nil
	})
	if state := mustGet(t, admin, "secret-ends").GetState(); state != stateExpired {
		t.Errorf("got state %s, want EXPIRED", state)
	}
}

func TestGeneratedKeyIsHandedOutOnce(t *testing.T) {
	t.Parallel()
	admin := shared.Caller(t, harness.Admin)
	generate := func(id, revision string, edit func(*bullav1.GenerateClientKeyRequest)) (*bullav1.GenerateClientKeyResponse, error) {
		req := &bullav1.GenerateClientKeyRequest{
			Issuer: harness.Issuer, ClientId: id, Revision: revision,
			Settings: []*bullav1.ResponseSetting{setting("RSA-OAEP-256", "A256CBC-HS512")},
		}
		if edit != nil {
			edit(req)
		}
		return admin.ClientKeys.GenerateClientKey(t.Context(), req)
	}
	first, err := generate("gen-rsa", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(first.GetPrivateJwk()); err != nil || key.IsPublic() || key.Use != "enc" {
		t.Fatalf("the private JWK: %v", err)
	}
	if got := first.GetClientKey(); got.GetSource() != bullav1.KeySource_KEY_SOURCE_GENERATED || got.GetChosenKeys()[0].GetKeyId() != key.KeyID {
		t.Errorf("got %v", got)
	}
	token := mustIssue(t, admin, idToken("gen-rsa")).GetToken()
	openWith(t, shared.Service, token, key.Key, nil)

	_, err = generate("gen-rsa", "", nil)
	mustFail(t, err, "CLIENT_ALREADY_REGISTERED")
	second, err := generate("gen-rsa", first.GetClientKey().GetRevision(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var other jose.JSONWebKey
	if err := other.UnmarshalJSON(second.GetPrivateJwk()); err != nil || other.KeyID == key.KeyID {
		t.Fatalf("generated again: kid %q of %q, %v", other.KeyID, key.KeyID, err)
	}
	openWith(t, shared.Service, mustIssue(t, admin, idToken("gen-rsa")).GetToken(), other.Key, nil)

	for _, curve := range []string{"P-256", "P-384", "P-521", "X25519", "X448"} {
		id := "gen-" + curve
		res, err := generate(id, "", func(req *bullav1.GenerateClientKeyRequest) {
			req.KeySpec = &bullav1.GenerateClientKeyRequest_Curve{Curve: curve}
			req.Settings = []*bullav1.ResponseSetting{setting("ECDH-ES+A128KW", "A128GCM")}
		})
		if err != nil {
			t.Fatalf("%s: %v", curve, err)
		}
		if got := header(t, mustIssue(t, admin, idToken(id)).GetToken())["epk"].(map[string]any)["crv"]; got != curve {
			t.Errorf("got a token to %v, want %s", got, curve)
		}
		if curve == "X25519" {
			var jwk struct{ Crv, X, D string }
			if err := json.Unmarshal(res.GetPrivateJwk(), &jwk); err != nil {
				t.Fatal(err)
			}
			d, err := base64.RawURLEncoding.DecodeString(jwk.D)
			if err != nil {
				t.Fatal(err)
			}
			private, err := ecdh.X25519().NewPrivateKey(d)
			if err != nil || base64.RawURLEncoding.EncodeToString(private.PublicKey().Bytes()) != jwk.X {
				t.Errorf("x does not belong to d: %v", err)
			}
		}
	}
	_, err = generate("gen-bad", "", func(r *bullav1.GenerateClientKeyRequest) {
		r.KeySpec = &bullav1.GenerateClientKeyRequest_RsaBits{RsaBits: 1024}
	})
	mustFail(t, err, "ALGORITHM_NOT_ALLOWED", "2048")
	for _, tc := range []struct {
		edit func(*bullav1.GenerateClientKeyRequest)
		word string
	}{
		{func(r *bullav1.GenerateClientKeyRequest) {
			r.KeySpec = &bullav1.GenerateClientKeyRequest_Curve{Curve: "P-224"}
		}, "P-256"},
		{func(r *bullav1.GenerateClientKeyRequest) { r.Settings = nil }, "settings"},
	} {
		_, err := generate("gen-bad", "", tc.edit)
		mustBe(t, err, codes.InvalidArgument, tc.word)
	}
	_, err = shared.Caller(t, registrar).ClientKeys.GenerateClientKey(t.Context(), &bullav1.GenerateClientKeyRequest{
		Issuer: harness.Issuer, ClientId: "app-gen", Settings: []*bullav1.ResponseSetting{setting("RSA-OAEP-256", "")},
	})
	mustFail(t, err, "CALLER_NOT_ALLOWED", "generate_client_key")
}

func TestClientMetadataIsTakenAsTheProviderReceivedIt(t *testing.T) {
	t.Parallel()
	admin, key := shared.Caller(t, harness.Admin), harness.NewClientKey(t, "", "metadata-1")
	doc := `{"client_name":"an app","redirect_uris":["https://app.example.com/cb"],"grant_types":["authorization_code"],` +
		`"id_token_encrypted_response_alg":"RSA-OAEP","id_token_encrypted_response_enc":"A256CBC-HS512",` +
		`"userinfo_signed_response_alg":"ES256","jwks":` + string(harness.JWKS(key)) + `}`
	got := mustRegister(t, admin, withMetadata("metadata-1", doc))
	if got.GetSource() != bullav1.KeySource_KEY_SOURCE_JWKS || len(got.GetSettings()) != 2 {
		t.Fatalf("got %v", got)
	}
	res := mustIssue(t, admin, idToken("metadata-1"))
	openWith(t, shared.Service, res.GetToken(), key.Key, nil)
	if res.GetSigningAlgorithm() != "RS256" || res.GetContentEncryption() != "A256CBC-HS512" {
		t.Errorf("got %s, %s; want RS256, which the metadata leaves out, and A256CBC-HS512", res.GetSigningAlgorithm(), res.GetContentEncryption())
	}
	userinfo, err := admin.Tokens.Sign(t.Context(), &bullav1.SignRequest{
		Issuer: harness.Issuer, ClientId: "metadata-1", TokenKind: bullav1.TokenKind_TOKEN_KIND_USERINFO, Claims: []byte(`{"sub":"zoe"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	verifyWith(t, shared.Service, userinfo.GetToken(), nil)

	for doc, member := range map[string]string{
		`{"jwks":{"keys":[]},"jwks_uri":"https://app.example.com/jwks"}`:                                                                "jwks",
		`{"id_token_encrypted_response_enc":"A256GCM"}`:                                                                                 "id_token_encrypted_response_enc",
		`{"id_token_encrypted_response_alg":"RSA-OAEP"}`:                                                                                "id_token_encrypted_response_alg",
		`{"id_token_encrypted_response_alg":"dir"}`:                                                                                     "id_token_encrypted_response_alg",
		`{"id_token_signed_response_alg":"HS256","token_endpoint_auth_method":"none"}`:                                                  "id_token_signed_response_alg",
		`{"userinfo_encrypted_response_alg":7}`:                                                                                         "userinfo_encrypted_response_alg",
		`{"client_id":"another","jwks":` + string(harness.JWKS(key)) + `}`:                                                              "client_id",
		`{"authorization_encrypted_response_enc":"A128GCM","jwks":` + string(harness.JWKS(key)) + `}`:                                   "authorization_encrypted_response_enc",
		`{"introspection_encrypted_response_alg":"A128KW","jwks":` + string(harness.JWKS(key)) + `}`:                                    "introspection_encrypted_response_alg",
		`{"id_token_signed_response_alg":"none","id_token_encrypted_response_alg":"RSA-OAEP","jwks":` + string(harness.JWKS(key)) + `}`: "id_token_signed_response_alg",
	} {
		_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withMetadata("metadata-bad", doc))
		mustBe(t, err, codes.InvalidArgument, member)
	}

	// A client that has both: keys of its own to encrypt to, and a secret that
	// signs.
	const secret = "both a secret and keys, of fair length: 01234567"
	both := `{"client_secret":"` + secret + `","id_token_signed_response_alg":"HS256","id_token_encrypted_response_alg":"RSA-OAEP-256","jwks":` + string(harness.JWKS(key)) + `}`
	mustRegister(t, admin, withMetadata("metadata-2", both))
	openWith(t, shared.Service, mustIssue(t, admin, idToken("metadata-2")).GetToken(), key.Key, []byte(secret))
}
