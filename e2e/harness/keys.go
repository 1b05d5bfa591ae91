package harness

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// ClientKey is the key pair of an OAuth client. Nothing of Bulla made it.
type ClientKey struct{ jose.JSONWebKey }

// NewClientKey makes a key pair: curve is P-256, P-384 or P-521, or empty for
// RSA with 2048 bits.
func NewClientKey(t testing.TB, curve, kid string) ClientKey {
	t.Helper()
	var key crypto.Signer
	var err error
	switch curve {
	case "":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "P-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	default:
		err = fmt.Errorf("no such curve: %s", curve)
	}
	if err != nil {
		t.Fatal(err)
	}
	pair := ClientKey{jose.JSONWebKey{Key: key, KeyID: kid, Use: "enc"}}
	evidence.document("a client's private key", pair.PrivateJWK())
	return pair
}

// PrivateJWK is the key pair as a JWK.
func (k ClientKey) PrivateJWK() json.RawMessage { return mustMarshal(k.JSONWebKey) }

// PublicJWK is the public half as a JWK.
func (k ClientKey) PublicJWK() json.RawMessage { return mustMarshal(k.Public()) }

// JWKS is a JWK Set with the public halves of keys.
func JWKS(keys ...ClientKey) []byte {
	set := struct {
		Keys []json.RawMessage `json:"keys"`
	}{Keys: []json.RawMessage{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.PublicJWK())
	}
	return mustMarshal(set)
}

func mustMarshal(v any) []byte {
	doc, err := json.Marshal(v)
	if err != nil {
		panic(err) // keys that were just made
	}
	return doc
}
