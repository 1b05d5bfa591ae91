package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	File   string
	Line   int    // from 1; 0 if the problem is with the file as a whole
	Column int    // from 1; 0 if unknown
	Path   string // such as "issuers[0].signing_keys[1].keys[0]"; empty for the file

	Message string // what is wrong
	Advice  string // what to do about it
}

// String is the problem on one line: file:line: path: problem: what to do.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	for _, s := range []string{p.Path, p.Message, p.Advice} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	return b.String()
}

// Problems is all that is wrong, in the order of the file. It is the error
// that Load and Parse return.
type Problems []Problem

// Error lists the problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return ps
}

// clean makes text from the file fit to print: one line, bounded.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\ufffd'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 80 {
		s = string(r[:80]) + "…"
	}
	return s
}

// quote is clean in quotes.
func quote(s string) string { return `"` + clean(s) + `"` }

// suggest is the advice for a name that is not among known: the one that was
// probably meant, else all of them.
func suggest(name string, known []string) string {
	if best := nearest(name, known); best != "" {
		return fmt.Sprintf("did you mean %s?", quote(best))
	}
	return "use one of: " + strings.Join(known, ", ")
}

// nearest returns the known name that name was probably meant to be, or "".
func nearest(name string, known []string) string {
	fold := func(s string) string { return strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToLower(s)) }
	best, least := "", 3
	for _, k := range known {
		d := distance(fold(name), fold(k))
		if d > 1 && len(k) <= 4 {
			continue // two slips in a short name leave nothing of it
		}
		if len(name) >= 3 && (strings.HasPrefix(fold(k), fold(name)) || strings.HasPrefix(fold(name), fold(k))) {
			d = min(d, 1)
		}
		if d < least && d < len([]rune(k)) {
			best, least = k, d
		}
	}
	return best
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbors that lead from a to b (optimal string alignment). Long names are
// far from everything.
func distance(a, b string) int {
	s, t := []rune(a), []rune(b)
	if len(s) > 64 || len(t) > 64 {
		return len(s) + len(t)
	}
	rows := make([][]int, len(s)+1)
	for i := range rows {
		rows[i] = make([]int, len(t)+1)
		rows[i][0] = i
	}
	for j := range t {
		rows[0][j+1] = j + 1
	}
	for i := range s {
		for j := range t {
			d := rows[i][j]
			if s[i] != t[j] {
				d++
			}
			d = min(d, rows[i][j+1]+1, rows[i+1][j]+1)
			if i > 0 && j > 0 && s[i] == t[j-1] && s[i-1] == t[j] {
				d = min(d, rows[i-1][j-1]+1)
			}
			rows[i+1][j+1] = d
		}
	}
	return rows[len(s)][len(t)]
}
