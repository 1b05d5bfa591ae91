package signer

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
)

// testSecret is long enough for every algorithm.
const testSecret = "a client secret of sixty-four bytes, which is enough for HS512!!"

// kindClaims are good claims of each kind.
var kindClaims = map[TokenKind]string{
	IDToken:               `{"sub":"a","n":1.0}`,
	LogoutToken:           `{"sub":"a","sid":"s"}`,
	UserInfo:              `{"sub":"a","n":1.0}`,
	AuthorizationResponse: `{"code":"c","state":"s"}`,
	Introspection:         `{"token_introspection":{"active":true,"sub":"a"}}`,
	AccessToken:           `{"sub":"a","aud":"api","client_id":"` + testClient + `"}`,
}

// kindTypes are the typ of each kind; the others have none.
var kindTypes = map[TokenKind]string{
	IDToken: "JWT", LogoutToken: "logout+jwt", Introspection: "token-introspection+jwt", AccessToken: "at+jwt",
}

func newSecretKey(tb testing.TB, alg kms.Algorithm, secret string) *SigningKey {
	tb.Helper()
	k, err := NewSecretKey(alg, []byte(secret))
	if err != nil {
		tb.Fatalf("NewSecretKey: %v", err)
	}
	return k
}

func TestGoJoseVerifiesTokensSignedWithASecret(t *testing.T) {
	for _, alg := range kms.SecretAlgorithms() {
		key := newSecretKey(t, alg, testSecret)
		for kind, claims := range kindClaims {
			if !kind.ClientBound() {
				continue
			}
			p := mustPrepare(t, request(kind, claims), alg)
			token, err := Sign(t.Context(), key, p)
			if err != nil {
				t.Fatalf("%s, %s: Sign: %v", alg, kind, err)
			}
			jws, err := jose.ParseSignedCompact(string(token), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
			if err != nil {
				t.Fatalf("%s, %s: go-jose cannot read the token: %v", alg, kind, err)
			}
			payload, err := jws.Verify([]byte(testSecret))
			if err != nil || !bytes.Equal(payload, p.JSON()) {
				t.Errorf("%s, %s: go-jose verifies %s (%v), want %s", alg, kind, payload, err, p.JSON())
			}
			if _, err := jws.Verify([]byte(testSecret + "x")); err == nil {
				t.Errorf("%s, %s: another secret verifies the token", alg, kind)
			}
			header, _, _ := strings.Cut(string(token), ".")
			got, err := base64.RawURLEncoding.DecodeString(header)
			want := `{"alg":"` + string(alg) + `"}`
			if typ := kindTypes[kind]; typ != "" {
				want = `{"alg":"` + string(alg) + `","typ":"` + typ + `"}`
			}
			if err != nil || string(got) != want {
				t.Errorf("%s, %s: header is %s (%v), want %s: alg and typ and no kid", alg, kind, got, err, want)
			}
		}
		if key.KeyID() != "" || key.Algorithm() != alg {
			t.Errorf("%s: the key is %q for %s, want no kid", alg, key.KeyID(), key.Algorithm())
		}
		if err := key.Probe(t.Context()); err != nil {
			t.Errorf("%s: Probe = %v", alg, err)
		}
	}
}

// withHeader is a copy of the key that signs ID tokens with another header.
func withHeader(key *SigningKey, encoded string) *SigningKey {
	k := *key
	k.headers = maps.Clone(key.headers)
	k.headers[IDToken] = []byte(encoded + ".")
	return &k
}

func TestTheHMACExampleOfRFC7515(t *testing.T) {
	secret, err := base64.RawURLEncoding.DecodeString("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
	if err != nil {
		t.Fatal(err)
	}
	key := withHeader(newSecretKey(t, kms.HS256, string(secret)), "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9")
	payload := "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}"
	got, err := Sign(t.Context(), key, &Payload{kind: IDToken, algorithm: kms.HS256, json: []byte(payload)})
	const want = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." +
		"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ." +
		"dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	if err != nil || string(got) != want {
		t.Errorf("token is\n%s (%v), want that of appendix A.1\n%s", got, err, want)
	}
}

// Our token over the header and payload of a vector is the vector's, if and only
// if the vector is valid. The invalid ones are those that a signer could make:
// strict base64url, and an alg that is the key's. Two of the collection's
// invalid tokens (367 and 370) are, to the byte, its valid one 357.
func TestWycheproofHMACs(t *testing.T) {
	raw, err := fs.ReadFile(wycheproof.TestVectors, "json_web_signature_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		TestGroups []struct {
			Private struct{ Kty, Alg, K string }
			Tests   []struct {
				TcID        int
				Comment     string
				JWS, Result string
			}
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	var valid, invalid []int
	validTokens := make(map[string]bool)
	for _, g := range file.TestGroups {
		if g.Private.Kty != string(kms.Oct) {
			continue
		}
		secret, err := base64.RawURLEncoding.DecodeString(g.Private.K)
		if err != nil {
			t.Fatal(err)
		}
		alg := kms.Algorithm(g.Private.Alg)
		for _, tt := range g.Tests {
			parts := strings.Split(tt.JWS, ".")
			if len(parts) != 3 {
				continue
			}
			payload, err := base64.RawURLEncoding.Strict().DecodeString(parts[1])
			if err != nil {
				continue
			}
			var header struct{ Alg kms.Algorithm }
			text, err := base64.RawURLEncoding.Strict().DecodeString(parts[0])
			if err != nil || json.Unmarshal(text, &header) != nil || header.Alg != alg {
				continue
			}
			key := withHeader(newSecretKey(t, alg, string(secret)), parts[0])
			got, err := Sign(t.Context(), key, &Payload{kind: IDToken, algorithm: alg, json: payload})
			if err != nil {
				t.Errorf("%d %s: %v", tt.TcID, tt.Comment, err)
			}
			if tt.Result == "valid" {
				validTokens[tt.JWS] = true
			} else if validTokens[tt.JWS] {
				continue
			}
			if same := string(got) == tt.JWS; same != (tt.Result == "valid") {
				t.Errorf("%d %s (%s): our token is the vector's: %t", tt.TcID, tt.Comment, tt.Result, same)
			}
			if tt.Result == "valid" {
				valid = append(valid, tt.TcID)
			} else {
				invalid = append(invalid, tt.TcID)
			}
		}
	}
	if want := []int{1, 348, 352, 357, 358, 359, 376, 377}; !slices.Equal(valid, want) {
		t.Errorf("valid vectors %v were made, want %v", valid, want)
	}
	if len(invalid) < 10 {
		t.Errorf("only the invalid vectors %v were looked at", invalid)
	}
}

func TestHashClaimsFollowTheHMAC(t *testing.T) {
	// The first value is that of OpenID Connect Core 1.0, appendix A.3, with
	// SHA-256; openssl made the others.
	for alg, want := range map[kms.Algorithm]string{
		kms.HS256: "77QmUPtjPfzWtF2AnpK9RQ",
		kms.HS384: "jtAeDp945y1dDqU3nkIVGNZP1HjH_MFs",
		kms.HS512: "q7nS86GgvvFaZkzALLWqJYaJIKw2wCDAVfCAsm5CrBM",
	} {
		req := request(IDToken, `{"sub":"a"}`)
		req.AccessToken = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"
		if got := string(mustPrepare(t, req, alg).JSON()); !strings.Contains(got, `"at_hash":"`+want+`"`) {
			t.Errorf("%s: payload is %s, want at_hash %s", alg, got, want)
		}
	}
}

func TestASecretShorterThanTheHashIsRefused(t *testing.T) {
	for alg, least := range map[kms.Algorithm]int{kms.HS256: 32, kms.HS384: 48, kms.HS512: 64} {
		if _, err := NewSecretKey(alg, []byte(testSecret[:least])); err != nil {
			t.Errorf("%s: %d bytes: %v", alg, least, err)
		}
		for _, n := range []int{least - 1, 17, 0} {
			_, err := NewSecretKey(alg, []byte(testSecret[:n]))
			if !errors.Is(err, ErrSecretTooShort) {
				t.Errorf("%s: %d bytes: %v, want ErrSecretTooShort", alg, n, err)
			} else if strings.Contains(err.Error(), "17") || n > 0 && strings.Contains(err.Error(), testSecret[:n]) {
				t.Errorf("%s: %q tells of the secret", alg, err)
			}
		}
	}
	for _, alg := range append(kms.Algorithms(), "", "none", "HS1") {
		if _, err := NewSecretKey(alg, []byte(testSecret)); !errors.Is(err, kms.ErrKeyMismatch) {
			t.Errorf("a secret for %q: %v, want kms.ErrKeyMismatch", alg, err)
		}
	}
}

func TestASecretKeyKeepsItsOwnCopy(t *testing.T) {
	secret := []byte(testSecret)
	key, err := NewSecretKey(kms.HS256, secret)
	if err != nil {
		t.Fatal(err)
	}
	p := mustPrepare(t, request(IDToken, `{"sub":"a"}`), kms.HS256)
	before, err := Sign(t.Context(), key, p)
	if err != nil {
		t.Fatal(err)
	}
	clear(secret)
	after, err := Sign(t.Context(), key, p)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the caller wiped its secret, and the token became %s (%v)", after, err)
	}
}

func TestNothingOfASecretIsShown(t *testing.T) {
	key := newSecretKey(t, kms.HS512, testSecret)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", key, "inner", key.key)
	for _, v := range []any{key, *key, key.key} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			fmt.Fprintf(&log, verb, v)
		}
	}
	for _, form := range []string{testSecret, fmt.Sprintf("%x", testSecret), strings.Trim(fmt.Sprintf("%d", []byte(testSecret)), "[]"), base64.StdEncoding.EncodeToString([]byte(testSecret))} {
		if strings.Contains(log.String(), form[:20]) {
			t.Errorf("printing a key shows its secret: %s", log.String())
		}
	}

	if key.Public() != nil {
		t.Errorf("Public = %v, want none", key.Public())
	}
	for _, pub := range []crypto.PublicKey{nil, []byte(testSecret), key.key} {
		if print, err := Thumbprint(pub); err == nil {
			t.Errorf("a %T has the thumbprint %s: a secret could be guessed by it", pub, print)
		}
		for _, alg := range slices.Concat(kms.Algorithms(), kms.SecretAlgorithms()) {
			if jwk, err := PublicJWK(pub, alg); !errors.Is(err, kms.ErrKeyMismatch) {
				t.Errorf("a %T becomes the public JWK %s for %s (%v)", pub, jwk, alg, err)
			}
		}
	}
	oct := []byte(`{"kty":"oct","alg":"HS256","use":"sig","k":"` + base64.RawURLEncoding.EncodeToString([]byte(testSecret)) + `"}`)
	if _, _, err := ParsePublicJWK(oct, kms.HS256); !errors.Is(err, kms.ErrKeyMismatch) {
		t.Errorf("a symmetric JWK was read as a public one: %v", err)
	}
}

func TestNoBackendKeySignsWithASymmetricAlgorithm(t *testing.T) {
	soft := newSoftKey(t, kms.ES256)
	soft.alg = kms.HS256
	if _, err := NewSigningKey(soft, Options{}); !errors.Is(err, kms.ErrKeyMismatch) {
		t.Errorf("NewSigningKey = %v, want kms.ErrKeyMismatch", err)
	}
	if _, err := NewSigningKey(newSecretKey(t, kms.HS256, testSecret).key, Options{}); !errors.Is(err, kms.ErrKeyMismatch) {
		t.Errorf("NewSigningKey of a secret = %v, want kms.ErrKeyMismatch: its kid would be published", err)
	}
}

// A client that could sign access tokens could give itself any right.
func TestASecretSignsOnlyForItsClient(t *testing.T) {
	for _, alg := range kms.SecretAlgorithms() {
		if _, err := Prepare(request(AccessToken, kindClaims[AccessToken]), alg, testNow); !errors.Is(err, ErrSecretKind) {
			t.Errorf("an access token with %s: %v, want ErrSecretKind", alg, err)
		}
	}
}

func TestASecretKeyHonorsTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	key := newSecretKey(t, kms.HS256, testSecret)
	if _, err := Sign(ctx, key, mustPrepare(t, request(IDToken, `{"sub":"a"}`), kms.HS256)); !errors.Is(err, context.Canceled) {
		t.Errorf("Sign = %v, want context.Canceled", err)
	}
	if _, err := Sign(t.Context(), key, mustPrepare(t, request(IDToken, `{"sub":"a"}`), kms.HS512)); err == nil {
		t.Error("a payload for HS512 was signed with HS256")
	}
}

func BenchmarkSecretKeyForEachToken(b *testing.B) {
	p := mustPrepare(b, request(IDToken, benchClaims), kms.HS256)
	secret := []byte(testSecret)
	b.ReportAllocs()
	for b.Loop() {
		key, err := NewSecretKey(kms.HS256, secret)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Sign(b.Context(), key, p); err != nil {
			b.Fatal(err)
		}
	}
}
