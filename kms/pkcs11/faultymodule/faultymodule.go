// Package faultymodule makes a PKCS#11 module for tests that stands before a
// real one and does to its callers what bad modules do: calls fail with any
// code, hang, crash the process; signatures are wrong; sessions and logins are
// lost behind the caller's back; flags of the token warn. It is C, loaded by
// the module's user as any module is, in whatever process that is, and it is
// steered from the test's process, at run time, through a small file that both
// have in memory.
//
// It is also a witness. It counts the calls, the logins and the refused ones,
// and what no caller may ever do: two calls at once in one session, and
// C_Initialize or C_Finalize while other calls are inside. It keeps the module
// behind it from crashing on these, so that a test sees the count and not the
// crash.
//
// The module is compiled when it is first needed, by cc, and needs Linux with
// 64 bits.
package faultymodule

import (
	_ "embed" // the module's source
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

//go:embed module/faulty.c
var source string

// All is every call, where a number of calls is asked for.
const All = -1

// Flags of a token (CKF_…) that SetTokenFlags takes.
const (
	UserPINCountLow = 0x00010000
	UserPINFinalTry = 0x00020000
	UserPINLocked   = 0x00040000
)

// Module is one compiled module and what steers it. Its methods may be called
// at any time, also while no process has loaded it.
type Module struct {
	// Path is the library's.
	Path string

	real    string
	file    string
	control *control
	index   map[string]int // of the functions
}

// control is the shared file; module/faulty.c has the same struct.
type control struct {
	closeSessions, logOut, sessionLimit, flagsSet, flagsClear, twist, hangMS, release atomic.Uint64

	open, openMost, overlaps, intrusions, hanging, refused atomic.Uint64

	_  [18]uint64
	of [68]function // in the order of Functions
}

// function is what the file has of one function.
type function struct {
	calls, failed, fail, code, hang, crash atomic.Uint64

	_ [2]uint64
}

// New compiles the module, in front of the one at path real. Whoever loads it
// needs Env in its environment; Setenv is for the process of the test.
func New(t testing.TB, real string) *Module {
	t.Helper()
	dir := t.TempDir()
	m := &Module{Path: Build(t), real: real, file: filepath.Join(dir, "control"), index: map[string]int{}}
	for i, f := range Functions() {
		m.index[f] = i
	}
	const size = int(unsafe.Sizeof(control{}))
	if err := os.WriteFile(m.file, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(m.file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // the mapping stays
	mem, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Clear() // so that nothing hangs that outlives the test
		m.control = nil
		if err := syscall.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	m.control = (*control)(unsafe.Pointer(unsafe.SliceData(mem))) //nolint:gosec // a mapping as large as the struct, of words that both sides access atomically
	return m
}

// Build compiles the module and returns its path, which is gone when the test
// ends.
func Build(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	src, lib := filepath.Join(dir, "faulty.c"), filepath.Join(dir, "libfaulty.so")
	if err := os.WriteFile(src, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "cc", "-std=c11", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-o", lib, src, "-ldl").CombinedOutput()
	if err != nil {
		t.Fatalf("cc cannot compile the module (apt-get install gcc libc6-dev): %v\n%s", err, out)
	}
	return lib
}

var functionRow = regexp.MustCompile(`(?m)^\tX\((C_\w+),`)

// Functions are the names of PKCS#11's functions, in the order of
// CK_FUNCTION_LIST.
func Functions() []string {
	var names []string
	for _, row := range functionRow.FindAllStringSubmatch(source, -1) {
		names = append(names, row[1])
	}
	return names
}

// Env is what a process needs in its environment to use the module.
func (m *Module) Env() []string {
	return []string{"FAULTY_MODULE_REAL=" + m.real, "FAULTY_MODULE_CONTROL=" + m.file}
}

// Setenv sets what Env is for the rest of the test.
func (m *Module) Setenv(t testing.TB) {
	t.Helper()
	t.Setenv("FAULTY_MODULE_REAL", m.real)
	t.Setenv("FAULTY_MODULE_CONTROL", m.file)
}

// Fail lets the next n calls of a function, or All, fail with a code (CKR_…).
// They do not reach the module behind, but for C_Sign, which ends its operation
// there. Lengths that C_Sign is asked for do not count as calls of it.
func (m *Module) Fail(function string, n int, code uint) {
	of := m.of(function)
	of.fail.Store(0)
	of.code.Store(uint64(code))
	of.fail.Store(number(n))
}

// Hang lets the next n calls of a function, or All, hang until Release.
func (m *Module) Hang(function string, n int) {
	m.control.hangMS.Store(0)
	m.of(function).hang.Store(number(n))
}

// HangFor is Hang for a time, which is the same for all calls that hang.
func (m *Module) HangFor(function string, n int, d time.Duration) {
	m.control.hangMS.Store(uint64(max(d.Milliseconds(), 1)))
	m.of(function).hang.Store(number(n))
}

// HangEverything lets all calls of all functions hang until Release.
func (m *Module) HangEverything() {
	m.control.hangMS.Store(0)
	for i := range m.control.of {
		m.control.of[i].hang.Store(number(All))
	}
}

// Release lets go of all calls that hang, and no more will.
func (m *Module) Release() {
	for i := range m.control.of {
		m.control.of[i].hang.Store(0)
	}
	m.control.release.Add(1)
}

// Crash lets the next n calls of a function end the process by a SIGSEGV.
func (m *Module) Crash(function string, n int) { m.of(function).crash.Store(number(n)) }

// Twist gives the next n signatures, or All, a wrong bit.
func (m *Module) Twist(n int) { m.control.twist.Store(number(n)) }

// Twisted is how many signatures are still to get a wrong bit.
func (m *Module) Twisted() int { return count(&m.control.twist) }

// CloseSessions closes all sessions of the user's process behind its back, the
// next time that it calls.
func (m *Module) CloseSessions() { m.control.closeSessions.Store(1) }

// LogOut logs out behind the user's back, the next time that it calls.
func (m *Module) LogOut() { m.control.logOut.Store(1) }

// LimitSessions lets C_OpenSession fail with CKR_SESSION_COUNT while the process
// has n sessions. 0 is no limit. The token does not tell of it.
func (m *Module) LimitSessions(n int) { m.control.sessionLimit.Store(uint64(n)) } //nolint:gosec // not negative

// SetTokenFlags has C_GetTokenInfo tell of flags, and keep others to itself.
func (m *Module) SetTokenFlags(tell, hide uint) {
	m.control.flagsSet.Store(uint64(tell))
	m.control.flagsClear.Store(uint64(hide))
}

// Clear ends all faults. The counts stay.
func (m *Module) Clear() {
	m.Release()
	for i := range m.control.of {
		m.control.of[i].fail.Store(0)
		m.control.of[i].crash.Store(0)
	}
	c := m.control
	for _, w := range []*atomic.Uint64{&c.closeSessions, &c.logOut, &c.sessionLimit, &c.flagsSet, &c.flagsClear, &c.twist} {
		w.Store(0)
	}
}

// Pending is how many calls of a function are still to fail, hang or crash.
func (m *Module) Pending(function string) int {
	of := m.of(function)
	return count(&of.fail) + count(&of.hang) + count(&of.crash)
}

// Calls is how often a function was called, by all processes. C_Sign that only
// asks for a length is not counted.
func (m *Module) Calls(function string) int { return count(&m.of(function).calls) }

// Failed is how many calls of a function did not end with CKR_OK.
func (m *Module) Failed(function string) int { return count(&m.of(function).failed) }

// Counts is what the module saw of its users, in all processes.
type Counts struct {
	// RefusedLogins are those refused for their PIN (0xA0 to 0xA4).
	RefusedLogins int
	// Open is the number of sessions of the process that opened or closed one
	// last; OpenMost is the most that one process had.
	Open, OpenMost int
	// Hanging is the number of calls that hang now.
	Hanging int
	// Overlaps are calls made in a session that another call was in. They
	// crash a real module.
	Overlaps int
	// Intrusions are C_Initialize and C_Finalize called while other calls were
	// inside, and calls made meanwhile. They crash a real module.
	Intrusions int
}

// Counts returns what the module has counted.
func (m *Module) Counts() Counts {
	c := m.control
	return Counts{
		RefusedLogins: count(&c.refused), Open: count(&c.open), OpenMost: count(&c.openMost),
		Hanging: count(&c.hanging), Overlaps: count(&c.overlaps), Intrusions: count(&c.intrusions),
	}
}

func (m *Module) of(name string) *function {
	i, ok := m.index[name]
	if !ok {
		panic("faultymodule: PKCS#11 has no function " + name)
	}
	return &m.control.of[i]
}

func number(n int) uint64 {
	if n == All {
		return math.MaxUint64
	}
	return uint64(n) //nolint:gosec // not negative
}

func count(w *atomic.Uint64) int {
	return int(min(w.Load(), math.MaxInt32))
}
