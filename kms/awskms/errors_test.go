package awskms

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"

	"github.com/bulla-project/bulla/kms"
)

// The errors that the KMS API reference lists for each call, without those that
// need a parameter that is never sent (DryRun, grant tokens, custom key stores,
// imported material), and its common errors. An answer of AWS that is documented
// must not be "not expected".
func TestEveryDocumentedErrorHasItsClass(t *testing.T) {
	common := []string{
		"AccessDeniedException", "ExpiredTokenException", "IncompleteSignature", "InternalFailure", "InvalidAction", "InvalidClientTokenId",
		"MissingAuthenticationToken", "NotAuthorized", "OptInRequired", "RequestExpired", "RequestTimeoutException", "ServiceUnavailable",
		"ThrottlingException", "UnrecognizedClientException", "UnknownOperationException", "InvalidSignatureException",
	}
	for op, codes := range map[string][]string{
		"GetPublicKey":     {"DependencyTimeoutException", "DisabledException", "InvalidArnException", "InvalidKeyUsageException", "KeyUnavailableException", "KMSInternalException", "KMSInvalidStateException", "NotFoundException", "UnsupportedOperationException"},
		"Sign":             {"DependencyTimeoutException", "DisabledException", "InvalidKeyUsageException", "KeyUnavailableException", "KMSInternalException", "KMSInvalidStateException", "NotFoundException"},
		"Encrypt":          {"DependencyTimeoutException", "DisabledException", "InvalidKeyUsageException", "KeyUnavailableException", "KMSInternalException", "KMSInvalidStateException", "NotFoundException"},
		"Decrypt":          {"DependencyTimeoutException", "DisabledException", "IncorrectKeyException", "InvalidCiphertextException", "InvalidKeyUsageException", "KeyUnavailableException", "KMSInternalException", "KMSInvalidStateException", "NotFoundException"},
		"CreateKey":        {"DependencyTimeoutException", "InvalidArnException", "KMSInternalException", "LimitExceededException", "MalformedPolicyDocumentException", "TagException", "UnsupportedOperationException"},
		"ListKeys":         {"DependencyTimeoutException", "KMSInternalException"},
		"ListResourceTags": {"InvalidArnException", "KMSInternalException", "NotFoundException"},
		"DescribeKey":      {"DependencyTimeoutException", "InvalidArnException", "KMSInternalException", "NotFoundException"},
	} {
		for _, code := range append(codes, common...) {
			c := classOf(op, code)
			if c == unlisted {
				t.Errorf("%s: %s has no class", op, code)
			}
			err := classify(context.Background(), op, &smithy.GenericAPIError{Code: code})
			if !errors.Is(err, c.is) || strings.Contains(err.Error(), "%") || !strings.Contains(err.Error(), code) {
				t.Errorf("%s: %s becomes %v", op, code, err)
			}
		}
	}
	if c := classOf("Sign", "LimitExceededException"); !errors.Is(c.is, kms.ErrThrottled) {
		t.Errorf("LimitExceededException of Sign is %v", c.is)
	}
}

func TestRefusedCredentialsSayNothingAboutAKey(t *testing.T) {
	sts := &smithy.OperationError{ServiceID: awssdk.ServiceID, OperationName: "Sign", Err: fmt.Errorf("get identity: %w",
		&smithy.OperationError{ServiceID: "STS", OperationName: "AssumeRoleWithWebIdentity", Err: &smithy.GenericAPIError{Code: "AccessDenied"}})}
	if err := classify(context.Background(), "Sign", sts); !errors.Is(err, kms.ErrUnavailable) || errors.Is(err, kms.ErrKeyDisabled) {
		t.Errorf("got %v", err)
	}
}

func TestOnlyWhatNeverLeftMayBeCreatedAgain(t *testing.T) {
	r := callRetryer{manner: manner{once: true}}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{&smithy.GenericAPIError{Code: "ThrottlingException"}, true},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, true},
		{&net.OpError{Op: "read", Err: errors.New("connection reset")}, false},
		{&smithy.GenericAPIError{Code: "KMSInternalException"}, false},
		{&smithy.GenericAPIError{Code: "LimitExceededException"}, false},
		{&stalled{}, false},
		{context.DeadlineExceeded, false},
	} {
		if got := r.IsErrorRetryable(tt.err); got != tt.want {
			t.Errorf("%v: another attempt %v, want %v", tt.err, got, tt.want)
		}
	}
}
