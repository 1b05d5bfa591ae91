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
	l, err := Open(context.Background(), Config{Path: os.Getenv("AUDIT_TEST_PATH")})
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
	if len(got) != 3 || !strings.Contains(got[0], `"client_id":"a"`) || !strings.Contains(got[1], `"client_id":"b"`) || got[2] != "still open" {
		t.Errorf("got %q, want the lines of a and b, and one of ours", got)
	}
}
