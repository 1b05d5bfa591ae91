//go:build linux

package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

// childEnv makes this binary one that has a cluster and waits to be killed.
const childEnv = "BULLA_TEST_CLUSTER"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

func child() int {
	c, err := New(Config{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(c.server.cmd.Process.Pid, c.dir)
	select {}
}

func query(t *testing.T, dsn string) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_class WHERE relname = 'kept'").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestClusterIsStoppedAndStartedAndKeepsItsDatabases(t *testing.T) {
	c := StartWith(t, Config{Durable: true})
	d, other := c.NewDatabase(t), c.NewDatabase(t)
	d.Exec(t, "CREATE TABLE kept (); INSERT INTO kept DEFAULT VALUES")
	for name, stop := range map[string]func() error{"Stop": c.Stop, "Kill": c.Kill} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if conn, err := pgx.Connect(t.Context(), d.DSN()); err == nil {
			_ = conn.Close(t.Context())
			t.Errorf("%s: it still takes connections", name)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, dsn := range []string{d.DSN(), d.TCP(), d.Via(NewProxy(t, c.Addr()).Addr()), d.Via(c.NewPooler(t).Addr)} {
		if n := query(t, dsn); n != 1 {
			t.Errorf("got %d tables, want 1", n)
		}
	}
	if n := query(t, other.DSN()); n != 0 {
		t.Errorf("got %d tables in a new database, want none", n)
	}
}

func TestProxyCutsAndSwallows(t *testing.T) {
	c := Start(t)
	p := NewProxy(t, c.Addr())
	d := c.NewDatabase(t)
	conn, err := pgx.Connect(t.Context(), d.Via(p.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	p.BlackHole(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := conn.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v through a black hole, want the deadline", err)
	}
	p.BlackHole(false)
	if conn, err = pgx.Connect(t.Context(), d.Via(p.Addr())); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a connection works that was cut")
	}
	p.Refuse(true)
	if conn, err := pgx.Connect(t.Context(), d.Via(p.Addr())); err == nil {
		_ = conn.Close(t.Context())
		t.Error("a connection was taken")
	}
}

func TestServerDiesWithItsProcess(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	first, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatalf("the child printed %q", line)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) || zombie(pid) {
			return
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGQUIT)
			t.Fatal("the server lives on without its process")
		}
	}
}

// zombie reports whether a process has ended and nobody has asked how, as where
// the first process of a container does not.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}
