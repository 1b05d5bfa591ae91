//go:build unix

package main

import (
	"math"
	"syscall"
)

// fileDescriptors is how many files and connections the process may have open.
func fileDescriptors() int {
	const few = 1024 // what is usual where nobody has thought of it
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return few
	}
	return int(min(uint64(limit.Cur), math.MaxInt32)) //nolint:unconvert // signed on some systems
}
