//go:build linux && cgo

package main

import (
	"context"
	"fmt"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11"
)

// Goals of the throughput at 16 callers of a module in a process of its own,
// relative to the same in this one.
var goalIsolated = map[kms.Algorithm]float64{kms.ES256: 0.75, kms.RS256: 0.95}

// benchCallers sets a module that runs in a process of its own against one in
// this process, for more and more callers; and has many more callers than there
// are sessions wait for one.
func (b *bench) benchCallers() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	config := pkcs11.Config{Module: b.token.Module, Token: b.token.Label, PINFile: b.token.PINFile}
	inside, err := pkcs11.New(ctx, config)
	if err != nil {
		return err
	}
	defer inside.Close() //nolint:errcheck // the process ends soon
	config.Worker = []string{harness.Binary(b.t), "pkcs11-worker"}
	isolated, err := pkcs11.New(ctx, config)
	if err != nil {
		return err
	}
	defer isolated.Close() //nolint:errcheck // likewise

	b.report.section("PKCS#11: signatures a second in a process of its own (isolation: process), against the same in one process")
	for _, alg := range signingAlgorithms {
		here, err := signing(ctx, inside, alg)
		if err != nil {
			return err
		}
		there, err := signing(ctx, isolated, alg)
		if err != nil {
			return err
		}
		for _, callers := range []int{1, 2, 4, 16} {
			ours := &contestant{name: "isolated", callers: callers, caller: there}
			floor := &contestant{name: "in one process", callers: callers, caller: here}
			if err := interleave(b.rounds, b.spell, ours, floor); err != nil {
				return err
			}
			goal := 0.0
			if callers == 16 {
				goal = goalIsolated[alg]
			}
			b.report.addRate(newRate(fmt.Sprintf("%s, %d callers", alg, callers), goal, ours, floor))
		}
	}

	b.report.section("PKCS#11: the wait of callers when there are four for each session")
	for _, alg := range signingAlgorithms {
		here, err := signing(ctx, inside, alg)
		if err != nil {
			return err
		}
		for _, callers := range []int{sessions(), 4 * sessions()} {
			c := &contestant{name: "Key.Sign", callers: callers, caller: here}
			if err := interleave(b.rounds, b.spell, c); err != nil {
				return err
			}
			b.report.addLatency(LatencyRow{
				Name: fmt.Sprintf("%s, %d sessions", alg, sessions()), InFlight: callers,
				P50: c.latency(0.5), P99: c.latency(0.99), PerSecond: c.perSecond(), Micros: c.micros(),
			})
		}
	}
	return nil
}

// signing is a caller of a backend's key for alg.
func signing(ctx context.Context, backend *pkcs11.Backend, alg kms.Algorithm) (func() (func() error, error), error) {
	key, err := backend.OpenKey(ctx, "object="+harness.KeyLabel(alg), alg)
	if err != nil {
		return nil, err
	}
	message := make([]byte, 900)
	return always(func() error { _, err := key.Sign(ctx, message); return err }), nil
}
