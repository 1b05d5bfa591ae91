package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/signer"
)

// The ways to ask for tokens.
const (
	modeUnary  = "unary"
	modeBatch  = "batch"
	modeStream = "stream"
)

// maxBatch is how many items a batch may have.
const maxBatch = 256

// benchCommand asks a running service for many tokens.
func benchCommand() *cobra.Command {
	var b bench
	cmd := &cobra.Command{
		Use:   "bench --client CLIENT",
		Short: "Load a running service and show how fast it answers",
		Long: `Load a running service and show how fast it answers: tokens a second, a histogram of latencies, errors by
reason. It issues real tokens, which are thrown away, for a client that is registered already: it registers none.
Each of them is on record in the service's audit log.

Without --rate each caller asks again when it has its answer (a closed loop), which shows how much the service can
do. With --rate tokens are asked for at their times whether or not others have been answered (an open loop), and
latency counts from those times, which shows what callers would see at that load. Nothing is asked for twice.`,
		Example: `  bulla bench --client app-1 --callers 32 --duration 30s
  bulla bench --client app-1 --rate 500
  bulla bench --client app-1 --mode batch --batch-size 64 -o json > run.json`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd) },
	}
	b.conn.register(cmd)
	f := cmd.Flags()
	f.StringVar(&b.issuer, "issuer", "", "the issuer's name (may be left out if there is only one)")
	f.StringVar(&b.client, "client", "", "the OAuth client the tokens are for")
	f.StringVar(&b.kind, "kind", "ID_TOKEN", "the kind of token: "+strings.Join(encryptedKinds(), ", "))
	f.StringVar(&b.claims, "claims", "", "file with the claims, a JSON object; - for standard input (default: a set of ordinary ones)")
	f.StringVar(&b.algorithm, "alg", "", "the signing algorithm (default: the client's, else the issuer's)")
	f.StringVar(&b.mode, "mode", modeUnary, "how tokens are asked for: unary, batch or stream")
	f.IntVar(&b.batchSize, "batch-size", 32, "with --mode batch: tokens in each batch, 256 at most")
	f.IntVar(&b.streams, "streams", 1, "with --mode stream: over how many streams the callers are spread")
	f.IntVar(&b.callers, "callers", 0, "calls that are under way at once: batches in --mode batch (default: 8, with --rate 256)")
	f.Float64Var(&b.rate, "rate", 0, "tokens to ask for in a second (default: as many as are answered)")
	f.DurationVar(&b.duration, "duration", 10*time.Second, "how long to ask for tokens, after the warm-up")
	f.IntVar(&b.count, "count", 0, "how many tokens to ask for; without --duration that alone is the end")
	f.DurationVar(&b.warmUp, "warm-up", 2*time.Second, "how long to ask for tokens before anything counts")
	return cmd
}

// bench is a run, as its flags say.
type bench struct {
	conn                            connection
	issuer, client, kind, algorithm string
	claims, mode                    string
	batchSize, streams, callers     int
	rate                            float64
	duration, warmUp                time.Duration
	count                           int
}

// ordinaryClaims are claims for each kind of token that is encrypted.
var ordinaryClaims = map[string]string{
	string(signer.IDToken): `{"sub":"248289761001","nonce":"n-0S6_WzA2Mj","auth_time":1311280969,"acr":"urn:mace:incommon:iap:silver","amr":["pwd","otp"],` +
		`"name":"Jane Doe","given_name":"Jane","family_name":"Doe","email":"jane.doe@example.com","email_verified":true}`,
	string(signer.LogoutToken): `{"sub":"248289761001","sid":"08a5019c-17e1-4977-8f42-65a12843ea02"}`,
	string(signer.UserInfo): `{"sub":"248289761001","name":"Jane Doe","given_name":"Jane","family_name":"Doe","preferred_username":"j.doe",` +
		`"email":"jane.doe@example.com","email_verified":true,"picture":"https://example.com/janedoe/me.jpg","locale":"en-GB","updated_at":1311280970}`,
	string(signer.AuthorizationResponse): `{"code":"SplxlOBeZQQYbYS6WxSbIA","state":"af0ifjsldkj"}`,
	string(signer.Introspection): `{"token_introspection":{"active":true,"scope":"read write dolphin","client_id":"s6BhdRkqt3","sub":"248289761001",` +
		`"iss":"https://login.example.com/","aud":"https://api.example.com","iat":1311280970,"exp":1311281970}}`,
}

// encryptedKinds are the kinds of tokens that are encrypted.
func encryptedKinds() []string {
	return slices.DeleteFunc(kindNames(), func(kind string) bool { return ordinaryClaims[kind] == "" })
}

// check holds the flags against each other.
func (b *bench) check(cmd *cobra.Command) error {
	switch {
	case b.client == "":
		return errors.New("--client is missing: name a client that is registered (\"bulla client list\" shows them); bench registers none")
	case !slices.Contains(encryptedKinds(), b.kind):
		return fmt.Errorf("--kind %q: use one of %s", b.kind, strings.Join(encryptedKinds(), ", "))
	case !slices.Contains([]string{modeUnary, modeBatch, modeStream}, b.mode):
		return fmt.Errorf("--mode %q: use unary, batch or stream", b.mode)
	case b.mode == modeBatch && (b.batchSize < 1 || b.batchSize > maxBatch):
		return fmt.Errorf("--batch-size %d: use 1 to %d", b.batchSize, maxBatch)
	case b.mode == modeStream && (b.streams < 1 || b.streams > 64):
		return fmt.Errorf("--streams %d: use 1 to 64, which is what one caller may have open", b.streams)
	case b.callers < 0 || b.callers > 10000:
		return fmt.Errorf("--callers %d: use 1 to 10000", b.callers)
	case !(b.rate >= 0 && b.rate <= 1e6):
		return fmt.Errorf("--rate %g: use up to 1000000, or 0 for as many as are answered", b.rate)
	case b.count < 0, b.warmUp < 0, b.duration < 0:
		return errors.New("--count, --duration and --warm-up cannot be negative")
	case b.duration == 0 && b.count == 0:
		return errors.New("--duration 0 needs a --count")
	}
	if b.count > 0 && !cmd.Flags().Changed("duration") {
		b.duration = 0
	}
	if b.callers == 0 {
		b.callers = 8
		if b.rate > 0 {
			b.callers = 256
		}
	}
	return nil
}

func (b *bench) run(cmd *cobra.Command) error {
	if err := b.check(cmd); err != nil {
		return err
	}
	req, err := b.request(cmd)
	if err != nil {
		return err
	}
	b.conn.config.Attempts = 1 // what fails is to be seen
	service, err := client.Dial(b.conn.config)
	if err != nil {
		return err
	}
	defer service.Close() //nolint:errcheck // nothing is lost: the answers are here
	ctx := cmd.Context()
	if err := b.first(ctx, service, req); err != nil {
		return err
	}
	ask, closing := b.asker(service, req)
	defer closing()

	l := &load{ask: ask, unit: 1, callers: b.callers, rate: b.rate, timeout: b.conn.timeout}
	report := &benchReport{Mode: b.mode, Callers: b.callers, Rate: b.rate, WarmUp: b.warmUp.Seconds()}
	switch b.mode {
	case modeBatch:
		l.unit, report.BatchSize = b.batchSize, b.batchSize
	case modeStream:
		report.Streams = b.streams
	}
	if b.warmUp > 0 {
		l.lasting = b.warmUp
		observed(cmd.ErrOrStderr(), newRecord(), true, func(r *record) { l.run(ctx, r) })
	}
	l.lasting, l.count = b.duration, b.count
	measured := newRecord()
	observed(cmd.ErrOrStderr(), measured, false, func(r *record) { report.NotBegun = l.run(ctx, r) })
	report.Interrupted = ctx.Err() != nil
	report.fill(measured)
	write := report.writeText
	if b.conn.output == "json" {
		write = report.writeJSON
	}
	if err := write(cmd.OutOrStdout()); err != nil {
		return err
	}
	if report.Tokens == 0 {
		return errors.New("no token was made")
	}
	return nil
}

// observed runs f, and tells how it goes.
func observed(to io.Writer, r *record, warming bool, f func(*record)) {
	progress, done, told := newBenchProgress(to), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		progress.run(done, r, warming)
	}()
	f(r)
	close(done)
	<-told
}

// request is what is asked for, each time.
func (b *bench) request(cmd *cobra.Command) (*bullav1.SignAndEncryptRequest, error) {
	kind, err := kindValue(b.kind)
	if err != nil {
		return nil, err
	}
	claims := []byte(ordinaryClaims[b.kind])
	if b.claims != "" {
		if claims, err = readInput(cmd, b.claims, signer.MaxClaimsBytes); err != nil {
			return nil, err
		}
	}
	return &bullav1.SignAndEncryptRequest{Issuer: b.issuer, ClientId: b.client, TokenKind: kind, Claims: claims, SigningAlgorithm: b.algorithm}, nil
}

// first asks for one token: a mistake in the flags is told at once, and not a
// thousand times. What passes is a matter of the run.
func (b *bench) first(ctx context.Context, service *client.Client, req *bullav1.SignAndEncryptRequest) error {
	ctx, cancel := context.WithTimeout(ctx, b.conn.timeout)
	defer cancel()
	_, err := service.Tokens.SignAndEncrypt(ctx, req)
	switch code := status.Code(err); {
	case err == nil:
		return nil
	case (code == codes.Unavailable || code == codes.ResourceExhausted) && reasonOf(err) != "":
		return nil
	}
	return err
}

// asker asks in the way of the mode. closing ends its streams.
func (b *bench) asker(service *client.Client, req *bullav1.SignAndEncryptRequest) (ask func(ctx context.Context, n int) (int, []error), closing func()) {
	switch b.mode {
	case modeBatch:
		return batchAsker(service, req), func() {}
	case modeStream:
		return b.streamAsker(service, req)
	}
	return func(ctx context.Context, _ int) (int, []error) {
		_, err := service.Tokens.SignAndEncrypt(ctx, req)
		return oneOf(err)
	}, func() {}
}

// oneOf is the outcome of a call for one token.
func oneOf(err error) (made int, failed []error) {
	if err != nil {
		return 0, []error{err}
	}
	return 1, nil
}

func batchAsker(service *client.Client, req *bullav1.SignAndEncryptRequest) func(ctx context.Context, n int) (int, []error) {
	items := slices.Repeat([]*bullav1.SignAndEncryptRequest{req}, maxBatch)
	return func(ctx context.Context, n int) (made int, failed []error) {
		res, err := service.Tokens.BatchSignAndEncrypt(ctx, &bullav1.BatchSignAndEncryptRequest{Items: items[:n]})
		if err != nil {
			return 0, slices.Repeat([]error{err}, n)
		}
		for _, r := range res.GetResults() {
			if r.GetReply() != nil {
				made++
			} else {
				failed = append(failed, status.ErrorProto(r.GetStatus()))
			}
		}
		return made, failed
	}
}

// streamAsker spreads callers over streams.
func (b *bench) streamAsker(service *client.Client, req *bullav1.SignAndEncryptRequest) (ask func(ctx context.Context, n int) (int, []error), closing func()) {
	streams := make(chan *client.Stream, b.callers)
	var open []*client.Stream
	for range b.streams {
		open = append(open, service.NewStream(client.StreamConfig{InFlight: b.callers}))
	}
	for i := range b.callers {
		streams <- open[i%len(open)]
	}
	return func(ctx context.Context, _ int) (int, []error) {
			stream := <-streams // as many as there are callers
			_, err := stream.SignAndEncrypt(ctx, req)
			streams <- stream
			return oneOf(err)
		}, func() {
			for _, s := range open {
				_ = s.Close() // it has no error
			}
		}
}
