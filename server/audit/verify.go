package audit

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// VerifyOptions say what a log is held against.
type VerifyOptions struct {
	// Keys verify checkpoints. Default: none, and then nothing of a log is
	// proven against somebody who could rewrite all of it.
	Keys Keys
	// Kept are checkpoints that were kept apart from the log. The log must
	// have the lines that they speak of. With Keys their signatures are
	// verified too; without, they are believed, because of where they were.
	Kept []*SignedCheckpoint
	// Mixed lets lines stand between those of the log that cannot be taken for
	// one, as in the captured output of a process. Default: they are problems.
	Mixed bool
	// Stdin is what is read for the file "-", which must be the only one.
	Stdin io.Reader
}

// Verify reads the files of one log, or of several, in the order of their
// lines, and reports what is wrong with them. It reads each file once, in
// bounded memory. An error means that it could not read them all, or that ctx
// ended.
//
// What the report proves is no more than this. Without checkpoints: nobody has
// changed, removed, put in or moved a line without computing the chain anew
// from there on. With checkpoints that verify: that nobody has up to the last
// of them without the key, but for the lines that the report names as
// uncovered. In no case can it be seen that lines are missing at the end,
// except by a checkpoint that was kept elsewhere.
func Verify(ctx context.Context, files []string, o VerifyOptions) (*Report, error) {
	v := newVerifier(o)
	if slices.Contains(files, "-") {
		if len(files) != 1 {
			return nil, errors.New("the standard input must be the only file")
		}
		if err := v.file(ctx, "-", o.Stdin); err != nil {
			return nil, err
		}
		return v.finish(), nil
	}
	order, err := inOrder(files)
	if err != nil {
		return nil, err
	}
	for _, name := range order {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		err = v.file(ctx, name, f)
		_ = f.Close() // it was only read
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return v.finish(), nil
}

// inOrder puts files into the order of their first lines: chains as they come,
// and in a chain by number. Files without a chain come first.
func inOrder(files []string) ([]string, error) {
	type begun struct {
		name  string
		first chained
		rank  int // of the chain
	}
	ranks := map[string]int{"": 0}
	list := make([]begun, 0, len(files))
	for _, name := range files {
		first, err := firstOf(name)
		if err != nil {
			return nil, err
		}
		if _, known := ranks[first.chain]; !known {
			ranks[first.chain] = len(ranks)
		}
		list = append(list, begun{name, first, ranks[first.chain]})
	}
	slices.SortStableFunc(list, func(a, b begun) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		switch {
		case a.first.seq < b.first.seq:
			return -1
		case a.first.seq > b.first.seq:
			return 1
		}
		return 0
	})
	order := make([]string, len(list))
	for i, b := range list {
		order[i] = b.name
	}
	return order, nil
}

// firstOf reads the first line of a chain in a file.
func firstOf(name string) (chained, error) {
	f, err := os.Open(name)
	if err != nil {
		return chained{}, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	for lines := newPieces(f); ; {
		p, err := lines.next()
		if errors.Is(err, io.EOF) {
			return chained{}, nil
		}
		if err != nil {
			return chained{}, fmt.Errorf("%s: %w", name, err)
		}
		if c, ok := parseChained(p.line()); ok && p.whole {
			return c, nil
		}
	}
}

// maxChains bounds the chains of one run.
const maxChains = 10_000

// verifier goes through the lines.
type verifier struct {
	o      VerifyOptions
	report Report
	chains map[string]*chain
	order  []*chain
	kept   map[string]map[uint64][]*SignedCheckpoint // by chain and number
	recent []*chain                                  // those that have hashes of lines in memory, the last used last

	at     Place // where it is
	apart  bool  // it is within a line that Mixed lets be
	stray  foreign
	strays int   // lines in it
	from   Place // where it begins
}

func newVerifier(o VerifyOptions) *verifier {
	v := &verifier{o: o, chains: make(map[string]*chain), kept: make(map[string]map[uint64][]*SignedCheckpoint)}
	for _, k := range o.Kept {
		if v.kept[k.Chain] == nil {
			v.kept[k.Chain] = make(map[uint64][]*SignedCheckpoint)
		}
		v.kept[k.Chain][k.Seq] = append(v.kept[k.Chain][k.Seq], k)
		if len(o.Keys) == 0 {
			continue
		}
		if err := k.Verify(o.Keys); err != nil {
			v.report.problem(Place{}, "the kept checkpoint for line %d of chain %s does not verify: %v", k.Seq, k.Chain, err)
		}
	}
	return v
}

// file reads one file.
func (v *verifier) file(ctx context.Context, name string, r io.Reader) error {
	v.at = Place{File: name}
	links, read, begins := 0, 0, true
	lines := newPieces(r)
	for {
		p, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if begins {
			v.at.Line++
		}
		if read++; read%1000 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if c, ok := parseChained(p.line()); ok && p.whole {
			links++
			v.link(c, p.line())
			if len(v.chains) > maxChains {
				return fmt.Errorf("it has lines of more than %d chains: is it an audit log?", maxChains)
			}
			continue
		}
		v.other(p, begins)
		begins = p.ends
	}
	v.endOfFile(links)
	return nil
}

// other takes what is no line of a chain. begins says that it begins a line.
func (v *verifier) other(p piece, begins bool) {
	if begins {
		v.apart = v.o.Mixed && !bytes.HasPrefix(p.raw, []byte(linePrefix))
		if v.apart {
			v.report.OtherLines++
		}
	}
	if v.apart {
		return
	}
	if v.stray.bytes == 0 {
		v.from = v.at
	}
	if begins {
		v.strays++
	}
	v.stray.add(p.raw)
}

// endOfFile judges what stands behind the last line of a chain.
func (v *verifier) endOfFile(links int) {
	defer func() { v.stray, v.strays = foreign{}, 0 }()
	switch {
	case v.stray.bytes == 0:
	case links == 0:
		v.report.problem(Place{File: v.at.File}, "this file has no line of a chain: it is no audit log, or one of a version that had no chains")
	case v.strays == 1 && v.stray.open:
		v.report.note(v.from, "the file ends within a line, after %d bytes of it: a write is under way, or a crash has cut it off, or somebody has", v.stray.bytes)
	default:
		v.report.problem(v.from, "%s of no chain: put in, or changed so that the form is lost", count(v.strays, "line", "lines"))
	}
}

// link takes a line of a chain.
func (v *verifier) link(c chained, line []byte) {
	v.report.Lines++
	if !jsontext.Value(line).IsValid() {
		v.report.problem(v.at, "this is no JSON object with each name once: Bulla does not write such a line")
	}
	kind := kindOf(line)
	v.account(kind, line)
	s := v.chains[c.chain]
	if s == nil {
		s = &chain{report: &v.report, id: c.chain}
		v.chains[c.chain] = s
		v.order = append(v.order, s)
	}
	if !s.follow(c, v.at, kind) {
		return
	}
	s.last = v.at
	s.remember(v, c)
	t := timeOf(line)
	if s.firstTime == "" {
		s.firstTime = t
	}
	s.lastTime = t
	if s.fileName != v.at.File {
		s.fileName = v.at.File
		s.files++
	}
	for _, k := range v.kept[c.chain][c.seq] {
		if k.hash != c.hash {
			v.report.problem(v.at, "line %d of the chain is not the one that the kept checkpoint speaks of, of %s: lines up to here were rewritten", c.seq, stamp(k.Time))
		} else {
			s.kept++
		}
	}
	switch kind {
	case logOpened:
		s.starts++
	case logCheckpoint:
		v.checkpoint(s, c, line)
	}
}

// account holds what stands before a line, and is of no chain, against what the
// line says of it.
func (v *verifier) account(kind string, line []byte) {
	defer func() { v.stray, v.strays = foreign{}, 0 }()
	var says struct {
		Bytes int64  `json:"skipped_bytes"`
		Sum   string `json:"skipped_sha256"`
	}
	if kind == logOpened || kind == logContinued || kind == logTorn {
		_ = json.Unmarshal(line, &says) // that it is JSON was looked at
	}
	switch {
	case v.stray.bytes == 0 && (says.Bytes == 0 || v.o.Mixed):
	case v.stray.bytes == 0:
		v.report.problem(v.at, "before this line there were %d bytes of no chain when it was written, and they are gone", says.Bytes)
	case says.Bytes == 0:
		v.report.problem(v.from, "%s of no chain: put in, or changed so that the form is lost", count(v.strays, "line", "lines"))
	case says.Bytes != v.stray.bytes || says.Sum != hex.EncodeToString(v.stray.digest()):
		v.report.problem(v.from, "what stands here is of no chain, and not what was here when line %d of the file was written: it was changed since", v.at.Line)
	default:
		v.report.note(v.from, "%d bytes of no chain, unchanged since line %d of the file was written: what a crash has cut off, or what somebody could write who had the file then, or lines of a version without chains", says.Bytes, v.at.Line)
	}
}

// kindOf is the member "log" of a line, which stands behind its time; empty for
// an event.
func kindOf(line []byte) string {
	rest, ok := afterTime(line)
	if !ok {
		return ""
	}
	rest, ok = strings.CutPrefix(rest, `","log":"`)
	if !ok {
		return ""
	}
	kind, _, _ := strings.Cut(rest, `"`)
	return kind
}

// afterTime cuts a line behind its time, as far as a kind can reach.
func afterTime(line []byte) (string, bool) {
	_, rest, ok := strings.Cut(string(line[:min(len(line), 128)]), `,"time":"`)
	if !ok || len(rest) < len(timeFormat) {
		return "", false
	}
	return rest[len(timeFormat):], true
}

// timeOf is the time of a line as it stands there.
func timeOf(line []byte) string {
	_, rest, ok := strings.Cut(string(line[:min(len(line), 128)]), `,"time":"`)
	if !ok || len(rest) < len(timeFormat) {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, rest[:len(timeFormat)])
}
