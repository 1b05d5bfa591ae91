package awskms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/bulla-project/bulla/kms"
)

// signingAlgorithms are the names that KMS has for ours.
var signingAlgorithms = map[kms.Algorithm]types.SigningAlgorithmSpec{
	kms.RS256:   types.SigningAlgorithmSpecRsassaPkcs1V15Sha256,
	kms.RS384:   types.SigningAlgorithmSpecRsassaPkcs1V15Sha384,
	kms.RS512:   types.SigningAlgorithmSpecRsassaPkcs1V15Sha512,
	kms.PS256:   types.SigningAlgorithmSpecRsassaPssSha256,
	kms.PS384:   types.SigningAlgorithmSpecRsassaPssSha384,
	kms.PS512:   types.SigningAlgorithmSpecRsassaPssSha512,
	kms.ES256:   types.SigningAlgorithmSpecEcdsaSha256,
	kms.ES384:   types.SigningAlgorithmSpecEcdsaSha384,
	kms.ES512:   types.SigningAlgorithmSpecEcdsaSha512,
	kms.EdDSA:   types.SigningAlgorithmSpecEd25519Sha512,
	kms.Ed25519: types.SigningAlgorithmSpecEd25519Sha512,
}

// maxRaw is the length in bytes of the longest message that KMS hashes itself
// (API reference, Sign: Message).
const maxRaw = 4096

// fittingClaims is about how many bytes of claims give a signing input of
// maxRaw bytes: three quarters, less a header with a kid and the longest typ.
const fittingClaims = 2900

// key is one KMS key, bound to its algorithm.
type key struct {
	backend *Backend
	id      string // what KMS says the key is: its ARN, never an alias
	alg     kms.Algorithm
	spec    types.SigningAlgorithmSpec
	public  crypto.PublicKey
}

var _ kms.Key = (*key)(nil)

// OpenKey implements kms.Backend, with one GetPublicKey.
func (b *Backend) OpenKey(ctx context.Context, ref string, alg kms.Algorithm) (kms.Key, error) {
	leave, err := b.calls.enter()
	if err != nil {
		return nil, err
	}
	defer leave()

	id, err := parseReference(ref, b.region)
	if err != nil {
		return nil, err
	}
	spec, ok := signingAlgorithms[alg]
	if !ok {
		return nil, fmt.Errorf("%w: the AWS KMS backend does not sign %q: use one of %v", kms.ErrKeyMismatch, string(alg), kms.Algorithms())
	}
	out, err := b.client.GetPublicKey(ctx, &awssdk.GetPublicKeyInput{KeyId: aws.String(id)}, manner{}.within(ctx))
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", id, classify(ctx, "GetPublicKey", err))
	}
	k := &key{backend: b, id: aws.ToString(out.KeyId), alg: alg, spec: spec}
	if k.public, err = publicKey(out, alg, spec); err != nil {
		return nil, fmt.Errorf("key %q: %w", id, err)
	}
	if k.id == "" || isAlias(k.id) {
		return nil, fmt.Errorf("%w: key %q: AWS KMS does not say which key it is (KeyId %q)", kms.ErrUnavailable, id, k.id)
	}
	b.mu.Lock()
	b.opened = k.id
	b.mu.Unlock()
	b.log.LogAttrs(ctx, slog.LevelInfo, "AWS KMS key opened",
		slog.String("reference", ref), slog.String("key", k.id), slog.String("algorithm", string(alg)))
	return k, nil
}

// publicKey returns the public key in out, if it can be alg's. Errors wrap
// kms.ErrKeyMismatch.
func publicKey(out *awssdk.GetPublicKeyOutput, alg kms.Algorithm, spec types.SigningAlgorithmSpec) (crypto.PublicKey, error) {
	if out.KeyUsage != types.KeyUsageTypeSignVerify {
		return nil, fmt.Errorf("%w: its usage is %s: create a key with usage %s", kms.ErrKeyMismatch, out.KeyUsage, types.KeyUsageTypeSignVerify)
	}
	// The key spec says no more than these two checks: what the service will
	// sign, and what the key is.
	if !slices.Contains(out.SigningAlgorithms, spec) {
		return nil, fmt.Errorf("%w: %s needs a key that signs %s, this one (%s) signs %v", kms.ErrKeyMismatch, alg, spec, out.KeySpec, out.SigningAlgorithms)
	}
	public, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: its public key cannot be read: %w", kms.ErrKeyMismatch, err)
	}
	if err := alg.CheckPublic(public); err != nil {
		return nil, err
	}
	return public, nil
}

// Algorithm implements kms.Key.
func (k *key) Algorithm() kms.Algorithm { return k.alg }

// Public implements kms.Key.
func (k *key) Public() crypto.PublicKey { return k.public }

// Sign implements kms.Key, with one call of the same name.
func (k *key) Sign(ctx context.Context, message []byte) ([]byte, error) {
	leave, err := k.backend.calls.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return nil, err
	}

	in := &awssdk.SignInput{KeyId: aws.String(k.id), SigningAlgorithm: k.spec}
	if in.Message, in.MessageType, err = k.prepare(message); err != nil {
		return nil, err
	}
	out, err := k.backend.client.Sign(ctx, in, manner{turns: k.backend.rate}.within(ctx))
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", k.id, classify(ctx, "Sign", err))
	}
	signature, err := k.joseForm(out.Signature)
	if err != nil {
		return nil, fmt.Errorf("%w: key %q: AWS KMS answered with no %s signature: %w", kms.ErrUnavailable, k.id, k.alg, err)
	}
	return signature, nil
}

// prepare returns what of message KMS is sent: its digest, except for Ed25519,
// which hashes the message twice (RFC 8032, section 5.1.6) and therefore needs
// all of it.
func (k *key) prepare(message []byte) ([]byte, types.MessageType, error) {
	if k.alg.KeyType() != kms.OKP {
		return k.alg.Digest(message), types.MessageTypeDigest, nil
	}
	if n := len(message); n > maxRaw {
		return nil, "", fmt.Errorf("%w: AWS KMS signs at most %d bytes with an Ed25519 key, and header and claims together are %d: send fewer claims (some %d bytes of them fit), or use another signing algorithm, such as ES256", kms.ErrTooLong, maxRaw, n, fittingClaims)
	}
	if message == nil {
		message = []byte{} // the SDK takes nil for a missing parameter
	}
	return message, types.MessageTypeRaw, nil
}

// joseForm turns a signature as KMS returns it into the one that JWS carries.
func (k *key) joseForm(signature []byte) ([]byte, error) {
	want := ed25519.SignatureSize
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		return fixedLength(signature, k.alg.Curve())
	case *rsa.PublicKey:
		want = public.Size()
	}
	if len(signature) != want {
		return nil, fmt.Errorf("%d bytes, a signature of this key has %d", len(signature), want)
	}
	return signature, nil
}
