package pkcs11

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// What the frames to and from a worker say. Each type has a function that
// appends it to a body and one that reads it.

// method is a method of vault that is called by frameCall.
type method byte

const (
	methodOpen method = iota + 1
	methodOpenWrapping
	methodSeal
	methodUnseal
	methodOffers
	methodCheck
	methodExamine
	methodCreate
	methodTagged
)

// maxRetry bounds the retry time that a worker is told.
const maxRetry = 24 * time.Hour

// hello is what a worker has to know. The PIN is not in it.
type hello struct {
	cfg   Config // as far as it is plain data
	debug bool   // lines of that level are wanted
}

func appendHello(b []byte, h hello) []byte {
	b = appendUint(b, wireVersion)
	for _, s := range []string{h.cfg.Module, h.cfg.Token, h.cfg.Serial, h.cfg.PINFile, h.cfg.InitReserved} {
		b = appendBytes(b, s)
	}
	b = appendUint(b, uint64(h.cfg.Sessions))                  //nolint:gosec // checked before
	b = appendUint(b, uint64(min(h.cfg.RetryAfter, maxRetry))) //nolint:gosec // checked before
	b = appendBool(b, h.cfg.InsistOnLogin)
	return appendBool(b, h.debug)
}

func readHello(d *body) (h hello) {
	if d.number() != wireVersion {
		d.fail()
	}
	for _, s := range []*string{&h.cfg.Module, &h.cfg.Token, &h.cfg.Serial, &h.cfg.PINFile, &h.cfg.InitReserved} {
		*s = d.text()
	}
	h.cfg.Sessions = d.upTo(maxSessions)
	h.cfg.RetryAfter = time.Duration(d.upTo(int(maxRetry)))
	h.cfg.InsistOnLogin = d.bool()
	h.debug = d.bool()
	return h
}

func appendSelector(b []byte, s selector) []byte {
	b = appendBool(appendBytes(b, s.label), s.byLabel)
	return appendBool(appendBytes(b, s.id), s.byID)
}

func readSelector(d *body) (s selector) {
	s.label, s.byLabel = d.text(), d.bool()
	s.id, s.byID = d.text(), d.bool()
	return s
}

func appendWanted(b []byte, w wanted) []byte {
	b = appendSelector(b, w.selector)
	for _, s := range []string{w.token, w.serial, w.manufacturer, w.model} {
		b = appendBytes(b, s)
	}
	return appendUint(b, uint64(w.class))
}

func readWanted(d *body) (w wanted) {
	w.selector = readSelector(d)
	for _, s := range []*string{&w.token, &w.serial, &w.manufacturer, &w.model} {
		*s = d.text()
	}
	w.class = uint(d.number())
	return w
}

func appendKeyName(b []byte, k keyName) []byte {
	b = appendBytes(appendSelector(b, k.selector), string(k.kind))
	return append(b, k.public[:]...)
}

func readKeyName(d *body) (k keyName) {
	k.selector, k.kind = readSelector(d), kms.KeyType(d.text())
	copy(k.public[:], d.take(len(k.public)))
	return k
}

// signKey is what a number stands for: a key, and the mechanism it signs by.
type signKey struct {
	name      keyName
	mechanism mechanism
}

// appendKey appends the number of a key and what it stands for.
func appendKey(b []byte, number int, k signKey) []byte {
	b = appendKeyName(appendUint(b, uint64(number)), k.name) //nolint:gosec // not negative
	for _, n := range []uint{k.mechanism.kind, k.mechanism.pssHash, k.mechanism.pssMGF, k.mechanism.pssSalt} {
		b = appendUint(b, uint64(n))
	}
	return appendUint(b, uint64(k.mechanism.inputSize)) //nolint:gosec // not negative
}

func readKey(d *body) (number int, k signKey) {
	number, k.name = d.upTo(maxKeys-1), readKeyName(d)
	for _, n := range []*uint{&k.mechanism.kind, &k.mechanism.pssHash, &k.mechanism.pssMGF, &k.mechanism.pssSalt} {
		*n = uint(d.number())
	}
	k.mechanism.inputSize = d.upTo(maxString)
	return number, k
}

// The body of frameSign is the number of the key, 2 bytes, the time that is
// left to the caller, 4 bytes in microseconds (0: for ever), and what is to be
// signed. It is written and read by hand because it is what a worker is for.
const signHead = 2 + 4

func signHeader(number int, left uint32) [signHead]byte {
	return [signHead]byte{byte(number >> 8), byte(number), byte(left >> 24), byte(left >> 16), byte(left >> 8), byte(left)} //nolint:gosec // number is below maxKeys
}

func readSign(b []byte) (number int, left time.Duration, input []byte, err error) {
	if len(b) < signHead {
		return 0, 0, nil, errFrame
	}
	number = int(b[0])<<8 | int(b[1])
	micros := uint32(b[2])<<24 | uint32(b[3])<<16 | uint32(b[4])<<8 | uint32(b[5])
	return number, time.Duration(micros) * time.Microsecond, b[signHead:], nil
}

// timeLeft is how long the caller of ctx waits, in microseconds; 0 for ever, or
// for more than an hour.
func timeLeft(ctx context.Context) uint32 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	left := time.Until(deadline)
	if left > time.Hour {
		return 0
	}
	return uint32(max(1, left.Microseconds())) //nolint:gosec // an hour at most
}

// request is the body of frameCall: a method and what it is given.
type request struct {
	method    method
	left      uint32      // as in frameSign
	want      wanted      // open, openWrapping
	kind      kms.KeyType // open
	key       keyName     // seal, unseal
	mechanism uint        // seal, unseal, offers
	aad, data []byte      // seal, unseal
	spec      kms.KeySpec
	tag       string // create, tagged
}

func requestBody(c request) []byte {
	b := appendUint([]byte{byte(c.method)}, uint64(c.left))
	switch c.method {
	case methodOpen:
		b = appendBytes(appendWanted(b, c.want), string(c.kind))
	case methodOpenWrapping:
		b = appendWanted(b, c.want)
	case methodSeal, methodUnseal:
		b = appendUint(appendKeyName(b, c.key), uint64(c.mechanism))
		b = append(appendBytes(b, c.aad), c.data...)
	case methodOffers:
		b = appendUint(b, uint64(c.mechanism))
	case methodCreate:
		b = appendUint(appendBytes(b, string(c.spec.Algorithm)), uint64(c.spec.RSABits)) //nolint:gosec // checked before
		b = appendBytes(b, c.tag)
	case methodTagged:
		b = appendBytes(b, c.tag)
	}
	return b
}

func readRequest(b []byte) (c request, err error) {
	d := &body{b: b}
	if m := d.take(1); m != nil {
		c.method = method(m[0])
	}
	c.left = uint32(d.upTo(1<<32 - 1)) //nolint:gosec // bounded
	switch c.method {
	case methodOpen:
		c.want, c.kind = readWanted(d), kms.KeyType(d.text())
	case methodOpenWrapping:
		c.want = readWanted(d)
	case methodSeal, methodUnseal:
		c.key, c.mechanism = readKeyName(d), uint(d.number())
		c.aad, c.data = d.bytes(maxFrame), append([]byte(nil), d.rest()...)
	case methodOffers:
		c.mechanism = uint(d.number())
	case methodCheck, methodExamine:
	case methodCreate:
		c.spec.Algorithm, c.spec.RSABits = kms.Algorithm(d.text()), d.upTo(1<<20)
		c.tag = d.text()
	case methodTagged:
		c.tag = d.text()
	default:
		d.fail()
	}
	return c, d.done()
}

func appendFound(b []byte, f found) []byte {
	b = appendUint(b, uint64(len(f.publics)))
	for _, p := range f.publics {
		b = appendBytes(b, p)
	}
	return appendBool(b, f.extractable)
}

func readFound(d *body) (f found) {
	for range d.upTo(maxList) {
		f.publics = append(f.publics, d.bytes(maxString))
		if d.err != nil {
			return found{}
		}
	}
	f.extractable = d.bool()
	return f
}

func appendFoundWrapping(b []byte, f foundWrapping) []byte {
	b = appendBool(appendBytes(b, string(f.kind)), f.extractable)
	b = appendUint(appendFound(b, f.private), uint64(f.bits)) //nolint:gosec // not negative
	b = append(b, f.traits[:]...)
	return appendBool(appendBool(b, f.mayCrypt), f.mayWrap)
}

func readFoundWrapping(d *body) (f foundWrapping) {
	f.kind, f.extractable = kms.KeyType(d.text()), d.bool()
	f.private, f.bits = readFound(d), d.upTo(1<<20)
	copy(f.traits[:], d.take(len(f.traits)))
	f.mayCrypt, f.mayWrap = d.bool(), d.bool()
	return f
}

func appendExamination(b []byte, x examination) []byte {
	for _, s := range []string{
		x.module.manufacturer, x.module.description, x.module.version,
		x.token.label, x.token.serial, x.token.manufacturer, x.token.model, x.warning,
	} {
		b = appendBytes(b, s)
	}
	b = appendUint(appendUint(b, uint64(x.token.flags)), uint64(x.token.maxSessions))
	b = appendBool(b, x.problem != nil)
	if x.problem != nil {
		b = appendProblem(b, x.problem, 0)
	}
	b = appendBool(b, x.err != nil)
	if x.err != nil {
		b = appendError(b, x.err)
	}
	return b
}

func readExamination(d *body) (x examination) {
	for _, s := range []*string{
		&x.module.manufacturer, &x.module.description, &x.module.version,
		&x.token.label, &x.token.serial, &x.token.manufacturer, &x.token.model, &x.warning,
	} {
		*s = d.text()
	}
	x.token.flags, x.token.maxSessions = uint(d.number()), uint(d.number())
	if d.bool() {
		x.problem = readProblem(d, 0)
	}
	if d.bool() {
		x.err = readError(d)
	}
	return x
}

func appendSelectors(b []byte, list []selector) []byte {
	b = appendUint(b, uint64(len(list)))
	for _, s := range list {
		b = appendSelector(b, s)
	}
	return b
}

func readSelectors(d *body) (list []selector) {
	for range d.upTo(maxList) {
		list = append(list, readSelector(d))
		if d.err != nil {
			return nil
		}
	}
	return list
}

func appendPINQuestion(b []byte, q pinQuestion) []byte {
	b = append(appendBytes(b, clipTo(q.warning, maxText)), byte(q.trust))
	for _, s := range []string{q.token.label, q.token.serial, q.token.manufacturer, q.token.model} {
		b = appendBytes(b, s)
	}
	return b
}

func readPINQuestion(b []byte) (q pinQuestion, err error) {
	d := &body{b: b}
	q.warning, q.trust = d.text(), trust(d.upTo(int(trustNone))) //nolint:gosec // bounded
	for _, s := range []*string{&q.token.label, &q.token.serial, &q.token.manufacturer, &q.token.model} {
		*s = d.text()
	}
	if len(q.warning) > maxText {
		d.fail()
	}
	return q, d.done()
}

// The body of framePIN begins with one of these. After pinGiven comes the PIN,
// after pinDenied an error. pinNotBarred is an answer to framePINBarred only.
const (
	pinDenied byte = iota
	pinGiven
	pinNotBarred
)

// pinAnswer is what a framePIN says.
type pinAnswer struct {
	pin *pin  // to be cleared
	err error // why there is none; nil without a pin: there would be one
}

func readPINAnswer(b []byte) (a pinAnswer, err error) {
	d := &body{b: b}
	switch d.upTo(int(pinNotBarred)) {
	case int(pinDenied):
		a.err = readError(d)
	case int(pinGiven):
		v := d.rest()
		if len(v) == 0 || len(v) > maxPIN {
			return pinAnswer{}, errFrame
		}
		a.pin = new(pin)
		a.pin.size = copy(a.pin.buf[:], v)
	}
	return a, d.done()
}

// pinOutcome is what became of a login.
type pinOutcome byte

const (
	pinAccepted pinOutcome = iota + 1
	pinRefused
	pinUndecided
)

func appendPINOutcome(b []byte, o pinOutcome, why error) []byte {
	b = append(b, byte(o))
	if o == pinRefused {
		b = appendError(b, why)
	}
	return b
}

func readPINOutcome(b []byte) (o pinOutcome, why error, err error) {
	d := &body{b: b}
	o = pinOutcome(d.upTo(int(pinUndecided))) //nolint:gosec // bounded
	switch o {
	case pinAccepted, pinUndecided:
	case pinRefused:
		why = readError(d)
	default:
		d.fail()
	}
	return o, why, d.done()
}

// A heartbeat is Stats in JSON.

func readBeat(b []byte) (s Stats, err error) {
	if len(b) > maxStats || json.Unmarshal(b, &s) != nil {
		return Stats{}, errFrame
	}
	return s, nil
}

// logLine is a line for the log, its attributes as text.
type logLine struct {
	level   slog.Level
	message string
	attrs   []slog.Attr
}

// maxAttrs bounds the attributes of a line.
const maxAttrs = 32

func appendLogLine(b []byte, l logLine) []byte {
	b = appendUint(b, uint64(l.level+128)) //nolint:gosec // levels are -4 to 8
	b = appendBytes(b, clipTo(l.message, maxText))
	l.attrs = l.attrs[:min(len(l.attrs), maxAttrs)]
	b = appendUint(b, uint64(len(l.attrs)))
	for _, a := range l.attrs {
		b = appendBytes(appendBytes(b, clipTo(a.Key, 64)), clipTo(a.Value.String(), maxText))
	}
	return b
}

func readLogLine(b []byte) (l logLine, err error) {
	d := &body{b: b}
	l.level = slog.Level(d.upTo(256) - 128)
	l.message = d.text()
	for range d.upTo(maxAttrs) {
		l.attrs = append(l.attrs, slog.String(d.text(), d.text()))
	}
	return l, d.done()
}

// clipTo cuts what is longer than n bytes.
func clipTo(s string, n int) string { return s[:min(len(s), n)] }

// An error crosses as its text, which of the errors below it is, the module's
// code, and the problem in it, so that errors.Is and errors.As find the same on
// the other side.

// wireErrors are the errors that are told by their place here.
var wireErrors = []error{
	kms.ErrUnavailable, kms.ErrThrottled, kms.ErrKeyNotFound, kms.ErrKeyDisabled,
	kms.ErrKeyMismatch, kms.ErrUnwrap, kms.ErrReference,
	context.Canceled, context.DeadlineExceeded,
	errStuck, errClosed, errAnswer, errNotLoaded, errHangs, errReserved, errPINChanged, errRefusedBefore,
}

// wireError is an error that came over a socket.
type wireError struct {
	text string
	is   []error
}

func (e *wireError) Error() string   { return e.text }
func (e *wireError) Unwrap() []error { return e.is }

func appendError(b []byte, err error) []byte { return appendErrorAt(b, err, 0) }

func appendErrorAt(b []byte, err error, depth int) []byte {
	b = appendBytes(b, clipTo(err.Error(), maxText))
	var mask uint64
	for i, e := range wireErrors {
		if errors.Is(err, e) {
			mask |= 1 << i
		}
	}
	b = appendUint(b, mask)

	var g *goneError
	b = appendBool(b, errors.As(err, &g))
	var c ckr
	b = appendBool(b, errors.As(err, &c))
	if c != 0 {
		var e *callError
		var function string
		if errors.As(err, &e) {
			function = e.function
		}
		b = appendUint(appendBytes(b, clipTo(function, 64)), uint64(c))
	}
	var p *problem
	has := depth < maxNesting && errors.As(err, &p)
	b = appendBool(b, has)
	if has {
		b = appendProblem(b, p, depth+1)
	}
	return b
}

func readError(d *body) error { return readErrorAt(d, 0) }

func readErrorAt(d *body, depth int) error {
	e := &wireError{text: d.text()}
	mask := d.number()
	for i, known := range wireErrors {
		if mask&(1<<i) != 0 {
			e.is = append(e.is, known)
		}
	}
	gone := d.bool()
	var answer error
	if d.bool() {
		function, code := d.text(), ckr(d.number())
		if code == 0 { // CKR_OK is no error
			d.fail()
		}
		answer = code
		if function != "" {
			answer = &callError{function, code}
		}
	}
	if gone {
		if answer == nil {
			answer = errors.New(e.text)
		}
		answer = &goneError{answer}
	}
	if answer != nil {
		e.is = append(e.is, answer)
	}
	if d.bool() {
		if depth >= maxNesting {
			d.fail()
			return e
		}
		e.is = append(e.is, readProblem(d, depth+1))
	}
	return e
}

func appendProblem(b []byte, p *problem, depth int) []byte {
	b = appendBool(appendBytes(b, p.stage), p.settled)
	b = appendBytes(appendBytes(b, clipTo(p.text, maxText)), clipTo(p.advice, maxText))
	b = appendBool(b, p.err != nil)
	if p.err != nil {
		b = appendErrorAt(b, p.err, depth)
	}
	return b
}

func readProblem(d *body, depth int) *problem {
	p := &problem{stage: d.text(), settled: d.bool()}
	p.text, p.advice = d.text(), d.text()
	switch p.stage {
	case StepModule, StepToken, StepLogin:
	default:
		d.fail()
	}
	if d.bool() {
		p.err = readErrorAt(d, depth)
	}
	return p
}
