package encrypter

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestHeaderSaysWhatTheConfigSays(t *testing.T) {
	thumbprint := sha256.Sum256([]byte("a certificate"))
	x5t256 := base64url.EncodeToString(thumbprint[:])
	x5t := base64url.EncodeToString(thumbprint[:20]) // as long as SHA-1's
	for _, tc := range []struct {
		name string
		cfg  RecipientConfig
		want map[string]any
	}{
		{
			"all",
			RecipientConfig{Algorithm: RSAOAEP256, ContentEncryption: A256GCM, KeyID: "key-1", X5T: x5t, X5TS256: x5t256, Issuer: "https://login.example.com"},
			map[string]any{"alg": "RSA-OAEP-256", "enc": "A256GCM", "cty": "JWT", "kid": "key-1", "x5t": x5t, "x5t#S256": x5t256, "iss": "https://login.example.com"},
		},
		{
			"least",
			RecipientConfig{Algorithm: RSAOAEP, ContentEncryption: A128CBCHS256},
			map[string]any{"alg": "RSA-OAEP", "enc": "A128CBC-HS256", "cty": "JWT"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Key = &testKeys.rsa2048().PublicKey
			r, err := NewRecipient(tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			token, err := r.Encrypt(signedToken(100))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, protectedHeader(t, token)); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if r.KeyID() != tc.cfg.KeyID || r.Algorithm() != tc.cfg.Algorithm || r.ContentEncryption() != tc.cfg.ContentEncryption {
				t.Errorf("accessors = %q, %q, %q", r.KeyID(), r.Algorithm(), r.ContentEncryption())
			}
		})
	}
}

func TestKeyIDSurvivesTheHeader(t *testing.T) {
	// The header is encoded in two pieces; ids of all lengths see to it that
	// they meet at each of the three places where they can.
	ids := []string{`say "hello"`, `back\slash`, "tab\tnewline\nnull\x00", "<&>", "schlüssel-鍵-🔑", "\u2028"}
	for n := 1; n < 12; n++ {
		ids = append(ids, strings.Repeat("k", n))
	}
	for _, id := range ids {
		for _, alg := range []KeyAlgorithm{RSAOAEP256, ECDHES} {
			cfg := RecipientConfig{Key: &testKeys.rsa2048().PublicKey, KeyID: id, Algorithm: alg, ContentEncryption: A128GCM}
			private := crypto.PrivateKey(testKeys.rsa2048())
			if alg == ECDHES {
				cfg.Key, private = &testKeys.ec()["P-256"].PublicKey, testKeys.ec()["P-256"]
			}
			r, err := NewRecipient(cfg)
			if err != nil {
				t.Fatalf("kid %q: %v", id, err)
			}
			token, err := r.Encrypt(signedToken(100))
			if err != nil {
				t.Fatal(err)
			}
			if got := protectedHeader(t, token)["kid"]; got != id {
				t.Errorf("%s: kid = %q, want %q", alg, got, id)
			}
			open(t, token, private, alg, A128GCM)
		}
	}
}

func FuzzKeyIDSurvivesTheHeader(f *testing.F) {
	f.Add("key-1")
	f.Add(`"},"alg":"none`)
	f.Add("\xff")
	f.Fuzz(func(t *testing.T, id string) {
		h, err := newHeader(RecipientConfig{KeyID: id, Algorithm: ECDHES, ContentEncryption: A256GCM})
		if err != nil {
			if !errors.Is(err, ErrHeaderValue) || utf8.ValidString(id) && len(id) < maxHeaderSize/6-100 {
				t.Fatalf("kid %q: %v", id, err)
			}
			return
		}
		text := append(unbase64(t, h.encoded), h.rest...)
		var got map[string]string
		if err := json.Unmarshal(append(text, '}'), &got); err != nil {
			t.Fatalf("kid %q: header %q: %v", id, text, err)
		}
		want := map[string]string{"alg": "ECDH-ES", "enc": "A256GCM", "cty": "JWT"}
		if id != "" {
			want["kid"] = id
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("kid %q (-want +got):\n%s", id, diff)
		}
	})
}

func TestUnusableConfigIsRefused(t *testing.T) {
	good := RecipientConfig{Key: &testKeys.rsa2048().PublicKey, Algorithm: RSAOAEP256, ContentEncryption: A256GCM}
	modulus := testKeys.rsa2048().N
	rsaKey := func(n *big.Int, e int) func(*RecipientConfig) {
		return func(c *RecipientConfig) { c.Key = &rsa.PublicKey{N: n, E: e} }
	}
	ecKey := func(key crypto.PublicKey) func(*RecipientConfig) {
		return func(c *RecipientConfig) { c.Key, c.Algorithm = key, ECDHES }
	}
	secret := func(alg KeyAlgorithm, enc ContentEncryption, size int) func(*RecipientConfig) {
		return func(c *RecipientConfig) { c.Key, c.Algorithm, c.ContentEncryption = make(SecretKey, size), alg, enc }
	}
	bit := func(n uint) *big.Int { return new(big.Int).Lsh(big.NewInt(1), n) }
	odd := func(n *big.Int) *big.Int { return new(big.Int).SetBit(n, 0, 1) }
	large := int64(1)<<31 + 1
	beyond32 := int(large) // negative where int has 32 bits
	x, y := coordinates(&testKeys.ec()["P-256"].PublicKey)
	for _, tc := range []struct {
		name   string
		change func(*RecipientConfig)
		want   error
		text   string
	}{
		{"no alg", func(c *RecipientConfig) { c.Algorithm = "" }, ErrUnknownAlgorithm, "use one of RSA-OAEP-256, RSA-OAEP-384"},
		{"unknown alg", func(c *RecipientConfig) { c.Algorithm = "RSA2_0" }, ErrUnknownAlgorithm, `alg "RSA2_0"`},
		{"no enc", func(c *RecipientConfig) { c.ContentEncryption = "" }, ErrUnknownAlgorithm, "use one of A128CBC-HS256"},
		{"unknown enc", func(c *RecipientConfig) { c.ContentEncryption = "A256CBC+HS512" }, ErrUnknownAlgorithm, `enc "A256CBC+HS512"`},
		{"legacy enc with a newer alg", func(c *RecipientConfig) { c.ContentEncryption = A128CBCPlusHS256 }, ErrPair, "goes with alg RSA1_5, RSA-OAEP only, not with RSA-OAEP-256"},
		{"short secret", secret(A128KW, A128GCM, 15), ErrKeyUnsuitable, "A128KW with A128GCM takes a secret key of exactly 16 bytes"},
		{"long secret", secret(A192GCMKW, A256GCM, 32), ErrKeyUnsuitable, "exactly 24 bytes"},
		{"secret of half a CEK", secret(Dir, A256CBCHS512, 32), ErrKeyUnsuitable, "dir with A256CBC-HS512 takes a secret key of exactly 64 bytes"},
		{"secret for RSA", secret(RSAOAEP256, A256GCM, 32), ErrKeyUnsuitable, "needs a key of type RSA"},
		{"X25519 at zero", ecKey(must(ecdh.X25519().NewPublicKey(make([]byte, 32)))), ErrKeyUnsuitable, "all-zero secret"},
		{"X448 at zero", ecKey(X448PublicKey{}), ErrKeyUnsuitable, "all-zero secret"},
		{"X448 at one", ecKey(X448PublicKey{1}), ErrKeyUnsuitable, "all-zero secret"},
		{"no key", func(c *RecipientConfig) { c.Key = nil }, ErrKeyUnsuitable, "give an RSA or an elliptic curve public key, or a SecretKey"},
		{"key of another type", func(c *RecipientConfig) { c.Algorithm = ECDHES }, ErrKeyUnsuitable, "needs a key of type EC"},
		{"RSA without modulus", rsaKey(nil, 65537), ErrKeyUnsuitable, "no modulus"},
		{"RSA of 1024 bits", rsaKey(odd(bit(1023)), 65537), ErrKeyUnsuitable, "1024 bits"},
		{"RSA of 2047 bits", rsaKey(odd(bit(2046)), 65537), ErrKeyUnsuitable, "2047 bits"},
		{"RSA of 8193 bits", rsaKey(odd(bit(8192)), 65537), ErrKeyUnsuitable, "2048 to 8192"},
		{"RSA with an even modulus", rsaKey(bit(2047), 65537), ErrKeyUnsuitable, "even"},
		{"RSA with a negative modulus", rsaKey(new(big.Int).Neg(modulus), 65537), ErrKeyUnsuitable, "negative"},
		{"RSA with e = 0", rsaKey(modulus, 0), ErrKeyUnsuitable, "exponent"},
		{"RSA with e = 1", rsaKey(modulus, 1), ErrKeyUnsuitable, "exponent"},
		{"RSA with an even e", rsaKey(modulus, 65536), ErrKeyUnsuitable, "exponent"},
		{"RSA with a negative e", rsaKey(modulus, -3), ErrKeyUnsuitable, "exponent"},
		{"RSA with a large e", rsaKey(modulus, beyond32), ErrKeyUnsuitable, "exponent"},
		{"EC without a point", ecKey(&ecdsa.PublicKey{Curve: elliptic.P256()}), ErrKeyUnsuitable, "it is empty"},
		{"EC at infinity", ecKey(ecPoint(elliptic.P256(), new(big.Int), new(big.Int))), ErrKeyUnsuitable, "not a point on P-256"},
		{"EC off the curve", ecKey(ecPoint(elliptic.P256(), x, new(big.Int).Add(y, big.NewInt(1)))), ErrKeyUnsuitable, "not a point on P-256"},
		{"EC on another curve", ecKey(ecPoint(elliptic.P384(), x, y)), ErrKeyUnsuitable, "not a point on P-384"},
		{"kid that is not UTF-8", func(c *RecipientConfig) { c.KeyID = "key\xff" }, ErrHeaderValue, "kid is not UTF-8"},
		{"iss that is not UTF-8", func(c *RecipientConfig) { c.Issuer = "\xc3" }, ErrHeaderValue, "iss is not UTF-8"},
		{"long kid", func(c *RecipientConfig) { c.KeyID = strings.Repeat("k", 5000) }, ErrHeaderValue, "shorten the key's kid (5000 bytes)"},
		{"x5t of SHA-256", func(c *RecipientConfig) { c.X5T = base64url.EncodeToString(make([]byte, 32)) }, ErrHeaderValue, "x5t must be"},
		{"x5t of a hexadecimal text", func(c *RecipientConfig) { c.X5T = base64url.EncodeToString([]byte(strings.Repeat("ab", 20))) }, ErrHeaderValue, "not of its hexadecimal text"},
		{"x5t with padding", func(c *RecipientConfig) { c.X5T = strings.Repeat("A", 27) + "=" }, ErrHeaderValue, "x5t must be"},
		{"x5t#S256 of SHA-1", func(c *RecipientConfig) { c.X5TS256 = base64url.EncodeToString(make([]byte, 20)) }, ErrHeaderValue, "x5t#S256"},
		{"x5t#S256 in hex", func(c *RecipientConfig) { c.X5TS256 = strings.Repeat("ab", 32) }, ErrHeaderValue, "x5t#S256"},
		{"x5t#S256 with padding", func(c *RecipientConfig) { c.X5TS256 = strings.Repeat("A", 43) + "=" }, ErrHeaderValue, "x5t#S256"},
		{"x5t#S256 with spare bits", func(c *RecipientConfig) { c.X5TS256 = strings.Repeat("A", 42) + "B" }, ErrHeaderValue, "x5t#S256"},
		{"x5t#S256 with a newline", func(c *RecipientConfig) { c.X5TS256 = strings.Repeat("A", 43) + "\n" }, ErrHeaderValue, "x5t#S256"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := good
			tc.change(&cfg)
			r, err := NewRecipient(cfg)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("NewRecipient = %v, want %v with %q", err, tc.want, tc.text)
			}
			if r != nil {
				t.Error("a recipient was returned with the error")
			}
		})
	}
	if _, err := NewRecipient(good); err != nil {
		t.Errorf("NewRecipient of the unchanged config = %v", err)
	}
}

func TestRecipientKeepsACopyOfTheKey(t *testing.T) {
	type spoilt struct {
		alg     KeyAlgorithm
		private any
		key     func() crypto.PublicKey
		spoil   func(crypto.PublicKey)
	}
	secret := func(alg KeyAlgorithm) spoilt {
		return spoilt{
			alg, secretKey(alg, A128GCM),
			func() crypto.PublicKey { return secretKey(alg, A128GCM) },
			func(k crypto.PublicKey) { clear(k.(SecretKey)) },
		}
	}
	for _, tc := range []spoilt{
		{
			RSAOAEP256, testKeys.rsa2048(),
			func() crypto.PublicKey {
				return &rsa.PublicKey{N: new(big.Int).Set(testKeys.rsa2048().N), E: 65537}
			},
			func(k crypto.PublicKey) { k.(*rsa.PublicKey).N.SetInt64(3); k.(*rsa.PublicKey).E = 3 },
		},
		{
			ECDHES, testKeys.ec()["P-256"],
			func() crypto.PublicKey {
				x, y := coordinates(&testKeys.ec()["P-256"].PublicKey)
				return ecPoint(elliptic.P256(), new(big.Int).Set(x), new(big.Int).Set(y))
			},
			func(k crypto.PublicKey) {
				x, _ := coordinates(k.(*ecdsa.PublicKey))
				x.SetInt64(3)
			},
		},
		secret(A128KW), secret(A128GCMKW), secret(Dir),
	} {
		key := tc.key()
		r, err := NewRecipient(RecipientConfig{Key: key, Algorithm: tc.alg, ContentEncryption: A128GCM})
		if err != nil {
			t.Fatal(err)
		}
		tc.spoil(key)
		token, err := r.Encrypt(signedToken(100))
		if err != nil {
			t.Fatal(err)
		}
		open(t, token, tc.private, tc.alg, A128GCM)
	}
}

func TestEcdhPublicKeyIsAccepted(t *testing.T) {
	for curve, private := range testKeys.ec() {
		r, err := NewRecipient(RecipientConfig{Key: must(private.PublicKey.ECDH()), Algorithm: ECDHESA128KW, ContentEncryption: A128GCM})
		if err != nil {
			t.Fatalf("%s: %v", curve, err)
		}
		token, err := r.Encrypt(signedToken(100))
		if err != nil {
			t.Fatalf("%s: %v", curve, err)
		}
		if got := open(t, token, private, ECDHESA128KW, A128GCM); !bytes.Equal(got, signedToken(100)) {
			t.Errorf("%s: opened to %q", curve, got)
		}
	}
}

func TestRecipientIsSmall(t *testing.T) {
	const (
		goal  = 1536 // bytes
		count = 1000
	)
	key3072 := &testKeys.rsa3072().PublicKey
	for _, tc := range []struct {
		name string
		cfg  RecipientConfig
	}{
		{"RSA-2048", RecipientConfig{Key: &testKeys.rsa2048().PublicKey, Algorithm: RSAOAEP256}},
		{"RSA-3072", RecipientConfig{Key: key3072, Algorithm: RSAOAEP256}},
		{"P-256", RecipientConfig{Key: &testKeys.ec()["P-256"].PublicKey, Algorithm: ECDHES}},
		{"P-521", RecipientConfig{Key: &testKeys.ec()["P-521"].PublicKey, Algorithm: ECDHESA256KW}},
		{"X25519", RecipientConfig{Key: public(testKeys.x25519()), Algorithm: ECDHES}},
		{"X448", RecipientConfig{Key: public(testKeys.x448()), Algorithm: ECDHESA256KW}},
		{"A256KW", RecipientConfig{Key: secretKey(A256KW, A128CBCHS256), Algorithm: A256KW}},
		{"A256GCMKW", RecipientConfig{Key: secretKey(A256GCMKW, A128CBCHS256), Algorithm: A256GCMKW}},
		{"dir", RecipientConfig{Key: secretKey(Dir, A128CBCHS256), Algorithm: Dir}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.ContentEncryption = A128CBCHS256
			// As a key set would hand it over: a thumbprint for a kid, in the
			// middle of a large text.
			const size = 8 << 10
			document := strings.Repeat(" ", size) + strings.Repeat("k", 43)
			recipients := make([]*Recipient, count)
			before := heapInUse()
			for i := range recipients {
				cfg := tc.cfg
				cfg.KeyID = strings.Clone(document)[size:]
				recipients[i] = must(NewRecipient(cfg))
			}
			each := (int64(heapInUse()) - int64(before)) / count
			runtime.KeepAlive(recipients)
			t.Logf("%d bytes a recipient", each)
			if each <= 0 || each > goal {
				t.Errorf("a recipient takes %d bytes, want at most %d", each, goal)
			}
		})
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestIssuerIsAddedToARecipient(t *testing.T) {
	const iss = `https://login.example.com/a"b`
	for _, kid := range []string{"", "k", "kk", "kkk", `with "iss": in it`, `,"iss":`} {
		cfg := RecipientConfig{Key: secretKey(A256GCMKW, A256GCM), Algorithm: A256GCMKW, ContentEncryption: A256GCM, KeyID: kid}
		plain := must(NewRecipient(cfg))
		got := must(plain.WithIssuer(iss))
		cfg.Issuer = iss
		want := must(NewRecipient(cfg))
		if got.headerEncoded != want.headerEncoded || got.headerRest != want.headerRest || got.KeyID() != kid || got.Algorithm() != A256GCMKW {
			t.Errorf("kid %q: the header differs from that of a recipient that was made with the issuer", kid)
		}
		if _, err := got.Encrypt([]byte("a.b.c")); err != nil {
			t.Errorf("kid %q: %v", kid, err)
		}
		for name, bad := range map[string]func() (*Recipient, error){
			"a second one":  func() (*Recipient, error) { return got.WithIssuer(iss) },
			"an empty one":  func() (*Recipient, error) { return plain.WithIssuer("") },
			"not UTF-8":     func() (*Recipient, error) { return plain.WithIssuer("\xff") },
			"one too large": func() (*Recipient, error) { return plain.WithIssuer(strings.Repeat("x", maxHeaderSize)) },
		} {
			if _, err := bad(); !errors.Is(err, ErrHeaderValue) {
				t.Errorf("kid %q: got %v for %s, want ErrHeaderValue", kid, err, name)
			}
		}
	}
}
