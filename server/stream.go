package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/signer"
)

type tokenStreamServer = grpc.BidiStreamingServer[bullav1.StreamSignAndEncryptRequest, bullav1.StreamSignAndEncryptResponse]

const (
	// maxUnanswered is how many messages of a stream are read and not yet
	// answered, at most. Then reading stops, and HTTP/2 stops the caller.
	maxUnanswered = 32
	// maxCorrelationID bounds a correlation id, in bytes.
	maxCorrelationID = 256
	// maxStreamRequest bounds what a message asks with, in bytes: all that it may
	// hold. A stream may have many messages in memory, so what is larger is let go
	// as soon as it is read.
	maxStreamRequest = signer.MaxClaimsBytes + 3*maxInputBytes + 4<<10
	// lastAnswers is how long a stream that has to end waits for its caller to
	// take what is answered: less than a service takes to stop.
	lastAnswers = 10 * time.Second
)

// StreamSignAndEncrypt makes a token for each message that it reads.
//
// Four parties work on a stream. One goroutine reads; it stops while too many
// messages are not answered. Some make tokens. One sends, and is the only one
// that does. The call's own waits for a reason to end: the caller has sent all,
// its certificate has ended, or the service stops. Then nothing more is read,
// what was read is answered, and the call returns. What reads and what sends may
// be inside gRPC then, from which only the end of the call gets them out; so they
// are not waited for, and touch nothing but the stream.
func (s *tokenService) StreamSignAndEncrypt(stream tokenStreamServer) error {
	leave, err := s.streams.enter(callOf(stream.Context()).caller)
	if err != nil {
		return err
	}
	defer leave()
	t := &tokenStream{
		service: s, stream: stream,
		unanswered: make(chan struct{}, maxUnanswered), work: make(chan numbered), answers: make(chan *bullav1.StreamSignAndEncryptResponse, maxUnanswered),
		full: make(chan struct{}), read: make(chan error, 1), sent: make(chan error, 1),
	}
	return t.run()
}

// tokenStream is one call of StreamSignAndEncrypt.
type tokenStream struct {
	service *tokenService
	stream  tokenStreamServer

	unanswered chan struct{} // holds one for each message that was read and is not answered
	work       chan numbered // without a buffer: what was sent is in work
	answers    chan *bullav1.StreamSignAndEncryptResponse
	full       chan struct{} // closed when nothing more is begun
	read, sent chan error    // how reading and sending ended
	cut        bool          // gRPC has ended the stream by itself; of run alone
}

// numbered is a message and its place on the stream.
type numbered struct {
	n       int
	id      string
	request *bullav1.SignAndEncryptRequest
	err     error // why there is no request
}

func (t *tokenStream) run() error {
	ctx, cancel := context.WithCancel(t.stream.Context())
	var workers sync.WaitGroup
	finish := sync.OnceFunc(func() {
		workers.Wait()
		close(t.answers)
	})
	defer finish()
	defer cancel()
	identified, done := whileIdentified(ctx)
	defer done()
	for range itemsAtOnce() {
		workers.Go(func() { t.makeTokens(ctx) })
	}
	go func() { t.read <- t.readAll() }()
	go func() { t.sent <- t.sendAll() }()

	sooner, end := t.wait(identified)
	close(t.full)
	if ctx.Err() != nil || t.cut {
		return end // nobody is there to answer
	}
	finish()
	return t.flush(identified, sooner, end)
}

// wait waits for a reason to end, nil if the caller has sent all. sooner says
// that the stream has to end, whether or not the caller takes its answers.
func (t *tokenStream) wait(identified context.Context) (sooner bool, end error) {
	select {
	case err := <-t.read:
		return err != nil, t.readEnd(err)
	case err := <-t.sent:
		return true, sendEnd(err, nil)
	case <-identified.Done():
		return true, context.Cause(identified)
	case <-t.service.streams.stopping:
		return true, errStopping
	}
}

// flush waits until all is sent that was answered, and returns how the call
// ends.
func (t *tokenStream) flush(identified context.Context, sooner bool, end error) error {
	if !sooner {
		select {
		case err := <-t.sent:
			return sendEnd(err, end)
		case <-identified.Done(): // the caller's certificate, or the stream itself
			end = context.Cause(identified)
		case <-t.service.streams.stopping:
			end = errStopping
		}
	}
	over := time.NewTimer(lastAnswers)
	defer over.Stop()
	select {
	case err := <-t.sent:
		return sendEnd(err, end)
	case <-t.stream.Context().Done():
		return t.stream.Context().Err()
	case <-over.C:
		return end
	}
}

// sendEnd is how a call ends whose sending has ended with err: like end, if all
// was sent.
func sendEnd(err, end error) error {
	if err != nil {
		return fmt.Errorf("%w: the caller takes no answers: %w", context.Canceled, err)
	}
	return end
}

// readAll hands over what it reads until the caller has sent all, which is nil,
// or nothing more is begun.
func (t *tokenStream) readAll() error {
	for n := 0; ; n++ {
		select {
		case t.unanswered <- struct{}{}:
		case <-t.full:
			return nil
		}
		message, err := t.stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		m, err := open(n, message)
		if err != nil {
			return err
		}
		select {
		case t.work <- m:
		case <-t.full:
			return nil // it is not answered, so the caller knows
		}
	}
}

// open takes a message apart. An error is one that no answer could be given to.
func open(n int, message *bullav1.StreamSignAndEncryptRequest) (numbered, error) {
	m := numbered{n: n, id: message.GetCorrelationId(), request: message.GetRequest()}
	var c checker
	if len(m.id) > maxCorrelationID {
		c.wrong("correlation_id", "has %d bytes: send %d at most", len(m.id), maxCorrelationID)
		return m, c.err()
	}
	size := len(m.request.GetClaims()) + len(m.request.GetAccessToken()) + len(m.request.GetCode()) + len(m.request.GetState()) +
		len(m.request.GetIssuer()) + len(m.request.GetClientId()) + len(m.request.GetSigningAlgorithm())
	switch {
	case m.request == nil:
		c.wrong("request", "is missing")
	case size > maxStreamRequest:
		c.wrong("request", "is larger than %d bytes", maxStreamRequest)
		m.request = nil
	}
	m.err = c.err()
	return m, nil
}

// readEnd is why a stream cannot be read further. Errors that are not ours are
// gRPC's: of the connection, which ends the context too, or of a message, which
// gRPC has then told the caller by itself.
func (t *tokenStream) readEnd(err error) error {
	if err == nil || errors.Is(err, errInvalid) {
		return err
	}
	t.cut = true
	var c checker
	switch ended := t.stream.Context().Err(); {
	case ended != nil:
		return ended
	case status.Code(err) == codes.Canceled:
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case status.Code(err) == codes.ResourceExhausted:
		c.wrong("message", "is larger than %d bytes", maxMessage)
	default:
		c.wrong("message", "cannot be read as a StreamSignAndEncryptRequest")
	}
	return c.err()
}

// makeTokens works until nothing more is begun.
func (t *tokenStream) makeTokens(ctx context.Context) {
	for {
		select {
		case m := <-t.work:
			t.answers <- t.answer(ctx, m) // there is room: see unanswered
		case <-t.full:
			return
		}
	}
}

// answer makes one token. A stream has no deadline, so each of its messages has.
func (t *tokenStream) answer(ctx context.Context, m numbered) *bullav1.StreamSignAndEncryptResponse {
	const method = bullav1.TokenService_StreamSignAndEncrypt_FullMethodName
	ctx, cancel := context.WithTimeout(ctx, longestCall)
	defer cancel()
	answer := &bullav1.StreamSignAndEncryptResponse{CorrelationId: m.id}
	if m.err != nil {
		answer.Result = &bullav1.StreamSignAndEncryptResponse_Status{Status: t.service.itemFailed(ctx, method, m.n, m.err)}
		return answer
	}
	reply, failed := t.service.item(ctx, method, m.n, m.request)
	if failed != nil {
		answer.Result = &bullav1.StreamSignAndEncryptResponse_Status{Status: failed}
		return answer
	}
	answer.Result = &bullav1.StreamSignAndEncryptResponse_Reply{Reply: reply}
	return answer
}

// sendAll sends the answers until there are no more.
func (t *tokenStream) sendAll() error {
	for answer := range t.answers {
		if err := t.stream.Send(answer); err != nil {
			return err
		}
		<-t.unanswered
	}
	return nil
}
