package kmstest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

// CreatorHarness tells the suite of creating how to reach a backend.
type CreatorHarness struct {
	// Open returns a fresh backend, which is a kms.Creator. All that it
	// returns see the same keys, and the suite closes each. Required.
	Open func(t testing.TB) kms.Backend

	// Specs are keys that the backend can make. Required.
	Specs []kms.KeySpec

	// Unfit are well-formed specs that the backend cannot make.
	Unfit []kms.KeySpec

	// Inspect, if set, is shown the reference of each created key, to look at
	// it from outside: that it signs and does nothing else, and that it cannot
	// be read or taken out.
	Inspect func(t testing.TB, ref string, spec kms.KeySpec)
}

// RunCreator runs the suite of creating keys on the backend behind h.
func RunCreator(t *testing.T, h CreatorHarness) {
	t.Helper()
	if h.Open == nil || len(h.Specs) == 0 {
		t.Fatal("kmstest: a CreatorHarness needs Open and Specs")
	}
	t.Run("CreatedKeysSign", h.createdKeysSign)
	t.Run("TagsTellKeysApart", h.tagsTellKeysApart)
	t.Run("Refusals", h.refusals)
	t.Run("Closed", h.closed)
}

// backend is one that is closed when t ends, and the same as a Creator.
func (h *CreatorHarness) backend(t *testing.T) (kms.Backend, kms.Creator) {
	t.Helper()
	b := h.Open(t)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	c, ok := b.(kms.Creator)
	if !ok {
		t.Fatalf("%T is no kms.Creator", b)
	}
	return b, c
}

// tagFor is a tag of its own for each test and key, so that tests may be run
// twice on one backend.
func tagFor(t *testing.T, spec kms.KeySpec) string {
	t.Helper()
	return strings.ToLower(string(spec.Algorithm)) + "." + strings.ToLower(rand.Text())
}

// createdKeysSign: what CreateKey returns can be opened at once, here and by
// others, is what was asked for, and signs.
func (h *CreatorHarness) createdKeysSign(t *testing.T) {
	b, c := h.backend(t)
	other, finder := h.backend(t)
	for _, spec := range h.Specs {
		t.Run(string(spec.Algorithm), func(t *testing.T) {
			tag := tagFor(t, spec)
			if refs, err := c.FindKeys(t.Context(), tag); err != nil || len(refs) != 0 {
				t.Fatalf("FindKeys before = %q, %v; want nothing", refs, err)
			}
			ref, err := c.CreateKey(t.Context(), spec, tag)
			if err != nil {
				t.Fatal(err)
			}
			k, err := b.OpenKey(t.Context(), ref, spec.Algorithm)
			if err != nil {
				t.Fatalf("OpenKey(%q): %v", ref, err)
			}
			if public, ok := k.Public().(*rsa.PublicKey); ok && (public.N.BitLen() != spec.Bits() || public.E != 65537) {
				t.Errorf("RSA key of %d bits and exponent %d, want %d and 65537", public.N.BitLen(), public.E, spec.Bits())
			}
			if _, err := signAndVerify(t.Context(), k, []byte("header.payload")); err != nil {
				t.Error(err)
			}
			if refs, err := finder.FindKeys(t.Context(), tag); err != nil || !slices.Equal(refs, []string{ref}) {
				t.Errorf("another backend finds %q, %v; want %q alone", refs, err, ref)
			}
			if again, err := other.OpenKey(t.Context(), ref, spec.Algorithm); err != nil {
				t.Errorf("another backend: %v", err)
			} else if !equalKeys(k.Public(), again.Public()) {
				t.Error("another backend finds another key")
			}
			if h.Inspect != nil {
				h.Inspect(t, ref, spec)
			}
		})
	}
}

// tagsTellKeysApart: a tag finds its keys, all of them and no others.
func (h *CreatorHarness) tagsTellKeysApart(t *testing.T) {
	b, c := h.backend(t)
	spec := h.Specs[0]
	tag := tagFor(t, spec)
	var want []string
	for range 2 {
		ref, err := c.CreateKey(t.Context(), spec, tag)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, ref)
	}
	if want[0] == want[1] {
		t.Fatalf("two keys have one reference %q", want[0])
	}
	first, err := b.OpenKey(t.Context(), want[0], spec.Algorithm)
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.OpenKey(t.Context(), want[1], spec.Algorithm)
	if err != nil {
		t.Fatal(err)
	}
	if equalKeys(first.Public(), second.Public()) {
		t.Error("two references of one tag open one key")
	}
	got, err := c.FindKeys(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.FindKeys(t.Context(), tag)
	if err != nil || !slices.Equal(got, again) {
		t.Errorf("FindKeys returned %q, then %q, %v; want one order", got, again, err)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("FindKeys = %q, want %q", got, want)
	}
	for _, near := range []string{tag[:len(tag)-1], tag + "0", tag + "_", strings.ToUpper(tag), "x" + tag} {
		if refs, err := c.FindKeys(t.Context(), near); err != nil || len(refs) != 0 {
			t.Errorf("FindKeys(%q) = %q, %v; want nothing, for the tag is %q", near, refs, err, tag)
		}
	}
}

// refusals: what cannot be made, or not marked, leaves nothing behind.
func (h *CreatorHarness) refusals(t *testing.T) {
	_, c := h.backend(t)
	unfit := append([]kms.KeySpec{
		{Algorithm: "none"}, {Algorithm: kms.HS256}, {}, {Algorithm: kms.RS256, RSABits: 1024},
		{Algorithm: kms.RS256, RSABits: 2047}, {Algorithm: kms.ES256, RSABits: 2048},
	}, h.Unfit...)
	for _, spec := range unfit {
		tag := "refused." + strings.ToLower(rand.Text())
		if ref, err := c.CreateKey(t.Context(), spec, tag); err == nil {
			t.Errorf("CreateKey(%+v) made %q", spec, ref)
		} else {
			wantError(t, "CreateKey of what cannot be made", err, kms.ErrKeyMismatch)
		}
		if refs, err := c.FindKeys(t.Context(), tag); err != nil || len(refs) != 0 {
			t.Errorf("after CreateKey(%+v) was refused there is %q, %v", spec, refs, err)
		}
	}
	for _, tag := range []string{"", "with space", "with/slash", "ä", "semi;colon", "new\nline", strings.Repeat("x", 65)} {
		if ref, err := c.CreateKey(t.Context(), h.Specs[0], tag); err == nil {
			t.Errorf("CreateKey marked %q with %q", ref, tag)
		}
		if refs, err := c.FindKeys(t.Context(), tag); err == nil {
			t.Errorf("FindKeys(%q) = %q, want an error", tag, refs)
		}
	}
}

// closed: contexts that have ended, and backends that were closed.
func (h *CreatorHarness) closed(t *testing.T) {
	b, c := h.backend(t)
	tag := tagFor(t, h.Specs[0])
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if ref, err := c.CreateKey(ended, h.Specs[0], tag); !errors.Is(err, ended.Err()) {
		t.Errorf("CreateKey after its context ended = %q, %v", ref, err)
	}
	if _, err := c.FindKeys(ended, tag); !errors.Is(err, ended.Err()) {
		t.Errorf("FindKeys after its context ended: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := c.CreateKey(t.Context(), h.Specs[0], tag)
	wantError(t, "CreateKey after Close", err, kms.ErrUnavailable)
	_, err = c.FindKeys(t.Context(), tag)
	wantError(t, "FindKeys after Close", err, kms.ErrUnavailable)
}
