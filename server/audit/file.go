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
	// mode is that of the file, 0 if there is none.
	mode() fs.FileMode
}

// regular is a file on a disk that nobody else appends to.
type regular struct{ *os.File }

// openFile opens or creates the file at path and locks it. A rotation that was
// cut off before its last step is brought to its end.
func openFile(path string) (f regular, err error) {
	const flags = os.O_RDWR | os.O_APPEND
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		// Before opening, because opening a pipe would wait for its reader.
		return regular{}, fmt.Errorf("%s is no regular file: name a file, or %q for the standard output", path, Stdout)
	}
	osf, err := os.OpenFile(path, flags, 0)
	created := false
	if errors.Is(err, fs.ErrNotExist) {
		if osf, err = os.OpenFile(path+nextSuffix, flags, 0); err == nil {
			return finishRotation(regular{osf}, path)
		}
		created = true
		osf, err = os.OpenFile(path, flags|os.O_CREATE, 0o600)
	}
	if err != nil {
		return regular{}, fmt.Errorf("%w: the folder must exist, and this user must be able to read and write the file", err)
	}
	f = regular{osf}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := f.lock(path); err != nil {
		return f, err
	}
	if created {
		return f, syncFolder(filepath.Dir(path))
	}
	return f, nil
}

// finishRotation gives the file of a rotation its name.
func finishRotation(f regular, path string) (regular, error) {
	err := f.lock(path)
	if err == nil {
		err = os.Rename(path+nextSuffix, path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return f, errors.Join(err, f.Close())
	}
	return f, nil
}

// lock locks the file, which is or will be at path.
func (f regular) lock(path string) error {
	if err := lock(f.File); errors.Is(err, ErrInUse) {
		return fmt.Errorf("%w: %s, probably by a second service: give each its own file", ErrInUse, path)
	} else if err != nil {
		return fmt.Errorf("%s cannot be locked: name a file on a local disk (%w)", path, err)
	}
	return nil
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

func (f regular) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
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
func (stdout) mode() fs.FileMode           { return 0 }

func (stdout) takeBack(int64) error {
	return errors.New("what was written to the standard output cannot be taken back")
}
