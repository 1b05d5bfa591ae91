//go:build unix

package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// child runs this test binary again as the named child process.
func child(t *testing.T, name, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "AUDIT_TEST_CHILD="+name, "AUDIT_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// childAcknowledges records events from four goroutines for ever, and prints
// the id of each once Record has returned.
func childAcknowledges() {
	var rotate int64
	if os.Getenv("AUDIT_TEST_CHILD") == "rotate" {
		rotate = 4 << 10
	}
	l, err := Open(context.Background(), Config{Path: os.Getenv("AUDIT_TEST_PATH"), RotateSize: rotate})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for c := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", c, i)
				if err := l.Record(context.Background(), Event{Outcome: Issued, ClientID: id}); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				// one write(2) each, so that the lines of the four do not mix
				_, _ = os.Stdout.WriteString(id + "\n")
			}
		}()
	}
	select {}
}

func TestKilledProcessLeavesEveryAcknowledgedRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	acknowledged := make(map[string]bool)
	for round := range 3 {
		cmd := child(t, "ack", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			acknowledged[lines.Text()] = true
			if n == 500 {
				if err := cmd.Process.Kill(); err != nil { // SIGKILL; what is in the pipe is still read
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		inLog := make(map[string]bool)
		for _, id := range ids(t, path) {
			inLog[id] = true
		}
		for id := range acknowledged {
			if !inLog[id] {
				t.Errorf("round %d: record %s was acknowledged and is not in the log", round, id)
			}
		}
	}
	if len(acknowledged) < 500 {
		t.Errorf("only %d records were acknowledged: the test has shown little", len(acknowledged))
	}
	if r := verified(t, VerifyOptions{}, path); !r.Good || len(r.Chains) != 1 {
		t.Errorf("after the kills: %+v", r)
	}
}

// TestKilledWhileItRotatesLeavesOneChain kills a process that rotates all the
// time, again and again.
func TestKilledWhileItRotatesLeavesOneChain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	acknowledged := 0
	for round := range 12 {
		cmd := child(t, "rotate", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			acknowledged++
			if n == 50+37*round { // somewhere in a file
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
	}
	// What the last one left is put right by the next.
	l, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	written := 0
	for _, f := range files {
		written += len(ids(t, f, torn(t, f)...))
	}
	r := verified(t, VerifyOptions{}, files...)
	if !r.Good || len(r.Chains) != 1 || r.Chains[0].First != 1 {
		t.Errorf("got %+v", r)
	}
	if written < acknowledged || len(files) < 3 {
		t.Errorf("%d records in %d files, %d were acknowledged", written, len(files), acknowledged)
	}
	t.Logf("%d records in %d files, %d of no chain", written, len(files), len(r.Notes))
}

// torn are the lines of a file that are no links.
func torn(t testing.TB, path string) (lines []string) {
	t.Helper()
	for _, line := range linesOf(t, path) {
		line = strings.TrimSuffix(line, "\n")
		if _, ok := parseChained([]byte(line)); !ok {
			lines = append(lines, line)
		}
	}
	return lines
}

// childFillsDisk records while the largest allowed file size, which stands in
// for the size of the disk, is reached and raised again.
func childFillsDisk() {
	if err := fillDisk(os.Getenv("AUDIT_TEST_PATH")); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ok")
}

func fillDisk(path string) error {
	signal.Ignore(syscall.SIGXFSZ) // write(2) then answers EFBIG
	limit := func(n uint64) error {
		var r syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &r); err != nil {
			return err
		}
		r.Cur = min(n, r.Max)
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &r)
	}
	l, err := Open(context.Background(), Config{Path: path})
	if err != nil {
		return err
	}
	const size = 10_000
	if err := limit(size); err != nil {
		return err
	}
	var mu sync.Mutex // guards written and denied
	written, denied := 0, 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				err := l.Record(context.Background(), Event{Outcome: Issued, ClientID: "before"})
				mu.Lock()
				switch {
				case err == nil:
					written++
				case errors.Is(err, ErrUnavailable):
					denied++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if written == 0 || denied == 0 || written+denied != 400 {
		return fmt.Errorf("%d written, %d denied: want some of both, 400 in all", written, denied)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() > size {
		return fmt.Errorf("the file has %d bytes, the disk only %d", info.Size(), size)
	}
	if err := limit(1 << 30); err != nil {
		return err
	}
	if err := l.Record(context.Background(), Event{Outcome: Issued, ClientID: "after"}); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	if err := l.Close(); err != nil {
		return err
	}
	return os.WriteFile(path+".written", []byte(strconv.Itoa(written)), 0o600)
}

func TestFullDiskDeniesAndHealsWithoutHalfLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	out, err := child(t, "full", path).Output()
	if err != nil || string(out) != "ok\n" {
		t.Fatalf("child: %v: %s", err, out)
	}
	data, err := os.ReadFile(path + ".written")
	if err != nil {
		t.Fatal(err)
	}
	written, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	got := ids(t, path) // fails on any half line
	if before := strings.Count(strings.Join(got, " "), "before"); before != written {
		t.Errorf("%d records in the log, %d were acknowledged", before, written)
	}
	if len(got) == 0 || got[len(got)-1] != "after" {
		t.Errorf("the record after there was room again is missing: %q", got)
	}
}

func TestStandardOutputGetsWholeLines(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	saved := os.Stdout
	os.Stdout = w
	t.Cleanup(func() { os.Stdout = saved })
	l, err := Open(t.Context(), Config{Path: Stdout, FlushEvery: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	record(t, l, "a")
	if err := l.Reopen(t.Context()); err != nil {
		t.Errorf("Reopen: %v", err)
	}
	record(t, l, "b")
	if err := l.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := w.WriteString("still open\n"); err != nil {
		t.Errorf("Close has closed the standard output: %v", err)
	}
	_ = w.Close()
	var got []string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		got = append(got, lines.Text())
	}
	if len(got) != 4 || !strings.Contains(got[0], `"log":"opened"`) || !strings.Contains(got[1], `"client_id":"a"`) || !strings.Contains(got[2], `"client_id":"b"`) || got[3] != "still open" {
		t.Errorf("got %q, want the beginning, the lines of a and b, and one of ours", got)
	}
}
