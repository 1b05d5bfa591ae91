package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"strconv"
	"time"
)

// What a line says that tells of the log itself, in its member "log". Such a
// line has no outcome.
const (
	// logOpened: the first line of a process. The chain goes on from what the
	// process found in the file, or begins.
	logOpened = "opened"
	// logContinued: the first line of a process in another file, after a
	// rotation.
	logContinued = "continued"
	// logTorn: a write broke off and could not be taken back.
	logTorn = "torn"
	// logCheckpoint: a signature over the chain up to a line before.
	logCheckpoint = "checkpoint"
)

// appendTime begins a line.
func appendTime(dst []byte, t time.Time) []byte {
	dst = append(dst, linePrefix...)
	dst = strconv.AppendInt(dst, lineVersion, 10)
	dst = append(dst, `,"time":"`...)
	dst = t.UTC().AppendFormat(dst, timeFormat)
	return append(dst, '"')
}

// timeFormat is how lines and checkpoints have times: RFC 3339 to the
// microsecond.
const timeFormat = "2006-01-02T15:04:05.000000Z"

// appendBeginning appends a line of one of the first three kinds, not yet
// linked. found is what stands before it and is of no chain.
func appendBeginning(dst []byte, kind, host string, found *foreign) []byte {
	dst = appendTime(dst, time.Now())
	dst = appendText(dst, "log", kind)
	if kind != logTorn {
		dst = appendText(dst, "host", host)
	}
	if found.bytes > 0 {
		dst = append(dst, `,"skipped_bytes":`...)
		dst = strconv.AppendInt(dst, found.bytes, 10)
		dst = append(dst, `,"skipped_sha256":"`...)
		dst = hex.AppendEncode(dst, found.digest())
		dst = append(dst, '"')
	}
	return append(dst, '}', '\n')
}

// appendCheckpoint appends a line with a checkpoint, not yet linked, that is
// written at a time.
func appendCheckpoint(dst []byte, at time.Time, jws string) []byte {
	dst = appendTime(dst, at)
	dst = appendText(dst, "log", logCheckpoint)
	dst = append(dst, `,"checkpoint":"`...)
	dst = append(dst, jws...)
	return append(dst, '"', '}', '\n')
}

// foreign is what stands in a file between a line of a chain and the next, and
// is of none: the rest of a line that a crash has cut off, or lines from
// before there were chains. The next line says how much it is and its hash, so
// that it is part of the chain as a whole.
type foreign struct {
	bytes int64
	sum   hash.Hash
	open  bool // it does not end with a line feed
}

func (f *foreign) add(p []byte) {
	if len(p) == 0 {
		return
	}
	if f.sum == nil {
		f.sum = sha256.New()
	}
	_, _ = f.sum.Write(p) // never fails
	f.bytes += int64(len(p))
	f.open = p[len(p)-1] != '\n'
}

func (f *foreign) digest() []byte { return f.sum.Sum(nil) }

// ended is f with the line feed that it lacks.
func (f *foreign) ended() *foreign {
	if !f.open {
		return f
	}
	g := *f
	if c, ok := f.sum.(hash.Cloner); ok {
		if clone, err := c.Clone(); err == nil {
			g.sum = clone
		}
	}
	g.add([]byte{'\n'})
	return &g
}
