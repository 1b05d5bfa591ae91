package signer

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
)

// RFC 7515, appendix A.2.
const (
	rfc7515A2Key = `{"kty":"RSA",
"n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
"e":"AQAB",
"d":"Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
"p":"4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
"q":"uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
"dp":"BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
"dq":"h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
"qi":"IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U"}`
	rfc7515A2Token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)

// RFC 8037, appendix A.1.
const rfc8037A1Key = `{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`

// RFC 7638, section 3.1.
const rfc7638Key = `{"kty":"RSA",
"n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
"e":"AQAB","alg":"RS256","kid":"2011-04-29"}`

func TestThumbprintsOfTheRFCs(t *testing.T) {
	rsaPub := parsePrivate[*rsa.PublicKey](t, rfc7638Key)
	edPub := parsePrivate[ed25519.PrivateKey](t, rfc8037A1Key).Public()
	for name, tt := range map[string]struct {
		pub  crypto.PublicKey
		want string
	}{
		"RFC 7638, section 3.1":  {rsaPub, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"},
		"RFC 8037, appendix A.3": {edPub, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
	} {
		if got, err := Thumbprint(tt.pub); err != nil || got != tt.want {
			t.Errorf("%s: Thumbprint = %q, %v, want %q", name, got, err, tt.want)
		}
	}
	if _, err := Thumbprint("no key"); err == nil {
		t.Error("a string has a thumbprint")
	}
}

func TestPublicJWKHasThePublicMembersOnly(t *testing.T) {
	want := map[kms.KeyType][]string{
		kms.RSA: {"kty", "use", "alg", "kid", "n", "e"},
		kms.EC:  {"kty", "use", "alg", "kid", "crv", "x", "y"},
		kms.OKP: {"kty", "use", "alg", "kid", "crv", "x"},
	}
	for _, alg := range kms.Algorithms() {
		soft := newSoftKey(t, alg)
		raw, err := PublicJWK(soft.Public(), alg)
		if err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		var members map[string]string
		if err := json.Unmarshal(raw, &members); err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		for _, name := range want[alg.KeyType()] {
			if members[name] == "" {
				t.Errorf("%s: the JWK has no %s: %s", alg, name, raw)
			}
		}
		if len(members) != len(want[alg.KeyType()]) {
			t.Errorf("%s: the JWK has other members than %v: %s", alg, want[alg.KeyType()], raw)
		}
		if members["use"] != "sig" || members["alg"] != string(alg) || members["kty"] != string(alg.KeyType()) {
			t.Errorf("%s: wrong use, alg or kty: %s", alg, raw)
		}
		pub, kid, err := ParsePublicJWK(raw, alg)
		if err != nil || kid != members["kid"] || !soft.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(pub) {
			t.Errorf("%s: ParsePublicJWK = %v, %q, %v, want what was written", alg, pub, kid, err)
		}
	}
	if _, err := PublicJWK(newSoftKey(t, kms.ES256).Public(), kms.RS256); !errors.Is(err, kms.ErrKeyMismatch) {
		t.Errorf("an EC key as RS256: %v, want kms.ErrKeyMismatch", err)
	}
}

func TestParsePublicJWKRefusesAllElse(t *testing.T) {
	pub := newSoftKey(t, kms.ES256).Public()
	good, err := PublicJWK(pub, kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Thumbprint(newSoftKey(t, kms.ES256).Public())
	if err != nil {
		t.Fatal(err)
	}
	kid, err := Thumbprint(pub)
	if err != nil {
		t.Fatal(err)
	}
	private, err := jose.JSONWebKey{Key: newSoftKey(t, kms.ES256).private, KeyID: kid, Algorithm: "ES256", Use: "sig"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string]string{
		"nothing":       ``,
		"no JWK":        `{}`,
		"symmetric":     `{"kty":"oct","k":"AAAA"}`,
		"private":       string(private),
		"another kid":   strings.Replace(string(good), kid, other, 1),
		"another alg":   strings.Replace(string(good), `"ES256"`, `"ES384"`, 1),
		"encryption":    strings.Replace(string(good), `"sig"`, `"enc"`, 1),
		"another curve": strings.Replace(string(good), `"P-256"`, `"P-384"`, 1),
	} {
		if _, _, err := ParsePublicJWK([]byte(raw), kms.ES256); !errors.Is(err, kms.ErrKeyMismatch) {
			t.Errorf("%s: %v, want kms.ErrKeyMismatch", name, err)
		}
	}
}

func TestJWKSIsReadByGoJose(t *testing.T) {
	var jwks []json.RawMessage
	for _, alg := range []kms.Algorithm{kms.RS256, kms.ES256, kms.ES512, kms.EdDSA} {
		raw, err := PublicJWK(newSoftKey(t, alg).Public(), alg)
		if err != nil {
			t.Fatal(err)
		}
		jwks = append(jwks, raw)
	}
	for n := range len(jwks) + 1 {
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(JWKS(jwks[:n]), &set); err != nil || len(set.Keys) != n || set.Keys == nil {
			t.Errorf("JWKS of %d keys reads as %d keys (%v)", n, len(set.Keys), err)
		}
		for _, k := range set.Keys {
			if !k.IsPublic() || !k.Valid() || k.Use != "sig" {
				t.Errorf("key %s is not a valid public signing key", k.KeyID)
			}
		}
	}
}
