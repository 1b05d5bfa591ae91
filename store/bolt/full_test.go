package bolt

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
)

// limitEnv tells a child process of the test to limit the size of its files.
const limitEnv = "BULLA_TEST_FILE_LIMIT"

// fillUp registers clients until the disk is full, frees space by make room,
// and checks that nothing acknowledged was lost and that all goes on.
func fillUp(t *testing.T, path string, makeRoom func()) {
	t.Helper()
	s := open(t, path)
	jwks := func(i int) registry.Registration {
		r := client(i)
		r.Source = registry.Source{JWKS: make([]byte, 8<<10)}
		return r
	}
	n := 0
	var err error
	for ; n < 1000; n++ {
		if _, err = s.Put(t.Context(), jwks(n), 0); err != nil {
			break
		}
	}
	wantUnavailable(t, "Put to a full disk", err)
	if n < 2 {
		t.Fatalf("only %d clients fit; the test has no force", n)
	}
	t.Logf("%d clients fit: %v", n, err)

	intact := func(s *Store, when string) {
		t.Helper()
		for i := range n {
			if r, err := s.Get(t.Context(), "main", fmt.Sprintf("app-%d", i)); err != nil || r.Revision != 1 {
				t.Errorf("%s: client %d of %d: got %v, %v", when, i, n, r, err)
			}
		}
		list, err := s.List(t.Context(), "main", "", 2000)
		if err != nil || len(list) != n {
			t.Errorf("%s: List gives %d, %v; want %d", when, len(list), err, n)
		}
	}
	for range 3 {
		// It may fit where the one before did not: bbolt chooses among what is
		// free.
		if _, err := s.Put(t.Context(), jwks(n), 0); err == nil {
			n++
		} else {
			wantUnavailable(t, "Put again", err)
		}
	}
	intact(s, "while full")
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check while full: %v; reading works", err)
	}

	makeRoom()
	for range 10 {
		if _, err := s.Put(t.Context(), jwks(n), 0); err != nil {
			t.Fatalf("with space again: %v", err)
		}
		n++
	}
	intact(s, "with space again")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	intact(open(t, path), "after reopening")
}

// A limit on the size of files fails writes as a full disk does, and needs no
// privilege. It holds for a whole process, hence a child.
func TestFileSizeLimitLosesNothing(t *testing.T) {
	if os.Getenv(limitEnv) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "-test.v", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), limitEnv+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "clients fit") {
			t.Errorf("under the limit: %v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ) // the write shall fail instead
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
	}
	limit(syscall.Rlimit{Cur: 300 << 10, Max: old.Max})
	fillUp(t, filepath.Join(t.TempDir(), "bulla.db"), func() { limit(old) })
}

// tmpfs mounts a file system of the given size, or skips the test.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a file system cannot be mounted here (needs CAP_SYS_ADMIN): %v; TestFileSizeLimitLosesNothing stands in", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDiskLosesNothing(t *testing.T) {
	dir := tmpfs(t, "512k")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 250<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	fillUp(t, filepath.Join(dir, "bulla.db"), func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCreationOnAFullDiskLeavesNothingBehind(t *testing.T) {
	dir := tmpfs(t, "64k")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 56<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bulla.db")
	_, err := Open(t.Context(), Config{Path: path, DataKeys: datakeytest.Config(wrapper)})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("got files %v, want the ballast alone", list)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	register(t, open(t, path), 1)
}
