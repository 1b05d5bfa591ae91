package local

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/kms"
)

var _ kms.Creator = (*Backend)(nil)

// tagEnd stands between the tag and the random part of a created key's name,
// so that two keys of one tag have names of their own.
const tagEnd = "_"

// randomPart is how many characters of randomness follow.
const randomPart = 8

// CreateKey implements kms.Creator. The key's name in the file is its tag and
// something random. Bulla reads the file only, so a set that is open elsewhere
// sees the key at once.
func (b *Backend) CreateKey(ctx context.Context, spec kms.KeySpec, tag string) (ref string, err error) {
	leave, err := b.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	if err := kms.CheckTag(tag); err != nil {
		return "", err
	}
	if err := spec.Check(); err != nil {
		return "", err
	}
	ref, err = createKey(b.path, spec, tag+tagEnd+rand.Text()[:randomPart])
	if err != nil {
		return "", fmt.Errorf("%w: %w", kms.ErrUnavailable, err)
	}
	return ref, nil
}

// FindKeys implements kms.Creator.
func (b *Backend) FindKeys(ctx context.Context, tag string) (refs []string, err error) {
	leave, err := b.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := kms.CheckTag(tag); err != nil {
		return nil, err
	}
	set, err := readSet(b.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kms.ErrUnavailable, err)
	}
	for name, jwk := range set.keys {
		if suffix, ok := strings.CutPrefix(name, tag+tagEnd); !ok || len(suffix) != randomPart || strings.Contains(suffix, tagEnd) {
			continue
		}
		if _, signing := signerOf(jwk); signing {
			refs = append(refs, refPrefix+name)
		}
	}
	slices.Sort(refs)
	return refs, nil
}
