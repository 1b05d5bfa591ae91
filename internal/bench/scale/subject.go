//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// place is where a population lies.
type place struct {
	engine string
	config harness.M // of the service's store
	open   func(ctx context.Context) (store, error)
}

// subject is a service on a population, which may be stopped.
type subject struct {
	*place
	clients *population
	service *harness.Service
	client  *client.Client // while the service runs
	pid     int            // likewise

	// samples are what was measured, by what it is, one or more a round.
	samples map[metric][]float64
}

// newSubject makes a service on a place. edit, if not nil, has the last word on
// its configuration.
func (b *bench) newSubject(p *place, clients *population, edit func(harness.M)) *subject {
	return &subject{
		place: p, clients: clients, samples: make(map[metric][]float64),
		service: harness.New(b.t, harness.Config{
			Plaintext: true,
			Wrapping:  b.local.Wrapping(),
			Issuers: []harness.M{{
				"name": harness.Issuer, "iss": harness.IssuerURL,
				"signing_keys": b.local.SigningKeys(kms.ES256),
			}},
			Edit: func(tree harness.M) {
				tree["backends"] = b.local.Backends()
				tree["store"] = p.config
				if edit != nil {
					edit(tree)
				}
			},
		}),
	}
}

func (s *subject) add(m metric, value float64) { s.samples[m] = append(s.samples[m], value) }

// startLimit is how long a start may take.
const startLimit = time.Minute

// start starts the service. It returns how long it took from the exec until the
// listener for callers took connections, and until the first token was there,
// for the client of a rank.
func (s *subject) start(b *bench, rank int) (listening, token time.Duration, err error) {
	began := time.Now()
	s.service.Run(b.t)
	s.pid = s.service.PID(b.t)
	for {
		conn, err := net.Dial("tcp", s.service.GRPC)
		if err == nil {
			listening = time.Since(began)
			_ = conn.Close() // nothing was sent
			break
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) > startLimit {
			return 0, 0, fmt.Errorf("the service does not listen: %w\n%s", err, s.service.Log())
		}
		time.Sleep(500 * time.Microsecond)
	}
	if s.client, err = client.Dial(client.Config{Address: s.service.GRPC, Plaintext: true}); err != nil {
		return 0, 0, err
	}
	for {
		err := s.issue(b.ctx, rank)
		if err == nil {
			return listening, time.Since(began), nil
		}
		// Its keys are opened, and its store may be connected to, meanwhile.
		if status.Code(err) != codes.Unavailable || time.Since(began) > startLimit {
			return 0, 0, fmt.Errorf("the first token: %w\n%s", err, s.service.Log())
		}
		time.Sleep(time.Millisecond)
	}
}

// stop ends the service.
func (s *subject) stop(b *bench) error {
	if s.client == nil {
		return nil
	}
	err := s.client.Close()
	s.client = nil
	if code := s.service.Terminate(b.t); code != 0 {
		err = errors.Join(err, fmt.Errorf("the service ended with %d\n%s", code, s.service.Log()))
	}
	return err
}

// issue asks for a token for the client of a rank.
func (s *subject) issue(ctx context.Context, rank int) error {
	_, err := s.client.Tokens.SignAndEncrypt(ctx, request(rank))
	return err
}

func request(rank int) *bullav1.SignAndEncryptRequest {
	return &bullav1.SignAndEncryptRequest{
		Issuer: harness.Issuer, ClientId: clientID(rank), TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN,
		Claims: []byte(`{"sub":"248289761001","nonce":"n-0S6_WzA2Mj","name":"Jane Doe","email":"jane.doe@example.com"}`),
	}
}

// atOnce is how many tokens are asked for at once to use clients soon.
const atOnce = 16

// issueAll asks for a token for each of the ranks from first to the one before
// last, many at once.
func (s *subject) issueAll(ctx context.Context, first, last int) error {
	return inParallel(last-first, atOnce, func(i int) error { return s.issue(ctx, first+i) })
}
