package metadata_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/metadata"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// curity is the registration of a client of the Curity Identity Server that
// gets encrypted ID tokens: RSA-OAEP, A256CBC-HS512 and the key inline, among
// members that are not about keys. The key is that of RFC 7638, section 3.1.
const curity = `{
  "application_type": "web",
  "client_name": "Encrypted ID Token Client",
  "grant_types": ["authorization_code", "refresh_token"],
  "redirect_uris": ["https://client.example.com/callback"],
  "requestable_claims": {"given_name": null},
  "require_proof_key": true,
  "scope": "openid profile",
  "token_endpoint_auth_method": "client_secret_basic",
  "id_token_encrypted_response_alg": "RSA-OAEP",
  "id_token_encrypted_response_enc": "A256CBC-HS512",
  "jwks": ` + set + `
}`

const set = `{ "keys": [ {
    "kty": "RSA", "use": "enc", "kid": "1599128447", "e": "AQAB",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
  } ] }`

const secret = "ZJYCqe3GGRvdrudKyZS0XhGv_Z45DuKhCUk0gBR1vZk"

// object is a JSON object of members given as name and raw JSON value.
func object(pairs ...string) []byte {
	var list []string
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, fmt.Sprintf("%q:%s", pairs[i], pairs[i+1]))
	}
	return []byte("{" + strings.Join(list, ",") + "}")
}

func parse(t *testing.T, document []byte) *metadata.Client {
	t.Helper()
	c, err := metadata.Parse(document)
	if err != nil {
		t.Fatalf("%s: %v", document, err)
	}
	return c
}

func TestCurityExample(t *testing.T) {
	got := parse(t, []byte(curity))
	want := &metadata.Client{
		JWKS: []byte(set),
		Settings: []registry.Setting{
			{Kind: "ID_TOKEN", EncryptionAlgorithm: "RSA-OAEP", ContentEncryption: "A256CBC-HS512"},
		},
		RS256ByDefault: []registry.TokenKind{"ID_TOKEN"},
	}
	if diff := diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	keys, err := jwks.Parse(got.JWKS, jwks.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := keys.Choose(jwks.Want{Algorithm: encrypter.KeyAlgorithm(got.Settings[0].EncryptionAlgorithm)})
	if err != nil || k.KeyID != "1599128447" {
		t.Errorf("chose %v, %v", k, err)
	}
}

// diff compares two clients but for their secrets. go-cmp would otherwise print
// what String gives.
func diff(want, got *metadata.Client) string {
	type plain metadata.Client
	a, b := plain(*want), plain(*got)
	return cmp.Diff(a, b, cmpopts.IgnoreUnexported(plain{}))
}

// TestExampleOfTheStandard is the request of OpenID Connect Dynamic Client
// Registration 1.0, section 3.1.
func TestExampleOfTheStandard(t *testing.T) {
	got := parse(t, []byte(`{
   "application_type": "web",
   "redirect_uris":
     ["https://client.example.org/callback",
      "https://client.example.org/callback2"],
   "client_name": "My Example",
   "client_name#ja-Jpan-JP":
     "クライアント名",
   "logo_uri": "https://client.example.org/logo.png",
   "subject_type": "pairwise",
   "sector_identifier_uri":
     "https://other.example.net/file_of_redirect_uris.json",
   "token_endpoint_auth_method": "client_secret_basic",
   "jwks_uri": "https://client.example.org/my_public_keys.jwks",
   "userinfo_encrypted_response_alg": "RSA-OAEP-256",
   "userinfo_encrypted_response_enc": "A128CBC-HS256",
   "contacts": ["ve7jtb@example.org", "mary@example.org"],
   "request_uris":
     ["https://client.example.org/rf.txt#qpXaRLh_n93TTR9F252ValdatUQvQiJi5BDub2BeznA"]
  }`))
	want := &metadata.Client{
		JWKSURI: "https://client.example.org/my_public_keys.jwks",
		Settings: []registry.Setting{
			{Kind: "ID_TOKEN"},
			{Kind: "USERINFO", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A128CBC-HS256"},
		},
		RS256ByDefault: []registry.TokenKind{"ID_TOKEN"},
		Warnings:       []string{"userinfo_signed_response_alg is missing: what is encrypted is signed first, here with the issuer's default algorithm"},
	}
	if diff := diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestEveryKindOfToken has a stored registration with all members.
func TestEveryKindOfToken(t *testing.T) {
	got := parse(t, object(
		"client_id", `"s6BhdRkqt3"`,
		"client_secret", `"`+secret+`"`,
		"client_secret_expires_at", `1893456000`,
		"client_id_issued_at", `1577858400`,
		"token_endpoint_auth_method", `"private_key_jwt"`,
		"jwks_uri", `"https://client.example.org/jwks"`,
		"id_token_signed_response_alg", `"HS256"`,
		"id_token_encrypted_response_alg", `"A256KW"`,
		"id_token_encrypted_response_enc", `"A256GCM"`,
		"userinfo_signed_response_alg", `"ES256"`,
		"authorization_signed_response_alg", `"PS256"`,
		"authorization_encrypted_response_alg", `"ECDH-ES"`,
		"introspection_encrypted_response_alg", `"RSA1_5"`,
		"introspection_encrypted_response_enc", `"A128CBC+HS256"`,
		"introspection_signed_response_alg", `"EdDSA"`,
		"request_object_encryption_enc", `"A256GCM"`,
	))
	want := &metadata.Client{
		ClientID: "s6BhdRkqt3", JWKSURI: "https://client.example.org/jwks",
		SecretExpiresAt: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC),
		Settings: []registry.Setting{
			{Kind: "ID_TOKEN", SigningAlgorithm: "HS256", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM"},
			{Kind: "USERINFO", SigningAlgorithm: "ES256"},
			{Kind: "AUTHORIZATION_RESPONSE", SigningAlgorithm: "PS256", EncryptionAlgorithm: "ECDH-ES", ContentEncryption: "A128CBC-HS256"},
			{Kind: "INTROSPECTION", SigningAlgorithm: "EdDSA", EncryptionAlgorithm: "RSA1_5", ContentEncryption: "A128CBC+HS256"},
		},
	}
	if diff := diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got.Secret() != secret {
		t.Error("the secret is not read")
	}
}

func TestDefaults(t *testing.T) {
	id := registry.Setting{Kind: "ID_TOKEN"}
	tests := []struct {
		name     string
		document []byte
		settings []registry.Setting
		rs256    []registry.TokenKind
	}{
		{"nothing", object(), []registry.Setting{id}, []registry.TokenKind{"ID_TOKEN"}},
		{"signing alone", object("id_token_signed_response_alg", `"ES256"`),
			[]registry.Setting{{Kind: "ID_TOKEN", SigningAlgorithm: "ES256"}}, nil},
		{"alg without enc", object("id_token_encrypted_response_alg", `"ECDH-ES"`, "jwks", set),
			[]registry.Setting{{Kind: "ID_TOKEN", EncryptionAlgorithm: "ECDH-ES", ContentEncryption: "A128CBC-HS256"}}, []registry.TokenKind{"ID_TOKEN"}},
		{"userinfo that is only signed", object("userinfo_signed_response_alg", `"RS256"`),
			[]registry.Setting{id, {Kind: "USERINFO", SigningAlgorithm: "RS256"}}, []registry.TokenKind{"ID_TOKEN"}},
		{"JARM without a signature algorithm", object("authorization_encrypted_response_alg", `"RSA-OAEP"`, "jwks", set),
			[]registry.Setting{id, {Kind: "AUTHORIZATION_RESPONSE", EncryptionAlgorithm: "RSA-OAEP", ContentEncryption: "A128CBC-HS256"}},
			[]registry.TokenKind{"ID_TOKEN", "AUTHORIZATION_RESPONSE"}},
		{"introspection without a signature algorithm", object("introspection_encrypted_response_alg", `"RSA-OAEP"`, "jwks", set),
			[]registry.Setting{id, {Kind: "INTROSPECTION", EncryptionAlgorithm: "RSA-OAEP", ContentEncryption: "A128CBC-HS256"}},
			[]registry.TokenKind{"ID_TOKEN", "INTROSPECTION"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, tt.document)
			if diff := cmp.Diff(tt.settings, c.Settings); diff != "" {
				t.Errorf("settings: -want +got:\n%s", diff)
			}
			if !slices.Equal(c.RS256ByDefault, tt.rs256) {
				t.Errorf("RS256 by default for %v, want %v", c.RS256ByDefault, tt.rs256)
			}
		})
	}
}

// TestNullIsAbsent: as RFC 7592, section 2.2 has it the other way round.
func TestNullIsAbsent(t *testing.T) {
	var pairs []string
	for _, name := range []string{
		"client_id", "jwks", "jwks_uri", "client_secret", "client_secret_expires_at", "token_endpoint_auth_method", "software_statement",
		"id_token_signed_response_alg", "id_token_encrypted_response_alg", "id_token_encrypted_response_enc",
		"userinfo_signed_response_alg", "userinfo_encrypted_response_alg", "userinfo_encrypted_response_enc",
		"authorization_signed_response_alg", "authorization_encrypted_response_alg", "authorization_encrypted_response_enc",
		"introspection_signed_response_alg", "introspection_encrypted_response_alg", "introspection_encrypted_response_enc",
		"client_name",
	} {
		pairs = append(pairs, name, "null")
	}
	if diff := diff(parse(t, object()), parse(t, object(pairs...))); diff != "" {
		t.Errorf("-without +with null:\n%s", diff)
	}
	if c := parse(t, object(pairs...)); c.Secret() != "" {
		t.Error("there is a secret")
	}
	got := parse(t, object("jwks", "null", "jwks_uri", `"https://client.example.org/jwks"`, "id_token_encrypted_response_alg", `"RSA-OAEP"`))
	if got.JWKS != nil || got.JWKSURI == "" {
		t.Errorf("jwks null beside jwks_uri: %q, %q", got.JWKS, got.JWKSURI)
	}
}

// TestEmptySecretIsAbsent: providers write it for clients that have none.
func TestEmptySecretIsAbsent(t *testing.T) {
	got := parse(t, object("client_secret", `""`, "client_secret_expires_at", "1893456000"))
	if diff := diff(parse(t, object()), got); diff != "" || got.Secret() != "" {
		t.Errorf("secret %q; -without +with:\n%s", got.Secret(), diff)
	}
	testProblems(t, []problem{{
		"dir", object("client_secret", `""`, "id_token_encrypted_response_alg", `"dir"`), "id_token_encrypted_response_alg", "there is no client_secret",
	}})
}

func TestUnknownMembersArePassedOver(t *testing.T) {
	got := parse(t, object("redirect_uris", `["https://a"]`, "ext", `{"jwks":1,"client_secret":[{"a":null}]}`,
		"ID_TOKEN_SIGNED_RESPONSE_ALG", `"none"`, "request_object_signing_alg", `"none"`, "id_token_encrypted_response_zip", `7`,
		"logout_token_signed_response_alg", `3`, "require_auth_time", "true"))
	if diff := diff(parse(t, object()), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestSecretThatExpires(t *testing.T) {
	at := func(number string, pairs ...string) time.Time {
		return parse(t, object(append(pairs, "client_secret_expires_at", number)...)).SecretExpiresAt
	}
	with := []string{"client_secret", `"` + secret + `"`}
	if got := at("0", with...); !got.IsZero() {
		t.Errorf("0 is %v, want never", got)
	}
	if got, want := at("1", with...), time.Unix(1, 0); !got.Equal(want) {
		t.Errorf("1 is %v, want %v", got, want)
	}
	if got, want := at("253402300799", with...), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC); !got.Equal(want) {
		t.Errorf("the end of 9999 is %v", got)
	}
	// However a JSON library writes a whole number.
	for _, number := range []string{"1500000000", "1.5e9", "1.5E+9", "1500000000.0", "15000000000e-1"} {
		if got, want := at(number, with...), time.Unix(1500000000, 0); !got.Equal(want) {
			t.Errorf("%s is %v, want %v", number, got, want)
		}
	}
	for _, number := range []string{"0.0", "0e5", "-0"} {
		if got := at(number, with...); !got.IsZero() {
			t.Errorf("%s is %v, want never", number, got)
		}
	}
	if got := at("1893456000"); !got.IsZero() {
		t.Errorf("without a secret: %v", got)
	}
	if got := parse(t, object(with...)).SecretExpiresAt; !got.IsZero() {
		t.Errorf("without the member: %v", got)
	}
}

// problem is a document that is refused, the member that is at fault, and a
// part of what is said about it.
type problem struct {
	name     string
	document []byte
	member   string
	want     string
}

func testProblems(t *testing.T, tests []problem) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := metadata.Parse(tt.document)
			var got *metadata.Error
			if c != nil || !errors.Is(err, metadata.ErrInvalid) || !errors.As(err, &got) {
				t.Fatalf("Parse = %v, %v, want an *Error", c, err)
			}
			if got.Member != tt.member || !strings.Contains(got.Problem, tt.want) {
				t.Errorf("member %q, %q\nwant %q, %q", got.Member, got.Problem, tt.member, tt.want)
			}
			if !strings.Contains(err.Error(), tt.member) || len(err.Error()) > 400 || strings.Contains(err.Error(), secret) {
				t.Errorf("text %q", err)
			}
		})
	}
}

func TestImpossibleCombinations(t *testing.T) {
	withSecret := []string{"client_secret", `"` + secret + `"`}
	withKeys := []string{"jwks", set}
	public := []string{"token_endpoint_auth_method", `"none"`}
	all := func(lists ...[]string) []byte { return object(slices.Concat(lists...)...) }
	tests := []problem{
		{"jwks and jwks_uri", all(withKeys, []string{"jwks_uri", `"https://a/jwks"`}), "jwks_uri", "together with jwks"},
		{"legacy enc with another alg", all(withKeys, []string{"id_token_encrypted_response_alg", `"RSA-OAEP-256"`, "id_token_encrypted_response_enc", `"A128CBC+HS256"`}),
			"id_token_encrypted_response_enc", "RSA1_5, RSA-OAEP"},
	}
	for _, kind := range []string{"id_token", "userinfo", "authorization", "introspection"} {
		sig, alg, enc := kind+"_signed_response_alg", kind+"_encrypted_response_alg", kind+"_encrypted_response_enc"
		tests = append(tests,
			problem{kind + ": enc without alg", all(withKeys, []string{enc, `"A256GCM"`}), enc, "without " + alg},
			problem{kind + ": enc without alg, signed", all(withKeys, []string{enc, `"A256GCM"`, sig, `"RS256"`}), enc, "without " + alg},
			problem{kind + ": enc with alg null", all(withKeys, []string{enc, `"A256GCM"`, alg, `null`}), enc, "without " + alg},
			problem{kind + ": signed with none", all(withKeys, []string{sig, `"none"`}), sig, "name a signature algorithm"},
			problem{kind + ": encrypted, signed with none", all(withKeys, []string{sig, `"none"`, alg, `"RSA-OAEP"`}), sig, "name a signature algorithm"},
			problem{kind + ": encrypted with none", all(withKeys, []string{alg, `"none"`}), alg, "no encryption algorithm"},
			problem{kind + ": no key source", all(withSecret, []string{alg, `"RSA-OAEP"`}), alg, "neither jwks nor jwks_uri"},
		)
		for _, name := range encrypter.KeyAlgorithms() {
			if !name.Symmetric() {
				continue
			}
			set := []string{alg, `"` + string(name) + `"`}
			tests = append(tests,
				problem{kind + ": " + string(name) + " without secret", all(withKeys, set), alg, string(name) + " takes the client's secret, and there is no client_secret"},
				problem{kind + ": " + string(name) + " for a public client", all(withKeys, withSecret, public, set), alg, "public client"},
			)
		}
		for _, name := range []string{"HS256", "HS384", "HS512"} {
			set := []string{sig, `"` + name + `"`}
			tests = append(tests,
				problem{kind + ": " + name + " without secret", all(withKeys, set), sig, "there is no client_secret"},
				problem{kind + ": " + name + " for a public client", all(withKeys, withSecret, public, set), sig, "public client"},
			)
		}
	}
	testProblems(t, tests)
}

// TestWhatIsLegacyOrUnknownIsForTheServer: there is no policy here.
func TestWhatIsLegacyOrUnknownIsForTheServer(t *testing.T) {
	c := parse(t, object("jwks", set, "id_token_encrypted_response_alg", `"RSA1_5"`, "id_token_encrypted_response_enc", `"A128CBC+HS256"`,
		"userinfo_signed_response_alg", `"ES256K"`, "userinfo_encrypted_response_alg", `"HPKE-0"`, "userinfo_encrypted_response_enc", `"C20P"`))
	want := []registry.Setting{
		{Kind: "ID_TOKEN", EncryptionAlgorithm: "RSA1_5", ContentEncryption: "A128CBC+HS256"},
		{Kind: "USERINFO", SigningAlgorithm: "ES256K", EncryptionAlgorithm: "HPKE-0", ContentEncryption: "C20P"},
	}
	if diff := cmp.Diff(want, c.Settings); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestPublicClientHasNoSecret: what such a client calls a secret is known to
// more than the client (RFC 7591, section 2).
func TestPublicClientHasNoSecret(t *testing.T) {
	with := func(method string, pairs ...string) *metadata.Client {
		return parse(t, object(append(pairs, "jwks", set, "token_endpoint_auth_method", method, "id_token_encrypted_response_alg", `"RSA-OAEP"`)...))
	}
	given := []string{"client_secret", `"` + secret + `"`, "client_secret_expires_at", "1893456000"}
	c := with(`"none"`, given...)
	if c.Secret() != "" || !c.SecretExpiresAt.IsZero() {
		t.Errorf("secret of %d bytes until %v, want none", len(c.Secret()), c.SecretExpiresAt)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "client_secret is not taken over") || strings.Contains(c.Warnings[0], secret) {
		t.Errorf("warnings %q", c.Warnings)
	}
	for _, pairs := range [][]string{nil, {"client_secret", "null"}, {"client_secret", `""`}} {
		if c := with(`"none"`, pairs...); c.Secret() != "" || len(c.Warnings) != 0 {
			t.Errorf("%q: secret of %d bytes, warnings %q", pairs, len(c.Secret()), c.Warnings)
		}
	}
	for _, method := range []string{"null", `"client_secret_basic"`, `"private_key_jwt"`, `"tls_client_auth"`, `"NONE"`} {
		if c := with(method, given...); c.Secret() != secret || c.SecretExpiresAt.IsZero() {
			t.Errorf("token_endpoint_auth_method %s: the secret is not taken over", method)
		}
	}
}

func TestWrongTypes(t *testing.T) {
	var tests []problem
	for _, name := range []string{
		"client_id", "jwks_uri", "client_secret", "token_endpoint_auth_method",
		"id_token_signed_response_alg", "userinfo_encrypted_response_alg", "authorization_encrypted_response_enc", "introspection_signed_response_alg",
	} {
		for _, value := range []string{"1", "true", "{}", `["` + secret + `"]`} {
			tests = append(tests, problem{name + " " + value[:1], object(name, value), name, "not a string"})
		}
		if name != "client_secret" {
			tests = append(tests, problem{name + " empty", object(name, `""`), name, "empty"})
		}
	}
	for _, value := range []string{`"{\"keys\":[]}"`, "[]", "1", "false"} {
		tests = append(tests, problem{"jwks " + value, object("jwks", value), "jwks", "not a JSON object"})
	}
	for _, value := range []string{`"0"`, "true", "[]", "{}"} {
		tests = append(tests, problem{"expires_at " + value, object("client_secret_expires_at", value), "client_secret_expires_at", "not a number"})
	}
	for _, value := range []string{"-1", "-1e9", "1.5", "1.5e0", "1500000000.5", "1e-5", "253402300800", "2534023008e2", "99999999999999999999999", "1e400", "1e999999999"} {
		tests = append(tests, problem{"expires_at " + value, object("client_secret_expires_at", value), "client_secret_expires_at", "not a whole number of seconds"})
	}
	testProblems(t, tests)
}

func TestJSONIsReadStrictly(t *testing.T) {
	long := func(n int) string { return `"` + strings.Repeat("x", n) + `"` }
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	testProblems(t, []problem{
		{"empty", nil, "", "ends too early"},
		{"white space", []byte(" \n"), "", "ends too early"},
		{"cut off", []byte(curity[:300]), "", "ends too early"},
		{"cut off in the secret", []byte(`{"client_secret":"` + secret[:10]), "", "ends too early"},
		{"array", []byte(`[` + curity + `]`), "", "not a JSON object"},
		{"string", []byte(`"` + secret + `"`), "", "not a JSON object"},
		{"null", []byte(`null`), "", "not a JSON object"},
		{"HTML", []byte(`<html>`), "", "not valid JSON"},
		{"form", []byte(`client_secret=` + secret), "", "not valid JSON"},
		{"two objects", []byte(`{}{}`), "", "more after"},
		{"garbage after", []byte(`{}]`), "", "not valid JSON"},
		{"comment", []byte(`{/* */}`), "", "not valid JSON"},
		{"single quotes", []byte(`{'client_secret':'` + secret + `'}`), "", "not valid JSON"},
		{"byte order mark", []byte("\xef\xbb\xbf{}"), "", "not valid JSON"},
		{"not UTF-8", []byte("{\"client_secret\":\"" + secret + "\xff\"}"), "", "not valid JSON in UTF-8"},
		{"lone surrogate", []byte(`{"client_secret":"` + secret + `\ud800"}`), "", "not valid JSON"},
		{"control character", []byte("{\"client_secret\":\"" + secret + "\x00\"}"), "", "not valid JSON"},
		{"member twice", object("client_secret", `"a"`, "client_secret", `"`+secret+`"`), "", "twice"},
		{"member twice by escape", []byte(`{"jwks_uri":"https://a","jwks\u005furi":"https://b"}`), "", "twice"},
		{"member twice in the jwks", object("jwks", `{"keys":[],"keys":[]}`), "", "twice"},
		{"member twice in what is passed over", object("ext", `{"a":{"`+secret+`":1,"`+secret+`":2}}`), "", "twice"},
		{"deep", object("ext", deep), "", "deeper than 32"},
		{"deep jwks", object("jwks", `{"keys":`+deep+`}`), "", "deeper than 32"},
		{"very deep", object("ext", strings.Repeat("[", 60_000)), "", "deeper than 32"},
		{"too long", object("client_name", long(metadata.MaxBytes)), "", "at most 196608"},
		{"jwks too long", object("jwks", `{"keys":[],"pad":`+long(registry.MaxJWKS)+`}`), "jwks", "at most 131072"},
	})
	if _, err := metadata.Parse(object("client_name", long(150_000))); err != nil {
		t.Errorf("a long member that is passed over: %v", err)
	}
}

// TestSetIsKeptByteForByte: what is registered is what the client sent.
func TestSetIsKeptByteForByte(t *testing.T) {
	for _, value := range []string{`{"keys":[]}`, "{ \"keys\" :\n [] ,\"\\u0061\": 1.0e0}", "{}"} {
		for _, space := range []string{"", " ", "\t\r\n "} {
			document := []byte(`{"jwks"` + space + ":" + space + value + space + `,"client_id":"a"}`)
			c := parse(t, document)
			if string(c.JWKS) != value {
				t.Errorf("%q gives jwks %q, want %q", document, c.JWKS, value)
			}
			clear(document)
			if string(c.JWKS) != value {
				t.Errorf("the set changes with the document")
			}
		}
	}
}

func TestSoftwareStatementIsAWarning(t *testing.T) {
	c := parse(t, object("software_statement", `"eyJhbGciOiJSUzI1NiJ9.e30.c2ln"`))
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "software_statement is not read") {
		t.Errorf("warnings %q", c.Warnings)
	}
}

func TestSecretIsNeverShown(t *testing.T) {
	c := parse(t, object("client_id", `"app"`, "client_secret", `"`+secret+`"`, "id_token_encrypted_response_alg", `"dir"`))
	if c.Secret() != secret {
		t.Fatalf("the secret is not read")
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%T"} {
		fmt.Fprintf(&out, verb+"\n", c)
		fmt.Fprintf(&out, verb+"\n", *c)
		fmt.Fprintf(&out, verb+"\n", []any{c, *c})
		// fmt calls no method of what is in an unexported field.
		fmt.Fprintf(&out, verb+"\n", struct{ c metadata.Client }{*c})
		fmt.Fprintf(&out, verb+"\n", &struct{ c *metadata.Client }{c})
		fmt.Fprintf(&out, verb+"\n", struct{ list []metadata.Client }{[]metadata.Client{*c}})
	}
	for _, handler := range []slog.Handler{
		slog.NewTextHandler(&out, &slog.HandlerOptions{AddSource: true}), slog.NewJSONHandler(&out, nil),
	} {
		slog.New(handler).Info("registered", "client", c, "value", *c, "list", []metadata.Client{*c},
			"field", struct{ c metadata.Client }{*c})
	}
	for _, v := range []any{c, *c, map[string]any{"client": c}} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(text)
	}
	for _, shown := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), strings.Trim(fmt.Sprint([]byte(secret)), "[]")} { //nolint:staticcheck // the numbers are meant
		if strings.Contains(out.String(), shown) {
			t.Errorf("the secret is shown:\n%s", out.String())
		}
	}
	if !strings.Contains(out.String(), `metadata of client "app" with 1 settings`) {
		t.Errorf("the client is not named:\n%s", out.String())
	}
}
