package awskms

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/logging"
)

// client is what this package uses of the AWS SDK: the calls, and thereby the
// permissions, are these.
type client interface {
	GetPublicKey(context.Context, *awssdk.GetPublicKeyInput, ...func(*awssdk.Options)) (*awssdk.GetPublicKeyOutput, error)
	Sign(context.Context, *awssdk.SignInput, ...func(*awssdk.Options)) (*awssdk.SignOutput, error)
	Encrypt(context.Context, *awssdk.EncryptInput, ...func(*awssdk.Options)) (*awssdk.EncryptOutput, error)
	Decrypt(context.Context, *awssdk.DecryptInput, ...func(*awssdk.Options)) (*awssdk.DecryptOutput, error)
}

// withinDeadline makes a call give up, with the error it has, rather than wait
// for a retry that ctx will not live to see: to be told "throttled" in time is
// worth more than to be told nothing but that time is over.
func withinDeadline(ctx context.Context) func(*awssdk.Options) {
	deadline, ok := ctx.Deadline()
	return func(o *awssdk.Options) {
		if retryer, isV2 := o.Retryer.(aws.RetryerV2); ok && isV2 {
			o.Retryer = boundedRetryer{retryer, deadline}
		}
	}
}

// boundedRetryer is the client's retryer, for one call.
type boundedRetryer struct {
	aws.RetryerV2
	deadline time.Time
}

// RetryDelay implements aws.Retryer. The error it returns takes the place of
// err, and therefore wraps it.
func (r boundedRetryer) RetryDelay(attempt int, err error) (time.Duration, error) {
	delay, delayErr := r.RetryerV2.RetryDelay(attempt, err)
	if delayErr == nil && delay >= time.Until(r.deadline) {
		return 0, fmt.Errorf("attempt %d failed, and the deadline leaves no time for another: %w", attempt, err)
	}
	return delay, delayErr
}

// sdkLogger passes on what the SDK logs. With the SDK's default log mode that
// is about configuration and retries; requests, answers and credentials are
// not in it.
type sdkLogger struct{ log *slog.Logger }

// Logf implements logging.Logger.
func (l sdkLogger) Logf(class logging.Classification, format string, v ...any) {
	level := slog.LevelDebug
	if class == logging.Warn {
		level = slog.LevelWarn
	}
	l.log.Log(context.Background(), level, "AWS SDK", slog.String("said", fmt.Sprintf(format, v...)))
}
