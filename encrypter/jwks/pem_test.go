package jwks_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// readPEM returns a file of testdata/pem. All were made with OpenSSL 3.0
// (genpkey, rsa -RSAPublicKey_out, x509 -force_pubkey with certificates valid
// from 2026-11-22 to 2036-11-19), and their private keys are gone.
func readPEM(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "pem", name+".pem"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func parsePEM(t testing.TB, name string) *jwks.Key {
	t.Helper()
	set, err := jwks.ParsePEM(readPEM(t, name), jwks.Limits{})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if len(set.Keys()) != 1 {
		t.Fatalf("%s: %d keys, want 1", name, len(set.Keys()))
	}
	return set.Keys()[0]
}

// TestPEMKeysAsOthersReadThem has the thumbprints that jwcrypto computes, and
// the digests of the certificates that OpenSSL does.
func TestPEMKeysAsOthersReadThem(t *testing.T) {
	const rsaKey, p256, x25519, x448 = "k-7IwOfb9XQR4opuxAInYaXxlASgOzOG8h7tG_jd5UI", "E0WDGmIvGMw_cLVEewJnjf_SYxPhLVv0VZ_pJM5t-YM",
		"mhgqjWaCVDTlh0u8IKtxt3MjeqsZOb8J5oEfGdD78T0", "B023bYPBxT94_eJNsr3S6w9N-7GrB6MseV3sUpqrlCo"
	tests := []struct{ name, kty, crv, thumbprint, x5tS256, x5t string }{
		{"rsa-2048", "RSA", "", rsaKey, "", ""},
		{"rsa-2048-pkcs1", "RSA", "", rsaKey, "", ""},
		{"rsa-exponent-3", "RSA", "", "0u30pXV8zFtdiGxYfMwVX9Ah7Z1LBk-WYUYeTEc7URc", "", ""},
		{"p-256", "EC", "P-256", p256, "", ""},
		{"p-384", "EC", "P-384", "7cs2VmgDlytlQ6X5V449PWAU2He2IqUKbBV7FMNgnT0", "", ""},
		{"p-521", "EC", "P-521", "Hl9AQl6G9s_2cqF44KWUV93mwbfEtiFFnlZqHfN3FUg", "", ""},
		{"x25519", "OKP", "X25519", x25519, "", ""},
		{"x448", "OKP", "X448", x448, "", ""},
		{"cert-rsa", "RSA", "", rsaKey, "sn_AESPAmGKYsha0g0CW2HrdNKRVhR-fyP1ALoxGwmA", "pzSwdZzA-QXhtlodUw5GzxVDOE0"},
		{"chain", "RSA", "", rsaKey, "sn_AESPAmGKYsha0g0CW2HrdNKRVhR-fyP1ALoxGwmA", "pzSwdZzA-QXhtlodUw5GzxVDOE0"},
		{"cert-rsa-sig", "RSA", "", rsaKey, "2EquwJ2715DlAabXgIzdph5uzFB1cUKliszucz32qe4", "RzDU0cMghSYzV03yObwKrpxKJU4"},
		{"cert-rsa-plain", "RSA", "", rsaKey, "Ns5F8qcTirWiEbiXcFqVSd1b2XMiNO6rdTPOeaKVDRQ", "0QqcK3mIQvoTGcpHfI_beyYOuG0"},
		{"cert-p-256", "EC", "P-256", p256, "JTs9ybrV9PE8CcSOgb_ukTO_mfdlzrUwlKPvj9b0iP8", "kw5FxF50Og6bulznJ1_pYnk__Rc"},
		{"cert-x25519", "OKP", "X25519", x25519, "_yDJO05Sn1bJOh6aJrk71_uu3sPtoD_ZtMMw6VW-DHA", "dHVbpl19NL-nVUO-RF5vqv8MwoM"},
		{"cert-x448", "OKP", "X448", x448, "D1sx7MnuB8RwC3FmZOXX2ADlN45uY69Qnr8oCxf2jyU", "2Y2jkqohyY5EQqs6ajUrMBT7Fyc"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := parsePEM(t, tt.name)
			if k.State != jwks.Usable || k.Public == nil || k.Type != tt.kty || k.Curve != tt.crv {
				t.Fatalf("key is %v (%s), kty %q, crv %q, want usable, %q, %q", k.State, k.Reason, k.Type, k.Curve, tt.kty, tt.crv)
			}
			if k.Thumbprint != tt.thumbprint || k.X5TS256 != tt.x5tS256 || k.X5T != tt.x5t {
				t.Errorf("thumbprint %s, x5t#S256 %s, x5t %s\nwant %s, %s, %s", k.Thumbprint, k.X5TS256, k.X5T, tt.thumbprint, tt.x5tS256, tt.x5t)
			}
			if k.KeyID != "" || k.Use != "" || k.Algorithm != "" || k.String() != "the PEM key" {
				t.Errorf("%v has kid %q, use %q, alg %q, want none", k, k.KeyID, k.Use, k.Algorithm)
			}
		})
	}
}

// TestPEMKeyIsChosenLikeAnyOther: Choose and Explain work as for a JWK Set.
func TestPEMKeyIsChosenLikeAnyOther(t *testing.T) {
	chosen := map[string]encrypter.KeyAlgorithm{
		"rsa-2048": encrypter.RSAOAEP256, "cert-rsa": encrypter.RSAOAEP, "p-521": encrypter.ECDHES,
		"x25519": encrypter.ECDHESA256KW, "x448": encrypter.ECDHESA128KW, "cert-x448": encrypter.ECDHES,
	}
	for name, alg := range chosen {
		set, err := jwks.ParsePEM(readPEM(t, name), jwks.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := choose(t, set, jwks.Want{Algorithm: alg}); got != 0 {
			t.Errorf("%s for %s: %v", name, alg, err)
		}
		recipient, err := encrypter.NewRecipient(encrypter.RecipientConfig{
			Key: set.Keys()[0].Public, Algorithm: alg, ContentEncryption: encrypter.A256GCM, X5TS256: set.Keys()[0].X5TS256,
		})
		if err != nil || recipient == nil {
			t.Errorf("%s for %s: no recipient: %v", name, alg, err)
		}
		if _, err := set.Choose(jwks.Want{Algorithm: alg, KeyID: "a"}); !errors.Is(err, jwks.ErrNoKey) || !strings.Contains(err.Error(), `the PEM key: it has no kid, and "a" is pinned`) {
			t.Errorf("%s with a pinned kid: %v", name, err)
		}
	}
}

func TestPEMKeyThatCannotBeUsed(t *testing.T) {
	tests := []struct {
		name  string
		state jwks.State
		want  string
	}{
		{"rsa-1024", jwks.Rejected, "1024 bits"},
		{"p-224", jwks.Skipped, `crv "P-224"`},
		{"secp256k1", jwks.Rejected, "of a kind that tokens cannot be encrypted to"},
		{"ed25519", jwks.Skipped, "signatures only"},
		{"ed448", jwks.Skipped, "signatures only"},
		{"rsa-pss", jwks.Skipped, "signatures only"},
		{"cert-ed25519", jwks.Skipped, "signatures only"},
	}
	for _, tt := range tests {
		k := parsePEM(t, tt.name)
		if k.State != tt.state || k.Public != nil || !strings.Contains(k.Reason, tt.want) {
			t.Errorf("%s is %v (%s) with %v, want %v, %q", tt.name, k.State, k.Reason, k.Public, tt.state, tt.want)
		}
		// Its certificate has nothing to name, and no dates that matter.
		if k.X5TS256 != "" || k.X5T != "" || !k.NotAfter.IsZero() || len(k.WarningsAt(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC))) != 0 {
			t.Errorf("%s: x5t#S256 %q until %v, warnings %q", tt.name, k.X5TS256, k.NotAfter, k.Warnings)
		}
	}
}

// block wraps DER in PEM.
func block(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

// der unwraps it.
func der(t testing.TB, name string) []byte {
	t.Helper()
	b, _ := pem.Decode(readPEM(t, name))
	return b.Bytes
}

// TestKeysInsideAPEMBlockAreChecked puts points into the SPKIs of OpenSSL.
func TestKeysInsideAPEMBlockAreChecked(t *testing.T) {
	low25519, low448 := bytes.Clone(der(t, "x25519")), bytes.Clone(der(t, "x448"))
	clear(low25519[len(low25519)-32:])
	clear(low448[len(low448)-56:])
	offCurve := bytes.Clone(der(t, "p-256"))
	offCurve[len(offCurve)-1] ^= 1
	// The same SEQUENCE with a BIT STRING that is one octet shorter.
	short448 := bytes.Clone(der(t, "x448"))
	short448 = short448[:len(short448)-1]
	short448[1]--
	short448[10]--
	// The same key with parameters, a NULL.
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der(t, "x448"), &info); err != nil {
		t.Fatal(err)
	}
	info.Algorithm.Parameters = asn1.NullRawValue
	parameters448, err := asn1.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		der  []byte
		want string
	}{
		"X25519 of low order": {low25519, "low order"},
		"X448 of low order":   {low448, "low order"},
		"X448 too short":      {short448, "56 octets"},
		"X448 and parameters": {parameters448, "no parameters"},
		"point off the curve": {offCurve, "malformed"},
	} {
		set, err := jwks.ParsePEM(block("PUBLIC KEY", tt.der), jwks.Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if k := set.Keys()[0]; k.State != jwks.Rejected || k.Public != nil || !strings.Contains(k.Reason, tt.want) {
			t.Errorf("%s is %v: %s, want rejected, %q", name, k.State, k.Reason, tt.want)
		}
		if _, err := set.Choose(jwks.Want{Algorithm: encrypter.ECDHES}); !errors.Is(err, jwks.ErrKeyRejected) {
			t.Errorf("%s: Choose gives %v, want ErrKeyRejected", name, err)
		}
	}
}

func TestPEMTextIsRefusedWhole(t *testing.T) {
	key := string(readPEM(t, "p-256"))
	rsaPKCS1 := string(readPEM(t, "rsa-2048-pkcs1"))
	certificate := string(readPEM(t, "cert-rsa"))
	generated, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(generated)
	if err != nil {
		t.Fatal(err)
	}
	private := string(block("PRIVATE KEY", pkcs8))
	lines := strings.SplitAfter(key, "\n")
	tests := []struct{ name, text, want string }{
		{"empty", "", "empty"},
		{"white space", " \n\t", "empty"},
		{"JSON", rfc7517A1, "JWK Set"},
		{"bare base64", strings.Join(lines[1:len(lines)-2], ""), "does not begin with"},
		{"DER", string(der(t, "p-256")), "does not begin with"},
		{"HTML", "<html>", "does not begin with"},
		{"private key", private, "private key"},
		{"PKCS#1 private key", string(block("RSA PRIVATE KEY", []byte{1})), "private key"},
		{"EC private key", string(block("EC PRIVATE KEY", []byte{1})), "private key"},
		{"encrypted private key", string(block("ENCRYPTED PRIVATE KEY", []byte{1})), "private key"},
		{"private key after a public one", key + private, "private key"},
		{"private key in front", private + key, "private key"},
		{"private key in a comment", key + "# -----BEGIN PRIVATE KEY-----", "private key"},
		{"two keys", key + rsaPKCS1, "2 keys"},
		{"the same key twice", key + key, "2 keys"},
		{"key and certificate", key + certificate, "2 keys"},
		{"certificate and key", certificate + key, "2 keys"},
		{"text in front", "My key:\n" + key, "without text around it"},
		{"text after", key + "thanks", "more after block 1"},
		{"text between", certificate + "issuer:\n" + certificate, "more after block 1"},
		{"cut off", key[:len(key)/2], "not valid PEM"},
		{"no END", strings.Join(lines[:len(lines)-2], ""), "not valid PEM"},
		{"another END", strings.Replace(key, "END PUBLIC KEY", "END CERTIFICATE", 1), "not valid PEM"},
		{"not base64", lines[0] + "!!\n" + strings.Join(lines[1:], ""), "not valid PEM"},
		{"broken block in front of a good one", lines[0] + "!!\n" + lines[len(lines)-2] + key, "not valid PEM"},
		{"unfinished block in front of a good one", lines[0] + key, "not valid PEM"},
		{"headers", strings.Replace(key, "\n", "\nProc-Type: 4,ENCRYPTED\n\n", 1), "header lines"},
		{"certificate request", string(block("CERTIFICATE REQUEST", []byte{1})), `"CERTIFICATE REQUEST"`},
		{"parameters", string(block("EC PARAMETERS", []byte{1})), `"EC PARAMETERS"`},
		{"SSH key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA user@host", "does not begin with"},
		{"empty block", string(block("PUBLIC KEY", nil)), "SubjectPublicKeyInfo"},
		{"not a SubjectPublicKeyInfo", string(block("PUBLIC KEY", []byte("secretsecret"))), "SubjectPublicKeyInfo"},
		{"more after the key in DER", string(block("PUBLIC KEY", append(der(t, "p-256"), 0))), "SubjectPublicKeyInfo"},
		{"private key named public", string(block("PUBLIC KEY", pkcs8)), "SubjectPublicKeyInfo"},
		{"PKCS#1 named SPKI", strings.ReplaceAll(rsaPKCS1, "RSA PUBLIC", "PUBLIC"), "SubjectPublicKeyInfo"},
		{"SPKI named PKCS#1", strings.ReplaceAll(key, "PUBLIC", "RSA PUBLIC"), "PKCS#1"},
		{"not a certificate", string(block("CERTIFICATE", der(t, "p-256"))), "certificate 1"},
		{"broken certificate after a good one", certificate + string(block("CERTIFICATE", []byte{1})), "certificate 2"},
		{"chain in the wrong order", string(readPEM(t, "chain-wrong-order")), "put the client's own certificate first"},
		{"a certificate twice", certificate + certificate, "put the client's own certificate first"},
		{"too long", key + strings.Repeat("\n", 128<<10), "more than the allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, err := jwks.ParsePEM([]byte(tt.text), jwks.Limits{})
			if !errors.Is(err, jwks.ErrRejected) || set != nil {
				t.Fatalf("ParsePEM = %v, %v; want ErrRejected", set, err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if len(err.Error()) > 300 || strings.Contains(err.Error(), "secretsecret") || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is too long or repeats the text: %q", err)
			}
		})
	}
	for name, text := range map[string]string{
		"CRLF":             strings.ReplaceAll(key, "\n", "\r\n"),
		"no last newline":  strings.TrimSpace(key),
		"space around":     "\n\n  " + key + " \n",
		"one line of data": lines[0] + base64.StdEncoding.EncodeToString(der(t, "p-256")) + "\n" + lines[len(lines)-2],
	} {
		if _, err := jwks.ParsePEM([]byte(text), jwks.Limits{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDatesOfAPEMCertificate(t *testing.T) {
	set, err := jwks.ParsePEM(readPEM(t, "cert-p-256"), jwks.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	k := set.Keys()[0]
	day := 24 * time.Hour
	for _, tt := range []struct {
		at      time.Time
		chosen  bool
		warning string
	}{
		{k.NotBefore.Add(-time.Second), false, "not valid before 2026-11-22T"},
		{k.NotBefore, true, ""},
		{k.NotAfter.Add(-31 * day), true, ""},
		{k.NotAfter.Add(-30 * day), true, ""},
		{k.NotAfter.Add(-30*day + time.Second), true, "expires at 2036-11-19T04:11:20Z, in 29 days: register a new one, or the public key alone"},
		{k.NotAfter, true, "in 0 days"},
		{k.NotAfter.Add(time.Second), false, "expired at 2036-11-19T"},
	} {
		_, err := set.Choose(jwks.Want{Algorithm: encrypter.ECDHES, CertificateAt: tt.at})
		if (err == nil) != tt.chosen || !tt.chosen && !errors.Is(err, jwks.ErrKeyRejected) {
			t.Errorf("at %v: Choose gives %v, want chosen: %v", tt.at, err, tt.chosen)
		}
		if got := strings.Join(k.WarningsAt(tt.at), "\n"); !strings.Contains(got, tt.warning) || (got == "") != (tt.warning == "") {
			t.Errorf("at %v: warnings %q, want %q", tt.at, got, tt.warning)
		}
	}
	if len(k.Warnings) != 0 {
		t.Errorf("WarningsAt has changed the key's warnings: %q", k.Warnings)
	}
}

// TestCertificateForSignaturesIsAWarning: what its key usage says does not bind
// those who decrypt, and many clients have no other certificate.
func TestCertificateForSignaturesIsAWarning(t *testing.T) {
	for name, warned := range map[string]bool{
		"cert-rsa": false, "cert-rsa-plain": false, "cert-rsa-sig": true,
		"cert-p-256": false, "cert-p-256-sig": true, "cert-x25519": false, "cert-x448": false,
	} {
		k := parsePEM(t, name)
		if k.State != jwks.Usable || strings.Contains(strings.Join(k.Warnings, "\n"), "key usage") != warned {
			t.Errorf("%s: %v with warnings %q, want usable, warned: %v", name, k.State, k.Warnings, warned)
		}
	}
}

// TestX5CWithKeysOfEveryKind puts OpenSSL's certificates into JWKs.
func TestX5CWithKeysOfEveryKind(t *testing.T) {
	x := func(name string, size int) string { raw := der(t, name); return b64(raw[len(raw)-size:]) }
	keys := map[string]jwk{
		"cert-x25519": {"kty": "OKP", "crv": "X25519", "use": "enc", "x": x("x25519", 32)},
		"cert-x448":   {"kty": "OKP", "crv": "X448", "use": "enc", "x": x("x448", 56)},
	}
	for name, key := range keys {
		want := parsePEM(t, name)
		x5c := []string{base64.StdEncoding.EncodeToString(der(t, name))}
		k := parse(t, with(key, "x5c", x5c, "x5t", want.X5T)).Keys()[0]
		if k.State != jwks.Usable || k.X5T != want.X5T || k.X5TS256 != want.X5TS256 || k.Thumbprint != want.Thumbprint || len(k.Warnings) != 0 {
			t.Errorf("%s: %v (%s), x5t %s, warnings %q", name, k.State, k.Reason, k.X5T, k.Warnings)
		}
		// As WSO2's documentation shows it: the base64url of the digest in hex.
		k = parse(t, with(key, "x5c", x5c, "x5t", "YzJjZTc1")).Keys()[0]
		if k.State != jwks.Usable || k.X5T != want.X5T || !strings.Contains(strings.Join(k.Warnings, "\n"), `"x5t"`) {
			t.Errorf("%s with another x5t: %v, x5t %s, warnings %q", name, k.State, k.X5T, k.Warnings)
		}
		for other := range keys {
			if other == name {
				continue
			}
			x5c := []string{base64.StdEncoding.EncodeToString(der(t, other))}
			if k := parse(t, with(key, "x5c", x5c)).Keys()[0]; k.State != jwks.Rejected || !strings.Contains(k.Reason, "another key") {
				t.Errorf("%s with the certificate of %s: %v (%s)", name, other, k.State, k.Reason)
			}
		}
	}
}

func TestIssuerMayAskForLongerKeys(t *testing.T) {
	set, err := jwks.ParsePEM(readPEM(t, "rsa-2048"), jwks.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.Choose(jwks.Want{Algorithm: encrypter.RSAOAEP, MinRSABits: 2048}); err != nil {
		t.Errorf("at the bound: %v", err)
	}
	_, err = set.Choose(jwks.Want{Algorithm: encrypter.RSAOAEP, MinRSABits: 3072})
	if !errors.Is(err, jwks.ErrKeyRejected) || !strings.Contains(err.Error(), "less than the 3072 that this issuer requires") {
		t.Errorf("below it: got %v, want ErrKeyRejected that names the bound", err)
	}
}

// selfSigned returns a certificate in PEM, of a new key.
func selfSigned(t testing.TB, notBefore, notAfter time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotBefore: notBefore, NotAfter: notAfter}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE", raw)
}

func TestSelfSignedCertificateIsTaken(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	set, err := jwks.ParsePEM(selfSigned(t, now, now.AddDate(0, 0, 10)), jwks.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := set.Choose(jwks.Want{Algorithm: encrypter.ECDHES, CertificateAt: now})
	if err != nil {
		t.Fatal(err)
	}
	if got := k.WarningsAt(now); len(got) != 1 || !strings.Contains(got[0], "in 10 days") {
		t.Errorf("warnings %q, want that it ends in 10 days", got)
	}
}
