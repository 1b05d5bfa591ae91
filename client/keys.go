package client

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json/jsontext"
)

// Bounds on a key document.
const (
	maxKeyBytes = 1 << 20
	maxKeys     = 100
)

// ParseKeys reads the client's private keys: one private JWK, a JWK Set (RFC 7517,
// sections 4 and 5), or PEM with PKCS #8, PKCS #1 or SEC 1 inside. It returns those
// that can decrypt tokens:
//
//	RSA of 2048 bits or more           *rsa.PrivateKey
//	EC on P-256, P-384 or P-521        *ecdsa.PrivateKey
//	OKP on X25519                      *ecdh.PrivateKey
//	OKP on X448                        *X448PrivateKey
//	oct of 16, 24, 32, 48 or 64 bytes  []byte
//
// if their use and key_ops, where they have any, allow decryption. Others are passed
// over; if none remains, the error says why for each. Keys from PEM have no kid, so
// they are tried on any token that none of the others is for.
//
// A client that shares only its secret with the provider needs no key here: see
// ClientSecrets in [OpenConfig].
//
// The document holds secrets; the error never repeats them.
func ParseKeys(document []byte) ([]jose.JSONWebKey, error) {
	if isPEM(document) {
		return parsePEM(document)
	}
	return parseKeys(document, "private key", privateKeyProblem)
}

// ParseSigners reads the issuer's JWK Set (or one public JWK) and returns the keys
// that can verify tokens: public, with a kid, and with an alg that is known here
// and fits the key. Others, of unknown kinds or for other purposes, are passed
// over as RFC 7517, section 5, asks; if none remains, the error says why for each.
func ParseSigners(document []byte) ([]jose.JSONWebKey, error) {
	return parseKeys(document, "signer", signerProblem)
}

func parseKeys(document []byte, what string, problem func(jose.JSONWebKey, []string) string) ([]jose.JSONWebKey, error) {
	if len(document) > maxKeyBytes {
		return nil, fmt.Errorf("%s document has %d bytes, more than %d: is it the right file?", what, len(document), maxKeyBytes)
	}
	members, err := parseObject(document)
	if err != nil {
		return nil, fmt.Errorf("%s document is neither a JWK nor a JWK Set (a JSON object without duplicate names): is it the right file?", what)
	}
	raw := []jsontext.Value{document}
	if set, ok := members["keys"]; ok {
		if raw, err = arrayValues(set); err != nil {
			return nil, fmt.Errorf(`%s document: member "keys" of a JWK Set must be an array`, what)
		}
	}
	if len(raw) > maxKeys {
		return nil, fmt.Errorf("%s document has %d keys, more than %d", what, len(raw), maxKeys)
	}

	var keys []jose.JSONWebKey
	var refused []string
	for i, r := range raw {
		key, reason := parseKey(r, problem)
		if reason != "" {
			refused = append(refused, fmt.Sprintf("key %d (kid %s): %s", i+1, quote(key.KeyID), reason))
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		if len(refused) == 0 {
			return nil, fmt.Errorf("%s document has no keys", what)
		}
		return nil, fmt.Errorf("%s document has no usable key: %s", what, strings.Join(refused, "; "))
	}
	return keys, nil
}

// parseKey reads one JWK. A reason that is not empty says why it is of no use; the
// key then has at most its kid.
func parseKey(raw jsontext.Value, problem func(jose.JSONWebKey, []string) string) (jose.JSONWebKey, string) {
	members, err := parseObject(raw)
	if err != nil {
		return jose.JSONWebKey{}, "not a JSON object without duplicate names"
	}
	kid, _ := stringValue(members["kid"])
	unusable := func(reason string) (jose.JSONWebKey, string) {
		return jose.JSONWebKey{KeyID: kid}, reason
	}
	// go-jose drops key_ops, so it is read here.
	var ops []string
	if v, ok := members["key_ops"]; ok {
		values, err := arrayValues(v)
		if err != nil {
			return unusable("its key_ops is not an array")
		}
		for _, v := range values {
			op, ok := stringValue(v)
			if !ok {
				return unusable("its key_ops is not an array of strings")
			}
			ops = append(ops, op)
		}
	}
	key, err := unmarshalKey(raw, members)
	if err != nil {
		if errors.Is(err, jose.ErrUnsupportedKeyType) {
			return unusable("its kty or crv is not supported here")
		}
		return unusable(err.Error())
	}
	if reason := problem(key, ops); reason != "" {
		return unusable(reason)
	}
	return key, ""
}

const noAgreement = "its key_ops do not allow key agreement"

// incomplete is the problem of a key that a program has put together badly.
const incomplete = "it is empty, or some of it is missing"

// isNil tells if a key is a nil pointer.
func isNil(key any) bool {
	v := reflect.ValueOf(key)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// privateKeyProblem tells why a key cannot decrypt tokens; empty if it can. ops is
// the JWK's key_ops.
func privateKeyProblem(key jose.JSONWebKey, ops []string) string {
	if isNil(key.Key) {
		return incomplete
	}
	switch k := key.Key.(type) {
	case *rsa.PrivateKey:
		if !key.Valid() {
			return incomplete
		}
		if !soundSize(&k.PublicKey) {
			return fmt.Sprintf("RSA key of %d bits; it must have %d to %d", k.N.BitLen(), minRSABits, maxRSABits)
		}
		if k.Validate() != nil {
			return "its numbers do not belong together"
		}
		if !opsAllow(ops, "decrypt", "unwrapKey") {
			return "its key_ops do not allow decryption"
		}
	case *ecdsa.PrivateKey:
		if !key.Valid() {
			return incomplete
		}
		if curve := k.Curve; curve != elliptic.P256() && curve != elliptic.P384() && curve != elliptic.P521() {
			return "its curve is not supported (P-256, P-384 and P-521 are)"
		}
		// Nothing before this has looked whether d belongs to x and y.
		if !matchesPublic(k) {
			return "its d does not belong to its x and y"
		}
		if !opsAllow(ops, "deriveKey", "deriveBits") {
			return noAgreement
		}
	case *ecdh.PrivateKey:
		if k.Curve() != ecdh.X25519() {
			return "an ecdh.PrivateKey is for X25519 here; make it an ecdsa.PrivateKey"
		}
		if !opsAllow(ops, "deriveKey", "deriveBits") {
			return noAgreement
		}
	case *X448PrivateKey:
		if k.private == nil {
			return incomplete
		}
		if !opsAllow(ops, "deriveKey", "deriveBits") {
			return noAgreement
		}
	case []byte:
		// A key of any other size fits no algorithm.
		if !slices.Contains([]int{16, 24, 32, 48, 64}, len(k)) {
			return fmt.Sprintf("symmetric key of %d bytes; those that decrypt have 16, 24, 32, 48 or 64", len(k))
		}
		if !opsAllow(ops, "decrypt", "unwrapKey") {
			return "its key_ops do not allow decryption"
		}
	case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey, *ecdh.PublicKey:
		return "it is a public key; the private one is needed to decrypt"
	default:
		return "its kty or crv cannot decrypt (RSA, EC on P-256, P-384 or P-521, OKP on X25519 or X448, and oct can)"
	}
	if key.Use != "" && key.Use != "enc" {
		return "its use is " + quote(key.Use) + ", not enc"
	}
	return ""
}

// signerProblem tells why a key cannot verify tokens; empty if it can. ops is the
// JWK's key_ops.
func signerProblem(key jose.JSONWebKey, ops []string) string {
	switch {
	case key.KeyID == "":
		return "it has no kid, so no token can name it"
	case key.Use != "" && key.Use != "sig":
		return "its use is " + quote(key.Use) + ", not sig"
	case !opsAllow(ops, "verify"):
		return "its key_ops do not allow verification"
	case isNil(key.Key):
		return incomplete
	case !key.IsPublic():
		return "it is not a public key"
	case !key.Valid():
		return incomplete
	case key.Algorithm == "":
		return "it has no alg, so no signature can be matched to it"
	}
	alg, ok := find(signatureAlgorithms, key.Algorithm)
	if !ok {
		return "its alg " + quote(key.Algorithm) + " is not supported here"
	}
	if alg.symmetric() {
		return "its alg " + alg.name + " is verified with a secret, not with a key"
	}
	if !alg.fits(key.Key) {
		return fmt.Sprintf("its type, curve or size does not fit its alg %s", alg.name)
	}
	return ""
}

// opsAllow tells if key_ops has one of the operations. Absent or empty key_ops
// forbid nothing.
func opsAllow(ops []string, any ...string) bool {
	return len(ops) == 0 || slices.ContainsFunc(any, func(op string) bool { return slices.Contains(ops, op) })
}

// matchesPublic tells if an EC private key's scalar makes its public point.
func matchesPublic(k *ecdsa.PrivateKey) bool {
	private, err := k.ECDH()
	if err != nil {
		return false
	}
	public, err := k.PublicKey.ECDH()
	return err == nil && private.PublicKey().Equal(public)
}

// arrayValues returns the values of a JSON array.
func arrayValues(v jsontext.Value) ([]jsontext.Value, error) {
	var values []jsontext.Value
	if v.Kind() != '[' {
		return nil, errors.New("not a JSON array")
	}
	d := jsontext.NewDecoder(strings.NewReader(string(v)))
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	for d.PeekKind() != ']' {
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		values = append(values, value.Clone())
	}
	return values, nil
}
