//go:build unix

package pkcs11

import (
	"context"
	"net"
	"os"
	"os/exec"
	"syscall"
)

// canIsolate says that this system has what a worker process needs.
const canIsolate = true

// noCore keeps this process from leaving core files.
func noCore() error { return syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) }

// spawn starts a worker process and returns this process's end of the socket to
// it. The caller has to wait for it.
func spawn(argv []string) (*exec.Cmd, net.Conn, error) {
	// The lock keeps a process that is started at the same time from getting
	// these, which could not be told to close at exec otherwise: it would keep
	// the socket open when we are gone.
	syscall.ForkLock.RLock()
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(ends[0])
		syscall.CloseOnExec(ends[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "worker"), os.NewFile(uintptr(ends[1]), "parent")
	defer func() { _, _ = ours.Close(), theirs.Close() }() // both are copied
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, err
	}
	// Not bound to a context: when a worker ends is more than a deadline.
	cmd := exec.CommandContext(context.Background(), argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // what the module prints
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return cmd, conn, nil
}
