package client

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// What go-jose cannot make (X25519, X448, RSA-OAEP-384 and -512, A128CBC+HS256), or has
// not to do with (keys made of a secret), was made by other people's libraries; see
// testdata/foreign/make.mjs.

type foreignTokens struct {
	keys   map[string]json.RawMessage
	secret string
	claims string
	tokens []foreignToken
}

type foreignToken struct {
	By, Alg, Enc, Key, Sig, Token string
}

func readForeign(t testing.TB) *foreignTokens {
	t.Helper()
	raw, err := os.ReadFile("testdata/foreign/keys.json")
	if err != nil {
		t.Fatal(err)
	}
	f := &foreignTokens{}
	if err := json.Unmarshal(raw, &f.keys); err != nil {
		t.Fatal(err)
	}
	for name, into := range map[string]*string{"secret": &f.secret, "claims": &f.claims} {
		if err := json.Unmarshal(f.keys[name], into); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Open("testdata/foreign/tokens.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var token foreignToken
		if err := json.Unmarshal(lines.Bytes(), &token); err != nil {
			t.Fatal(err)
		}
		f.tokens = append(f.tokens, token)
	}
	return f
}

// foreignKey returns one of the private keys as JSON.
func foreignKey(t testing.TB, name string) string { return string(readForeign(t).keys[name]) }

// config accepts what one token was made with, and nothing else.
func (f *foreignTokens) config(t testing.TB, token foreignToken) OpenConfig {
	t.Helper()
	var signer jose.JSONWebKey
	if err := signer.UnmarshalJSON(f.keys["signer"]); err != nil {
		t.Fatal(err)
	}
	config := OpenConfig{
		Signers:             []jose.JSONWebKey{signer.Public()},
		ClientSecrets:       [][]byte{[]byte("an old secret, no longer in use, but long enough to be good for HS512"), []byte(f.secret)},
		KeyAlgorithms:       []string{token.Alg},
		ContentEncryptions:  []string{token.Enc},
		SignatureAlgorithms: []string{token.Sig},
	}
	if key, ok := f.keys[token.Key]; ok && token.Key != "secret" {
		var err error
		if config.Keys, err = ParseKeys(key); err != nil {
			t.Fatal(err)
		}
	}
	return config
}

func TestTokensOfOthersOpen(t *testing.T) {
	f := readForeign(t)
	if len(f.tokens) != 50 {
		t.Errorf("got %d tokens, want 50", len(f.tokens))
	}
	for _, token := range f.tokens {
		t.Run(token.Alg+" "+token.Key+" "+token.Enc+" "+token.Sig, func(t *testing.T) {
			o, err := NewOpener(f.config(t, token))
			if err != nil {
				t.Fatal(err)
			}
			opened, err := o.Open(token.Token)
			if err != nil {
				t.Fatalf("by %s: %v", token.By, err)
			}
			if string(opened.Claims) != f.claims || opened.SignatureHeader.Algorithm != token.Sig {
				t.Errorf("got %s, signed by %s", opened.Claims, opened.SignatureHeader.Algorithm)
			}
			for i := 1; i < 5; i++ {
				if i == 1 && (token.Alg == "dir" || token.Alg == "ECDH-ES") {
					continue // has no encrypted key
				}
				if _, err := o.Open(flip(t, token.Token, i)); err != ErrDecrypt { //nolint:errorlint // wrapping would tell something
					t.Errorf("part %d changed: got error %v, want exactly ErrDecrypt", i+1, err)
				}
			}
			if _, err := o.Open(withPart(token.Token, 0, b64(`{"alg":"`+token.Alg+`","enc":"`+token.Enc+`","cty":"JWT"}`))); err != ErrDecrypt { //nolint:errorlint // as above
				t.Errorf("header changed: got error %v, want exactly ErrDecrypt", err)
			}
		})
	}
}

func TestLegacyAlgorithmsMustBeListed(t *testing.T) {
	f := readForeign(t)
	n := 0
	for _, token := range f.tokens {
		if token.Enc != legacyCBC {
			continue
		}
		n++
		for _, test := range []struct {
			name   string
			change func(*OpenConfig)
			want   error
		}{
			{"both listed", nil, nil},
			{"neither listed, but allowed", func(c *OpenConfig) { c.KeyAlgorithms, c.ContentEncryptions, c.AllowLegacy = nil, nil, true }, nil},
			{"allowed, but others listed", func(c *OpenConfig) { c.ContentEncryptions, c.AllowLegacy = []string{"A128CBC-HS256"}, true }, ErrNotAllowed},
			{"enc not listed", func(c *OpenConfig) { c.ContentEncryptions = nil }, ErrNotAllowed},
			{"alg not listed", func(c *OpenConfig) { c.KeyAlgorithms = nil },
				map[string]error{"RSA1_5": ErrNotAllowed, "RSA-OAEP": nil}[token.Alg]},
		} {
			config := f.config(t, token)
			if test.change != nil {
				test.change(&config)
			}
			o, err := NewOpener(config)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := o.Open(token.Token); !errors.Is(err, test.want) {
				t.Errorf("%s, %s: got error %v, want %v", token.Alg, test.name, err, test.want)
			}
		}
	}
	if n != 2 {
		t.Errorf("got %d tokens, want one with RSA1_5 and one with RSA-OAEP", n)
	}
}

// The legacy content encryption belongs to the two algorithms that its drafts had.
func TestLegacyContentEncryptionHasItsAlgorithms(t *testing.T) {
	f := readForeign(t)
	for _, alg := range keyAlgorithms {
		if alg.name == "RSA1_5" || alg.name == "RSA-OAEP" {
			continue
		}
		config := OpenConfig{
			Signers: anySigner(t), ClientSecrets: [][]byte{[]byte("secret")},
			KeyAlgorithms: []string{alg.name}, ContentEncryptions: []string{legacyCBC},
		}
		for _, name := range []string{"rsa", "x448"} {
			keys, err := ParseKeys(f.keys[name])
			if err != nil {
				t.Fatal(err)
			}
			config.Keys = append(config.Keys, keys...)
		}
		o, err := NewOpener(config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = o.Open(b64(`{"alg":"`+alg.name+`","enc":"A128CBC+HS256","cty":"JWT"}`) + "....")
		if !errors.Is(err, ErrNotAllowed) {
			t.Errorf("%s: got error %v, want ErrNotAllowed", alg.name, err)
		}
	}
}
