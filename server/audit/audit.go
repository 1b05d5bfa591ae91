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
//   - The lines are a chain: each has its number and the hash of the one
//     before, over files and restarts (chain.go). So a line that was changed,
//     removed, put in or moved is found by Verify. What a crash leaves behind is
//     part of the chain too, by its hash.
//   - With RunCheckpoints the chain is signed again and again by a key that
//     does nothing else. Only that, or a checkpoint that is kept elsewhere,
//     stands against somebody who can rewrite the whole file: the hashes alone
//     anybody can compute. A checkpoint says from which line on the process
//     that signed it has written the chain itself. The lines before it only
//     found there, and does not vouch for.
//
// An event may be in the log although its call was denied or canceled in the
// end (the reverse cannot be): a line that was written is not taken back
// because its caller no longer waits.
//
// The file is the property of one process, which holds a lock on it. It is
// replaced by another when it has grown to Config.RotateSize, or by others:
// rename the file, then call Reopen. Nothing is ever deleted.
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
	// RotateSize is how large, in bytes, the file may grow before it is renamed
	// to its path, a dot and the time, and another begun. It is not for
	// Stdout. Default: 0, as large as it gets.
	RotateSize int64
	// Host names the machine in the first line of a process or a file, and in
	// checkpoints. Default: "".
	Host string
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

	Rotations          uint64    // files that another was begun after
	Checkpoints        uint64    // checkpoints written
	CheckpointFailures uint64    // attempts at one that failed
	LastCheckpoint     time.Time // when the last was written; zero if none was
}

// Log is an open audit log. Its methods may be called by any number of
// goroutines at once. Its owner calls Close.
type Log struct {
	path       string
	sync       Sync
	onFailure  OnFailure
	flushEvery time.Duration
	rotateSize int64
	host       string
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
	size    int64   // of the file
	end     head    // of the chain
	since   uint64  // the number of this process's first line; 0 before it
	begin   string  // what the next line has to say first: logOpened, logContinued, or nothing
	found   foreign // what the file ends with that is of no chain
	out     []byte  // for the lines of one write
	suspect bool    // the last background fsync failed: sync each write until one works
	failing bool    // the last write failed, and the logger has been told
	open    uint64  // lines that no checkpoint covers; checkpoints are none
	due     uint64  // at so many the checkpoints are told; 0 if there are none

	full chan struct{}      // holds one signal if the file has reached its size
	many chan struct{}      // holds one signal if a checkpoint is due
	asks chan chan struct{} // who waits for a checkpoint

	dirty chan struct{}  // holds one signal if there are unsynced lines
	stop  chan struct{}  // closed by Close
	ended sync.WaitGroup // of the goroutines that Close ends

	records, failures, lost, writes, syncs, rotations, checkpoints, checkpointFailures atomic.Uint64

	lastCheckpoint atomic.Int64 // Unix time in microseconds; 0 if there was none
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
		rotateSize: cfg.RotateSize,
		host:       cfg.Host,
		logger:     cfg.Logger,
		full:       make(chan struct{}, 1),
		many:       make(chan struct{}, 1),
		asks:       make(chan chan struct{}),
		dirty:      make(chan struct{}, 1),
		stop:       make(chan struct{}),
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
	case l.rotateSize < 0:
		return nil, errors.New("audit log: the size at which the file is replaced is negative")
	case l.path == Stdout && l.rotateSize > 0:
		return nil, errors.New("audit log: the standard output cannot be replaced when it has grown: name a file")
	}
	t, err := l.openFile(ctx)
	if err != nil {
		return nil, err
	}
	l.begin, l.end, l.found = logOpened, t.end, t.found
	if l.end.chain == "" {
		l.end = newChain()
	}
	l.ended.Go(l.flush)
	if l.rotateSize > 0 {
		l.ended.Go(l.rotateFull)
	}
	return l, nil
}

// openFile makes path the log's file, and says how it ends. The caller is Open,
// or holds l.writing.
func (l *Log) openFile(ctx context.Context) (tail, error) {
	if l.path == Stdout {
		l.file, l.size = stdout{}, 0
		return tail{}, nil
	}
	f, err := openFile(l.path)
	if err != nil {
		return tail{}, fmt.Errorf("audit log: %w", err)
	}
	var t tail
	size, err := f.size()
	if err == nil {
		t, err = readTail(f, size)
	}
	if err != nil {
		return tail{}, errors.Join(fmt.Errorf("audit log: %s cannot be read: %w", l.path, err), f.Close())
	}
	l.file, l.size = f, size
	if t.end.chain == "" && t.found.bytes > 0 {
		l.logger.WarnContext(ctx, "the audit log has no chain yet: what it holds is from an earlier version, or from elsewhere; a chain begins behind it", "path", l.path, "bytes", t.found.bytes)
	}
	if t.found.open {
		l.logger.WarnContext(ctx, "the audit log ends within a line, which a crash has cut off; it will be ended before the next record", "path", l.path)
	}
	if mode := f.mode(); mode&0o027 != 0 {
		l.logger.WarnContext(ctx, "the audit log can be read by anybody or written by its group; run chmod 600 or 640", "path", l.path, "mode", mode.String())
	}
	return t, nil
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

// Stats returns the counts so far.
func (l *Log) Stats() Stats {
	return Stats{
		Records:  l.records.Load(),
		Failures: l.failures.Load(),
		Lost:     l.lost.Load(),
		Writes:   l.writes.Load(),
		Syncs:    l.syncs.Load(),

		Rotations:          l.rotations.Load(),
		Checkpoints:        l.checkpoints.Load(),
		CheckpointFailures: l.checkpointFailures.Load(),
		LastCheckpoint:     l.lastCheckpointTime(),
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
	l.ended.Wait()

	l.writing.Lock()
	defer l.writing.Unlock()
	if err := errors.Join(l.file.Sync(), l.file.Close()); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}
