//go:build !unix

package main

import "math"

// fileDescriptors is how many files and connections the process may have open:
// this system has no such bound.
func fileDescriptors() int { return math.MaxInt32 }
