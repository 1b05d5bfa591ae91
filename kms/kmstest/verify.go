package kmstest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
)

// sentinels are the errors of package kms. An error wraps exactly one of them:
// two would tell the caller to do two things.
var sentinels = []error{
	kms.ErrUnavailable, kms.ErrThrottled, kms.ErrKeyNotFound,
	kms.ErrKeyDisabled, kms.ErrKeyMismatch, kms.ErrTooLong, kms.ErrUnwrap, kms.ErrReference,
}

// wantError reports unless err wraps want, a sentinel of kms or a context's
// error, and no (other) sentinel of kms.
func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want one that wraps %q", what, err, want)
		return
	}
	for _, other := range sentinels {
		if !errors.Is(other, want) && errors.Is(err, other) {
			t.Errorf("%s: error %v wraps %q as well as %q; callers cannot tell what to do", what, err, other, want)
		}
	}
}

// verify checks a signature of message by k, and that its length is the one
// JWS gives it (RFC 7518, sections 3.3 to 3.5; RFC 8037, section 3.1).
func verify(k kms.Key, message, signature []byte) error {
	if want := k.Algorithm().CoordinateSize() * 2; want != 0 && len(signature) != want {
		return fmt.Errorf("%s signature has %d bytes, want %d", k.Algorithm(), len(signature), want)
	}
	return kms.Verify(k.Algorithm(), k.Public(), message, signature)
}

// signAndVerify signs message with k and checks the signature.
func signAndVerify(ctx context.Context, k kms.Key, message []byte) ([]byte, error) {
	given := bytes.Clone(message)
	signature, err := k.Sign(ctx, given)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if !bytes.Equal(given, message) {
		return nil, errors.New("sign changed the message it was given")
	}
	if err := verify(k, message, signature); err != nil {
		return nil, fmt.Errorf("signature of %d bytes: %w", len(message), err)
	}
	return signature, nil
}

// joseAccepts has k sign payload as a compact JWS and go-jose read it.
func joseAccepts(ctx context.Context, k kms.Key, payload []byte) error {
	alg := jose.SignatureAlgorithm(k.Algorithm())
	if k.Algorithm() == kms.Ed25519 {
		// go-jose knows only the older name. RFC 9864, section 2.2: the
		// signature is the same.
		alg = jose.EdDSA
	}
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(`{"alg":"`+string(alg)+`"}`)) + "." + b64(payload)
	signature, err := k.Sign(ctx, []byte(input))
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	jws, err := jose.ParseSignedCompact(strings.Join([]string{input, b64(signature)}, "."), []jose.SignatureAlgorithm{alg})
	if err != nil {
		return fmt.Errorf("go-jose cannot parse: %w", err)
	}
	got, err := jws.Verify(k.Public())
	if err != nil {
		return fmt.Errorf("go-jose refuses the signature: %w", err)
	}
	if !bytes.Equal(got, payload) {
		return fmt.Errorf("go-jose read payload %q, want %q", got, payload)
	}
	return nil
}
