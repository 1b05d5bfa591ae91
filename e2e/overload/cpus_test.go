package overload

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"
)

// cpuSet is a set of CPUs, as the kernel wants it.
type cpuSet [16]uint64

func (c *cpuSet) call(number uintptr, thread int) error {
	if _, _, e := syscall.RawSyscall(number, uintptr(thread), unsafe.Sizeof(*c), uintptr(unsafe.Pointer(c))); e != 0 {
		return e
	}
	return nil
}

// list are the CPUs that this process may use.
func allowed(t testing.TB) []int {
	t.Helper()
	var set cpuSet
	if err := set.call(syscall.SYS_SCHED_GETAFFINITY, 0); err != nil {
		t.Fatal(err)
	}
	var list []int
	for i := range len(set) * 64 {
		if set[i/64]&(1<<(i%64)) != 0 {
			list = append(list, i)
		}
	}
	return list
}

func use(t testing.TB, thread int, cpus []int) {
	t.Helper()
	var set cpuSet
	for _, i := range cpus {
		set[i/64] |= 1 << (i % 64)
	}
	if err := set.call(syscall.SYS_SCHED_SETAFFINITY, thread); err != nil {
		t.Fatal(err)
	}
}

// on runs f, which starts a process, on some CPUs: the process stays there.
func on(t testing.TB, cpus []int, f func()) {
	t.Helper()
	before := allowed(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	use(t, 0, cpus)
	defer use(t, 0, before)
	f()
}

// move has this process use some CPUs only.
func move(t testing.TB, cpus []int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if id, err := strconv.Atoi(task.Name()); err == nil {
			use(t, id, cpus)
		}
	}
}
