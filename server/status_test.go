package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/admit"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/limit"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/server/watch"
	"github.com/bulla-project/bulla/signer"
	"github.com/bulla-project/bulla/signer/keyring"
)

// contract is the outside contract: the code of each reason.
var contract = map[string]codes.Code{
	"ISSUER_UNKNOWN":             codes.NotFound,
	"CLIENT_NOT_REGISTERED":      codes.NotFound,
	"CLIENT_ALREADY_REGISTERED":  codes.AlreadyExists,
	"CLAIMS_INVALID":             codes.InvalidArgument,
	"KEY_REJECTED":               codes.InvalidArgument,
	"URI_REJECTED":               codes.InvalidArgument,
	"ALGORITHM_NOT_ALLOWED":      codes.InvalidArgument,
	"CLIENT_KEY_UNUSABLE":        codes.FailedPrecondition,
	"CLIENT_KEYS_EXPIRED":        codes.FailedPrecondition,
	"ENCRYPTION_REQUIRED":        codes.FailedPrecondition,
	"KEY_SOURCE_NOT_REFRESHABLE": codes.FailedPrecondition,
	"NO_NEXT_SIGNING_KEY":        codes.FailedPrecondition,
	"CLIENT_KEYS_UNAVAILABLE":    codes.Unavailable,
	"SIGNING_KEY_UNAVAILABLE":    codes.Unavailable,
	"REGISTRY_UNAVAILABLE":       codes.Unavailable,
	"AUDIT_UNAVAILABLE":          codes.Unavailable,
	"OVERLOADED":                 codes.Unavailable,
	"SIGNING_THROTTLED":          codes.ResourceExhausted,
	"QUOTA_EXCEEDED":             codes.ResourceExhausted,
	"REFRESH_LIMITED":            codes.ResourceExhausted,
	"REVISION_MISMATCH":          codes.Aborted,
	"CALLER_UNKNOWN":             codes.Unauthenticated,
	"CALLER_NOT_ALLOWED":         codes.PermissionDenied,
	"CLAIMS_NOT_ALLOWED":         codes.PermissionDenied,
	"SIGNING_FAULT":              codes.Internal,
}

func TestReasonsAreThoseOfTheContract(t *testing.T) {
	for number := range bullav1.ErrorReason_name {
		name := reasonName(bullav1.ErrorReason(number))
		if _, ok := contract[name]; !ok && name != "UNSPECIFIED" {
			t.Errorf("the API has a reason %s that the contract has not", name)
		}
	}
	if got, want := len(bullav1.ErrorReason_name)-1, len(contract); got != want {
		t.Errorf("the API has %d reasons, the contract %d", got, want)
	}
	for _, r := range table {
		if r.reason == none {
			continue
		}
		if want := contract[reasonName(r.reason)]; r.code != want {
			t.Errorf("%v: %s is sent with %s, want %s", r.err, reasonName(r.reason), r.code, want)
		}
	}
}

func TestErrorsBecomeTheirReasons(t *testing.T) {
	secret := errors.New("slot 7 at 10.1.2.3 said CKR_DEVICE_ERROR")
	wrap := func(err error) error { return fmt.Errorf("somewhere: %w: %w", err, secret) }
	for _, test := range []struct {
		err    error
		reason string
		public bool // the text is fit for callers as it is
	}{
		{wrap(kms.ErrUnavailable), "SIGNING_KEY_UNAVAILABLE", false},
		{wrap(kms.ErrKeyNotFound), "SIGNING_KEY_UNAVAILABLE", false},
		{wrap(kms.ErrKeyDisabled), "SIGNING_KEY_UNAVAILABLE", false},
		{wrap(kms.ErrKeyMismatch), "SIGNING_KEY_UNAVAILABLE", false},
		{wrap(kms.ErrThrottled), "SIGNING_THROTTLED", false},
		// A key that cannot be opened because its backend is throttled is not
		// a call that was throttled.
		{fmt.Errorf("%w: %w", keyring.ErrNotOpen, kms.ErrThrottled), "SIGNING_KEY_UNAVAILABLE", false},
		{wrap(signer.ErrFault), "SIGNING_FAULT", false},
		{wrap(registry.ErrUnavailable), "REGISTRY_UNAVAILABLE", false},
		{wrap(registry.ErrNotFound), "CLIENT_NOT_REGISTERED", false},
		{wrap(registry.ErrExists), "CLIENT_ALREADY_REGISTERED", false},
		{wrap(registry.ErrRevision), "REVISION_MISMATCH", false},
		{wrap(audit.ErrUnavailable), "AUDIT_UNAVAILABLE", false},
		{wrap(watch.ErrLost), "REGISTRY_UNAVAILABLE", false},
		{wrap(watch.ErrStopping), "Unavailable", false},
		{watch.ErrTooMany, "QUOTA_EXCEEDED", true},
		{watch.ErrFull, "OVERLOADED", true},
		{secret, "Internal", false},
		{wrap(context.DeadlineExceeded), "DeadlineExceeded", false},
		{wrap(context.Canceled), "Canceled", false},

		{wrap(keyring.ErrNoNext), "NO_NEXT_SIGNING_KEY", false},
		{wrap(keyring.ErrCannotCreate), "NO_NEXT_SIGNING_KEY", false},
		{wrap(keyring.ErrBegun), "SIGNING_KEY_UNAVAILABLE", false},
		{kms.ErrTooLong, "CLAIMS_INVALID", true},
		{keyring.ErrNoKey, "ALGORITHM_NOT_ALLOWED", true},
		{issuer.ErrUnknown, "ISSUER_UNKNOWN", true},
		{issuer.ErrAlgorithm, "ALGORITHM_NOT_ALLOWED", true},
		{authz.ErrNoIdentity, "CALLER_UNKNOWN", true},
		{authz.ErrCallerUnknown, "CALLER_UNKNOWN", true},
		{authz.ErrNotAllowed, "CALLER_NOT_ALLOWED", true},
		{&signer.ClaimsError{Violations: []signer.Violation{{Field: "claims.exp", Problem: "is past"}}}, "CLAIMS_INVALID", true},
		{&authz.ClaimsError{Violations: []authz.Violation{{Field: "claims.email", Problem: "is not listed"}}}, "CLAIMS_NOT_ALLOWED", true},
		{seal.ErrSignedOnly, "ALGORITHM_NOT_ALLOWED", true},
		{seal.ErrEncryptionRequired, "ENCRYPTION_REQUIRED", true},
		{fetch.ErrURI, "URI_REJECTED", true},
		{jwks.ErrRejected, "KEY_REJECTED", true},
		{fmt.Errorf("%w: %w", keycache.ErrUnusable, &jwks.NoKeyError{}), "CLIENT_KEY_UNUSABLE", true},
		// A key that was refused is the fault of who registers it, and not of
		// who asks for a token.
		{fmt.Errorf("%w: %w", keycache.ErrUnusable, jwks.ErrKeyRejected), "CLIENT_KEY_UNUSABLE", true},
		{jwks.ErrKeyRejected, "KEY_REJECTED", true},
		{keycache.ErrNoSetting, "CLIENT_KEY_UNUSABLE", true},
		{&keycache.FetchError{ID: "x", Err: keycache.ErrUnavailable}, "CLIENT_KEYS_UNAVAILABLE", true},
		{&keycache.FetchError{ID: "x", Err: keycache.ErrExpired}, "CLIENT_KEYS_EXPIRED", true},
		{&keycache.LimitError{}, "REFRESH_LIMITED", true},
		{&limit.ExceededError{What: "too fast"}, "QUOTA_EXCEEDED", true},
		{&admit.OverloadedError{}, "OVERLOADED", true},
		{keycache.ErrNotRefreshable, "KEY_SOURCE_NOT_REFRESHABLE", true},
		{signer.ErrKindUnsupported, "Unimplemented", true},
		{errStopping, "Unavailable", false},
		{errNotBegun, "DeadlineExceeded", false},
	} {
		if got := Reason(test.err); got != test.reason {
			t.Errorf("%v: reason %s, want %s", test.err, got, test.reason)
		}
		st := statusOf(test.err)
		if strings.Contains(st.Message(), secret.Error()) {
			t.Errorf("%v: the caller reads what happened inside: %q", test.err, st.Message())
		}
		if test.public && st.Message() != test.err.Error() {
			t.Errorf("%v: the caller reads %q", test.err, st.Message())
		}
		info := detail[*errdetails.ErrorInfo](st.Details())
		if code, ok := contract[test.reason]; ok {
			if st.Code() != code || info == nil || info.GetReason() != test.reason || info.GetDomain() != "bulla" {
				t.Errorf("%v: status %v with %v, want %s with %s", test.err, st, info, code, test.reason)
			}
		} else if info != nil {
			t.Errorf("%v: has a reason %v, want none", test.err, info)
		}
		retry := detail[*errdetails.RetryInfo](st.Details())
		if helps := st.Code() == codes.Unavailable || st.Code() == codes.ResourceExhausted; helps != (retry != nil) {
			t.Errorf("%v (%s): RetryInfo %v", test.err, st.Code(), retry)
		}
	}
}

func detail[T any](details []any) (found T) {
	for _, d := range details {
		if m, ok := d.(T); ok {
			return m
		}
	}
	return found
}

func TestRetryInfoIsWhatTheErrorAsksFor(t *testing.T) {
	st := statusOf(&keycache.FetchError{ID: "x", Err: keycache.ErrUnavailable, RetryAfter: 42 * time.Second})
	if got := detail[*errdetails.RetryInfo](st.Details()).GetRetryDelay().AsDuration(); got != 42*time.Second {
		t.Errorf("retry after %v, want 42s", got)
	}
	st = statusOf(&limit.ExceededError{What: "too fast", RetryAfter: 7 * time.Second})
	if got := detail[*errdetails.RetryInfo](st.Details()).GetRetryDelay().AsDuration(); got != 7*time.Second {
		t.Errorf("retry after %v, want 7s", got)
	}
	st = statusOf(fmt.Errorf("sign: %w", &admit.OverloadedError{RetryAfter: 3 * time.Second}))
	if got := detail[*errdetails.RetryInfo](st.Details()).GetRetryDelay().AsDuration(); got != 3*time.Second {
		t.Errorf("retry after %v, want 3s", got)
	}
}

func TestViolationsNameTheirFields(t *testing.T) {
	var c checker
	c.wrong("issuer", "is too long")
	for _, test := range []struct {
		err            error
		field, problem string
	}{
		{c.err(), "issuer", "is too long"},
		{&signer.ClaimsError{Violations: []signer.Violation{{Field: "claims.exp", Problem: "is past"}}}, "claims.exp", "is past"},
		{&registry.InvalidError{Field: "settings", Problem: "there is none"}, "settings", "there is none"},
		{&authz.ClaimsError{Violations: []authz.Violation{{Field: "claims.email", Problem: "is not listed"}}}, "claims.email", "is not listed"},
	} {
		st := statusOf(test.err)
		got := detail[*errdetails.BadRequest](st.Details()).GetFieldViolations()
		want := codes.InvalidArgument
		if errors.Is(test.err, authz.ErrClaimsNotAllowed) {
			want = codes.PermissionDenied
		}
		if st.Code() != want || len(got) != 1 || got[0].GetField() != test.field || got[0].GetDescription() != test.problem {
			t.Errorf("%v: %s with %v", test.err, st.Code(), got)
		}
	}
}
