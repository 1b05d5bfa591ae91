package audit

import (
	"bytes"
	"errors"
	"io"
)

// tail is the end of a file that is there already.
type tail struct {
	end   head    // of the chain; without a name if there is none
	found foreign // what stands behind its last line
}

// readTail looks where a chain may go on. It reads the last lines alone if they
// are what they should be, else the whole file, once.
func readTail(f io.ReaderAt, size int64) (tail, error) {
	last := make([]byte, min(size, 2*maxLine))
	if _, err := f.ReadAt(last, size-int64(len(last))); err != nil && !errors.Is(err, io.EOF) {
		return tail{}, err
	}
	if end := bytes.LastIndexByte(last, '\n'); end >= 0 {
		begin := bytes.LastIndexByte(last[:end], '\n') + 1
		if begin > 0 || int64(len(last)) == size {
			if c, ok := parseChained(last[begin:end]); ok {
				t := tail{end: c.head()}
				t.found.add(last[end+1:])
				return t, nil
			}
		}
	}
	return readWhole(io.NewSectionReader(f, 0, size))
}

func readWhole(r io.Reader) (t tail, err error) {
	for lines := newPieces(r); ; {
		p, err := lines.next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, err
		}
		if p.whole {
			if c, ok := parseChained(p.line()); ok {
				t = tail{end: c.head()}
				continue
			}
		}
		t.found.add(p.raw)
	}
}
