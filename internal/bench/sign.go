//go:build linux && cgo

package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/internal/bench/measure"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11"
)

// signingAlgorithms are those that are measured on the token.
var signingAlgorithms = []kms.Algorithm{kms.ES256, kms.RS256}

// sessions is how many sessions of the token sign at once: what the PKCS#11
// backend takes by default.
func sessions() int { return 2 * runtime.GOMAXPROCS(0) }

// benchSignature sets a signature by the PKCS#11 backend, not verified, against
// a loop of C_SignInit and C_Sign, in one crossing into C, on a session of the
// same token. The backend is called as the service calls it, with a context that
// can end, for which it changes to a goroutine of its own; and beside it with
// one that cannot.
func (b *bench) benchSignature() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	backend, err := pkcs11.New(ctx, pkcs11.Config{Module: b.token.Module, Token: b.token.Label, PINFile: b.token.PINFile})
	if err != nil {
		return err
	}
	defer backend.Close() //nolint:errcheck // the process ends soon
	if err := backend.Check(ctx); err != nil {
		return err
	}
	b.report.section("PKCS#11: a message of 900 bytes hashed and signed, against C_SignInit and C_Sign on a session of the same token")
	message := make([]byte, 900)
	for _, alg := range signingAlgorithms {
		key, err := backend.OpenKey(ctx, "object="+harness.KeyLabel(alg), alg)
		if err != nil {
			return err
		}
		// The module is initialized and the user logged in for the whole
		// process: the sessions beside the backend's are too.
		raw, err := openRaw(b.token, alg)
		if err != nil {
			return err
		}
		counts := []int{1, sessions()}
		if b.all {
			counts = append(counts, 16)
		}
		for _, callers := range counts {
			signWith := func(ctx context.Context) func() (func() error, error) {
				return always(func() error { _, err := key.Sign(ctx, message); return err })
			}
			ours := &contestant{name: "Key.Sign", callers: callers, caller: signWith(ctx)}
			patient := &contestant{name: "Key.Sign without end", callers: callers, caller: signWith(context.Background())}
			floor := &contestant{name: "C_Sign", callers: callers, caller: func() (func() error, error) {
				s, err := raw.session()
				return func() error { _, err := s.sign(message); return err }, err
			}}
			if err := interleave(b.rounds, b.spell, ours, floor, patient); err != nil {
				return err
			}
			row := newRow(fmt.Sprintf("%s, %d at once", alg, callers), goalSignature, ours, floor)
			row.Peer, row.PeerMicros, row.PeerRatio = "no deadline", patient.micros(), measure.Median(patient.ratios(floor))
			b.report.add(row)
		}
	}
	return nil
}
