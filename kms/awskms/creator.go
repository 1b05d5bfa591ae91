package awskms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssdk "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"golang.org/x/sync/errgroup"

	"github.com/bulla-project/bulla/kms"
)

// tagName is the name of the tag that marks the keys that CreateKey made.
const tagName = "bulla-tag"

// Limits of looking for keys by their tag. KMS has no search: the account's
// keys are listed, and each is asked for its tags.
const (
	// lookupRate is a tenth of what an account may ask for tags a second
	// unless its quota was raised, so that others do not notice.
	lookupRate = 200

	// lookupParallel hides the time on the way to AWS.
	lookupParallel = 8

	pageOfKeys = 1000 // the most that ListKeys takes
	pageOfTags = 50   // as many as a key can have
)

// Waiting for a new key: KMS is eventually consistent, and says of a key that
// it has just made that there is none, or that its tags allow nothing yet. AWS
// speaks of seconds mostly, and of five minutes at most.
const (
	// createLimit is how long CreateKey itself is waited for. It is long, since
	// an answer that is lost leaves a key that has to be looked for.
	createLimit = time.Minute

	settleLimit = 5 * time.Minute
	firstLook   = 100 * time.Millisecond
	lastLook    = 2 * time.Second
)

var _ kms.Creator = (*Backend)(nil)

// keySpecs are the key specs of KMS for the algorithms of our non-RSA keys.
var keySpecs = map[kms.Algorithm]types.KeySpec{
	kms.ES256:   types.KeySpecEccNistP256,
	kms.ES384:   types.KeySpecEccNistP384,
	kms.ES512:   types.KeySpecEccNistP521,
	kms.EdDSA:   types.KeySpecEccNistEdwards25519,
	kms.Ed25519: types.KeySpecEccNistEdwards25519,
}

// keySpecOf is the key spec of KMS for spec. Errors wrap kms.ErrKeyMismatch.
func keySpecOf(spec kms.KeySpec) (types.KeySpec, error) {
	if err := spec.Check(); err != nil {
		return "", err
	}
	if spec.Algorithm.KeyType() == kms.RSA {
		return types.KeySpec(fmt.Sprintf("RSA_%d", spec.Bits())), nil
	}
	if s, ok := keySpecs[spec.Algorithm]; ok {
		return s, nil
	}
	return "", fmt.Errorf("%w: AWS KMS has no key for %s", kms.ErrKeyMismatch, spec.Algorithm)
}

// CreateKey implements kms.Creator, with one CreateKey: a single-Region key
// with key material of KMS's own, for signing only, under the account's default
// key policy. The reference is the key's ARN.
//
// KMS offers no way to ask for the same key twice, so a request whose answer was
// lost is not repeated: it may have made a key. FindKeys tells.
//
// CreateKey returns when the key can be used, which may take KMS some seconds.
// If ctx ends before, the key is there all the same.
func (b *Backend) CreateKey(ctx context.Context, spec kms.KeySpec, tag string) (ref string, err error) {
	leave, err := b.calls.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := kms.CheckTag(tag); err != nil {
		return "", err
	}
	keySpec, err := keySpecOf(spec)
	if err != nil {
		return "", err
	}
	asking, cancel := context.WithTimeout(ctx, createLimit)
	defer cancel()
	out, err := b.client.CreateKey(asking, &awssdk.CreateKeyInput{
		KeySpec:     keySpec,
		KeyUsage:    types.KeyUsageTypeSignVerify,
		Description: aws.String(fmt.Sprintf("Bulla signing key for %s, %s %s", spec.Algorithm, tagName, tag)),
		Tags:        []types.Tag{{TagKey: aws.String(tagName), TagValue: aws.String(tag)}},
	}, manner{once: true}.within(asking))
	if err != nil {
		said, unsure := classify(ctx, "CreateKey", err), ""
		if !notSent(err) && (errors.Is(said, kms.ErrUnavailable) || contextEnd(asking) != nil) {
			unsure = " (which may have been made all the same)"
		}
		return "", fmt.Errorf("create a %s key, tag %q%s: %w", keySpec, tag, unsure, said)
	}
	if out.KeyMetadata == nil || aws.ToString(out.KeyMetadata.Arn) == "" {
		return "", fmt.Errorf("%w: create a %s key, tag %q: AWS KMS does not say which key it has made: look for the tag", kms.ErrUnavailable, keySpec, tag)
	}
	id := *out.KeyMetadata.Arn
	b.log.LogAttrs(ctx, slog.LevelInfo, "AWS KMS key created",
		slog.String("key", id), slog.String("algorithm", string(spec.Algorithm)), slog.String("tag", tag))
	if err := b.settle(ctx, id); err != nil {
		return "", fmt.Errorf("key %q was created and cannot be used yet: %w", id, err)
	}
	return refPrefix + id, nil
}

// settle returns when the key id shows its public half. A key that stays
// disabled or denied is what the error says; all else that KMS may answer
// meanwhile passes.
func (b *Backend) settle(ctx context.Context, id string) error {
	bounded, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	said := errors.New("nothing")
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		_, err := b.client.GetPublicKey(bounded, &awssdk.GetPublicKeyInput{KeyId: aws.String(id)}, manner{}.within(bounded))
		if err == nil {
			return nil
		}
		err = classify(bounded, "GetPublicKey", err)
		if errors.Is(err, kms.ErrKeyMismatch) || errors.Is(err, kms.ErrReference) {
			return err
		}
		if contextEnd(bounded) == nil {
			said = err // and not that it was cut short
		}
		select {
		case <-time.After(pause):
			continue
		case <-bounded.Done():
		}
		switch {
		case errors.Is(said, kms.ErrKeyDisabled):
			return said
		case ctx.Err() != nil:
			return fmt.Errorf("%w; AWS KMS said last: %s", ctx.Err(), said.Error())
		default:
			return fmt.Errorf("%w: after %v AWS KMS says: %s", kms.ErrUnavailable, settleLimit, said.Error())
		}
	}
}

// FindKeys implements kms.Creator. It asks for the tags of every key of the
// account and Region, at most lookupRate a second: an account with 2000 keys
// takes ten seconds. Keys that are disabled or about to be deleted are left
// out.
//
// Keys whose tags this identity may not read are passed over, if they are AWS's
// own or do not even let it see what they are: none of them is one that it
// made. If that is so of all keys, or of one that is the account's own and lets
// itself be seen, a permission is missing and a key could be overlooked; then
// the answer is kms.ErrKeyDisabled.
//
// A key that was made a moment ago may not be listed yet.
func (b *Backend) FindKeys(ctx context.Context, tag string) (refs []string, err error) {
	leave, err := b.calls.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := kms.CheckTag(tag); err != nil {
		return nil, err
	}
	s := search{backend: b, tag: tag}
	if err := s.run(ctx); err != nil {
		return nil, fmt.Errorf("look for AWS KMS keys with tag %q: %w", tag, err)
	}
	slices.Sort(s.found)
	return s.found, nil
}

// search is one run of FindKeys.
type search struct {
	backend *Backend
	tag     string

	mu     sync.Mutex // guards what follows
	found  []string   // references
	seen   int        // keys that told anything of themselves
	hidden int        // keys that did not
}

// run goes over the account's keys.
func (s *search) run(ctx context.Context) error {
	group, inGroup := errgroup.WithContext(ctx)
	group.SetLimit(lookupParallel)
	list := func() error {
		for in := (&awssdk.ListKeysInput{Limit: aws.Int32(pageOfKeys)}); ; {
			out, err := s.backend.client.ListKeys(inGroup, in, s.manner().within(inGroup))
			if err != nil {
				return classify(inGroup, "ListKeys", err)
			}
			for _, k := range out.Keys {
				group.Go(func() error { return s.look(inGroup, aws.ToString(k.KeyArn)) })
			}
			if !out.Truncated || aws.ToString(out.NextMarker) == "" {
				return nil
			}
			in.Marker = out.NextMarker
		}
	}
	listed := list()
	// An error of group ended its context, and thereby perhaps the list.
	if err := group.Wait(); err != nil {
		return err
	}
	if listed != nil {
		return listed
	}
	if s.hidden > 0 && s.seen == 0 {
		return fmt.Errorf("%w: the AWS identity may look at none of the account's %d keys: allow kms:ListResourceTags and kms:DescribeKey on all of them in its IAM policy", kms.ErrKeyDisabled, s.hidden)
	}
	return nil
}

func (s *search) manner() manner { return manner{turns: s.backend.lookups} }

// look sees whether the key id is one of those that are searched for.
func (s *search) look(ctx context.Context, id string) error {
	tagged, err := s.tagged(ctx, id)
	switch {
	case errors.Is(err, kms.ErrKeyNotFound):
		return nil // deleted since it was listed
	case errors.Is(err, kms.ErrKeyDisabled):
		return s.passOver(ctx, id, err)
	case err != nil:
		return err
	}
	usable := false
	if tagged {
		k, err := s.describe(ctx, id)
		if err != nil && !errors.Is(err, kms.ErrKeyNotFound) {
			return err
		}
		usable = err == nil && signs(k)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen++
	if usable {
		s.found = append(s.found, refPrefix+id)
	}
	return nil
}

// tagged reports whether the key id has the tag.
func (s *search) tagged(ctx context.Context, id string) (bool, error) {
	for in := (&awssdk.ListResourceTagsInput{KeyId: aws.String(id), Limit: aws.Int32(pageOfTags)}); ; {
		out, err := s.backend.client.ListResourceTags(ctx, in, s.manner().within(ctx))
		if err != nil {
			return false, fmt.Errorf("key %q: %w", id, classify(ctx, "ListResourceTags", err))
		}
		for _, t := range out.Tags {
			if aws.ToString(t.TagKey) == tagName && aws.ToString(t.TagValue) == s.tag {
				return true, nil
			}
		}
		if !out.Truncated || aws.ToString(out.NextMarker) == "" {
			return false, nil
		}
		in.Marker = out.NextMarker
	}
}

// passOver decides about a key whose tags may not be read, which is what
// refused says.
func (s *search) passOver(ctx context.Context, id string, refused error) error {
	k, err := s.describe(ctx, id)
	switch {
	case err == nil && k.KeyManager != types.KeyManagerTypeAws:
		return refused
	case err != nil && !errors.Is(err, kms.ErrKeyDisabled) && !errors.Is(err, kms.ErrKeyNotFound):
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.seen++
	} else {
		s.hidden++
	}
	return nil
}

func (s *search) describe(ctx context.Context, id string) (*types.KeyMetadata, error) {
	out, err := s.backend.client.DescribeKey(ctx, &awssdk.DescribeKeyInput{KeyId: aws.String(id)}, s.manner().within(ctx))
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", id, classify(ctx, "DescribeKey", err))
	}
	if out.KeyMetadata == nil {
		return nil, fmt.Errorf("%w: key %q: AWS KMS describes nothing", kms.ErrUnavailable, id)
	}
	return out.KeyMetadata, nil
}

// signs reports whether k is a signing key that is not disabled or on its way
// out, and whose key material KMS has made: of what was imported, somebody may
// have kept a copy.
func signs(k *types.KeyMetadata) bool {
	off := k.KeyState == types.KeyStateDisabled || strings.HasPrefix(string(k.KeyState), "Pending")
	return k.KeyUsage == types.KeyUsageTypeSignVerify && k.Origin == types.OriginTypeAwsKms && !off
}
