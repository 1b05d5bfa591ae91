package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// tempo is how fast a worker process is watched and replaced.
type tempo struct {
	look    time.Duration // between two looks for heartbeats
	silence int           // looks in a row without one, after which the worker is killed

	calm     time.Duration // a worker that lived for so long is replaced at once
	first    time.Duration // before the second replacement in a row, doubling from there
	longest  time.Duration // up to this
	patience time.Duration // calls wait no longer for a worker that is being started, and not at all for one that is farther off

	farewell time.Duration // for a worker to close its token and end
	reap     time.Duration // for a killed one to be gone
}

var usualTempo = tempo{
	look: time.Second, silence: 5,
	calm: 10 * time.Second, first: 100 * time.Millisecond, longest: 5 * time.Second, patience: 2 * time.Second,
	farewell: 3 * time.Second, reap: 2 * time.Second,
}

// backOff is how long to wait before the next worker, when so many before it
// have died soon.
func (t tempo) backOff(died int) time.Duration {
	if died == 0 {
		return 0
	}
	wait := t.first
	for ; died > 1 && wait < t.longest; died-- {
		wait *= 2
	}
	return min(wait, t.longest)
}

// openRemote returns the token of a worker process, with the supervisor that
// starts it.
func (r *Modules) openRemote(key tokenKey, cfg Config) (*remote, error) {
	if cfg.tempo == nil {
		cfg.tempo = &usualTempo
	}
	if _, err := exec.LookPath(cfg.Worker[0]); err != nil {
		return nil, fmt.Errorf("pkcs11: the command of the worker process cannot be run: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.remotes[key]; w != nil {
		if w.cfg.PINFile != cfg.PINFile || w.cfg.InsistOnLogin != cfg.InsistOnLogin || w.cfg.Sessions != cfg.Sessions ||
			w.cfg.RetryAfter != cfg.RetryAfter || w.cfg.RefusalFile != cfg.RefusalFile || w.cfg.InitReserved != cfg.InitReserved || !slices.Equal(w.cfg.Worker, cfg.Worker) {
			return nil, fmt.Errorf("pkcs11: another backend uses the same token %s with other settings; name the token once and use that backend in both places", cfg.tokenName())
		}
		w.refs++
		return w, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &remote{
		cfg: cfg, modules: r, refs: 1, pins: cfg.pinFile(),
		ctx: ctx, cancel: cancel, ended: make(chan struct{}),
		changed: make(chan struct{}), reason: errFirstWorker, since: time.Now(), soon: true,
	}
	r.remotes[key] = w
	go w.supervise()
	return w, nil
}

// close lets go of the token for one backend; the last one ends the worker. A
// worker that does not end by itself is killed, and nothing of it is left.
func (r *remote) close() error {
	r.modules.mu.Lock()
	r.refs--
	last := r.refs == 0
	if last {
		delete(r.modules.remotes, tokenKey{r.cfg.Module, r.cfg.InitReserved, r.cfg.Token, r.cfg.Serial})
	}
	r.modules.mu.Unlock()
	if !last {
		return nil
	}
	r.cancel()
	limit := time.NewTimer(r.cfg.tempo.farewell + 2*r.cfg.tempo.reap)
	defer limit.Stop()
	select {
	case <-r.ended:
		return nil
	case <-limit.C:
		return fmt.Errorf("pkcs11: the worker process of token %s cannot be killed: %w", r.cfg.tokenName(), errStuck)
	}
}

// set changes the state under mu, and tells those who wait for that.
func (r *remote) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	close(r.changed)
	r.changed = make(chan struct{})
}

// supervise keeps one worker process running, until the token is closed.
func (r *remote) supervise() {
	defer close(r.ended)
	defer func() { r.set(func() { r.line, r.reason, r.soon = nil, errClosed, false }) }()
	var told string // the last line about a worker that ended before it was ready
	for died := 0; ; died++ {
		begin := time.Now()
		why, ready := r.life(died > 0)
		if r.ctx.Err() != nil {
			return
		}
		if time.Since(begin) >= r.cfg.tempo.calm {
			died = 0
		}
		wait := r.cfg.tempo.backOff(died)
		if ready || why.Error() != told {
			r.cfg.Logger.Warn("PKCS#11 worker process died", "token", r.cfg.tokenName(), "why", why, "next_in", wait)
			told = ""
			if !ready {
				told = why.Error()
			}
		}
		r.set(func() {
			if r.line != nil {
				if told := r.line.stats.Load(); told != nil {
					addStats(&r.before, *told)
				}
				r.since = time.Now()
			}
			r.line, r.soon = nil, wait <= r.cfg.tempo.patience/4
			r.reason = fmt.Errorf("the PKCS#11 worker process died (%w) and is being replaced", why)
		})
		select {
		case <-time.After(wait):
		case <-r.ctx.Done():
			return
		}
		r.set(func() { r.restarts++ })
	}
}

// life is the life of one worker process: it is started, watched, and reaped.
// why says how it ended, and ready whether it was ready before.
func (r *remote) life(again bool) (why error, ready bool) {
	begin := time.Now()
	cmd, conn, err := spawn(r.cfg.Worker)
	if err != nil {
		return fmt.Errorf("it cannot be started: %w", err), false
	}
	l := newLine(cmd.Process.Pid, conn)
	debug := r.cfg.Logger.Enabled(r.ctx, -4)
	_ = l.out.send(frameHello, 0, appendHello(nil, hello{cfg: r.cfg, debug: debug})) // an empty outbox takes it
	var running sync.WaitGroup
	running.Go(l.write)
	running.Go(l.read)
	running.Go(func() { l.attend(r.pins, r.cfg.Logger.With("worker", l.pid)) })
	exited := make(chan struct{})
	go func() { // ends when the process does
		defer close(exited)
		_ = cmd.Wait() // cmd.ProcessState says it
	}()
	if !again {
		r.cfg.Logger.Info("PKCS#11 worker process started", "token", r.cfg.tokenName(), "worker", l.pid)
	}

	cause, ready := r.watch(l, cmd, exited, func() {
		r.set(func() { r.line, r.reason, r.soon = l, nil, false })
		if again {
			r.cfg.Logger.Info("PKCS#11 worker process is back", "token", r.cfg.tokenName(), "worker", l.pid, "after", time.Since(begin).Round(time.Millisecond))
		}
	})

	if !within(exited, r.cfg.tempo.reap) {
		cause = errors.Join(cause, errors.New("it cannot be killed"))
	}
	within(l.over, lastWords) // what it has written is read
	_ = conn.Close()
	running.Wait()
	if e := l.ending(); cause == nil && e != "" {
		cause = errors.New(e)
	}
	if cause == nil {
		cause = errors.New(exitText(cmd))
	}
	return cause, ready
}

// watch returns when the process has ended, or is to be taken for ended; it is
// killed then. cause is why, if it is not the process's own end.
func (r *remote) watch(l *line, cmd *exec.Cmd, exited <-chan struct{}, up func()) (cause error, ready bool) {
	defer func() { _ = cmd.Process.Kill() }() // if it has not ended
	look := time.NewTicker(r.cfg.tempo.look)
	defer look.Stop()
	waits, closing := l.ready, r.ctx.Done()
	var deadline <-chan time.Time
	var beats uint64
	silent := 0
	for {
		select {
		case <-exited:
			return cause, ready
		case <-l.over:
			if l.ending() == "" {
				within(exited, lastWords) // it is about to exit, and has a status to tell
			}
			return cause, ready
		case <-waits:
			waits, ready = nil, true
			up()
		case <-look.C:
			// Looks are counted, not time: after a standstill of the whole
			// machine the worker's signs of life are still to be read.
			if now := l.beats.Load(); now != beats {
				beats, silent = now, 0
			} else if silent++; silent >= r.cfg.tempo.silence {
				return fmt.Errorf("it gave no sign of life for %v and was killed", time.Duration(silent)*r.cfg.tempo.look), ready
			}
		case <-closing:
			closing = nil
			_ = l.out.send(frameFinish, 0) // if it does not get that it is killed
			timer := time.NewTimer(r.cfg.tempo.farewell)
			defer timer.Stop()
			deadline = timer.C
		case <-deadline:
			r.cfg.Logger.Warn("PKCS#11 worker process killed, because it did not end by itself", "token", r.cfg.tokenName(), "worker", l.pid)
			return nil, ready
		}
	}
}

// within waits for done, but no longer than limit.
func within(done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// exitText says how a process ended.
func exitText(cmd *exec.Cmd) string {
	if cmd.ProcessState == nil {
		return "not known"
	}
	text := cmd.ProcessState.String()
	if cmd.ProcessState.ExitCode() == exitStuck {
		text += ": a call was stuck inside the module"
	}
	return text
}
