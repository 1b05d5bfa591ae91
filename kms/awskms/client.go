package awskms

import (
	"context"
	"fmt"
	"log/slog"

	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/logging"
)

// client is what this package uses of the AWS SDK: the calls, and thereby the
// permissions, are these. CreateKey takes kms:TagResource beside its own, for
// the tag it sets.
type client interface {
	// For signing.
	GetPublicKey(context.Context, *awssdk.GetPublicKeyInput, ...func(*awssdk.Options)) (*awssdk.GetPublicKeyOutput, error)
	Sign(context.Context, *awssdk.SignInput, ...func(*awssdk.Options)) (*awssdk.SignOutput, error)

	// For wrapping data keys.
	Encrypt(context.Context, *awssdk.EncryptInput, ...func(*awssdk.Options)) (*awssdk.EncryptOutput, error)
	Decrypt(context.Context, *awssdk.DecryptInput, ...func(*awssdk.Options)) (*awssdk.DecryptOutput, error)

	// For creating signing keys, and finding them again.
	CreateKey(context.Context, *awssdk.CreateKeyInput, ...func(*awssdk.Options)) (*awssdk.CreateKeyOutput, error)
	ListKeys(context.Context, *awssdk.ListKeysInput, ...func(*awssdk.Options)) (*awssdk.ListKeysOutput, error)
	ListResourceTags(context.Context, *awssdk.ListResourceTagsInput, ...func(*awssdk.Options)) (*awssdk.ListResourceTagsOutput, error)
	DescribeKey(context.Context, *awssdk.DescribeKeyInput, ...func(*awssdk.Options)) (*awssdk.DescribeKeyOutput, error)
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
