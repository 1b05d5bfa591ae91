package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// maxPIN bounds the content of a PIN file, in bytes.
const maxPIN = 1024

// pin is a PIN in memory. Whoever gets one calls clear as soon as it was used.
// The module's binding makes a copy of it in C for the time of C_Login, which
// is freed but not overwritten.
type pin struct {
	buf  [maxPIN + 1]byte
	size int
}

func (p *pin) bytes() []byte { return p.buf[:p.size] }
func (p *pin) clear()        { clear(p.buf[:]); p.size = 0 }

// readPIN reads the PIN file at path: its content without one line end. The
// errors are about the file, never about what is in it.
func readPIN(path string) (*pin, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	p := new(pin)
	n, err := io.ReadFull(f, p.buf[:])
	switch {
	case err == nil:
		p.clear()
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxPIN)
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		p.clear()
		return nil, err
	}
	text := bytes.TrimSuffix(p.buf[:n], []byte("\n"))
	text = bytes.TrimSuffix(text, []byte("\r"))
	p.size = len(text)
	if p.size == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return p, nil
}

// pinWarning says what is wrong with the access rights of the file at path,
// "" if nothing is.
func pinWarning(path string) string {
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm()&0o077 == 0 {
		return ""
	}
	return fmt.Sprintf("the PIN file %s may be read by others than its owner (mode %04o): chmod 600 it", path, fi.Mode().Perm())
}

// pinSource is where a login gets the PIN from, and where it tells what became
// of it. Its users take one PIN at a time, and call exactly one of accepted,
// refused and undecided after each.
type pinSource interface {
	// take returns the PIN to send now, for the caller to clear. An error says
	// why none may be sent: it is a *problem, or the context's, or wraps
	// errPINChanged.
	take(ctx context.Context, q pinQuestion) (*pin, error)

	// barred reports that take would now give no PIN out, for what became of the
	// last one: whatever a login would cost besides can be saved.
	barred(ctx context.Context) bool

	accepted()         // the PIN was right
	refused(why error) // it was not: it is not given out again
	undecided()        // the token said neither
}

// pinQuestion is what a login has to say when it asks for a PIN.
type pinQuestion struct {
	// warning names the flags by which the token tells of wrong PINs since the
	// last good one, "" for none.
	warning string

	// trust is which PIN the module can be expected to judge rightly.
	trust trust

	// token is the one to log in to, as it calls itself.
	token tokenName
}

// tokenName is what a token calls itself.
type tokenName struct{ label, serial, manufacturer, model string }

func (i tokenInfo) name() tokenName {
	return tokenName{i.label, i.serial, i.manufacturer, i.model}
}

// trust is which PIN a module can be expected to judge rightly. Some, SoftHSM
// among them, look at what the token says about its PIN when they are
// initialized and never again: they refuse the right PIN if somebody changed it
// since, and a token counts that as a wrong one.
type trust byte

const (
	trustAny  trust = iota // the module was initialized, and no login has been thought of since
	trustSame              // a PIN was accepted since: the same is all right
	trustNone              // since, a PIN was refused, or none could be sent: it may have been changed
)

// errPINChanged: the PIN may have changed since the module was initialized, so
// that has to be done again before a PIN is sent.
var errPINChanged = errors.New("the PIN may have changed since the module was initialized")

// pinFile is the pinSource on a PIN file. It is safe for concurrent use.
//
// A login may die with the process that makes it, so that nobody tells how it
// went; lost says so. The PIN is then given out once more, but only to a token
// that reports no wrong PIN: that is one refused login at most where the token
// tells, and two where it does not. records, if there are any, hold to that
// over the end of this process too.
type pinFile struct {
	path    string
	records *refusals // nil: what was refused is remembered in memory only

	mu    sync.Mutex
	bad   pinMemory // guarded by mu: the PIN that was refused
	good  pinMemory // guarded by mu: the PIN that was accepted last
	trial pinMemory // guarded by mu: the PIN that was given out and not decided on
	entry *claim    // guarded by mu: the trial's in records, nil for none
	out   bool      // guarded by mu: somebody has the trial's PIN now
	lapse int       // guarded by mu: how often in a row the trial was lost
	given uint64    // guarded by mu: PINs given out, in all
}

// pinFile returns the source on the PIN file of c.
func (c Config) pinFile() *pinFile {
	return &pinFile{path: c.PINFile, records: newRefusals(c.RefusalFile, c.InitReserved, c.Logger)}
}

// maxLapses is how often in a row a login may be lost before its PIN counts as
// refused.
const maxLapses = 2

func (f *pinFile) take(ctx context.Context, q pinQuestion) (*pin, error) {
	p, known, err := f.choose(q)
	if err != nil {
		return nil, err
	}
	entry, err := f.records.try(ctx, f.path, p, known, q)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		if errors.Is(err, errRefusedBefore) {
			f.bad.remember(p, err)
		}
		p.clear()
		return nil, err
	}
	f.trial.remember(p, nil)
	f.out, f.entry = true, entry
	f.given++
	return p, nil
}

// choose reads the PIN and applies the rules to it, as far as memory goes. known
// reports that it is the one that was accepted last.
func (f *pinFile) choose(q pinQuestion) (chosen *pin, known bool, err error) {
	fail := func(text, advice string, err error) (*pin, bool, error) {
		return nil, false, &problem{stage: StepLogin, text: text, advice: advice, err: err}
	}
	p, err := readPIN(f.path)
	if err != nil {
		return fail("the PIN cannot be read from its file", "write the user PIN, and nothing else, into the file and let this process read it", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lose()
	if !f.trial.knows(p) {
		f.trial.forget()
		f.lapse = 0
	}
	switch {
	case f.bad.knows(p):
		p.clear()
		if errors.Is(f.bad.why, errRefusedBefore) {
			return nil, false, f.bad.why
		}
		return fail("the PIN in "+f.path+" was refused before and is not sent again",
			"put the right PIN into the file (a change of its content is noticed), or "+f.records.forget()+"restart if the token was given this PIN since", f.bad.why)
	case f.lapse >= maxLapses:
		p.clear()
		return fail(fmt.Sprintf("the process died in each of %d logins with the PIN in %s, so nobody knows whether it was refused, and it is not sent again", f.lapse, f.path),
			"log in once by hand to see that the PIN is right and the module survives it; then "+f.records.forget()+"restart, or put the right PIN into the file (a change of its content is noticed)", nil)
	case f.lapse > 0 && q.warning != "":
		p.clear()
		return fail(fmt.Sprintf("the process died in the last login with the PIN in %s, and the token reports wrong PINs (%s), so it may have been refused and is not sent again", f.path, q.warning),
			"log in once by hand with the right PIN, which takes the warning away, and put it into the file", nil)
	}
	known = f.good.knows(p)
	if q.trust == trustNone || q.trust == trustSame && !known {
		p.clear()
		return nil, false, errPINChanged
	}
	return p, known, nil
}

func (f *pinFile) barred(context.Context) bool {
	p, err := readPIN(f.path)
	if err != nil {
		return false
	}
	defer p.clear()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bad.knows(p) || f.lapse >= maxLapses && f.trial.knows(p)
}

func (f *pinFile) accepted() {
	f.mu.Lock()
	f.bad.forget()
	if f.out {
		f.good = f.trial
	}
	entry := f.decide()
	f.mu.Unlock()
	entry.accepted()
}

func (f *pinFile) refused(why error) {
	f.mu.Lock()
	if f.out {
		f.bad, f.bad.why = f.trial, why
	}
	entry := f.decide()
	f.mu.Unlock()
	entry.refused(why)
}

// decide ends a trial, and returns what records have of it. The caller holds mu.
func (f *pinFile) decide() *claim {
	entry := f.entry
	f.trial.forget()
	f.out, f.lapse, f.entry = false, 0, nil
	return entry
}

func (f *pinFile) undecided() {
	f.mu.Lock()
	entry := f.entry
	f.out, f.entry = false, nil
	if f.lapse == 0 {
		f.trial.forget()
	}
	f.mu.Unlock()
	entry.undecided()
}

// lost says that whoever has a PIN will not tell any more what became of it.
func (f *pinFile) lost() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lose()
}

// lose is lost for the holder of mu.
func (f *pinFile) lose() {
	if f.out {
		f.out = false
		f.lapse++
	}
	f.entry.lost()
	f.entry = nil
}

// taken counts the PINs that were given out.
func (f *pinFile) taken() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.given
}

// pinMemory remembers one PIN, as a salted hash, such as the last one that was
// refused, so that it is not sent a second time. The hash is a fast one: who can
// read this process's memory can read the PIN file. The zero value remembers
// nothing. It is guarded by its owner.
type pinMemory struct {
	set  bool
	salt [16]byte
	sum  [sha256.Size]byte
	why  error // why it was refused
}

func (m *pinMemory) remember(p *pin, why error) {
	m.set, m.why = true, why
	_, _ = rand.Read(m.salt[:]) // never fails
	m.sum = m.hash(p)
}

func (m *pinMemory) forget() { *m = pinMemory{} }

// knows reports whether p is the PIN that is remembered.
func (m *pinMemory) knows(p *pin) bool { return m.set && m.hash(p) == m.sum }

func (m *pinMemory) hash(p *pin) [sha256.Size]byte {
	h := sha256.New()
	h.Write(m.salt[:])
	h.Write(p.bytes())
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}
