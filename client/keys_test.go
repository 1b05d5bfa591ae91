package client

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// edit returns the JWK's JSON with members set, or removed where nil.
func edit(t testing.TB, key jose.JSONWebKey, changes map[string]any) string {
	t.Helper()
	return editJSON(t, string(marshal(t, key)), changes)
}

func editJSON(t testing.TB, object string, changes map[string]any) string {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal([]byte(object), &members); err != nil {
		t.Fatal(err)
	}
	for name, value := range changes {
		if value == nil {
			delete(members, name)
		} else {
			members[name] = value
		}
	}
	return string(marshal(t, members))
}

func set(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

const foreignKeys = `{"kty":"AKP","alg":"ML-DSA-44","kid":"pq","pub":"AA"},` +
	`{"kty":"OKP","crv":"X448","kid":"x","x":"AA"},` +
	`{"kty":"EC","crv":"secp256k1","kid":"k1","x":"AA","y":"AA"},` +
	`{"kty":"XYZ"},{"kid":"no kty"},17,null,"text"`

func TestParseKeys(t *testing.T) {
	ec, rsa := clientKey(), jose.JSONWebKey{Key: rsaKey(), KeyID: "r"}
	for _, test := range []struct {
		name, document string
		want           string // the kids
	}{
		{"one JWK", edit(t, ec, nil), "rp-1"},
		{"one RSA JWK", edit(t, rsa, nil), "r"},
		{"a set", set(edit(t, ec, nil), edit(t, rsa, nil)), "rp-1 r"},
		{"a set with members unknown", `{"keys":[` + edit(t, ec, nil) + `],"x":[{}]}`, "rp-1"},
		{"a set with foreign keys", set(foreignKeys, edit(t, ec, nil)), "rp-1"},
		{"a set with public, symmetric and signature keys", set(edit(t, public(rsa), nil), `{"kty":"oct","k":"AAAA"}`,
			edit(t, signingKey(t, "EdDSA"), nil), edit(t, signingKey(t, "ES256"), nil), edit(t, ec, nil)), "rp-1"},
		{"one for X25519", foreignKey(t, "x25519"), "x25519"},
		{"one for X448", foreignKey(t, "x448"), "x448"},
		{"one symmetric JWK", `{"kty":"oct","kid":"s","k":"` + b64(strings.Repeat("k", 48)) + `"}`, "s"},
		{"key_ops that fit", edit(t, ec, map[string]any{"key_ops": []string{"deriveBits"}}), "rp-1"},
		{"key_ops of RSA that fit", edit(t, rsa, map[string]any{"key_ops": []string{"x", "unwrapKey"}}), "r"},
		{"empty key_ops", edit(t, ec, map[string]any{"key_ops": []string{}}), "rp-1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, err := ParseKeys([]byte(test.document))
			if got := kids(keys); err != nil || got != test.want {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestParseKeysSaysWhy(t *testing.T) {
	ec, rsa := clientKey(), jose.JSONWebKey{Key: rsaKey(), KeyID: "r"}
	other := clientKey()
	other.Key = ecKeyOn(t, elliptic.P256())
	var otherMembers map[string]any
	if err := json.Unmarshal(marshal(t, other), &otherMembers); err != nil {
		t.Fatal(err)
	}
	d, err := ecKey().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, document, text string }{
		{"empty", "", "right file"},
		{"PEM that is cut off", "-----BEGIN PRIVATE KEY-----\nAAAA", "right file"},
		{"an array", "[]", "right file"},
		{"a name twice", `{"kty":"EC","kty":"RSA"}`, "right file"},
		{"two documents", edit(t, ec, nil) + edit(t, ec, nil), "right file"},
		{"keys is no array", `{"keys":{}}`, "array"},
		{"no keys", `{"keys":[]}`, "has no keys"},
		{"too large", `{"keys":[` + strings.Repeat(" ", maxKeyBytes) + `]}`, "more than 1048576"},
		{"too many", set(strings.TrimSuffix(strings.Repeat(edit(t, public(ec), nil)+",", maxKeys+1), ",")), "101 keys"},
		{"public", edit(t, public(ec), nil), "public key"},
		{"symmetric", `{"kty":"oct","k":"AAAA","kid":"s"}`, `key 1 (kid "s"): symmetric key of 3 bytes`},
		{"Ed25519", edit(t, jose.JSONWebKey{Key: edKey()}, nil), "cannot decrypt"},
		{"unknown kty", `{"kty":"XYZ","kid":"s"}`, "not supported"},
		{"small RSA", edit(t, jose.JSONWebKey{Key: smallRSAKey()}, nil), "1024 bits"},
		{"for signatures", edit(t, ec, map[string]any{"use": "sig"}), `use is "sig"`},
		{"key_ops for signatures", edit(t, rsa, map[string]any{"key_ops": []string{"sign"}}), "key_ops do not allow decryption"},
		{"key_ops for signatures, EC", edit(t, ec, map[string]any{"key_ops": []string{"sign"}}), "key_ops do not allow key agreement"},
		{"key_ops is text", edit(t, ec, map[string]any{"key_ops": "sign"}), "key_ops is not an array"},
		{"key_ops has numbers", edit(t, ec, map[string]any{"key_ops": []int{1}}), "array of strings"},
		{"d of another key", edit(t, ec, map[string]any{"d": otherMembers["d"]}), "d does not belong"},
		{"d of zero", edit(t, ec, map[string]any{"d": base64.RawURLEncoding.EncodeToString(make([]byte, 32))}), "d does not belong"},
		{"point off the curve", edit(t, ec, map[string]any{"x": otherMembers["x"]}), "not a valid JWK"},
		{"X25519, d of another key", strings.Replace(foreignKey(t, "x25519"), `"x25519"`, `"x25519","d":"`+b64(strings.Repeat("d", 32))+`"`, 1), "without duplicate names"},
		{"X25519 whose x is another", editJSON(t, foreignKey(t, "x25519"), map[string]any{"x": b64(strings.Repeat("x", 32))}), "d does not belong to x"},
		{"X448 whose x is another", editJSON(t, foreignKey(t, "x448"), map[string]any{"x": b64(strings.Repeat("x", 56))}), "d does not belong to x"},
		{"X25519 with a short d", editJSON(t, foreignKey(t, "x25519"), map[string]any{"d": b64("short")}), "32 bytes"},
		{"X448 with a short d", editJSON(t, foreignKey(t, "x448"), map[string]any{"d": b64("short")}), "56 bytes"},
		{"X448 with a d that is no base64url", editJSON(t, foreignKey(t, "x448"), map[string]any{"d": "+"}), "d is not base64url"},
		{"X448, public", editJSON(t, foreignKey(t, "x448"), map[string]any{"d": nil}), "public key"},
		{"X448 for signatures", editJSON(t, foreignKey(t, "x448"), map[string]any{"use": "sig"}), `use is "sig"`},
		{"X448 whose key_ops do not fit", editJSON(t, foreignKey(t, "x448"), map[string]any{"key_ops": []string{"sign"}}), "key_ops do not allow key agreement"},
		{"X25519 whose alg is a number", editJSON(t, foreignKey(t, "x25519"), map[string]any{"alg": 1}), "alg is not a string"},
		{"X25519 whose key_ops do not fit", editJSON(t, foreignKey(t, "x25519"), map[string]any{"key_ops": []string{"sign"}}), "key_ops do not allow key agreement"},
		{"symmetric whose key_ops do not fit", `{"kty":"oct","k":"` + b64(strings.Repeat("k", 16)) + `","key_ops":["verify"]}`, "key_ops do not allow decryption"},
		{"RSA of other primes", edit(t, rsa, map[string]any{"p": "AQAB"}), "not a valid JWK"},
		{"RSA without primes", edit(t, rsa, map[string]any{"p": nil, "q": nil}), "p and q are missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, err := ParseKeys([]byte(test.document))
			if err == nil || keys != nil || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %q, %v, want %q in the error", kids(keys), err, test.text)
			}
			if strings.Contains(err.Error(), base64.RawURLEncoding.EncodeToString(d)) || strings.Contains(err.Error(), fmt.Sprint(otherMembers["d"])) {
				t.Errorf("error %q has the private key in it", err)
			}
		})
	}
}

// The document comes from afar: an error must be fit for a terminal and a log.
func TestErrorsOfKeysDoNotRepeatTheDocument(t *testing.T) {
	evil := "\x1b[2J\nall is well\n" + strings.Repeat("a", 500_000)
	text := string(marshal(t, evil))
	for name, key := range map[string]string{
		"crv":          `{"kty":"EC","kid":"k","alg":"ES256","crv":` + text + `,"x":"AA","y":"AA"}`,
		"kty":          `{"kid":"k","alg":"ES256","kty":` + text + `}`,
		"x":            `{"kty":"EC","kid":"k","alg":"ES256","crv":"P-256","x":` + text + `,"y":"AA"}`,
		"n":            `{"kty":"RSA","kid":"k","alg":"RS256","e":"AQAB","n":` + text + `}`,
		"x of X448":    `{"kty":"OKP","crv":"X448","kid":"k","x":` + text + `}`,
		"d of X448":    `{"kty":"OKP","crv":"X448","kid":"k","x":"AA","d":` + text + `}`,
		"kid":          `{"kty":"EC","alg":"ES256","kid":` + text + `}`,
		"alg":          edit(t, public(signingKey(t, "ES256")), map[string]any{"alg": evil}),
		"use":          edit(t, public(signingKey(t, "ES256")), map[string]any{"use": evil}),
		"name":         `{"kty":"EC",` + text + `:1}`,
		"x5u":          edit(t, public(signingKey(t, "ES256")), map[string]any{"x5u": evil + "%"}),
		"x5c":          edit(t, public(signingKey(t, "ES256")), map[string]any{"x5c": []string{evil}}),
		"kty a number": `{"kty":1,"kid":` + text + `}`,
	} {
		for what, parse := range map[string]func([]byte) ([]jose.JSONWebKey, error){"keys": ParseKeys, "signers": ParseSigners} {
			_, err := parse([]byte(key))
			if err == nil {
				t.Errorf("%s as %s: parsed", name, what)
				continue
			}
			if s := err.Error(); len(s) > 400 || strings.ContainsAny(s, "\x1b\n") {
				t.Errorf("%s as %s: the error has %d characters, or such as control a terminal: %.100q", name, what, len(s), s)
			}
		}
	}
}

// Keys may be made by a program, which may make them badly.
func TestIncompleteKeysAreRefused(t *testing.T) {
	noPrimes := *rsaKey()
	noPrimes.Primes = nil
	wrong := *rsaKey()
	wrong.D, wrong.Precomputed = big.NewInt(65537), rsa.PrecomputedValues{}
	for _, test := range []struct {
		name string
		key  any
		text string
	}{
		{"nil", nil, "cannot decrypt"},
		{"nil RSA", (*rsa.PrivateKey)(nil), incomplete},
		{"nil EC", (*ecdsa.PrivateKey)(nil), incomplete},
		{"nil X25519", (*ecdh.PrivateKey)(nil), incomplete},
		{"nil X448", (*X448PrivateKey)(nil), incomplete},
		{"nil public RSA", (*rsa.PublicKey)(nil), incomplete},
		{"empty RSA", &rsa.PrivateKey{}, incomplete},
		{"RSA without primes", &noPrimes, incomplete},
		{"RSA of other numbers", &wrong, "do not belong together"},
		{"empty EC", &ecdsa.PrivateKey{}, incomplete},
		{"EC with a curve alone", &ecdsa.PrivateKey{PublicKey: ecdsa.PublicKey{Curve: elliptic.P256()}}, incomplete},
		{"EC without d", &ecdsa.PrivateKey{PublicKey: ecKey().PublicKey}, incomplete},
		{"empty X25519", &ecdh.PrivateKey{}, "X25519"},
		{"empty X448", &X448PrivateKey{}, incomplete},
		{"symmetric of no bytes", []byte{}, "0 bytes"},
	} {
		_, err := NewOpener(OpenConfig{Keys: []jose.JSONWebKey{{Key: test.key}}, Signers: anySigner(t)})
		if err == nil || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got error %v, want %q", test.name, err, test.text)
		}
	}
	for _, test := range []struct {
		name, alg string
		key       any
	}{
		{"nil", "ES256", nil},
		{"nil RSA", "RS256", (*rsa.PublicKey)(nil)},
		{"empty RSA", "PS256", &rsa.PublicKey{}},
		{"nil EC", "ES256", (*ecdsa.PublicKey)(nil)},
		{"EC with a curve alone", "ES256", &ecdsa.PublicKey{Curve: elliptic.P256()}},
		{"nil Ed25519", "EdDSA", ed25519.PublicKey(nil)},
		{"short Ed25519", "Ed25519", ed25519.PublicKey("short")},
	} {
		_, err := NewOpener(OpenConfig{Keys: []jose.JSONWebKey{clientKey()}, Signers: []jose.JSONWebKey{{Key: test.key, KeyID: "k", Algorithm: test.alg}}})
		if err == nil || !strings.Contains(err.Error(), "OpenConfig.Signers") {
			t.Errorf("signer %s: got error %v, want one of OpenConfig.Signers", test.name, err)
		}
	}
}

func TestParseSigners(t *testing.T) {
	var all []string
	for _, alg := range signatureAlgorithms {
		all = append(all, edit(t, public(signingKey(t, alg.name)), nil))
	}
	good := edit(t, public(signingKey(t, "ES256")), nil)
	for _, test := range []struct {
		name, document, want string
	}{
		{"every algorithm", set(all...), "sig-ES256 sig-ES384 sig-ES512 sig-PS256 sig-PS384 sig-PS512 sig-RS256 sig-RS384 sig-RS512 sig-EdDSA sig-Ed25519"},
		{"one JWK", good, "sig-ES256"},
		{"foreign keys are passed over", set(foreignKeys, good), "sig-ES256"},
		{"encryption keys are passed over", set(edit(t, public(clientKey()), nil), good), "sig-ES256"},
		{"private and symmetric keys are passed over", set(edit(t, signingKey(t, "EdDSA"), nil), `{"kty":"oct","k":"AAAA","alg":"HS256","kid":"h"}`, good), "sig-ES256"},
		{"keys without kid or alg are passed over", set(edit(t, public(signingKey(t, "EdDSA")), map[string]any{"kid": nil}),
			edit(t, public(signingKey(t, "RS256")), map[string]any{"alg": nil}), good), "sig-ES256"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, err := ParseSigners([]byte(test.document))
			if got := kids(keys); err != nil || got != test.want {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestParseSignersSaysWhy(t *testing.T) {
	key := public(signingKey(t, "ES256"))
	for _, test := range []struct{ name, document, text string }{
		{"no kid", edit(t, key, map[string]any{"kid": nil}), "no kid"},
		{"no alg", edit(t, key, map[string]any{"alg": nil}), "no alg"},
		{"kid is a number", edit(t, key, map[string]any{"kid": 1}), "not a valid JWK"},
		{"alg of another curve", edit(t, key, map[string]any{"alg": "ES512"}), "does not fit its alg ES512"},
		{"alg of another type", edit(t, key, map[string]any{"alg": "RS256"}), "does not fit its alg RS256"},
		{"alg unknown", edit(t, key, map[string]any{"alg": "ES521"}), `"ES521" is not supported`},
		{"alg symmetric", edit(t, key, map[string]any{"alg": "HS256"}), "with a secret"},
		{"for encryption", edit(t, key, map[string]any{"use": "enc"}), `use is "enc"`},
		{"key_ops for encryption", edit(t, key, map[string]any{"key_ops": []string{"encrypt"}}), "key_ops do not allow verification"},
		{"private", edit(t, signingKey(t, "ES256"), nil), "not a public key"},
		{"small RSA", edit(t, public(jose.JSONWebKey{Key: smallRSAKey(), KeyID: "s", Algorithm: "RS256"}), nil), "does not fit"},
		{"low-order Ed25519 key", `{"kty":"OKP","crv":"Ed25519","kid":"l","alg":"EdDSA","x":"` + base64.RawURLEncoding.EncodeToString(append([]byte{1}, make([]byte, 31)...)) + `"}`, "not a valid JWK"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, err := ParseSigners([]byte(test.document))
			if err == nil || keys != nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %q, %v, want %q in the error", kids(keys), err, test.text)
			}
		})
	}
}

func kids(keys []jose.JSONWebKey) string {
	var names []string
	for _, k := range keys {
		names = append(names, k.KeyID)
	}
	return strings.Join(names, " ")
}
