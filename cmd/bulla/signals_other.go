//go:build !unix

package main

// ignoreFileSizeLimit has nothing to do where no signal comes of the limit.
func ignoreFileSizeLimit() {}
