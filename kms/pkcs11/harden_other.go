//go:build unix && !linux

package pkcs11

// harden keeps the memory of this process, which will hold a PIN and keys, from
// getting into a core file.
func harden() error { return noCore() }
