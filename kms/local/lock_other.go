//go:build !unix

package local

import "errors"

// lockFolder refuses: without Unix permissions a file cannot be closed to
// other accounts in the way this package checks.
func lockFolder(string) (unlock func(), err error) {
	return nil, errors.New("software key files need a Unix system, for its file permissions")
}
