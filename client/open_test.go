package client

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"slices"
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
	for _, alg := range []string{"RSA-OAEP", "RSA-OAEP-256", "RSA1_5"} {
		pairs = append(pairs, pair{alg, jose.JSONWebKey{Key: rsaKey(), KeyID: "rsa"}})
	}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key := jose.JSONWebKey{Key: ecKeyOn(t, curve), KeyID: curve.Params().Name}
		for _, alg := range []string{"ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW"} {
			pairs = append(pairs, pair{alg, key})
		}
	}
	symmetric := func(size int) jose.JSONWebKey {
		return jose.JSONWebKey{Key: []byte(strings.Repeat("k", size)), KeyID: fmt.Sprint(size)}
	}
	for alg, size := range map[string]int{"A128KW": 16, "A192KW": 24, "A256KW": 32, "A128GCMKW": 16, "A192GCMKW": 24, "A256GCMKW": 32} {
		pairs = append(pairs, pair{alg, symmetric(size)})
	}
	for _, size := range []int{16, 24, 32, 48, 64} {
		pairs = append(pairs, pair{"dir", symmetric(size)})
	}
	sizes := map[string]int{"A128GCM": 16, "A192GCM": 24, "A256GCM": 32, "A128CBC-HS256": 32, "A192CBC-HS384": 48, "A256CBC-HS512": 64}
	opens := 0
	inner := sign(t, signingKey(t, "ES256"), someClaims, map[jose.HeaderKey]any{"typ": "JWT"})
	for _, p := range pairs {
		for _, enc := range []string{"A128GCM", "A192GCM", "A256GCM", "A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512"} {
			t.Run(p.alg+" "+p.to.KeyID+" "+enc, func(t *testing.T) {
				if k, ok := p.to.Key.([]byte); ok && p.alg == "dir" && len(k) != sizes[enc] {
					return
				}
				opens++
				token := seal{alg: p.alg, enc: enc, to: p.to}.encrypt(t, inner)
				o := newOpener(t, func(c *OpenConfig) {
					c.Keys = []jose.JSONWebKey{p.to}
					c.KeyAlgorithms = []string{p.alg}
				})
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
	if want := (3+3*4+6)*6 + 6; opens != want {
		t.Errorf("%d combinations, want %d", opens, want)
	}
}

func TestEverySignatureAlgorithmVerifies(t *testing.T) {
	for _, alg := range signatureAlgorithms {
		t.Run(alg.name, func(t *testing.T) {
			key := signingKey(t, alg.name)
			token := toClient().encrypt(t, sign(t, key, someClaims, nil))
			trust := func(c *OpenConfig) { c.Signers, c.ClientSecrets = nil, [][]byte{key.Key.([]byte)} }
			if !alg.symmetric() {
				signers, err := ParseSigners(marshal(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(key)}}))
				if err != nil {
					t.Fatal(err)
				}
				trust = func(c *OpenConfig) { c.Signers = signers }
			}
			opened, err := newOpener(t, trust).Open(token)
			if err != nil {
				t.Fatal(err)
			}
			if opened.SignatureHeader.Algorithm != alg.name || string(opened.Claims) != someClaims {
				t.Errorf("got %s with %s", opened.SignatureHeader.Algorithm, opened.Claims)
			}

			// The same header and claims under another signature.
			inner := flip(t, opened.InnerJWS, 2)
			_, err = newOpener(t, trust).Open(toClient().encrypt(t, inner))
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
		{"jwk inside is no key", to.encrypt(t, withPart(inner, 0, b64(`{"alg":"ES256","kid":"sig-ES256","jwk":1}`))), ErrMalformed, "parameter"},

		{"no cty", header(`{"alg":"ECDH-ES","enc":"A256GCM","kid":"rp-1"}`), ErrNotAllowed, "cty"},
		{"another cty", with(map[jose.HeaderKey]any{"cty": "json"}).encrypt(t, inner), ErrNotAllowed, "cty"},
		{"compressed", seal{alg: to.alg, enc: to.enc, to: to.to, zip: true}.encrypt(t, inner), ErrNotAllowed, "zip"},
		{"crit", with(map[jose.HeaderKey]any{"crit": []string{"exp"}, "exp": 1}).encrypt(t, inner), ErrNotAllowed, "crit"},
		{"PBES2", header(`{"alg":"PBES2-HS256+A128KW","enc":"A256GCM","cty":"JWT","p2c":1000000000,"p2s":"AA"}`), ErrNotAllowed, "PBES2"},
		{"RSA1_5", header(`{"alg":"RSA1_5","enc":"A256GCM","cty":"JWT"}`), ErrNotAllowed, "RSA1_5"},
		{"alg none outside", header(`{"alg":"none","enc":"A256GCM","cty":"JWT"}`), ErrNotAllowed, "none"},
		{"unknown enc", header(`{"alg":"ECDH-ES","enc":"A128CBC+HS256","cty":"JWT"}`), ErrNotAllowed, "A128CBC+HS256"},
		{"JWE inside a JWE", to.encrypt(t, token), ErrNotAllowed, "another encrypted token"},
		{"signed only", inner, ErrNotAllowed, "AllowUnencrypted"},

		{"another kid", header(`{"alg":"ECDH-ES","enc":"A256GCM","cty":"JWT","kid":"rp-2"}`), ErrNoKey, `"rp-2"`},
		{"alg that our key does not name", header(`{"alg":"ECDH-ES+A128KW","enc":"A256GCM","cty":"JWT","kid":"rp-1"}`), ErrNoKey, "A128KW"},
		{"dir without a secret", header(`{"alg":"dir","enc":"A256GCM","cty":"JWT"}`), ErrNoKey, "dir"},
		{"A128KW without a secret", header(`{"alg":"A128KW","enc":"A256GCM","cty":"JWT","kid":"rp-1"}`), ErrNoKey, "A128KW"},
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
	secret := func(size int) jose.JSONWebKey {
		return jose.JSONWebKey{Key: []byte(strings.Repeat("k", size)), KeyID: "k"}
	}
	for _, s := range []seal{
		{alg: "RSA-OAEP", enc: "A128CBC-HS256", to: jose.JSONWebKey{Key: rsaKey(), KeyID: "k"}},
		{alg: "RSA-OAEP-256", enc: "A256GCM", to: jose.JSONWebKey{Key: rsaKey(), KeyID: "k"}},
		{alg: "RSA1_5", enc: "A128CBC-HS256", to: jose.JSONWebKey{Key: rsaKey(), KeyID: "k"}},
		{alg: "RSA1_5", enc: "A256GCM", to: jose.JSONWebKey{Key: rsaKey(), KeyID: "k"}},
		{alg: "ECDH-ES", enc: "A192CBC-HS384", to: jose.JSONWebKey{Key: ecKey(), KeyID: "k"}},
		{alg: "ECDH-ES+A256KW", enc: "A256CBC-HS512", to: jose.JSONWebKey{Key: ecKey(), KeyID: "k"}},
		{alg: "A192KW", enc: "A256CBC-HS512", to: secret(24)},
		{alg: "A256GCMKW", enc: "A128GCM", to: secret(32)},
		{alg: "dir", enc: "A128CBC-HS256", to: secret(32)},
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
		head := `{"alg":"` + s.alg + `","enc":"` + s.enc + `","cty":"JWT","kid":"k"`
		if s.alg == "ECDH-ES" || s.alg == "dir" {
			bad["encrypted key where none may be"] = withPart(good, 1, "AAAA")
		} else {
			bad["encrypted key"] = flip(t, good, 1)
			bad["empty encrypted key"] = withPart(good, 1, "")
			bad["short encrypted key"] = withPart(good, 1, "AAAA")
			bad["long encrypted key"] = withPart(good, 1, b64(strings.Repeat("\xff", 256)))
			// A content key of the wrong size, properly wrapped.
			other := s
			other.enc = "A192GCM"
			bad["wrong size of content key"] = withPart(good, 1, strings.Split(other.encrypt(t, inner), ".")[1])
		}
		switch {
		case strings.HasPrefix(s.alg, "RSA"):
			other := s
			other.to = otherRSA
			bad["other key"] = other.encrypt(t, inner)
		case strings.HasPrefix(s.alg, "ECDH"):
			low := `{"kty":"EC","crv":"P-256","x":"` + b64(strings.Repeat("\x00", 32)) + `","y":"` + b64(strings.Repeat("\x00", 32)) + `"}`
			for name, more := range map[string]string{
				"no epk":            ``,
				"epk is a number":   `,"epk":1`,
				"epk without x":     `,"epk":{"kty":"EC","crv":"P-256"}`,
				"epk is no point":   `,"epk":` + low,
				"private epk":       `,"epk":` + string(marshal(t, clientKey())),
				"apu is a number":   `,"apu":1,"epk":` + string(marshal(t, public(clientKey()))),
				"apv is no base64":  `,"apv":"=","epk":` + string(marshal(t, public(clientKey()))),
				"epk for X25519":    `,"epk":{"kty":"OKP","crv":"X25519","x":"` + b64(strings.Repeat("x", 32)) + `"}`,
				"epk names P-384":   `,"epk":` + strings.Replace(string(marshal(t, public(clientKey()))), "P-256", "P-384", 1),
				"epk named OKP":     `,"epk":` + strings.Replace(string(marshal(t, public(clientKey()))), `"EC"`, `"OKP"`, 1),
				"epk with short x":  `,"epk":` + edit(t, public(clientKey()), map[string]any{"x": "AAAA"}),
				"epk y is a number": `,"epk":` + edit(t, public(clientKey()), map[string]any{"y": 1}),
			} {
				bad[name] = withPart(good, 0, b64(head+more+`}`))
			}
		case strings.HasSuffix(s.alg, "GCMKW"):
			for name, more := range map[string]string{
				"no iv and tag":       ``,
				"no tag":              `,"iv":"AAAAAAAAAAAAAAAA"`,
				"short iv":            `,"iv":"AAAA","tag":"AAAAAAAAAAAAAAAAAAAAAA"`,
				"short tag":           `,"iv":"AAAAAAAAAAAAAAAA","tag":"AAAA"`,
				"iv is a number":      `,"iv":1,"tag":"AAAAAAAAAAAAAAAAAAAAAA"`,
				"another iv and tag":  `,"iv":"AAAAAAAAAAAAAAAA","tag":"AAAAAAAAAAAAAAAAAAAAAA"`,
				"tag is no base64url": `,"iv":"AAAAAAAAAAAAAAAA","tag":"/"`,
			} {
				bad[name] = withPart(good, 0, b64(head+more+`}`))
			}
		}
		o := newOpener(t, func(c *OpenConfig) { c.Keys, c.KeyAlgorithms = []jose.JSONWebKey{s.to}, []string{s.alg} })
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

// A private key in a header is a mistake that must not go unseen (RFC 7518, section
// 4.6.1.1: only public members).
func TestEphemeralKeyMustBePublic(t *testing.T) {
	private := string(marshal(t, jose.JSONWebKey{Key: ecKeyOn(t, elliptic.P256())}))
	for epk, want := range map[string]bool{private: false, editJSON(t, private, map[string]any{"d": nil}): true} {
		members, err := parseObject([]byte(epk))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sharedSecret(ecKey(), members); (err == nil) != want {
			t.Errorf("with d: %v, got error %v", !want, err)
		}
	}
}

// Points of low order make the same secret with every key: zeros.
func TestPointOfLowOrderIsRefused(t *testing.T) {
	for crv, size := range map[string]int{"x25519": 32, "x448": 56} {
		keys, err := ParseKeys([]byte(foreignKey(t, crv)))
		if err != nil {
			t.Fatal(err)
		}
		epk, err := parseObject([]byte(`{"kty":"OKP","crv":"` + strings.ToUpper(crv) + `","x":"` + b64(strings.Repeat("\x00", size)) + `"}`))
		if err != nil {
			t.Fatal(err)
		}
		if secret, err := sharedSecret(keys[0].Key, epk); err == nil {
			t.Errorf("%s: got secret %x", crv, secret)
		}
	}
}

// RSA1_5 with a padding that is right, wrong, or right around a key of the wrong size:
// the one good key comes out, all others become random, never an error.
func TestPKCS1v15FailuresAreSilent(t *testing.T) {
	wrap := func(key []byte) []byte {
		wrapped, err := rsa.EncryptPKCS1v15(rand.Reader, &rsaKey().PublicKey, key) //nolint:staticcheck // what is tested
		if err != nil {
			t.Fatal(err)
		}
		return wrapped
	}
	enc, _ := find(contentEncryptions, "A256GCM")
	good := []byte(strings.Repeat("c", enc.keySize))
	for name, test := range map[string]struct {
		wrapped []byte
		right   bool
	}{
		"right":           {wrap(good), true},
		"too short":       {wrap(good[:31]), false},
		"too long":        {wrap(append([]byte("c"), good...)), false},
		"empty":           {wrap(nil), false},
		"no padding":      {[]byte(strings.Repeat("\x01", 256)), false},
		"nothing but one": {append(make([]byte, 255), 1), false},
	} {
		e := &encrypted{encryptedKey: test.wrapped}
		first, err := rsaPKCS1v15(rsaKey(), e, enc)
		if err != nil || len(first) != enc.keySize {
			t.Errorf("%s: got a key of %d bytes, %v", name, len(first), err)
		}
		second, err := rsaPKCS1v15(rsaKey(), e, enc)
		if err != nil || bytes.Equal(first, second) != test.right || bytes.Equal(first, good) != test.right {
			t.Errorf("%s: got keys %x and %x, %v", name, first, second, err)
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
		{"more than are tried", nameless, slices.Repeat([]jose.JSONWebKey{mine}, maxTries+1), ErrNoKey},
		{"as many as are tried", nameless, append(slices.Repeat([]jose.JSONWebKey{other}, maxTries-1), mine), nil},
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

// Who knows a client's secret can sign with it. A client that expects the issuer's own
// signature must not take that one for it, and neither must a public key serve as a
// secret.
func TestSymmetricSignaturesMustBeExpected(t *testing.T) {
	secret := signingKey(t, "HS256").Key.([]byte)
	public := marshal(t, public(signingKey(t, "ES256")))
	byHMAC := toClient().encrypt(t, sign(t, jose.JSONWebKey{Key: secret, Algorithm: "HS256"}, someClaims, nil))
	byPublic := toClient().encrypt(t, sign(t, jose.JSONWebKey{Key: public, Algorithm: "HS256", KeyID: "sig-ES256"}, someClaims, nil))
	byIssuer := nested(t, someClaims)
	for _, test := range []struct {
		name                       string
		change                     func(*OpenConfig)
		byIssuer, byHMAC, byPublic error
	}{
		{"signers", nil, nil, ErrNotAllowed, ErrNotAllowed},
		{"signers and secret", func(c *OpenConfig) { c.ClientSecrets = [][]byte{secret} }, nil, ErrNotAllowed, ErrNotAllowed},
		{"secret", func(c *OpenConfig) { c.Signers, c.ClientSecrets = nil, [][]byte{secret} }, ErrUnknownSigner, nil, ErrSignature},
		{"both listed", func(c *OpenConfig) {
			c.ClientSecrets, c.SignatureAlgorithms = [][]byte{secret}, []string{"ES256", "HS256"}
		}, nil, nil, ErrSignature},
		{"old and new secret", func(c *OpenConfig) {
			c.Signers, c.ClientSecrets = nil, [][]byte{bytes.ToUpper(secret), secret}
		}, ErrUnknownSigner, nil, ErrSignature},
		{"another secret", func(c *OpenConfig) { c.Signers, c.ClientSecrets = nil, [][]byte{bytes.ToUpper(secret)} }, ErrUnknownSigner, ErrSignature, ErrSignature},
		{"a short secret", func(c *OpenConfig) { c.ClientSecrets = [][]byte{[]byte("short")} }, nil, ErrNotAllowed, ErrNotAllowed},
	} {
		o := newOpener(t, test.change)
		for token, want := range map[string]error{byIssuer: test.byIssuer, byHMAC: test.byHMAC, byPublic: test.byPublic} {
			if _, err := o.Open(token); !errors.Is(err, want) {
				t.Errorf("%s: got error %v, want %v", test.name, err, want)
			}
		}
	}
}

func TestSecretIsCopied(t *testing.T) {
	secret := bytes.Clone(signingKey(t, "HS256").Key.([]byte))
	token := toClient().encrypt(t, sign(t, jose.JSONWebKey{Key: bytes.Clone(secret), Algorithm: "HS256"}, someClaims, nil))
	o := newOpener(t, func(c *OpenConfig) { c.Signers, c.ClientSecrets = nil, [][]byte{secret} })
	clear(secret)
	if _, err := o.Open(token); err != nil {
		t.Errorf("after the caller's copy was cleared: %v", err)
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
		{"aud of us and a number", `{"aud":["rp",1]}`, func(c *OpenConfig) { c.Audience = "rp" }, ErrClaims},
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

// Whoever sends a token should not have more memory taken than the token has itself,
// some times over.
func TestTokenOfDotsIsCheap(t *testing.T) {
	token := toClient().encrypt(t, strings.Repeat(".", 700_000))
	o := newOpener(t, nil)
	var err error
	took := allocated(func() { _, err = o.Open(token) })
	if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "700001 parts") {
		t.Errorf("got error %v, want ErrMalformed with 700001 parts", err)
	}
	if limit := uint64(8 * len(token)); took > limit {
		t.Errorf("took %d bytes for a token of %d, want at most %d", took, len(token), limit)
	}
}

// allocated tells how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Padding is looked at only behind the tag, so only the sender's own mistake gets here.
func TestWrongPaddingDoesNotDecrypt(t *testing.T) {
	key, iv := bytes.Repeat([]byte("k"), 16), make([]byte, aes.BlockSize)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	open := func(plaintext string) ([]byte, error) {
		ciphertext := make([]byte, len(plaintext))
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(ciphertext, []byte(plaintext))
		return decryptCBC(key, &encrypted{iv: iv, ciphertext: ciphertext, tag: []byte("tag")}, []byte("tag"))
	}
	if text, err := open(strings.Repeat("x", 13) + "\x03\x03\x03"); err != nil || string(text) != strings.Repeat("x", 13) {
		t.Errorf("right padding: got %q, %v", text, err)
	}
	if text, err := open("x" + strings.Repeat("x", 15) + strings.Repeat("\x10", 16)); err != nil || len(text) != 16 {
		t.Errorf("a block of padding: got %q, %v", text, err)
	}
	for name, end := range map[string]string{
		"none":              "xxx\x00",
		"longer than block": strings.Repeat("\x11", 17),
		"not all the same":  "\x02\x03\x03",
		"longer than text":  strings.Repeat("\x20", 32),
	} {
		if text, err := open(strings.Repeat("x", 32-len(end)) + end); !errors.Is(err, errContent) {
			t.Errorf("%s: got %q, %v, want errContent", name, text, err)
		}
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
		{"symmetric key of no use", func(c *OpenConfig) { c.Keys = []jose.JSONWebKey{{Key: []byte("0123456789")}} }, "10 bytes"},
		{"Ed25519 key", func(c *OpenConfig) { c.Keys = []jose.JSONWebKey{{Key: edKey()}} }, "cannot decrypt"},
		{"ecdh key on P-256", func(c *OpenConfig) {
			key, err := ecKey().ECDH()
			if err != nil {
				t.Fatal(err)
			}
			c.Keys = []jose.JSONWebKey{{Key: key}}
		}, "ecdsa.PrivateKey"},
		{"too many keys", func(c *OpenConfig) { c.Keys = slices.Repeat(c.Keys, maxKeys+1) }, "101 keys"},
		{"too many signers", func(c *OpenConfig) { c.Signers = slices.Repeat(c.Signers, maxKeys+1) }, "101 keys"},
		{"too many secrets", func(c *OpenConfig) { c.ClientSecrets = slices.Repeat([][]byte{[]byte("s")}, maxSecrets+1) }, "9 secrets"},
		{"empty secret", func(c *OpenConfig) { c.ClientSecrets = [][]byte{[]byte("good"), nil} }, "empty secret"},
		{"secret too short to verify", func(c *OpenConfig) {
			c.ClientSecrets, c.SignatureAlgorithms = [][]byte{[]byte(strings.Repeat("s", 47))}, []string{"HS256", "HS384"}
		}, "HS384 needs secrets of 48 bytes"},
		{"secret too short, and no signers", func(c *OpenConfig) { c.ClientSecrets, c.Signers = [][]byte{[]byte(strings.Repeat("s", 31))}, nil }, "Signers is empty"},
		{"unknown kind", func(c *OpenConfig) { c.Kind = "id_token" }, "ID_TOKEN"},
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
		{"HS256", func(c *OpenConfig) { c.SignatureAlgorithms = []string{"ES256", "HS256"} }, "give it in ClientSecrets"},
		{"PBES2", func(c *OpenConfig) { c.KeyAlgorithms = []string{"PBES2-HS256+A128KW"} }, "not supported"},
		{"alg by another case", func(c *OpenConfig) { c.KeyAlgorithms = []string{"rsa1_5"} }, "RSA-OAEP-256, RSA-OAEP"},
		{"enc that does not exist", func(c *OpenConfig) { c.ContentEncryptions = []string{"A256CBC+HS512"} }, "A128CBC-HS256"},
		{"trusted audiences without a kind", func(c *OpenConfig) { c.Audience, c.TrustedAudiences = "rp", []string{"x"} }, "TrustedAudiences"},
		{"trusted audiences without an audience", func(c *OpenConfig) { c.Kind, c.TrustedAudiences = IDToken, []string{"x"} }, "TrustedAudiences"},
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
