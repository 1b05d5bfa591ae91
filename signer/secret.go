package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hmac"
	"errors"
	"fmt"
	"hash"

	"github.com/bulla-project/bulla/kms"
)

// ErrSecretTooShort: the client's secret is shorter than the hash of the
// algorithm, which RFC 7518, section 3.2, forbids. The client has to register a
// longer secret, or another algorithm.
var ErrSecretTooShort = errors.New("client secret too short to sign with")

// NewSecretKey makes a SigningKey of a client's secret: the octets that the
// client knows, which is the UTF-8 of its client_secret (OpenID Connect Core
// 1.0, section 10.1). alg is one of kms.SecretAlgorithms.
//
// What it signs has no kid, because nothing about a secret may be published,
// and the key has no public half that could get into a JWK Set. The secret is
// copied. Making a key costs no more than that; it may be made for each token
// and forgotten.
//
// Errors are ErrSecretTooShort and, for another alg, kms.ErrKeyMismatch.
func NewSecretKey(alg kms.Algorithm, secret []byte) (*SigningKey, error) {
	if !alg.Symmetric() {
		return nil, fmt.Errorf("%w: %q does not sign with a secret", kms.ErrKeyMismatch, string(alg))
	}
	if len(secret) < alg.MinSecret() {
		// How long it is stays unsaid: that would help to guess it.
		return nil, fmt.Errorf("%w: %s needs at least %d bytes; register a longer secret or another algorithm", ErrSecretTooShort, alg, alg.MinSecret())
	}
	secret = bytes.Clone(secret)
	return &SigningKey{
		key:           &secretKey{alg, func() hash.Hash { return hmac.New(alg.Hash().New, secret) }},
		algorithm:     alg,
		signatureSize: alg.Hash().Size(),
		headers:       secretHeaders[alg],
	}, nil
}

// secretHeaders are the protected headers under each symmetric algorithm. They
// name no key, so that they are the same for all clients.
var secretHeaders = func() map[kms.Algorithm]map[TokenKind][]byte {
	all := make(map[kms.Algorithm]map[TokenKind][]byte)
	for _, alg := range kms.SecretAlgorithms() {
		all[alg] = protectedHeaders(alg, "")
	}
	return all
}()

// secretKey is a kms.Key that is a secret in memory. The secret is held by a
// function, because whatever is held by a field, even one inside of another
// struct, gets printed by some verb of package fmt.
type secretKey struct {
	algorithm kms.Algorithm
	hmac      func() hash.Hash
}

func (k *secretKey) Algorithm() kms.Algorithm { return k.algorithm }

// Public is nil: a secret has no public half.
func (k *secretKey) Public() crypto.PublicKey { return nil }

// Sign returns the HMAC of message (RFC 7518, section 3.2).
func (k *secretKey) Sign(ctx context.Context, message []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	mac := k.hmac()
	mac.Write(message)
	return mac.Sum(nil), nil
}
