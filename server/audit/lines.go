package audit

import (
	"bufio"
	"errors"
	"io"
)

// pieces reads a file line by line that nobody vouches for: a line can be as
// long as the file, and then comes in pieces.
type pieces struct {
	r      *bufio.Reader
	inside bool // the piece before has not ended its line
}

func newPieces(r io.Reader) *pieces { return &pieces{r: bufio.NewReaderSize(r, maxLine+1)} }

// piece is a line or a part of one. Its bytes are good until the next is read.
type piece struct {
	raw   []byte // with the line feed
	whole bool   // a line from its begin to its line feed
	ends  bool   // the line ends here, with its line feed or the file
}

// line is the piece without its line feed.
func (p piece) line() []byte {
	if n := len(p.raw); n > 0 && p.raw[n-1] == '\n' {
		return p.raw[:n-1]
	}
	return p.raw
}

// next returns io.EOF after the last piece.
func (p *pieces) next() (piece, error) {
	raw, err := p.r.ReadSlice('\n')
	switch {
	case err == nil:
		whole := !p.inside
		p.inside = false
		return piece{raw: raw, whole: whole, ends: true}, nil
	case errors.Is(err, bufio.ErrBufferFull):
		p.inside = true
		return piece{raw: raw}, nil
	case errors.Is(err, io.EOF) && len(raw) > 0:
		p.inside = false
		return piece{raw: raw, ends: true}, nil
	}
	return piece{}, err
}
