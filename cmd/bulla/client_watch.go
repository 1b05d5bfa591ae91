package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

func clientWatchCommand(conn *connection, issuer *string) *cobra.Command {
	return &cobra.Command{
		Use:   "watch",
		Short: "Show each change of a client as it happens",
		Long: `Show each change of a client as it happens, one line for each: registered, changed, deleted, its keys fetched
and found to be others, its state another, or a change of it that waits and then takes effect. It goes on until it is interrupted, and watches again when it is
cut off. What changed before that, or in between, is not shown: "bulla client list" shows how clients stand.`,
		Example: `  bulla client watch --issuer main
  bulla client watch --issuer main -o json | jq -r 'select(.deleted) | .client_key.client_id'`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			service, err := client.Dial(conn.config)
			if err != nil {
				return err
			}
			defer service.Close() //nolint:errcheck // nothing is lost: what was received has been shown
			w := &clientWatch{
				keys: service.ClientKeys, issuer: *issuer, timeout: conn.timeout, notes: cmd.ErrOrStderr(),
				show: func(res *bullav1.WatchClientKeysResponse) error {
					return show(cmd, conn.output, res, func(out io.Writer) { watchedRow(out, watchedCells(res, time.Now())...) })
				},
			}
			if conn.output != "json" {
				w.heading = func() {
					watchedRow(cmd.OutOrStdout(), "TIME", "CLIENT", "STATE", "REVISION", "KEYS", "REASON")
				}
			}
			return w.run(cmd.Context())
		},
	}
}

// clientWatch watches until it is told to end, through whatever cuts it off.
type clientWatch struct {
	keys    bullav1.ClientKeyServiceClient
	issuer  string
	timeout time.Duration // until the service says that the watch has begun
	heading func()        // nil for none
	show    func(*bullav1.WatchClientKeysResponse) error
	notes   io.Writer // what is not a change
}

// The pauses before a watch begins again grow from the first to the longest,
// and begin anew after one that lasted.
const (
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
	lasted       = time.Minute
)

// run watches until ctx ends, which is no error. What trying again does not help
// is one, and so is a service that was never reached.
func (w *clientWatch) run(ctx context.Context) error {
	began := false
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		since := time.Now()
		watching, err := w.once(ctx, began)
		began = began || watching
		var local *localError
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // a signal is how a watch ends
		case errors.As(err, &local):
			return local.err
		case !began || !worthAnother(err):
			return err
		case time.Since(since) > lasted:
			pause = firstPause
		}
		// Not all who were cut off together come back at the same moment.
		wait := max(pause/2+rand.N(pause), retryDelay(err)) //nolint:gosec // spreads load, protects nothing
		w.note("the watch was cut off (%s); trying again in %s", status.Convert(err).Message(), wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// localError is an error of this side, not of the call.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }

// once watches until it is cut off. watching says whether the watch had begun.
func (w *clientWatch) once(ctx context.Context, again bool) (watching bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(w.timeout, cancel)
	defer late.Stop()
	stream, err := w.keys.WatchClientKeys(ctx, &bullav1.WatchClientKeysRequest{Issuer: w.issuer})
	if err != nil {
		return false, err
	}
	header, err := stream.Header()
	switch {
	case !late.Stop():
		return false, status.Error(codes.Unavailable, fmt.Sprintf("no answer within %s", w.timeout))
	case err == nil && header == nil:
		_, err = stream.Recv() // why there is no watch
	}
	if err != nil {
		return false, err
	}
	if again {
		w.note(`watching again; what changed meanwhile is not shown: "bulla client list" shows how clients stand`)
	} else {
		w.note("watching")
		if w.heading != nil {
			w.heading()
		}
	}
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = status.Error(codes.Unavailable, "the service ended it")
		}
		if err != nil {
			return true, err
		}
		if err := w.show(res); err != nil {
			return true, &localError{err}
		}
	}
}

func (w *clientWatch) note(format string, args ...any) {
	fmt.Fprintf(w.notes, "bulla: "+format+"\n", args...)
}

// worthAnother reports whether a watch that ended with err may succeed later as
// it is.
func worthAnother(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return false
	}
	return true
}

// retryDelay is the pause that a status asks for.
func retryDelay(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			return retry.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// watchedCells are a change as it is shown: when it was heard of, whose it is,
// and how the client stands.
func watchedCells(res *bullav1.WatchClientKeysResponse, now time.Time) []string {
	k := res.GetClientKey()
	state := stateName(k)
	if res.GetDeleted() {
		state = "DELETED"
	}
	return []string{now.UTC().Format(time.RFC3339), k.GetClientId(), state, k.GetRevision(), chosenNames(k.GetChosenKeys()), reasonAndPending(k)}
}

// watchedWidths are those of the columns but the last: a stream has none that
// could be found from what is yet to come.
var watchedWidths = []int{20, 24, 13, 8, 30}

// watchedRow writes one line at once, however wide its cells are.
func watchedRow(out io.Writer, cells ...string) {
	var line strings.Builder
	for i, cell := range cells {
		width := 0
		if i < len(watchedWidths) {
			width = watchedWidths[i]
		}
		if cell == "" {
			cell = "-"
		}
		if i > 0 {
			line.WriteString("  ")
		}
		fmt.Fprintf(&line, "%-*s", width, strings.Map(harmless, cell))
	}
	fmt.Fprintln(out, strings.TrimRight(line.String(), " "))
}
