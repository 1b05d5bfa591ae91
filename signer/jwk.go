package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
)

// Thumbprint is the kid of a public key: base64url of its RFC 7638 SHA-256
// thumbprint. It depends on the key alone, so that a key pair has the same kid
// wherever its private half lives, and under whatever algorithm.
//
// Only public keys have one: that of a secret (RFC 7638, section 7) would let
// whoever sees it try guesses at the secret.
func Thumbprint(pub crypto.PublicKey) (string, error) {
	switch pub.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return "", fmt.Errorf("a %T is no public key of a known type and has no thumbprint", pub)
	}
	sum, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint of a %T: %w", pub, err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// PublicJWK is the public half of a signing key as a JWK (RFC 7517) with kty,
// use "sig", alg, kid and the key's parameters.
func PublicJWK(pub crypto.PublicKey, alg kms.Algorithm) (json.RawMessage, error) {
	if err := alg.CheckPublic(pub); err != nil {
		return nil, err
	}
	kid, err := Thumbprint(pub)
	if err != nil {
		return nil, err
	}
	raw, err := jose.JSONWebKey{Key: pub, KeyID: kid, Algorithm: string(alg), Use: "sig"}.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode the public JWK of key %s: %w", kid, err)
	}
	return raw, nil
}

// ParsePublicJWK reads what PublicJWK wrote, for alg. It refuses everything
// else with kms.ErrKeyMismatch: a private key, one of another algorithm or
// use, a kid that is not the thumbprint.
func ParsePublicJWK(raw []byte, alg kms.Algorithm) (pub crypto.PublicKey, kid string, err error) {
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(raw, &jwk); err != nil {
		// The text of go-jose may quote the JWK; that it cannot be read is
		// all there is to know.
		return nil, "", fmt.Errorf("%w: not a JWK of a known type", kms.ErrKeyMismatch)
	}
	if err := alg.CheckPublic(jwk.Key); err != nil {
		return nil, "", err
	}
	kid, err = Thumbprint(jwk.Key)
	if err != nil {
		return nil, "", err
	}
	if jwk.KeyID != kid || jwk.Algorithm != string(alg) || jwk.Use != "sig" {
		return nil, "", fmt.Errorf("%w: the JWK's kid, alg or use is not that of a %s signing key %s", kms.ErrKeyMismatch, alg, kid)
	}
	return jwk.Key, kid, nil
}

// JWKS is the JWK Set document (RFC 7517, section 5) of JWKs in order.
func JWKS(jwks []json.RawMessage) []byte {
	var doc bytes.Buffer
	doc.WriteString(`{"keys":[`)
	for i, jwk := range jwks {
		if i > 0 {
			doc.WriteByte(',')
		}
		doc.Write(jwk)
	}
	doc.WriteString(`]}`)
	return doc.Bytes()
}
