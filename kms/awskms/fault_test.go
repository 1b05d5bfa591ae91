package awskms_test

import (
	"context"
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/awskms"
	"github.com/bulla-project/bulla/kms/awskms/awsfault"
	"github.com/bulla-project/bulla/kms/kmstest"
)

// newEndpoint starts an endpoint, and lets the SDK find its credentials.
func newEndpoint(t testing.TB) *awsfault.Endpoint {
	t.Helper()
	e, err := awsfault.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	for _, v := range e.Environ() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	return e
}

// newRef makes a key in e and returns its reference.
func newRef(t testing.TB, e *awsfault.Endpoint, spec string) string {
	t.Helper()
	arn, err := e.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	return "key-id=" + arn
}

func TestConformanceOnFaultEndpoint(t *testing.T) {
	e := newEndpoint(t)
	open := func(t testing.TB) kms.Backend { return newBackend(t, e.URL()) }
	down := func(t testing.TB) func() {
		e.Down()
		return func() {
			if err := e.Up(); err != nil {
				t.Error(err)
			}
		}
	}
	stall := func(testing.TB) func() {
		e.Set(awsfault.Fault{Stall: time.Hour})
		return func() { e.Set(awsfault.Fault{}) }
	}
	rsa := newRef(t, e, "RSA_2048")
	harness := kmstest.Harness{
		Open: open,
		Keys: map[kms.Algorithm]string{
			kms.RS256: rsa, kms.RS384: rsa, kms.RS512: rsa, kms.PS256: rsa, kms.PS384: rsa, kms.PS512: rsa,
			kms.ES256: newRef(t, e, "ECC_NIST_P256"), kms.ES384: newRef(t, e, "ECC_NIST_P384"), kms.ES512: newRef(t, e, "ECC_NIST_P521"),
		},
		Missing:    missing,
		Signatures: 64,
		Down:       down,
		Stall:      stall,
	}
	t.Run("Signing", func(t *testing.T) { kmstest.Run(t, harness) })
	ed25519 := newRef(t, e, "ECC_NIST_EDWARDS25519")
	harness.Keys = map[kms.Algorithm]string{kms.EdDSA: ed25519, kms.Ed25519: ed25519}
	harness.MaxMessage = 4096
	harness.Down, harness.Stall = nil, nil // as above
	t.Run("SigningEd25519", func(t *testing.T) { kmstest.Run(t, harness) })
	t.Run("Wrapping", func(t *testing.T) {
		kmstest.RunWrapper(t, kmstest.WrapperHarness{
			Open: open, Key: newRef(t, e, "SYMMETRIC_DEFAULT"), Other: newRef(t, e, "SYMMETRIC_DEFAULT"), Missing: missing,
			Unfit: map[string]error{rsa: kms.ErrKeyMismatch, ed25519: kms.ErrKeyMismatch},
			Slow:  true,
		})
	})
}

func TestConformanceOfCreatingOnFaultEndpoint(t *testing.T) {
	e := newEndpoint(t)
	kmstest.RunCreator(t, kmstest.CreatorHarness{
		Open: func(t testing.TB) kms.Backend { return newBackend(t, e.URL()) },
		Specs: []kms.KeySpec{
			{Algorithm: kms.ES256}, {Algorithm: kms.ES384}, {Algorithm: kms.ES512},
			{Algorithm: kms.EdDSA}, {Algorithm: kms.Ed25519}, {Algorithm: kms.PS256}, {Algorithm: kms.RS256, RSABits: 3072},
		},
	})
}

// The longest message that KMS takes is signed; one byte more is refused here,
// with what to do, and nothing is asked.
func TestLimitOfEd25519IsToldBeforeAskingKMS(t *testing.T) {
	e := newEndpoint(t)
	b := newBackend(t, e.URL())
	k := openKey(t, b, newRef(t, e, "ECC_NIST_EDWARDS25519"), kms.EdDSA)
	message := []byte(strings.Repeat("x", 4096))
	if signature, err := k.Sign(t.Context(), message); err != nil {
		t.Fatal(err)
	} else if err := kms.Verify(kms.EdDSA, k.Public(), message, signature); err != nil {
		t.Fatal(err)
	}
	before := e.Calls("Sign")
	_, err := k.Sign(t.Context(), append(message, 'x'))
	wantError(t, "4097 bytes", err, kms.ErrTooLong)
	for _, sign := range []string{"4096", "4097", "2900", "ES256"} {
		if err == nil || !strings.Contains(err.Error(), sign) {
			t.Errorf("%v does not mention %s", err, sign)
		}
	}
	if err != nil && strings.Contains(err.Error(), "arn:") {
		t.Errorf("%v names the key", err)
	}
	for _, other := range []error{kms.ErrKeyMismatch, kms.ErrUnavailable, kms.ErrKeyDisabled} {
		if errors.Is(err, other) {
			t.Errorf("%v wraps %q: nothing is wrong with the key", err, other)
		}
	}
	if got := e.Calls("Sign"); got != before {
		t.Errorf("KMS was asked %d times", got-before)
	}
	wantSignature(t, k)

	rsa := openKey(t, b, newRef(t, e, "RSA_2048"), kms.RS256)
	if signature, err := rsa.Sign(t.Context(), append(message, 'x')); err != nil {
		t.Errorf("RS256 has no such limit: %v", err)
	} else if err := kms.Verify(kms.RS256, rsa.Public(), append(message, 'x'), signature); err != nil {
		t.Error(err)
	}
}

// Each fault, what it becomes, and how soon. No row ever gives a signature that
// does not verify.
func TestFaultTable(t *testing.T) {
	const (
		soon   = 800 * time.Millisecond
		moment = 1600 * time.Millisecond
	)
	type state func(*awsfault.Endpoint, string) error
	set := func(s string) state {
		return func(e *awsfault.Endpoint, arn string) error { return e.SetState(arn, s) }
	}
	for _, tt := range []struct {
		name     string
		fault    awsfault.Fault
		change   state
		deadline time.Duration // default: 5 s
		want     error         // nil: a signature
		within   time.Duration
		asked    int // Sign calls that arrive; 0: not counted
	}{
		{name: "throttled once", fault: awsfault.Fault{Op: "Sign", Code: "ThrottlingException", Times: 1}, within: soon, asked: 2},
		{name: "throttled", fault: awsfault.Fault{Op: "Sign", Code: "ThrottlingException"}, want: kms.ErrThrottled, within: moment, asked: 3},
		{name: "throttled, deadline near", fault: awsfault.Fault{Op: "Sign", Code: "ThrottlingException"}, deadline: 300 * time.Millisecond, want: kms.ErrThrottled, within: soon},
		{name: "500 twice", fault: awsfault.Fault{Op: "Sign", Code: "KMSInternalException", Times: 2}, within: soon, asked: 3},
		{name: "500", fault: awsfault.Fault{Op: "Sign", Code: "KMSInternalException"}, want: kms.ErrUnavailable, within: soon, asked: 3},
		{name: "503", fault: awsfault.Fault{Op: "Sign", Code: "DependencyTimeoutException"}, want: kms.ErrUnavailable, within: soon, asked: 3},
		{name: "slow", fault: awsfault.Fault{Op: "Sign", Stall: 100 * time.Millisecond}, within: soon, asked: 1},
		{name: "one connection stalls", fault: awsfault.Fault{Op: "Sign", Stall: 10 * time.Second, Times: 1}, deadline: 1500 * time.Millisecond, within: 1500 * time.Millisecond, asked: 2},
		{name: "all stall", fault: awsfault.Fault{Op: "Sign", Stall: 10 * time.Second}, deadline: 300 * time.Millisecond, want: context.DeadlineExceeded, within: soon, asked: 1},
		{name: "connection reset once", fault: awsfault.Fault{Op: "Sign", Reset: true, Times: 1}, within: soon, asked: 2},
		{name: "connections reset", fault: awsfault.Fault{Op: "Sign", Reset: true}, want: kms.ErrUnavailable, within: soon},
		{name: "answer lost once", fault: awsfault.Fault{Op: "Sign", Lose: true, Times: 1}, within: soon, asked: 2},
		{name: "endpoint gone", change: func(e *awsfault.Endpoint, _ string) error { e.Down(); return nil }, want: kms.ErrUnavailable, within: soon},
		{name: "key disabled", change: set(awsfault.Disabled), want: kms.ErrKeyDisabled, within: soon, asked: 1},
		{name: "key pending deletion", change: set(awsfault.PendingDeletion), want: kms.ErrKeyDisabled, within: soon, asked: 1},
		{name: "key deleted", change: func(e *awsfault.Endpoint, arn string) error { return e.DeleteKey(arn) }, want: kms.ErrKeyNotFound, within: soon, asked: 1},
		{name: "denied", fault: awsfault.Fault{Op: "Sign", Code: "AccessDeniedException"}, want: kms.ErrKeyDisabled, within: soon, asked: 1},
		{name: "credentials expired", fault: awsfault.Fault{Op: "Sign", Code: "ExpiredTokenException"}, want: kms.ErrUnavailable, within: soon, asked: 1},
		{name: "clock an hour behind", fault: awsfault.Fault{Skew: time.Hour}, within: soon, asked: 2},
		{name: "clock an hour ahead", fault: awsfault.Fault{Skew: -time.Hour}, within: soon, asked: 2},
		{name: "clock six minutes behind", fault: awsfault.Fault{Skew: 6 * time.Minute}, within: soon, asked: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEndpoint(t)
			b := newBackend(t, e.URL())
			ref := newRef(t, e, "ECC_NIST_P256")
			k := openKey(t, b, ref, kms.ES256)
			wantSignature(t, k)
			before := e.Calls("Sign")
			if tt.change != nil {
				if err := tt.change(e, strings.TrimPrefix(ref, "key-id=")); err != nil {
					t.Fatal(err)
				}
			}
			e.Set(tt.fault)
			if tt.deadline == 0 {
				tt.deadline = 5 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), tt.deadline)
			defer cancel()
			start := time.Now()
			message := []byte("header.payload")
			signature, err := k.Sign(ctx, message)
			if took := time.Since(start); took > tt.within {
				t.Errorf("took %v, want at most %v", took, tt.within)
			}
			if asked := e.Calls("Sign") - before; tt.asked != 0 && asked != tt.asked {
				t.Errorf("KMS was asked %d times, want %d", asked, tt.asked)
			}
			if tt.want != nil {
				wantError(t, "Sign", err, tt.want)
				if signature != nil {
					t.Error("got a signature")
				}
			} else if err != nil {
				t.Fatal(err)
			} else if err := kms.Verify(kms.ES256, k.Public(), message, signature); err != nil {
				t.Error(err)
			}

			// When the cause is gone the same key signs at once.
			e.Set(awsfault.Fault{})
			if err := e.Up(); err != nil {
				t.Fatal(err)
			}
			if errors.Is(tt.want, kms.ErrKeyNotFound) {
				return // a deleted key does not come back
			}
			if err := e.SetState(strings.TrimPrefix(ref, "key-id="), awsfault.Enabled); err != nil {
				t.Fatal(err)
			}
			start = time.Now()
			wantSignature(t, k)
			if took := time.Since(start); took > soon {
				t.Errorf("back again after %v", took)
			}
		})
	}
}

// 32 callers sign while faults come and go. Whatever happens to their calls,
// every signature that comes out verifies, and every error says what to do.
func TestNoWrongSignatureUnderFaults(t *testing.T) {
	e := newEndpoint(t)
	b := newBackend(t, e.URL())
	k := openKey(t, b, newRef(t, e, "ECC_NIST_P256"), kms.ES256)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	signed, failed := 0, 0
	for range 32 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				message := []byte("header.payload")
				signature, err := k.Sign(ctx, message)
				cancel()
				mu.Lock()
				if err == nil {
					signed++
					if err := kms.Verify(kms.ES256, k.Public(), message, signature); err != nil {
						t.Error(err)
					}
				} else {
					failed++
					if !errors.Is(err, kms.ErrThrottled) && !errors.Is(err, kms.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
				}
				mu.Unlock()
			}
		})
	}
	for _, f := range []awsfault.Fault{
		{Code: "ThrottlingException", Share: 0.3},
		{Code: "KMSInternalException", Share: 0.3},
		{Reset: true, Share: 0.3},
		{Lose: true, Share: 0.3},
		{Stall: 10 * time.Second, Share: 0.1},
		{Skew: time.Hour, Share: 0.5},
	} {
		e.Set(f)
		time.Sleep(150 * time.Millisecond)
	}
	e.Down()
	for all := false; !all; { // now each of them fails
		time.Sleep(10 * time.Millisecond)
		mu.Lock()
		all = failed > 0
		mu.Unlock()
	}
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	e.Set(awsfault.Fault{})
	time.Sleep(50 * time.Millisecond)
	close(stop)
	wg.Wait()
	if signed == 0 || failed == 0 {
		t.Errorf("%d signatures and %d errors: this test shows nothing", signed, failed)
	}
	wantSignature(t, k)
}

// What KMS returns is not believed: a flipped bit survives this package only in
// a form that kms.Verify, the gate before release, refuses.
func TestFlippedBitIsSeen(t *testing.T) {
	e := newEndpoint(t)
	b := newBackend(t, e.URL())
	for alg, spec := range map[kms.Algorithm]string{kms.RS256: "RSA_2048", kms.ES256: "ECC_NIST_P256", kms.EdDSA: "ECC_NIST_EDWARDS25519"} {
		k := openKey(t, b, newRef(t, e, spec), alg)
		e.Set(awsfault.Fault{Flip: true})
		message := []byte("header.payload")
		if signature, err := k.Sign(t.Context(), message); err == nil && kms.Verify(alg, k.Public(), message, signature) == nil {
			t.Errorf("%s: the flipped bit is not in the signature: this test shows nothing", alg)
		}
		e.Set(awsfault.Fault{})
		wantSignature(t, k)
	}
}

// The endpoint checks signatures itself: what AWS would refuse, it does.
func TestRefusedRequestsSayWhatToCheck(t *testing.T) {
	e := newEndpoint(t)
	e.Set(awsfault.Fault{})
	for name, tt := range map[string]struct {
		env, value, region string
		fault              awsfault.Fault
		advice             string
	}{
		"another secret":   {env: "AWS_SECRET_ACCESS_KEY", value: "wrong", advice: "credentials"},
		"unknown identity": {env: "AWS_ACCESS_KEY_ID", value: "AKIAIOSFODNN7EXAMPLE", advice: "credentials"},
		"another region":   {region: "us-east-1", advice: "credentials"},
		"clock off":        {fault: awsfault.Fault{Skew: time.Hour}, advice: "clock"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AWS_MAX_ATTEMPTS", "1")
			if tt.env != "" {
				t.Setenv(tt.env, tt.value)
			}
			if tt.region == "" {
				tt.region = awsfault.Region
			}
			e.Set(tt.fault)
			defer e.Set(awsfault.Fault{})
			b, err := awskms.New(t.Context(), awskms.Config{Region: tt.region, Endpoint: e.URL()})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			err = b.Check(t.Context())
			wantError(t, "Check", err, kms.ErrUnavailable)
			if err == nil || !strings.Contains(err.Error(), tt.advice) {
				t.Errorf("%v does not mention %s", err, tt.advice)
			}
		})
	}
}

// Without the SDK's retries: net/http itself repeats what an idle connection
// lost.
func TestDeadIdleConnectionCostsNothing(t *testing.T) {
	e := newEndpoint(t)
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	b := newBackend(t, e.URL())
	k := openKey(t, b, newRef(t, e, "ECC_NIST_P256"), kms.ES256)
	for range 5 {
		wantSignature(t, k) // over the connection that the last one left
		e.Set(awsfault.Fault{Op: "Sign", Reset: true, Times: 1})
		wantSignature(t, k)
		e.Set(awsfault.Fault{})
	}
}

// Retries are calls like others: they wait for their turn too.
func TestRateCountsRetries(t *testing.T) {
	e := newEndpoint(t)
	b, err := awskms.New(t.Context(), awskms.Config{Region: awsfault.Region, Endpoint: e.URL(), Rate: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	k := openKey(t, b, newRef(t, e, "ECC_NIST_P256"), kms.ES256)
	e.Set(awsfault.Fault{Op: "Sign", Code: "KMSInternalException"})
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = k.Sign(ctx, []byte("header.payload"))
	wantError(t, "Sign", err, kms.ErrThrottled)
	if got := e.Calls("Sign"); got != 1 {
		t.Errorf("%d calls at one a second, want 1", got)
	}
	if took := time.Since(start); took > 800*time.Millisecond {
		t.Errorf("the answer took %v; that there is no turn is known at once", took)
	}
}

func TestTLSWithTheCABundleOfTheEnvironment(t *testing.T) {
	e := newEndpoint(t)
	server := httptest.NewTLSServer(e)
	defer server.Close()
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	ref := newRef(t, e, "ECC_NIST_P256")
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	_, err := newBackend(t, server.URL).OpenKey(t.Context(), ref, kms.ES256)
	wantError(t, "unknown CA", err, kms.ErrUnavailable)
	t.Setenv("AWS_CA_BUNDLE", bundle)
	wantSignature(t, openKey(t, newBackend(t, server.URL), ref, kms.ES256))
}

// The environment's endpoint is held to the same rule as a configured one.
func TestPlainHTTPEndpointOfTheEnvironmentIsRefused(t *testing.T) {
	e := newEndpoint(t)
	b, err := awskms.New(t.Context(), awskms.Config{Region: awsfault.Region})
	if err != nil {
		t.Fatalf("on loopback: %v", err)
	}
	wantSignature(t, openKey(t, b, newRef(t, e, "ECC_NIST_P256"), kms.ES256))
	b.Close()
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://kms.example.com")
	if _, err := awskms.New(t.Context(), awskms.Config{Region: awsfault.Region}); err == nil {
		t.Error("plain http to another host was accepted")
	}
}
