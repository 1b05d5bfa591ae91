package awskms_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/awskms"
	"github.com/bulla-project/bulla/kms/awskms/awstest"
	"github.com/bulla-project/bulla/kms/kmstest"
)

func wrappingKey(t testing.TB, s *awstest.Server) *types.KeyMetadata {
	t.Helper()
	return createKey(t, s, types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt)
}

func openWrapper(t testing.TB, b *awskms.Backend, ref string) kms.Wrapper {
	t.Helper()
	w, err := b.OpenWrapper(t.Context(), ref)
	if err != nil {
		t.Fatalf("OpenWrapper(%q): %v", ref, err)
	}
	return w
}

// unfit are keys that cannot wrap.
func unfit(t testing.TB, s *awstest.Server) map[string]error {
	refs := map[string]error{}
	for spec, usage := range map[types.KeySpec]types.KeyUsageType{
		types.KeySpecRsa2048:     types.KeyUsageTypeSignVerify,
		types.KeySpecEccNistP256: types.KeyUsageTypeSignVerify,
		types.KeySpecHmac256:     types.KeyUsageTypeGenerateVerifyMac,
	} {
		refs["key-id="+*createKey(t, s, spec, usage).Arn] = kms.ErrKeyMismatch
	}
	return refs
}

// wrapsOnMoto runs the suite on moto, which encrypts with AES-GCM and the
// context as its aad; MiniStack's encryption is not authentic. Where the key is
// another than the ciphertext names, moto answers AccessDeniedException, and
// KMS IncorrectKeyException (API reference, Decrypt). Moto also encrypts with
// keys of any kind and state; which ones KMS refuses is tried on MiniStack.
func wrapsOnMoto(t *testing.T, s *awstest.Server) {
	p := newProxy(t, s)
	p.translate = map[string]string{"AccessDeniedException": "IncorrectKeyException"}
	kmstest.RunWrapper(t, kmstest.WrapperHarness{
		Open:     func(t testing.TB) kms.Backend { return newBackend(t, p.URL) },
		Key:      "key-id=" + *wrappingKey(t, s).Arn,
		Other:    "key-id=" + *wrappingKey(t, s).KeyId,
		Missing:  missing,
		Nonsense: []string{"key-id=", "key-id=login", "key-id=arn:aws:kms:us-east-1:111122223333:key/11111111-2222-3333-4444-555555555555"},
		Slow:     true,
		Down:     p.down,
		Stall:    p.stall,
	})
}

// wraps: what only wrapping does, on MiniStack.
func wraps(t *testing.T, s *awstest.Server) {
	plaintext, aad := bytes.Repeat([]byte{7}, 32), []byte("client of some issuer")
	ctx := context.Background()

	t.Run("KeysThatCannotWrapAreRefused", func(t *testing.T) {
		b := newBackend(t, s.Endpoint)
		refs := unfit(t, s)
		refs["key-id="+*createKey(t, s, types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt).Arn] = kms.ErrKeyMismatch
		for ref, want := range refs {
			w, err := b.OpenWrapper(t.Context(), ref)
			if w != nil {
				t.Errorf("%s: opened", ref)
			}
			wantError(t, ref, err, want)
		}
		_, err := b.OpenKey(t.Context(), "key-id="+*wrappingKey(t, s).Arn, kms.RS256)
		wantError(t, "a wrapping key for RS256", err, kms.ErrKeyMismatch)
	})

	t.Run("EveryFormOfReferenceIsPinned", func(t *testing.T) {
		k, other := wrappingKey(t, s), wrappingKey(t, s)
		b := newBackend(t, s.Endpoint)
		var wrapped []byte
		wrappers := map[string]kms.Wrapper{}
		refs := forms(t, s, k)
		for name, ref := range refs {
			wrappers[name] = openWrapper(t, b, ref)
		}
		alias := strings.TrimPrefix(refs["alias"], "key-id=")
		if _, err := s.Client().UpdateAlias(ctx, &awssdk.UpdateAliasInput{AliasName: &alias, TargetKeyId: other.KeyId}); err != nil {
			t.Fatal(err)
		}
		for name, w := range wrappers {
			if wrapped == nil {
				var err error
				if wrapped, err = w.Wrap(ctx, plaintext, aad); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := w.Unwrap(ctx, wrapped, aad); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("opened by %s, after the alias was pointed elsewhere: got %x and error %v", name, got, err)
			}
		}
	})

	t.Run("DisabledKeyAndBack", func(t *testing.T) {
		meta := wrappingKey(t, s)
		b := newBackend(t, s.Endpoint)
		w := openWrapper(t, b, "key-id="+*meta.Arn)
		wrapped, err := w.Wrap(ctx, plaintext, aad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Client().DisableKey(ctx, &awssdk.DisableKeyInput{KeyId: meta.KeyId}); err != nil {
			t.Fatal(err)
		}
		_, err = w.Unwrap(ctx, wrapped, aad)
		wantError(t, "Unwrap with a disabled key", err, kms.ErrKeyDisabled)
		_, err = w.Wrap(ctx, plaintext, aad)
		wantError(t, "Wrap with a disabled key", err, kms.ErrKeyDisabled)
		if _, err := s.Client().EnableKey(ctx, &awssdk.EnableKeyInput{KeyId: meta.KeyId}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Unwrap(ctx, wrapped, aad); err != nil {
			t.Errorf("enabled again: %v", err)
		}
	})

	t.Run("WhatIsSentAndStored", func(t *testing.T) {
		p := newProxy(t, s)
		meta := wrappingKey(t, s)
		w := openWrapper(t, newBackend(t, p.URL), "key-id="+*meta.Arn)
		p.set(nil)
		wrapped, err := w.Wrap(ctx, plaintext, aad)
		if err == nil {
			_, err = w.Unwrap(ctx, wrapped, aad)
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(aad)
		want := map[string]string{"bulla-wrap-sha256": hex.EncodeToString(sum[:])}
		for _, c := range p.seen() {
			var sent struct {
				KeyId             string
				EncryptionContext map[string]string
			}
			if err := json.Unmarshal([]byte(c.body), &sent); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(sent.EncryptionContext) != fmt.Sprint(want) || sent.KeyId != *meta.Arn {
				t.Errorf("%s was sent key %s and context %v, want %s and %v", c.op, sent.KeyId, sent.EncryptionContext, *meta.Arn, want)
			}
			if strings.Contains(c.body, string(aad)) || strings.Contains(c.body, base64.StdEncoding.EncodeToString(aad)) {
				t.Errorf("%s was sent the aad itself", c.op)
			}
		}
		// The SDK's own client opens it: the form is KMS's after the first byte.
		out, err := s.Client().Decrypt(ctx, &awssdk.DecryptInput{KeyId: meta.Arn, CiphertextBlob: wrapped[1:], EncryptionContext: want})
		if err != nil || !bytes.Equal(out.Plaintext, plaintext) || wrapped[0] != 0x21 {
			t.Errorf("the SDK opens %#x… to %v, error %v", wrapped[0], out, err)
		}
	})

	t.Run("Faults", func(t *testing.T) {
		t.Setenv("AWS_MAX_ATTEMPTS", "1")
		p := newProxy(t, s)
		meta := wrappingKey(t, s)
		b := newBackend(t, p.URL)
		w := openWrapper(t, b, "key-id="+*meta.Arn)
		wrapped, err := w.Wrap(ctx, plaintext, aad)
		if err != nil {
			t.Fatal(err)
		}
		b64 := base64.StdEncoding.EncodeToString
		decrypted := func(id string, plaintext []byte) string {
			return fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q,"EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`, id, b64(plaintext))
		}
		encrypted := func(id, alg string, blob []byte) string {
			return fmt.Sprintf(`{"KeyId":%q,"CiphertextBlob":%q,"EncryptionAlgorithm":%q}`, id, b64(blob), alg)
		}
		for name, tt := range map[string]struct {
			fault                fault
			wrap, unwrap, opened error // nil: not tried
		}{
			"throttled":            {refuse(400, "ThrottlingException"), kms.ErrThrottled, kms.ErrThrottled, kms.ErrThrottled},
			"gone":                 {refuse(400, "NotFoundException"), kms.ErrKeyNotFound, kms.ErrKeyNotFound, kms.ErrKeyNotFound},
			"denied":               {refuse(400, "AccessDeniedException"), kms.ErrKeyDisabled, kms.ErrKeyDisabled, kms.ErrKeyDisabled},
			"wrong usage":          {refuse(400, "InvalidKeyUsageException"), kms.ErrKeyMismatch, kms.ErrKeyMismatch, kms.ErrKeyMismatch},
			"internal":             {refuse(500, "KMSInternalException"), kms.ErrUnavailable, kms.ErrUnavailable, kms.ErrUnavailable},
			"credentials":          {refuse(400, "ExpiredTokenException"), kms.ErrUnavailable, kms.ErrUnavailable, kms.ErrUnavailable},
			"changed":              {refuse(400, "InvalidCiphertextException"), nil, kms.ErrUnwrap, nil},
			"incorrect key":        {refuse(400, "IncorrectKeyException"), nil, kms.ErrUnwrap, nil},
			"another key answers":  {answer("Decrypt", decrypted("arn:aws:kms:eu-west-1:1:key/x", plaintext)), nil, kms.ErrUnwrap, nil},
			"no data key":          {answer("Decrypt", decrypted(*meta.Arn, []byte("short"))), nil, kms.ErrUnwrap, nil},
			"nothing":              {answer("Encrypt", "{}"), kms.ErrUnavailable, nil, kms.ErrUnavailable},
			"no ciphertext":        {answer("Encrypt", encrypted(*meta.Arn, "SYMMETRIC_DEFAULT", nil)), kms.ErrUnavailable, nil, kms.ErrUnavailable},
			"an asymmetric key":    {answer("Encrypt", encrypted(*meta.Arn, "RSAES_OAEP_SHA_256", make([]byte, 256))), kms.ErrKeyMismatch, nil, kms.ErrKeyMismatch},
			"no name to pin":       {answer("Encrypt", encrypted("", "SYMMETRIC_DEFAULT", make([]byte, 150))), nil, nil, kms.ErrUnavailable},
			"an alias to pin":      {answer("Encrypt", encrypted("alias/wrap", "SYMMETRIC_DEFAULT", make([]byte, 150))), nil, nil, kms.ErrUnavailable},
			"another probe":        {answer("Decrypt", decrypted(*meta.Arn, plaintext)), nil, nil, kms.ErrUnavailable},
			"may not decrypt only": {onlyAt("Decrypt", refuse(400, "AccessDeniedException")), nil, kms.ErrKeyDisabled, kms.ErrKeyDisabled},
		} {
			p.set(tt.fault)
			try := func(what string, want error, call func() (bool, error)) {
				if want == nil {
					return
				}
				got, err := call()
				if got {
					t.Errorf("%s, %s: got a result", name, what)
				}
				wantError(t, name+", "+what, err, want)
			}
			try("Wrap", tt.wrap, func() (bool, error) { out, err := w.Wrap(ctx, plaintext, aad); return out != nil, err })
			try("Unwrap", tt.unwrap, func() (bool, error) { out, err := w.Unwrap(ctx, wrapped, aad); return out != nil, err })
			try("OpenWrapper", tt.opened, func() (bool, error) {
				out, err := b.OpenWrapper(ctx, "key-id="+aws.ToString(meta.Arn))
				return out != nil, err
			})
		}
		p.set(nil)
		if _, err := w.Unwrap(ctx, wrapped, aad); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// onlyAt is f for one operation.
func onlyAt(op string, f fault) fault {
	return func(w http.ResponseWriter, r *http.Request, got string) bool { return got == op && f(w, r, got) }
}
