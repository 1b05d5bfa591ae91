//go:build unix

package main

import (
	"os/signal"
	"syscall"
)

// ignoreFileSizeLimit makes a limit on the size of files an error of the write
// that meets it, and not the end of the process.
func ignoreFileSizeLimit() { signal.Ignore(syscall.SIGXFSZ) }
