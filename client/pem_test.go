package client

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// The files in testdata/pem were written by OpenSSL 3 (openssl genrsa, ecparam and
// genpkey; pkey to change their form).

func readPEM(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/pem/" + name + ".pem")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestParseKeysFromPEM(t *testing.T) {
	// Public keys as "openssl pkey -text" shows them.
	const (
		p384    = "0423953e26f36aed5b35011daa5cd4db1bd619bf2e530c6b66c0c54f7bac8122cf82f58eaa4bc0b7b98b540c5e351edc46203de32d667d9a945c122d649d2fc2b1ece749de762275bd40fbe5ababbd9faa54be2c1e6c92ea6c2510ec2e081fa150"
		x25519k = "adeb7db585cde492b07c166f1cd19628f47fee0f72d94d439006e876d1284466"
		x448k   = "ff6caa266e2123f829214d79841d65797226f19a9e6b597150083e0cda56ee138179ad24d69e47a86de2c5b7dafe74f71018c81de50a0275"
	)
	for _, test := range []struct {
		name, document string
		want           []string // the public keys, or for RSA a word
	}{
		{"RSA in PKCS #1", readPEM(t, "rsa-pkcs1"), []string{"rsa"}},
		{"RSA in PKCS #8", readPEM(t, "rsa-pkcs8"), []string{"rsa"}},
		{"RSA after a certificate", readPEM(t, "rsa-with-certificate"), []string{"rsa"}},
		{"EC in SEC 1, after its parameters", readPEM(t, "ec-sec1"), []string{p384}},
		{"EC in PKCS #8", readPEM(t, "ec-pkcs8"), []string{p384}},
		{"X25519", readPEM(t, "x25519"), []string{x25519k}},
		{"X448", readPEM(t, "x448"), []string{x448k}},
		{"space after it", readPEM(t, "x448") + " \r\n\n", []string{x448k}},
		{"several, between lines of text", "some words\n" + readPEM(t, "x448") + "others\n" + readPEM(t, "ec-pkcs8"), []string{x448k, p384}},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, err := ParseKeys([]byte(test.document))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, key := range keys {
				if key.KeyID != "" || key.Algorithm != "" {
					t.Errorf("got kid %q and alg %q, want none", key.KeyID, key.Algorithm)
				}
				switch k := key.Key.(type) {
				case *rsa.PrivateKey:
					got = append(got, "rsa")
				case *ecdsa.PrivateKey:
					public, err := k.PublicKey.ECDH()
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, hex.EncodeToString(public.Bytes()))
				case *ecdh.PrivateKey:
					got = append(got, hex.EncodeToString(k.PublicKey().Bytes()))
				case *X448PrivateKey:
					got = append(got, hex.EncodeToString(k.PublicKey()))
				default:
					t.Errorf("got a %T", k)
				}
			}
			if strings.Join(got, " ") != strings.Join(test.want, " ") {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestParseKeysFromPEMSaysWhy(t *testing.T) {
	for _, test := range []struct{ name, document, text string }{
		{"encrypted PKCS #8", readPEM(t, "rsa-encrypted"), "openssl pkey"},
		{"encrypted PKCS #1", readPEM(t, "rsa-encrypted-old"), "openssl pkey"},
		{"public", readPEM(t, "rsa-public"), "public key"},
		{"small", readPEM(t, "rsa-small"), "1024 bits"},
		{"for signatures only", readPEM(t, "ed25519"), "cannot decrypt"},
		{"on a curve that is not used", readPEM(t, "secp224r1"), "its curve is not supported"},
		{"on a curve without name here", readPEM(t, "secp256k1"), "not supported"},
		{"a certificate alone", strings.Split(readPEM(t, "rsa-with-certificate"), "-----BEGIN PRIVATE KEY")[0], "holds a private key"},
		{"a good one and a bad one", readPEM(t, "x448") + readPEM(t, "rsa-public"), `PEM block 2 ("PUBLIC KEY")`},
		{"something else", "-----BEGIN PGP MESSAGE-----\n\nAAAA\n-----END PGP MESSAGE-----\n", "no private key"},
		{"damaged", "-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n", "damaged"},
		{"X448 without its key", "-----BEGIN PRIVATE KEY-----\nMA4CAQAwBQYDK2VvBAIEAA==\n-----END PRIVATE KEY-----\n", "damaged"},
		{"a good one and one cut off", readPEM(t, "x448") + readPEM(t, "ec-pkcs8")[:100], "2 PEM blocks begin in it and 1 are whole"},
		{"one cut off and a good one", readPEM(t, "ec-pkcs8")[:100] + "\n" + readPEM(t, "x448"), "2 PEM blocks begin in it and 1 are whole"},
		{"a good one and one cut off early", readPEM(t, "x448") + "-----BEG", "goes on after PEM block 1"},
		{"a good one and a JWK", readPEM(t, "x448") + foreignKey(t, "x448"), "goes on after PEM block 1"},
		{"too large", readPEM(t, "x448") + strings.Repeat("\n", maxKeyBytes), "more than 1048576"},
		{"too many", strings.Repeat(readPEM(t, "x25519"), maxKeys+1), "more than 100 keys"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, err := ParseKeys([]byte(test.document))
			if err == nil || keys != nil || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %d keys, %v, want %q in the error", len(keys), err, test.text)
			}
		})
	}
}

func TestKeyFromPEMOpens(t *testing.T) {
	keys, err := ParseKeys([]byte(readPEM(t, "rsa-pkcs1")))
	if err != nil {
		t.Fatal(err)
	}
	// The header names a key; that from PEM has no name and serves any.
	to := jose.JSONWebKey{Key: &keys[0].Key.(*rsa.PrivateKey).PublicKey, KeyID: "named"}
	token := seal{alg: "RSA-OAEP", enc: "A128GCM", to: to}.encrypt(t, sign(t, signingKey(t, "ES256"), someClaims, nil))
	if _, err := newOpener(t, func(c *OpenConfig) { c.Keys = keys }).Open(token); err != nil {
		t.Error(err)
	}
}
