package encrypter

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// OpenID Connect Core 1.0 section 10.2; the values are those of sha256sum,
// sha384sum and sha512sum.
func TestSecretKeyIsTheLeftOfAHash(t *testing.T) {
	const (
		sha256 = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
		sha384 = "a8b64babd0aca91a59bdbb7761b421d4f2bb38280d3a75ba0f21f2bebc45583d446c598660c94ce680c47d19c30783a7"
		sha512 = "b109f3bbbc244eb82441917ed06d618b9008dd09b3befd1b5e07394c706a8bb980b1d7785e5976ec049b46df5f1326af5a2ea6d103fd07c95385ffab0cacbc86"
	)
	for _, tc := range []struct {
		alg  KeyAlgorithm
		enc  ContentEncryption
		want string
	}{
		{A128KW, A256CBCHS512, "5e884898da28047151d0e56f8dc62927"},
		{A192KW, A128GCM, sha256[:48]},
		{A256KW, A128GCM, sha256},
		{A128GCMKW, A256GCM, sha256[:32]},
		{A192GCMKW, A256GCM, sha256[:48]},
		{A256GCMKW, A256GCM, sha256},
		{Dir, A128GCM, sha256[:32]},
		{Dir, A192GCM, sha256[:48]},
		{Dir, A256GCM, sha256},
		{Dir, A128CBCHS256, sha256},
		{Dir, A192CBCHS384, sha384},
		{Dir, A256CBCHS512, sha512},
	} {
		got, err := DeriveSecretKey("password", tc.alg.SecretSize(tc.enc))
		if err != nil || hex.EncodeToString(got) != tc.want {
			t.Errorf("%s with %s: %x, %v; want %s", tc.alg, tc.enc, []byte(got), err, tc.want)
		}
		if cap(got) != len(got) {
			t.Errorf("%s with %s: more of the hash is behind the key", tc.alg, tc.enc)
		}
	}
	// The octets of the UTF-8 text are hashed: printf 'schlüssel' | sha256sum.
	got, err := DeriveSecretKey("schlüssel", 32)
	if want := "ccec7a8e3e039f0b6b308a81f438e1d07a59c8c896b4f237d10c3eecb8375ef7"; err != nil || hex.EncodeToString(got) != want {
		t.Errorf("schlüssel: %x, %v; want %s", []byte(got), err, want)
	}
}

func TestNoKeyIsDerivedOfAnUnusableSecret(t *testing.T) {
	for _, tc := range []struct {
		secret string
		size   int
		want   string
	}{
		{"", 16, "is empty"},
		{"\xffcret", 16, "not UTF-8"},
		{"s3cr3t", 0, "no key of 0 bytes"},
		{"s3cr3t", 15, "no key of 15 bytes"},
		{"s3cr3t", 65, "no key of 65 bytes"},
		{"s3cr3t", -1, "no key of -1 bytes"},
	} {
		key, err := DeriveSecretKey(tc.secret, tc.size)
		if !errors.Is(err, ErrKeyUnsuitable) || !strings.Contains(err.Error(), tc.want) || key != nil {
			t.Errorf("DeriveSecretKey(%q, %d) = %v, want %q", tc.secret, tc.size, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "cr3t") {
			t.Errorf("the error holds the secret: %v", err)
		}
	}
}

func TestSecretKeyDoesNotShow(t *testing.T) {
	key := SecretKey("sixteen letters!")
	cfg := RecipientConfig{Key: key, Algorithm: A128KW, ContentEncryption: A128GCM}
	recipient := must(NewRecipient(cfg))
	dir := must(NewRecipient(RecipientConfig{Key: key, Algorithm: Dir, ContentEncryption: A128GCM}))
	shown := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b", "%c", "%U", "%08b"} {
		for name, value := range map[string]any{
			"key": key, "pointer": &key, "config": cfg, "pointer to config": &cfg, "slice": []SecretKey{key},
			"recipient": recipient, "recipient for dir": dir, "recipient by value": *recipient, "recipient for dir by value": *dir,
			// fmt calls no method of what is in an unexported field.
			"recipient in an unexported field": struct{ r *Recipient }{recipient}, "recipient by value in an unexported field": struct{ r Recipient }{*recipient},
			"recipient for dir in an unexported field": struct{ r Recipient }{*dir}, "recipients in an unexported field": struct{ r []Recipient }{[]Recipient{*recipient, *dir}},
		} {
			shown[name+" "+verb] = fmt.Sprintf(verb, value)
		}
	}
	shown["json"] = string(must(json.Marshal(map[string]any{"a": key, "b": cfg})))
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("x", "key", key, "any", slog.AnyValue(key), "config", cfg)
		shown[name] = b.String()
	}
	shown["error"] = fmt.Sprint(RSAOAEP.Fits(key))
	_, err := NewRecipient(RecipientConfig{Key: key, Algorithm: A256KW, ContentEncryption: A128GCM})
	shown["error of size"] = err.Error()
	_, err = NewRecipient(RecipientConfig{Key: []byte(key), Algorithm: A256KW, ContentEncryption: A128GCM})
	shown["error of type"] = err.Error()

	for name, text := range shown {
		plain := strings.ToLower(strings.NewReplacer(" ", "", ",", "", "0x", "").Replace(text))
		for _, form := range []string{"sixteen", "736978", "115105120", "163151170", "c2l4dGVlbi", "s'i'x"} {
			if strings.Contains(plain, form) {
				t.Errorf("%s shows the key: %s", name, text)
			}
		}
	}
	if got := fmt.Sprintf("%x", key); got != redacted {
		t.Errorf("%%x = %q, want %q", got, redacted)
	}
}
