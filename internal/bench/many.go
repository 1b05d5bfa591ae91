//go:build linux && cgo

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/internal/bench/measure"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// batchSize is how many tokens a batch asks for, and how many are in flight on a
// stream.
const batchSize = 32

// benchManyAlone is benchMany with a service of its own.
func (b *bench) benchManyAlone() error {
	s, err := b.startService()
	if err != nil {
		return err
	}
	return b.benchMany(s)
}

// benchMany sets batches and streams against the library: the packages that make
// a token, called in one process and with nothing around. A single call stands
// beside them.
func (b *bench) benchMany(s *subject) error {
	b.report.section(fmt.Sprintf("Many tokens: batches of %d, and %d in flight on a stream, over mTLS,\n"+
		"against the library: a token prepared, signed, verified and encrypted in one process, with nothing around", batchSize, batchSize))
	code, _, jwks := s.service.Get(b.t, s.service.HTTP, "/jwks/"+harness.Issuer)
	if code != http.StatusOK {
		return fmt.Errorf("the issuer's JWKS: HTTP status %d", code)
	}
	library, err := newMaker(&makeConfig{Token: *b.token, Signers: json.RawMessage(jwks), Client: s.key.PublicJWK()})
	if err != nil {
		return err
	}
	for _, alg := range signingAlgorithms {
		if err := b.manyRows(s, library, alg); err != nil {
			return fmt.Errorf("many, %s: %w", alg, err)
		}
	}
	return nil
}

func (b *bench) manyRows(s *subject, library *maker, alg kms.Algorithm) error {
	pids := []int{s.service.PID(b.t)}
	stream := s.client.NewStream(client.StreamConfig{InFlight: batchSize})
	defer stream.Close() //nolint:errcheck // it has none
	// As many at once as the service makes of a batch.
	floor := &contestant{name: "library", callers: inFlight, caller: always(func() error {
		_, err := library.token(context.Background(), request(alg))
		return err
	})}
	single := &contestant{name: "single", callers: inFlight, caller: calls(s.client, alg), pids: pids}
	batch := &contestant{name: "batch", callers: 2, many: batchSize, caller: batches(s.client, alg), pids: pids}
	streamed := &contestant{name: "stream", callers: batchSize, pids: pids, caller: func() (func() error, error) {
		req := request(alg)
		return func() error {
			_, err := stream.SignAndEncrypt(context.Background(), req)
			return err
		}, nil
	}}
	if err := interleave(b.rounds, b.spell*2, batch, streamed, single, floor); err != nil {
		return err
	}
	for _, ours := range []*contestant{batch, streamed} {
		row := newRow(fmt.Sprintf("%s, %s", alg, ours.name), goalService, ours, floor)
		row.Peer, row.PeerMicros, row.PeerRatio = "single", single.micros(), measure.Median(single.ratios(floor))
		b.report.add(row)
	}
	return nil
}

// batches makes callers that ask for batches of tokens.
func batches(c *client.Client, alg kms.Algorithm) func() (func() error, error) {
	return func() (func() error, error) {
		req := &bullav1.BatchSignAndEncryptRequest{}
		for range batchSize {
			req.Items = append(req.Items, request(alg))
		}
		return func() error {
			res, err := c.Tokens.BatchSignAndEncrypt(context.Background(), req)
			if err != nil {
				return err
			}
			if len(res.GetResults()) != batchSize {
				return errors.New("the batch is not answered whole")
			}
			for _, r := range res.GetResults() {
				if r.GetReply().GetToken() == "" {
					return status.ErrorProto(r.GetStatus())
				}
			}
			return nil
		}, nil
	}
}
