//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

func der(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPointsAreReadWrappedAndBare(t *testing.T) {
	for _, tt := range []struct {
		curve elliptic.Curve
		alg   kms.Algorithm
		oid   asn1.ObjectIdentifier
	}{
		{elliptic.P256(), kms.ES256, oidP256}, {elliptic.P384(), kms.ES384, oidP384}, {elliptic.P521(), kms.ES512, oidP521},
	} {
		want := softhsmtest.NewKey(t, tt.alg).Public().(*ecdsa.PublicKey)
		bare, err := want.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for name, point := range map[string][]byte{"bare": bare, "wrapped": der(t, bare)} {
			got, err := ecPublic(der(t, tt.oid), point)
			if err != nil || !want.Equal(got) {
				t.Errorf("%s %s point: got %v and error %v", tt.curve.Params().Name, name, got, err)
			}
		}
		off := bytes.Clone(bare)
		off[len(off)-1] ^= 1
		for name, point := range map[string][]byte{
			"off the curve": off, "short": bare[1:], "empty": {}, "infinity": {0}, "compressed": elliptic.MarshalCompressed(tt.curve, want.X, want.Y), //nolint:staticcheck // only to make one
			"trailing": append(der(t, bare), 0), "wrapped twice": der(t, der(t, bare)), "zero": make([]byte, len(bare)),
		} {
			if got, err := ecPublic(der(t, tt.oid), point); err == nil {
				t.Errorf("%s point %s: got %v, want an error", tt.curve.Params().Name, name, got)
			}
		}
		if _, err := ecPublic(der(t, asn1.ObjectIdentifier{1, 3, 132, 0, 10}), der(t, bare)); err == nil {
			t.Error("a curve that is not known is read")
		}
		if _, err := ecPublic(nil, der(t, bare)); err == nil {
			t.Error("a key without a curve is read")
		}
	}
}

func TestEd25519KeysAreReadByAllNamesOfTheCurve(t *testing.T) {
	want := softhsmtest.NewKey(t, kms.EdDSA).Public().(ed25519.PublicKey)
	printable, _ := hex.DecodeString("130c656477617264733235353139") // as SoftHSM writes it
	for _, params := range [][]byte{printable, der(t, oidEd25519), der(t, oidEd25519Old)} {
		for _, point := range [][]byte{want, der(t, []byte(want))} {
			got, err := edPublic(params, point)
			if err != nil || !want.Equal(got) {
				t.Errorf("params %x, %d bytes: got %v and error %v", params, len(point), got, err)
			}
		}
	}
	for _, params := range [][]byte{nil, der(t, oidP256), der(t, "edwards448"), append(printable, 0)} {
		if _, err := edPublic(params, want); err == nil {
			t.Errorf("params %x are taken for Ed25519", params)
		}
	}
	for _, n := range []int{0, 31, 33, 57} {
		if _, err := edPublic(printable, make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes is taken for Ed25519", n)
		}
	}
}

func TestRSANumbersAreChecked(t *testing.T) {
	k := softhsmtest.NewKey(t, kms.RS256).Public().(*rsa.PublicKey)
	got, err := rsaPublic(append([]byte{0}, k.N.Bytes()...), []byte{1, 0, 1})
	if err != nil || !k.Equal(got) {
		t.Errorf("got %v and error %v", got, err)
	}
	for name, e := range map[string][]byte{"none": {}, "zero": {0}, "one": {1}, "even": {1, 0, 0}, "too large": {1, 0, 0, 0, 1}} {
		if _, err := rsaPublic(k.N.Bytes(), e); err == nil {
			t.Errorf("exponent %s is accepted", name)
		}
	}
	for name, n := range map[string][]byte{"none": {}, "even": new(big.Int).Lsh(k.N, 1).Bytes(), "huge": bytes.Repeat([]byte{0xff}, 5000)} {
		if _, err := rsaPublic(n, []byte{1, 0, 1}); err == nil {
			t.Errorf("modulus %s is accepted", name)
		}
	}
}

func FuzzPublic(f *testing.F) {
	k, err := hex.DecodeString("04410404" + "00")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}, k)
	f.Add([]byte{0x13, 0x0c, 'e', 'd', 'w', 'a', 'r', 'd', 's', '2', '5', '5', '1', '9'}, make([]byte, 32))
	f.Add(bytes.Repeat([]byte{0xff}, 256), []byte{1, 0, 1})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, build := range []func(a, b []byte) (crypto.PublicKey, error){ecPublic, edPublic, rsaPublic} {
			pub, err := build(a, b)
			if (pub == nil) == (err == nil) {
				t.Fatalf("got key %v and error %v", pub, err)
			}
			if err == nil {
				if _, err := x509.MarshalPKIXPublicKey(pub); err != nil {
					t.Errorf("a key that was read cannot be written: %v", err)
				}
			}
		}
	})
}

func TestPublicKeyComesFromWhereItIs(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	b := start(t, hsm)

	t.Run("PrivateObjectOfRSA", func(t *testing.T) {
		pair := softhsmtest.NewKey(t, kms.RS256)
		hsm.ImportKey("rsa", "01", pair)
		hsm.DeleteObject("pubkey", "rsa")
		k := b.key(t, "object=rsa", kms.RS256)
		if !pair.Public().(*rsa.PublicKey).Equal(k.Public()) {
			t.Error("another public key")
		}
	})
	t.Run("Certificate", func(t *testing.T) {
		pair := softhsmtest.NewKey(t, kms.ES256)
		hsm.ImportKey("ec", "02", pair)
		hsm.DeleteObject("pubkey", "ec")
		_, err := b.OpenKey(t.Context(), "object=ec", kms.ES256)
		wantErr(t, err, kms.ErrKeyMismatch, "no public key and no certificate", "same id")

		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "signer"}, NotAfter: time.Now().Add(time.Hour)}
		cert, err := x509.CreateCertificate(nil, template, template, pair.Public(), pair)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "cert.der")
		if err := os.WriteFile(file, cert, 0o600); err != nil {
			t.Fatal(err)
		}
		hsm.Tool("--write-object", file, "--type", "cert", "--label", "ec", "--id", "02")
		k := b.key(t, "object=ec", kms.ES256)
		if !pair.Public().(*ecdsa.PublicKey).Equal(k.Public()) {
			t.Error("another public key")
		}
		if err := signs(t.Context(), k); err != nil {
			t.Error(err)
		}
	})
	t.Run("TheOneThatVerifies", func(t *testing.T) {
		pair, stranger := softhsmtest.NewKey(t, kms.ES256), softhsmtest.NewKey(t, kms.ES256)
		hsm.ImportKey("mixed", "03", pair)
		writePublic(t, hsm, "mixed2", "03", stranger)
		k := b.key(t, "object=mixed", kms.ES256)
		if !pair.Public().(*ecdsa.PublicKey).Equal(k.Public()) {
			t.Error("the stranger's public key was taken")
		}
		hsm.DeleteObject("pubkey", "mixed")
		_, err := b.OpenKey(t.Context(), "object=mixed", kms.ES256)
		wantErr(t, err, kms.ErrKeyMismatch, "does not verify")
	})
}

// writePublic puts a public key object alone on the token.
func writePublic(t testing.TB, hsm *softhsmtest.Token, label, id string, k crypto.Signer) {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pub.der")
	if err := os.WriteFile(file, spki, 0o600); err != nil {
		t.Fatal(err)
	}
	hsm.Tool("--write-object", file, "--type", "pubkey", "--label", label, "--id", id)
}

func TestKeysThatDoNotFitAreRefused(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKeyOfType("weak", "01", "rsa:1024")
	hsm.GenerateKeyOfType("bitcoin", "02", "EC:secp256k1")
	hsm.GenerateKey("twin", "03", kms.ES256)
	hsm.GenerateKey("twin", "04", kms.ES256)
	hsm.GenerateKey("derive", "05", kms.ES256)
	b := start(t, hsm)
	forbidSigning(t, b, "derive")
	for _, tt := range []struct {
		ref   string
		alg   kms.Algorithm
		want  error
		texts []string
	}{
		{"object=weak", kms.RS256, kms.ErrKeyMismatch, []string{"2048", "1024"}},
		{"object=bitcoin", kms.ES256, kms.ErrKeyMismatch, nil},
		{"object=twin", kms.ES256, kms.ErrReference, []string{"2 private keys", "object and id together"}},
		{"object=twin", kms.RS256, kms.ErrKeyMismatch, []string{"type EC", "type RSA"}},
		{"object=derive", kms.ES256, kms.ErrKeyDisabled, []string{"CKA_SIGN"}},
		{"manufacturer=ACME;object=twin;id=%03", kms.ES256, kms.ErrReference, []string{"ACME", "SoftHSM"}},
	} {
		_, err := b.OpenKey(t.Context(), tt.ref, tt.alg)
		wantErr(t, err, tt.want, tt.texts...)
	}
	if err := signs(t.Context(), b.key(t, "manufacturer=SoftHSM%20project;model=SoftHSM%20v2;object=twin;id=%03", kms.ES256)); err != nil {
		t.Error(err)
	}
}
