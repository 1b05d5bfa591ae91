package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A file that has grown to its size is replaced in three steps: another is made
// beside it, with the line by which the chain goes on; the old one is renamed;
// the new one is given its name. Whenever the process dies, what is there is
// one chain: before the second step the new file has a line that nothing
// follows, and the next process removes it with its first line; before the
// third it only lacks its name, and is given it at the next start.

// nextSuffix ends the name of a file that has not been given its name yet.
const nextSuffix = ".next"

// rotatedFormat is the time in the name of a file that was replaced. The names
// sort like the times.
const rotatedFormat = "20060102T150405.000000Z"

// settleTime is how long a rotation waits for a checkpoint over what is in the
// file.
const settleTime = 2 * time.Second

// rotateAgain is how long the log waits after a rotation that failed.
const rotateAgain = 10 * time.Second

// Reopen lets go of the file and opens its path anew, creating it if it is
// missing: the second half of a rotation, after the file was renamed. No
// record falls between the two. If the path cannot be opened the log goes on
// in the old file, and the error says why. For Stdout it does nothing.
//
// It waits a moment for a checkpoint over the old file, if there are any.
func (l *Log) Reopen(ctx context.Context) error {
	if l.path == Stdout {
		return nil
	}
	l.settle(ctx)
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.reopen(ctx)
}

// reopen is Reopen for one who holds l.writing.
func (l *Log) reopen(ctx context.Context) error {
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
	if l.since == 0 {
		l.tidy() // or it would be taken for the file that is missing
	}
	t, err := l.openFile(ctx)
	if err != nil {
		return fmt.Errorf("%w; records still go to the old file", err)
	}
	l.found, l.suspect = t.found, false
	if l.begin == "" {
		l.begin = logContinued
	}
	// So that a process that dies now leaves a file with which the next one
	// can go on. If it fails, the next record has it before itself.
	_ = l.write(nil)
	return l.letGo(old)
}

// letGo closes a file that was replaced.
func (l *Log) letGo(old file) error {
	l.rotations.Add(1)
	if err := errors.Join(old.Sync(), old.Close()); err != nil {
		return fmt.Errorf("audit log: the old file may miss its last records: %w", err)
	}
	return nil
}

// rotateFull is the goroutine that replaces the file when it has reached its
// size. Close ends it.
func (l *Log) rotateFull() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	failing := false
	for {
		select {
		case <-l.stop:
			return
		case <-l.full:
		}
		l.settle(ctx)
		err := l.rotate(ctx)
		switch {
		case err == nil && failing:
			l.logger.Info("the audit log has been rotated after all", "path", l.path)
		case err != nil && !failing:
			l.logger.Error("the audit log has reached its size and cannot be rotated; it goes on growing", "path", l.path, "error", err)
		}
		if failing = err != nil; !failing {
			continue
		}
		select {
		case <-l.stop:
			return
		case <-time.After(rotateAgain):
			nudge(l.full)
		}
	}
}

// rotate replaces the file if it has reached its size.
func (l *Log) rotate(ctx context.Context) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.size < l.rotateSize {
		return nil // Reopen was first
	}
	if !l.file.isAt(l.path) {
		return l.reopen(ctx) // somebody else has renamed it
	}
	if l.found.bytes > 0 {
		// What a write has left there is to be on record in the same file.
		if err := l.write(nil); err != nil {
			return err
		}
	}
	next, end, n, err := l.prepare()
	if err != nil {
		return err
	}
	rotated := l.path + "." + time.Now().UTC().Format(rotatedFormat)
	if err := l.exchange(rotated); err != nil {
		return errors.Join(err, next.Close(), os.Remove(l.path+nextSuffix))
	}
	old := l.file
	l.file, l.size, l.suspect = next, 0, false
	l.wrote(end, 1, n)
	return errors.Join(syncFolder(filepath.Dir(l.path)), l.letGo(old))
}

// tidy removes what a rotation has left that was cut off before the file was
// renamed. Its line has the number of the one that was just written.
func (l *Log) tidy() {
	if l.path == Stdout {
		return
	}
	if err := os.Remove(l.path + nextSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.logger.Error("what a rotation of the audit log has left that was cut off cannot be removed; remove it, or it may be taken for the log", "path", l.path+nextSuffix, "error", err)
	}
}

// prepare makes the next file, with its first line, and forces it to the disk.
func (l *Log) prepare() (next regular, end head, n int, err error) {
	path := l.path + nextSuffix
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return next, end, 0, err
	}
	if next, err = openFile(path); err != nil {
		return next, end, 0, err
	}
	if mode := l.file.mode(); mode != 0 {
		err = next.Chmod(mode) // as the operator has it
	}
	if err == nil {
		end = l.end
		line := end.link(nil, appendBeginning(nil, logContinued, l.host, &foreign{}))
		n, err = next.Write(line)
	}
	if err == nil {
		err = next.Sync()
	}
	if err != nil {
		err = errors.Join(err, next.Close(), os.Remove(path))
	}
	return next, end, n, err
}

// exchange renames the file, and gives the next one its name. If that fails the
// file has its name back.
func (l *Log) exchange(rotated string) error {
	if _, err := os.Lstat(rotated); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there already: %w", rotated, errors.Join(err, fs.ErrExist))
	}
	if err := os.Rename(l.path, rotated); err != nil {
		return err
	}
	if err := os.Rename(l.path+nextSuffix, l.path); err != nil {
		return errors.Join(err, os.Rename(rotated, l.path))
	}
	return nil
}
