package client

import (
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const someClaims = `{"iss":"https://login.example.com","sub":"alice","aud":"rp","n":12345678901234567890,"exp":4102444800}`

func TestEveryAlgorithmOpens(t *testing.T) {
	type pair struct {
		alg string
		to  jose.JSONWebKey
	}
	var pairs []pair
	for _, alg := range []string{"RSA-OAEP", "RSA-OAEP-256"} {
		pairs = append(pairs, pair{alg, jose.JSONWebKey{Key: rsaKey(), KeyID: "rsa"}})
	}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key := jose.JSONWebKey{Key: ecKeyOn(t, curve), KeyID: curve.Params().Name}
		for _, alg := range []string{"ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW"} {
			pairs = append(pairs, pair{alg, key})
		}
	}
	inner := sign(t, signingKey(t, "ES256"), someClaims, map[jose.HeaderKey]any{"typ": "JWT"})
	for _, p := range pairs {
		for _, enc := range []string{"A128GCM", "A192GCM", "A256GCM", "A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512"} {
			t.Run(p.alg+" "+p.to.KeyID+" "+enc, func(t *testing.T) {
				token := seal{alg: p.alg, enc: enc, to: p.to}.encrypt(t, inner)
				o := newOpener(t, func(c *OpenConfig) { c.Keys = []jose.JSONWebKey{p.to} })
				opened, err := o.Open(token)
				if err != nil {
					t.Fatal(err)
				}
				if string(opened.Claims) != someClaims {
					t.Errorf("got claims %s, want %s", opened.Claims, someClaims)
				}
				if opened.InnerJWS != inner {
					t.Errorf("got inner JWS %s, want %s", opened.InnerJWS, inner)
				}
				h := opened.EncryptionHeader
				if h.Algorithm != p.alg || h.ContentEncryption != enc || h.KeyID != p.to.KeyID || h.ContentType != "JWT" {
					t.Errorf("got JWE header %+v", h)
				}
				s := opened.SignatureHeader
				if s.Algorithm != "ES256" || s.KeyID != "sig-ES256" || s.Type != "JWT" || s.ContentEncryption != "" {
					t.Errorf("got JWS header %+v", s)
				}
			})
		}
	}
}

func TestEverySignatureAlgorithmVerifies(t *testing.T) {
	for _, alg := range signatureAlgorithms {
		t.Run(alg.name, func(t *testing.T) {
			key := signingKey(t, alg.name)
			token := toClient().encrypt(t, sign(t, key, someClaims, nil))
			set := marshal(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(key)}})
			signers, err := ParseSigners(set)
			if err != nil {
				t.Fatal(err)
			}
			opened, err := newOpener(t, func(c *OpenConfig) { c.Signers = signers }).Open(token)
			if err != nil {
				t.Fatal(err)
			}
			if opened.SignatureHeader.Algorithm != alg.name || string(opened.Claims) != someClaims {
				t.Errorf("got %s with %s", opened.SignatureHeader.Algorithm, opened.Claims)
			}

			// The same header and claims under another signature.
			inner := flip(t, opened.InnerJWS, 2)
			_, err = newOpener(t, func(c *OpenConfig) { c.Signers = signers }).Open(toClient().encrypt(t, inner))
			if !errors.Is(err, ErrSignature) {
				t.Errorf("changed signature: got error %v, want ErrSignature", err)
			}
		})
	}
}

// One table of what does not open, and why.
func TestWhatDoesNotOpen(t *testing.T) {
	key := signingKey(t, "ES256")
	inner := sign(t, key, someClaims, nil)
	token := toClient().encrypt(t, inner)
	parts := strings.Split(token, ".")
	ciphertext, err := base64.RawURLEncoding.DecodeString(parts[3])
	if err != nil {
		t.Fatal(err)
	}
	tag, err := base64.RawURLEncoding.DecodeString(parts[4])
	if err != nil {
		t.Fatal(err)
	}
	last := len(ciphertext) - 1
	movedByte := withPart(withPart(token, 3, b64(string(ciphertext[:last]))), 4, b64(string(ciphertext[last:])+string(tag)))
	to := toClient()
	with := func(header map[jose.HeaderKey]any) seal { s := to; s.header = header; return s }
	unsigned := b64(`{"alg":"none"}`) + "." + b64(someClaims) + "."
	header := func(s string) string { return withPart(token, 0, b64(s)) }

	tests := []struct {
		name  string
		token string
		want  error
		text  string // must be in the error
	}{
		{"empty", "", ErrMalformed, "five parts"},
		{"one part", "abc", ErrMalformed, "five parts"},
		{"six parts", token + ".AA", ErrMalformed, "five parts"},
		{"space before", " " + token, ErrMalformed, "part 1"},
		{"line break after", token + "\n", ErrMalformed, "part 5"},
		{"line break inside", withPart(token, 3, parts[3][:8]+"\r\n"+parts[3][8:]), ErrMalformed, "part 4"},
		{"padding", token + "==", ErrMalformed, "part 5"},
		{"standard base64 alphabet", withPart(token, 2, "++++++++++++++++"), ErrMalformed, "part 3"},
		{"JSON serialization", `{"protected":"e30"}`, ErrMalformed, "five parts"},
		{"header is no JSON", header("foo"), ErrMalformed, "JSON object"},
		{"header is an array", header(`["alg"]`), ErrMalformed, "JSON object"},
		{"header with two algs", header(`{"alg":"RSA-OAEP","alg":"ECDH-ES","enc":"A256GCM","cty":"JWT"}`), ErrMalformed, "distinct names"},
		{"header with more behind it", header(`{"alg":"ECDH-ES","enc":"A256GCM","cty":"JWT"} {}`), ErrMalformed, "JSON object"},
		{"header is not UTF-8", header("{\"alg\":\"ECDH-ES\",\"enc\":\"A256GCM\",\"kid\":\"\xff\"}"), ErrMalformed, "JSON object"},
		{"header too large", header(`{"alg":"` + strings.Repeat("a", maxHeader) + `"}`), ErrMalformed, "more than 16384"},
		{"no alg", header(`{"enc":"A256GCM","cty":"JWT"}`), ErrMalformed, "no alg"},
		{"no enc", header(`{"alg":"ECDH-ES","cty":"JWT"}`), ErrMalformed, "no enc"},
		{"alg is a number", header(`{"alg":1,"enc":"A256GCM","cty":"JWT"}`), ErrMalformed, "alg is not a string"},
		{"kid is null", header(`{"alg":"ECDH-ES","enc":"A256GCM","cty":"JWT","kid":null}`), ErrMalformed, "kid is not a string"},
		{"jwk is no key", header(`{"alg":"ECDH-ES","enc":"A256GCM","cty":"JWT","kid":"rp-1","jwk":1}`), ErrMalformed, "parameter"},

		{"no cty", header(`{"alg":"ECDH-ES","enc":"A256GCM","kid":"rp-1"}`), ErrNotAllowed, "cty"},
		{"another cty", with(map[jose.HeaderKey]any{"cty": "json"}).encrypt(t, inner), ErrNotAllowed, "cty"},
		{"compressed", seal{alg: to.alg, enc: to.enc, to: to.to, zip: true}.encrypt(t, inner), ErrNotAllowed, "zip"},
		{"crit", with(map[jose.HeaderKey]any{"crit": []string{"exp"}, "exp": 1}).encrypt(t, inner), ErrNotAllowed, "crit"},
		{"PBES2", header(`{"alg":"PBES2-HS256+A128KW","enc":"A256GCM","cty":"JWT","p2c":1000000000,"p2s":"AA"}`), ErrNotAllowed, "PBES2"},
		{"RSA1_5", header(`{"alg":"RSA1_5","enc":"A256GCM","cty":"JWT"}`), ErrNotAllowed, "RSA1_5"},
		{"dir", header(`{"alg":"dir","enc":"A256GCM","cty":"JWT"}`), ErrNotAllowed, "dir"},
		{"unknown enc", header(`{"alg":"ECDH-ES","enc":"A128CBC+HS256","cty":"JWT"}`), ErrNotAllowed, "A128CBC+HS256"},
		{"JWE inside a JWE", to.encrypt(t, token), ErrNotAllowed, "another encrypted token"},
		{"signed only", inner, ErrNotAllowed, "AllowUnencrypted"},

		{"another kid", header(`{"alg":"ECDH-ES","enc":"A256GCM","cty":"JWT","kid":"rp-2"}`), ErrNoKey, `"rp-2"`},
		{"alg that our key does not name", header(`{"alg":"ECDH-ES+A128KW","enc":"A256GCM","cty":"JWT","kid":"rp-1"}`), ErrNoKey, "A128KW"},
		{"alg of another key type", header(`{"alg":"RSA-OAEP","enc":"A256GCM","cty":"JWT","kid":"rp-1"}`), ErrNoKey, "RSA-OAEP"},

		{"plain claims inside", to.encrypt(t, someClaims), ErrMalformed, "signed part"},
		{"nothing inside", to.encrypt(t, ""), ErrMalformed, "signed part"},
		{"alg none inside", to.encrypt(t, unsigned), ErrNotAllowed, `"none"`},
		{"alg NONE inside", to.encrypt(t, withPart(unsigned, 0, b64(`{"alg":"NONE"}`))), ErrNotAllowed, "NONE"},
		{"HS256 inside", to.encrypt(t, withPart(inner, 0, b64(`{"alg":"HS256","kid":"sig-ES256"}`))), ErrNotAllowed, "HS256"},
		{"crit inside", to.encrypt(t, sign(t, key, someClaims, map[jose.HeaderKey]any{"crit": []string{"b64"}, "b64": true})), ErrNotAllowed, "crit"},
		{"b64 inside", to.encrypt(t, sign(t, key, someClaims, map[jose.HeaderKey]any{"b64": true})), ErrNotAllowed, "b64"},
		{"JWS in JSON inside", to.encrypt(t, `{"payload":"e30","signatures":[]}`), ErrMalformed, "signed part"},
		{"unused bits inside", to.encrypt(t, inner[:len(inner)-1]+"B"), ErrMalformed, "part 3"},
		{"line break inside the inside", to.encrypt(t, inner+"\n"), ErrMalformed, "part 3"},
		{"no kid inside", to.encrypt(t, sign(t, jose.JSONWebKey{Key: key.Key, Algorithm: "ES256"}, someClaims, nil)), ErrUnknownSigner, `""`},
		{"kid of nobody inside", to.encrypt(t, sign(t, jose.JSONWebKey{Key: key.Key, Algorithm: "ES256", KeyID: "x"}, someClaims, nil)), ErrUnknownSigner, `"x"`},
		{"right kid, wrong alg inside", to.encrypt(t, sign(t, jose.JSONWebKey{Key: edKey(), Algorithm: "EdDSA", KeyID: key.KeyID}, someClaims, nil)), ErrUnknownSigner, "EdDSA"},
		{"own key brought along", to.encrypt(t, sign(t, jose.JSONWebKey{Key: ecKeyOn(t, elliptic.P256()), Algorithm: "ES256", KeyID: key.KeyID}, someClaims,
			map[jose.HeaderKey]any{"jwk": public(key)})), ErrSignature, "verify"},
		{"changed claims", to.encrypt(t, withPart(inner, 1, b64(`{"sub":"mallory"}`))), ErrSignature, "verify"},
		{"no signature", to.encrypt(t, withPart(inner, 2, "")), ErrSignature, "verify"},

		{"claims are text", to.encrypt(t, sign(t, key, `"sub"`, nil)), ErrClaims, "JSON object"},
		{"claims with a name twice", to.encrypt(t, sign(t, key, `{"sub":"a","sub":"b"}`, nil)), ErrClaims, "distinct names"},
		{"claims with a name twice below", to.encrypt(t, sign(t, key, `{"a":{"b":1,"b":2}}`, nil)), ErrClaims, "distinct names"},
		{"exp is text", to.encrypt(t, sign(t, key, `{"exp":"tomorrow"}`, nil)), ErrClaims, "exp"},
		{"exp past all numbers", to.encrypt(t, sign(t, key, `{"exp":1e999}`, nil)), ErrClaims, "exp"},
		{"header repeats another iss", with(map[jose.HeaderKey]any{"iss": "https://evil.example"}).encrypt(t, inner), ErrClaims, "iss"},
		{"header repeats a missing sub", with(map[jose.HeaderKey]any{"sub": "a"}).encrypt(t, sign(t, key, `{}`, nil)), ErrClaims, "sub"},

		{"changed header", header(`{"alg":"ECDH-ES","enc":"A256GCM","cty":"JWT","kid":"rp-1"}`), ErrDecrypt, ""},
		{"changed iv", flip(t, token, 2), ErrDecrypt, ""},
		{"changed ciphertext", flip(t, token, 3), ErrDecrypt, ""},
		{"changed tag", flip(t, token, 4), ErrDecrypt, ""},
		{"short iv", withPart(token, 2, "AAAA"), ErrDecrypt, ""},
		{"no tag", withPart(token, 4, ""), ErrDecrypt, ""},
		{"byte moved from ciphertext to tag", movedByte, ErrDecrypt, ""},
		{"encrypted key where none may be", withPart(token, 1, "AAAA"), ErrDecrypt, ""},
		{"for another key of that name", seal{alg: "ECDH-ES", enc: "A256GCM", to: jose.JSONWebKey{Key: ecKeyOn(t, elliptic.P256()), KeyID: "rp-1"}}.encrypt(t, inner), ErrDecrypt, ""},
		{"epk on another curve", seal{alg: "ECDH-ES", enc: "A256GCM", to: jose.JSONWebKey{Key: ecKeyOn(t, elliptic.P384()), KeyID: "rp-1"}}.encrypt(t, inner), ErrDecrypt, ""},
		{"epk off its curve", withPart(token, 0, b64(`{"alg":"ECDH-ES","enc":"A256GCM","cty":"JWT","kid":"rp-1","epk":{"kty":"EC","crv":"P-256","x":"`+b64(strings.Repeat("\x01", 32))+`","y":"`+b64(strings.Repeat("\x01", 32))+`"}}`)), ErrDecrypt, ""},
	}
	o := newOpener(t, nil)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			opened, err := o.Open(test.token)
			if opened != nil {
				t.Error("got a token")
			}
			if !errors.Is(err, test.want) {
				t.Fatalf("got error %v, want %v", err, test.want)
			}
			if !strings.Contains(err.Error(), test.text) {
				t.Errorf("got text %q, want %q in it", err, test.text)
			}
		})
	}
}

// Each step of decryption fails once, with every kind of algorithm: nothing but the
// one value may come out.
func TestDecryptionFailuresLookTheSame(t *testing.T) {
	inner := sign(t, signingKey(t, "ES256"), someClaims, nil)
	otherRSA := jose.JSONWebKey{Key: otherRSAKey(), KeyID: "k"}
	for _, s := range []seal{
		{alg: "RSA-OAEP", enc: "A128CBC-HS256", to: jose.JSONWebKey{Key: rsaKey(), KeyID: "k"}},
		{alg: "RSA-OAEP-256", enc: "A256GCM", to: jose.JSONWebKey{Key: rsaKey(), KeyID: "k"}},
		{alg: "ECDH-ES", enc: "A192CBC-HS384", to: jose.JSONWebKey{Key: ecKey(), KeyID: "k"}},
		{alg: "ECDH-ES+A256KW", enc: "A256CBC-HS512", to: jose.JSONWebKey{Key: ecKey(), KeyID: "k"}},
	} {
		good := s.encrypt(t, inner)
		bad := map[string]string{
			"iv":                  flip(t, good, 2),
			"ciphertext":          flip(t, good, 3),
			"tag":                 flip(t, good, 4),
			"empty ciphertext":    withPart(good, 3, ""),
			"one byte ciphertext": withPart(good, 3, "AA"),
			"short iv":            withPart(good, 2, "AA"),
			"short tag":           withPart(good, 4, "AA"),
		}
		if s.alg != "ECDH-ES" {
			bad["encrypted key"] = flip(t, good, 1)
			bad["empty encrypted key"] = withPart(good, 1, "")
			bad["short encrypted key"] = withPart(good, 1, "AAAA")
		}
		if strings.HasPrefix(s.alg, "RSA") {
			other := s
			other.to = otherRSA
			bad["other key"] = other.encrypt(t, inner)
			// A content key of the wrong length, properly wrapped.
			other = s
			other.enc = map[string]string{"A128CBC-HS256": "A128GCM", "A256GCM": "A128GCM"}[s.enc]
			bad["wrong size of content key"] = withPart(good, 1, strings.Split(other.encrypt(t, inner), ".")[1])
		} else {
			bad["no epk"] = withPart(good, 0, b64(`{"alg":"`+s.alg+`","enc":"`+s.enc+`","cty":"JWT","kid":"k"}`))
			bad["epk is a number"] = withPart(good, 0, b64(`{"alg":"`+s.alg+`","enc":"`+s.enc+`","cty":"JWT","kid":"k","epk":1}`))
			bad["private epk"] = withPart(good, 0, b64(`{"alg":"`+s.alg+`","enc":"`+s.enc+`","cty":"JWT","kid":"k","epk":`+string(marshal(t, clientKey()))+`}`))
			bad["apu is a number"] = withPart(good, 0, b64(`{"alg":"`+s.alg+`","enc":"`+s.enc+`","cty":"JWT","kid":"k","apu":1,"epk":`+string(marshal(t, public(clientKey())))+`}`))
		}
		o := newOpener(t, func(c *OpenConfig) { c.Keys = []jose.JSONWebKey{s.to} })
		if _, err := o.Open(good); err != nil {
			t.Fatalf("%s: %v", s.alg, err)
		}
		for name, token := range bad {
			if _, err := o.Open(token); err != ErrDecrypt { //nolint:errorlint // wrapping would tell something
				t.Errorf("%s, %s: got error %q, want exactly ErrDecrypt", s.alg, name, err)
			}
		}
	}
}

func TestChoiceOfThePrivateKey(t *testing.T) {
	mine := jose.JSONWebKey{Key: ecKey(), KeyID: "a"}
	other := jose.JSONWebKey{Key: ecKeyOn(t, elliptic.P256()), KeyID: "b"}
	rsa := jose.JSONWebKey{Key: rsaKey(), KeyID: "a"}
	unnamed := func(k jose.JSONWebKey) jose.JSONWebKey { k.KeyID = ""; return k }
	bound := func(k jose.JSONWebKey, alg string) jose.JSONWebKey { k.Algorithm = alg; return k }
	inner := sign(t, signingKey(t, "ES256"), someClaims, nil)
	named := seal{alg: "ECDH-ES", enc: "A128GCM", to: mine}.encrypt(t, inner)
	nameless := seal{alg: "ECDH-ES", enc: "A128GCM", to: unnamed(mine)}.encrypt(t, inner)

	for _, test := range []struct {
		name  string
		token string
		keys  []jose.JSONWebKey
		want  error
	}{
		{"by kid", named, []jose.JSONWebKey{other, mine}, nil},
		{"by kid among key types", named, []jose.JSONWebKey{rsa, mine}, nil},
		{"kid only on another", named, []jose.JSONWebKey{other}, ErrNoKey},
		{"kid on another key of us", named, []jose.JSONWebKey{{Key: other.Key, KeyID: "a"}, unnamed(mine)}, ErrDecrypt},
		{"key without kid serves any", named, []jose.JSONWebKey{other, unnamed(mine)}, nil},
		{"header without kid tries all", nameless, []jose.JSONWebKey{rsa, other, mine}, nil},
		{"header without kid and none fits", nameless, []jose.JSONWebKey{rsa}, ErrNoKey},
		{"header without kid and none right", nameless, []jose.JSONWebKey{other}, ErrDecrypt},
		{"bound to this alg", named, []jose.JSONWebKey{bound(mine, "ECDH-ES")}, nil},
		{"bound to another alg", named, []jose.JSONWebKey{bound(mine, "ECDH-ES+A128KW")}, ErrNoKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOpener(t, func(c *OpenConfig) { c.Keys = test.keys })
			if _, err := o.Open(test.token); !errors.Is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
		})
	}
}

func TestListsOfAlgorithmsAreKept(t *testing.T) {
	token := nested(t, someClaims) // ECDH-ES, A256GCM, ES256
	for _, test := range []struct {
		name   string
		change func(*OpenConfig)
		want   error
	}{
		{"all listed", func(c *OpenConfig) {
			c.KeyAlgorithms, c.ContentEncryptions, c.SignatureAlgorithms = []string{"ECDH-ES"}, []string{"A256GCM"}, []string{"ES256"}
		}, nil},
		{"alg not listed", func(c *OpenConfig) { c.KeyAlgorithms = []string{"RSA-OAEP"} }, ErrNotAllowed},
		{"enc not listed", func(c *OpenConfig) { c.ContentEncryptions = []string{"A128GCM"} }, ErrNotAllowed},
		{"signature alg not listed", func(c *OpenConfig) { c.SignatureAlgorithms = []string{"PS256", "Ed25519"} }, ErrNotAllowed},
	} {
		if _, err := newOpener(t, test.change).Open(token); !errors.Is(err, test.want) {
			t.Errorf("%s: got error %v, want %v", test.name, err, test.want)
		}
	}
}

func TestSignedOnlyTokenOpensIfAllowed(t *testing.T) {
	inner := sign(t, signingKey(t, "ES256"), someClaims, nil)
	o := newOpener(t, func(c *OpenConfig) { c.AllowUnencrypted, c.Keys = true, nil })
	opened, err := o.Open(inner)
	if err != nil {
		t.Fatal(err)
	}
	if opened.EncryptionHeader != nil || opened.InnerJWS != inner || string(opened.Claims) != someClaims {
		t.Errorf("got %+v", opened)
	}
	if _, err := o.Open(flip(t, inner, 2)); !errors.Is(err, ErrSignature) {
		t.Errorf("changed signature: got error %v, want ErrSignature", err)
	}
	if _, err := o.Open(nested(t, someClaims)); !errors.Is(err, ErrNoKey) {
		t.Errorf("encrypted token without keys: got error %v, want ErrNoKey", err)
	}
}

func TestClaimChecks(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, test := range []struct {
		name   string
		claims string
		change func(*OpenConfig)
		want   error
	}{
		{"nothing configured, nothing there", `{}`, nil, nil},
		{"iss right", `{"iss":"https://a"}`, func(c *OpenConfig) { c.Issuer = "https://a" }, nil},
		{"iss by another spelling of JSON", `{"\u0069ss":"https:\/\/a"}`, func(c *OpenConfig) { c.Issuer = "https://a" }, nil},
		{"iss wrong", `{"iss":"https://a/"}`, func(c *OpenConfig) { c.Issuer = "https://a" }, ErrClaims},
		{"iss missing", `{}`, func(c *OpenConfig) { c.Issuer = "https://a" }, ErrClaims},
		{"iss an array", `{"iss":["https://a"]}`, func(c *OpenConfig) { c.Issuer = "https://a" }, ErrClaims},
		{"aud right", `{"aud":"rp"}`, func(c *OpenConfig) { c.Audience = "rp" }, nil},
		{"aud among others", `{"aud":["x","rp"]}`, func(c *OpenConfig) { c.Audience = "rp" }, nil},
		{"aud wrong", `{"aud":"RP"}`, func(c *OpenConfig) { c.Audience = "rp" }, ErrClaims},
		{"aud of others", `{"aud":["x",1,null]}`, func(c *OpenConfig) { c.Audience = "rp" }, ErrClaims},
		{"aud missing", `{}`, func(c *OpenConfig) { c.Audience = "rp" }, ErrClaims},
		{"aud empty", `{"aud":[]}`, func(c *OpenConfig) { c.Audience = "rp" }, ErrClaims},
		{"exp ahead", `{"exp":1800000001}`, nil, nil},
		{"exp with a fraction", `{"exp":1.8000000015e9}`, nil, nil},
		{"exp past within leeway", `{"exp":1799999941}`, nil, nil},
		{"exp past leeway", `{"exp":1799999940}`, nil, ErrExpired},
		{"exp past, longer leeway", `{"exp":1799999940}`, func(c *OpenConfig) { c.Leeway = 2 * time.Minute }, nil},
		{"exp now, no leeway", `{"exp":1800000000}`, func(c *OpenConfig) { c.Leeway = -1 }, ErrExpired},
		{"exp past, allowed", `{"exp":1}`, func(c *OpenConfig) { c.AllowExpired = true }, nil},
		{"exp missing but required", `{}`, func(c *OpenConfig) { c.RequireExpiry = true }, ErrClaims},
		{"exp there and required", `{"exp":1800000001}`, func(c *OpenConfig) { c.RequireExpiry = true }, nil},
		{"exp null", `{"exp":null}`, nil, ErrClaims},
		{"nbf reached within leeway", `{"nbf":1800000060}`, nil, nil},
		{"nbf not reached", `{"nbf":1800000061}`, nil, ErrClaims},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOpener(t, func(c *OpenConfig) {
				c.Clock = func() time.Time { return now }
				if test.change != nil {
					test.change(c)
				}
			})
			opened, err := o.Open(nested(t, test.claims))
			if !errors.Is(err, test.want) {
				t.Fatalf("got error %v, want %v", err, test.want)
			}
			if err == nil && string(opened.Claims) != test.claims {
				t.Errorf("got claims %s, want %s", opened.Claims, test.claims)
			}
		})
	}
}

func TestHeaderMayRepeatClaims(t *testing.T) {
	s := toClient()
	s.header = map[jose.HeaderKey]any{"iss": "https://login.example.com", "aud": []string{"rp", "x"}}
	claims := `{"iss":"https:\/\/login.example.com", "aud" : [ "rp", "x" ]}`
	opened, err := newOpener(t, nil).Open(s.encrypt(t, sign(t, signingKey(t, "ES256"), claims, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(opened.EncryptionHeader.JSON), `"iss"`) {
		t.Errorf("got header %s, want iss in it", opened.EncryptionHeader.JSON)
	}
}

func TestTokenLargerThanTheBoundIsRefused(t *testing.T) {
	token := nested(t, someClaims)
	if _, err := newOpener(t, func(c *OpenConfig) { c.MaxBytes = len(token) }).Open(token); err != nil {
		t.Errorf("at the bound: %v", err)
	}
	if _, err := newOpener(t, func(c *OpenConfig) { c.MaxBytes = len(token) - 1 }).Open(token); !errors.Is(err, ErrMalformed) {
		t.Errorf("over the bound: got error %v, want ErrMalformed", err)
	}
	big := strings.Repeat("a", DefaultMaxBytes+1)
	if _, err := newOpener(t, nil).Open(big); !errors.Is(err, ErrMalformed) {
		t.Errorf("over the default: got error %v, want ErrMalformed", err)
	}
}

// Neither the token nor what is in it may get into an error's text.
func TestErrorsKeepSecrets(t *testing.T) {
	key := signingKey(t, "ES256")
	const secret = "alice-is-a-secret"
	claims := `{"iss":"` + secret + `","aud":"` + secret + `","sub":"` + secret + `","exp":1}`
	inner := sign(t, key, claims, nil)
	for _, inside := range []string{inner, flip(t, inner, 2), claims, sign(t, key, claims+claims, nil)} {
		token := toClient().encrypt(t, inside)
		for _, change := range []func(*OpenConfig){
			nil,
			func(c *OpenConfig) { c.Issuer = "x" },
			func(c *OpenConfig) { c.Audience = "x" },
		} {
			_, err := newOpener(t, change).Open(token)
			if err == nil {
				t.Fatal("opened")
			}
			for _, hidden := range append(strings.Split(inside, "."), append(strings.Split(token, "."), secret)...) {
				if hidden != "" && strings.Contains(err.Error(), hidden) {
					t.Errorf("error %q contains %q", err, hidden)
				}
			}
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*OpenConfig)
		text   string
	}{
		{"no keys", func(c *OpenConfig) { c.Keys = nil }, "OpenConfig.Keys is empty"},
		{"no signers", func(c *OpenConfig) { c.Signers = nil }, "OpenConfig.Signers is empty"},
		{"public key as private", func(c *OpenConfig) { c.Keys = []jose.JSONWebKey{public(clientKey())} }, "public key"},
		{"symmetric key", func(c *OpenConfig) { c.Keys = []jose.JSONWebKey{{Key: []byte("0123456789abcdef")}} }, "cannot decrypt"},
		{"small RSA key", func(c *OpenConfig) { c.Keys = []jose.JSONWebKey{{Key: smallRSAKey()}} }, "1024 bits"},
		{"signature key to decrypt", func(c *OpenConfig) { c.Keys[0].Use = "sig" }, "not enc"},
		{"private signer", func(c *OpenConfig) { c.Signers = []jose.JSONWebKey{signingKey(t, "ES256")} }, "not a public key"},
		{"symmetric signer", func(c *OpenConfig) {
			c.Signers = []jose.JSONWebKey{{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "a", Algorithm: "HS256"}}
		}, "not a public key"},
		{"signer without kid", func(c *OpenConfig) { c.Signers[0].KeyID = "" }, "no kid"},
		{"signer without alg", func(c *OpenConfig) { c.Signers[0].Algorithm = "" }, "no alg"},
		{"signer's alg does not fit", func(c *OpenConfig) { c.Signers[0].Algorithm = "ES384" }, "does not fit"},
		{"none", func(c *OpenConfig) { c.SignatureAlgorithms = []string{"none"} }, "ES256, ES384"},
		{"HS256", func(c *OpenConfig) { c.SignatureAlgorithms = []string{"ES256", "HS256"} }, `"HS256" is not supported`},
		{"PBES2", func(c *OpenConfig) { c.KeyAlgorithms = []string{"PBES2-HS256+A128KW"} }, "not supported"},
		{"RSA1_5", func(c *OpenConfig) { c.KeyAlgorithms = []string{"RSA1_5"} }, "RSA-OAEP-256, RSA-OAEP"},
		{"old enc", func(c *OpenConfig) { c.ContentEncryptions = []string{"A128CBC+HS256"} }, "A128CBC-HS256"},
		{"negative bound", func(c *OpenConfig) { c.MaxBytes = -1 }, "negative"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := OpenConfig{Keys: []jose.JSONWebKey{clientKey()}, Signers: anySigner(t)}
			test.change(&config)
			_, err := NewOpener(config)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got error %v, want %q in it", err, test.text)
			}
		})
	}
}

func TestOpenerIsSafeForConcurrentUse(t *testing.T) {
	o := newOpener(t, nil)
	token := nested(t, someClaims)
	errs := make(chan error)
	for range 8 {
		go func() {
			var err error
			for range 20 {
				if _, err = o.Open(token); err != nil {
					break
				}
			}
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
