package awskms_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/awskms"
	"github.com/bulla-project/bulla/kms/awskms/awstest"
	"github.com/bulla-project/bulla/kms/kmstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// missing is a well-formed reference to no key.
const missing = "key-id=11111111-2222-3333-4444-555555555555"

func newBackend(t testing.TB, endpoint string) *awskms.Backend {
	t.Helper()
	b, err := awskms.New(context.Background(), awskms.Config{Region: awstest.Region, Endpoint: endpoint})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// createKey makes a key in s and returns what KMS says of it.
func createKey(t testing.TB, s *awstest.Server, spec types.KeySpec, usage types.KeyUsageType) *types.KeyMetadata {
	t.Helper()
	out, err := s.Client().CreateKey(context.Background(), &awssdk.CreateKeyInput{KeySpec: spec, KeyUsage: usage})
	if err != nil {
		t.Fatalf("create a %s key: %v", spec, err)
	}
	return out.KeyMetadata
}

// signingKeys makes a key for each algorithm and returns their references.
func signingKeys(t testing.TB, s *awstest.Server) map[kms.Algorithm]string {
	t.Helper()
	refs := map[kms.Algorithm]string{}
	for spec, algs := range map[types.KeySpec][]kms.Algorithm{
		types.KeySpecRsa2048:     {kms.RS256, kms.RS384, kms.RS512, kms.PS256, kms.PS384, kms.PS512},
		types.KeySpecEccNistP256: {kms.ES256},
		types.KeySpecEccNistP384: {kms.ES384},
		types.KeySpecEccNistP521: {kms.ES512},
	} {
		k := createKey(t, s, spec, types.KeyUsageTypeSignVerify)
		for _, alg := range algs {
			refs[alg] = "key-id=" + *k.Arn
		}
	}
	return refs
}

// inspect sees from outside that the key ref signs, does nothing else, and says
// whose it is.
func inspect(t testing.TB, s *awstest.Server, ref string, spec kms.KeySpec) {
	t.Helper()
	id := strings.TrimPrefix(ref, "key-id=")
	out, err := s.Client().DescribeKey(t.Context(), &awssdk.DescribeKeyInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	k := out.KeyMetadata
	if k.KeyUsage != types.KeyUsageTypeSignVerify || k.Origin != types.OriginTypeAwsKms || aws.ToBool(k.MultiRegion) || *k.Arn != id {
		t.Errorf("%s: usage %s, origin %s, multi-Region %v, ARN %s", spec.Algorithm, k.KeyUsage, k.Origin, aws.ToBool(k.MultiRegion), *k.Arn)
	}
	if d := aws.ToString(k.Description); !strings.Contains(d, "Bulla") || !strings.Contains(d, string(spec.Algorithm)) {
		t.Errorf("the description is %q", d)
	}
}

func openKey(t testing.TB, b kms.Backend, ref string, alg kms.Algorithm) kms.Key {
	t.Helper()
	k, err := b.OpenKey(t.Context(), ref, alg)
	if err != nil {
		t.Fatalf("OpenKey(%q, %s): %v", ref, alg, err)
	}
	return k
}

// wantSignature fails unless k signs.
func wantSignature(t testing.TB, k kms.Key) {
	t.Helper()
	message := []byte("header.payload")
	signature, err := k.Sign(t.Context(), message)
	if err == nil {
		err = kms.Verify(k.Algorithm(), k.Public(), message, signature)
	}
	if err != nil {
		t.Errorf("sign with %s: %v", k.Algorithm(), err)
	}
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

// forms are the ways to name the key: all that the Sign call of KMS takes.
func forms(t testing.TB, s *awstest.Server, k *types.KeyMetadata) map[string]string {
	t.Helper()
	alias := "alias/test-" + *k.KeyId
	if _, err := s.Client().CreateAlias(t.Context(), &awssdk.CreateAliasInput{AliasName: &alias, TargetKeyId: k.KeyId}); err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"id":        "key-id=" + *k.KeyId,
		"ARN":       "key-id=" + *k.Arn,
		"alias":     "key-id=" + alias,
		"alias ARN": "key-id=" + strings.Replace(*k.Arn, "key/"+*k.KeyId, alias, 1),
	}
}

func TestOnMiniStack(t *testing.T) {
	awstest.Environment(t)
	s := awstest.Start(t, awstest.MiniStack)

	// First, while there are few keys to look through.
	t.Run("CreatingConformance", func(t *testing.T) {
		kmstest.RunCreator(t, kmstest.CreatorHarness{
			Open:  func(t testing.TB) kms.Backend { return newBackend(t, s.Endpoint) },
			Specs: []kms.KeySpec{{Algorithm: kms.ES256}, {Algorithm: kms.ES512}, {Algorithm: kms.EdDSA}, {Algorithm: kms.PS384}},
			Inspect: func(t testing.TB, ref string, spec kms.KeySpec) {
				inspect(t, s, ref, spec)
			},
		})
	})

	refs := signingKeys(t, s)
	t.Run("ConformanceEd25519", func(t *testing.T) {
		ref := "key-id=" + *createKey(t, s, types.KeySpecEccNistEdwards25519, types.KeyUsageTypeSignVerify).Arn
		kmstest.Run(t, kmstest.Harness{
			Open:       func(t testing.TB) kms.Backend { return newBackend(t, s.Endpoint) },
			Keys:       map[kms.Algorithm]string{kms.EdDSA: ref, kms.Ed25519: ref},
			Missing:    missing,
			MaxMessage: 4096,
			Signatures: 16,
		})
	})

	t.Run("Conformance", func(t *testing.T) {
		p := newProxy(t, s)
		kmstest.Run(t, kmstest.Harness{
			Open:       func(t testing.TB) kms.Backend { return newBackend(t, p.URL) },
			Keys:       refs,
			Missing:    missing,
			Nonsense:   []string{"key-id=", "key-id=login", strings.TrimPrefix(refs[kms.ES256], "key-id=")},
			Signatures: 48, // TestConformanceOnFaultEndpoint makes more
			Down:       p.down,
			Stall:      p.stall,
		})
	})

	t.Run("EveryFormOfReference", func(t *testing.T) {
		k := createKey(t, s, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
		b := newBackend(t, s.Endpoint)
		for name, ref := range forms(t, s, k) {
			t.Run(name, func(t *testing.T) { wantSignature(t, openKey(t, b, ref, kms.ES256)) })
		}
	})

	t.Run("AliasPointedElsewhereChangesNothing", func(t *testing.T) {
		first := createKey(t, s, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
		second := createKey(t, s, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
		b := newBackend(t, s.Endpoint)
		ref := forms(t, s, first)["alias"]
		k := openKey(t, b, ref, kms.ES256)
		alias := strings.TrimPrefix(ref, "key-id=")
		if _, err := s.Client().UpdateAlias(t.Context(), &awssdk.UpdateAliasInput{AliasName: &alias, TargetKeyId: second.KeyId}); err != nil {
			t.Fatal(err)
		}
		wantSignature(t, k)
		if k.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(openKey(t, b, ref, kms.ES256).Public()) {
			t.Error("the alias still leads to the first key: this test shows nothing")
		}
	})

	t.Run("DisabledKeyAndBack", func(t *testing.T) {
		meta := createKey(t, s, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
		b := newBackend(t, s.Endpoint)
		k := openKey(t, b, "key-id="+*meta.Arn, kms.ES256)
		if _, err := s.Client().DisableKey(t.Context(), &awssdk.DisableKeyInput{KeyId: meta.KeyId}); err != nil {
			t.Fatal(err)
		}
		_, err := k.Sign(t.Context(), []byte("header.payload"))
		wantError(t, "disabled key", err, kms.ErrKeyDisabled)
		if err := b.Check(t.Context()); err != nil {
			t.Errorf("Check with a disabled key: %v; the backend is well", err)
		}
		if _, err := s.Client().EnableKey(t.Context(), &awssdk.EnableKeyInput{KeyId: meta.KeyId}); err != nil {
			t.Fatal(err)
		}
		wantSignature(t, k)
		if _, err := s.Client().ScheduleKeyDeletion(t.Context(), &awssdk.ScheduleKeyDeletionInput{KeyId: meta.KeyId}); err != nil {
			t.Fatal(err)
		}
		_, err = k.Sign(t.Context(), []byte("header.payload"))
		wantError(t, "key pending deletion", err, kms.ErrKeyDisabled)
	})

	t.Run("KeysThatCannotSignTokensAreRefused", func(t *testing.T) {
		b := newBackend(t, s.Endpoint)
		for _, tt := range []struct {
			spec  types.KeySpec
			usage types.KeyUsageType
			alg   kms.Algorithm
		}{
			{types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt, kms.RS256},
			{types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, kms.RS256},
			{types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac, kms.ES256},
			{types.KeySpecEccSecgP256k1, types.KeyUsageTypeSignVerify, kms.ES256},
			{types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, kms.EdDSA},
			{types.KeySpecEccNistEdwards25519, types.KeyUsageTypeSignVerify, kms.ES256},
		} {
			k := createKey(t, s, tt.spec, tt.usage)
			_, err := b.OpenKey(t.Context(), "key-id="+*k.Arn, tt.alg)
			wantError(t, fmt.Sprintf("%s (%s) for %s", tt.spec, tt.usage, tt.alg), err, kms.ErrKeyMismatch)
		}
	})

	t.Run("OnlyTheDigestLeaves", func(t *testing.T) {
		p := newProxy(t, s)
		k := openKey(t, newBackend(t, p.URL), refs[kms.PS384], kms.PS384)
		p.set(nil)
		message := []byte("the claims of a token")
		if _, err := k.Sign(t.Context(), message); err != nil {
			t.Fatal(err)
		}
		calls := p.seen()
		if len(calls) != 1 || calls[0].op != "Sign" {
			t.Fatalf("one signature made the calls %v", calls)
		}
		var sent struct{ KeyId, Message, MessageType, SigningAlgorithm string }
		if err := json.Unmarshal([]byte(calls[0].body), &sent); err != nil {
			t.Fatal(err)
		}
		want := sent
		want.KeyId = strings.TrimPrefix(refs[kms.PS384], "key-id=")
		want.Message = base64.StdEncoding.EncodeToString(kms.PS384.Digest(message))
		want.MessageType, want.SigningAlgorithm = "DIGEST", "RSASSA_PSS_SHA_384"
		if sent != want {
			t.Errorf("sent %+v, want %+v", sent, want)
		}
	})

	// Without retries: a good answer must not be lost with its connection.
	t.Run("FirstCallsOnNewConnections", func(t *testing.T) {
		t.Setenv("AWS_MAX_ATTEMPTS", "1")
		for range 100 {
			b := newBackend(t, s.Endpoint)
			openKey(t, b, refs[kms.ES256], kms.ES256)
			b.Close()
		}
	})

	t.Run("Wrapping", func(t *testing.T) { wraps(t, s) })
	t.Run("Faults", func(t *testing.T) { faults(t, s, refs) })
	t.Run("Retries", func(t *testing.T) { retries(t, s, refs) })
}

// faults: what an unwell service answers becomes the error that tells the
// caller what to do.
func faults(t *testing.T, s *awstest.Server, refs map[kms.Algorithm]string) {
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	p := newProxy(t, s)
	b := newBackend(t, p.URL)
	es, rs := openKey(t, b, refs[kms.ES256], kms.ES256), openKey(t, b, refs[kms.RS256], kms.RS256)

	b64 := base64.StdEncoding.EncodeToString
	signed := func(der []byte) string { return fmt.Sprintf(`{"KeyId":"k","Signature":%q}`, b64(der)) }
	for name, tt := range map[string]struct {
		fault  fault
		want   error
		advice string
	}{
		"throttled":           {refuse(400, "ThrottlingException"), kms.ErrThrottled, "quota"},
		"limit exceeded":      {refuse(400, "LimitExceededException"), kms.ErrThrottled, "quota"},
		"not found":           {refuse(400, "NotFoundException"), kms.ErrKeyNotFound, "region"},
		"disabled":            {refuse(400, "DisabledException"), kms.ErrKeyDisabled, "enable"},
		"pending deletion":    {refuse(400, "KMSInvalidStateException"), kms.ErrKeyDisabled, "deletion"},
		"denied":              {refuse(400, "AccessDeniedException"), kms.ErrKeyDisabled, "kms:Sign"},
		"wrong usage":         {refuse(400, "InvalidKeyUsageException"), kms.ErrKeyMismatch, "usage"},
		"internal":            {refuse(500, "KMSInternalException"), kms.ErrUnavailable, "pass"},
		"dependency":          {refuse(503, "DependencyTimeoutException"), kms.ErrUnavailable, "pass"},
		"key unavailable":     {refuse(500, "KeyUnavailableException"), kms.ErrUnavailable, "pass"},
		"unknown credentials": {refuse(400, "UnrecognizedClientException"), kms.ErrUnavailable, "credentials"},
		"expired token":       {refuse(400, "ExpiredTokenException"), kms.ErrUnavailable, "credentials"},
		"clock skew":          {refuse(400, "RequestTimeTooSkewed"), kms.ErrUnavailable, "clock"},
		"unlisted":            {refuse(400, "NeverHeardOfException"), kms.ErrUnavailable, "not expected"},
		"bare 500": {func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}, kms.ErrUnavailable, ""},
		"HTML of a load balancer": {func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "<html>Bad Gateway</html>")
			return true
		}, kms.ErrUnavailable, ""},
		"redirect": {func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}, kms.ErrUnavailable, ""},
		"no JSON":           {answer("Sign", "{"), kms.ErrUnavailable, ""},
		"no signature":      {answer("Sign", "{}"), kms.ErrUnavailable, "no "},
		"malformed DER":     {answer("Sign", signed([]byte{0x30, 0x03, 0x02, 0x01, 0x01})), kms.ErrUnavailable, ""},
		"negative r":        {answer("Sign", signed([]byte{0x30, 0x06, 0x02, 0x01, 0xff, 0x02, 0x01, 0x01})), kms.ErrUnavailable, ""},
		"connection closed": {func(http.ResponseWriter, *http.Request, string) bool { panic(http.ErrAbortHandler) }, kms.ErrUnavailable, "network"},
	} {
		t.Run(name, func(t *testing.T) {
			p.set(tt.fault)
			defer p.set(nil)
			for _, k := range []kms.Key{es, rs} {
				signature, err := k.Sign(t.Context(), []byte("header.payload"))
				if signature != nil {
					t.Errorf("%s: got a signature", k.Algorithm())
				}
				wantError(t, string(k.Algorithm()), err, tt.want)
				if err != nil && !strings.Contains(err.Error(), tt.advice) {
					t.Errorf("%s: %q does not mention %q", k.Algorithm(), err, tt.advice)
				}
			}
		})
	}

	t.Run("OpenKey", func(t *testing.T) {
		for code, want := range map[string]error{
			"NotFoundException":             kms.ErrKeyNotFound,
			"AccessDeniedException":         kms.ErrKeyDisabled,
			"UnsupportedOperationException": kms.ErrKeyMismatch,
			"InvalidArnException":           kms.ErrReference,
			"ThrottlingException":           kms.ErrThrottled,
			"KMSInternalException":          kms.ErrUnavailable,
		} {
			p.set(refuse(400, code))
			_, err := b.OpenKey(t.Context(), refs[kms.ES256], kms.ES256)
			wantError(t, code, err, want)
		}
		p.set(nil)
	})

	t.Run("Check", func(t *testing.T) {
		for code, want := range map[string]error{
			"NotFoundException":           nil,
			"DisabledException":           nil,
			"AccessDeniedException":       nil,
			"ThrottlingException":         kms.ErrThrottled,
			"KMSInternalException":        kms.ErrUnavailable,
			"UnrecognizedClientException": kms.ErrUnavailable,
		} {
			p.set(refuse(400, code))
			for name, b := range map[string]kms.Backend{"fresh": newBackend(t, p.URL), "with open keys": b} {
				wantError(t, code+", "+name, b.Check(t.Context()), want)
			}
		}
		p.set(nil)
	})

	t.Run("WrongPublicKeyAtOpen", func(t *testing.T) {
		meta := func(spec string, der []byte) string {
			return fmt.Sprintf(`{"KeyId":"arn:aws:kms:eu-west-1:1:key/x","KeyUsage":"SIGN_VERIFY","KeySpec":"ECC_NIST_P256","SigningAlgorithms":[%q],"PublicKey":%q}`, spec, b64(der))
		}
		for name, body := range map[string]string{
			"no key":          meta("ECDSA_SHA_256", nil),
			"no DER":          meta("ECDSA_SHA_256", []byte("key")),
			"an RSA key":      meta("ECDSA_SHA_256", spki(t, s, types.KeySpecRsa2048)),
			"another curve":   meta("ECDSA_SHA_256", spki(t, s, types.KeySpecEccNistP384)),
			"other algorithm": meta("ECDSA_SHA_384", spki(t, s, types.KeySpecEccNistP256)),
			"nothing":         "{}",
		} {
			p.set(answer("GetPublicKey", body))
			k, err := b.OpenKey(t.Context(), refs[kms.ES256], kms.ES256)
			if k != nil {
				t.Errorf("%s: opened", name)
			}
			wantError(t, name, err, kms.ErrKeyMismatch)
		}
		p.set(nil)
	})

	t.Run("AnswerThatNamesAnAliasCannotBePinned", func(t *testing.T) {
		for _, id := range []string{"", "alias/login", "arn:aws:kms:eu-west-1:1:alias/login"} {
			p.set(answer("GetPublicKey", fmt.Sprintf(`{"KeyId":%q,"KeyUsage":"SIGN_VERIFY","SigningAlgorithms":["ECDSA_SHA_256"],"PublicKey":%q}`,
				id, b64(spki(t, s, types.KeySpecEccNistP256)))))
			_, err := b.OpenKey(t.Context(), refs[kms.ES256], kms.ES256)
			wantError(t, fmt.Sprintf("KeyId %q", id), err, kms.ErrUnavailable)
		}
		p.set(nil)
	})

	// A well-formed signature by the wrong key is returned: it is for
	// kms.Verify, which every signature passes before release, to refuse it.
	t.Run("SignatureByAnotherKeyDoesNotVerify", func(t *testing.T) {
		other := createKey(t, s, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
		message := []byte("header.payload")
		out, err := s.Client().Sign(t.Context(), &awssdk.SignInput{
			KeyId: other.KeyId, Message: kms.ES256.Digest(message), MessageType: types.MessageTypeDigest,
			SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
		})
		if err != nil {
			t.Fatal(err)
		}
		p.set(answer("Sign", signed(out.Signature)))
		defer p.set(nil)
		signature, err := es.Sign(t.Context(), message)
		if err != nil {
			t.Fatal(err)
		}
		if err := kms.Verify(kms.ES256, es.Public(), message, signature); err == nil {
			t.Error("another key's signature verifies")
		}
	})
}

// spki returns the public key of a new key.
func spki(t testing.TB, s *awstest.Server, spec types.KeySpec) []byte {
	t.Helper()
	k := createKey(t, s, spec, types.KeyUsageTypeSignVerify)
	out, err := s.Client().GetPublicKey(t.Context(), &awssdk.GetPublicKeyInput{KeyId: k.KeyId})
	if err != nil {
		t.Fatal(err)
	}
	return out.PublicKey
}

func retries(t *testing.T, s *awstest.Server, refs map[kms.Algorithm]string) {
	p := newProxy(t, s)
	k := openKey(t, newBackend(t, p.URL), refs[kms.ES256], kms.ES256)

	t.Run("OneThrottledAnswerIsRetried", func(t *testing.T) {
		var n atomic.Int32
		p.set(func(w http.ResponseWriter, r *http.Request, op string) bool {
			return n.Add(1) == 1 && refuse(400, "ThrottlingException")(w, r, op)
		})
		wantSignature(t, k)
		if got := n.Load(); got != 2 {
			t.Errorf("%d calls, want 2", got)
		}
	})
	t.Run("DeadlineTooNearForARetrySaysThrottled", func(t *testing.T) {
		p.set(refuse(400, "ThrottlingException"))
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := k.Sign(ctx, []byte("header.payload"))
		if errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		wantError(t, "Sign", err, kms.ErrThrottled)
	})
	p.set(nil)
}

// Moto hashes a digest once more (it ignores MessageType) and salts PSS as long
// as it can: its signatures are of the digest's digest. What it shows is that
// references, answers and conversions are not fitted to one emulator.
func TestOnMoto(t *testing.T) {
	awstest.Environment(t)
	s := awstest.Start(t, awstest.Moto)
	b := newBackend(t, s.Endpoint)
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	t.Run("CreatingAndFinding", func(t *testing.T) { createsOnMoto(t, s) })
	message := []byte("header.payload")
	for alg, ref := range signingKeys(t, s) {
		k := openKey(t, b, ref, alg)
		signature, err := k.Sign(t.Context(), message)
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		signed := alg.Digest(message) // for moto, the message
		if alg.PSS() {
			err = rsa.VerifyPSS(k.Public().(*rsa.PublicKey), alg.Hash(), alg.Digest(signed), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
		} else {
			err = kms.Verify(alg, k.Public(), signed, signature)
		}
		if err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
	for name, ref := range forms(t, s, createKey(t, s, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)) {
		if _, err := b.OpenKey(t.Context(), ref, kms.ES256); err != nil {
			t.Errorf("by %s: %v", name, err)
		}
	}
	_, err := b.OpenKey(t.Context(), missing, kms.ES256)
	wantError(t, "missing key", err, kms.ErrKeyNotFound)
	_, err = b.OpenKey(t.Context(), "key-id=alias/nowhere", kms.ES256)
	wantError(t, "missing alias", err, kms.ErrKeyNotFound)
	decrypts := createKey(t, s, types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt)
	_, err = b.OpenKey(t.Context(), "key-id="+aws.ToString(decrypts.Arn), kms.RS256)
	wantError(t, "key for encryption", err, kms.ErrKeyMismatch)

	t.Run("WrappingConformance", func(t *testing.T) { wrapsOnMoto(t, s) })
}

// createsOnMoto creates keys and finds them again. Their signatures are moto's
// own (see TestOnMoto), so the suite of creating cannot judge them.
func createsOnMoto(t *testing.T, s *awstest.Server) {
	b := newBackend(t, s.Endpoint)
	var want []string
	for _, spec := range []kms.KeySpec{{Algorithm: kms.ES256}, {Algorithm: kms.RS256, RSABits: 3072}} {
		ref, err := b.CreateKey(t.Context(), spec, "login.1")
		if err != nil {
			t.Fatalf("%+v: %v", spec, err)
		}
		k := openKey(t, b, ref, spec.Algorithm)
		if public, ok := k.Public().(*rsa.PublicKey); ok && public.N.BitLen() != spec.RSABits {
			t.Errorf("RSA key of %d bits, want %d", public.N.BitLen(), spec.RSABits)
		}
		inspect(t, s, ref, spec)
		want = append(want, ref)
	}
	slices.Sort(want)
	if got, err := b.FindKeys(t.Context(), "login.1"); err != nil || !slices.Equal(got, want) {
		t.Errorf("found %q, %v; want %q", got, err, want)
	}
	if got, err := b.FindKeys(t.Context(), "login.10"); err != nil || len(got) != 0 {
		t.Errorf("another tag finds %q, %v", got, err)
	}
	_, id, _ := strings.Cut(want[0], "key/") // moto cannot disable by ARN
	if _, err := s.Client().DisableKey(t.Context(), &awssdk.DisableKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	if got, err := b.FindKeys(t.Context(), "login.1"); err != nil || !slices.Equal(got, want[1:]) {
		t.Errorf("one of them disabled: found %q, %v; want %q", got, err, want[1:])
	}
}

func TestNewTouchesNoNetwork(t *testing.T) {
	awstest.Environment(t)
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	b := newBackend(t, "http://127.0.0.1:1")
	wantError(t, "Check", b.Check(t.Context()), kms.ErrUnavailable)
}

func TestMissingCredentialsAreUnavailable(t *testing.T) {
	awstest.Environment(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	b := newBackend(t, "http://127.0.0.1:1")
	err := b.Check(t.Context())
	wantError(t, "Check", err, kms.ErrUnavailable)
	if err == nil || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("%v does not mention credentials", err)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	awstest.Environment(t)
	for name, cfg := range map[string]awskms.Config{
		"no region":            {},
		"no URL":               {Region: "eu-west-1", Endpoint: "kms.example.com"},
		"unreadable URL":       {Region: "eu-west-1", Endpoint: "http://[::1"},
		"another scheme":       {Region: "eu-west-1", Endpoint: "ftp://localhost"},
		"plain http elsewhere": {Region: "eu-west-1", Endpoint: "http://kms.example.com"},
		"password in URL":      {Region: "eu-west-1", Endpoint: "https://user:hunter2@kms.example.com"},
	} {
		_, err := awskms.New(t.Context(), cfg)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error has the password: %v", name, err)
		}
	}
	t.Setenv("AWS_REGION", "eu-west-1")
	b, err := awskms.New(t.Context(), awskms.Config{})
	if err != nil {
		t.Fatalf("region from the environment: %v", err)
	}
	b.Close()
}
