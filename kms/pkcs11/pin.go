package pkcs11

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
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

// pinMemory remembers the last PIN that was refused, as a salted hash, so that
// it is not sent a second time. The zero value remembers nothing. It is
// guarded by its owner.
type pinMemory struct {
	set  bool
	salt [16]byte
	sum  [sha256.Size]byte
	why  error // what the module said
}

func (m *pinMemory) refuse(p *pin, why error) {
	m.set, m.why = true, why
	_, _ = rand.Read(m.salt[:]) // never fails
	m.sum = m.hash(p)
}

func (m *pinMemory) forget() { *m = pinMemory{} }

// knows reports whether p is the PIN that was refused.
func (m *pinMemory) knows(p *pin) bool { return m.set && m.hash(p) == m.sum }

func (m *pinMemory) hash(p *pin) [sha256.Size]byte {
	h := sha256.New()
	h.Write(m.salt[:])
	h.Write(p.bytes())
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}
