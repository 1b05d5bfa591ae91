package awskms

import (
	"context"
	"crypto"
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
	kms.RS256: types.SigningAlgorithmSpecRsassaPkcs1V15Sha256,
	kms.RS384: types.SigningAlgorithmSpecRsassaPkcs1V15Sha384,
	kms.RS512: types.SigningAlgorithmSpecRsassaPkcs1V15Sha512,
	kms.PS256: types.SigningAlgorithmSpecRsassaPssSha256,
	kms.PS384: types.SigningAlgorithmSpecRsassaPssSha384,
	kms.PS512: types.SigningAlgorithmSpecRsassaPssSha512,
	kms.ES256: types.SigningAlgorithmSpecEcdsaSha256,
	kms.ES384: types.SigningAlgorithmSpecEcdsaSha384,
	kms.ES512: types.SigningAlgorithmSpecEcdsaSha512,
}

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
		return nil, fmt.Errorf("%w: the AWS KMS backend does not sign %q: use an RSA or ECDSA algorithm, RS256 to ES512", kms.ErrKeyMismatch, string(alg))
	}
	out, err := b.client.GetPublicKey(ctx, &awssdk.GetPublicKeyInput{KeyId: aws.String(id)}, withinDeadline(ctx))
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

	if err := waitTurn(ctx, k.backend.rate); err != nil {
		return nil, err
	}
	out, err := k.backend.client.Sign(ctx, &awssdk.SignInput{
		KeyId:            aws.String(k.id),
		Message:          k.alg.Digest(message),
		MessageType:      types.MessageTypeDigest,
		SigningAlgorithm: k.spec,
	}, withinDeadline(ctx))
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", k.id, classify(ctx, "Sign", err))
	}
	signature, err := k.joseForm(out.Signature)
	if err != nil {
		return nil, fmt.Errorf("%w: key %q: AWS KMS answered with no %s signature: %w", kms.ErrUnavailable, k.id, k.alg, err)
	}
	return signature, nil
}

// joseForm turns a signature as KMS returns it into the one that JWS carries.
func (k *key) joseForm(signature []byte) ([]byte, error) {
	if public, ok := k.public.(*rsa.PublicKey); ok {
		if len(signature) != public.Size() {
			return nil, fmt.Errorf("%d bytes, a signature of this key has %d", len(signature), public.Size())
		}
		return signature, nil
	}
	return fixedLength(signature, k.alg.Curve())
}
