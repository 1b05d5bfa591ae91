package kmstest

import (
	"fmt"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

// nonsense is unreadable in the notation of every backend.
var nonsense = []string{"", " ", "=", "nonsense", "=value", "no-such-attribute=value", "\x00", "\xff=\xff"}

// references: a reference names a key, or the error says which of the ways
// there are in which it does not.
func (h *Harness) references(t *testing.T) {
	b := h.open(t)
	supported := h.algorithms()

	t.Run("NoSuchKey", func(t *testing.T) {
		for _, alg := range supported {
			k, err := b.OpenKey(t.Context(), h.Missing, alg)
			wantNoKey(t, k, fmt.Sprintf("OpenKey(%q, %s)", h.Missing, alg), err, kms.ErrKeyNotFound)
		}
	})
	t.Run("Nonsense", func(t *testing.T) {
		for _, ref := range append(append([]string(nil), nonsense...), h.Nonsense...) {
			k, err := b.OpenKey(t.Context(), ref, supported[0])
			wantNoKey(t, k, fmt.Sprintf("OpenKey(%q)", ref), err, kms.ErrReference)
		}
	})
	t.Run("KeyOfAnotherType", func(t *testing.T) {
		for _, of := range supported {
			for _, alg := range kms.Algorithms() {
				if alg.KeyType() == of.KeyType() && alg.Curve() == of.Curve() {
					continue
				}
				k, err := b.OpenKey(t.Context(), h.Keys[of], alg)
				wantNoKey(t, k, fmt.Sprintf("OpenKey(the key for %s, %s)", of, alg), err, kms.ErrKeyMismatch)
			}
		}
	})
	t.Run("UnknownAlgorithm", func(t *testing.T) {
		for _, alg := range []kms.Algorithm{"", "none", "HS256", "ES256K", "es256"} {
			k, err := b.OpenKey(t.Context(), h.Keys[supported[0]], alg)
			wantNoKey(t, k, fmt.Sprintf("OpenKey(…, %q)", alg), err, kms.ErrKeyMismatch)
		}
	})

	// After all these refusals the backend still does its work.
	if _, err := signAndVerify(t.Context(), h.key(t, b, supported[0]), []byte("after.refusals")); err != nil {
		t.Error(err)
	}
}

// wantNoKey is wantError, and that there is no key beside the error.
func wantNoKey(t testing.TB, k kms.Key, what string, err, want error) {
	t.Helper()
	if k != nil {
		t.Errorf("%s returned a key", what)
	}
	wantError(t, what, err, want)
}
