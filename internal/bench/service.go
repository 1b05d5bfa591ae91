//go:build linux && cgo

package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"runtime"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/internal/bench/measure"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// What the service is asked for.
const (
	serviceAlg = encrypter.RSAOAEP256
	serviceEnc = encrypter.A256GCM
	clientID   = "app-1"
	claimsSize = 600
	// inFlight is how many calls at once the processor time is measured with:
	// enough to keep the processors busy.
	inFlight = 8
)

// goalP99 is the longest that one call in a hundred may take with 32 in
// flight, in ms, with ES256.
const goalP99 = 25

// subject is the running service and all that is compared to it.
type subject struct {
	service *harness.Service
	client  *client.Client
	answer  *answerer // answers only
	bare    *answerer // makes tokens, with nothing around
	key     harness.ClientKey
	signers map[kms.Algorithm]crypto.PublicKey
	// samples are a reply of the service and its signed token, for each
	// algorithm.
	samples map[kms.Algorithm]sample
}

type sample struct {
	reply *bullav1.SignAndEncryptResponse
	jws   []byte
}

// benchService sets SignAndEncrypt over mTLS against its floor, and asks how
// long callers wait.
func (b *bench) benchService() error {
	s, err := b.startService()
	if err != nil {
		return err
	}
	b.report.section(fmt.Sprintf("Service: SignAndEncrypt over mTLS, %d bytes of claims, %s, %s, %d in flight,\n"+
		"against an RPC that only answers + a raw signature + its verification + the JWE's primitives;\n"+
		"bare: a server that does the same with the same packages and has nothing around", claimsSize, serviceAlg, serviceEnc, inFlight))
	for _, alg := range signingAlgorithms {
		if err := b.serviceRow(s, alg); err != nil {
			return fmt.Errorf("%s: %w", alg, err)
		}
	}
	if err := b.benchMany(s); err != nil {
		return err
	}
	b.report.section("Latency: the service, and the bare server, which signs in as many sessions as there are calls")
	for _, l := range []struct {
		alg      kms.Algorithm
		inFlight int
		goal     float64
	}{{kms.ES256, 1, 0}, {kms.ES256, 8, 0}, {kms.ES256, 32, goalP99}, {kms.RS256, 32, 0}} {
		if err := b.latencyRows(s, l.alg, l.inFlight, l.goal); err != nil {
			return fmt.Errorf("%s, %d in flight: %w", l.alg, l.inFlight, err)
		}
	}
	return nil
}

// startService starts the service, registers a client, and looks at a token of
// each algorithm.
func (b *bench) startService() (*subject, error) {
	s := &subject{
		service: harness.Start(b.t, harness.Config{Token: b.token, Algorithms: signingAlgorithms}),
		key:     harness.NewClientKey(b.t, "", "enc-1"),
		signers: make(map[kms.Algorithm]crypto.PublicKey),
		samples: make(map[kms.Algorithm]sample),
	}
	s.client = s.service.Caller(b.t, harness.Admin)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
	defer cancel()
	_, err := s.client.ClientKeys.RegisterClientKey(ctx, &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: clientID,
		KeySource: &bullav1.RegisterClientKeyRequest_Jwks{Jwks: harness.JWKS(s.key)},
		Settings: []*bullav1.ResponseSetting{{
			TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: string(serviceAlg), ContentEncryption: string(serviceEnc),
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("register a client: %w", err)
	}
	code, _, jwks := s.service.Get(b.t, s.service.HTTP, "/jwks/"+harness.Issuer)
	if code != http.StatusOK {
		return nil, fmt.Errorf("the issuer's JWKS: HTTP status %d", code)
	}
	opener, err := s.opener([]byte(jwks))
	if err != nil {
		return nil, err
	}
	answers := make(map[string][]byte)
	for _, alg := range signingAlgorithms {
		reply, err := s.client.Tokens.SignAndEncrypt(ctx, request(alg))
		if err != nil {
			return nil, err
		}
		opened, err := opener.Open(reply.GetToken())
		if err != nil {
			return nil, fmt.Errorf("the service's token does not open: %w", err)
		}
		s.samples[alg] = sample{reply, []byte(opened.InnerJWS)}
		if answers[string(alg)], err = proto.Marshal(reply); err != nil {
			return nil, err
		}
	}
	if s.answer, err = b.startAnswerer(s.service.CA, answererConfig{Answers: answers}); err != nil {
		return nil, err
	}
	s.bare, err = b.startAnswerer(s.service.CA, answererConfig{
		Answers: answers, Make: &makeConfig{Token: *b.token, Signers: json.RawMessage(jwks), Client: s.key.PublicJWK()},
	})
	if err != nil {
		return nil, err
	}
	for _, alg := range signingAlgorithms {
		reply, err := s.bare.client.Tokens.SignAndEncrypt(ctx, request(alg))
		if err != nil {
			return nil, err
		}
		if _, err := opener.Open(reply.GetToken()); err != nil {
			return nil, fmt.Errorf("the bare server's token does not open: %w", err)
		}
	}
	return s, nil
}

// opener opens tokens as the client would.
func (s *subject) opener(jwks []byte) (*client.Opener, error) {
	signers, err := client.ParseSigners(jwks)
	if err != nil {
		return nil, err
	}
	for _, k := range signers {
		s.signers[kms.Algorithm(k.Algorithm)] = k.Key
	}
	keys, err := client.ParseKeys(s.key.PrivateJWK())
	if err != nil {
		return nil, err
	}
	return client.NewOpener(client.OpenConfig{Kind: client.IDToken, Keys: keys, Signers: signers, Issuer: harness.IssuerURL, Audience: clientID, RequireExpiry: true})
}

// request asks for an ID token.
func request(alg kms.Algorithm) *bullav1.SignAndEncryptRequest {
	return &bullav1.SignAndEncryptRequest{
		Issuer: harness.Issuer, ClientId: clientID, TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN,
		Claims: claims(), SigningAlgorithm: string(alg),
	}
}

// claims are those of an ordinary ID token, filled up to their size.
func claims() []byte {
	const head = `{"sub":"248289761001","nonce":"n-0S6_WzA2Mj","auth_time":1311280969,"acr":"urn:mace:incommon:iap:silver","amr":["pwd","otp"],` +
		`"name":"Jane Doe","given_name":"Jane","family_name":"Doe","email":"jane.doe@example.com","email_verified":true,"groups":["`
	const tail = `"]}`
	return []byte(head + strings.Repeat("x", claimsSize-len(head)-len(tail)) + tail)
}

// calls makes callers that ask tokens of one algorithm.
func calls(c *client.Client, alg kms.Algorithm) func() (func() error, error) {
	return func() (func() error, error) {
		req := request(alg)
		return func() error {
			_, err := c.Tokens.SignAndEncrypt(context.Background(), req)
			return err
		}, nil
	}
}

// serviceRow compares the service to the sum of what it cannot do without. All
// of it runs as much at once as it does in the service, because processors
// that share their caches and units are slower together.
func (b *bench) serviceRow(s *subject, alg kms.Algorithm) error {
	cores := runtime.GOMAXPROCS(0)
	jws := s.samples[alg].jws
	input := jws[:strings.LastIndexByte(string(jws), '.')]
	raw, err := openRaw(b.token, alg)
	if err != nil {
		return err
	}
	verify, err := verification(alg, s.signers[alg], jws)
	if err != nil {
		return err
	}
	ours := &contestant{name: "service", callers: inFlight, caller: calls(s.client, alg), pids: []int{s.service.PID(b.t)}}
	answer := &contestant{name: "RPC", callers: inFlight, caller: calls(s.answer.client, alg), pids: []int{s.answer.pid}}
	sign := &contestant{name: "raw signature", callers: sessions(), caller: func() (func() error, error) {
		session, err := raw.session()
		return func() error { _, err := session.sign(input); return err }, err
	}}
	check := &contestant{name: "verification", callers: cores, caller: always(verify)}
	encrypt := &contestant{name: "JWE primitives", callers: cores, caller: func() (func() error, error) {
		return jweFloor(serviceAlg, serviceEnc, s.key.Public().Key, jws)
	}}
	floor := []*contestant{answer, sign, check, encrypt}
	bare := &contestant{name: "bare", callers: inFlight, caller: calls(s.bare.client, alg), pids: []int{s.bare.pid}}
	if err := interleave(b.rounds, b.spell*2, append([]*contestant{ours, bare}, floor...)...); err != nil {
		return err
	}
	row := newRow(string(alg), goalService, ours, floor...)
	row.Peer, row.PeerMicros, row.PeerRatio = "bare", bare.micros(), measure.Median(bare.ratios(floor...))
	if row.Allocs, err = b.serviceAllocs(s, alg, sign, check, encrypt); err != nil {
		return err
	}
	b.report.add(row)
	for _, part := range floor {
		b.report.addPart(fmt.Sprintf("%s: %s", alg, part.name), part.micros())
	}
	return nil
}

// serviceAllocs are the allocations of the service's process for a call, and
// those of the floor's: the process that only answers, and the rest here.
func (b *bench) serviceAllocs(s *subject, alg kms.Algorithm, here ...*contestant) (*Allocs, error) {
	const n = 500
	ask := func(c *client.Client, count func() (float64, error)) (float64, error) {
		call, err := calls(c, alg)()
		if err != nil {
			return 0, err
		}
		before, err := count()
		if err != nil {
			return 0, err
		}
		for range n {
			if err := call(); err != nil {
				return 0, err
			}
		}
		after, err := count()
		return (after - before) / n, err
	}
	a := new(Allocs)
	var err error
	if a.Ours, err = ask(s.client, func() (float64, error) {
		return s.service.Metric(b.t, "go_memstats_mallocs_total"), nil
	}); err != nil {
		return nil, err
	}
	if a.Floor, err = ask(s.answer.client, s.answer.mallocs); err != nil {
		return nil, err
	}
	for _, c := range here {
		f, err := c.caller()
		if err != nil {
			return nil, err
		}
		one, err := mallocs(20, f)
		if err != nil {
			return nil, err
		}
		a.Floor += one
	}
	return a, nil
}

// verification returns a function that verifies the signature of jws.
func verification(alg kms.Algorithm, public crypto.PublicKey, jws []byte) (func() error, error) {
	dot := strings.LastIndexByte(string(jws), '.')
	input := jws[:dot]
	signature, err := base64.RawURLEncoding.DecodeString(string(jws[dot+1:]))
	if err != nil {
		return nil, err
	}
	switch k := public.(type) {
	case *rsa.PublicKey:
		return func() error {
			digest := sha256.Sum256(input)
			return rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], signature)
		}, nil
	case *ecdsa.PublicKey:
		half := len(signature) / 2
		der, err := asn1.Marshal([]*big.Int{new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:])})
		if err != nil {
			return nil, err
		}
		return func() error {
			digest := sha256.Sum256(input)
			if !ecdsa.VerifyASN1(k, digest[:], der) {
				return errors.New("the signature does not verify")
			}
			return nil
		}, nil
	}
	return nil, fmt.Errorf("no verification is known for %s with a %T", alg, public)
}

// latencyRows asks how long callers wait, and what they get.
func (b *bench) latencyRows(s *subject, alg kms.Algorithm, inFlight int, goal float64) error {
	ours := &contestant{name: "service", callers: inFlight, caller: calls(s.client, alg), pids: []int{s.service.PID(b.t)}}
	bare := &contestant{name: "bare", callers: inFlight, caller: calls(s.bare.client, alg), pids: []int{s.bare.pid}}
	if err := interleave(b.rounds, 5*b.spell, ours, bare); err != nil {
		return err
	}
	for _, c := range []*contestant{ours, bare} {
		row := LatencyRow{
			Name: fmt.Sprintf("%s, %s", alg, c.name), InFlight: inFlight,
			P50: c.latency(0.50), P99: c.latency(0.99), PerSecond: c.perSecond(), Micros: c.micros(),
		}
		if c == ours {
			row.Goal = goal
		}
		row.OK = row.P99 <= row.Goal
		b.report.addLatency(row)
	}
	return nil
}
