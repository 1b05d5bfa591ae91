package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/metadata"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
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

// ErrorDomain is the domain of every ErrorInfo.
const ErrorDomain = "bulla"

// row says what an error becomes.
type row struct {
	err    error
	code   codes.Code
	reason bullav1.ErrorReason
	// text is what the caller reads. Empty: the error's own text, which its
	// package promises is fit for callers.
	text string
}

// table is searched from the top; the first error that matches decides.
var table = []row{
	{errInvalid, codes.InvalidArgument, none, ""},
	{registry.ErrInvalid, codes.InvalidArgument, none, ""},
	{metadata.ErrInvalid, codes.InvalidArgument, none, ""},
	{secrets.ErrSecret, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_KEY_REJECTED, ""},

	{authz.ErrNoIdentity, codes.Unauthenticated, bullav1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN, ""},
	{authz.ErrCallerUnknown, codes.Unauthenticated, bullav1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN, ""},
	{authz.ErrNotAllowed, codes.PermissionDenied, bullav1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED, ""},
	{limit.ErrExceeded, codes.ResourceExhausted, bullav1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED, ""},
	{admit.ErrOverloaded, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_OVERLOADED, ""},
	{issuer.ErrUnknown, codes.NotFound, bullav1.ErrorReason_ERROR_REASON_ISSUER_UNKNOWN, ""},
	{issuer.ErrAlgorithm, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_ALGORITHM_NOT_ALLOWED, ""},

	{signer.ErrKindUnsupported, codes.Unimplemented, none, ""},
	{signer.ErrSecretKind, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_ALGORITHM_NOT_ALLOWED, ""},
	{signer.ErrSecretTooShort, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_CLIENT_KEY_UNUSABLE, ""},
	{signer.ErrClaims, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_CLAIMS_INVALID, ""},
	{seal.ErrSignedOnly, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_ALGORITHM_NOT_ALLOWED, ""},
	{authz.ErrClaimsNotAllowed, codes.PermissionDenied, bullav1.ErrorReason_ERROR_REASON_CLAIMS_NOT_ALLOWED, ""},
	{seal.ErrEncryptionRequired, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_ENCRYPTION_REQUIRED, ""},

	{fetch.ErrURI, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_URI_REJECTED, ""},
	{jwks.ErrKeySpec, codes.InvalidArgument, none, ""},
	{jwks.ErrRejected, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_KEY_REJECTED, ""},
	{keycache.ErrNoSetting, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_CLIENT_KEY_UNUSABLE, ""},
	{keycache.ErrKeySize, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_ALGORITHM_NOT_ALLOWED, ""},
	{keycache.ErrUnusable, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_CLIENT_KEY_UNUSABLE, ""},
	{jwks.ErrKeyRejected, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_KEY_REJECTED, ""},
	{keycache.ErrExpired, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_CLIENT_KEYS_EXPIRED, ""},
	{keycache.ErrUnavailable, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_CLIENT_KEYS_UNAVAILABLE, ""},
	{keycache.ErrLimited, codes.ResourceExhausted, bullav1.ErrorReason_ERROR_REASON_REFRESH_LIMITED, ""},
	{keycache.ErrNotRefreshable, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_KEY_SOURCE_NOT_REFRESHABLE, ""},

	// What these wrap names places that callers have no business with.
	{keyring.ErrBegun, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_SIGNING_KEY_UNAVAILABLE,
		"the change of keys has begun and goes on by itself: look at the signing keys after a while"},
	{keyring.ErrCannotCreate, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_NO_NEXT_SIGNING_KEY,
		"the backend refuses to make a signing key: the service's log says why; let it, or list a key of your own"},
	{kms.ErrTooLong, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_CLAIMS_INVALID, ""},
	{keyring.ErrNotOpen, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_SIGNING_KEY_UNAVAILABLE, noSigningKey},
	// What a backend that is down takes with it (the data keys that authenticate
	// the registry too) has its reason, so that all of an outage looks alike.
	{kms.ErrThrottled, codes.ResourceExhausted, bullav1.ErrorReason_ERROR_REASON_SIGNING_THROTTLED,
		"the signing backend asks for fewer requests: slow down"},
	{kms.ErrUnavailable, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_SIGNING_KEY_UNAVAILABLE, noSigningKey},
	{kms.ErrKeyNotFound, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_SIGNING_KEY_UNAVAILABLE, noSigningKey},
	{kms.ErrKeyDisabled, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_SIGNING_KEY_UNAVAILABLE, noSigningKey},
	{kms.ErrKeyMismatch, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_SIGNING_KEY_UNAVAILABLE, noSigningKey},

	{registry.ErrWaiting, codes.NotFound, bullav1.ErrorReason_ERROR_REASON_CLIENT_NOT_REGISTERED, ""},
	{registry.ErrNotFound, codes.NotFound, bullav1.ErrorReason_ERROR_REASON_CLIENT_NOT_REGISTERED,
		"this issuer has no such client: register its key first"},
	{registry.ErrExists, codes.AlreadyExists, bullav1.ErrorReason_ERROR_REASON_CLIENT_ALREADY_REGISTERED,
		"the client is registered differently: to change it, read it and send its revision"},
	{registry.ErrRevision, codes.Aborted, bullav1.ErrorReason_ERROR_REASON_REVISION_MISMATCH,
		"the registration is not at this revision: read it again and decide again"},
	{registry.ErrTampered, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_CLIENT_KEY_UNUSABLE,
		"what is stored of this client is not what was registered: somebody changed the store; whoever may replace the client can register it anew"},
	{registry.ErrUnavailable, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE,
		"the registry does not answer: try again later, and read the client before you repeat a change"},
	{watch.ErrTooMany, codes.ResourceExhausted, bullav1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED, ""},
	{watch.ErrFull, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_OVERLOADED, ""},
	{watch.ErrLost, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE,
		"this watch has missed changes: list the clients, and watch again"},
	{watch.ErrStopping, codes.Unavailable, none,
		"this replica is stopping: watch at another one, and list the clients there"},
	{audit.ErrUnavailable, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_AUDIT_UNAVAILABLE,
		"the audit log cannot be written, so nothing is issued: try again later"},

	{keyring.ErrNoNext, codes.FailedPrecondition, bullav1.ErrorReason_ERROR_REASON_NO_NEXT_SIGNING_KEY,
		"there is no key to change to: list a new one in the configuration and restart, or let Bulla make them (rotation: {create: auto})"},
	{keyring.ErrNoKey, codes.InvalidArgument, bullav1.ErrorReason_ERROR_REASON_ALGORITHM_NOT_ALLOWED, ""},
	{keyring.ErrIssuerUnknown, codes.NotFound, bullav1.ErrorReason_ERROR_REASON_ISSUER_UNKNOWN, ""},
	{keyring.ErrUnavailable, codes.Unavailable, bullav1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE,
		"the key rings are not known yet: try again later"},
	{signer.ErrFault, codes.Internal, bullav1.ErrorReason_ERROR_REASON_SIGNING_FAULT,
		"the signing backend returned a signature that does not verify: it was not released"},

	{errStopping, codes.Unavailable, none,
		"this replica is stopping: what it read is answered; send the others to another one"},
	{errNotBegun, codes.DeadlineExceeded, none,
		"the deadline came before this item was begun, and nothing was made: ask for it again, with fewer items or with more time"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, none, "the deadline has passed"},
	{context.Canceled, codes.Canceled, none, "the call was canceled"},
}

const (
	none         = bullav1.ErrorReason_ERROR_REASON_UNSPECIFIED
	noSigningKey = "the signing backend does not answer at the moment: try again later"
	unknownText  = "internal error"
)

// unknownRow is for errors that are in no table: a mistake of ours.
var unknownRow = row{nil, codes.Internal, none, unknownText}

func lookUp(err error) row {
	for _, r := range table {
		if errors.Is(err, r.err) {
			return r
		}
	}
	return unknownRow
}

// Reason is the name of an error's reason in the API, or that of its gRPC code
// where it has none.
func Reason(err error) string { return lookUp(err).name() }

// name is that of the reason, or of the code where there is none.
func (r row) name() string {
	if r.reason == none {
		return r.code.String()
	}
	return reasonName(r.reason)
}

func reasonName(r bullav1.ErrorReason) string {
	return strings.TrimPrefix(r.String(), "ERROR_REASON_")
}

// retryAfter is the pause an error asks for; ok is false where trying again
// does not help.
func retryAfter(err error, code codes.Code) (pause time.Duration, ok bool) {
	var fetchErr *keycache.FetchError
	var limitErr *keycache.LimitError
	var quotaErr *limit.ExceededError
	var loadErr *admit.OverloadedError
	switch {
	case code != codes.Unavailable && code != codes.ResourceExhausted:
		return 0, false
	case errors.As(err, &fetchErr):
		return max(fetchErr.RetryAfter, time.Second), true
	case errors.As(err, &limitErr):
		return limitErr.RetryAfter, true
	case errors.As(err, &quotaErr):
		return quotaErr.RetryAfter, true
	case errors.Is(err, errStopping):
		return 0, true // another replica is there at once
	case errors.As(err, &loadErr):
		return loadErr.RetryAfter, true
	}
	return time.Second, true
}

// statusOf turns an error into the status that its caller sees.
func statusOf(err error) *status.Status {
	r := lookUp(err)
	text := r.text
	if text == "" {
		text = err.Error()
	}
	var details []protoadapt.MessageV1
	if r.reason != none {
		details = append(details, &errdetails.ErrorInfo{Domain: ErrorDomain, Reason: reasonName(r.reason)})
	}
	if violations := violationsOf(err); len(violations) > 0 {
		details = append(details, &errdetails.BadRequest{FieldViolations: violations})
	}
	if pause, ok := retryAfter(err, r.code); ok {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(pause)})
	}
	st := status.New(r.code, text)
	if len(details) == 0 {
		return st
	}
	detailed, err := st.WithDetails(details...)
	if err != nil {
		return st // the details could not be encoded; the status still says the most
	}
	return detailed
}

func violationsOf(err error) []*errdetails.BadRequest_FieldViolation {
	var claims *signer.ClaimsError
	var policy *authz.ClaimsError
	var invalid *invalidError
	var record *registry.InvalidError
	var member *metadata.Error
	var list []*errdetails.BadRequest_FieldViolation
	switch {
	case errors.As(err, &claims):
		for _, v := range claims.Violations {
			list = append(list, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Problem})
		}
	case errors.As(err, &policy):
		for _, v := range policy.Violations {
			list = append(list, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Problem})
		}
	case errors.As(err, &invalid):
		for _, v := range invalid.violations {
			list = append(list, &errdetails.BadRequest_FieldViolation{Field: v.field, Description: v.problem})
		}
	case errors.As(err, &record):
		list = append(list, &errdetails.BadRequest_FieldViolation{Field: record.Field, Description: record.Problem})
	case errors.As(err, &member):
		list = append(list, &errdetails.BadRequest_FieldViolation{Field: strings.TrimSuffix("client_metadata."+member.Member, "."), Description: member.Problem})
	}
	return list
}
