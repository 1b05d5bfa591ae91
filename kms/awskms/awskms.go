// Package awskms signs, and wraps data keys, with keys in AWS KMS.
//
// A signing key is asked for its public half once, when it is opened, and from
// then on for nothing but signatures. What goes to AWS is the digest of the
// signing input (MessageType DIGEST), not the input: the claims of a token do
// not leave the machine, and may be longer than the 4096 bytes that KMS would
// hash itself. ECDSA signatures come back in DER and leave here as r‖s, as JWS
// wants them; a signature that is not strict DER is refused.
//
// Ed25519 is the exception. It has no digest that could be sent in the
// message's place, so KMS is sent the message (MessageType RAW), sees the
// claims, and signs at most 4096 bytes; a longer one is kms.ErrTooLong before
// anything is asked.
//
// A key is pinned when it is opened: later calls name the key that KMS said it
// was, not the alias it was found by. An alias that someone points elsewhere
// changes nothing until a restart, when its new key is a new kid. That the
// signatures do come from the pinned key is not believed either; whoever
// releases one verifies it with kms.Verify.
//
// A wrapping key is a symmetric one (SYMMETRIC_DEFAULT). The data key goes to
// KMS to be encrypted and comes back from it. What it is bound to (the aad) is
// the encryption context, as its SHA-256 in hexadecimal: CloudTrail records
// encryption contexts, and names of clients have no place there.
//
// Region and credentials are found the AWS SDK's own way: environment, shared
// files, web identity, container and instance roles. The SDK also decides which
// failures are retried and how often; the caller's deadline bounds all of it,
// and attempts.go says how the time is shared out.
//
// The identity needs two permissions on each signing key, two on the wrapping
// key, and five more only where Bulla creates its keys itself:
//
//	kms:GetPublicKey, kms:Sign
//	kms:Encrypt, kms:Decrypt
//	kms:CreateKey, kms:TagResource, kms:ListKeys, kms:ListResourceTags, kms:DescribeKey
//
// docs/backends/awskms.md is the page for operators, with the policies.
package awskms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"golang.org/x/time/rate"

	"github.com/bulla-project/bulla/kms"
)

// Config says which KMS to use. The zero Config leaves everything to the
// environment, as the SDK's own tools do.
type Config struct {
	// Region of the keys, such as "eu-west-1". Default: AWS_REGION, else the
	// region of the shared configuration's profile. One of them is required.
	Region string

	// Endpoint is the URL of another endpoint than the region's public one: a
	// VPC endpoint, or an emulator. Default: AWS_ENDPOINT_URL_KMS, else the
	// region's. Wherever it comes from it must be https, except on a loopback
	// address.
	Endpoint string

	// Rate is how many signatures a second this process asks for at most, so
	// that a burst does not starve others who use the same AWS account; a
	// retried one counts again. A signature waits for its turn; one whose
	// deadline would pass is refused at once with kms.ErrThrottled. Default 0:
	// no limit. Data keys are wrapped and unwrapped a few times a day and are
	// not counted; AWS has other quotas for them.
	Rate int

	// Logger receives which key a reference was pinned to, and what the SDK
	// has to say (retries). Default: nothing is logged.
	Logger *slog.Logger
}

// Backend is the KMS of one region, as one AWS identity sees it.
type Backend struct {
	client    client
	transport *http.Transport
	region    string
	log       *slog.Logger

	calls   gate
	rate    *rate.Limiter // of signatures
	lookups *rate.Limiter // of what finds keys by their tag

	mu     sync.Mutex // guards opened
	opened string     // a key that has been opened, for Check; "" before
}

var _ kms.Backend = (*Backend)(nil)

// New returns the backend that cfg names. It reads the environment and the
// shared configuration files, and does not touch the network: whether KMS can
// be reached, and whether there are credentials, is what Check and OpenKey say.
func New(ctx context.Context, cfg Config) (*Backend, error) {
	if cfg.Rate < 0 {
		return nil, errors.New("awskms: the rate is negative: leave it at zero for no limit")
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	sdk, err := awsconfig.LoadDefaultConfig(ctx,
		awsconfig.WithRegion(cfg.Region), // "" leaves it to the environment
		awsconfig.WithLogger(sdkLogger{log}),
	)
	if err != nil {
		return nil, fmt.Errorf("awskms: read the AWS configuration: %w", err)
	}
	if sdk.Region == "" {
		return nil, errors.New("awskms: no region is configured: set it, or AWS_REGION")
	}
	transport := newTransport(sdk)
	client := awssdk.NewFromConfig(sdk, func(o *awssdk.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
		o.HTTPClient = &http.Client{
			Transport: wholeBody{transport},
			// KMS does not redirect; a signed request goes nowhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	})
	if err := checkEndpoint(aws.ToString(client.Options().BaseEndpoint)); err != nil {
		return nil, err
	}
	return &Backend{
		client:    client,
		transport: transport,
		region:    sdk.Region,
		log:       log,
		rate:      newLimiter(cfg.Rate),
		lookups:   newLimiter(lookupRate),
	}, nil
}

// Check implements kms.Backend: it asks for a public key. That is a permission
// every key needs anyway, where listing keys would need one on the whole
// account, and it costs neither side a private key operation. Before any key
// is open it asks for a key that cannot be there.
//
// What KMS answers about that key does not matter here: a key that is missing,
// disabled or denied is told apart when it is used, and does not make the
// others unavailable. Refused credentials do, and so does a clock that is off.
func (b *Backend) Check(ctx context.Context) error {
	leave, err := b.calls.enter()
	if err != nil {
		return err
	}
	defer leave()
	_, err = b.client.GetPublicKey(ctx, &awssdk.GetPublicKeyInput{KeyId: aws.String(b.keyToAsk())}, manner{}.within(ctx))
	if err == nil {
		return nil
	}
	err = classify(ctx, "GetPublicKey", err)
	for _, about := range []error{kms.ErrKeyNotFound, kms.ErrKeyDisabled, kms.ErrKeyMismatch} {
		if errors.Is(err, about) {
			return nil
		}
	}
	return err
}

// noKey is a well-formed key id that KMS has given to no key.
const noKey = "00000000-0000-0000-0000-000000000000"

func (b *Backend) keyToAsk() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opened == "" {
		return noKey
	}
	return b.opened
}

// Close implements kms.Backend. It may be called more than once.
func (b *Backend) Close() error {
	b.calls.close()
	b.transport.CloseIdleConnections()
	return nil
}
