//go:build !linux || !cgo

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: it needs Linux, for the processor time of other processes, and cgo, for the PKCS#11 module")
	os.Exit(1)
}
