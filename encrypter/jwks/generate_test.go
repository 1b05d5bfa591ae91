package jwks_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cloudflare/circl/dh/x448"
	jose "github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// generated makes a key pair and returns its set, parsed, and its private JWK,
// as text and as members.
func generated(t *testing.T, spec jwks.KeySpec) (*jwks.Set, []byte, map[string]string) {
	t.Helper()
	public, private, err := jwks.Generate(spec)
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwks.Parse(public, jwks.Limits{})
	if err != nil {
		t.Fatalf("%s: %v", public, err)
	}
	var members map[string]string
	if err := json.Unmarshal(private, &members); err != nil {
		t.Fatal(err)
	}
	return set, private, members
}

func TestGeneratedKeysNameTheirUse(t *testing.T) {
	for _, spec := range []jwks.KeySpec{
		{RSABits: 2048}, {RSABits: 2056, Algorithm: "RSA-OAEP-256"}, {RSABits: 3072, Algorithm: "RSA1_5"},
		{Curve: "P-256", Algorithm: "ECDH-ES"}, {Curve: "P-384"}, {Curve: "P-521", Algorithm: "ECDH-ES+A256KW"},
		{Curve: "X25519", Algorithm: "ECDH-ES+A128KW"}, {Curve: "X448"},
	} {
		set, _, members := generated(t, spec)
		if len(set.Keys()) != 1 {
			t.Fatalf("%+v: %d keys", spec, len(set.Keys()))
		}
		k := set.Keys()[0]
		if k.State != jwks.Usable || len(k.Warnings) != 0 || k.Use != "enc" || k.Algorithm != spec.Algorithm || k.KeyID == "" || k.KeyID != k.Thumbprint {
			t.Errorf("%+v: key is %v, warnings %q, use %q, alg %q, kid %q, thumbprint %q", spec, k.State, k.Warnings, k.Use, k.Algorithm, k.KeyID, k.Thumbprint)
		}
		if members["kid"] != k.KeyID || members["use"] != "enc" || members["alg"] != spec.Algorithm || members["kty"] != k.Type || members["crv"] != spec.Curve {
			t.Errorf("%+v: the private half says kid %q, use %q, alg %q, kty %q, crv %q", spec, members["kid"], members["use"], members["alg"], members["kty"], members["crv"])
		}
		if public, ok := k.Public.(*rsa.PublicKey); ok && public.N.BitLen() != spec.RSABits {
			t.Errorf("%+v: modulus of %d bits", spec, public.N.BitLen())
		}
		alg := encrypter.KeyAlgorithm(spec.Algorithm)
		if alg == "" && spec.Curve != "" {
			alg = encrypter.ECDHES
		} else if alg == "" {
			alg = encrypter.RSAOAEP
		}
		if _, err := set.Choose(jwks.Want{Algorithm: alg, KeyID: k.KeyID, MinRSABits: spec.RSABits}); err != nil {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

// TestPublicHalfHasNothingPrivate looks for every private member, and for their
// values in it.
func TestPublicHalfHasNothingPrivate(t *testing.T) {
	for _, spec := range []jwks.KeySpec{{RSABits: 2048}, {Curve: "P-521"}, {Curve: "X25519"}, {Curve: "X448"}} {
		public, private, err := jwks.Generate(spec)
		if err != nil {
			t.Fatal(err)
		}
		var members map[string]string
		if err := json.Unmarshal(private, &members); err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, name := range []string{"d", "p", "q", "dp", "dq", "qi"} {
			value, ok := members[name]
			if !ok {
				continue
			}
			found++
			if bytes.Contains(public, []byte(value)) || bytes.Contains(public, []byte(`"`+name+`"`)) {
				t.Errorf("%+v: member %q is in the public half", spec, name)
			}
		}
		if want := map[bool]int{true: 6, false: 1}[spec.RSABits > 0]; found != want {
			t.Errorf("%+v: %d private members, want %d", spec, found, want)
		}
		// Nobody can register the private half by mistake.
		if _, err := jwks.Parse([]byte(`{"keys":[`+string(private)+`]}`), jwks.Limits{}); !errors.Is(err, jwks.ErrRejected) {
			t.Errorf("%+v: the private half as a set gives %v, want ErrRejected", spec, err)
		}
	}
}

func TestGeneratedKeysDiffer(t *testing.T) {
	for _, curve := range []string{"P-256", "X25519", "X448"} {
		_, _, a := generated(t, jwks.KeySpec{Curve: curve})
		_, _, b := generated(t, jwks.KeySpec{Curve: curve})
		if a["d"] == b["d"] || a["x"] == b["x"] || a["kid"] == b["kid"] {
			t.Errorf("%s: twice the same key", curve)
		}
	}
}

// TestGeneratedKeysOpenWithGoJose reads the private half with go-jose, which
// knows neither X25519 nor X448, and opens what is encrypted to the public one.
func TestGeneratedKeysOpenWithGoJose(t *testing.T) {
	for _, spec := range []jwks.KeySpec{
		{RSABits: 2048, Algorithm: "RSA-OAEP-256"},
		{Curve: "P-256", Algorithm: "ECDH-ES"}, {Curve: "P-384", Algorithm: "ECDH-ES+A128KW"}, {Curve: "P-521", Algorithm: "ECDH-ES+A256KW"},
	} {
		set, private, _ := generated(t, spec)
		var key jose.JSONWebKey
		if err := json.Unmarshal(private, &key); err != nil {
			t.Fatalf("%+v: %v", spec, err)
		}
		if !key.Valid() || key.IsPublic() {
			t.Errorf("%+v: go-jose does not take it for a valid private key", spec)
		}
		if k, ok := key.Key.(*rsa.PrivateKey); ok {
			if err := k.Validate(); err != nil {
				t.Errorf("%+v: %v", spec, err)
			}
		}
		k := set.Keys()[0]
		if !k.Public.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public().Key) {
			t.Errorf("%+v: the halves do not belong together", spec)
		}
		token := sealFor(t, k, spec.Algorithm)
		jwe, err := jose.ParseEncryptedCompact(token, []jose.KeyAlgorithm{jose.KeyAlgorithm(spec.Algorithm)}, []jose.ContentEncryption{jose.A128GCM})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := jwe.Decrypt(key); err != nil || string(got) != signedToken {
			t.Errorf("%+v: go-jose opens %q, %v", spec, got, err)
		}
		// RFC 7518, section 6.2.2.1: d has the full length.
		if ec, ok := key.Key.(*ecdsa.PrivateKey); ok {
			var members struct{ D string }
			if err := json.Unmarshal(private, &members); err != nil {
				t.Fatal(err)
			}
			if got, want := len(members.D), base64.RawURLEncoding.EncodedLen((ec.Params().BitSize+7)/8); got != want {
				t.Errorf("%+v: d has %d characters, want %d", spec, got, want)
			}
		}
	}
}

// TestGeneratedMontgomeryKeysBelongTogether computes the public half of "d"
// (RFC 8037, section 2) anew.
func TestGeneratedMontgomeryKeysBelongTogether(t *testing.T) {
	set, _, members := generated(t, jwks.KeySpec{Curve: "X25519"})
	d, err := base64.RawURLEncoding.DecodeString(members["d"])
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdh.X25519().NewPrivateKey(d)
	if err != nil || !private.PublicKey().Equal(set.Keys()[0].Public) {
		t.Errorf("X25519: the halves do not belong together: %v", err)
	}
	set, _, members = generated(t, jwks.KeySpec{Curve: "X448"})
	if d, err = base64.RawURLEncoding.DecodeString(members["d"]); err != nil || len(d) != 56 {
		t.Fatalf("X448: d has %d octets: %v", len(d), err)
	}
	secret := x448.Key(d)
	var public x448.Key
	x448.KeyGen(&public, &secret)
	if encrypter.X448PublicKey(public) != set.Keys()[0].Public {
		t.Error("X448: the halves do not belong together")
	}
}

// signedToken stands for a JWS: the encrypter looks only at its form.
const signedToken = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"

func sealFor(t *testing.T, k *jwks.Key, alg string) string {
	t.Helper()
	recipient, err := encrypter.NewRecipient(encrypter.RecipientConfig{
		Key: k.Public, KeyID: k.KeyID, Algorithm: encrypter.KeyAlgorithm(alg), ContentEncryption: encrypter.A128GCM,
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := recipient.Encrypt([]byte(signedToken))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestGeneratedKeysOpenWithJwcrypto has Debian's python3-jwcrypto read the
// private half of every kind of key and open a token with it.
func TestGeneratedKeysOpenWithJwcrypto(t *testing.T) {
	const python = "/usr/bin/python3" // where the distribution's packages are
	if out, err := exec.Command(python, "-c", "import jwcrypto").CombinedOutput(); err != nil {
		t.Fatalf("jwcrypto is needed (apt-get install python3-jwcrypto): %v: %s", err, out)
	}
	const script = `
import json, sys
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK
for line in sys.stdin:
    request = json.loads(line)
    key = JWK(**request["private"])
    jwe = JWE()
    jwe.allowed_algs = [request["alg"], "A128GCM"]
    jwe.deserialize(request["token"])
    jwe.decrypt(key)
    print(json.dumps([key.thumbprint(), jwe.payload.decode()]))
`
	type request struct {
		Private json.RawMessage `json:"private"`
		Alg     string          `json:"alg"`
		Token   string          `json:"token"`
	}
	var input bytes.Buffer
	var want strings.Builder
	for _, spec := range []jwks.KeySpec{
		{RSABits: 2048, Algorithm: "RSA-OAEP"}, {RSABits: 3072, Algorithm: "RSA-OAEP-256"},
		{Curve: "P-256", Algorithm: "ECDH-ES"}, {Curve: "P-384", Algorithm: "ECDH-ES+A128KW"}, {Curve: "P-521", Algorithm: "ECDH-ES+A256KW"},
		{Curve: "X25519", Algorithm: "ECDH-ES"}, {Curve: "X448", Algorithm: "ECDH-ES+A256KW"},
	} {
		set, private, _ := generated(t, spec)
		line, err := json.Marshal(request{private, spec.Algorithm, sealFor(t, set.Keys()[0], spec.Algorithm)})
		if err != nil {
			t.Fatal(err)
		}
		input.Write(append(line, '\n'))
		want.WriteString(`["` + set.Keys()[0].KeyID + `", "` + signedToken + "\"]\n")
	}
	cmd := exec.Command(python, "-c", script)
	cmd.Stdin = &input
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("jwcrypto: %v\n%s", err, out)
	}
	if string(out) != want.String() {
		t.Errorf("jwcrypto says\n%s\nwant\n%s", out, want.String())
	}
}

// TestKeysAreGeneratedOnEveryCurve of the table of algorithms, and a key that is
// asked for on another curve is told of them all.
func TestKeysAreGeneratedOnEveryCurve(t *testing.T) {
	_, _, refused := jwks.Generate(jwks.KeySpec{Curve: "none"})
	for _, alg := range encrypter.KeyAlgorithms() {
		for _, curve := range alg.Curves() {
			set, _, _ := generated(t, jwks.KeySpec{Curve: curve, Algorithm: string(alg)})
			if got, err := choose(t, set, jwks.Want{Algorithm: alg}); got != 0 {
				t.Errorf("%s on %s: %v", alg, curve, err)
			}
			if !strings.Contains(refused.Error(), curve) {
				t.Errorf("%q does not name %s", refused, curve)
			}
		}
	}
}

func TestKeySpecIsChecked(t *testing.T) {
	tests := []struct {
		spec jwks.KeySpec
		want string
	}{
		{jwks.KeySpec{}, "neither"},
		{jwks.KeySpec{Algorithm: "RSA-OAEP"}, "neither"},
		{jwks.KeySpec{RSABits: 2048, Curve: "P-256"}, "both"},
		{jwks.KeySpec{RSABits: 1024}, "choose 2048, 3072 or 4096"},
		{jwks.KeySpec{RSABits: 2047}, "choose 2048, 3072 or 4096"},
		{jwks.KeySpec{RSABits: 2050}, "choose 2048, 3072 or 4096"},
		{jwks.KeySpec{RSABits: 4104}, "choose 2048, 3072 or 4096"},
		{jwks.KeySpec{RSABits: 1 << 40}, "choose 2048, 3072 or 4096"},
		{jwks.KeySpec{RSABits: -2048}, "choose 2048, 3072 or 4096"},
		{jwks.KeySpec{Curve: "P-224"}, "X25519 or X448"},
		{jwks.KeySpec{Curve: "Ed25519"}, "X25519 or X448"},
		{jwks.KeySpec{Curve: "x25519"}, "X25519 or X448"},
		{jwks.KeySpec{RSABits: 2048, Algorithm: "ECDH-ES"}, "needs EC"},
		{jwks.KeySpec{RSABits: 2048, Algorithm: "RS256"}, "not known here"},
		{jwks.KeySpec{RSABits: 2048, Algorithm: "A128KW"}, "client's secret"},
		{jwks.KeySpec{Curve: "P-256", Algorithm: "RSA-OAEP"}, "needs RSA"},
		{jwks.KeySpec{Curve: "X448", Algorithm: "RSA-OAEP"}, "needs RSA"},
		{jwks.KeySpec{Curve: "X448", Algorithm: "dir"}, "client's secret"},
	}
	for _, tt := range tests {
		public, private, err := jwks.Generate(tt.spec)
		if !errors.Is(err, jwks.ErrKeySpec) || public != nil || private != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want ErrKeySpec and %q", tt.spec, err, tt.want)
		}
	}
	for _, alg := range encrypter.KeyAlgorithms() {
		spec := jwks.KeySpec{Curve: "P-256", Algorithm: string(alg)}
		_, _, err := jwks.Generate(spec)
		if want := slices.Contains(alg.KeyTypes(), "EC"); (err == nil) != want {
			t.Errorf("%+v: %v, want a key: %v", spec, err, want)
		}
	}
}
