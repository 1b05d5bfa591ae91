package jwks_test

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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
	f.Add(document(f, x25519JWK(), with(x448JWK(), "use", "enc"), jwk{"kty": "OKP", "crv": "X25519", "x": b64(make([]byte, 32))}, jwk{"kty": "AKP"}, jwk{}), "")
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
		checkSet(t, set, pin)
	})
}

// FuzzParsePEM holds for every text what FuzzParse holds for every document,
// and that a text with a private key is never taken.
func FuzzParsePEM(f *testing.F) {
	files, err := filepath.Glob("testdata/pem/*.pem")
	if err != nil || len(files) == 0 {
		f.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		if b, _ := pem.Decode(text); b != nil {
			f.Add(b.Bytes) // wrapped below, so that the fuzzer can get at the DER
		}
	}
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----"))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nA: b\n\nAAAA\n-----END PUBLIC KEY-----"))
	f.Add([]byte{0x30, 0x42, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6f, 0x03, 0x39, 0x00})
	f.Fuzz(func(t *testing.T, input []byte) {
		for _, text := range [][]byte{input, block("PUBLIC KEY", input), block("RSA PUBLIC KEY", input), block("CERTIFICATE", input)} {
			set, err := jwks.ParsePEM(text, jwks.Limits{})
			if err != nil {
				if !errors.Is(err, jwks.ErrRejected) || set != nil {
					t.Fatalf("ParsePEM = %v, %v", set, err)
				}
				checkMessage(t, err.Error(), 1<<10)
				continue
			}
			if len(text) > 128<<10 || len(set.Keys()) != 1 || strings.Contains(string(text), "PRIVATE KEY-----") {
				t.Fatalf("accepted %d bytes with %d keys: %.200q", len(text), len(set.Keys()), text)
			}
			checkSet(t, set, "")
		}
	})
}

func checkSet(t *testing.T, set *jwks.Set, pin string) {
	t.Helper()
	for i, k := range set.Keys() {
		if k.Index != i || (k.State == jwks.Usable) != (k.Public != nil) || (k.State == jwks.Usable) != (k.Reason == "") {
			t.Fatalf("keys[%d] = %+v", i, k)
		}
		if (k.X5TS256 == "") != (k.X5T == "") || k.X5T == "" && (!k.NotBefore.IsZero() || !k.NotAfter.IsZero()) {
			t.Fatalf("keys[%d] has half a certificate: %+v", i, k)
		}
		if len(k.KeyID) > 256 || len(k.KeyOps) > 16 || max(len(k.Type), len(k.Curve), len(k.Use), len(k.Algorithm)) > 64 {
			t.Fatalf("keys[%d] keeps junk: %+v", i, k)
		}
		checkMessage(t, k.Reason, 1<<10)
		for _, w := range k.WarningsAt(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
			checkMessage(t, w, 1<<10)
		}
	}
	for _, alg := range append(encrypter.KeyAlgorithms(), "unknown", "") {
		for _, want := range []jwks.Want{{Algorithm: alg}, {Algorithm: alg, KeyID: pin}} {
			checkChoice(t, set, want)
		}
	}
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
	_, err = encrypter.NewRecipient(encrypter.RecipientConfig{Key: chosen.Public, Algorithm: want.Algorithm, ContentEncryption: encrypter.A128CBCHS256})
	if err != nil {
		t.Fatalf("chose %v, which is not usable: %v", chosen, err)
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
