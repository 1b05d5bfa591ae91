package fleet

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

const page = "../../docs/faults.md"

// row is what came of one thing that was done to the fleet.
type row struct {
	name, what string
	killed     string        // the address of a replica that was killed
	outOfTouch bool          // for long enough to be flagged
	lasted     time.Duration // the cause
	well       time.Duration // until all was well, since its end
	requests   int
	inFlight   int // attempts that failed on the replica that was killed
	attempts   int // others that failed
	excused    int // attempts that had to fail, for want of a store
	failed     int // requests that failed, with all their attempts
	unserved   int // requests that had to fail
	flagged    int // tokens with registry_stale
	late       int // tokens for a key that was gone
	unheard    int // such tokens that said that their replica hears nothing
	wrong      int // tokens that do not open
	misses     []string
}

func (r *row) miss(format string, a ...any) { r.misses = append(r.misses, fmt.Sprintf(format, a...)) }

// tell prints the row, and fails the test for its misses.
func (r *row) tell(t *testing.T) {
	t.Helper()
	t.Logf("%-22s lasted %8v, well after %8v: %6d requests, attempts failed: %d in flight, %d that had to, %d others; requests failed: %d that had to, %d others; %d flagged, %d late",
		r.name, span(r.lasted), span(r.well), r.requests, r.inFlight, r.excused, r.attempts, r.unserved, r.failed, r.flagged, r.late)
	if n := len(r.misses); n > 0 {
		t.Errorf("%s: %d misses, such as\n\t%s", r.name, n, strings.Join(r.misses[:min(n, 10)], "\n\t"))
	}
}

// report is a run, to be printed.
type report struct {
	rows    []row
	length  time.Duration
	counts  map[string]int
	worst   map[string]time.Duration
	unclear int

	tokens, failed, unserved, late, unheard, wrong int

	p50, p99 time.Duration

	lostRegistrations, lostDeletions int
}

func (r *report) total(requests []request) {
	var took []time.Duration
	for _, q := range requests {
		switch {
		case q.wrong != nil:
			r.wrong++
		case q.late != nil && q.excused:
			r.unheard++
		case q.late != nil:
			r.late++
		}
		switch {
		case q.reason == "":
			r.tokens++
			took = append(took, q.end.Sub(q.start))
		case !q.excused:
			r.failed++
		case q.reason == registryUnavailable:
			r.unserved++
		}
	}
	slices.Sort(took)
	if n := len(took); n > 0 {
		r.p50, r.p99 = took[n/2], took[n*99/100]
	}
}

const intro = `<!-- Written by "make soak". Change e2e/fleet/report_test.go and run it again. -->

## A fleet of three replicas

Three replicas of the built binary share one PostgreSQL, one SoftHSM token and the clients' host. For %v, %d callers ask all three in turn
for ID tokens, over gRPC with client certificates, by the Go client with its retries, each %v after its last answer. Meanwhile some clients
publish a new key at their host, which one replica is told to look at (RefreshClientKey); some get a new key registered; others are
registered and deleted: each time on another replica. And one after the other the things of this table happen.

- **lasted** is how long the cause was there, and **well after** is when, counted from its end, every replica did all that it did before: served clients
  that it had never heard of, took registrations, and did not call itself degraded. After PostgreSQL the goal is %v.
- **requests** is those that ended meanwhile, with up to four attempts each. An **attempt in flight** failed as its replica was killed; at most one
  for each caller can. An attempt **had to fail** for a client that was changed just before PostgreSQL went away, on a replica that nobody had asked
  for it since: it may not use the old key, and cannot read the new one; it says REGISTRY_UNAVAILABLE, and when to try again. No **other attempts**
  may fail.
- **requests failed** is what is left of that after the retries: those that had to fail, and others, of which there may be none.
- **flagged** is tokens whose answer said registry_stale: the replica hears of no changes for now.

`

func (r *report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, intro, r.length.Round(time.Second), callers, pause(), wellAgain)
	b.WriteString("| what | lasted | well after | requests | attempts in flight | had to fail | other attempts | requests failed (had to, others) | flagged | goals |\n|" + strings.Repeat(" --- |", 10) + "\n")
	for _, w := range r.rows {
		goals := "met"
		if n := len(w.misses); n > 0 {
			goals = fmt.Sprintf("**missed** %d times: %s", n, w.misses[0])
		}
		well := span(w.well)
		if w.well == 0 {
			well = ""
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %d | %d | %d | %d, %d | %d | %s |\n", w.name, span(w.lasted), well, w.requests, w.inFlight, w.excused, w.attempts, w.unserved, w.failed, w.flagged, goals)
	}
	fmt.Fprintf(&b, `
- **Tokens**: %d, of which %d failed to open with the keys that the client had (0 may). Half of them came within %v, 99 of 100 within %v.
- **Tokens made with a key later than %v after it was replaced**, or for a client later than that after it was deleted, counted from the answer
  of the one replica that was asked to do so: %d (0 may). %d more came from a replica that a change did not reach, as it was acknowledged within the
  last second before PostgreSQL went away; after %v without PostgreSQL they have to be flagged.
- **Requests failed**: %d after retries (0 may), and %d that had to.
- **Registrations lost**: %d of %d that were acknowledged, %d deletions of %d (0 may). All clients were asked for on every replica at the end, and
  go-jose read what they got. %d replacements and %d refreshes were acknowledged too; %d changes were refused, or lost
  their answer, while something was away.
- **In force on all replicas**: at most %v after the answer for a registration, %v for a deletion, while nothing was away.

`,
		r.tokens, r.wrong, r.p50.Round(100*time.Microsecond), r.p99.Round(100*time.Microsecond), inForce, r.late, r.unheard, flaggedAfter, r.failed, r.unserved,
		r.lostRegistrations, r.counts["registrations"], r.lostDeletions, r.counts["deletions"], r.counts["replacements"], r.counts["refreshes"], r.unclear,
		r.worst["registration"].Round(time.Millisecond), r.worst["deletion"].Round(time.Millisecond))
	var told []string
	for _, w := range r.rows {
		if !slices.Contains(told, w.what) {
			told = append(told, w.what)
			fmt.Fprintf(&b, "- **%s**: %s.\n", w.name, w.what)
		}
	}
	fmt.Fprintf(&b, "\nThe machine has %d cores and runs PostgreSQL, the host and the callers too, who open every token.\n", runtime.NumCPU())
	return b.String()
}

func span(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return "at once"
	case d < time.Second:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
