package pkcs11

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Exit codes of a worker process; that of a crash in the module is Go's own 2,
// or a signal.
const (
	exitAsked = 0  // by its parent, which closed the token or the socket
	exitStuck = 70 // a call is stuck inside the module
)

// The worker's own times.
const (
	helloWait = 10 * time.Second       // for the first frame
	readyWait = 4 * time.Second        // for the first login: less than New waits
	beatEvery = time.Second            // a heartbeat at least
	newsEvery = 100 * time.Millisecond // whether there is news for one
	busyQueue = 4                      // calls that wait for a session, at which answers wait for each other
	lastWords = 200 * time.Millisecond // to be written before the end
)

// RunWorker is the whole of a worker process: it serves one token over conn,
// the socket that its parent gave it, which is file descriptor 3 of the command
// in [Config].Worker. It returns only if it could not begin. Once it has, it
// ends the process, whatever hangs in it, when the socket is closed, when ctx
// ends, when its parent says so, and when a call is stuck inside the module.
//
// The process ignores SIGINT, SIGTERM and SIGHUP, which a supervisor may send to
// all that belongs to a service: its parent, which may still need it, decides
// when it ends. It leaves no core file, and on Linux cannot be traced by other
// processes of the user, for it holds a PIN and keys.
func RunWorker(ctx context.Context, conn *os.File) error {
	return runWorker(ctx, conn, NewModules())
}

// runWorker is RunWorker with a registry of modules.
func runWorker(ctx context.Context, conn *os.File, modules *Modules) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := harden(); err != nil {
		return fmt.Errorf("pkcs11: the worker process cannot be kept from leaving core files: %w", err)
	}
	socket, err := net.FileConn(conn)
	if err != nil {
		return fmt.Errorf("pkcs11: a worker process is started by the service that it works for, with a socket: %w", err)
	}
	_ = conn.Close() // FileConn made a copy
	in := newInbox(socket)
	_ = socket.SetReadDeadline(time.Now().Add(helloWait)) // sockets have deadlines
	f, err := in.next()
	if err != nil {
		return fmt.Errorf("pkcs11: no word from the service that this worker process works for: %w", err)
	}
	_ = socket.SetReadDeadline(time.Time{})
	d := &body{b: f.body}
	h := readHello(d)
	if err := d.done(); err != nil || f.kind != frameHello {
		return errors.New("pkcs11: the service and its worker process are not of one version; restart the service")
	}

	w := &worker{out: newOutbox(socket), calls: map[uint64]*callContext{}, jobs: make(chan job)}
	w.pins.out, w.pins.turn = w.out, make(chan struct{}, 1)
	w.cfg = h.cfg
	w.cfg.Modules, w.cfg.pins = modules, &w.pins
	w.cfg.Logger = slog.New(&socketLog{out: w.out, debug: h.debug})
	w.cfg.OnStuck = w.stuck
	if w.token, err = modules.open(w.cfg); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = socket.Close() })
	go func() {
		if err := w.out.run(); err != nil {
			os.Exit(exitAsked) // the parent is gone
		}
	}()
	go w.beat()
	go w.begin() //nolint:gosec // its time is its own: what ctx ends is the process
	w.serve(in)
	os.Exit(exitAsked)
	return nil
}

// worker serves a token over a socket.
type worker struct {
	cfg   Config
	token *token
	out   *outbox
	pins  askedPINs

	keys [maxKeys]*signKey // of serve alone

	jobs chan job // to goroutines that have nothing to do

	mu    sync.Mutex
	calls map[uint64]*callContext // guarded by mu: those that run

	sessions  atomic.Int64 // that sign at once, lately
	stuckOnce sync.Once
}

// begin brings the token up for the first time, and tells the parent when that
// has been tried, whatever came of it.
func (w *worker) begin() {
	ctx, cancel := context.WithTimeout(context.Background(), readyWait)
	defer cancel()
	_, _ = w.token.up(ctx, true) // the reason of a failure stays with the token
	w.tell()
	_ = w.out.send(frameReady, 0) // fails only at the end
}

// serve reads frames until there are no more.
func (w *worker) serve(in *inbox) {
	for {
		f, err := in.next()
		if err == nil {
			err = w.handle(f)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
				w.cfg.Logger.Error("the PKCS#11 worker process ends", "why", err)
				w.out.flush(lastWords)
			}
			return
		}
	}
}

// handle does what a frame says, or sees to it that it is done.
func (w *worker) handle(f frame) error {
	switch f.kind {
	case frameSign:
		number, left, input, err := readSign(f.body)
		if err != nil || number >= maxKeys || w.keys[number] == nil {
			return errFrame
		}
		w.start(job{id: f.id, ctx: w.enter(f.id, left), key: w.keys[number], input: append([]byte(nil), input...)})
	case frameCall:
		c, err := readRequest(f.body)
		if err != nil {
			return err
		}
		w.start(job{id: f.id, ctx: w.enter(f.id, time.Duration(c.left)*time.Microsecond), call: &c})
	case frameKey:
		d := &body{b: f.body}
		number, k := readKey(d)
		if err := d.done(); err != nil {
			return err
		}
		w.keys[number] = &k
	case frameCancel:
		w.mu.Lock()
		c := w.calls[f.id]
		w.mu.Unlock()
		if c != nil {
			c.end(context.Canceled)
		}
	case framePIN:
		return w.pins.answer(f)
	case frameDistrust:
		w.token.distrust()
	case frameFinish:
		go w.finish()
	default:
		return errFrame
	}
	return nil
}

// enter begins a call; leave ends it.
func (w *worker) enter(id uint64, left time.Duration) *callContext {
	ctx := newCallContext(left)
	w.mu.Lock()
	w.calls[id] = ctx
	w.mu.Unlock()
	return ctx
}

func (w *worker) leave(id uint64, ctx *callContext) (left int) {
	w.mu.Lock()
	delete(w.calls, id)
	left = len(w.calls)
	w.mu.Unlock()
	ctx.end(context.Canceled)
	return left
}

// job is a call to be made.
type job struct {
	id   uint64
	ctx  *callContext
	call *request // nil for a signature

	key   *signKey
	input []byte
}

// start has a job done by a goroutine of its own. Those that are done take
// others, because a goroutine that calls into C needs a larger stack than it is
// born with, and to grow that costs up to a tenth of an ES256 signature.
func (w *worker) start(j job) {
	select {
	case w.jobs <- j:
	default:
		go func() { // until the process ends
			for ; ; j = <-w.jobs {
				if j.call != nil {
					w.call(j.id, j.ctx, *j.call)
				} else {
					w.sign(j.id, j.ctx, j.key, j.input)
				}
			}
		}()
	}
}

// sign makes a signature and answers with it.
func (w *worker) sign(id uint64, ctx *callContext, k *signKey, input []byte) {
	signature, err := w.token.sign(ctx, k.name, k.mechanism, input)
	left := w.leave(id, ctx)
	if err != nil || left < w.busy() {
		w.reply(frameSigned, id, signature, err)
		return
	}
	w.out.mu.Lock()
	defer w.out.mu.Unlock()
	_ = w.out.addLater(frameSigned, id, signature) // fails only when nobody reads it
}

// busy is with how many calls the module has work for a while, so that an
// answer may wait for the next: those that have a session, and some that wait
// for one.
func (w *worker) busy() int { return int(w.sessions.Load()) + busyQueue }

// call calls any other method and answers with its result.
func (w *worker) call(id uint64, ctx *callContext, c request) {
	result, err := w.result(ctx, c)
	w.leave(id, ctx)
	w.reply(frameResult, id, result, err)
	clear(result) // perhaps a data key
	clear(c.data)
}

// result calls a method of the token.
func (w *worker) result(ctx context.Context, c request) ([]byte, error) {
	switch c.method {
	case methodOpen:
		f, err := w.token.open(ctx, c.want, c.kind)
		return appendFound(nil, f), err
	case methodOpenWrapping:
		f, err := w.token.openWrapping(ctx, c.want)
		return appendFoundWrapping(nil, f), err
	case methodSeal:
		return w.token.seal(ctx, c.key, c.mechanism, c.aad, c.data)
	case methodUnseal:
		return w.token.unseal(ctx, c.key, c.mechanism, c.aad, c.data)
	case methodOffers:
		flags, err := w.token.offers(ctx, c.mechanism)
		return appendUint(nil, uint64(flags)), err
	case methodCheck:
		return nil, w.token.check(ctx)
	case methodExamine:
		return appendExamination(nil, w.token.examine(ctx)), nil
	case methodCreate:
		s, err := w.token.create(ctx, c.spec, c.tag)
		return appendSelector(nil, s), err
	case methodTagged:
		list, err := w.token.tagged(ctx, c.tag)
		return appendSelectors(nil, list), err
	}
	return nil, errFrame // readRequest knows all there are
}

// reply answers a call. That fails only when nobody reads it, or if the answer
// is too large.
func (w *worker) reply(kind frameKind, id uint64, result []byte, err error) {
	if err == nil {
		if err = w.out.send(kind, id, result); err == nil {
			return
		}
	}
	_ = w.out.send(frameError, id, appendError(nil, err))
}

// finish closes the token in order and ends the process.
func (w *worker) finish() {
	if err := w.token.close(); err != nil {
		w.cfg.Logger.Warn("the PKCS#11 worker process ends without having closed all", "why", err)
	}
	w.out.flush(lastWords)
	os.Exit(exitAsked)
}

// stuck ends the process because a call is stuck inside the module: all that
// can be done about it is a new process. It is Config.OnStuck.
func (w *worker) stuck(err error) {
	w.stuckOnce.Do(func() {
		w.cfg.Logger.Error("the PKCS#11 worker process ends because a call is stuck inside the module", "why", err)
		w.out.flush(lastWords)
		os.Exit(exitStuck)
	})
}

// beat sends heartbeats, until the process ends.
func (w *worker) beat() {
	tick := time.NewTicker(newsEvery)
	defer tick.Stop()
	var last Stats
	var sent time.Time
	for range tick.C {
		s := w.token.stats()
		w.sessions.Store(int64(s.Limit))
		if time.Since(sent) >= beatEvery || s.Up != last.Up || s.Reason != last.Reason {
			last, sent = s, time.Now()
			w.tell()
		}
	}
}

// tell sends a heartbeat.
func (w *worker) tell() {
	s := w.token.stats()
	s.Reason = clipTo(s.Reason, maxText)
	text, err := json.Marshal(s)
	if err != nil {
		w.cfg.Logger.Error("the state of the token cannot be told", "why", err)
		return
	}
	_ = w.out.send(frameBeat, 0, text) // fails only at the end
}

// askedPINs is the pinSource of a worker: it asks the parent, which has the PIN
// file and the memory of what was refused.
type askedPINs struct {
	out *outbox

	// turn, of capacity 1, is held from a question to its answer, also when
	// who asked has gone: to the parent, a second question before it has heard
	// what became of the first PIN means that nobody will tell.
	turn chan struct{}

	mu     sync.Mutex
	number uint64         // guarded by mu: of the last question
	asked  chan pinAnswer // guarded by mu: where the answer to it goes; nil if nobody waits
}

func (a *askedPINs) take(ctx context.Context, q pinQuestion) (*pin, error) {
	got := a.ask(ctx, framePINWanted, appendPINQuestion(nil, q))
	if got.pin == nil && got.err == nil {
		return nil, errFrame // an answer to another question
	}
	return got.pin, got.err
}

func (a *askedPINs) barred(ctx context.Context) bool {
	got := a.ask(ctx, framePINBarred, nil)
	if got.pin != nil {
		got.pin.clear()
		a.undecided()
	}
	var p *problem
	return errors.As(got.err, &p)
}

// ask asks the parent and waits for the answer while ctx lives.
func (a *askedPINs) ask(ctx context.Context, kind frameKind, question []byte) pinAnswer {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return pinAnswer{err: ctx.Err()}
	}
	answer := make(chan pinAnswer, 1)
	a.mu.Lock()
	a.number++
	a.asked = answer
	err := a.out.send(kind, a.number, question)
	a.mu.Unlock()
	if err != nil {
		return pinAnswer{err: err}
	}
	select {
	case got := <-answer:
		return got
	case <-ctx.Done():
	}
	a.mu.Lock()
	waits := a.asked != nil
	a.asked = nil
	a.mu.Unlock()
	if !waits { // it came just now
		return <-answer
	}
	return pinAnswer{err: ctx.Err()}
}

// answer hands the answer of the parent to whoever asked.
func (a *askedPINs) answer(f frame) error {
	got, err := readPINAnswer(f.body)
	if err != nil {
		return err
	}
	a.mu.Lock()
	asked, expected := a.asked, f.id == a.number
	a.asked = nil
	a.mu.Unlock()
	if asked != nil {
		asked <- got
	} else if got.pin != nil {
		got.pin.clear()
		a.undecided()
	}
	select {
	case <-a.turn:
	default:
		expected = false
	}
	if !expected {
		return errFrame
	}
	return nil
}

func (a *askedPINs) accepted()         { a.tell(pinAccepted, nil) }
func (a *askedPINs) refused(why error) { a.tell(pinRefused, why) }
func (a *askedPINs) undecided()        { a.tell(pinUndecided, nil) }

func (a *askedPINs) tell(o pinOutcome, why error) {
	_ = a.out.send(framePINOutcome, 0, appendPINOutcome(nil, o, why)) // else the parent takes it for lost
}

// socketLog is a slog.Handler whose lines go to the parent's log.
type socketLog struct {
	out   *outbox
	debug bool
	attrs []slog.Attr
	group string
}

func (l *socketLog) Enabled(_ context.Context, level slog.Level) bool {
	return l.debug || level >= slog.LevelInfo
}

func (l *socketLog) Handle(_ context.Context, r slog.Record) error {
	line := logLine{level: r.Level, message: r.Message, attrs: slices.Clone(l.attrs)}
	r.Attrs(func(a slog.Attr) bool {
		a.Key = l.group + a.Key
		line.attrs = append(line.attrs, a)
		return true
	})
	return l.out.send(frameLog, 0, appendLogLine(nil, line))
}

func (l *socketLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := *l
	more.attrs = slices.Clone(l.attrs)
	for _, a := range attrs {
		a.Key = l.group + a.Key
		more.attrs = append(more.attrs, a)
	}
	return &more
}

func (l *socketLog) WithGroup(name string) slog.Handler {
	more := *l
	more.group += name + "."
	return &more
}
