package pkcs11

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What goes between a process and its worker, in both directions, is a stream
// of frames:
//
//	length  4 bytes, big-endian: of what follows
//	kind    1 byte
//	id      8 bytes, big-endian: of the call that it belongs to, else 0
//	body    as the kind says
//
// Both ends are one program, so there is one version of this, told in the
// hello. Neither end believes the other: a module that is about to crash may
// have written anything anywhere. Every length is bounded, and what cannot be
// read ends the connection, and with it the worker.
const (
	wireVersion = 1

	lengthSize = 4
	headSize   = 1 + 8     // kind and id
	maxFrame   = 4 << 20   // bytes after the length
	inboxSize  = 64 << 10  // what is read at once, as far as it is there
	maxQueued  = 16 << 20  // bytes that wait to be written
	maxString  = 64 << 10  // bytes of a text, a label, an attribute
	maxList    = 1024      // members of a list
	maxKeys    = 1 << 12   // keys that have a number
	maxNesting = 4         // problems in errors in problems
	maxText    = 8 << 10   // bytes of an error's text, which is cut
	maxStats   = 256 << 10 // bytes of a heartbeat
)

// frameKind says what a frame is.
type frameKind byte

const (
	// To the worker.
	frameHello    frameKind = iota + 1 // what to serve; the first frame
	frameKey                           // gives a key a number
	frameSign                          // signs with a key of a number
	frameCall                          // any other method of vault
	frameCancel                        // the caller has gone
	framePIN                           // the answer to framePINWanted and framePINBarred
	frameDistrust                      // vault.distrust
	frameFinish                        // closes the token and ends the worker

	// From the worker.
	frameReady      // the token was brought up, or could not be
	frameSigned     // a signature
	frameResult     // what another method returned
	frameError      // the error of a call
	framePINWanted  // asks for the PIN
	framePINBarred  // asks whether there is none to be had
	framePINOutcome // tells what became of it
	frameBeat       // the state of the token: a sign of life
	frameLog        // a line for the log
)

// frame is one frame. Its body is good until the next one is read.
type frame struct {
	kind frameKind
	id   uint64
	body []byte
}

// errFrame: the other end sent what cannot be read.
var errFrame = errors.New("the other end of the worker's socket sent something that cannot be read")

// errFrameSize: what was to be sent does not fit into a frame.
var errFrameSize = fmt.Errorf("more than the %d bytes that can be sent to a worker process", maxFrame-1024)

// inbox reads frames, many with one read. What was read is overwritten as soon
// as it was used: it may be a PIN or a data key.
type inbox struct {
	r      io.Reader
	buf    []byte
	wiped  int // before it, nothing is left
	begin  int // of what was not handed out
	end    int // of what was read
	common []byte
}

func newInbox(r io.Reader) *inbox {
	b := make([]byte, inboxSize)
	return &inbox{r: r, buf: b, common: b}
}

// next is the next frame. At the end of the stream the error is io.EOF.
func (in *inbox) next() (frame, error) {
	clear(in.buf[in.wiped:in.begin])
	in.wiped = in.begin
	for {
		need := lengthSize + headSize
		if in.end-in.begin >= lengthSize {
			n := binary.BigEndian.Uint32(in.buf[in.begin:])
			if n < headSize || n > maxFrame {
				return frame{}, errFrame
			}
			need = lengthSize + int(n)
			if in.end-in.begin >= need {
				head := in.buf[in.begin+lengthSize : in.begin+need]
				in.begin += need
				return frame{kind: frameKind(head[0]), id: binary.BigEndian.Uint64(head[1:]), body: head[headSize:]}, nil
			}
		}
		in.makeRoom(need)
		n, err := in.r.Read(in.buf[in.end:])
		in.end += n
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) && in.end > in.begin {
				err = io.ErrUnexpectedEOF
			}
			return frame{}, err
		}
	}
}

// makeRoom makes room for a frame of need bytes from begin on, and for
// something to be read.
func (in *inbox) makeRoom(need int) {
	if in.begin+need <= len(in.buf) && in.end < len(in.buf) {
		return
	}
	to := in.common
	if need > len(to) {
		to = in.buf
	}
	if need > len(to) {
		to = make([]byte, need)
	}
	n := copy(to, in.buf[in.begin:in.end])
	if &to[0] == &in.buf[0] {
		clear(to[n:in.end])
	} else {
		clear(in.buf[in.begin:in.end])
	}
	in.buf, in.wiped, in.begin, in.end = to, 0, 0, n
}

// appendFrame appends a frame whose body is the parts.
func appendFrame(b []byte, kind frameKind, id uint64, parts ...[]byte) []byte {
	n := headSize
	for _, p := range parts {
		n += len(p)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, byte(kind))
	b = binary.BigEndian.AppendUint64(b, id)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// What bodies are made of: numbers as varints, and texts and bytes after their
// length.

func appendUint(b []byte, n uint64) []byte { return binary.AppendUvarint(b, n) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendBytes[T string | []byte](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// body reads a body. After the first thing that is not as it should be, all
// else is zero, and err says so.
type body struct {
	b   []byte
	err error
}

func (d *body) fail() {
	d.b, d.err = nil, errFrame
}

func (d *body) number() uint64 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[size:]
	return n
}

// upTo is a number that is limit at most.
func (d *body) upTo(limit int) int {
	n := d.number()
	if n > uint64(limit) { //nolint:gosec // limits are positive
		d.fail()
		return 0
	}
	return int(n) //nolint:gosec // limit at most
}

func (d *body) bool() bool { return d.upTo(1) == 1 }

// take is the next n bytes, not a copy of them.
func (d *body) take(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// bytes is a copy of the next bytes, limit at most.
func (d *body) bytes(limit int) []byte {
	v := d.take(d.upTo(limit))
	if len(v) == 0 {
		return nil
	}
	return append([]byte(nil), v...)
}

func (d *body) text() string { return string(d.take(d.upTo(maxString))) }

// rest is all that is left, not a copy of it.
func (d *body) rest() []byte { return d.take(len(d.b)) }

// done is the error, which it is too if something is left.
func (d *body) done() error {
	if len(d.b) > 0 {
		d.fail()
	}
	return d.err
}
