package pkcs11

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/kms"
)

// rsaWrapper wraps with an RSA private key of a token that has no AES, such as
// many TPMs.
//
// RSA-OAEP would be the obvious way and is not good enough: it keeps a secret,
// but anybody can encrypt to a public key. Who can write to the store could
// bring a data key of his own, wrapped by himself, and with it the MACs of his
// own records. So the key that encrypts (KEK) is not one that is sent to the
// token but one that only the token can say:
//
//	nonce   = 32 random bytes
//	message = "bulla-wrap:v1:" ‖ hexadecimal nonce      (kms.WrapPrefix)
//	S       = RSASSA-PKCS1-v1_5 signature of message with SHA-256
//	KEK     = HKDF-SHA-256(secret S, salt nonce, info "bulla-wrap:v1: AES-256-GCM")
//	sealed  = AES-256-GCM(KEK, IV of zeros, plaintext, aad = method ‖ nonce ‖ aad)
//	wrapped = method ‖ nonce ‖ sealed
//
// RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2) has exactly one signature for a
// message, which is why the same nonce gives the same KEK again, and none can be
// made without the private key, which is why nobody else has the KEK: not for a
// nonce of his own either. S is verified before use, so that a wrong one, by a
// faulty token, neither seals nor passes for a changed wrapping; it is never
// shown to anybody. The IV may be constant because each KEK encrypts once.
//
// What has to hold beside: nobody gets a signature of such a message for
// anything else. Bulla signs with a token key only JWS signing inputs, in which
// a colon cannot occur, and messages with prefixes of its own that contain one;
// so even a key that signs tokens as well gives nothing away. Whoever may sign
// freely with the key, or may have it do the bare RSA operation by decrypting,
// can open all that it wrapped: give it no other users and no other uses.
type rsaWrapper struct{ key *key } // bound to RS256

// Sizes in bytes.
const (
	rsaNonceSize = 32
	kekSize      = 32
)

// Wrap is of kms.Wrapper, with one signature.
func (w *rsaWrapper) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := kms.CheckDataKey(plaintext); err != nil {
		return nil, err
	}
	if err := w.key.b.enter(ctx); err != nil {
		return nil, err
	}
	defer w.key.b.leave()
	header := make([]byte, 1+rsaNonceSize)
	header[0] = methodRSA
	_, _ = rand.Read(header[1:]) // never fails
	sealer, err := w.sealer(ctx, header[1:])
	if err != nil {
		return nil, err
	}
	iv := make([]byte, sealer.NonceSize())
	return sealer.Seal(slices.Clip(header), iv, plaintext, slices.Concat(header, aad)), nil //nolint:gosec // the KEK is new, see rsaWrapper
}

// Unwrap is of kms.Wrapper, with one signature.
func (w *rsaWrapper) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := w.key.b.enter(ctx); err != nil {
		return nil, err
	}
	defer w.key.b.leave()
	const overhead = 1 + rsaNonceSize + 16
	if n := len(wrapped); n < overhead+kms.MinDataKey || n > overhead+kms.MaxDataKey {
		return nil, notOpened(fmt.Sprintf("it has %d bytes", n))
	}
	if wrapped[0] != methodRSA {
		return nil, notOpened(fmt.Sprintf("its first byte 0x%02X is for no way in which an RSA key wraps", wrapped[0]))
	}
	header, sealed := wrapped[:1+rsaNonceSize], wrapped[1+rsaNonceSize:]
	sealer, err := w.sealer(ctx, header[1:])
	if err != nil {
		return nil, err
	}
	plaintext, err := sealer.Open(nil, make([]byte, sealer.NonceSize()), sealed, slices.Concat(header, aad))
	if err != nil {
		return nil, notOpened("the key works and does not open it")
	}
	return plaintext, nil
}

// sealer is AES-256-GCM under the KEK of nonce.
func (w *rsaWrapper) sealer(ctx context.Context, nonce []byte) (cipher.AEAD, error) {
	message := hex.AppendEncode([]byte(kms.WrapPrefix), nonce)
	signature, err := w.key.sign(ctx, message)
	if err != nil {
		return nil, err
	}
	if err := kms.Verify(w.key.algorithm, w.key.public, message, signature); err != nil {
		w.key.b.vault.distrust()
		return nil, fmt.Errorf("%w: the module made a wrong signature: %w", kms.ErrUnavailable, err)
	}
	kek, err := hkdf.Key(sha256.New, signature, nonce, kms.WrapPrefix+" AES-256-GCM", kekSize)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	defer clear(kek)
	clear(signature)
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return cipher.NewGCM(block)
}
