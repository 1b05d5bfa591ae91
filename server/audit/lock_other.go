//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package audit

import "os"

// lock does nothing where there is no flock(2): that no second process logs to
// the same file is then left to the operator.
func lock(*os.File) error { return nil }
