package kmstest

import (
	"bytes"
	"crypto"
	"fmt"
	"sync"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

// signers is how many goroutines sign at once.
const signers = 16

// equalKeys reports whether two public keys are the same.
func equalKeys(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// signatures: every algorithm signs in JWS form, with a public key that fits,
// stays, and is the same for everyone who opens the key.
func (h *Harness) signatures(t *testing.T) {
	b, other := h.open(t), h.open(t)
	for _, alg := range h.algorithms() {
		t.Run(string(alg), func(t *testing.T) {
			k := h.key(t, b, alg)
			if got := k.Algorithm(); got != alg {
				t.Fatalf("Algorithm() = %q, want %q", got, alg)
			}
			if err := alg.CheckPublic(k.Public()); err != nil {
				t.Fatalf("Public() does not fit: %v", err)
			}
			if err := joseAccepts(t.Context(), k, []byte(`{"sub":"alice"}`)); err != nil {
				t.Error(err)
			}

			n := 8
			if alg.KeyType() == kms.EC {
				n = h.Signatures
			}
			if alg == kms.ES512 {
				n = min(n, 32) // 521 bits in 66 bytes: every other r has a leading zero
			}
			for i := range n {
				if _, err := signAndVerify(t.Context(), k, fmt.Appendf(nil, "header.payload-%d", i)); err != nil {
					t.Fatalf("signature %d: %v", i, err)
				}
			}

			if again := h.key(t, other, alg); !equalKeys(k.Public(), again.Public()) {
				t.Error("another backend gives the same key another public half")
			}
			if again := h.key(t, b, alg); !equalKeys(k.Public(), again.Public()) {
				t.Error("opened twice, the key has two public halves")
			}
		})
	}
}

// messages: any length is signed, and the buffer stays the caller's.
func (h *Harness) messages(t *testing.T) {
	b := h.open(t)
	for _, alg := range h.algorithms() {
		t.Run(string(alg), func(t *testing.T) {
			k := h.key(t, b, alg)
			for _, message := range [][]byte{
				nil, {}, {0}, bytes.Repeat([]byte{0xff}, 127), make([]byte, min(4096, h.MaxMessage)),
				bytes.Repeat([]byte("x"), h.MaxMessage),
				[]byte(kms.ProbePrefix + "0123456789"),
			} {
				if _, err := signAndVerify(t.Context(), k, message); err != nil {
					t.Errorf("message of %d bytes: %v", len(message), err)
				}
			}

			t.Run("BuffersAreTheCallers", func(t *testing.T) {
				message := []byte("header.payload")
				buf := bytes.Clone(message)
				first, err := k.Sign(t.Context(), buf)
				if err != nil {
					t.Fatal(err)
				}
				kept := bytes.Clone(first)
				clear(buf) // a backend that still reads it is caught by -race, or by:
				if err := verify(k, message, first); err != nil {
					t.Errorf("after the message's buffer was cleared: %v", err)
				}
				if _, err := signAndVerify(t.Context(), k, []byte("another.message")); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(first, kept) {
					t.Error("a later signature overwrote the one returned before")
				}
			})
		})
	}
}

// concurrency: goroutines share keys and the backend without getting each
// other's signatures.
func (h *Harness) concurrency(t *testing.T) {
	b := h.open(t)
	each := max(4, h.Signatures/signers)
	var keys []kms.Key
	for _, alg := range h.algorithms() {
		keys = append(keys, h.key(t, b, alg))
	}
	var wg sync.WaitGroup
	for g := range signers {
		wg.Go(func() {
			for i := range each {
				k := keys[(g+i)%len(keys)]
				if _, err := signAndVerify(t.Context(), k, fmt.Appendf(nil, "signer-%d.message-%d", g, i)); err != nil {
					t.Errorf("signer %d, signature %d, %s: %v", g, i, k.Algorithm(), err)
					return
				}
			}
		})
	}
	// Keys are opened while others sign: that is what happens at start-up and
	// after a change of keys.
	for _, alg := range h.algorithms() {
		wg.Go(func() {
			k, err := b.OpenKey(t.Context(), h.Keys[alg], alg)
			if err != nil {
				t.Errorf("OpenKey(%q, %s) while others sign: %v", h.Keys[alg], alg, err)
				return
			}
			if _, err := signAndVerify(t.Context(), k, []byte("just.opened")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
