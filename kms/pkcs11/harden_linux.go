package pkcs11

import "syscall"

// harden keeps the memory of this process, which will hold a PIN and keys, from
// getting into a core file, and from other processes of the same user (prctl(2),
// PR_SET_DUMPABLE).
func harden() error {
	if err := noCore(); err != nil {
		return err
	}
	const setDumpable = 4
	if _, _, e := syscall.RawSyscall(syscall.SYS_PRCTL, setDumpable, 0, 0); e != 0 {
		return e
	}
	return nil
}
