package awskms

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"golang.org/x/time/rate"

	"github.com/bulla-project/bulla/kms"
)

// A call is one or several attempts, for as long as the caller's deadline
// allows and at most as many as the SDK is configured for (three, unless
// AWS_MAX_ATTEMPTS says otherwise). Which failures are worth another attempt is
// the SDK's decision; how long one may take, and how soon the next follows, are
// decided here.
const (
	// attemptLimit is how long KMS may take over one attempt. It answers a
	// signature in some milliseconds; a connection that has said nothing for
	// this long will not say anything any more, while the next may be well.
	attemptLimit = 2 * time.Second

	// leastAttempt is the shortest limit that is set: below it, all the time
	// that is left is better given to the attempt that is under way.
	leastAttempt = 200 * time.Millisecond

	// The pause after the first failed attempt; it doubles with each, up to
	// maxPause, and half of it is random. The SDK's own pauses, up to two
	// seconds after the first attempt, are longer than a login page waits.
	faultPause    = 50 * time.Millisecond
	throttlePause = 200 * time.Millisecond
	maxPause      = 2 * time.Second
)

// manner says how calls of one purpose are made.
type manner struct {
	// turns is what each attempt waits for, retries included. Nil: nothing.
	turns *rate.Limiter
	// once says that doing it twice is worse than not doing it. There is
	// another attempt only if the one before was refused, or not even sent,
	// and none is given up while KMS may still be at work.
	once bool
}

// within returns the option of the SDK that makes one call in this manner
// within ctx.
func (m manner) within(ctx context.Context) func(*awssdk.Options) {
	deadline, _ := ctx.Deadline()
	return func(o *awssdk.Options) {
		attempts := 0
		if retryer, isV2 := o.Retryer.(aws.RetryerV2); isV2 {
			attempts = retryer.MaxAttempts()
			o.Retryer = callRetryer{retryer, m, deadline}
		}
		if !m.once {
			o.APIOptions = append(o.APIOptions, repeatable(deadline, attempts))
		}
	}
}

// callRetryer is the client's retryer, for one call.
type callRetryer struct {
	aws.RetryerV2
	manner
	deadline time.Time // zero: none
}

// GetAttemptToken implements aws.RetryerV2: each attempt waits for its turn.
func (r callRetryer) GetAttemptToken(ctx context.Context) (release func(error) error, err error) {
	if r.turns != nil {
		if err := waitTurn(ctx, r.turns); err != nil {
			return nil, err
		}
	}
	return r.RetryerV2.GetAttemptToken(ctx)
}

// IsErrorRetryable implements aws.Retryer.
func (r callRetryer) IsErrorRetryable(err error) bool {
	if r.once {
		return throttled(err) && !tooMany(err) || notSent(err)
	}
	return r.RetryerV2.IsErrorRetryable(err)
}

// RetryDelay implements aws.Retryer. A caller is told what the attempt's error
// was rather than kept waiting for a retry that ctx will not live to see:
// "throttled" in time is worth more than to hear that time is over. The error
// that RetryDelay returns takes the place of err, and therefore wraps it.
func (r callRetryer) RetryDelay(attempt int, err error) (time.Duration, error) {
	pause := faultPause
	if throttled(err) {
		pause = throttlePause
	}
	for range attempt - 1 {
		pause = min(2*pause, maxPause)
	}
	pause = pause/2 + rand.N(pause/2) //nolint:gosec // spreads callers, keeps no secret
	if !r.deadline.IsZero() && pause >= time.Until(r.deadline) {
		return 0, fmt.Errorf("attempt %d failed, and the deadline leaves no time for another: %w", attempt, err)
	}
	return pause, nil
}

// throttled reports whether err is an answer of KMS that says to slow down.
func throttled(err error) bool {
	var answer smithy.APIError
	return errors.As(err, &answer) && errors.Is(classes[answer.ErrorCode()].is, kms.ErrThrottled)
}

// tooMany reports whether err is an answer to CreateKey that no pause changes,
// although the SDK counts it as throttling.
func tooMany(err error) bool {
	var answer smithy.APIError
	return errors.As(err, &answer) && creating[answer.ErrorCode()].is != nil
}

// notSent reports whether err says that there was no connection to send the
// request over.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// stalled is the error of an attempt that was given up.
type stalled struct{ after time.Duration }

func (e *stalled) Error() string {
	return fmt.Sprintf("no answer within %v", e.after.Round(time.Millisecond))
}

// RetryableError tells the SDK that another attempt may succeed.
func (e *stalled) RetryableError() bool { return true }

// repeatable is the SDK's hook for requests that may be sent again. It bounds
// each attempt, and lets net/http itself repeat one that was lost with a
// connection that had been idle, at once and without it counting.
func repeatable(deadline time.Time, attempts int) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		attempt := 0
		handle := func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
			attempt++
			if req, ok := in.Request.(*smithyhttp.Request); ok {
				req.Header["Idempotency-Key"] = nil // net/http: no value, so it is not sent
			}
			limit := limitOf(time.Now(), deadline, attempt == attempts)
			bounded, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			out, metadata, err := next.HandleFinalize(bounded, in)
			var answer smithy.APIError
			if err != nil && bounded.Err() != nil && contextEnd(ctx) == nil && !errors.As(err, &answer) {
				err = &stalled{limit}
			}
			return out, metadata, err
		}
		// The last step before the request is sent: how long credentials may
		// take is not our affair.
		return stack.Finalize.Add(middleware.FinalizeMiddlewareFunc("BullaAttemptLimit", handle), middleware.After)
	}
}

// limitOf is how long an attempt may take that begins now: never more than
// attemptLimit, and while there may be another, half of what is left, so that
// there is time for it.
func limitOf(now, deadline time.Time, last bool) time.Duration {
	if deadline.IsZero() || last {
		return attemptLimit
	}
	half := deadline.Sub(now) / 2
	if half < leastAttempt {
		return attemptLimit
	}
	return min(half, attemptLimit)
}
