// Package audit writes down who was given what. Every token issued, every
// change of a registration or a signing key, and every denial becomes one line
// of JSON in an append-only file, and the line is written before the caller
// has its answer: what is not in the log has not left the service.
//
// What it promises:
//
//   - Record returns nil only after the line has been handed to the operating
//     system by write(2), so that it outlives the death of this process. With
//     SyncAlways it is also on the disk; with SyncGroup it is there within
//     Config.FlushEvery, which is what a loss of power can cost.
//   - The file holds whole lines. A write that fails halfway (a full disk) is
//     taken back before the next; where that is impossible, and where a crash
//     has left a torn line behind, that line is ended first, so that it never
//     swallows the one after it.
//   - A log that cannot be written denies the calls that need it, unless the
//     operator has decided otherwise with OnFailureContinue. Then each loss is
//     counted. As soon as the file can be written again the log goes on.
//   - A line is made of the declared fields of Event and nothing else, each
//     bounded and free of control characters. There is no field for claims,
//     tokens or secrets.
//
// An event may be in the log although its call was denied or canceled in the
// end (the reverse cannot be): a line that was written is not taken back
// because its caller no longer waits.
//
// The file is the property of one process, which holds a lock on it. Rotation
// is left to others: rename the file, then call Reopen.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// ErrUnavailable: the event is not in the log for certain, and so the call it
// belongs to must not go through. Try again later; the log (slog) tells the
// operator why.
var ErrUnavailable = errors.New("audit log unavailable")

// ErrInUse: another process logs to the file. Stop that one first, or give
// each its own file. Nothing was changed.
var ErrInUse = errors.New("in use by another process")

// Sync says when lines are forced to the disk.
type Sync string

// The ways to sync.
const (
	// SyncGroup forces lines to the disk every Config.FlushEvery, in the
	// background.
	SyncGroup Sync = "group"
	// SyncAlways forces lines to the disk before Record returns. Callers that
	// come together share one fsync.
	SyncAlways Sync = "always"
)

// OnFailure says what becomes of calls that cannot be logged.
type OnFailure string

// The ways to fail.
const (
	// OnFailureDeny lets Record fail, so that the call is denied.
	OnFailureDeny OnFailure = "deny"
	// OnFailureContinue lets the call through unlogged, and counts it.
	OnFailureContinue OnFailure = "continue"
)

// Stdout as Config.Path writes the lines to the standard output.
const Stdout = "-"

// maxPending bounds the lines, in bytes, that wait while a write is stuck in
// the operating system. Above it events are refused.
const maxPending = 1 << 20

// Config says where and how to log.
type Config struct {
	// Path is the file. It is created, readable by its owner only, if it is
	// missing; its folder must exist. Stdout ("-") is the standard output, to
	// which SyncGroup and FlushEvery do not apply and SyncAlways cannot.
	// No default.
	Path string
	// Sync is SyncGroup or SyncAlways. Default: SyncGroup.
	Sync Sync
	// OnFailure is OnFailureDeny or OnFailureContinue. Default: OnFailureDeny.
	OnFailure OnFailure
	// FlushEvery is the longest that SyncGroup leaves a line to the operating
	// system. Default: 50 ms.
	FlushEvery time.Duration
	// Logger is told when the log begins to fail and when it works again; it
	// never sees an event. Default: none.
	Logger *slog.Logger
}

// Stats counts since Open, for metrics. All numbers only grow.
type Stats struct {
	Records  uint64 // events written
	Failures uint64 // events whose callers were not told that they are written
	Lost     uint64 // those of Failures that OnFailureContinue let through
	Writes   uint64 // calls of write(2) that succeeded
	Syncs    uint64 // calls of fsync(2) that succeeded
}

// Log is an open audit log. Its methods may be called by any number of
// goroutines at once. Its owner calls Close.
type Log struct {
	path       string
	sync       Sync
	onFailure  OnFailure
	flushEvery time.Duration
	logger     *slog.Logger

	// mu guards next, spare and closed. It is held for moments only.
	mu     sync.Mutex
	next   *batch // the batch that can still be joined; nil if there is none
	spare  []byte // the buffer of a batch that is done
	closed bool

	// leaders counts the batches that Close has to wait for.
	leaders sync.WaitGroup

	// writing is held through write(2) and, where one is due, fsync(2): who
	// waits for it is the leader of the batch that others join meanwhile. It
	// owns the order of lines and guards the fields below. It is taken
	// before mu where both are.
	writing sync.Mutex
	file    file
	torn    bool // the file ends within a line
	suspect bool // the last background fsync failed: sync each write until one works
	failing bool // the last write failed, and the logger has been told

	dirty chan struct{} // holds one signal if there are unsynced lines
	stop  chan struct{} // closed by Close
	done  chan struct{} // closed when the flusher has ended

	records, failures, lost, writes, syncs atomic.Uint64
}

// batch is a number of lines that share one write. Its first caller leads: it
// waits its turn and writes for all.
type batch struct {
	lines  []byte        // guarded by Log.mu until the leader has taken it
	events uint64        // likewise
	done   chan struct{} // closed when err is set; nil if nobody has joined
	err    error
}

// Open opens the log and locks its file. An error is one that an operator has
// to mend: a path that cannot be opened, or a file that another process logs
// to. A full disk is none; it fails Record until there is room.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	l := &Log{
		path:       cfg.Path,
		sync:       cfg.Sync,
		onFailure:  cfg.OnFailure,
		flushEvery: cfg.FlushEvery,
		logger:     cfg.Logger,
		dirty:      make(chan struct{}, 1),
		stop:       make(chan struct{}),
		done:       make(chan struct{}),
	}
	if l.sync == "" {
		l.sync = SyncGroup
	}
	if l.onFailure == "" {
		l.onFailure = OnFailureDeny
	}
	if l.flushEvery == 0 {
		l.flushEvery = 50 * time.Millisecond
	}
	if l.logger == nil {
		l.logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case l.path == "":
		return nil, errors.New("audit log: no path given")
	case l.sync != SyncGroup && l.sync != SyncAlways:
		return nil, fmt.Errorf("audit log: sync is %q, must be %q or %q", l.sync, SyncGroup, SyncAlways)
	case l.onFailure != OnFailureDeny && l.onFailure != OnFailureContinue:
		return nil, fmt.Errorf("audit log: on_failure is %q, must be %q or %q", l.onFailure, OnFailureDeny, OnFailureContinue)
	case l.flushEvery < 0:
		return nil, errors.New("audit log: the time between flushes is negative")
	case l.path == Stdout && l.sync == SyncAlways:
		return nil, fmt.Errorf("audit log: the standard output cannot be synced: use sync %q or a file", SyncGroup)
	}
	var err error
	if l.file, l.torn, err = l.open(ctx); err != nil {
		return nil, err
	}
	go l.flush()
	return l, nil
}

func (l *Log) open(ctx context.Context) (file, bool, error) {
	if l.path == Stdout {
		return stdout{}, false, nil
	}
	f, torn, err := openFile(l.path)
	if err != nil {
		return nil, false, fmt.Errorf("audit log: %w", err)
	}
	if torn {
		l.logger.WarnContext(ctx, "the audit log ends within a line, which a crash has cut off; it will be ended before the next record", "path", l.path)
	}
	if mode := f.mode(); mode&0o027 != 0 {
		l.logger.WarnContext(ctx, "the audit log can be read by anybody or written by its group; run chmod 600 or 640", "path", l.path, "mode", mode.String())
	}
	return f, torn, nil
}

// Record writes e down, and returns nil once it is written as Config.Sync
// says. An e without a Time is given the present one.
//
// If the error wraps ErrUnavailable, the call that e tells of must be denied.
// With OnFailureContinue there is no such error.
//
// The end of ctx ends the waiting for others' writes, with ctx's error: the
// caller has gone, and must get nothing. It does not keep e from being written,
// so a change that has already happened is recorded all the same.
func (l *Log) Record(ctx context.Context, e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	var scratch [1024]byte
	line := e.appendLine(scratch[:0])

	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return l.verdict(fmt.Errorf("%w: it is closed", ErrUnavailable))
	}
	b := l.next
	if b == nil {
		b = &batch{lines: append(l.spare[:0], line...), events: 1}
		l.next, l.spare = b, nil
		l.leaders.Add(1)
		l.mu.Unlock()
		l.lead(b)
		return l.verdict(b.err)
	}
	if len(b.lines)+len(line) > maxPending {
		l.mu.Unlock()
		return l.verdict(fmt.Errorf("%w: too many records wait for a write that does not end", ErrUnavailable))
	}
	b.lines = append(b.lines, line...)
	b.events++
	if b.done == nil {
		b.done = make(chan struct{})
	}
	done := b.done
	l.mu.Unlock()

	select {
	case <-done:
		return l.verdict(b.err)
	case <-ctx.Done():
		// The line is on its way; only its caller does not wait for it.
		return ctx.Err()
	}
}

// verdict counts err and decides, as the operator has, whether the call may go
// through without its record.
func (l *Log) verdict(err error) error {
	if err == nil {
		return nil
	}
	l.failures.Add(1)
	if l.onFailure == OnFailureContinue {
		l.lost.Add(1)
		return nil
	}
	return err
}

// lead waits until the batch before b is written, closes b to others and
// writes it.
func (l *Log) lead(b *batch) {
	defer l.leaders.Done()
	l.writing.Lock()
	l.mu.Lock()
	l.next = nil
	lines := b.lines
	l.mu.Unlock()

	err := l.write(lines)
	l.writing.Unlock()

	if err != nil {
		b.err = fmt.Errorf("%w: it cannot be written", ErrUnavailable)
	} else {
		l.records.Add(b.events)
	}
	if b.done != nil {
		close(b.done)
	}
	l.mu.Lock()
	if cap(lines) <= 64<<10 {
		l.spare = lines
	}
	l.mu.Unlock()
}

// write appends whole lines to the file, all or none, and tells the logger
// when that begins or ceases to fail. The caller holds l.writing.
func (l *Log) write(lines []byte) error {
	err := l.append(lines)
	switch {
	case err != nil && !l.failing:
		advice := "calls are denied until it can: make room on its disk or mend it"
		if l.onFailure == OnFailureContinue {
			advice = "calls go on unlogged, as configured: make room on its disk or mend it"
		}
		l.logger.Error("the audit log cannot be written", "path", l.path, "error", err, "advice", advice)
	case err == nil && l.failing:
		l.logger.Info("the audit log is written again", "path", l.path, "failed_records", l.failures.Load())
	}
	l.failing = err != nil
	return err
}

// append writes lines, and syncs them if Record has to wait for that. If it
// fails, what it has written is taken back. The caller holds l.writing.
func (l *Log) append(lines []byte) error {
	if l.torn {
		lines = append([]byte{'\n'}, lines...)
	}
	n, err := l.file.Write(lines)
	if err == nil {
		l.writes.Add(1)
		if l.sync == SyncAlways || l.suspect {
			err = l.file.Sync()
		}
	}
	if err == nil {
		l.torn = false
		if l.sync == SyncAlways || l.suspect {
			l.syncs.Add(1)
			l.suspect = false
			return nil
		}
		select {
		case l.dirty <- struct{}{}:
		default: // the flusher knows already
		}
		return nil
	}
	if n > 0 {
		if back := l.file.takeBack(int64(n)); back != nil {
			l.torn = lines[n-1] != '\n'
			err = errors.Join(err, back)
		}
	}
	return err
}

// flush is the goroutine that syncs what SyncGroup has left to the operating
// system. Close ends it.
func (l *Log) flush() {
	defer close(l.done)
	for {
		select {
		case <-l.stop:
			return
		case <-l.dirty:
		}
		select {
		case <-l.stop:
			return
		case <-time.After(l.flushEvery):
		}
		select {
		case <-l.dirty: // lines written while we waited: this sync covers them
		default:
		}
		l.flushOnce()
	}
}

// flushOnce syncs without holding up writers. If that fails, lines which
// Record has vouched for may be lost: after a failed fsync(2) the system may
// have dropped them, and a second one proves nothing of the first. So the
// next writes are synced one by one until one works.
func (l *Log) flushOnce() {
	l.writing.Lock()
	f := l.file
	l.writing.Unlock()

	err := f.Sync()
	if err == nil {
		l.syncs.Add(1)
		return
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.file != f {
		return // Reopen has replaced, synced and closed f
	}
	l.suspect = true
	l.logger.Error("the audit log cannot be synced: records of the last moments may be lost if the machine stops; each further record is synced by itself until that works again",
		"path", l.path, "error", err)
}

// Reopen lets go of the file and opens its path anew, creating it if it is
// missing: the second half of a rotation, after the file was renamed. No
// record falls between the two. If the path cannot be opened the log goes on
// in the old file, and the error says why. For Stdout it does nothing.
func (l *Log) Reopen(ctx context.Context) error {
	if l.path == Stdout {
		return nil
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return errors.New("audit log: it is closed")
	}
	old := l.file
	if old.isAt(l.path) {
		return nil // nobody has moved it
	}
	f, torn, err := l.open(ctx)
	if err != nil {
		return fmt.Errorf("%w; records still go to the old file", err)
	}
	l.file, l.torn, l.suspect = f, torn, false
	if err := errors.Join(old.Sync(), old.Close()); err != nil {
		return fmt.Errorf("audit log: the old file may miss its last records: %w", err)
	}
	return nil
}

// Stats returns the counts so far.
func (l *Log) Stats() Stats {
	return Stats{
		Records:  l.records.Load(),
		Failures: l.failures.Load(),
		Lost:     l.lost.Load(),
		Writes:   l.writes.Load(),
		Syncs:    l.syncs.Load(),
	}
}

// Close waits for the records that are being written, syncs the file and
// closes it. Records that come later fail. A second Close does nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()

	l.leaders.Wait()
	close(l.stop)
	<-l.done

	l.writing.Lock()
	defer l.writing.Unlock()
	if err := errors.Join(l.file.Sync(), l.file.Close()); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}
