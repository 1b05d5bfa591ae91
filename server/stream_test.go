package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/signer"
)

type tokenStreamClient = grpc.BidiStreamingClient[bullav1.StreamSignAndEncryptRequest, bullav1.StreamSignAndEncryptResponse]

// noLeaks fails the test if it leaves goroutines. It is called first, so that it
// looks last.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

func openStream(t *testing.T, client bullav1.TokenServiceClient) tokenStreamClient {
	t.Helper()
	stream, err := client.StreamSignAndEncrypt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// message asks for a token for a client, by its name as the correlation id.
func message(clientID string) *bullav1.StreamSignAndEncryptRequest {
	return &bullav1.StreamSignAndEncryptRequest{CorrelationId: "id " + clientID, Request: askFor(clientID)[0]}
}

func mustSend(t *testing.T, stream tokenStreamClient, messages ...*bullav1.StreamSignAndEncryptRequest) {
	t.Helper()
	for _, m := range messages {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
}

// receiveAll reads until the stream ends, and returns how.
func receiveAll(stream tokenStreamClient) (all []*bullav1.StreamSignAndEncryptResponse, end error) {
	for {
		res, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return all, err
		}
		all = append(all, res)
	}
}

func TestMessagesOfAStreamFailAlone(t *testing.T) {
	noLeaks(t)
	client, seen, _ := serveMany(t, forClient, nil)
	stream := openStream(t, client)
	for i, one := range troubles {
		m := message(one.client)
		m.CorrelationId = fmt.Sprint(i)
		mustSend(t, stream, m)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	answers, err := receiveAll(stream)
	if err != nil || len(answers) != len(troubles) {
		t.Fatalf("%d answers, and the end %v; want %d and none", len(answers), err, len(troubles))
	}
	byID := make(map[string]*bullav1.StreamSignAndEncryptResponse)
	for _, a := range answers {
		byID[a.GetCorrelationId()] = a
	}
	for i := range troubles {
		a := byID[fmt.Sprint(i)]
		wantTrouble(t, i, a.GetReply().GetToken(), status.FromProto(a.GetStatus()))
	}
	if answers[0].GetCorrelationId() == "0" {
		t.Error("the slow one was answered first: the others waited for it")
	}
	wantCounted(t, seen)
}

func TestAStreamGoesOnAfterMessagesThatAreWrong(t *testing.T) {
	client, seen, _ := serveMany(t, forClient, nil)
	stream := openStream(t, client)
	large := message("large")
	large.Request.Claims = make([]byte, maxStreamRequest+1)
	allowed := message("allowed") // if not by what makes tokens
	allowed.Request.Claims = make([]byte, signer.MaxClaimsBytes)
	allowed.Request.AccessToken, allowed.Request.Code, allowed.Request.State = strings.Repeat("a", maxInputBytes), strings.Repeat("c", maxInputBytes), strings.Repeat("s", maxInputBytes)
	same := message("same")
	same.CorrelationId = ""
	mustSend(t, stream, &bullav1.StreamSignAndEncryptRequest{CorrelationId: "id bare"}, large, allowed, same, same)
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	answers, err := receiveAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, a := range answers {
		st := status.FromProto(a.GetStatus())
		text := a.GetReply().GetToken()
		for _, v := range detail[*errdetails.BadRequest](st.Details()).GetFieldViolations() {
			text += v.GetField() + " " + v.GetDescription()
		}
		got[a.GetCorrelationId()] += text
	}
	for id, want := range map[string]string{
		"id bare": "request is missing", "id large": fmt.Sprintf("request is larger than %d bytes", maxStreamRequest),
		"id allowed": "for.allowed", "": "for.samefor.same",
	} {
		if got[id] != want {
			t.Errorf("%q was answered with %q, want %q", id, got[id], want)
		}
	}
	if len(seen.items) != 5 {
		t.Errorf("counted %q, want 5", seen.items)
	}
}

func TestAStreamEndsAfterAMessageThatCannotBeAnswered(t *testing.T) {
	noLeaks(t)
	client, _, _ := serveMany(t, forClient, nil)
	overlong := message("app-2")
	overlong.CorrelationId = strings.Repeat("x", maxCorrelationID+1)
	stream := openStream(t, client)
	mustSend(t, stream, message("slow-1"), overlong)
	answers, err := receiveAll(stream)
	st := status.Convert(err)
	violations := detail[*errdetails.BadRequest](st.Details()).GetFieldViolations()
	if st.Code() != codes.InvalidArgument || len(violations) != 1 || violations[0].GetField() != "correlation_id" {
		t.Errorf("ended with %v and %v, want InvalidArgument of correlation_id", err, violations)
	}
	if len(answers) != 1 || answers[0].GetReply().GetToken() != "for.slow-1" {
		t.Errorf("got %v, want what was read before", answers)
	}

	// What is too large for gRPC it refuses by itself, and at once.
	huge := message("app-2")
	huge.Request.Claims = make([]byte, maxMessage+1)
	stream = openStream(t, client)
	mustSend(t, stream, huge)
	if answers, err := receiveAll(stream); status.Code(err) != codes.ResourceExhausted || len(answers) > 0 {
		t.Errorf("got %v and ended with %v, want ResourceExhausted", answers, err)
	}
}

func TestAStreamReadsNoFurtherThanItIsAnswered(t *testing.T) {
	noLeaks(t)
	var inside atOnce
	var begun atomic.Int32
	open := make(chan struct{})
	client, _, _ := serveMany(t, func(ctx context.Context, r seal.Request) (*seal.Result, error) {
		begun.Add(1)
		defer inside.enter()()
		select {
		case <-open:
		case <-ctx.Done():
		}
		return &seal.Result{Token: strings.Repeat("t", 64<<10)}, nil
	}, nil)
	stream := openStream(t, client)
	const all = 400
	sent := make(chan error, 1)
	go func() {
		for i := range all {
			m := message(fmt.Sprint(i))
			m.Request.Claims = make([]byte, 16<<10)
			if err := stream.Send(m); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	// While nothing is finished no more are made than at once.
	settled := func() int32 {
		for {
			before := begun.Load()
			time.Sleep(300 * time.Millisecond)
			if after := begun.Load(); after == before && after > 0 {
				return after
			}
		}
	}
	if got := settled(); int(got) != itemsAtOnce() {
		t.Errorf("%d tokens are being made, want %d", got, itemsAtOnce())
	}
	// What is finished and not taken fills the windows of HTTP/2 and what may be
	// unanswered, and then no more is made.
	close(open)
	got := settled()
	if got < maxUnanswered || got > maxUnanswered+100 {
		t.Errorf("%d tokens were made for a caller who takes none, want %d and what HTTP/2 holds", got, maxUnanswered)
	}
	select {
	case err := <-sent:
		t.Errorf("the caller could send all (%v)", err)
	default:
	}
	answers, err := receiveAll(stream)
	if err != nil || len(answers) != all {
		t.Errorf("%d answers and the end %v, want %d and none", len(answers), err, all)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if got := int(inside.most.Load()); got > itemsAtOnce() {
		t.Errorf("%d were made at once, want %d at most", got, itemsAtOnce())
	}
}

// heldUp is a sealer whose tokens are made when they are let go.
func heldUp() (m makes, begun *atomic.Int32, letGo func()) {
	begun, open := new(atomic.Int32), make(chan struct{})
	return func(ctx context.Context, r seal.Request) (*seal.Result, error) {
		begun.Add(1)
		select {
		case <-open:
			return &seal.Result{Token: "for." + r.ClientID}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, begun, func() { close(open) }
}

func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func TestAStoppingServerAnswersWhatItHasReadOfAStream(t *testing.T) {
	noLeaks(t)
	m, begun, letGo := heldUp()
	client, seen, srv := serveMany(t, m, nil)
	stream, idle := openStream(t, client), openStream(t, client)
	mustSend(t, idle, message("app-9"))
	mustSend(t, stream, message("app-1"), message("app-2"))
	waitFor(t, "three are begun", func() bool { return begun.Load() == 3 })
	ended := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		defer close(ended)
		srv.Shutdown(ctx)
	}()
	waitFor(t, "no streams are taken", func() bool {
		_, err := srv.streams.enter("x")
		return errors.Is(err, errStopping)
	})
	letGo()
	answers, err := receiveAll(stream)
	if st := status.Convert(err); st.Code() != codes.Unavailable || !strings.Contains(st.Message(), "stopping") {
		t.Errorf("ended with %v, want Unavailable: stopping", err)
	}
	if retry := detail[*errdetails.RetryInfo](status.Convert(err).Details()); retry == nil || retry.GetRetryDelay().AsDuration() != 0 {
		t.Errorf("RetryInfo %v, want 0: another replica is there at once", retry)
	}
	if got := stream.Trailer().Get(pushback); len(got) != 1 || got[0] != "0" {
		t.Errorf("trailer %s = %v, want 0", pushback, got)
	}
	if len(answers) != 2 {
		t.Errorf("%d answers, want 2", len(answers))
	}
	if answers, err := receiveAll(idle); len(answers) != 1 || status.Code(err) != codes.Unavailable {
		t.Errorf("the other stream: %d answers, %v", len(answers), err)
	}
	<-ended
	if ctx.Err() != nil {
		t.Error("the streams held the service up")
	}
	seen.mu.Lock()
	defer seen.mu.Unlock()
	if got := strings.Join(seen.reasons, ","); got != "Unavailable Unavailable,Unavailable Unavailable" {
		t.Errorf("the calls counted as %q", got)
	}
}

func TestACanceledStreamStopsTheWork(t *testing.T) {
	noLeaks(t)
	m, begun, _ := heldUp()
	client, seen, _ := serveMany(t, m, nil)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := client.StreamSignAndEncrypt(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mustSend(t, stream, message("app-1"), message("app-2"))
	waitFor(t, "two are begun", func() bool { return begun.Load() == 2 })
	cancel()
	if _, err := receiveAll(stream); status.Code(err) != codes.Canceled {
		t.Errorf("ended with %v, want Canceled", err)
	}
	waitFor(t, "the call ends", func() bool {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		return len(seen.reasons) == 1
	})
	if got := strings.Join(seen.reasons, ","); got != "Canceled Canceled" {
		t.Errorf("the call counted as %q, want Canceled", got)
	}
}

func TestACallerHasABoundedNumberOfStreams(t *testing.T) {
	noLeaks(t)
	client, _, srv := serveMany(t, forClient, nil)
	var open []tokenStreamClient
	for range maxStreams {
		stream := openStream(t, client)
		mustSend(t, stream, message("app"))
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		open = append(open, stream)
	}
	_, err := receiveAll(openStream(t, client))
	info := detail[*errdetails.ErrorInfo](status.Convert(err).Details())
	if status.Code(err) != codes.ResourceExhausted || info.GetReason() != "QUOTA_EXCEEDED" {
		t.Errorf("one more: %v, want QUOTA_EXCEEDED", err)
	}
	if leave, err := srv.streams.enter("another"); err != nil {
		t.Errorf("another caller: %v", err)
	} else {
		leave()
	}
	if err := open[0].CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := receiveAll(open[0]); err != nil {
		t.Fatal(err)
	}
	stream := openStream(t, client)
	mustSend(t, stream, message("app"))
	if _, err := stream.Recv(); err != nil {
		t.Errorf("in the place of one that ended: %v", err)
	}
	if got := srv.streams.callers[""] + srv.streams.callers["another"]; got != 0 {
		t.Errorf("%d streams are counted for nobody", got)
	}
}

// callerOf is the server's end of a stream without a network.
type callerOf struct {
	grpc.ServerStream
	ctx      context.Context
	messages chan *bullav1.StreamSignAndEncryptRequest
	answers  chan *bullav1.StreamSignAndEncryptResponse // nobody reads it when it is nil
}

func (c *callerOf) Context() context.Context     { return c.ctx }
func (c *callerOf) SendHeader(metadata.MD) error { return nil }
func (c *callerOf) Recv() (*bullav1.StreamSignAndEncryptRequest, error) {
	select {
	case m, ok := <-c.messages:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-c.ctx.Done():
		return nil, status.FromContextError(c.ctx.Err()).Err()
	}
}

func (c *callerOf) Send(a *bullav1.StreamSignAndEncryptResponse) error {
	select {
	case c.answers <- a:
		return nil
	case <-c.ctx.Done():
		return status.FromContextError(c.ctx.Err()).Err()
	}
}

func TestAStreamEndsWithItsCallersCertificate(t *testing.T) {
	noLeaks(t)
	m, begun, letGo := heldUp()
	_, _, srv := serveMany(t, m, slog.New(slog.DiscardHandler))
	service := &tokenService{sealer: m, streams: srv.streams, server: srv}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), callKey{}, call{caller: "spiffe://example.com/idp", until: time.Now().Add(500 * time.Millisecond)}))
	defer cancel()
	far := &callerOf{ctx: ctx, messages: make(chan *bullav1.StreamSignAndEncryptRequest), answers: make(chan *bullav1.StreamSignAndEncryptResponse, 10)}
	ended := make(chan error, 1)
	go func() {
		ended <- service.StreamSignAndEncrypt(far)
		cancel() // as gRPC does
	}()
	far.messages <- message("app-1")
	waitFor(t, "it is begun", func() bool { return begun.Load() == 1 })
	time.Sleep(600 * time.Millisecond)
	select {
	case err := <-ended:
		t.Fatalf("ended with %v before what was read is answered", err)
	default:
	}
	letGo()
	if err := <-ended; !errors.Is(err, errExpiredIdentity) {
		t.Errorf("ended with %v, want that the certificate has expired", err)
	}
	if a := <-far.answers; a.GetReply().GetToken() != "for.app-1" {
		t.Errorf("answered %v", a)
	}
}

// Who does not take answers holds a stream up for as long as it likes, but not
// the service that stops.
func TestAStoppingServerWaitsOnlySoLongForWhoTakesNoAnswers(t *testing.T) {
	for _, halfClosed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			open := newStreams()
			service := &tokenService{
				sealer: makes(forClient), streams: open,
				server: &Server{cfg: Config{Observer: &observer{}}, log: slog.New(slog.DiscardHandler)},
			}
			ctx, cancel := context.WithCancel(t.Context())
			far := &callerOf{ctx: ctx, messages: make(chan *bullav1.StreamSignAndEncryptRequest)}
			ended := make(chan error, 1)
			go func() {
				ended <- service.StreamSignAndEncrypt(far)
				cancel() // as gRPC does
			}()
			far.messages <- message("app-1")
			if halfClosed {
				close(far.messages)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			select {
			case err := <-ended:
				t.Fatalf("it ended with %v", err)
			default:
			}
			began := time.Now()
			open.close()
			open.close() // again
			if err := <-ended; !errors.Is(err, errStopping) || time.Since(began) != lastAnswers {
				t.Errorf("half-closed %v: ended with %v after %v, want %v after %v", halfClosed, err, time.Since(began), errStopping, lastAnswers)
			}
		})
	}
}

// What HTTP/2 takes of streams that are not read further is bounded too. gRPC
// would take more where the network carries much, as from many streams at once.
func TestStreamsThatAreNotReadHoldFewMessages(t *testing.T) {
	noLeaks(t)
	answer := strings.Repeat("t", 50<<10)
	var made atomic.Int32
	client, _, _ := serveMany(t, func(context.Context, seal.Request) (*seal.Result, error) {
		made.Add(1)
		for began := time.Now(); time.Since(began) < 200*time.Microsecond; { // work
		}
		return &seal.Result{Token: answer}, nil
	}, nil)
	const size, streams, each = 30 << 10, 32, 500
	ctx, cancel := context.WithCancel(t.Context())
	var sent atomic.Int32
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	for range streams {
		stream, err := client.StreamSignAndEncrypt(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m := message("held")
		m.Request.Claims = make([]byte, size)
		sending.Go(func() {
			for range each {
				if stream.Send(m) != nil {
					return
				}
				sent.Add(1)
			}
		})
	}
	for before := int32(-1); sent.Load() != before; time.Sleep(300 * time.Millisecond) {
		before = sent.Load()
	}
	// Some are in the caller's own buffers.
	if got, most := int(sent.Load()-made.Load()), streams*(streamWindow+256<<10)/size; got > most {
		t.Errorf("%d messages were taken of which no token was made, want %d at most", got, most)
	}
}
