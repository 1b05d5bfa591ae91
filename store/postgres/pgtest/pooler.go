//go:build linux

package pgtest

import (
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Pooler is a PgBouncer in transaction mode, as fleets have in front of a
// server: two transactions of one connection may go to two servers' sessions,
// so that LISTEN is taken and tells nothing.
type Pooler struct {
	Addr string
}

// NewPooler starts a pooler for all databases of the cluster, until the end of
// the test.
func (c *Cluster) NewPooler(t testing.TB) *Pooler {
	t.Helper()
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			t.Fatalf("PgBouncer is not installed: run `%s`", install)
		}
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	users := c.File(t, "pgbouncer.users", fmt.Sprintf("%q %q\n", User, c.password))
	config := c.File(t, "pgbouncer.ini", strings.Join([]string{
		"[databases]",
		fmt.Sprintf("* = host=127.0.0.1 port=%d", c.Port),
		"[pgbouncer]",
		"listen_addr = 127.0.0.1",
		fmt.Sprintf("listen_port = %d", port),
		"unix_socket_dir =",
		"auth_type = scram-sha-256",
		"auth_file = " + users,
		"pool_mode = transaction",
		"",
	}, "\n"))
	p, err := c.runAt(path, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.end(syscall.SIGTERM); err != nil { // at once
			t.Error(err)
		}
	})
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for deadline := time.Now().Add(startLimit); ; {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return &Pooler{Addr: addr}
		}
		select {
		case <-p.ended:
			t.Fatalf("PgBouncer ended at its start (%v):\n%s", p.err, p.log())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("PgBouncer does not start (%v):\n%s", err, p.log())
		}
	}
}
