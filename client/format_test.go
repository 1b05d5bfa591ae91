package client

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// A secret in whatever somebody prints or logs, in whatever form, is out.
func TestNothingSecretIsPrinted(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef-secret")
	shared := []byte("fedcba9876543210")
	raw := bytes.Repeat([]byte{0xc7, 0x3a, 0x55, 0x91}, 14)
	key, err := NewX448PrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	config := OpenConfig{
		Keys:          []jose.JSONWebKey{{Key: shared, KeyID: "s"}, {Key: key}, clientKey()},
		ClientSecrets: [][]byte{secret},
		Signers:       anySigner(t),
	}
	opener, err := NewOpener(config)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ecKey().Bytes()
	if err != nil {
		t.Fatal(err)
	}

	// What is in an unexported field is printed without asking its methods.
	values := map[string]any{
		"*Opener": opener, "Opener": *opener, "Opener in a field": struct{ opener *Opener }{opener}, "Opener by value in a field": struct{ opener Opener }{*opener},
		"OpenConfig": config, "*OpenConfig": &config, "OpenConfig in a field": struct{ Config OpenConfig }{config},
		"*X448PrivateKey": key, "X448PrivateKey": *key, "X448 in a field": struct{ key *X448PrivateKey }{key}, "X448 by value in a field": struct{ key X448PrivateKey }{*key},
		"X448 in a slice": []X448PrivateKey{*key},
	}
	for name, v := range values {
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%c", "%U"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "value", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "value", v)
		for what, whole := range map[string][]byte{"secret": secret, "symmetric key": shared, "X448 key": raw, "EC key": d} {
			hidden := whole[:9]
			for _, form := range []string{
				string(hidden), hex.EncodeToString(hidden), strings.ToUpper(hex.EncodeToString(hidden)),
				base64.StdEncoding.EncodeToString(hidden), base64.RawURLEncoding.EncodeToString(hidden),
				trim(fmt.Sprintf("%d", hidden)), trim(fmt.Sprintf("%o", hidden)), trim(fmt.Sprintf("%#v", hidden)), trim(fmt.Sprintf("%U", hidden)),
			} {
				if strings.Contains(out.String(), form) {
					t.Errorf("printing %s shows the %s as %s", name, what, form)
				}
			}
		}
	}
}

// trim takes the brackets of a list off.
func trim(list string) string { return strings.Trim(strings.TrimPrefix(list, "[]byte"), "[]{}") }

func TestConfigPrintsWhatItHas(t *testing.T) {
	config := OpenConfig{Keys: []jose.JSONWebKey{clientKey()}, ClientSecrets: [][]byte{nil, nil}, Signers: anySigner(t), Kind: IDToken, Issuer: "https://a", Audience: "rp"}
	want := `OpenConfig{Keys: 1, ClientSecrets: 2, Signers: 1, Kind: "ID_TOKEN", Issuer: "https://a", Audience: "rp"}`
	if got := fmt.Sprint(config); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
