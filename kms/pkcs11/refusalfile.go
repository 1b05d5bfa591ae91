package pkcs11

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The file of refusals and the locks on it:
//
//	FILE             the records, replaced as a whole
//	FILE.new         what is to replace it
//	FILE.….lock      one for each token: who has it may log in there
//
// The folder is locked for the short time in which the file is read, changed and
// replaced. No symbolic link is ever followed to any of them.

// lockPoll is how often a lock is asked for that another process has.
const lockPoll = 10 * time.Millisecond

// turn waits until no other process is in a login to a token, for turnWait at
// most.
func (r *refusals) turn(ctx context.Context, token record) (unlock func(), err error) {
	name, err := json.Marshal([]string{token.Label, token.Serial, token.Manufacturer, token.Model, token.InitReserved})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(name)
	f, err := openPlain(r.path+"."+hex.EncodeToString(sum[:4])+".lock", os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	adopt(f, filepath.Dir(r.path))
	return locked(ctx, f, turnWait)
}

// locked takes the lock on f, which it closes to let go of it.
func locked(ctx context.Context, f *os.File, limit time.Duration) (unlock func(), err error) {
	late := time.NewTimer(limit)
	defer late.Stop()
	poll := time.NewTicker(lockPoll)
	defer poll.Stop()
	for {
		if err = tryLock(f); !errors.Is(err, errLoginElsewhere) {
			break
		}
		select {
		case <-poll.C:
			continue
		case <-late.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
		break
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return func() { _ = f.Close() }, nil // which the kernel takes for the end of the lock
}

// openPlain opens a file that is no symbolic link and no device.
func openPlain(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|noFollow, 0o600)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close() // nothing was written
		return nil, errors.Join(err, fmt.Errorf("%s is no plain file", path))
	}
	return f, nil
}

// read reads the file. No file is no record. The error wraps errRecords if the
// file can be read and not be understood.
func (r *refusals) read() (recordFile, error) {
	none := recordFile{Version: recordVersion}
	f, err := openPlain(r.path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	defer func() { _ = f.Close() }() // only read
	text, err := io.ReadAll(io.LimitReader(f, maxRefusalSize+1))
	if err != nil {
		return none, err
	}
	if len(text) > maxRefusalSize {
		return none, fmt.Errorf("%w: %s is longer than %d bytes", errRecords, r.path, maxRefusalSize)
	}
	var content recordFile
	if err := json.Unmarshal(text, &content); err != nil {
		return none, fmt.Errorf("%w: %s: %w", errRecords, r.path, err)
	}
	if content.Version != recordVersion {
		return none, fmt.Errorf("%w: %s has version %d, and this program knows version %d", errRecords, r.path, content.Version, recordVersion)
	}
	if slices.ContainsFunc(content.Tokens, func(t record) bool { return !t.sound() }) {
		return none, fmt.Errorf("%w: %s has a token whose values cannot be", errRecords, r.path)
	}
	return content, nil
}

// write puts a record into the file in the place of the one of the same token,
// or takes that away if nothing is in it.
func (r *refusals) write(one record) (err error) {
	folder, err := os.Open(filepath.Dir(r.path))
	if err != nil {
		return err
	}
	unlock, err := locked(context.Background(), folder, folderWait)
	if err != nil {
		return fmt.Errorf("lock %s: %w", folder.Name(), err)
	}
	defer unlock()
	content, err := r.read()
	if err != nil {
		return err
	}
	content.Tokens = slices.DeleteFunc(content.Tokens, one.same)
	if one.Trial != nil || len(one.Refused) > 0 {
		content.Tokens = append(content.Tokens, one)
	}
	if n := len(content.Tokens) - maxRecords; n > 0 {
		content.Tokens = content.Tokens[n:] // the oldest
	}
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return err
	}
	if len(text) >= maxRefusalSize {
		return fmt.Errorf("%s would be longer than %d bytes", r.path, maxRefusalSize)
	}
	return replaceFile(r.path, append(text, '\n'), folder)
}

// replaceFile writes a file that is there as a whole, or not, whatever happens.
func replaceFile(path string, text []byte, folder *os.File) error {
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := openPlain(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	adopt(f, folder.Name())
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return syncFolder(folder)
}
