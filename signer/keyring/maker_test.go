package keyring

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// maker is an hsm that makes keys (kms.Creator), and that can fail at it as real
// ones do.
type maker struct {
	*hsm
	t testing.TB

	// Guarded by hsm.mu.
	tags    map[string]string // of each created ref
	specs   []kms.KeySpec     // what was asked for
	refuse  error             // CreateKey makes nothing
	silent  error             // CreateKey makes the key and answers this
	slow    time.Duration     // CreateKey makes the key after this, whatever becomes of its caller
	finds   int
	findErr error
}

func newMaker(t testing.TB, h *hsm) *maker { return &maker{hsm: h, t: t, tags: map[string]string{}} }

func (m *maker) CreateKey(ctx context.Context, spec kms.KeySpec, tag string) (string, error) {
	if err := kms.CheckTag(tag); err != nil {
		return "", err
	}
	if _, _, err := m.call(ctx, "a"); err != nil {
		return "", err
	}
	m.mu.Lock()
	m.specs = append(m.specs, spec)
	refuse, silent, slow := m.refuse, m.silent, m.slow
	m.mu.Unlock()
	if refuse != nil {
		return "", refuse
	}
	if slow > 0 {
		done := make(chan string, 1)
		go func() {
			time.Sleep(slow)
			done <- m.add(spec.Algorithm, tag)
		}()
		select {
		case ref := <-done:
			return ref, silent
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return m.add(spec.Algorithm, tag), silent
}

// add makes a key, as somebody else would.
func (m *maker) add(alg kms.Algorithm, tag string) string {
	key := newPrivate(m.t, alg)
	m.mu.Lock()
	defer m.mu.Unlock()
	ref := fmt.Sprintf("made-%d", len(m.tags))
	m.keys[ref], m.tags[ref] = key, tag
	return ref
}

func (m *maker) FindKeys(ctx context.Context, tag string) ([]string, error) {
	if err := kms.CheckTag(tag); err != nil {
		return nil, err
	}
	if _, _, err := m.call(ctx, "a"); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finds++
	var refs []string
	for ref, of := range m.tags {
		if of == tag {
			refs = append(refs, ref)
		}
	}
	slices.Sort(refs)
	return refs, m.findErr
}

// made are the references of all created keys, in their order.
func (m *maker) made() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.tags))
}
