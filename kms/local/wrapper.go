package local

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
)

// What a wrapping key looks like in the file.
const (
	wrappingKeySize   = 32 // bytes
	wrappingAlgorithm = "A256GCM"
)

// wrapMethod is the first byte of what this backend wraps: AES-256-GCM (NIST SP
// 800-38D) with a random nonce of 96 bits, then ciphertext and tag. The byte is
// authenticated before the caller's aad.
const wrapMethod = 0x31

// wrapper is one software wrapping key.
type wrapper struct {
	backend *Backend
	aead    cipher.AEAD
}

var (
	_ kms.WrapperOpener = (*Backend)(nil)
	_ kms.Wrapper       = (*wrapper)(nil)
)

// OpenWrapper implements kms.WrapperOpener. Signing keys are refused, with
// kms.ErrKeyMismatch.
func (b *Backend) OpenWrapper(ctx context.Context, ref string) (kms.Wrapper, error) {
	jwk, err := b.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	secret, ok := wrappingKeyOf(jwk)
	if !ok {
		return nil, fmt.Errorf("%w: key %q is a signing key: name a wrapping key, or make one (kty oct, %d bytes, use enc, alg %s)",
			kms.ErrKeyMismatch, jwk.KeyID, wrappingKeySize, wrappingAlgorithm)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, fmt.Errorf("%w: key %q: %w", kms.ErrKeyMismatch, jwk.KeyID, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("%w: key %q: %w", kms.ErrKeyMismatch, jwk.KeyID, err)
	}
	return &wrapper{b, aead}, nil
}

// wrappingKeyOf returns the secret in k, if it is a wrapping key.
func wrappingKeyOf(k jose.JSONWebKey) ([]byte, bool) {
	secret, ok := k.Key.([]byte)
	return secret, ok && len(secret) == wrappingKeySize
}

// Wrap implements kms.Wrapper. Like a signature it is made in this process: a
// context that ends meanwhile does not cut it short.
func (w *wrapper) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := kms.CheckDataKey(plaintext); err != nil {
		return nil, err
	}
	leave, err := w.backend.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	n := w.aead.NonceSize()
	out := make([]byte, 1+n, 1+n+len(plaintext)+w.aead.Overhead())
	out[0] = wrapMethod
	_, _ = rand.Read(out[1:])                                                     // never fails
	return w.aead.Seal(out, out[1:], plaintext, slices.Concat(out[:1], aad)), nil //nolint:gosec // the nonce was just filled
}

// Unwrap implements kms.Wrapper.
func (w *wrapper) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	leave, err := w.backend.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	n := w.aead.NonceSize()
	if len(wrapped) < 1+n || !bytes.HasPrefix(wrapped, []byte{wrapMethod}) {
		return nil, errUnwrap
	}
	plaintext, err := w.aead.Open(nil, wrapped[1:1+n], wrapped[1+n:], slices.Concat(wrapped[:1], aad))
	if err != nil || kms.CheckDataKey(plaintext) != nil {
		return nil, errUnwrap
	}
	return plaintext, nil
}

var errUnwrap = fmt.Errorf("%w: it was not wrapped by this key of the local key file for this purpose, or was changed", kms.ErrUnwrap)
