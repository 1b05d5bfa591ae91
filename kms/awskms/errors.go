package awskms

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"

	"github.com/bulla-project/bulla/kms"
)

// class is what an error code of KMS means to a caller.
type class struct {
	is     error  // the sentinel of package kms
	advice string // for the operator; %s, if any, is the operation
}

// Advice that several codes share.
const (
	slowDown = "AWS KMS throttles this account's requests: ask for a higher quota, or use fewer signatures"
	denied   = "the AWS identity may not do this: allow kms:%s in its IAM policy, and see that the key policy does not keep it out"
	login    = "AWS does not accept the credentials: check which the environment, profile or role gives, and that they have not expired"
	clock    = "AWS finds the request's time too far off: set this machine's clock (NTP)"
	outage   = "AWS KMS has a fault of its own; it should pass"
	disabled = "enable the key, cancel its deletion, or configure another"
	changed  = "it was not wrapped by this key for this purpose, or was changed"
	unfit    = "the key cannot do this: configure a key of the right usage and key spec (a wrapping key has ENCRYPT_DECRYPT and SYMMETRIC_DEFAULT)"
	notKMS   = "the endpoint does not know the request: check that it is that of AWS KMS"
	noSpec   = "AWS KMS does not make such keys in this Region: choose another algorithm"
	account  = "the account does not let this key be made: see its service control and tag policies"
)

// classes says for each error code what it is. The codes are those of the KMS
// API reference for the calls of client, its "Common Errors", and the
// throttling codes that the SDK knows.
//
// A denied key counts as disabled, not as unavailable: KMS is well, it has
// decided, and asking again changes nothing until someone changes a policy.
// Credentials that are refused count as unavailable, for they are renewed from
// outside while the service runs. So does a clock that is off: it is set from
// outside, and until then the SDK corrects it by the time that AWS answers
// with.
var classes = map[string]class{
	"ThrottlingException":       {kms.ErrThrottled, slowDown},
	"Throttling":                {kms.ErrThrottled, slowDown},
	"ThrottledException":        {kms.ErrThrottled, slowDown},
	"RequestThrottled":          {kms.ErrThrottled, slowDown},
	"RequestThrottledException": {kms.ErrThrottled, slowDown},
	"RequestLimitExceeded":      {kms.ErrThrottled, slowDown},
	"TooManyRequestsException":  {kms.ErrThrottled, slowDown},
	"LimitExceededException":    {kms.ErrThrottled, slowDown},
	"SlowDown":                  {kms.ErrThrottled, slowDown},

	"NotFoundException": {kms.ErrKeyNotFound, "check the reference, the region and the account; a deleted key cannot be had back"},

	"DisabledException":        {kms.ErrKeyDisabled, disabled},
	"KMSInvalidStateException": {kms.ErrKeyDisabled, disabled}, // pending deletion or import, being created, or its key store is disconnected
	"AccessDeniedException":    {kms.ErrKeyDisabled, denied},
	"AccessDenied":             {kms.ErrKeyDisabled, denied},

	"InvalidKeyUsageException":      {kms.ErrKeyMismatch, unfit},
	"UnsupportedOperationException": {kms.ErrKeyMismatch, unfit},

	"InvalidCiphertextException": {kms.ErrUnwrap, changed},
	"IncorrectKeyException":      {kms.ErrUnwrap, changed},

	"InvalidArnException": {kms.ErrReference, "AWS KMS cannot read the key's ARN"},

	"KMSInternalException":        {kms.ErrUnavailable, outage},
	"DependencyTimeoutException":  {kms.ErrUnavailable, outage},
	"KeyUnavailableException":     {kms.ErrUnavailable, outage},
	"InternalFailure":             {kms.ErrUnavailable, outage},
	"InternalServerError":         {kms.ErrUnavailable, outage},
	"ServiceUnavailable":          {kms.ErrUnavailable, outage},
	"ServiceUnavailableException": {kms.ErrUnavailable, outage},
	"RequestTimeout":              {kms.ErrUnavailable, outage},
	"RequestTimeoutException":     {kms.ErrUnavailable, outage},

	"UnrecognizedClientException":         {kms.ErrUnavailable, login},
	"InvalidClientTokenId":                {kms.ErrUnavailable, login},
	"ExpiredTokenException":               {kms.ErrUnavailable, login},
	"ExpiredToken":                        {kms.ErrUnavailable, login},
	"MissingAuthenticationToken":          {kms.ErrUnavailable, login},
	"MissingAuthenticationTokenException": {kms.ErrUnavailable, login},
	"NotAuthorized":                       {kms.ErrUnavailable, login},
	"OptInRequired":                       {kms.ErrUnavailable, login},
	"IncompleteSignature":                 {kms.ErrUnavailable, login},
	"IncompleteSignatureException":        {kms.ErrUnavailable, login},

	// A signature is refused for a wrong secret and for a wrong time alike.
	"InvalidSignatureException": {kms.ErrUnavailable, login + "; or " + clock},
	"SignatureDoesNotMatch":     {kms.ErrUnavailable, login + "; or " + clock},
	"RequestTimeTooSkewed":      {kms.ErrUnavailable, clock},
	"RequestExpired":            {kms.ErrUnavailable, clock},

	"UnknownOperationException": {kms.ErrUnavailable, notKMS},
	"InvalidAction":             {kms.ErrUnavailable, notKMS},
}

// creating says which codes are something else as an answer to CreateKey: there
// is no key yet that could be wrong, and its quota is one on the number of
// keys.
var creating = map[string]class{
	"LimitExceededException":           {kms.ErrKeyDisabled, "the account has as many keys as its quota allows: delete some, or ask for more"},
	"AccessDeniedException":            {kms.ErrKeyDisabled, denied + " (and kms:TagResource with it)"},
	"TagException":                     {kms.ErrKeyDisabled, account},
	"MalformedPolicyDocumentException": {kms.ErrKeyDisabled, account},
	"UnsupportedOperationException":    {kms.ErrKeyMismatch, noSpec},
	"ValidationException":              {kms.ErrKeyMismatch, noSpec}, // a key spec that the Region has never heard of
	"ValidationError":                  {kms.ErrKeyMismatch, noSpec},
}

// What is left when no code says anything.
var (
	unlisted    = class{kms.ErrUnavailable, "an answer of AWS KMS that is not expected here"}
	unreachable = class{kms.ErrUnavailable, "AWS KMS cannot be reached, or no AWS credentials were found: check network, endpoint and credentials"}

	// The service that gives credentials refused. Its codes look like those
	// of KMS and say nothing about a key.
	noCredentials = class{kms.ErrUnavailable, "no AWS credentials could be had: check the profile or role"}
)

// classOf is the class of a code that KMS answers op with.
func classOf(op, code string) class {
	if c, known := creating[code]; known && op == "CreateKey" {
		return c
	}
	if c, known := classes[code]; known {
		return c
	}
	return unlisted
}

// classify turns an error of the SDK's call of op into one of package kms's.
// An answer of KMS is worth more than the end of ctx, which may just have come
// too; without one, ctx's own error is returned if it has ended.
func classify(ctx context.Context, op string, err error) error {
	c := unreachable
	var answer smithy.APIError
	switch ended := contextEnd(ctx); {
	case errors.Is(err, errNoTurn):
		return errNoTurn
	case otherService(err) && ended == nil:
		c = noCredentials
	case !otherService(err) && errors.As(err, &answer):
		c = classOf(op, answer.ErrorCode())
	case ended != nil:
		return fmt.Errorf("AWS KMS %s: %w", op, ended)
	}
	return fmt.Errorf("%w: %s: %w", c.is, strings.ReplaceAll(c.advice, "%s", op), err)
}

// otherService reports whether err comes from another service than KMS: the SDK
// asks some for credentials within a call.
func otherService(err error) bool {
	var op *smithy.OperationError
	for errors.As(err, &op) {
		if op.Service() != awssdk.ServiceID {
			return true
		}
		err = op.Unwrap()
	}
	return false
}

// contextEnd is ctx.Err, but does not depend on whether the context's timer or
// the network's, which are set to the same moment, fired first.
func contextEnd(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return nil
}
