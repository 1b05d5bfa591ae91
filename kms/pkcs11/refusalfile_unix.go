//go:build unix

package pkcs11

import (
	"errors"
	"os"
	"syscall"
)

// noFollow makes open fail on a symbolic link, and not wait for the other end of
// a pipe.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// tryLock takes f for this open file until it is closed, or fails at once, with
// errLoginElsewhere if another has it.
func tryLock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return errLoginElsewhere
		default:
			return err
		}
	}
}

func syncFolder(folder *os.File) error { return folder.Sync() }

// adopt gives a file that root has made to the owner of its folder, who is the
// one that has to read it later: a check that an administrator runs must not
// take the record away from the service.
func adopt(f *os.File, folder string) {
	if os.Geteuid() != 0 {
		return
	}
	info, err := os.Stat(folder)
	if err != nil {
		return
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(owner.Uid), int(owner.Gid)) // the service says so if it cannot read it
	}
}
