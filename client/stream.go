package client

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

type tokenStream = grpc.BidiStreamingClient[bullav1.StreamSignAndEncryptRequest, bullav1.StreamSignAndEncryptResponse]

// ErrStreamClosed: the Stream was closed. Nothing more is made on it.
var ErrStreamClosed = errors.New("the stream is closed")

// StreamConfig says how a Stream works. The zero value is all defaults.
type StreamConfig struct {
	// InFlight is how many tokens may be asked for and not yet answered; a call
	// beyond that waits. The service works on 32 of a stream at most. Default: 32.
	InFlight int
}

const (
	defaultInFlight = 32
	// closingTime is how long Close waits for the service to end the stream.
	closingTime = 5 * time.Second
)

// Stream makes tokens over StreamSignAndEncrypt: for the caller as by single
// calls, on the wire at a fraction of their cost. Any number of goroutines use
// one Stream at once; one is enough for a process.
//
// It goes on through what cuts a stream off: a replica that stops or dies, a
// connection that is renewed. What was not answered by then is sent again on
// another stream, as often as Config.Attempts says; of such a request a token may
// be made twice, one of which nobody gets. A stream is opened when there is
// something to send, and lies on one replica; the next one is another's, where
// there are several.
type Stream struct {
	client *Client
	room   chan struct{}    // holds one for each call in flight
	queue  chan *streamCall // to the goroutine that sends
	// ctx ends all work; closing asks for an orderly end.
	ctx     context.Context //nolint:containedctx // it is the life of the stream
	cancel  context.CancelFunc
	closing chan struct{}
	ended   chan struct{} // closed when run has returned

	mu     sync.Mutex // guards what follows, and the fields of calls that say so
	closed bool
	last   uint64                 // number of the last call
	calls  map[string]*streamCall // those that wait for an answer, by correlation id
}

// streamCall is one call of SignAndEncrypt.
type streamCall struct {
	number uint64
	req    *bullav1.SignAndEncryptRequest
	answer chan streamAnswer // with room for one

	sent int // on how many streams; guarded by Stream.mu
}

type streamAnswer struct {
	reply *bullav1.SignAndEncryptResponse
	err   error
	// whole says that err is of the stream and not of the token.
	whole bool
}

// NewStream makes a Stream. Close it at the end.
func (c *Client) NewStream(cfg StreamConfig) *Stream {
	if cfg.InFlight <= 0 {
		cfg.InFlight = defaultInFlight
	}
	s := &Stream{
		client: c, room: make(chan struct{}, cfg.InFlight), queue: make(chan *streamCall),
		closing: make(chan struct{}), ended: make(chan struct{}), calls: make(map[string]*streamCall),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go s.run()
	return s
}

// SignAndEncrypt makes a token, and returns when it is there. Errors are those
// of a single call, with the same details, and ErrStreamClosed. A token that
// fails in a way that passes is asked for again by a single call, which another
// replica may answer, after the pause that the service asks for.
func (s *Stream) SignAndEncrypt(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
	select {
	case s.room <- struct{}{}:
		defer func() { <-s.room }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-s.closing:
		return nil, ErrStreamClosed
	}
	answer := s.ask(ctx, req)
	if answer.err == nil || answer.whole || !s.client.repeats.pause(ctx, 1, answer.err, nil) {
		return answer.reply, answer.err
	}
	return s.client.Tokens.SignAndEncrypt(context.WithValue(ctx, onStream{}, true), req)
}

// Close ends the stream when the calls in flight are answered, and waits for a
// few seconds for that. It may be called again.
func (s *Stream) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	timer := time.AfterFunc(closingTime, s.cancel)
	defer timer.Stop()
	<-s.ended
	s.cancel()
	return nil
}

// ask sends a request and waits for its answer.
func (s *Stream) ask(ctx context.Context, req *bullav1.SignAndEncryptRequest) streamAnswer {
	call, err := s.begin(req)
	if err != nil {
		return streamAnswer{err: err, whole: true}
	}
	defer s.forget(call)
	queue := s.queue
	for {
		select {
		case queue <- call:
			queue = nil
		case answer := <-call.answer:
			return answer
		case <-ctx.Done():
			return streamAnswer{err: status.FromContextError(ctx.Err()).Err(), whole: true}
		case <-s.ended:
			select {
			case answer := <-call.answer: // both at once
				return answer
			default:
				return streamAnswer{err: ErrStreamClosed, whole: true}
			}
		}
	}
}

// begin gives a call its number.
func (s *Stream) begin(req *bullav1.SignAndEncryptRequest) (*streamCall, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrStreamClosed
	}
	s.last++
	call := &streamCall{number: s.last, req: req, answer: make(chan streamAnswer, 1)}
	s.calls[call.id()] = call
	return call, nil
}

func (c *streamCall) id() string { return strconv.FormatUint(c.number, 36) }

func (s *Stream) forget(call *streamCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, call.id())
}

// run has one stream after the other open, each from the first call that waits,
// until the Stream is closed.
func (s *Stream) run() {
	defer close(s.ended)
	for failures := 0; ; {
		first := s.next()
		if first == nil && len(s.unanswered()) == 0 {
			return
		}
		answered, err := s.session(first)
		if answered {
			failures = 0
		}
		failures++
		if !s.goOn(failures, err) {
			failures = 0
		}
	}
}

// next waits until there is something to send: a call that is to be sent again,
// which is nil here, or a new one. It is nil too if the Stream is closed.
func (s *Stream) next() *streamCall {
	if len(s.unanswered()) > 0 {
		return nil
	}
	select {
	case call := <-s.queue:
		return call
	case <-s.closing:
		return nil
	case <-s.ctx.Done():
		return nil
	}
}

// unanswered are the calls that were sent and not answered, the oldest first.
func (s *Stream) unanswered() []*streamCall {
	s.mu.Lock()
	defer s.mu.Unlock()
	var calls []*streamCall
	for _, call := range s.calls {
		if call.sent > 0 {
			calls = append(calls, call)
		}
	}
	slices.SortFunc(calls, func(a, b *streamCall) int { return cmp.Compare(a.number, b.number) })
	return calls
}

// session has one stream open until it ends, and says how, and whether any call
// was answered on it.
func (s *Stream) session(first *streamCall) (answered bool, err error) {
	ctx, cancel := context.WithCancel(s.ctx)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	again := s.unanswered()
	if first != nil {
		again = append(again, first)
	}
	for _, call := range again {
		s.markSent(call)
	}
	stream, err := s.client.Tokens.StreamSignAndEncrypt(ctx)
	if err != nil {
		return false, err
	}
	sending.Go(func() { s.send(ctx, stream, again) })
	for {
		res, err := stream.Recv()
		if err != nil {
			return answered, err
		}
		answered = true
		s.answered(res)
	}
}

func (s *Stream) markSent(call *streamCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call.sent++
}

// send sends calls, and then what comes, until the stream ends or the Stream is
// closed. Why it cannot send it learns who receives.
func (s *Stream) send(ctx context.Context, stream tokenStream, calls []*streamCall) {
	for _, call := range calls {
		if stream.Send(call.message()) != nil {
			return
		}
	}
	for {
		select {
		case call := <-s.queue:
			s.markSent(call)
			if stream.Send(call.message()) != nil {
				return
			}
		case <-s.closing:
			_ = stream.CloseSend() // nothing is lost by its errors
			return
		case <-ctx.Done():
			return
		}
	}
}

func (c *streamCall) message() *bullav1.StreamSignAndEncryptRequest {
	return &bullav1.StreamSignAndEncryptRequest{CorrelationId: c.id(), Request: c.req}
}

// answered gives a call its answer. One that nobody waits for any more is
// dropped.
func (s *Stream) answered(res *bullav1.StreamSignAndEncryptResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := s.calls[res.GetCorrelationId()]
	if call == nil {
		return
	}
	delete(s.calls, res.GetCorrelationId())
	if reply := res.GetReply(); reply != nil {
		call.answer <- streamAnswer{reply: reply}
		return
	}
	call.answer <- streamAnswer{err: itemError(res.GetStatus())}
}

// itemError is the error of an item. One without a token has an error in any
// case.
func itemError(st *rpcstatus.Status) error {
	if err := status.FromProto(st).Err(); err != nil {
		return err
	}
	return status.Error(codes.Internal, "the service answered with neither a token nor an error")
}

// goOn decides what becomes of the calls that a stream left unanswered when it
// ended with err, for the n-th time in a row without an answer. They are sent
// again after a pause, or fail.
func (s *Stream) goOn(n int, err error) bool {
	if errors.Is(err, io.EOF) {
		err = status.Error(codes.Unavailable, "the service ended the stream")
	}
	if s.ctx.Err() != nil {
		err = ErrStreamClosed
	}
	attempts := s.client.repeats.attempts
	wait, ok := pauseAfter(n, err, nil)
	if n >= attempts || !ok || !passing(err) {
		s.fail(err, 1)
		return false
	}
	s.fail(err, attempts)
	if len(s.unanswered()) == 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
	return true
}

// fail ends the calls that were sent so often, with err.
func (s *Stream) fail(err error, sent int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, call := range s.calls {
		if call.sent >= sent {
			delete(s.calls, id)
			call.answer <- streamAnswer{err: err, whole: true}
		}
	}
}
