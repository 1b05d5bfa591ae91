package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/server/audit"
)

// exitTampered is the exit code for a log that is not what was written.
const exitTampered = 2

// auditVerify is what the command was asked for.
type auditVerify struct {
	keyFile, kept string
	mixed         bool
	uncovered     int64
	output        string
}

func auditVerifyCommand() *cobra.Command {
	a := new(auditVerify)
	cmd := &cobra.Command{
		Use:   "verify FILE…|-",
		Short: "Say whether an audit log is what was written",
		Long: `Say whether an audit log is what was written.

Give all files of a log, in any order: they are read in the order of their
lines. A line that was changed, removed, put in or moved is named by file and
line. Without more, that only shows changes by somebody who has not computed the
chain anew behind them: whoever can rewrite the files can do that.

--key is the public key of audit.checkpoint, from elsewhere than the log ("bulla
audit key" prints it; a JWK, a JWK Set with earlier keys too, or PEM). The
checkpoints in the log are verified with it. What they cover nobody can have
changed without the key. Lines that none covers are told: those since the last
one, and those that a process left that was killed.

--checkpoint is a file with checkpoints that were kept elsewhere, one a line
("bulla audit checkpoint" prints the last). Only they show that lines are missing
at the end of the log, or that all of it was replaced.

--mixed is for the captured output of a service that logs to its standard output
(audit.path: "-"): lines that do not begin like one of the log are let be.

The exit code is 0 if all is well, 2 if the log is not what was written, and 1 if
it could not be read.`,
		Example: `  bulla audit verify --key audit.jwk --checkpoint replica-1.checkpoints /var/log/bulla/audit.log*
  bulla audit verify --key audit.jwk --mixed - < captured.log`,
		Args: atLeastOneFile,
		RunE: a.run,
	}
	f := cmd.Flags()
	f.StringVar(&a.keyFile, "key", "", "file with the public key of the audit log: a JWK, a JWK Set or PEM")
	f.StringVar(&a.kept, "checkpoint", "", "file with checkpoints that were kept elsewhere, one a line")
	f.BoolVar(&a.mixed, "mixed", false, "let lines be that do not begin like one of an audit log")
	f.Int64Var(&a.uncovered, "max-uncovered", -1, "with --key: fail if more lines than this are covered by no checkpoint")
	outputFlag(cmd, &a.output)
	return cmd
}

func (a *auditVerify) run(cmd *cobra.Command, files []string) error {
	o := audit.VerifyOptions{Mixed: a.mixed, Stdin: cmd.InOrStdin()}
	var err error
	if a.keyFile != "" {
		if o.Keys, err = readAuditKeys(cmd, a.keyFile); err != nil {
			return err
		}
	} else if a.uncovered >= 0 {
		return fmt.Errorf("--max-uncovered needs --key: without it no line is covered")
	}
	if a.kept != "" {
		if o.Kept, err = readCheckpoints(cmd, a.kept); err != nil {
			return err
		}
	}
	report, err := audit.Verify(cmd.Context(), files, o)
	if err != nil {
		return err
	}
	if a.output == "json" {
		err = printIndentless(cmd.OutOrStdout(), report)
	} else {
		err = printReport(cmd.OutOrStdout(), report)
	}
	if err != nil {
		return err
	}
	if !report.Good {
		return exitError{fmt.Errorf("the audit log is not what was written: %s", plural(len(report.Problems)+report.MoreProblems, "problem")), exitTampered}
	}
	uncovered := uint64(0)
	for _, c := range report.Chains {
		uncovered += c.UncoveredLines
	}
	if a.uncovered >= 0 && uncovered > uint64(a.uncovered) {
		return exitError{fmt.Errorf("%d lines are covered by no checkpoint, and --max-uncovered allows %d", uncovered, a.uncovered), exitTampered}
	}
	return nil
}

// printReport prints a report for people.
func printReport(out io.Writer, r *audit.Report) error {
	return table(out, func(w io.Writer) {
		for _, c := range r.Chains {
			row(w, fmt.Sprintf("chain %s: lines %d to %d in %s, from %s to %s, of %s",
				c.Chain, c.First, c.Last, plural(c.Files, "file"), orUnknown(c.FirstTime), orUnknown(c.LastTime), plural(c.Starts, "start")))
			if r.Verified && c.Checkpoints > 0 {
				row(w, fmt.Sprintf("  checkpoints: %d verified, the last of %s, which covers up to line %d", c.Checkpoints, c.LastCheckpoint, c.CoveredTo))
				row(w, "  not covered by a checkpoint: "+uncoveredLines(c))
			}
			if c.Kept > 0 {
				row(w, fmt.Sprintf("  checkpoints kept elsewhere: %d match their lines", c.Kept))
			}
		}
		if r.OtherLines > 0 {
			row(w, fmt.Sprintf("%s of others let be", plural(r.OtherLines, "line")))
		}
		for _, n := range r.Notes {
			row(w, "note "+n.String())
		}
		more(w, r.MoreNotes, "notes")
		for _, p := range r.Problems {
			row(w, "FAIL "+p.String())
		}
		more(w, r.MoreProblems, "problems")
		if !r.Good {
			return
		}
		switch {
		case r.Verified:
			row(w, "ok: every line that a checkpoint covers is as it was written")
		case r.Checkpoints.Found > 0:
			row(w, fmt.Sprintf("ok: the chain is whole; %s not verified, for want of --key: whoever can rewrite the files can rewrite the chain", plural(r.Checkpoints.Found, "checkpoint")))
		default:
			row(w, "ok: the chain is whole; without checkpoints, whoever can rewrite the files can rewrite the chain")
		}
	})
}

func uncoveredLines(c audit.ChainReport) string {
	if c.UncoveredLines == 0 {
		return "none"
	}
	var ranges []string
	for _, u := range c.Uncovered {
		if u.From == u.To {
			ranges = append(ranges, fmt.Sprint(u.From))
		} else {
			ranges = append(ranges, fmt.Sprintf("%d to %d", u.From, u.To))
		}
	}
	return fmt.Sprintf("%s (%s)", plural(int(c.UncoveredLines), "line"), strings.Join(ranges, ", ")) //nolint:gosec // lines of files
}

func more(w io.Writer, n int, what string) {
	if n > 0 {
		row(w, fmt.Sprintf("… and %d more %s", n, what))
	}
}

func orUnknown(time string) string {
	if time == "" {
		return "an unknown time"
	}
	return time
}
