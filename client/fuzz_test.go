package client

import (
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
			f.Add(v.JWE)
		}
	}
	var signer jose.JSONWebKey
	for _, g := range wycheproofGroups(f, "json_web_signature_test.json") {
		for _, v := range g.Tests[:1] {
			f.Add(v.JWS)
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

	o, err := NewOpener(OpenConfig{
		Keys:             keys,
		Signers:          []jose.JSONWebKey{public(signer)},
		AllowUnencrypted: true,
		Clock:            func() time.Time { return time.Unix(1e8, 0) },
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
