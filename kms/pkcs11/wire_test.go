//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// readOne is the frame that b begins with.
func readOne(t testing.TB, b []byte) frame {
	t.Helper()
	f, err := newInbox(bytes.NewReader(b)).next()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFramesOfAllSizesComeThroughInOrder(t *testing.T) {
	var stream []byte
	var sizes []int
	for _, n := range []int{0, 1, 100, inboxSize - 13, inboxSize, 3*inboxSize + 7, 5, maxFrame - headSize, 2, 2} {
		sizes = append(sizes, n)
		stream = appendFrame(stream, frameSigned, uint64(n), bytes.Repeat([]byte{byte(n)}, n))
	}
	for name, r := range map[string]io.Reader{
		"Whole": bytes.NewReader(stream), "Halves": iotest.HalfReader(bytes.NewReader(stream)), "WithEOF": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			in := newInbox(r)
			for _, n := range sizes {
				f, err := in.next()
				if err != nil || f.id != uint64(n) || !bytes.Equal(f.body, bytes.Repeat([]byte{byte(n)}, n)) {
					t.Fatalf("frame of %d bytes: got id %d, %d bytes, error %v", n, f.id, len(f.body), err)
				}
			}
			if _, err := in.next(); !errors.Is(err, io.EOF) {
				t.Errorf("at the end: %v", err)
			}
			if len(in.buf) != inboxSize {
				t.Errorf("a buffer of %d bytes is kept", len(in.buf))
			}
			if bytes.ContainsFunc(in.buf, func(r rune) bool { return r != 0 }) {
				t.Error("what was read stays in memory")
			}
		})
	}
}

func TestFrameOfAForbiddenLengthIsRefused(t *testing.T) {
	for _, n := range []uint32{0, headSize - 1, maxFrame + 1, 1<<32 - 1} {
		b := append(binary.BigEndian.AppendUint32(nil, n), make([]byte, 64)...)
		if _, err := newInbox(bytes.NewReader(b)).next(); !errors.Is(err, errFrame) {
			t.Errorf("a length of %d: %v", n, err)
		}
	}
	cut := appendFrame(nil, frameSigned, 1, []byte("signature"))
	if _, err := newInbox(bytes.NewReader(cut[:len(cut)-1])).next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a frame that was cut: %v", err)
	}
}

// gated is a writer that counts and keeps what it is given, and waits before.
type gated struct {
	gate chan struct{}

	mu     sync.Mutex
	writes [][]byte // guarded by mu
	given  []byte   // as it was handed over
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writes, g.given = append(g.writes, bytes.Clone(p)), p
	return len(p), nil
}

func TestFramesThatAreReadyGoOutTogetherAndALoneOneAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &gated{gate: make(chan struct{})}
		o := newOutbox(w)
		var wg sync.WaitGroup
		wg.Go(func() { _ = o.run() })
		if err := o.send(frameSign, 1, []byte("one")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the writer has it
		for id := range 9 {
			if err := o.send(framePIN, uint64(id+2), []byte("12"), []byte("34")); err != nil {
				t.Fatal(err)
			}
		}
		w.gate <- struct{}{}
		synctest.Wait()
		w.gate <- struct{}{}
		o.flush(time.Second)
		if len(w.writes) != 2 {
			t.Fatalf("ten frames were written in %d pieces, want 2", len(w.writes))
		}
		if f := readOne(t, w.writes[0]); f.id != 1 || string(f.body) != "one" || len(w.writes[0]) != lengthSize+headSize+3 {
			t.Errorf("the first write was %q", w.writes[0])
		}
		in := newInbox(bytes.NewReader(w.writes[1]))
		for id := range 9 {
			if f, err := in.next(); err != nil || f.id != uint64(id+2) || string(f.body) != "1234" {
				t.Errorf("frame %d: %+v, %v", id, f, err)
			}
		}
		if bytes.Contains(w.given, []byte("1234")) {
			t.Error("a PIN that was sent stays in memory")
		}
		o.close(errEnded)
		wg.Wait()
		if err := o.send(frameSign, 1); !errors.Is(err, errEnded) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestHeldFramesWaitForOthersButNotLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &gated{gate: make(chan struct{}, 100)}
		for range 100 {
			w.gate <- struct{}{}
		}
		o := newOutbox(w)
		var wg sync.WaitGroup
		wg.Go(func() { _ = o.run() })
		later := func(n int) {
			for range n {
				o.mu.Lock()
				if err := o.addLater(frameSigned, 1, []byte("signature")); err != nil {
					t.Error(err)
				}
				o.mu.Unlock()
			}
			synctest.Wait()
		}
		wrote := func(want int, when string) {
			t.Helper()
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.writes) != want {
				t.Fatalf("%s: %d writes, want %d", when, len(w.writes), want)
			}
		}
		later(1)
		wrote(0, "one that may wait")
		time.Sleep(lazyTime)
		synctest.Wait()
		wrote(1, "after its time")
		later(maxLazy - 1)
		wrote(1, "one less than are enough")
		later(1)
		wrote(2, "enough")
		later(2)
		if err := o.send(frameBeat, 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wrote(3, "with one that may not wait")
		later(1)
		o.flush(time.Second)
		wrote(4, "flushed")
		o.close(errEnded)
		wg.Wait()
		time.Sleep(lazyTime) // the timer finds nothing to do
	})
}

func TestOutboxIsBounded(t *testing.T) {
	o := newOutbox(io.Discard) // nobody runs it
	if err := o.send(frameSign, 1, make([]byte, maxFrame)); !errors.Is(err, errFrameSize) {
		t.Errorf("a frame that is too large: %v", err)
	}
	big := make([]byte, maxFrame-headSize)
	for n := 0; ; n++ {
		err := o.send(frameSign, 1, big)
		if errors.Is(err, kms.ErrThrottled) && n > 0 {
			break
		}
		if err != nil || n > maxQueued/len(big) {
			t.Fatalf("frame %d: %v", n, err)
		}
	}
}

func TestGrowingOutboxLeavesNoPINBehind(t *testing.T) {
	o := newOutbox(io.Discard)
	if err := o.send(framePIN, 1, []byte("123456")); err != nil {
		t.Fatal(err)
	}
	old := o.queue
	if err := o.send(frameLog, 1, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(old, []byte("123456")) {
		t.Error("the PIN stays in the old buffer")
	}
}

func TestNumbersOfKeysAreBoundedAndUsedAnew(t *testing.T) {
	l := newLine(0, nil)
	for range 3 * maxKeys {
		k := &signKey{name: keyName{selector: selector{label: fmt.Sprint(l.given), byLabel: true}}}
		l.out.queue = nil
		n, err := l.number(k)
		if err != nil || n >= maxKeys {
			t.Fatalf("number %d, %v", n, err)
		}
		again, err := l.number(k)
		if err != nil || again != n {
			t.Fatalf("the same key has the numbers %d and %d", n, again)
		}
		f := readOne(t, l.out.queue)
		number, got := readKey(&body{b: f.body})
		if number != n || got != *k {
			t.Fatalf("the worker is told %d: %+v", number, got)
		}
	}
	if len(l.numbers) != maxKeys || len(l.keys) != maxKeys {
		t.Errorf("%d numbers, %d keys, want %d", len(l.numbers), len(l.keys), maxKeys)
	}
}

// specimens are bodies of all kinds.
func specimens() map[frameKind][][]byte {
	want := wanted{selector: selector{"label", "\x01\x02", true, true}, token: "t", serial: "s", manufacturer: "m", model: "o", class: ckoPrivateKey}
	name := keyName{want.selector, kms.EC, fingerprintOf([]byte("key"))}
	head := signHeader(3, 250_000)
	p := &problem{stage: StepLogin, settled: true, text: "text", advice: "advice", err: &callError{"C_Login", 0xA0}}
	beat := []byte(`{"Up":true,"Since":"2026-01-01T00:00:00Z","Limit":4,"Errors":{"CKR_OK":1}}`)
	out := map[frameKind][][]byte{
		frameHello: {appendHello(nil, hello{cfg: Config{Module: "/m", Token: "t", Serial: "s", PINFile: "pin", InitReserved: "r", Sessions: 7, RetryAfter: time.Second, InsistOnLogin: true}, debug: true})},
		frameKey:   {appendKey(nil, 3, signKey{name, mechanism{ckmRSAPKCSPSS, 1, 2, 3, 32}})},
		frameSign:  {append(head[:], "digest"...)},
		framePIN:   {append([]byte{pinGiven}, "123456"...), appendError([]byte{pinDenied}, p), {pinNotBarred}},
		frameError: {appendError(nil, down(p)), appendError(nil, contract(&goneError{&callError{"C_Sign", 0x32}})), appendError(nil, context.Canceled)},
		frameResult: {
			appendFound(nil, found{publics: [][]byte{{1, 2}, {3}}, extractable: true}),
			appendFoundWrapping(nil, foundWrapping{kind: kms.Oct, extractable: true, bits: 256, traits: fingerprintOf(nil), mayCrypt: true}),
			appendExamination(nil, examination{module: moduleInfo{"a", "b", "c"}, token: tokenInfo{"l", "s", "m", "o", 5, 6}, problem: p, err: context.DeadlineExceeded, warning: "w"}),
			appendSelectors(nil, []selector{want.selector, {}}),
		},
		framePINWanted:  {appendPINQuestion(nil, pinQuestion{warning: "USER_PIN_COUNT_LOW", trust: trustSame, token: tokenName{"a", "b", "c", "d"}}), appendPINQuestion(nil, pinQuestion{})},
		framePINOutcome: {appendPINOutcome(nil, pinAccepted, nil), appendPINOutcome(nil, pinRefused, &callError{"C_Login", 0xA0})},
		frameBeat:       {beat},
		frameLog:        {appendLogLine(nil, logLine{slog.LevelWarn, "message", []slog.Attr{slog.Int("n", 7), slog.Any("why", p)}})},
	}
	for _, c := range []request{
		{method: methodOpen, left: 9, want: want, kind: kms.EC}, {method: methodOpenWrapping, want: want},
		{method: methodSeal, key: name, mechanism: ckmAESGCM, aad: []byte("aad"), data: []byte("data")}, {method: methodOffers, mechanism: ckmAESGCM},
		{method: methodCheck}, {method: methodExamine},
		{method: methodCreate, spec: kms.KeySpec{Algorithm: kms.RS256, RSABits: 3072}, tag: "tag"}, {method: methodTagged, tag: "tag"},
	} {
		out[frameCall] = append(out[frameCall], requestBody(c))
	}
	return out
}

func TestWhatIsSentIsWhatIsRead(t *testing.T) {
	same := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", what, got, want)
		}
	}
	for kind, bodies := range specimens() {
		for i, b := range bodies {
			d := &body{b: b}
			what := fmt.Sprintf("kind %d, specimen %d", kind, i)
			switch kind {
			case frameHello:
				same(what, appendHello(nil, readHello(d)), b)
			case frameKey:
				n, k := readKey(d)
				same(what, appendKey(nil, n, k), b)
			case frameCall:
				c, err := readRequest(b)
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				same(what, requestBody(c), b)
				continue
			case frameError:
				same(what, appendError(nil, readError(d)), b)
			case frameResult:
				switch i {
				case 0:
					same(what, appendFound(nil, readFound(d)), b)
				case 1:
					same(what, appendFoundWrapping(nil, readFoundWrapping(d)), b)
				case 2:
					same(what, appendExamination(nil, readExamination(d)), b)
				case 3:
					same(what, appendSelectors(nil, readSelectors(d)), b)
				}
			default:
				continue
			}
			if err := d.done(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	number, left, input, err := readSign(specimens()[frameSign][0])
	if number != 3 || left != 250*time.Millisecond || string(input) != "digest" || err != nil {
		t.Errorf("sign: %d, %v, %q, %v", number, left, input, err)
	}
	line, err := readLogLine(specimens()[frameLog][0])
	if err != nil || line.message != "message" || line.level != slog.LevelWarn || len(line.attrs) != 2 || line.attrs[0].Value.String() != "7" {
		t.Errorf("log line: %+v, %v", line, err)
	}
}

func TestErrorsCrossWhole(t *testing.T) {
	p := &problem{stage: StepToken, settled: true, text: "what", advice: "do", err: &callError{"C_Login", 0xA0}}
	for name, err := range map[string]error{
		"Sentinel": fmt.Errorf("%w: no such", kms.ErrKeyNotFound), "Context": fmt.Errorf("waiting: %w", context.DeadlineExceeded),
		"Code": contract(&callError{"C_Sign", 0xB1}), "BareCode": ckr(0x80001234), "Gone": contract(&goneError{&callError{"C_Sign", 0x05}}),
		"GoneWithoutCode": &goneError{errors.New("another token")},
		"Problem":         down(p), "Nested": down(&problem{stage: StepModule, err: down(p)}), "Stuck": down(&problem{stage: StepModule, err: errStuck}),
		"Unknown": errors.New("plain"), "Closed": down(errClosed), "Unwrap": notOpened("forged"),
	} {
		t.Run(name, func(t *testing.T) {
			d := &body{b: appendError(nil, err)}
			got := readError(d)
			if e := d.done(); e != nil {
				t.Fatal(e)
			}
			if got.Error() != err.Error() {
				t.Errorf("text %q, want %q", got, err)
			}
			for _, e := range append(wireErrors, ckr(0xA0), ckr(0xB1), ckr(0x80001234), ckr(0x05)) {
				if errors.Is(got, e) != errors.Is(err, e) {
					t.Errorf("is %v: %t, want %t", e, errors.Is(got, e), errors.Is(err, e))
				}
			}
			if classOf(got) != classOf(err) || codeClass(got) != codeClass(err) {
				t.Errorf("class %d of %d, want %d of %d", classOf(got), codeClass(got), classOf(err), codeClass(err))
			}
			var a, b *problem
			if errors.As(got, &a) != errors.As(err, &b) {
				t.Fatalf("problem %v, want %v", a, b)
			}
			if b != nil && (a.Error() != b.Error() || a.stage != b.stage || a.settled != b.settled || a.text != b.text || a.advice != b.advice || a.err.Error() != b.err.Error()) {
				t.Errorf("problem %+v, want %+v", a, b)
			}
		})
	}
	long := &body{b: appendError(nil, errors.New(strings.Repeat("x", 2*maxString)))}
	if err := readError(long); long.done() != nil || len(err.Error()) != maxText {
		t.Errorf("a long text came with %d bytes, %v", len(err.Error()), long.err)
	}
}

func TestCallContextEndsLikeAnyOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, wait := range map[string]bool{"Watched": true, "Unwatched": false} {
			c := newCallContext(time.Second)
			var done <-chan struct{}
			if wait {
				done = c.Done()
			}
			if c.Err() != nil {
				t.Errorf("%s: ended at once", name)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if !errors.Is(c.Err(), context.DeadlineExceeded) {
				t.Errorf("%s: %v after its deadline", name, c.Err())
			}
			if wait {
				<-done
			}
			<-c.Done()
		}
		c := newCallContext(0)
		child, cancel := context.WithCancel(c)
		defer cancel()
		if _, ok := c.Deadline(); ok || c.Err() != nil {
			t.Error("without a limit it has one")
		}
		c.end(context.Canceled)
		<-child.Done()
		if !errors.Is(c.Err(), context.Canceled) || !isCallContext(c) || isCallContext(child) {
			t.Errorf("after its end: %v", c.Err())
		}
	})
}

func TestBackOffDoublesToItsLimit(t *testing.T) {
	want := []time.Duration{0, 100, 200, 400, 800, 1600, 3200, 5000, 5000}
	for died, ms := range want {
		if got := usualTempo.backOff(died); got != ms*time.Millisecond {
			t.Errorf("after %d deaths: %v, want %v", died, got, ms*time.Millisecond)
		}
	}
}

// FuzzFrame has both ends read what the other may have written.
func FuzzFrame(f *testing.F) {
	var all []byte
	for kind, bodies := range specimens() {
		for _, b := range bodies {
			f.Add(appendFrame(nil, kind, 7, b))
			all = appendFrame(all, kind, 7, b)
		}
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := newInbox(iotest.OneByteReader(bytes.NewReader(stream)))
		if len(stream) > 1<<12 {
			in = newInbox(bytes.NewReader(stream))
		}
		l := newLine(0, nil)
		for {
			fr, err := in.next()
			if err != nil {
				return
			}
			// What a worker reads.
			_, _, _, _ = readSign(fr.body)
			if c, err := readRequest(fr.body); err == nil {
				if again, err := readRequest(requestBody(c)); err != nil || !reflect.DeepEqual(again, c) {
					t.Errorf("%+v is read as %+v, %v", c, again, err)
				}
			}
			if a, _ := readPINAnswer(fr.body); a.pin != nil && (a.pin.size == 0 || a.pin.size > maxPIN) {
				t.Errorf("a PIN of %d bytes", a.pin.size)
			}
			readHello(&body{b: fr.body})
			if n, _ := readKey(&body{b: fr.body}); n >= maxKeys {
				t.Errorf("key number %d", n)
			}
			// What its parent reads.
			w := &waiter{done: make(chan struct{}, 1)}
			l.waiters[fr.id] = w
			_ = l.handle(fr)
			d := &body{b: fr.body}
			if err := readError(d); d.done() == nil {
				_, _ = err.Error(), classOf(err)
				if d := (&body{b: appendError(nil, err)}); readError(d).Error() != clipTo(err.Error(), maxText) || d.done() != nil {
					t.Errorf("%q does not come back", err)
				}
			}
			readFound(&body{b: fr.body})
			readFoundWrapping(&body{b: fr.body})
			readExamination(&body{b: fr.body})
			readSelectors(&body{b: fr.body})
			for range len(l.events) {
				<-l.events
			}
		}
	})
}

func TestPINIsAskedForOverTheSocket(t *testing.T) {
	ours, theirs := net.Pipe()
	file := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(file, []byte("123456\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pins := &pinFile{path: file}
	l := newLine(0, ours)
	w := &worker{out: newOutbox(theirs)}
	w.cfg.Logger = slog.New(slog.DiscardHandler)
	w.pins.out, w.pins.turn = w.out, make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(l.write)
	wg.Go(l.read)
	wg.Go(func() { l.attend(pins, w.cfg.Logger) })
	wg.Go(func() { _ = w.out.run() })
	wg.Go(func() { w.serve(newInbox(theirs)) })
	defer wg.Wait()
	defer w.out.close(errEnded)
	defer ours.Close()

	if w.pins.barred(t.Context()) {
		t.Error("a PIN that nobody refused is barred")
	}
	p, err := w.pins.take(t.Context(), pinQuestion{})
	if err != nil || string(p.bytes()) != "123456" {
		t.Fatalf("take: %v, %v", p, err)
	}
	w.pins.refused(&callError{"C_Login", 0xA0})
	if !w.pins.barred(t.Context()) {
		t.Error("a refused PIN is not barred")
	}
	_, err = w.pins.take(t.Context(), pinQuestion{})
	var why *problem
	if !errors.As(err, &why) || why.stage != StepLogin || !errors.Is(err, ckr(0xA0)) || !containsAll(why.Error(), file, "was refused before", "CKR_PIN_INCORRECT") {
		t.Errorf("take after a refusal: %v", err)
	}

	// A question that was given up is not answered by the next one's PIN, and
	// a PIN that nobody takes any more is no lost login.
	if err := os.WriteFile(file, []byte("2222"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		gone, cancel := context.WithTimeout(t.Context(), time.Duration(n)*10*time.Microsecond)
		if p, err := w.pins.take(gone, pinQuestion{}); err == nil {
			p.clear()
			w.pins.undecided()
		}
		cancel()
	}
	if p, err = w.pins.take(t.Context(), pinQuestion{}); err != nil || string(p.bytes()) != "2222" {
		t.Errorf("take after others were given up: %v, %v", p, err)
	}
	w.pins.accepted()
	if w.pins.barred(t.Context()) {
		t.Error("an accepted PIN is barred")
	}
}
