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

func TestTableHoldsTheAlgorithmsOfTheStandard(t *testing.T) {
	nist := []string{"P-256", "P-384", "P-521"}
	type row struct {
		Types, Curves          []string
		Standard               string
		AllowedByDefault, FAPI bool
	}
	want := map[KeyAlgorithm]row{
		"RSA-OAEP":       {[]string{"RSA"}, nil, "RFC 7518 section 4.3", true, true},
		"RSA-OAEP-256":   {[]string{"RSA"}, nil, "RFC 7518 section 4.3", true, true},
		"ECDH-ES":        {[]string{"EC"}, nist, "RFC 7518 section 4.6", true, true},
		"ECDH-ES+A128KW": {[]string{"EC"}, nist, "RFC 7518 section 4.6", true, true},
		"ECDH-ES+A192KW": {[]string{"EC"}, nist, "RFC 7518 section 4.6", true, true},
		"ECDH-ES+A256KW": {[]string{"EC"}, nist, "RFC 7518 section 4.6", true, true},
	}
	got := map[KeyAlgorithm]row{}
	for _, a := range KeyAlgorithms() {
		if !a.Known() {
			t.Errorf("%s.Known() = false", a)
		}
		got[a] = row{a.KeyTypes(), a.Curves(), a.Standard(), a.AllowedByDefault(), a.AllowedInFAPI()}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("key algorithms (-want +got):\n%s", diff)
	}

	// RFC 7518 sections 5.2.3 to 5.3.
	keySizes := map[ContentEncryption]int{
		"A128CBC-HS256": 32, "A192CBC-HS384": 48, "A256CBC-HS512": 64,
		"A128GCM": 16, "A192GCM": 24, "A256GCM": 32,
	}
	gotSizes := map[ContentEncryption]int{}
	for _, e := range ContentEncryptions() {
		gotSizes[e] = e.KeySize()
		if !e.Known() || !e.AllowedByDefault() || !e.AllowedInFAPI() || !strings.HasPrefix(e.Standard(), "RFC 7518 section 5.") {
			t.Errorf("%s: Known %t, AllowedByDefault %t, AllowedInFAPI %t, Standard %q", e, e.Known(), e.AllowedByDefault(), e.AllowedInFAPI(), e.Standard())
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
	for _, a := range []KeyAlgorithm{"", "rsa-oaep", "RSA1_5", "dir", "A128KW", "none", "RSA-OAEP "} {
		if a.Known() || a.KeyTypes() != nil || a.Curves() != nil || a.Standard() != "" || a.AllowedByDefault() || a.AllowedInFAPI() {
			t.Errorf("KeyAlgorithm(%q) is known", a)
		}
		if err := a.Fits(&testKeys.rsa2048().PublicKey); !errors.Is(err, ErrUnknownAlgorithm) {
			t.Errorf("KeyAlgorithm(%q).Fits = %v, want ErrUnknownAlgorithm", a, err)
		}
	}
	for _, e := range []ContentEncryption{"", "a128gcm", "A128CBC+HS256", "none"} {
		if e.Known() || e.KeySize() != 0 || e.Standard() != "" || e.AllowedByDefault() || e.AllowedInFAPI() {
			t.Errorf("ContentEncryption(%q) is known", e)
		}
	}
}

func TestTableCannotBeChangedFromOutside(t *testing.T) {
	KeyAlgorithms()[0] = "none"
	ContentEncryptions()[0] = "none"
	ECDHES.KeyTypes()[0] = "oct"
	ECDHES.Curves()[0] = "none"
	if slices.Contains(KeyAlgorithms(), "none") || slices.Contains(ContentEncryptions(), "none") ||
		ECDHES.KeyTypes()[0] != "EC" || ECDHES.Curves()[0] != "P-256" {
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
		{"RSA for ECDH", ECDHES, rsaKey, "ECDH-ES needs a key of type EC (P-256, P-384, P-521), and this one is RSA; use a fitting key, or for this one RSA-OAEP-256, RSA-OAEP"},
		{"EC for RSA", RSAOAEP256, p256, "RSA-OAEP-256 needs a key of type RSA, and this one is EC P-256; use a fitting key, or for this one ECDH-ES, ECDH-ES+A128KW"},
		{"P-224", ECDHES, p224, "this one is EC P-224; no algorithm known here takes it"},
		{"X25519", ECDHES, x25519, "this one is OKP X25519; no algorithm known here takes it"},
		{"Ed25519", ECDHES, ed25519.PublicKey(make([]byte, 32)), "ed25519.PublicKey is not a public key that can be encrypted to"},
		{"private key", RSAOAEP, testKeys.rsa2048(), "*rsa.PrivateKey is not a public key"},
		{"RSA by value", RSAOAEP, *rsaKey, "rsa.PublicKey is not a public key"},
		{"nothing", RSAOAEP, nil, "<nil> is not a public key"},
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
