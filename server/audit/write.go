package audit

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

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

// append links the lines to the chain and writes them, and syncs them if
// Record has to wait for that. If it fails, what it has written is taken back,
// and the chain goes on from the last line in the file. The caller holds
// l.writing.
func (l *Log) append(lines []byte) error {
	out, end := l.out[:0], l.end
	if l.found.open {
		out = append(out, '\n')
	}
	kind, added := l.begin, uint64(0)
	if kind == "" && l.found.bytes > 0 {
		kind = logTorn
	}
	if kind != "" {
		var scratch [512]byte
		out = end.link(out, appendBeginning(scratch[:0], kind, l.host, l.found.ended()))
		added++
	}
	for len(lines) > 0 {
		next := bytes.IndexByte(lines, '\n') + 1
		out = end.link(out, lines[:next])
		lines = lines[next:]
		added++
	}
	if cap(out) <= 256<<10 {
		l.out = out
	}
	if len(out) == 0 {
		return nil
	}
	n, err := l.file.Write(out)
	if err == nil {
		l.writes.Add(1)
		if l.sync == SyncAlways || l.suspect {
			err = l.file.Sync()
		}
	}
	if err != nil {
		if n > 0 {
			if back := l.file.takeBack(int64(n)); back != nil {
				l.leave(out[:n])
				err = errors.Join(err, back)
			}
		}
		return err
	}
	l.wrote(end, added, n)
	if l.sync == SyncAlways || l.suspect {
		l.syncs.Add(1)
		l.suspect = false
		return nil
	}
	nudge(l.dirty)
	return nil
}

// wrote notes that n bytes were added to the file, with so many lines, the last
// of which is the end of the chain now.
func (l *Log) wrote(end head, lines uint64, n int) {
	if l.since == 0 {
		l.since = l.end.seq + 1
		l.tidy()
	}
	l.end, l.begin, l.found = end, "", foreign{}
	l.size += int64(n)
	l.open += lines
	if l.due > 0 && l.open >= l.due {
		nudge(l.many)
	}
	if l.rotateSize > 0 && l.size >= l.rotateSize {
		nudge(l.full)
	}
}

// leave notes what a write that failed has left in the file: its whole lines
// are part of the chain, although their callers were denied, and the rest is
// part of none.
func (l *Log) leave(out []byte) {
	l.size += int64(len(out))
	if l.found.open {
		l.found.add(out[:1])
		out = out[1:]
	}
	for {
		next := bytes.IndexByte(out, '\n') + 1
		if next == 0 {
			break
		}
		end := l.end
		end.pass(out[:next-1])
		l.wrote(end, 1, 0)
		out = out[next:]
	}
	l.found.add(out)
}

// nudge leaves a signal for whoever waits for it, unless there is one.
func nudge(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// flush is the goroutine that syncs what SyncGroup has left to the operating
// system. Close ends it.
func (l *Log) flush() {
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
