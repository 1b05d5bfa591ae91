package encrypter

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTableHoldsTheAlgorithmsOfTheStandards(t *testing.T) {
	type row struct {
		Types, Curves, Ops        []string
		Standard                  string
		ByDefault, FAPI, Legacy   bool
		Symmetric                 bool
		SecretSize128, SecretSize int // with A128GCM and with A256CBC-HS512, bytes
	}
	const (
		oaep      = "RFC 7518 section 4.3"
		web       = "W3C Web Cryptography API (IANA JSON Web Signature and Encryption Algorithms)"
		agreement = "RFC 7518 section 4.6, RFC 8037 section 3.2"
		wrap      = "RFC 7518 section 4.4"
		gcmWrap   = "RFC 7518 section 4.7"
	)
	rsa := func(standard string) row {
		return row{Types: []string{"RSA"}, Ops: []string{"encrypt", "wrapKey"}, Standard: standard, ByDefault: true, FAPI: true}
	}
	ecdh := row{Types: []string{"EC", "OKP"}, Curves: []string{"P-256", "P-384", "P-521", "X25519", "X448"}, Ops: []string{"deriveKey", "deriveBits"}, Standard: agreement, ByDefault: true, FAPI: true}
	oct := func(standard string, size128, size int) row {
		return row{Types: []string{"oct"}, Standard: standard, ByDefault: true, FAPI: true, Symmetric: true, SecretSize128: size128, SecretSize: size}
	}
	want := map[KeyAlgorithm]row{
		"RSA1_5":       {Types: []string{"RSA"}, Ops: []string{"encrypt", "wrapKey"}, Standard: "RFC 7518 section 4.2", Legacy: true},
		"RSA-OAEP":     rsa(oaep),
		"RSA-OAEP-256": rsa(oaep), "RSA-OAEP-384": rsa(web), "RSA-OAEP-512": rsa(web),
		"ECDH-ES": ecdh, "ECDH-ES+A128KW": ecdh, "ECDH-ES+A192KW": ecdh, "ECDH-ES+A256KW": ecdh,
		"A128KW": oct(wrap, 16, 16), "A192KW": oct(wrap, 24, 24), "A256KW": oct(wrap, 32, 32),
		"A128GCMKW": oct(gcmWrap, 16, 16), "A192GCMKW": oct(gcmWrap, 24, 24), "A256GCMKW": oct(gcmWrap, 32, 32),
		"dir": oct("RFC 7518 section 4.5", 16, 64),
	}
	got := map[KeyAlgorithm]row{}
	for _, a := range KeyAlgorithms() {
		if !a.Known() {
			t.Errorf("%s.Known() = false", a)
		}
		got[a] = row{
			a.KeyTypes(), a.Curves(), a.KeyOps(), a.Standard(), a.AllowedByDefault(), a.AllowedInFAPI(), a.Legacy(),
			a.Symmetric(), a.SecretSize(A128GCM), a.SecretSize(A256CBCHS512),
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("key algorithms (-want +got):\n%s", diff)
	}

	// RFC 7518 sections 5.2.3 to 5.3.
	keySizes := map[ContentEncryption]int{
		"A128CBC-HS256": 32, "A192CBC-HS384": 48, "A256CBC-HS512": 64,
		"A128GCM": 16, "A192GCM": 24, "A256GCM": 32,
		"A128CBC+HS256": 32,
	}
	gotSizes := map[ContentEncryption]int{}
	for _, e := range ContentEncryptions() {
		gotSizes[e] = e.KeySize()
		legacy := e == "A128CBC+HS256"
		standard := "RFC 7518 section 5."
		if legacy {
			standard = "draft-ietf-jose-json-web-algorithms-08"
		}
		if !e.Known() || e.Legacy() != legacy || e.AllowedByDefault() == legacy || e.AllowedInFAPI() == legacy || !strings.HasPrefix(e.Standard(), standard) {
			t.Errorf("%s: Known %t, Legacy %t, AllowedByDefault %t, AllowedInFAPI %t, Standard %q",
				e, e.Known(), e.Legacy(), e.AllowedByDefault(), e.AllowedInFAPI(), e.Standard())
		}
	}
	if diff := cmp.Diff(keySizes, gotSizes); diff != "" {
		t.Errorf("CEK sizes (-want +got):\n%s", diff)
	}
}

func TestNoAlgorithmExceedsTheWorkspace(t *testing.T) {
	for _, r := range contentEncryptions {
		if r.keySize > maxKeySize || r.ivSize > maxIVSize {
			t.Errorf("%s: key of %d bytes, IV of %d; there is room for %d and %d", r.name, r.keySize, r.ivSize, maxKeySize, maxIVSize)
		}
	}
	names := ContentEncryptions()
	for _, a := range KeyAlgorithms() {
		names = append(names, ContentEncryption(a))
	}
	for _, name := range names {
		if n := 4 + 66 + len(kdfOtherInfo(string(name), nil, nil, 64)); n > maxKDFInput {
			t.Errorf("%s: KDF input of %d bytes; there is room for %d", name, n, maxKDFInput)
		}
	}
}

func TestUnknownAlgorithmHasNoProperties(t *testing.T) {
	for _, a := range []KeyAlgorithm{"", "rsa-oaep", "DIR", "PBES2-HS256+A128KW", "none", "RSA-OAEP "} {
		if a.Known() || a.Symmetric() || a.Legacy() || a.SecretSize(A128GCM) != 0 || a.Warnings(A128GCM) != nil || a.KeyTypes() != nil || a.Curves() != nil || a.KeyOps() != nil || a.Standard() != "" || a.AllowedByDefault() || a.AllowedInFAPI() {
			t.Errorf("KeyAlgorithm(%q) is known", a)
		}
		if err := a.Fits(&testKeys.rsa2048().PublicKey); !errors.Is(err, ErrUnknownAlgorithm) {
			t.Errorf("KeyAlgorithm(%q).Fits = %v, want ErrUnknownAlgorithm", a, err)
		}
	}
	for _, e := range []ContentEncryption{"", "a128gcm", "A256CBC+HS512", "none"} {
		if e.Known() || e.Legacy() || e.KeySize() != 0 || e.Standard() != "" || e.AllowedByDefault() || e.AllowedInFAPI() {
			t.Errorf("ContentEncryption(%q) is known", e)
		}
	}
}

func TestTableCannotBeChangedFromOutside(t *testing.T) {
	KeyAlgorithms()[0] = "none"
	ContentEncryptions()[0] = "none"
	ECDHES.KeyTypes()[0] = "oct"
	ECDHES.Curves()[0] = "none"
	ECDHES.KeyOps()[0] = "none"
	if slices.Contains(KeyAlgorithms(), "none") || slices.Contains(ContentEncryptions(), "none") ||
		ECDHES.KeyTypes()[0] != "EC" || ECDHES.Curves()[0] != "P-256" || ECDHES.KeyOps()[0] != "deriveKey" {
		t.Error("a caller changed the table")
	}
}

func TestFitsComparesTypeAndCurve(t *testing.T) {
	p256 := &testKeys.ec()["P-256"].PublicKey
	p521 := must(testKeys.ec()["P-521"].PublicKey.ECDH())
	p224 := &must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).PublicKey
	x25519 := must(ecdh.X25519().GenerateKey(rand.Reader)).PublicKey()
	rsaKey := &testKeys.rsa2048().PublicKey
	for _, tc := range []struct {
		name string
		alg  KeyAlgorithm
		key  any
		want string // part of the error; none if the key fits
	}{
		{"RSA", RSAOAEP, rsaKey, ""},
		{"ecdsa key", ECDHES, p256, ""},
		{"ecdh key", ECDHESA256KW, p521, ""},
		{"X25519", ECDHES, x25519, ""},
		{"X448", ECDHESA128KW, X448PublicKey{5}, ""},
		{"secret", A256GCMKW, SecretKey("a secret"), ""},
		{"secret for dir", Dir, SecretKey("a secret"), ""},
		{"RSA for ECDH", ECDHES, rsaKey, "ECDH-ES needs a key of type EC or OKP (P-256, P-384, P-521, X25519, X448), and this one is RSA; use a fitting key, or for this one RSA-OAEP-256, RSA-OAEP-384"},
		{"EC for RSA", RSAOAEP256, p256, "RSA-OAEP-256 needs a key of type RSA, and this one is EC P-256; use a fitting key, or for this one ECDH-ES, ECDH-ES+A128KW"},
		{"P-224", ECDHES, p224, "this one is EC P-224; no algorithm known here takes it"},
		{"X25519 for RSA", RSAOAEP, x25519, "this one is OKP X25519; use a fitting key, or for this one ECDH-ES"},
		{"X448 for a secret", A128KW, X448PublicKey{5}, "A128KW needs a key of type oct, and this one is OKP X448"},
		{"RSA for a secret", Dir, rsaKey, "dir needs a key of type oct, and this one is RSA"},
		{"secret for RSA", RSAOAEP256, SecretKey("a secret"), "this one is oct; use a fitting key, or for this one A128KW"},
		{"bytes", A128KW, []byte("a secret"), "[]uint8 is not a key that can be encrypted to"},
		{"no secret", A128KW, SecretKey(nil), "or it is empty"},
		{"X448 by pointer", ECDHES, &X448PublicKey{5}, "*encrypter.X448PublicKey is not a key"},
		{"Ed25519", ECDHES, ed25519.PublicKey(make([]byte, 32)), "ed25519.PublicKey is not a key that can be encrypted to"},
		{"private key", RSAOAEP, testKeys.rsa2048(), "*rsa.PrivateKey is not a key"},
		{"RSA by value", RSAOAEP, *rsaKey, "rsa.PublicKey is not a key"},
		{"nothing", RSAOAEP, nil, "<nil> is not a key"},
		{"nil RSA", RSAOAEP, (*rsa.PublicKey)(nil), "or it is empty"},
		{"nil EC", ECDHES, (*ecdsa.PublicKey)(nil), "or it is empty"},
		{"EC without a curve", ECDHES, &ecdsa.PublicKey{}, "or it is empty"},
		{"nil ecdh", ECDHES, (*ecdh.PublicKey)(nil), "or it is empty"},
		{"ecdh without a curve", ECDHES, &ecdh.PublicKey{}, "or it is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.alg.Fits(tc.key)
			if tc.want == "" {
				if err != nil {
					t.Errorf("Fits = %v, want nil", err)
				}
				return
			}
			if !errors.Is(err, ErrKeyUnsuitable) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Fits = %v, want ErrKeyUnsuitable with %q", err, tc.want)
			}
		})
	}
}
