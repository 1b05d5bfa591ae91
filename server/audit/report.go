package audit

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Place is a line of a file. The line is 0 for the file as a whole, the file is
// empty for the log as a whole.
type Place struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
}

// String is the place as compilers write one. The name of a file is quoted if it
// has what a terminal could obey: whoever writes a log may make files beside it.
func (p Place) String() string {
	name := p.File
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		name = strconv.QuoteToASCII(name)
	}
	switch {
	case name == "":
		return "the log"
	case p.Line == 0:
		return name
	}
	return fmt.Sprintf("%s:%d", name, p.Line)
}

// Finding is something about a place.
type Finding struct {
	Place
	// What is a sentence. It never quotes the log.
	What string `json:"what"`
}

func (f Finding) String() string { return f.Place.String() + ": " + f.What }

// Range is some lines of a chain, by their numbers, both ends included.
type Range struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// Report is what Verify found.
type Report struct {
	// Good says that there are no problems.
	Good bool `json:"good"`
	// Lines is how many lines of chains were read, OtherLines how many that
	// are none, with VerifyOptions.Mixed.
	Lines      int `json:"lines"`
	OtherLines int `json:"other_lines,omitempty"`
	// Verified says that there were keys to verify checkpoints with.
	Verified    bool `json:"keys_given"`
	Checkpoints struct {
		Found    int `json:"found"`
		Verified int `json:"verified"`
	} `json:"checkpoints"`
	// Chains are those that were seen, in the order of their first lines.
	Chains []ChainReport `json:"chains"`
	// Problems are what must not be. The first of them come in the order of
	// the lines, those about the log as a whole last.
	Problems []Finding `json:"problems"`
	// MoreProblems is how many are not listed.
	MoreProblems int `json:"more_problems,omitempty"`
	// Notes are what can be, and should be known.
	Notes []Finding `json:"notes"`
	// MoreNotes is how many are not listed.
	MoreNotes int `json:"more_notes,omitempty"`
}

// ChainReport is what is known of one chain.
type ChainReport struct {
	Chain string `json:"chain"`
	// First and Last are the numbers of its first and last line that were
	// read.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Lines int    `json:"lines"`
	Files int    `json:"files"`
	// Starts is how many processes began to write in it.
	Starts    int    `json:"starts"`
	FirstTime string `json:"first_time"`
	LastTime  string `json:"last_time"`
	// Checkpoints is how many verified, Keys are those that signed them.
	Checkpoints int      `json:"checkpoints"`
	Keys        []string `json:"keys,omitempty"`
	// LastCheckpoint is when the last of them was signed, CoveredTo the number
	// of the last line that one covers.
	LastCheckpoint string `json:"last_checkpoint,omitempty"`
	CoveredTo      uint64 `json:"covered_to,omitempty"`
	// Uncovered are the lines that no checkpoint covers, although there are
	// some; UncoveredLines is how many there are, all if there is no
	// checkpoint.
	Uncovered      []Range `json:"uncovered,omitempty"`
	UncoveredLines uint64  `json:"uncovered_lines"`
	// Kept is how many checkpoints that were kept elsewhere were held against
	// their lines.
	Kept int `json:"kept_checkpoints,omitempty"`
}

// maxListed is how many findings of a kind are listed.
const maxListed = 100

func (r *Report) problem(at Place, format string, args ...any) {
	if len(r.Problems) >= maxListed {
		r.MoreProblems++
		return
	}
	r.Problems = append(r.Problems, Finding{at, fmt.Sprintf(format, args...)})
}

func (r *Report) note(at Place, format string, args ...any) {
	if len(r.Notes) >= maxListed {
		r.MoreNotes++
		return
	}
	r.Notes = append(r.Notes, Finding{at, fmt.Sprintf(format, args...)})
}

// count is a number with its word.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
