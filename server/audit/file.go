package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// file is where the lines go. Writes append.
type file interface {
	Write(p []byte) (int, error)
	Sync() error
	Close() error
	// takeBack removes the last n bytes, which were just written.
	takeBack(n int64) error
	// isAt reports whether path still leads to this file.
	isAt(path string) bool
}

// regular is a file on a disk that nobody else appends to.
type regular struct{ *os.File }

// openFile opens or creates the file at path and locks it. torn says that it
// ends within a line.
func openFile(path string) (f regular, torn bool, err error) {
	const flags = os.O_RDWR | os.O_APPEND
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		// Before opening, because opening a pipe would wait for its reader.
		return regular{}, false, fmt.Errorf("%s is no regular file: name a file, or %q for the standard output", path, Stdout)
	}
	created := false
	osf, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		created = true
		osf, err = os.OpenFile(path, flags|os.O_CREATE, 0o600)
	}
	if err != nil {
		return regular{}, false, fmt.Errorf("%w: the folder must exist, and this user must be able to read and write the file", err)
	}
	f = regular{osf}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := lock(osf); errors.Is(err, ErrInUse) {
		return f, false, fmt.Errorf("%w: %s, probably by a second service: give each its own file", ErrInUse, path)
	} else if err != nil {
		return f, false, fmt.Errorf("%s cannot be locked: name a file on a local disk (%w)", path, err)
	}
	if created {
		if err := syncFolder(filepath.Dir(path)); err != nil {
			return f, false, err
		}
	}
	torn, err = endsTorn(osf)
	return f, torn, err
}

// endsTorn reports whether f's last byte is no line feed.
func endsTorn(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() == 0 {
		return false, nil
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, info.Size()-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

// syncFolder makes a new file's name last: fsync(2) of the file alone does not
// cover the entry in its folder.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (f regular) takeBack(n int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < n {
		return nil // somebody has emptied the file meanwhile
	}
	return f.Truncate(info.Size() - n)
}

func (f regular) isAt(path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}

func (f regular) mode() fs.FileMode {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Mode().Perm()
}

// stdout is the standard output. What reads it decides what is kept.
type stdout struct{}

func (stdout) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (stdout) Sync() error                 { return nil }
func (stdout) Close() error                { return nil }
func (stdout) isAt(string) bool            { return true }

func (stdout) takeBack(int64) error {
	return errors.New("what was written to the standard output cannot be taken back")
}
