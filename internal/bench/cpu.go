//go:build linux && cgo

package main

import "runtime"

// mallocs is the number of allocations for each of n calls of f, in this
// process.
func mallocs(n int, f func() error) (float64, error) {
	if err := f(); err != nil { // what is only allocated once
		return 0, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		if err := f(); err != nil {
			return 0, err
		}
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n), nil
}
