package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// printError says what went wrong. Of a call's status it shows the code, the
// reason and everything that helps to put it right.
func printError(w io.Writer, err error) {
	st, ok := status.FromError(err)
	if !ok {
		var wrapped interface{ GRPCStatus() *status.Status }
		if !errors.As(err, &wrapped) {
			fmt.Fprintln(w, "bulla:", err)
			return
		}
		st = wrapped.GRPCStatus()
	}
	reason := ""
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			reason = " " + info.GetReason()
		}
	}
	fmt.Fprintf(w, "bulla: %s%s: %s\n", st.Code(), reason, st.Message())
	if advice := adviceFor(st); reason == "" && advice != "" {
		fmt.Fprintf(w, "  %s\n", advice)
	}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				if !strings.Contains(st.Message(), v.GetDescription()) {
					fmt.Fprintf(w, "  %s: %s\n", v.GetField(), v.GetDescription())
				}
			}
		case *errdetails.RetryInfo:
			fmt.Fprintf(w, "  try again after %s\n", d.GetRetryDelay().AsDuration().Round(time.Millisecond))
		}
	}
}

// outputFlag is -o on every command that prints what a service answered.
func outputFlag(cmd *cobra.Command, format *string) {
	*format = "text"
	cmd.PersistentFlags().VarP((*outputFormat)(format), "output", "o", "output format: text or json")
}

// outputFormat is the value of -o. It refuses what does not exist before any
// work is done.
type outputFormat string

func (f *outputFormat) String() string { return string(*f) }

// Type is empty so that the help shows no word for the value: the usage has both.
func (f *outputFormat) Type() string { return "" }

func (f *outputFormat) Set(text string) error {
	if text != "text" && text != "json" {
		return errors.New("use text or json")
	}
	*f = outputFormat(text)
	return nil
}

// show prints a reply: as JSON, or by its own text.
func show(cmd *cobra.Command, format string, reply proto.Message, text func(w io.Writer)) error {
	out := cmd.OutOrStdout()
	if format == "json" {
		doc, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(reply)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", doc)
		return err
	}
	return table(out, text)
}

// table prints rows in columns.
func table(out io.Writer, rows func(w io.Writer)) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	rows(w)
	return w.Flush()
}

// row writes one line of a table. What a client put into its key set must not
// drive the terminal, nor look like a line of ours.
func row(w io.Writer, cells ...string) {
	for i, cell := range cells {
		cells[i] = strings.Map(harmless, cell)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// harmless replaces what is not meant to be seen.
func harmless(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}

// field writes a line of a description, unless its value is empty.
func field(w io.Writer, name, value string) {
	if value != "" {
		row(w, name, value)
	}
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339)
}
