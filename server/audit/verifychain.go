package audit

import (
	"errors"
	"slices"
	"time"
)

// maxRecent is how many lines back a reader knows the hash of; more than
// maxBehind, so that every checkpoint can be held against its line.
const maxRecent = 1 << 16

// maxRemembering is of how many chains at a time. The lines of more replicas
// are not expected in one stream.
const maxRemembering = 32

// position is a line that the next may follow.
type position struct {
	at   Place
	prev [32]byte
	hash [32]byte
}

// chain is what is known of a chain while its lines are read.
type chain struct {
	report *Report
	id     string

	first, seq uint64   // the numbers of its first and last line
	before     [32]byte // the hash that its first line has of the one before
	last       Place
	ends       []position // what the next line may follow: more than one if lines share a number
	doubt      *doubt
	resume     *chain // what it was before a gap, if that may have been an insertion
	gap        Range  // the last lines that were told of as missing

	lines               int
	files               int
	fileName            string
	firstTime, lastTime string
	starts, kept        int

	checkpoints   int
	covered       uint64 // up to this number all is covered, or told as uncovered
	lastCovered   uint64 // the last number that a checkpoint covers
	lastTimeSaid  time.Time
	keys          []string
	own           map[uint64]bool // lines above covered that are checkpoints
	uncovered     []Range
	uncoveredMore uint64 // lines in ranges that are not listed

	recent     []recent
	remembered int // how often a hash was put there
}

type recent struct {
	seq  uint64
	hash [32]byte
}

// doubt is two lines that do not fit: which of them was changed is seen by the
// next.
type doubt struct{ before, at Place }

// follow holds a line against those before it. It returns false for a line that
// does not count.
func (s *chain) follow(c chained, at Place, kind string) bool {
	here := position{at: at, prev: c.prev, hash: c.hash}
	if s.seq == 0 {
		s.first, s.seq, s.before, s.ends = c.seq, c.seq, c.prev, []position{here}
		s.covered, s.lastCovered = c.seq-1, c.seq-1
		s.lines++
		switch {
		case c.seq > 1:
			s.report.note(at, "chain %s begins here with its line %d: the lines before it were not given", s.id, c.seq)
		case kind != logOpened || c.prev != [32]byte{}:
			s.report.problem(at, "this has the number of a chain's first line and is none")
		}
		return true
	}
	before := slices.IndexFunc(s.ends, func(p position) bool { return p.hash == c.prev })
	switch {
	case before >= 0 && c.seq == s.seq+1:
		s.settle(before)
		s.resume = nil // the gap was one
	case before >= 0:
		s.settle(before)
		s.report.problem(at, "this line follows the one with the number %d and says that it is number %d: its number was changed", s.seq, c.seq)
	case s.resume != nil && c.seq == s.resume.seq+1 && slices.ContainsFunc(s.resume.ends, func(p position) bool { return p.hash == c.prev }):
		// The line told of was put in, or stands too early.
		s.seq, s.ends, s.resume, s.gap = s.resume.seq, s.resume.ends, nil, Range{}
	case c.seq == s.seq+1 && s.doubt != nil:
		s.report.problem(s.doubt.at, "this line was changed: neither does it follow from the line before it, nor the next from it")
		s.doubt = nil
	case c.seq == s.seq+1:
		s.doubt = &doubt{before: s.ends[0].at, at: at}
	case c.seq == s.seq && slices.ContainsFunc(s.ends, func(p position) bool { return p.hash == c.hash }):
		s.report.problem(at, "this line stands here a second time")
		return false
	case c.seq == s.seq && slices.ContainsFunc(s.ends, func(p position) bool { return p.prev == c.prev }) && len(s.ends) < 8:
		s.ends = append(s.ends, here)
		return false
	case c.seq <= s.seq:
		s.report.problem(at, "this line has the number %d and stands behind number %d: it was moved, or put in", c.seq, s.seq)
		return false
	default:
		s.flush()
		missing := count(int(c.seq-s.seq-1), "line is", "lines are") //nolint:gosec // a count
		s.report.problem(at, "%s missing: the line before, %s, has the number %d, and this one %d", missing, s.last, s.seq, c.seq)
		s.resume = &chain{seq: s.seq, ends: s.ends}
		s.gap = Range{s.seq + 1, c.seq - 1}
		s.seq, s.ends = c.seq, []position{here}
		s.lines++
		return true
	}
	s.seq++
	s.ends = []position{here}
	s.lines++
	return true
}

// settle takes the line that the next follows as the true one.
func (s *chain) settle(right int) {
	for i, p := range s.ends {
		if i != right {
			s.report.problem(p.at, "this line has the number %d, as %s has, from which the chain goes on: it was put in, or that one was and the chain computed anew", s.seq, s.ends[right].at)
		}
	}
	if s.doubt != nil {
		s.report.problem(s.doubt.before, "this line was changed: the next, %s, has another hash for it", s.doubt.at)
		s.doubt = nil
	}
}

// flush tells what could not be decided.
func (s *chain) flush() {
	if s.doubt != nil {
		s.report.problem(s.doubt.at, "this line does not follow from the one before it, %s: one of the two was changed", s.doubt.before)
		s.doubt = nil
	}
	if len(s.ends) > 1 {
		for _, p := range s.ends[1:] {
			s.report.problem(p.at, "this line has the number %d, as %s has: one of the two was put in", s.seq, s.ends[0].at)
		}
		s.ends = s.ends[:1]
	}
}

// remember keeps the hash of a line for checkpoints that come later.
func (s *chain) remember(v *verifier, c chained) {
	if s.recent == nil {
		s.recent, s.remembered = make([]recent, 256), 0
		v.recent = append(v.recent, s)
		if len(v.recent) > maxRemembering {
			v.recent[0].recent = nil
			v.recent = v.recent[1:]
		}
	} else if n := len(v.recent); v.recent[n-1] != s {
		v.recent = append(slices.DeleteFunc(v.recent, func(o *chain) bool { return o == s }), s)
	}
	// It grows by lines that were read, and not by their numbers, which whoever
	// wrote the file may have made up: two of them could cost as much as 65,536.
	for s.slot(c.seq).seq != 0 && len(s.recent) < maxRecent && s.remembered >= len(s.recent) {
		grown := &chain{recent: make([]recent, 2*len(s.recent))}
		for _, r := range s.recent {
			if r.seq != 0 {
				*grown.slot(r.seq) = r
			}
		}
		s.recent = grown.recent
	}
	*s.slot(c.seq) = recent{c.seq, c.hash}
	s.remembered++
}

// slot is where the hash of a line is kept.
func (s *chain) slot(seq uint64) *recent { return &s.recent[seq%uint64(len(s.recent))] }

// checkpoint holds a checkpoint against the chain that it stands in.
func (v *verifier) checkpoint(s *chain, c chained, line []byte) {
	v.report.Checkpoints.Found++
	k, err := checkpointIn(line)
	switch {
	case err != nil:
		v.report.problem(v.at, "this checkpoint cannot be read: %v", err)
		return
	case k.Chain != c.chain:
		v.report.problem(v.at, "this checkpoint is of another chain: %s", k.Chain)
		return
	case k.Seq >= c.seq:
		v.report.problem(v.at, "this checkpoint speaks of line %d, which comes after it", k.Seq)
		return
	}
	verified := false
	if len(v.o.Keys) > 0 {
		switch err := k.Verify(v.o.Keys); {
		case errors.Is(err, errUnknownKey):
			v.report.problem(v.at, "this checkpoint says that it is signed by key %.64q, which was not given", k.KeyID)
			return
		case err != nil:
			v.report.problem(v.at, "the signature of this checkpoint does not verify: it was changed or forged")
			return
		}
		verified = true
	}
	if k.Seq < s.first { // its line was not given
		switch {
		case k.Seq+1 != s.first:
		case k.hash != s.before:
			v.report.problem(v.at, "this checkpoint was signed over another line %d than the first that was given, %d, follows", k.Seq, s.first)
		case verified:
			v.covers(s, k, c, line)
		}
		return
	}
	var known recent
	if s.recent != nil {
		known = *s.slot(k.Seq)
	}
	switch {
	case s.gap.From <= k.Seq && k.Seq <= s.gap.To:
		return // that its line is missing was said
	case known.seq != k.Seq:
		v.report.problem(v.at, "the line %d that this checkpoint speaks of is not among the last %d before it", k.Seq, maxRecent)
		return
	case known.hash != k.hash:
		v.report.problem(v.at, "this checkpoint was signed over another line %d: lines up to there were rewritten", k.Seq)
		return
	}
	if verified {
		v.covers(s, k, c, line)
	}
}

// covers notes what a checkpoint proves, which stands in line c.
func (v *verifier) covers(s *chain, k *SignedCheckpoint, c chained, line []byte) {
	v.report.Checkpoints.Verified++
	s.checkpoints++
	s.lastTimeSaid = k.Time
	if !slices.Contains(s.keys, k.KeyID) {
		s.keys = append(s.keys, k.KeyID)
	}
	if k.Since > s.covered+1 {
		s.bare(s.covered+1, k.Since-1)
	}
	// Its own line needs no other to prove it, if that holds nothing else, and if
	// it is the first time that this checkpoint stands anywhere: without the key
	// anybody can write down again what was signed once, and more beside it.
	provesItself := k.Seq > s.covered && isCheckpointLine(c, line, k.JWS)
	if k.Seq > s.covered {
		s.covered, s.lastCovered = k.Seq, k.Seq
	}
	for seq := range s.own {
		if seq <= s.covered {
			delete(s.own, seq)
		}
	}
	if s.own == nil {
		s.own = make(map[uint64]bool)
	}
	if provesItself && len(s.own) < 1000 {
		s.own[c.seq] = true
	}
}

// bare notes lines that no checkpoint covers, but for checkpoints, which prove
// themselves.
func (s *chain) bare(from, to uint64) {
	for from <= to && s.own[from] {
		from++
	}
	for to >= from && s.own[to] {
		to--
	}
	if from > to {
		return
	}
	if len(s.uncovered) >= maxListed {
		s.uncoveredMore += to - from + 1
		return
	}
	s.uncovered = append(s.uncovered, Range{from, to})
}

// finish makes the report of what was read.
func (v *verifier) finish() *Report {
	r := &v.report
	for _, s := range v.order {
		s.flush()
		cr := ChainReport{
			Chain: s.id, First: s.first, Last: s.seq, Lines: s.lines, Files: s.files, Starts: s.starts, FirstTime: s.firstTime, LastTime: s.lastTime,
			Checkpoints: s.checkpoints, Keys: s.keys, Kept: s.kept,
		}
		if s.checkpoints > 0 {
			cr.CoveredTo, cr.LastCheckpoint = s.lastCovered, stamp(s.lastTimeSaid)
			s.bare(s.covered+1, s.seq)
			cr.Uncovered = s.uncovered
			for _, u := range s.uncovered {
				cr.UncoveredLines += u.To - u.From + 1
			}
			cr.UncoveredLines += s.uncoveredMore
		} else {
			cr.UncoveredLines = uint64(s.lines) //nolint:gosec // a count
		}
		if len(v.o.Keys) > 0 && s.checkpoints == 0 {
			r.problem(Place{}, "chain %s has no checkpoint by a key that was given: nothing shows that it was not written anew, as a whole", s.id)
		}
		v.keptLines(s)
		r.Chains = append(r.Chains, cr)
	}
	for id, kept := range v.kept {
		if v.chains[id] == nil {
			r.problem(Place{}, "the kept checkpoint is of chain %s, and these files have no line of it: they are of another log, or all of it was replaced (%s)", id, count(len(kept), "line", "lines"))
		}
	}
	r.Problems, r.Notes = orEmpty(r.Problems), orEmpty(r.Notes)
	r.Chains = orEmpty(r.Chains)
	r.Verified = len(v.o.Keys) > 0
	r.Good = len(r.Problems) == 0
	return r
}

// keptLines looks whether the lines of which kept checkpoints speak were there.
func (v *verifier) keptLines(s *chain) {
	var last *SignedCheckpoint
	for seq, list := range v.kept[s.id] {
		switch {
		case seq < s.first:
			v.report.note(Place{}, "a kept checkpoint is for line %d of chain %s, and the first that was given is %d", seq, s.id, s.first)
		case seq > s.seq && (last == nil || seq > last.Seq):
			last = list[0]
		}
	}
	if last != nil {
		v.report.problem(s.last, "the chain ends here with line %d, and had line %d when the kept checkpoint was signed, %s: the end is missing", s.seq, last.Seq, stamp(last.Time))
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// orEmpty is a list that JSON has as one, also if there is nothing in it.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
