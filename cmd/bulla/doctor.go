package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11"
	"github.com/bulla-project/bulla/server/config"
)

func doctorCommand() *cobra.Command {
	var file, output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "doctor --config FILE",
		Short: "Say what would keep the service from working, and what to do",
		Long: `Say what would keep the service from working, and what to do.

The doctor reads the configuration, looks at the files that it names, brings up
each backend, has each signing key sign a probe and each wrapping key wrap one,
tries store, audit log and listeners, unwraps the data keys of the store, and
says of each what it saw: "ok", "warn" for what works and should be changed,
"FAIL" for what has to be mended. It ends with 0 if nothing is FAIL.

Run it as the user that the service runs as, with the same environment: what
another user may read says nothing about the service. It works beside a running
service and changes nothing.

It obeys the rules that keep a token from locking. A PIN that the token refuses
is sent once in a run; but the next run does not know of it. So mend the PIN
file first, then run the doctor again. A token that itself reports wrong PINs
is not logged in to at all, unless the configuration insists.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("output format %q: use text or json", output)
			}
			if timeout <= 0 {
				return fmt.Errorf("--timeout %v: give the doctor some time, such as 20s", timeout)
			}
			d := &doctor{file: file, timeout: timeout, step: timeout / 4, modules: pkcs11.NewModules()}
			return d.run(cmd.Context(), cmd.OutOrStdout(), output == "json")
		},
	}
	cmd.Flags().StringVar(&file, "config", "bulla.yaml", "the configuration")
	cmd.Flags().DurationVar(&timeout, "timeout", 20*time.Second, "how long the whole may take; a single step may take a quarter of it")
	outputFlag(cmd, &output)
	return cmd
}

// doctor is one run of the command.
type doctor struct {
	file    string
	timeout time.Duration
	step    time.Duration // the longest that one step is waited for

	cfg     *config.Config
	service neighbor        // that runs on this configuration's addresses
	modules *pkcs11.Modules // shared, because a process initializes a module once

	// Filled in by the sections, for what is said when all have come in.
	proofs   keyProofs
	wrappers openWrappers
	stored   storedDataKeys

	mu   sync.Mutex
	open []kms.Backend // guarded by mu: to be closed at the end
}

// closing is the part of the timeout that is kept for letting go of backends.
const closing = 0.1

func (d *doctor) forLetGo() time.Duration { return time.Duration(float64(d.timeout) * closing) }

// run looks at everything and prints it. The sections run side by side, so
// that one that hangs costs the others nothing, and are printed in order.
func (d *doctor) run(ctx context.Context, out io.Writer, asJSON bool) error {
	looking, cancel := context.WithTimeout(ctx, d.timeout-d.forLetGo())
	defer cancel()

	var all []finding
	p := printer{out: out}
	report := func(found []finding) {
		all = append(all, found...)
		if !asJSON {
			p.print(found)
		}
	}

	var found []finding
	d.cfg, found = loadForDoctor(d.file)
	if d.cfg != nil {
		p.fit(d.cfg)
	}
	report(found)
	if d.cfg != nil {
		d.service = findService(looking, d.cfg.Ops)
		var answers []<-chan []finding
		for _, s := range d.sections() {
			answers = append(answers, d.start(looking, s))
		}
		for _, answer := range answers {
			report(<-answer)
		}
		report(d.proofs.compare(d.cfg))
		report(d.dataKeys(looking))
		d.letGo()
	}
	if ctx.Err() != nil {
		return errors.New("interrupted before everything was looked at; run it again")
	}
	if asJSON {
		if err := printJSON(out, all); err != nil {
			return err
		}
	}
	if n := count(all, failed); n > 0 {
		return fmt.Errorf("%d of %d checks failed: mend what is marked FAIL, then run the doctor again", n, len(all))
	}
	return nil
}

// section is a part of the service that is looked at by itself.
type section struct {
	check string
	look  func(context.Context) []finding
	// patient sections bound their own steps.
	patient bool
}

func (d *doctor) sections() []section {
	list := []section{
		{check: "policy", look: d.policies},
		{check: "files", look: d.files},
		{check: "tls", look: d.tls},
	}
	for _, name := range sortedKeys(d.cfg.Backends) {
		list = append(list, section{check: "backend", patient: true, look: func(ctx context.Context) []finding {
			return d.backend(ctx, name)
		}})
	}
	return append(list,
		section{check: "store", look: d.store},
		section{check: "audit", look: d.audit},
		section{check: "fetch", look: d.fetch},
		section{check: "grants", look: d.grants},
		section{check: "listener", look: d.listeners},
	)
}

// start runs a section beside the others.
func (d *doctor) start(ctx context.Context, s section) <-chan []finding {
	answer := make(chan []finding, 1)
	go func() {
		if s.patient {
			answer <- s.look(ctx)
			return
		}
		found, ok := within(ctx, d.step, s.look)
		if !ok {
			found = []finding{{
				Check: s.check, Subject: filepath.Base(d.file), Outcome: failed, Detail: d.noAnswer(),
				Advice: "see whether a disk or a network file system of this machine hangs",
			}}
		}
		answer <- found
	}()
	return answer
}

func (d *doctor) noAnswer() string { return fmt.Sprintf("no answer within %v", d.step) }

// keep has a backend closed at the end. Not before: as long as it is open, all
// backends on its token know which PIN was refused, and none sends it again.
func (d *doctor) keep(b kms.Backend) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, b)
}

// letGo closes the backends. Those that hang are left to the end of the
// process.
func (d *doctor) letGo() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var group sync.WaitGroup
	for _, b := range d.open {
		group.Go(func() {
			_, _ = within(context.Background(), d.forLetGo(), func(context.Context) error { return b.Close() })
		})
	}
	group.Wait()
}

// errNoAnswer: a step was not waited for any longer.
var errNoAnswer = errors.New("no answer in time")

// inTime runs a step. It returns errNoAnswer for one that takes too long.
func (d *doctor) inTime(ctx context.Context, step func(context.Context) error) error {
	err, ok := within(ctx, d.step, step)
	if !ok || errors.Is(err, context.DeadlineExceeded) {
		return errNoAnswer
	}
	return err
}

// within runs f, and waits for it no longer than limit. Some of what f calls
// cannot be interrupted: what has not come back by then is left behind, until
// the process ends, which is soon.
func within[T any](ctx context.Context, limit time.Duration, f func(context.Context) T) (v T, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan T, 1)
	go func() { done <- f(ctx) }()
	select {
	case v = <-done:
		return v, true
	case <-ctx.Done():
	}
	// What ends with ctx may still say how far it came.
	const moment = 200 * time.Millisecond
	select {
	case v = <-done:
		return v, true
	case <-time.After(moment):
		return v, false
	}
}
