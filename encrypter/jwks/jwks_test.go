package jwks_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// rfc7517A1 is the set of RFC 7517, appendix A.1.
const rfc7517A1 = `{"keys":
  [
    {"kty":"EC",
     "crv":"P-256",
     "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
     "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
     "use":"enc",
     "kid":"1"},

    {"kty":"RSA",
     "n":"` + rfc7638N + `",
     "e":"AQAB",
     "alg":"RS256",
     "kid":"2011-04-29"}
  ]
}`

// rfc7638N is the modulus of RFC 7638, section 3.1.
const rfc7638N = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"

// jwk is one JSON object, to be varied with the function with.
type jwk map[string]any

func rsaJWK() jwk { return jwk{"kty": "RSA", "n": rfc7638N, "e": "AQAB"} }

func ecJWK() jwk {
	return jwk{
		"kty": "EC", "crv": "P-256",
		"x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
		"y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
	}
}

// with returns a copy of base with name, value pairs set.
func with(base jwk, pairs ...any) jwk {
	out := jwk{}
	for name, value := range base {
		out[name] = value
	}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i].(string)] = pairs[i+1]
	}
	return out
}

func without(base jwk, name string) jwk {
	out := with(base)
	delete(out, name)
	return out
}

func document(t testing.TB, keys ...jwk) []byte {
	t.Helper()
	if keys == nil {
		keys = []jwk{}
	}
	doc, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func parse(t testing.TB, keys ...jwk) *jwks.Set {
	t.Helper()
	set, err := jwks.Parse(document(t, keys...), jwks.Limits{})
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return set
}

func b64(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

func TestRFC7517ExampleSet(t *testing.T) {
	set, err := jwks.Parse([]byte(rfc7517A1), jwks.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	keys := set.Keys()
	if len(keys) != 2 {
		t.Fatalf("got %d keys, want 2", len(keys))
	}
	ec, rsaKey := keys[0], keys[1]
	if ec.State != jwks.Usable || ec.Type != "EC" || ec.Curve != "P-256" || ec.Use != "enc" || ec.KeyID != "1" || ec.Index != 0 {
		t.Errorf("keys[0] = %+v", ec)
	}
	if rsaKey.State != jwks.Usable || rsaKey.Type != "RSA" || rsaKey.Algorithm != "RS256" || rsaKey.KeyID != "2011-04-29" || rsaKey.Index != 1 {
		t.Errorf("keys[1] = %+v", rsaKey)
	}
	if _, ok := ec.Public.(*ecdsa.PublicKey); !ok {
		t.Errorf("keys[0].Public is a %T", ec.Public)
	}
	if _, ok := rsaKey.Public.(*rsa.PublicKey); !ok {
		t.Errorf("keys[1].Public is a %T", rsaKey.Public)
	}
}

func TestThumbprintsOfTheStandards(t *testing.T) {
	tests := []struct {
		name, key, want string
	}{
		{"RFC 7638 section 3.1", `{"kty":"RSA","n":"` + rfc7638N + `","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"},
		{"RFC 8037 A.6 and RFC 7748 6.1", `{"kty":"OKP","crv":"X25519","kid":"Bob","x":"3p7bfXt9wbTTW2HC7OQ1Nz-DQ8hbeGdNrfx-FG-IK08"}`, "giQqigT_IKcuzHl0FVJ3k5ts3_TWNAxvsC08UZsfcM8"},
		{"RFC 8037 A.2 and A.3", `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, err := jwks.Parse([]byte(`{"keys":[`+tt.key+`]}`), jwks.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if got := set.Keys()[0].Thumbprint; got != tt.want {
				t.Errorf("thumbprint = %s, want %s", got, tt.want)
			}
		})
	}
}

// TestSameKeysAsGoJose compares what is read with another reader.
func TestSameKeysAsGoJose(t *testing.T) {
	var published jose.JSONWebKeySet
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		// Several of each, so that some coordinates begin with zero bits.
		for range 4 {
			key, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			published.Keys = append(published.Keys, jose.JSONWebKey{Key: key.Public(), Use: "enc"})
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	published.Keys = append(published.Keys, jose.JSONWebKey{Key: key.Public(), Use: "enc"})
	doc, err := json.Marshal(published)
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwks.Parse(doc, jwks.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range set.Keys() {
		want := published.Keys[i]
		digest, err := want.Thumbprint(crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if got.Thumbprint != b64(digest) {
			t.Errorf("keys[%d]: thumbprint = %s, want %s", i, got.Thumbprint, b64(digest))
		}
		if got.State != jwks.Usable || !want.Key.(interface{ Equal(crypto.PublicKey) bool }).Equal(got.Public) {
			t.Errorf("keys[%d] = %v %v (%s), want the published key", i, got.State, got.Public, got.Reason)
		}
		if len(got.Warnings) != 0 {
			t.Errorf("keys[%d]: warnings %q, want none", i, got.Warnings)
		}
	}
}

func TestSetIsRefusedWhole(t *testing.T) {
	wide := strings.Repeat(`{"kty":"EC"},`, 99_999) + `{"kty":"EC"}`
	tests := []struct {
		name, document, want string // want: what the text must hold
	}{
		{"empty", ``, "ends too early"},
		{"white space", " \n", "ends too early"},
		{"cut off", `{"keys":[{"kty":"EC"`, "ends too early"},
		{"HTML", `<html>`, "not valid JSON"},
		{"byte order mark", "\xef\xbb\xbf" + rfc7517A1, "not valid JSON"},
		{"trailing comma", `{"keys":[],}`, "not valid JSON"},
		{"not UTF-8", "{\"keys\":[{\"kty\":\"EC\",\"kid\":\"\xff\"}]}", "UTF-8"},
		{"lone surrogate", `{"keys":[{"kty":"EC","kid":"\ud800"}]}`, "not valid JSON"},
		{"two documents", `{"keys":[]}{"keys":[]}`, "more after"},
		{"garbage after", `{"keys":[]}]`, "not valid JSON"},
		{"array", `[{"kty":"EC"}]`, `{"keys": [...]}`},
		{"string", `"keys"`, `{"keys": [...]}`},
		{"null", `null`, `{"keys": [...]}`},
		{"no keys", `{"jwks":[]}`, `no member "keys"`},
		{"single JWK", `{"kty":"EC","crv":"P-256"}`, "single JWK"},
		{"keys is an object", `{"keys":{}}`, "not an array"},
		{"keys is null", `{"keys":null}`, "not an array"},
		{"key is a string", `{"keys":["EC"]}`, "keys[0] is not a JSON object"},
		{"key is null", `{"keys":[{"kty":"EC"},null]}`, "keys[1] is not a JSON object"},
		{"duplicate keys", `{"keys":[],"keys":[]}`, "twice"},
		{"duplicate member", `{"keys":[{"kty":"EC","kty":"RSA"}]}`, "twice"},
		{"duplicate member by escape", `{"keys":[{"use":"sig","\u0075se":"enc"}]}`, "twice"},
		{"duplicate in an unknown member", `{"keys":[],"ext":{"a":[{"b":1,"b":2}]}}`, "twice"},
		{"10 MB", `{"keys":[],"pad":"` + strings.Repeat("x", 10<<20) + `"}`, "more than the allowed 131072"},
		{"100 000 keys", `{"keys":[` + wide + `]}`, "more than the allowed"},
		{"101 keys", `{"keys":[` + strings.Repeat(`{"kty":"EC"},`, 100) + `{}]}`, "more than the allowed 100 keys"},
		{"deep arrays", `{"keys":` + strings.Repeat("[", 60_000), "not a JSON object"},
		{"deep in a key", `{"keys":[{"kty":"EC","ext":` + strings.Repeat("[", 60_000), "deeper than 16"},
		{"deep outside keys", `{"ext":` + strings.Repeat(`{"a":`, 20_000), "deeper than 16"},
		{"deep in kid", `{"keys":[{"kid":` + strings.Repeat("[", 60_000), "deeper than 16"},
		{"deep in key_ops", `{"keys":[{"key_ops":` + strings.Repeat("[", 60_000), "deeper than 16"},
		{"symmetric key", `{"keys":[{"kty":"oct"}]}`, "symmetric"},
		{"symmetric key after a good one", `{"keys":[{"kty":"EC","crv":"P-256"},{"kty":"oct","kid":"s","k":"AAAA"}]}`, `keys[1] (kid "s")`},
		{"secret in an unknown kty", `{"keys":[{"kty":"LWE","k":"AAAA"}]}`, `member "k"`},
		{"secret in a skipped curve", `{"keys":[{"kty":"OKP","crv":"X25519","x":"AA","d":"AA"}]}`, `member "d"`},
		{"secret that is null", `{"keys":[{"kty":"RSA","d":null}]}`, `member "d"`},
		{"same kid, kty, alg and use", `{"keys":[{"kty":"EC","kid":"a"},{"kty":"RSA","kid":"a"},{"kty":"EC","kid":"a"}]}`, "keys[0] and keys[2]"},
	}
	for _, member := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		tests = append(tests, struct{ name, document, want string }{
			"private member " + member, string(document(t, ecJWK(), with(rsaJWK(), "kid", "mine", member, "c2VjcmV0c2VjcmV0"))),
			`keys[1] (kid "mine") has the private or symmetric member "` + member + `"`,
		})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			limits := jwks.Limits{}
			if tt.name == "100 000 keys" {
				limits.MaxBytes = 16 << 20 // so that only the count can refuse it
			}
			set, err := jwks.Parse([]byte(tt.document), limits)
			if !errors.Is(err, jwks.ErrRejected) || set != nil {
				t.Fatalf("Parse = %v, %v; want ErrRejected", set, err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("error %q repeats a secret", err)
			}
			if len(err.Error()) > 300 {
				t.Errorf("error has %d bytes: %.100s...", len(err.Error()), err)
			}
		})
	}
}

func TestLimitsCanBeSet(t *testing.T) {
	doc := document(t, ecJWK(), rsaJWK())
	for name, limits := range map[string]jwks.Limits{
		"bytes": {MaxBytes: len(doc) - 1},
		"keys":  {MaxKeys: 1},
		"depth": {MaxDepth: 2},
	} {
		if _, err := jwks.Parse(doc, limits); !errors.Is(err, jwks.ErrRejected) {
			t.Errorf("%s: got %v, want ErrRejected", name, err)
		}
	}
	if _, err := jwks.Parse(doc, jwks.Limits{MaxBytes: len(doc), MaxKeys: 2, MaxDepth: 3}); err != nil {
		t.Errorf("at the limits: %v", err)
	}
}

func TestUnknownMembersArePassedOver(t *testing.T) {
	set := parse(t, with(ecJWK(), "use", "enc", "iat", 1.5, "ext", true, "nested", jwk{"d": []any{nil, "x"}}))
	if k := set.Keys()[0]; k.State != jwks.Usable {
		t.Errorf("key is %v: %s", k.State, k.Reason)
	}
}

func TestEmptySetIsNoError(t *testing.T) {
	set := parse(t)
	if len(set.Keys()) != 0 {
		t.Errorf("got %d keys", len(set.Keys()))
	}
}

func TestSameKidForDifferentKeysIsAWarning(t *testing.T) {
	set := parse(t, with(ecJWK(), "kid", "a", "use", "enc"), with(rsaJWK(), "kid", "a", "use", "enc"), with(rsaJWK(), "kid", "a", "use", "sig"))
	for i, want := range []string{"keys[1]", "keys[2]", "keys[0]"} {
		k := set.Keys()[i]
		if k.State != jwks.Usable || len(k.Warnings) != 1 || !strings.Contains(k.Warnings[0], "the same kid as "+want) {
			t.Errorf("%v: %v, warnings %q, want usable and told of %s", k, k.State, k.Warnings, want)
		}
	}
}

// badKey is a key that must fall out, with a part of the reason.
type badKey struct {
	name string
	key  jwk
	want string
}

func testBadKeys(t *testing.T, state jwks.State, tests []badKey) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := parse(t, with(tt.key, "kid", "bad"), with(rsaJWK(), "kid", "good", "use", "enc"))
			bad, good := set.Keys()[0], set.Keys()[1]
			if bad.State != state || bad.Public != nil {
				t.Errorf("key is %v with %v, want %v without a public key", bad.State, bad.Public, state)
			}
			if !strings.Contains(bad.Reason, tt.want) {
				t.Errorf("reason %q does not say %q", bad.Reason, tt.want)
			}
			if good.State != jwks.Usable {
				t.Errorf("the other key is %v: %s", good.State, good.Reason)
			}
			if chosen, err := set.Choose(jwks.Want{Algorithm: "RSA-OAEP"}); err != nil || chosen != good {
				t.Errorf("Choose = %v, %v; want the other key", chosen, err)
			}
		})
	}
}

func TestKeyOfUnknownKindIsSkipped(t *testing.T) {
	testBadKeys(t, jwks.Skipped, []badKey{
		{"unknown kty", jwk{"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"}, `kty "AKP"`},
		{"kty in lower case", with(rsaJWK(), "kty", "rsa"), `kty "rsa"`},
		{"empty kty", with(rsaJWK(), "kty", ""), `kty ""`},
		{"unknown EC curve", with(ecJWK(), "crv", "secp256k1"), `crv "secp256k1"`},
		{"unknown OKP curve", jwk{"kty": "OKP", "crv": "X9", "x": "AA"}, `crv "X9"`},
		{"X25519 as EC", with(x25519JWK(), "kty", "EC"), `crv X25519 belongs to kty "OKP"`},
		{"P-256 as OKP", with(ecJWK(), "kty", "OKP"), `crv P-256 belongs to kty "EC"`},
		{"Ed448", jwk{"kty": "OKP", "crv": "Ed448", "x": b64(make([]byte, 57))}, "signatures only"},
		{"Ed25519", jwk{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}, "signatures only"},
	})
}

func TestMalformedKeyIsRejected(t *testing.T) {
	x, _ := base64.RawURLEncoding.DecodeString(ecJWK()["x"].(string))
	n, _ := base64.RawURLEncoding.DecodeString(rfc7638N)
	testBadKeys(t, jwks.Rejected, []badKey{
		{"no kty", without(rsaJWK(), "kty"), `"kty"`},
		{"kty not a string", with(rsaJWK(), "kty", 3), `"kty" is not a string`},
		{"use not a string", with(rsaJWK(), "use", nil), `"use" is not a string`},
		{"alg not a string", with(rsaJWK(), "alg", []string{"RSA-OAEP"}), `"alg" is not a string`},
		{"key_ops not an array", with(rsaJWK(), "key_ops", "encrypt"), `"key_ops" is not an array of strings`},
		{"key_ops of numbers", with(rsaJWK(), "key_ops", []int{1}), `"key_ops" is not an array of strings`},
		{"key_ops twice the same", with(rsaJWK(), "key_ops", []string{"encrypt", "encrypt"}), "twice"},
		{"use enc to verify", with(rsaJWK(), "use", "enc", "key_ops", []string{"verify"}), "contradicts"},
		{"use sig to encrypt", with(rsaJWK(), "use", "sig", "key_ops", []string{"encrypt"}), "contradicts"},
		{"RSA without n", without(rsaJWK(), "n"), `no member "n"`},
		{"RSA without e", without(rsaJWK(), "e"), `no member "e"`},
		{"n with padding", with(rsaJWK(), "n", rfc7638N+"=="), "base64url"},
		{"n in base64", with(rsaJWK(), "n", strings.ReplaceAll(rfc7638N, "_", "/")), "base64url"},
		{"n with a line break", with(rsaJWK(), "n", rfc7638N[:64]+"\n"+rfc7638N[64:]), "base64url"},
		{"n with stray bits", with(rsaJWK(), "n", rfc7638N[:len(rfc7638N)-1]+"x"), "base64url"},
		{"n empty", with(rsaJWK(), "n", ""), "empty"},
		{"n with two leading zeros", with(rsaJWK(), "n", b64(append([]byte{0, 0}, n...))), "leading zero"},
		{"EC without crv", without(ecJWK(), "crv"), `no member "crv"`},
		{"EC without x", without(ecJWK(), "x"), `no member "x"`},
		{"EC without y", without(ecJWK(), "y"), `no member "y"`},
		{"x too long", with(ecJWK(), "x", b64(append([]byte{0}, x...))), "exactly 32"},
		{"x too short", with(ecJWK(), "x", b64(x[1:])), "exactly 32"},
		{"x of another curve", with(ecJWK(), "crv", "P-384"), "exactly 48"},
		{"point off the curve", with(ecJWK(), "x", ecJWK()["y"], "y", ecJWK()["x"]), "not on P-256"},
		{"point of zeros", with(ecJWK(), "x", b64(make([]byte, 32)), "y", b64(make([]byte, 32))), "not on P-256"},
		{"coordinate above the prime", with(ecJWK(), "x", b64(bytes.Repeat([]byte{255}, 32))), "not on P-256"},
		{"OKP without x", jwk{"kty": "OKP", "crv": "X25519"}, `no member "x"`},
		{"X25519 too short", jwk{"kty": "OKP", "crv": "X25519", "x": b64(make([]byte, 31))}, "exactly 32"},
		{"X25519 too long", jwk{"kty": "OKP", "crv": "X25519", "x": b64(make([]byte, 33))}, "exactly 32"},
		{"X448 too short", jwk{"kty": "OKP", "crv": "X448", "x": b64(make([]byte, 55))}, "exactly 56"},
		{"X448 too long", jwk{"kty": "OKP", "crv": "X448", "x": b64(make([]byte, 57))}, "exactly 56"},
		{"X25519 with padding", with(x25519JWK(), "x", x25519JWK()["x"].(string)+"="), "base64url"},
		{"x5t#S256 of another length", with(rsaJWK(), "x5t#S256", "AAAA"), "x5t#S256"},
		{"x5c not an array", with(rsaJWK(), "x5c", "MII="), `"x5c" is not an array`},
		{"x5c empty", with(rsaJWK(), "x5c", []string{}), "empty"},
		{"x5c not base64", with(rsaJWK(), "x5c", []string{"_-_-"}), "base64"},
		{"x5c not a certificate", with(rsaJWK(), "x5c", []string{"AAAA"}), "X.509"},
	})
}

func TestKidOfTheWrongKindRejectsTheKey(t *testing.T) {
	set := parse(t, with(rsaJWK(), "kid", 7, "use", "enc"))
	if k := set.Keys()[0]; k.State != jwks.Rejected || !strings.Contains(k.Reason, `"kid" is not a string`) {
		t.Errorf("key is %v: %s", k.State, k.Reason)
	}
}

// TestNothingLongIsKept: a set stays in memory for as long as its client is in
// use.
func TestNothingLongIsKept(t *testing.T) {
	long := func(n int) string { return strings.Repeat("k", n) }
	var many []string
	for i := range 17 {
		many = append(many, long(i+1))
	}
	for _, tt := range []struct {
		key  jwk
		want string
	}{
		{with(rsaJWK(), "kid", long(257)), `"kid" has 257 bytes, more than the allowed 256`},
		{with(rsaJWK(), "use", long(65)), `"use" has 65 bytes, more than the allowed 64`},
		{with(rsaJWK(), "alg", long(100_000)), `"alg" has 100000 bytes`},
		{with(rsaJWK(), "kty", long(65)), `"kty" has 65 bytes`},
		{with(ecJWK(), "crv", long(65)), `"crv" has 65 bytes`},
		{with(rsaJWK(), "key_ops", many), `"key_ops" has more than 16 values`},
		{with(rsaJWK(), "key_ops", []string{long(65)}), "one longer than 64 bytes"},
		{jwk{"kty": "unknown", "key_ops": many}, `"key_ops" has more than 16 values`},
	} {
		k := parse(t, tt.key).Keys()[0]
		if k.State != jwks.Rejected || !strings.Contains(k.Reason, tt.want) {
			t.Errorf("key is %v: %s, want %q", k.State, k.Reason, tt.want)
		}
		if kept := k.Type + k.Curve + k.KeyID + k.Use + k.Algorithm + strings.Join(k.KeyOps, ""); len(kept) > 20 {
			t.Errorf("%s: %d bytes are kept", tt.want, len(kept))
		}
	}
	k := parse(t, with(rsaJWK(), "kid", long(256), "use", "enc", "key_ops", append(many[:15:15], "encrypt"))).Keys()[0]
	if k.State != jwks.Usable || len(k.KeyOps) != 16 || len(k.KeyID) != 256 {
		t.Errorf("at the bounds: %v: %s", k.State, k.Reason)
	}
	// Long kids that begin alike are no reason to refuse the document.
	parse(t, with(rsaJWK(), "kid", long(256)+"a"), with(rsaJWK(), "kid", long(256)+"b"))
}

func TestOneLeadingZeroOfAnRSANumberIsAWarning(t *testing.T) {
	n, _ := base64.RawURLEncoding.DecodeString(rfc7638N)
	set := parse(t, with(rsaJWK(), "use", "enc", "n", b64(append([]byte{0}, n...)), "e", "AAEAAQ"))
	k := set.Keys()[0]
	if k.State != jwks.Usable || len(k.Warnings) != 2 {
		t.Errorf("key is %v (%s) with warnings %q, want usable with two", k.State, k.Reason, k.Warnings)
	}
	if want := "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"; k.Thumbprint != want {
		t.Errorf("thumbprint = %s, want that of the plain encoding, %s", k.Thumbprint, want)
	}
}

func TestWarnings(t *testing.T) {
	tests := []badKey{
		{"no use", rsaJWK(), `"use": "enc"`},
		{"x5u", with(rsaJWK(), "use", "enc", "x5u", "https://example.com/cert"), "x5u"},
		{"mixed key_ops", with(rsaJWK(), "key_ops", []string{"encrypt", "verify"}), "signing and encryption"},
		{"no use on X25519", x25519JWK(), `"use": "enc"`},
		{"exponent 3", with(rsaJWK(), "use", "enc", "e", "Aw"), "exponent is 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := parse(t, tt.key).Keys()[0]
			if k.State != jwks.Usable || !strings.Contains(strings.Join(k.Warnings, "\n"), tt.want) {
				t.Errorf("key is %v (%s) with warnings %q, want usable and %q", k.State, k.Reason, k.Warnings, tt.want)
			}
		})
	}
}

// certified returns a new EC key, its JWK with x5c as go-jose writes it, and
// the certificate.
func certified(t *testing.T, notBefore, notAfter time.Time) (jwk, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotBefore: notBefore, NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(jose.JSONWebKey{Key: key.Public(), Use: "enc", Certificates: []*x509.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	var out jwk
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out, certificate
}

func TestCertificateNamesTheKey(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	until := from.AddDate(1, 0, 0)
	key, certificate := certified(t, from, until)
	other, _ := certified(t, from, until)
	digest := sha256.Sum256(certificate.Raw)
	x5t := b64(digest[:])

	k := parse(t, key).Keys()[0]
	if k.State != jwks.Usable || k.X5TS256 != x5t {
		t.Fatalf("key is %v (%s), x5t#S256 %q, want %q", k.State, k.Reason, k.X5TS256, x5t)
	}
	if !k.NotBefore.Equal(from) || !k.NotAfter.Equal(until) {
		t.Errorf("valid from %v to %v, want %v to %v", k.NotBefore, k.NotAfter, from, until)
	}
	if k := parse(t, with(key, "x5t#S256", x5t)).Keys()[0]; k.State != jwks.Usable || k.X5TS256 != x5t {
		t.Errorf("with its x5t#S256: %v (%s)", k.State, k.Reason)
	}
	if k := parse(t, with(key, "x5t#S256", b64(make([]byte, 32)))).Keys()[0]; k.State != jwks.Rejected || k.X5TS256 != "" {
		t.Errorf("with another x5t#S256: %v (%s)", k.State, k.Reason)
	}
	if k := parse(t, with(key, "x5c", other["x5c"])).Keys()[0]; k.State != jwks.Rejected || !strings.Contains(k.Reason, "another key") {
		t.Errorf("with another certificate: %v (%s)", k.State, k.Reason)
	}
	if k := parse(t, with(rsaJWK(), "x5c", key["x5c"])).Keys()[0]; k.State != jwks.Rejected || !strings.Contains(k.Reason, "another key") {
		t.Errorf("RSA key with an EC certificate: %v (%s)", k.State, k.Reason)
	}
	if k := parse(t, with(without(key, "x5c"), "x5t#S256", x5t)).Keys()[0]; k.State != jwks.Usable || k.X5TS256 != "" {
		t.Errorf("x5t#S256 that nobody can check: %v, %q, want it left out", k.State, k.X5TS256)
	}

	for _, tt := range []struct {
		at   time.Time
		want string
	}{
		{from.Add(-time.Second), "not valid before 2026-01-01T00:00:00Z"},
		{from, ""},
		{until, ""},
		{until.Add(time.Second), "expired at 2027-01-01T00:00:00Z"},
	} {
		err := k.CertificateError(tt.at)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("at %v: %v, want %q", tt.at, err, tt.want)
		}
		chosen, err := parse(t, key).Choose(jwks.Want{Algorithm: "ECDH-ES", CertificateAt: tt.at})
		if tt.want == "" && (err != nil || chosen == nil) {
			t.Errorf("Choose at %v: %v", tt.at, err)
		}
		if tt.want != "" && (!errors.Is(err, jwks.ErrKeyRejected) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("Choose at %v: %v, want ErrKeyRejected and %q", tt.at, err, tt.want)
		}
	}
	if _, err := parse(t, key).Choose(jwks.Want{Algorithm: "ECDH-ES"}); err != nil {
		t.Errorf("Choose without a time: %v", err)
	}
}

// TestCertificateWithTheZeroTimeIsExpired: year 1 is a date like any other, and
// not the absence of a certificate.
func TestCertificateWithTheZeroTimeIsExpired(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	key, certificate := certified(t, time.Time{}, time.Time{})
	if !certificate.NotAfter.IsZero() {
		t.Fatalf("the certificate ends at %v", certificate.NotAfter)
	}
	fromPEM, err := jwks.ParsePEM(block("CERTIFICATE", certificate.Raw), jwks.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]*jwks.Set{"x5c": parse(t, key), "PEM": fromPEM} {
		k := set.Keys()[0]
		if err := k.CertificateError(now); k.X5TS256 == "" || err == nil || !strings.Contains(err.Error(), "expired at 0001-01-01T00:00:00Z") {
			t.Errorf("%s: %v, want that it has expired", name, err)
		}
		if got := strings.Join(k.WarningsAt(now), "\n"); !strings.Contains(got, "expired at 0001") {
			t.Errorf("%s: warnings %q", name, got)
		}
		// At its last second there is nothing left of it.
		if got := strings.Join(k.WarningsAt(time.Time{}), "\n"); !strings.Contains(got, "in 0 days") {
			t.Errorf("%s: warnings at its end %q", name, got)
		}
		if got, err := choose(t, set, jwks.Want{Algorithm: encrypter.ECDHES, CertificateAt: now}); got != -1 || !errors.Is(err, jwks.ErrKeyRejected) {
			t.Errorf("%s: chose %d, %v, want ErrKeyRejected", name, got, err)
		}
	}
}

func TestAnIssuerMayAllowLessThanTheSet(t *testing.T) {
	set := parse(t, rsaJWK())
	if _, err := set.Choose(jwks.Want{Algorithm: "RSA-OAEP", MaxRSABits: 2048}); err != nil {
		t.Errorf("at the bound: %v", err)
	}
	_, err := set.Choose(jwks.Want{Algorithm: "RSA-OAEP", MaxRSABits: 2047})
	if !errors.Is(err, jwks.ErrKeyRejected) || !strings.Contains(err.Error(), "2047") {
		t.Errorf("above it: got %v, want ErrKeyRejected that names the bound", err)
	}
}
