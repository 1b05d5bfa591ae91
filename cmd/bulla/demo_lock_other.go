//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package main

import (
	"errors"
	"os"
)

func lockFile(*os.File) error {
	return errors.New("the demo needs a Unix: run it on Linux")
}
