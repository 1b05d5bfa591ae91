package secrets

import (
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/encrypter/registry"
)

func encrypts(alg, enc string) registry.Setting {
	return registry.Setting{Kind: registry.IDToken, EncryptionAlgorithm: alg, ContentEncryption: enc}
}

func signs(alg string) registry.Setting {
	return registry.Setting{Kind: "USERINFO", SigningAlgorithm: alg}
}

// The hashes are openssl's: printf %s "$secret" | openssl dgst -sha256.
const (
	passphrase = "correct horse battery staple"
	unicodeOne = "Schlüssel–鍵–🔑"

	password256   = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
	password384   = "a8b64babd0aca91a59bdbb7761b421d4f2bb38280d3a75ba0f21f2bebc45583d446c598660c94ce680c47d19c30783a7"
	passphrase512 = "be5ef7679d88ab9a9045f6267e55f5e5784b4b8cd764b5cd855a5244f91c626953cd46c43d7668873fd6efbd3b221249315580031963472a078781fe046e62ae"
	unicode256    = "a264520a1d761829fa2ca866d94fc1aef0dbcce4b0d47b359520430c37a9feb0"
)

func TestKeysAreTheLeftmostBitsOfTheHash(t *testing.T) {
	tests := []struct {
		secret, alg, enc string
		key              string // hex
	}{
		{"password", "A128KW", "A128GCM", "5e884898da28047151d0e56f8dc62927"},
		{"password", "A128KW", "A256CBC-HS512", "5e884898da28047151d0e56f8dc62927"},
		{"password", "A128GCMKW", "A128GCM", "5e884898da28047151d0e56f8dc62927"},
		{"password", "A192KW", "A128GCM", password256[:48]},
		{"password", "A192GCMKW", "A128GCM", password256[:48]},
		{"password", "A256KW", "A128GCM", password256},
		{"password", "A256GCMKW", "A128GCM", password256},
		{"password", "dir", "A128GCM", password256[:32]},
		{"password", "dir", "A192GCM", password256[:48]},
		{"password", "dir", "A256GCM", password256},
		{"password", "dir", "A128CBC-HS256", password256},
		{"password", "dir", "", password256}, // enc defaults to A128CBC-HS256
		{"password", "dir", "A192CBC-HS384", password384},
		{passphrase, "dir", "A256CBC-HS512", passphrase512},
		{unicodeOne, "A256KW", "A256GCM", unicode256},
	}
	for _, tc := range tests {
		m, err := Derive(tc.secret, []registry.Setting{encrypts(tc.alg, tc.enc)})
		if err != nil {
			t.Errorf("%s %s: %v", tc.alg, tc.enc, err)
			continue
		}
		if got := hex.EncodeToString(m.Keys[len(tc.key)/2]); got != tc.key || len(m.Keys) != 1 {
			t.Errorf("%s %s: got %s among %d keys, want %s alone", tc.alg, tc.enc, got, len(m.Keys), tc.key)
		}
		if m.Secret != nil {
			t.Errorf("%s %s: the secret itself is kept", tc.alg, tc.enc)
		}
	}
}

func TestOnlyWhatTheSettingsNeedIsKept(t *testing.T) {
	long := strings.Repeat("s", 64)
	tests := map[string]struct {
		settings []registry.Setting
		sizes    []int
		secret   bool
	}{
		"nothing":             {nil, nil, false},
		"public keys":         {[]registry.Setting{encrypts("RSA-OAEP-256", "A256GCM"), signs("ES256")}, nil, false},
		"unknown algorithms":  {[]registry.Setting{encrypts("A512KW", "A256GCM"), signs("HS1024"), signs("none")}, nil, false},
		"one key for two":     {[]registry.Setting{encrypts("A128KW", "A128GCM"), encrypts("dir", "A128GCM")}, []int{16}, false},
		"every size":          {[]registry.Setting{encrypts("A128KW", "A128GCM"), encrypts("A192KW", "A128GCM"), encrypts("A256KW", "A128GCM"), encrypts("dir", "A192CBC-HS384"), encrypts("dir", "A256CBC-HS512")}, []int{16, 24, 32, 48, 64}, false},
		"signed only":         {[]registry.Setting{signs("HS256")}, nil, true},
		"signed with longest": {[]registry.Setting{signs("HS384"), signs("HS512")}, nil, true},
		"signed and encrypted": {[]registry.Setting{{
			Kind: registry.IDToken, SigningAlgorithm: "HS256", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM",
		}}, []int{32}, true},
	}
	for name, tc := range tests {
		m, err := Derive(long, tc.settings)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := slices.Sorted(maps.Keys(m.Keys)); !slices.Equal(got, tc.sizes) {
			t.Errorf("%s: got keys of sizes %v, want %v", name, got, tc.sizes)
		}
		if (string(m.Secret) == long) != tc.secret || m.Empty() != (len(tc.sizes) == 0 && !tc.secret) {
			t.Errorf("%s: got the secret %v, empty %v; want %v", name, m.Secret != nil, m.Empty(), tc.secret)
		}
	}
}

func TestSecretsOutOfShapeAreRefused(t *testing.T) {
	key, hmac := []registry.Setting{encrypts("A128KW", "A128GCM")}, []registry.Setting{signs("HS256")}
	tests := map[string]struct {
		secret   string
		settings []registry.Setting
		want     error
	}{
		"empty":              {"", key, ErrSecret},
		"too long":           {strings.Repeat("s", MaxSecret+1), key, ErrSecret},
		"longest":            {strings.Repeat("s", MaxSecret), key, nil},
		"not UTF-8":          {"secret\xff", key, ErrSecret},
		"NUL":                {"secret\x00", key, ErrSecret},
		"any other UTF-8":    {"\n\u0085 \u00e4", key, nil},
		"31 bytes for HS256": {strings.Repeat("s", 31), hmac, ErrTooShort},
		"32 bytes for HS256": {strings.Repeat("s", 32), hmac, nil},
		"16 characters of 2": {strings.Repeat("ä", 16), hmac, nil},
		"47 bytes for HS384": {strings.Repeat("s", 47), []registry.Setting{signs("HS384")}, ErrTooShort},
		"48 bytes for HS384": {strings.Repeat("s", 48), []registry.Setting{signs("HS384")}, nil},
		"63 bytes for HS512": {strings.Repeat("s", 63), []registry.Setting{signs("HS512")}, ErrTooShort},
		"64 bytes for HS512": {strings.Repeat("s", 64), []registry.Setting{signs("HS512")}, nil},
		"long enough for one of two": {strings.Repeat("s", 40), []registry.Setting{
			signs("HS256"), signs("HS512"),
		}, ErrTooShort},
		// A provider's own records may have a secret that nothing here needs.
		"not needed": {"\xff", []registry.Setting{encrypts("RSA-OAEP", "A128GCM")}, nil},
	}
	for name, tc := range tests {
		m, err := Derive(tc.secret, tc.settings)
		if !errors.Is(err, tc.want) || (err == nil) != (m != nil) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
		if err != nil && !errors.Is(err, ErrSecret) {
			t.Errorf("%s: %v is not ErrSecret", name, err)
		}
		if err != nil && tc.secret != "" && strings.Contains(err.Error(), tc.secret) {
			t.Errorf("%s: the error tells the secret", name)
		}
	}
}

func TestGuessableSecretsGetAWarning(t *testing.T) {
	key := []registry.Setting{encrypts("A128KW", "A128GCM")}
	for secret, want := range map[string]bool{
		"password":                             true,
		strings.Repeat("a", 100):               true,
		"0123456789012345678901234567890":      true, // digits: 103 bits at most
		"Tr0ub4dor&3":                          true,
		"5e884898da28047151d0e56f8dc6292":      true,  // 31 hex digits
		"5e884898da28047151d0e56f8dc62927":     false, // 32
		"5E884898DA28047151D0E56F8DC62927":     false,
		"Yq3t6w9z-C&F)J@NcRf":                  true,  // 19 of 95: 125 bits
		"Yq3t6w9z-C&F)J@NcRfU":                 false, // 20: 131 bits
		"fUjXn2r5u8x-A_DGKaPdSg":               false,
		"2f1c3a90-0a0c-4f5e-9d43-7c1be7d7e8a1": false,
	} {
		got := Warnings(secret, key)
		if (len(got) > 0) != want {
			t.Errorf("%q: got %q, want a warning: %v", secret, got, want)
		}
		for _, text := range got {
			if strings.Contains(text, secret) {
				t.Errorf("%q: the warning tells it", secret)
			}
		}
		if got := Warnings(secret, []registry.Setting{signs("ES256")}); got != nil {
			t.Errorf("%q: got %q where nothing needs it", secret, got)
		}
	}
}
