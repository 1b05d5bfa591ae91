// Package kmstest is the conformance suite of backends: what package kms
// promises, as tests that every implementation of kms.Backend passes, and of
// kms.WrapperOpener.
//
// A backend's own tests call Run and RunWrapper with a harness that says how to
// reach keys that already exist. The suites only open keys, sign and wrap; how
// keys come to be, what exactly a wrapped key is made of, and faults that only
// one backend can have, are for that backend's own tests.
//
// No signature is believed because our own code says so: beside kms.Verify,
// each one is put into a compact JWS that go-jose has to accept. Where a
// promise is about memory (the message is neither kept nor changed, keys may be
// used by many goroutines), the suite arranges the accesses so that the race
// detector sees a violation: run it with -race too.
package kmstest

import (
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// Defaults of a Harness.
const (
	defaultMaxMessage = 64 << 10
	defaultSignatures = 256
	defaultPatience   = 10 * time.Second
)

// Harness tells the suite how to reach a backend.
type Harness struct {
	// Open returns a fresh backend over keys that exist already. Every call
	// gives one of its own, all of them see the same keys, and the suite
	// closes each. Required.
	Open func(t testing.TB) kms.Backend

	// Keys names, for each algorithm that the backend can sign with, a key of
	// the right type. Algorithms may share a key. Required; what is not in it
	// is expected to be refused for every key.
	Keys map[kms.Algorithm]string

	// Missing is a well-formed reference that names no key. Required.
	Missing string

	// Nonsense holds references that the backend must refuse as unreadable,
	// beside those that the suite tries on every backend.
	Nonsense []string

	// MaxMessage is the longest message in bytes that the backend signs.
	// Default: 65536.
	MaxMessage int

	// Signatures is how many signatures are made where one is not enough: by
	// each EC key, and by the concurrent signers together. About one EC
	// signature in 128 has a leading zero that a backend could lose, so a few
	// hundred are needed. Default: 256.
	Signatures int

	// Patience is how long the suite waits for what ought to be prompt before
	// it calls it hanging, and for a backend to find back after an outage.
	// Default: 10 s.
	Patience time.Duration

	// Down, if set, takes the place where the keys live out of reach of every
	// backend of this harness, and returns a function that brings it back.
	Down func(t testing.TB) (up func())

	// Stall, if set, makes every call into the place where the keys live hang
	// until the returned function is called.
	Stall func(t testing.TB) (release func())
}

// Run runs the suite on the backend behind h.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if h.Open == nil || len(h.Keys) == 0 || h.Missing == "" {
		t.Fatal("kmstest: a Harness needs Open, Keys and Missing")
	}
	for alg := range h.Keys {
		if !alg.Known() {
			t.Fatalf("kmstest: Harness.Keys has the unknown algorithm %q", alg)
		}
	}
	if h.MaxMessage == 0 {
		h.MaxMessage = defaultMaxMessage
	}
	if h.Signatures == 0 {
		h.Signatures = defaultSignatures
	}
	if h.Patience == 0 {
		h.Patience = defaultPatience
	}

	t.Run("Signatures", h.signatures)
	t.Run("Messages", h.messages)
	t.Run("Concurrency", h.concurrency)
	t.Run("References", h.references)
	t.Run("Contexts", h.contexts)
	t.Run("Check", h.check)
	t.Run("Close", h.close)
	t.Run("CloseWhileSigning", h.closeWhileSigning)
	if h.Stall != nil {
		t.Run("Stall", h.stall)
		t.Run("CloseWaits", h.closeWaits)
	}
	if h.Down != nil {
		t.Run("Outage", h.outage)
	}
}

// algorithms returns the algorithms of h.Keys in the order of kms.Algorithms.
func (h *Harness) algorithms() []kms.Algorithm {
	return slices.DeleteFunc(kms.Algorithms(), func(a kms.Algorithm) bool {
		_, ok := h.Keys[a]
		return !ok
	})
}

// open returns a backend that is closed when t ends. Tests that close the
// backend themselves may: Close may be called more than once.
func (h *Harness) open(t *testing.T) kms.Backend {
	t.Helper()
	b := h.Open(t)
	if b == nil {
		t.Fatal("Harness.Open returned nil")
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

// key opens the harness's key for alg.
func (h *Harness) key(t *testing.T, b kms.Backend, alg kms.Algorithm) kms.Key {
	t.Helper()
	k, err := b.OpenKey(t.Context(), h.Keys[alg], alg)
	if err != nil {
		t.Fatalf("OpenKey(%q, %s): %v", h.Keys[alg], alg, err)
	}
	if k == nil {
		t.Fatalf("OpenKey(%q, %s) returned no key and no error", h.Keys[alg], alg)
	}
	return k
}
