package metadata_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bulla-project/bulla/encrypter/metadata"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// FuzzParse holds for every document: nothing panics; a refusal is an *Error
// that shows no secret; what is accepted is a registration's source and
// settings, with one entry a kind, an enc wherever there is an alg and nowhere
// else, and a secret where an algorithm needs one.
func FuzzParse(f *testing.F) {
	f.Add([]byte(curity))
	f.Add(object())
	f.Add(object("client_id", `"a"`, "client_secret", `"`+secret+`"`, "client_secret_expires_at", "0", "id_token_encrypted_response_alg", `"dir"`, "id_token_signed_response_alg", `"HS512"`))
	f.Add(object("jwks_uri", `"https://a/jwks"`, "userinfo_encrypted_response_alg", `"ECDH-ES"`, "authorization_signed_response_alg", `"none"`))
	f.Add(object("jwks", set, "introspection_encrypted_response_alg", `"RSA1_5"`, "introspection_encrypted_response_enc", `"A128CBC+HS256"`))
	f.Add(object("token_endpoint_auth_method", `"none"`, "id_token_encrypted_response_alg", `"A128GCMKW"`, "client_secret", "null"))
	f.Add([]byte(`{"client_secret":"` + secret + `\ud800","ext":[[[{"a":1e9999}]]]}`))
	f.Add([]byte(`{"client_secret_expires_at": 1.5, "jwks" : {"keys":[{"kty":"oct"}]} }x`))
	f.Fuzz(func(t *testing.T, document []byte) {
		c, err := metadata.Parse(document)
		if err != nil {
			var e *metadata.Error
			if c != nil || !errors.Is(err, metadata.ErrInvalid) || !errors.As(err, &e) || e.Problem == "" {
				t.Fatalf("Parse = %v, %v", c, err)
			}
			text := err.Error()
			if len(text) > 1<<10 || !utf8.ValidString(text) || strings.ContainsAny(text, "\n\x00") || strings.Contains(text, secret) {
				t.Fatalf("text %q", text)
			}
			return
		}
		if c.Secret() == "" && !c.SecretExpiresAt.IsZero() {
			t.Fatalf("no secret expires: %q", document)
		}
		if len(document) > metadata.MaxBytes || !utf8.Valid(document) || !bytes.Contains(document, c.JWKS) || c.JWKS != nil && c.JWKSURI != "" {
			t.Fatalf("accepted %q", document)
		}
		if secret := c.Secret(); len(secret) > 8 && strings.Contains(fmt.Sprintf("%+v%#v%d", c, c, c), secret) && !strings.Contains(c.ClientID, secret) {
			t.Fatalf("shows the secret of %q", document)
		}
		seen := map[registry.TokenKind]bool{}
		for _, s := range c.Settings {
			symmetric := strings.HasPrefix(s.SigningAlgorithm, "HS256") && len(s.SigningAlgorithm) == 5 || s.EncryptionAlgorithm == "dir" || s.EncryptionAlgorithm == "A128KW"
			if seen[s.Kind] || (s.EncryptionAlgorithm == "") != (s.ContentEncryption == "") || symmetric && c.Secret() == "" ||
				s.EncryptionAlgorithm == "RSA-OAEP" && c.JWKS == nil && c.JWKSURI == "" || s.SigningAlgorithm == "none" ||
				slices.Contains(c.RS256ByDefault, s.Kind) && s.SigningAlgorithm != "" {
				t.Fatalf("settings %+v of %q", c.Settings, document)
			}
			seen[s.Kind] = true
		}
		if !seen["ID_TOKEN"] {
			t.Fatalf("no setting for ID tokens: %q", document)
		}
	})
}
