package jwks_test

import (
	"errors"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// FuzzParse holds for every document: nothing panics; a refusal is
// ErrRejected; only a usable key that is not for signatures and that the
// algorithm itself takes is ever chosen; Choose and Explain agree; messages
// are bounded, on one line.
func FuzzParse(f *testing.F) {
	f.Add([]byte(rfc7517A1), "")
	f.Add([]byte(rfc7517A1), "1")
	f.Add(document(f, with(rsaJWK(), "use", "enc", "alg", "RSA-OAEP", "kid", "a"), with(rsaJWK(), "key_ops", []string{"wrapKey"})), "a")
	f.Add(document(f, with(p384JWK(), "use", "sig", "key_ops", []string{"verify"}), with(p521JWK(), "kid", "b")), "b")
	f.Add(document(f, with(weakJWK(), "kid", 3), with(rsaJWK(), "e", "Ag", "x5c", []string{"AAAA"}, "x5t#S256", "AA")), "")
	f.Add(document(f, jwk{"kty": "OKP", "crv": "X25519", "x": "3p7bfXt9wbTTW2HC7OQ1Nz-DQ8hbeGdNrfx-FG-IK08"}, jwk{"kty": "AKP"}, jwk{}), "")
	f.Add(document(f, with(ecJWK(), "d", "AA")), "")
	f.Add([]byte(`{"keys":[{"kty":"EC","kid":"a"},{"kty":"EC","kid":"a"}]}`), "a")
	f.Add([]byte(`{"keys":[[[[{"a":[[[[`), "")
	f.Add([]byte(`{"ext":"\ud800","keys":[]}x`), "")
	f.Fuzz(func(t *testing.T, doc []byte, pin string) {
		set, err := jwks.Parse(doc, jwks.Limits{})
		if err != nil {
			if !errors.Is(err, jwks.ErrRejected) || set != nil {
				t.Fatalf("Parse = %v, %v", set, err)
			}
			checkMessage(t, err.Error(), 1<<10)
			return
		}
		if len(doc) > 128<<10 || !utf8.Valid(doc) || len(set.Keys()) > 100 {
			t.Fatalf("accepted %d bytes with %d keys", len(doc), len(set.Keys()))
		}
		for i, k := range set.Keys() {
			if k.Index != i || (k.State == jwks.Usable) != (k.Public != nil) || (k.State == jwks.Usable) != (k.Reason == "") {
				t.Fatalf("keys[%d] = %+v", i, k)
			}
			checkMessage(t, k.Reason, 1<<10)
			for _, w := range k.Warnings {
				checkMessage(t, w, 1<<10)
			}
		}
		for _, alg := range append(encrypter.KeyAlgorithms(), "dir", "") {
			for _, want := range []jwks.Want{{Algorithm: alg}, {Algorithm: alg, KeyID: pin}} {
				checkChoice(t, set, want)
			}
		}
	})
}

func checkChoice(t *testing.T, set *jwks.Set, want jwks.Want) {
	t.Helper()
	var explained *jwks.Key
	for _, v := range set.Explain(want) {
		if v.Outcome == jwks.Chosen {
			if explained != nil {
				t.Fatalf("%v and %v are both chosen", explained, v.Key)
			}
			explained = v.Key
		}
		checkMessage(t, v.Reason, 1<<10)
	}
	chosen, err := set.Choose(want)
	if chosen != explained || (err == nil) != (chosen != nil) {
		t.Fatalf("Choose = %v, %v; Explain chose %v", chosen, err, explained)
	}
	if err != nil {
		if !errors.Is(err, jwks.ErrNoKey) {
			t.Fatalf("Choose: %v", err)
		}
		checkMessage(t, err.Error(), 8<<10)
		return
	}
	if chosen.State != jwks.Usable || chosen.Use != "" && chosen.Use != "enc" ||
		chosen.Algorithm != "" && chosen.Algorithm != string(want.Algorithm) ||
		want.KeyID != "" && chosen.KeyID != want.KeyID ||
		slices.Contains(chosen.KeyOps, "verify") && chosen.Use != "" {
		t.Fatalf("chose %+v for %+v", chosen, want)
	}
	if err := want.Algorithm.Fits(chosen.Public); err != nil {
		t.Fatalf("chose %v: %v", chosen, err)
	}
}

func checkMessage(t *testing.T, text string, most int) {
	t.Helper()
	if len(text) > most {
		t.Fatalf("message of %d bytes: %.200s", len(text), text)
	}
	for _, r := range text {
		if r < ' ' || r == utf8.RuneError {
			t.Fatalf("message with control characters: %q", text)
		}
	}
}
