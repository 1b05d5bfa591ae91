//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "scale: it needs Linux, for the memory and the processor time of other processes")
	os.Exit(1)
}
