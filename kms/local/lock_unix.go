//go:build unix

package local

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// lockFolder waits until no other process, nor another caller in this one,
// holds the folder's lock. The kernel releases it if the process dies.
func lockFolder(path string) (unlock func(), err error) {
	folder, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		// File descriptors fit an int: they are small numbers.
		err = syscall.Flock(int(folder.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), folder.Close())
	}
	return func() { folder.Close() }, nil //nolint:errcheck,gosec // closing releases the lock, whatever it says
}
