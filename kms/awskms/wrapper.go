package awskms

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"log/slog"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/bulla-project/bulla/kms"
)

// wrapMethod is the first byte of what this backend wraps; the rest is a
// CiphertextBlob of KMS.
const wrapMethod = 0x21

// contextName is the one name in the encryption context.
const contextName = "bulla-wrap-sha256"

// wrapper is one symmetric KMS key.
type wrapper struct {
	backend *Backend
	id      string // what KMS says the key is: its ARN, never an alias
}

var (
	_ kms.WrapperOpener = (*Backend)(nil)
	_ kms.Wrapper       = (*wrapper)(nil)
)

// OpenWrapper implements kms.WrapperOpener, with one Encrypt and one Decrypt of
// something random: they show what key it is, that it is of the right usage,
// and that the identity has both permissions.
//
// An RSA key for encryption is refused: what it decrypts, anybody could have
// encrypted.
func (b *Backend) OpenWrapper(ctx context.Context, ref string) (kms.Wrapper, error) {
	leave, err := b.calls.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return nil, err
	}

	id, err := parseReference(ref, b.region)
	if err != nil {
		return nil, err
	}
	probe := make([]byte, kms.MinDataKey)
	_, _ = rand.Read(probe) // never fails
	aad := []byte(kms.ProbePrefix)
	out, err := b.encrypt(ctx, id, probe, aad)
	if err != nil {
		return nil, err
	}
	w := &wrapper{backend: b, id: aws.ToString(out.KeyId)}
	if w.id == "" || isAlias(w.id) {
		return nil, fmt.Errorf("%w: key %q: AWS KMS does not say which key it is (KeyId %q)", kms.ErrUnavailable, id, w.id)
	}
	back, err := w.decrypt(ctx, out.CiphertextBlob, aad)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(back, probe) != 1 {
		return nil, fmt.Errorf("%w: key %q: AWS KMS decrypts to something else than it encrypted", kms.ErrUnavailable, w.id)
	}
	b.log.LogAttrs(ctx, slog.LevelInfo, "AWS KMS wrapping key opened", slog.String("reference", ref), slog.String("key", w.id))
	return w, nil
}

// Wrap implements kms.Wrapper, with one Encrypt.
func (w *wrapper) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := kms.CheckDataKey(plaintext); err != nil {
		return nil, err
	}
	leave, err := w.backend.calls.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	out, err := w.backend.encrypt(ctx, w.id, plaintext, aad)
	if err != nil {
		return nil, err
	}
	return append([]byte{wrapMethod}, out.CiphertextBlob...), nil
}

// Unwrap implements kms.Wrapper, with one Decrypt. KMS is told the key: it
// would else take the one that the ciphertext names.
func (w *wrapper) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	leave, err := w.backend.calls.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(wrapped) < 1+kms.MinDataKey || len(wrapped) > maxBlob || wrapped[0] != wrapMethod {
		return nil, fmt.Errorf("%w: %s", kms.ErrUnwrap, changed)
	}
	plaintext, err := w.decrypt(ctx, wrapped[1:], aad)
	if err == nil && kms.CheckDataKey(plaintext) != nil {
		return nil, fmt.Errorf("%w: %s", kms.ErrUnwrap, changed)
	}
	return plaintext, err
}

// maxBlob bounds what is sent to KMS to be decrypted, in bytes. It takes 6144;
// a data key needs some 200.
const maxBlob = 1024

// encrypt calls Encrypt, as of a symmetric key, and sees to it that the answer
// is of one.
func (b *Backend) encrypt(ctx context.Context, id string, plaintext, aad []byte) (*awssdk.EncryptOutput, error) {
	out, err := b.client.Encrypt(ctx, &awssdk.EncryptInput{
		KeyId: aws.String(id), Plaintext: plaintext, EncryptionContext: encryptionContext(aad),
		EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
	}, manner{}.within(ctx))
	switch {
	case err != nil:
		return nil, fmt.Errorf("key %q: %w", id, classify(ctx, "Encrypt", err))
	case out.EncryptionAlgorithm != "" && out.EncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault:
		return nil, fmt.Errorf("%w: key %q: it encrypts %q, and a wrapping key %s", kms.ErrKeyMismatch, id, out.EncryptionAlgorithm, types.EncryptionAlgorithmSpecSymmetricDefault)
	case len(out.CiphertextBlob) <= len(plaintext) || len(out.CiphertextBlob) >= maxBlob:
		return nil, fmt.Errorf("%w: key %q: AWS KMS answered with a ciphertext of %d bytes", kms.ErrUnavailable, id, len(out.CiphertextBlob))
	}
	return out, nil
}

func (w *wrapper) decrypt(ctx context.Context, blob, aad []byte) ([]byte, error) {
	out, err := w.backend.client.Decrypt(ctx, &awssdk.DecryptInput{
		KeyId: aws.String(w.id), CiphertextBlob: blob, EncryptionContext: encryptionContext(aad),
		EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
	}, manner{}.within(ctx))
	switch {
	case err != nil:
		return nil, fmt.Errorf("key %q: %w", w.id, classify(ctx, "Decrypt", err))
	case aws.ToString(out.KeyId) != w.id:
		return nil, fmt.Errorf("%w: AWS KMS decrypted with key %q instead of %q", kms.ErrUnwrap, aws.ToString(out.KeyId), w.id)
	}
	return out.Plaintext, nil
}

// encryptionContext is what KMS authenticates beside the plaintext.
func encryptionContext(aad []byte) map[string]string {
	sum := sha256.Sum256(aad)
	return map[string]string{contextName: hex.EncodeToString(sum[:])}
}
