package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/bulla-project/bulla/server/audit"
)

// hangup does what SIGHUP asks for. The audit log is opened anew, so that it can
// be rotated: rename the file, send the signal. Then the configuration is read
// again (see reload): what that puts on record is in the new file. The listeners'
// certificates are looked at too, which happens by itself a little later.
type hangup struct {
	signals chan os.Signal
	audit   *audit.Log
	reload  *reload // set before run
	doors   *doors  // set before run
	log     *slog.Logger
}

// catchHangup catches the signal from now on: before run it would otherwise end a
// process that is still starting.
func catchHangup(auditLog *audit.Log, log *slog.Logger) *hangup {
	h := &hangup{signals: make(chan os.Signal, 1), audit: auditLog, log: log}
	signal.Notify(h.signals, syscall.SIGHUP)
	return h
}

func (h *hangup) stop() { signal.Stop(h.signals) }

// run obeys each signal until ctx ends. One that comes while another is obeyed is
// obeyed after it.
func (h *hangup) run(ctx context.Context) error {
	for {
		select {
		case <-h.signals:
			if err := h.audit.Reopen(ctx); err != nil {
				h.log.ErrorContext(ctx, "audit log not reopened", "error", err)
			} else {
				h.log.InfoContext(ctx, "audit log reopened")
			}
			h.reload.again(ctx)
			if err := h.doors.Reload(ctx); err != nil {
				h.log.ErrorContext(ctx, "certificates not taken up", "error", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}
