package client

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// FuzzOpen: whatever text comes, Open neither panics nor opens what the signer has
// not signed. The keys are Wycheproof's, so that an input found once can be run again.
func FuzzOpen(f *testing.F) {
	var keys []jose.JSONWebKey
	for _, g := range wycheproofGroups(f, "json_web_encryption_test.json") {
		found, err := ParseKeys(g.Private)
		if err != nil {
			continue
		}
		keys = append(keys, found...)
		for _, v := range g.Tests {
			f.Add(string(v.JWE))
		}
	}
	var signer jose.JSONWebKey
	for _, g := range wycheproofGroups(f, "json_web_signature_test.json") {
		for _, v := range g.Tests[:1] {
			f.Add(string(v.JWS))
		}
		if g.Comment == "es256" {
			if err := signer.UnmarshalJSON(g.Private); err != nil {
				f.Fatal(err)
			}
		}
	}
	i := slices.IndexFunc(keys, func(k jose.JSONWebKey) bool { return k.Algorithm == "ECDH-ES+A128KW" })
	j := slices.IndexFunc(keys, func(k jose.JSONWebKey) bool { return k.Algorithm == "RSA-OAEP-256" })
	claims := []string{`{}`, `{"iss":"a","aud":["b","c"],"exp":1e9,"nbf":-1}`, `{"sub":"\ud83d\ude00"}`}
	for _, c := range claims {
		inner := sign(f, signer, c, nil)
		f.Add(inner)
		f.Add(seal{alg: "ECDH-ES+A128KW", enc: "A128CBC-HS256", to: keys[i]}.encrypt(f, inner))
		f.Add(seal{alg: "RSA-OAEP-256", enc: "A256GCM", to: keys[j]}.encrypt(f, inner))
	}
	f.Add(strings.Repeat(".", 4))
	foreign := readForeign(f)
	for _, name := range []string{"rsa", "x25519", "x448"} {
		key, err := ParseKeys(foreign.keys[name])
		if err != nil {
			f.Fatal(err)
		}
		keys = append(keys, key...)
	}
	for _, token := range foreign.tokens {
		f.Add(token.Token)
	}
	claims = append(claims, foreign.claims)

	o, err := NewOpener(OpenConfig{
		Keys:                keys,
		ClientSecrets:       [][]byte{[]byte(foreign.secret)},
		Signers:             []jose.JSONWebKey{public(signer)},
		KeyAlgorithms:       names(keyAlgorithms),
		ContentEncryptions:  names(contentEncryptions),
		SignatureAlgorithms: names(signatureAlgorithms),
		AllowUnencrypted:    true,
		Clock:               func() time.Time { return time.Unix(1e8, 0) },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, token string) {
		opened, err := o.Open(token)
		if (opened == nil) == (err == nil) {
			t.Fatalf("got token %v and error %v", opened, err)
		}
		if err == nil && !slices.Contains(claims, string(opened.Claims)) {
			t.Fatalf("opened claims that nobody signed: %s", opened.Claims)
		}
	})
}

// FuzzParseKeys: whatever document comes, JSON or PEM, what is returned can be used, and
// an error does not repeat it.
func FuzzParseKeys(f *testing.F) {
	for _, g := range wycheproofGroups(f, "json_web_encryption_test.json") {
		f.Add([]byte(g.Private))
	}
	for _, key := range readForeign(f).keys {
		f.Add([]byte(key))
	}
	files, err := filepath.Glob("testdata/pem/*.pem")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	signers := anySigner(f)
	f.Fuzz(func(t *testing.T, document []byte) {
		keys, err := ParseKeys(document)
		if err != nil {
			return
		}
		o, err := NewOpener(OpenConfig{Keys: keys, Signers: signers})
		if err != nil {
			t.Fatalf("parsed, but not usable: %v", err)
		}
		for _, alg := range keyAlgorithms {
			if alg.direct {
				continue
			}
			token := b64(`{"alg":"`+alg.name+`","enc":"A128GCM","cty":"JWT"}`) + ".AAAA.AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA"
			if _, err := o.Open(token); err == nil {
				t.Errorf("%s: opened", alg.name)
			}
		}
	})
}

// FuzzParseSigners: whatever document comes, what is returned can be used.
func FuzzParseSigners(f *testing.F) {
	for _, g := range wycheproofGroups(f, "json_web_signature_test.json") {
		f.Add([]byte(g.Public))
		f.Add([]byte(`{"keys":[` + string(g.Public) + `]}`))
	}
	f.Add([]byte(set(foreignKeys)))
	f.Fuzz(func(t *testing.T, document []byte) {
		signers, err := ParseSigners(document)
		if err != nil {
			return
		}
		if _, err := NewOpener(OpenConfig{Signers: signers, AllowUnencrypted: true}); err != nil {
			t.Errorf("parsed, but not usable: %v", err)
		}
	})
}
