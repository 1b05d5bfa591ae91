package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// errEnded is the answer to calls that were in flight when a worker ended, and
// to those that come to it later.
var errEnded = fmt.Errorf("%w: the PKCS#11 worker process ended before it answered", kms.ErrUnavailable)

// line is the parent's end of the socket to one worker process: calls go out,
// answers come back, in any order. Its goroutines are write, read and attend;
// all of them end when the socket is closed.
type line struct {
	pid  int // of the worker
	conn net.Conn
	out  *outbox // its mu guards what follows
	last uint64  // id of the last call
	// waiters are the calls in flight; nil when the line is dead.
	waiters map[uint64]*waiter
	// numbers are the keys that the worker knows by a number. Numbers are
	// given in turn, and anew when all are in use.
	numbers map[signKey]int
	keys    []signKey
	given   int

	ready  chan struct{} // closed when the worker has tried to bring its token up
	over   chan struct{} // closed when nothing more is read
	why    error         // why nothing more is read; set before over is closed
	events chan event    // for attend; closed with over
	beats  atomic.Uint64
	stats  atomic.Pointer[Stats] // of the last heartbeat
}

// waiter is a call in flight.
type waiter struct {
	done chan struct{} // capacity 1: it was answered
	kind frameKind
	body []byte
}

// waiters that are not in use.
type waiterPool struct{ pool sync.Pool }

func (p *waiterPool) get() *waiter {
	if w, ok := p.pool.Get().(*waiter); ok {
		return w
	}
	return &waiter{done: make(chan struct{}, 1)}
}

func (p *waiterPool) put(w *waiter) {
	w.kind, w.body = 0, nil
	p.pool.Put(w)
}

// event is what a worker says that is no answer: what is done about it may
// take time, which reading has not.
type event struct {
	kind     frameKind
	id       uint64      // framePINWanted, framePINBarred
	question pinQuestion // framePINWanted
	outcome  pinOutcome  // framePINOutcome
	refusal  error       // framePINOutcome
	line     logLine     // frameLog
}

// maxEvents is how many events may wait. A worker makes one login at a time;
// lines for the log beyond are dropped.
const maxEvents = 64

func newLine(pid int, conn net.Conn) *line {
	return &line{
		pid: pid, conn: conn, out: newOutbox(conn),
		waiters: map[uint64]*waiter{}, numbers: map[signKey]int{},
		ready: make(chan struct{}), over: make(chan struct{}), events: make(chan event, maxEvents),
	}
}

// dead reports whether no call can be made any more.
func (l *line) dead() bool {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	return l.waiters == nil
}

// sign has the worker sign. While ctx lives it waits for the answer.
func (l *line) sign(ctx context.Context, pool *waiterPool, k *signKey, input []byte) ([]byte, error) {
	return l.ask(ctx, pool, frameSigned, func(id uint64) error {
		number, err := l.number(k)
		if err != nil {
			return err
		}
		head := signHeader(number, timeLeft(ctx))
		return l.out.add(frameSign, id, head[:], input)
	})
}

// number is the number of a key, which the worker is told if it is new. The
// caller holds out.mu.
func (l *line) number(k *signKey) (int, error) {
	if n, ok := l.numbers[*k]; ok {
		return n, nil
	}
	n := l.given % maxKeys
	if err := l.out.add(frameKey, 0, appendKey(nil, n, *k)); err != nil {
		return 0, err
	}
	l.given++
	if n < len(l.keys) {
		delete(l.numbers, l.keys[n])
		l.keys[n] = *k
	} else {
		l.keys = append(l.keys, *k)
	}
	l.numbers[*k] = n
	return n, nil
}

// call calls any other method and returns the body of its result.
func (l *line) call(ctx context.Context, pool *waiterPool, c request) ([]byte, error) {
	c.left = timeLeft(ctx)
	b := requestBody(c)
	defer clear(b) // perhaps a data key
	return l.ask(ctx, pool, frameResult, func(id uint64) error { return l.out.add(frameCall, id, b) })
}

// ask sends a call, which send adds to the outbox, and waits for its answer.
func (l *line) ask(ctx context.Context, pool *waiterPool, want frameKind, send func(id uint64) error) ([]byte, error) {
	w := pool.get()
	l.out.mu.Lock()
	if l.waiters == nil {
		l.out.mu.Unlock()
		return nil, errEnded
	}
	l.last++
	id := l.last
	if err := send(id); err != nil {
		l.out.mu.Unlock()
		return nil, err
	}
	l.waiters[id] = w
	l.out.mu.Unlock()

	select {
	case <-w.done:
	case <-ctx.Done():
		if l.leave(id, errors.Is(ctx.Err(), context.Canceled)) {
			pool.put(w)
			return nil, ctx.Err()
		}
		<-w.done // the answer came just now
	}
	kind, b := w.kind, w.body
	pool.put(w)
	switch kind {
	case want:
		return b, nil
	case frameError:
		d := &body{b: b}
		err := readError(d)
		if d.done() != nil {
			return nil, l.garbled()
		}
		return nil, sameEnd(ctx, err)
	case 0:
		return nil, errEnded
	default:
		return nil, l.garbled()
	}
}

// sameEnd is err, of a call whose time was up in the worker, once it is up here
// too: who gets an error of his context finds that it has ended.
func sameEnd(ctx context.Context, err error) error {
	deadline, ok := ctx.Deadline()
	if !ok || !errors.Is(err, context.DeadlineExceeded) || time.Until(deadline) > lastWords {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// garbled ends the line, because of an answer that cannot be read.
func (l *line) garbled() error {
	_ = l.conn.Close() // which read notices
	return fmt.Errorf("%w: %w", kms.ErrUnavailable, errFrame)
}

// leave gives a call up. It reports false if the call was answered already. The
// worker is told of callers that left early; that time is up it knows.
func (l *line) leave(id uint64, early bool) bool {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	if _, ok := l.waiters[id]; !ok {
		return false
	}
	delete(l.waiters, id)
	if early {
		_ = l.out.add(frameCancel, id) // else it takes a session for nothing
	}
	return true
}

// write writes what is to be sent, until the outbox or the socket is closed.
func (l *line) write() {
	if err := l.out.run(); err != nil {
		_ = l.conn.Close()
	}
}

// read reads frames until there are no more, and then fails all calls.
func (l *line) read() {
	in := newInbox(l.conn)
	var err error
	for err == nil {
		var f frame
		if f, err = in.next(); err == nil {
			err = l.handle(f)
		}
	}
	l.out.close(errEnded)
	l.out.mu.Lock()
	left := l.waiters
	l.waiters = nil
	l.out.mu.Unlock()
	for _, w := range left {
		w.done <- struct{}{}
	}
	l.why = err
	close(l.events)
	close(l.over)
}

// handle takes one frame of the worker.
func (l *line) handle(f frame) error {
	switch f.kind {
	case frameSigned, frameResult, frameError:
		l.out.mu.Lock()
		w := l.waiters[f.id]
		delete(l.waiters, f.id)
		l.out.mu.Unlock()
		if w != nil { // else the caller left
			w.kind, w.body = f.kind, append([]byte(nil), f.body...)
			w.done <- struct{}{}
		}
		return nil
	case frameReady:
		select {
		case <-l.ready:
			return errFrame
		default:
			close(l.ready)
		}
		return nil
	case frameBeat:
		s, err := readBeat(f.body)
		if err == nil {
			l.stats.Store(&s)
			l.beats.Add(1)
		}
		return err
	}
	e, err := readEvent(f)
	if err != nil {
		return err
	}
	select {
	case l.events <- e:
	default:
		if e.kind != frameLog {
			return errFrame
		}
	}
	return nil
}

// readEvent reads the frame of an event.
func readEvent(f frame) (e event, err error) {
	e = event{kind: f.kind, id: f.id}
	switch f.kind {
	case framePINWanted:
		e.question, err = readPINQuestion(f.body)
	case framePINBarred:
		if len(f.body) > 0 {
			return e, errFrame
		}
	case framePINOutcome:
		e.outcome, e.refusal, err = readPINOutcome(f.body)
	case frameLog:
		e.line, err = readLogLine(f.body)
	default:
		err = errFrame
	}
	return e, err
}

// attend does what the worker's events ask for, until there are no more.
func (l *line) attend(pins *pinFile, log *slog.Logger) {
	for e := range l.events {
		switch e.kind {
		case framePINWanted:
			l.givePIN(e, pins)
		case framePINBarred:
			answer := [][]byte{{pinNotBarred}}
			if pins.barred(context.Background()) {
				answer = [][]byte{{pinDenied}, appendError(nil, &problem{stage: StepLogin, text: "the PIN was refused before"})}
			}
			_ = l.out.send(framePIN, e.id, answer...) // fails only at the end
		case framePINOutcome:
			switch e.outcome {
			case pinAccepted:
				pins.accepted()
			case pinRefused:
				pins.refused(e.refusal)
			case pinUndecided:
				pins.undecided()
			}
		case frameLog:
			log.LogAttrs(context.Background(), e.line.level, e.line.message, e.line.attrs...)
		}
	}
	pins.lost() // if it has one, it will not tell any more
}

// givePIN answers the worker's question for the PIN.
func (l *line) givePIN(e event, pins *pinFile) {
	p, err := pins.take(context.Background(), e.question) // it waits for no more than a lock, and not for long
	if err != nil {
		_ = l.out.send(framePIN, e.id, []byte{pinDenied}, appendError(nil, err)) // fails only at the end
		return
	}
	defer p.clear()
	if l.out.send(framePIN, e.id, []byte{pinGiven}, p.bytes()) != nil {
		pins.undecided() // it was not sent
	}
}

// ending is why nothing more was read, for people; "" if the socket was closed.
func (l *line) ending() string {
	if errors.Is(l.why, errFrame) || errors.Is(l.why, io.ErrUnexpectedEOF) {
		return l.why.Error()
	}
	return ""
}
