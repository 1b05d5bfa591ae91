//go:build !cgo

package pkcs11

const cgoEnabled = false

// loadModule cannot be reached: New fails first.
func loadModule(string) (cryptoki, error) { return nil, errNoCgo }
