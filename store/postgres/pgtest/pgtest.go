//go:build linux

// Package pgtest makes throw-away PostgreSQL clusters for tests: the real
// server, with files of its own, that is gone when the test is, or its process.
//
// A cluster takes about a second to make and can serve many tests, each with a
// database of its own. It can be stopped, killed and started again. A Proxy puts
// a network between a test and the server that can be cut, and a Pooler is a
// real PgBouncer.
//
// initdb does not run as root: root starts everything as the user postgres, or
// nobody if there is none.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// install is what to do on a machine without the programs.
const install = "apt-get install -y --no-install-recommends postgresql pgbouncer"

// User is the superuser of a cluster. On the socket it needs no password.
const User = "app"

// startLimit is how long a server may take to start or to stop.
const startLimit = 60 * time.Second

// Config of a cluster. The zero value is good for most tests.
type Config struct {
	// Durable has the server call fsync, as it does in earnest. Tests that kill
	// it need it.
	Durable bool
	// Settings are further settings of postgresql.conf.
	Settings map[string]string
}

// Cluster is a PostgreSQL server with files of its own. It listens on a socket
// and on 127.0.0.1, where it asks for a password.
type Cluster struct {
	// Port is that of 127.0.0.1, and a part of the socket's name.
	Port int
	// Bin is the folder of the server's programs, psql among them.
	Bin string

	dir      string
	password string
	owner    *syscall.Credential // whom the server runs as; nil: as us
	args     []string
	serial   atomic.Int64 // of databases

	mu     sync.Mutex
	server *process // guarded by mu; nil while it is stopped
}

// Start makes a cluster for a test.
func Start(t testing.TB) *Cluster {
	t.Helper()
	return StartWith(t, Config{})
}

// StartWith makes a cluster for a test as cfg says.
func StartWith(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// New makes a cluster for the tests of a package, from TestMain. Its owner calls
// Close; if the process dies instead, so does the server.
func New(cfg Config) (c *Cluster, err error) {
	c = &Cluster{password: rand.Text()}
	if c.Bin, err = programs(); err != nil {
		return nil, err
	}
	if os.Getuid() == 0 {
		if c.owner, err = unprivileged(); err != nil {
			return nil, err
		}
	}
	if c.dir, err = c.folder(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}()
	if err := c.initialize(cfg); err != nil {
		return nil, err
	}
	// Somebody may take the port between the question and the use.
	for range 5 {
		if c.Port, err = freePort(); err != nil {
			return nil, err
		}
		if err = c.Start(); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// programs finds the folder of the server's programs. Those of a package come
// first: what is in PATH may be a wrapper for clients.
func programs() (string, error) {
	var folders []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		folders = append(folders, found...)
	}
	slices.Reverse(folders) // the newest first
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			folders = append(folders, filepath.Dir(path))
		}
	}
	for _, dir := range folders {
		missing := slices.ContainsFunc([]string{"initdb", "postgres"}, func(name string) bool {
			_, err := exec.LookPath(filepath.Join(dir, name))
			return err != nil
		})
		if !missing {
			return dir, nil
		}
	}
	return "", fmt.Errorf("PostgreSQL is not installed: run `%s`", install)
}

// unprivileged returns a user who is not root.
func unprivileged() (*syscall.Credential, error) {
	var errs []error
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("PostgreSQL does not run as root, and there is nobody else: %w", errors.Join(errs...))
}

// folder makes the folder of a cluster: its owner can reach it, and its name is
// short enough for a socket's.
func (c *Cluster) folder() (string, error) {
	var errs []error
	for _, base := range []string{os.TempDir(), "/tmp"} {
		if err := c.reachable(base); err != nil {
			errs = append(errs, err)
			continue
		}
		dir, err := os.MkdirTemp(base, "pgtest")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(filepath.Join(dir, ".s.PGSQL.65535.lock")) > 107 { // sun_path of unix(7)
			errs = append(errs, fmt.Errorf("%s is too long for the name of a socket", dir), os.Remove(dir))
			continue
		}
		if c.owner != nil {
			err = os.Chown(dir, int(c.owner.Uid), int(c.owner.Gid))
		}
		return dir, err
	}
	return "", fmt.Errorf("there is no folder for PostgreSQL; set TMPDIR to one with a short name that everybody can reach: %w", errors.Join(errs...))
}

func (c *Cluster) reachable(dir string) error {
	if c.owner == nil {
		return nil
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("%s cannot be reached by everybody", dir)
		}
	}
	return nil
}

func (c *Cluster) initialize(cfg Config) error {
	secret := c.path("password")
	if err := c.write(secret, c.password+"\n"); err != nil {
		return err
	}
	p, err := c.run("initdb", "-D", c.path("data"), "-U", User, "--pwfile", secret,
		"--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C")
	if err != nil {
		return err
	}
	<-p.ended
	if p.err != nil {
		return fmt.Errorf("initdb: %w\n%s", p.err, p.log())
	}
	c.args = []string{
		"-D", c.path("data"), "-k", c.dir, "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=16MB",
		"-c", "fsync=" + map[bool]string{true: "on", false: "off"}[cfg.Durable],
	}
	for name, value := range cfg.Settings {
		c.args = append(c.args, "-c", name+"="+value)
	}
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

// File writes a file that the server can read and nobody else, as a
// certificate's key has to be, and returns its path.
func (c *Cluster) File(t testing.TB, name, content string) string {
	t.Helper()
	if err := c.write(c.path(name), content); err != nil {
		t.Fatal(err)
	}
	return c.path(name)
}

func (c *Cluster) write(path, content string) error {
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return err
	}
	if c.owner == nil {
		return nil
	}
	return os.Chown(path, int(c.owner.Uid), int(c.owner.Gid))
}

// Start starts a server that was stopped, and waits until it takes connections.
func (c *Cluster) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		return errors.New("PostgreSQL runs already")
	}
	p, err := c.run("postgres", append([]string{"-p", strconv.Itoa(c.Port)}, c.args...)...)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(startLimit); ; {
		err := c.ready()
		if err == nil {
			c.server = p
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("PostgreSQL ended at its start (%w):\n%s", p.err, p.log())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("PostgreSQL does not start (%w):\n%s", err, p.log()), p.end(syscall.SIGQUIT))
		}
	}
}

func (c *Cluster) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.dsn("postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// Stop stops the server as an operator does: whoever is connected is thrown out,
// and what runs is rolled back.
func (c *Cluster) Stop() error { return c.stop(syscall.SIGINT) }

// Kill stops the server on the spot, as the death of its machine does. It
// recovers when it is started.
func (c *Cluster) Kill() error { return c.stop(syscall.SIGQUIT) }

func (c *Cluster) stop(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		return nil
	}
	p := c.server
	c.server = nil
	return p.end(sig)
}

// Restart stops the server and starts it again.
func (c *Cluster) Restart() error {
	if err := c.Stop(); err != nil {
		return err
	}
	return c.Start()
}

// Close stops the server and removes its files.
func (c *Cluster) Close() error {
	return errors.Join(c.stop(syscall.SIGQUIT), os.RemoveAll(c.dir))
}

// Addr is where the server listens.
func (c *Cluster) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port)) }

func (c *Cluster) dsn(database string) string {
	q := url.Values{"host": {c.dir}, "port": {strconv.Itoa(c.Port)}, "user": {User}}
	return "postgres:///" + database + "?" + q.Encode()
}

// Database is a database of a cluster, that began empty.
type Database struct {
	Cluster *Cluster
	Name    string
}

// NewDatabase makes a database, which is dropped at the end of the test.
func (c *Cluster) NewDatabase(t testing.TB) *Database {
	t.Helper()
	d := &Database{Cluster: c, Name: fmt.Sprintf("test_%d", c.serial.Add(1))}
	c.exec(t, "CREATE DATABASE "+d.Name)
	t.Cleanup(func() {
		c.mu.Lock()
		runs := c.server != nil
		c.mu.Unlock()
		if runs { // else it goes with the cluster
			c.exec(t, "DROP DATABASE "+d.Name+" WITH (FORCE)")
		}
	})
	return d
}

func (c *Cluster) exec(t testing.TB, sql string) {
	t.Helper()
	(&Database{Cluster: c, Name: "postgres"}).Exec(t, sql)
}

// DSN is how User reaches the database, over the server's socket.
func (d *Database) DSN() string { return d.Cluster.dsn(d.Name) }

// TCP is how User reaches the database over TCP, with a password.
func (d *Database) TCP() string { return d.Via(d.Cluster.Addr()) }

// Via is how User reaches the database by a proxy at an address.
func (d *Database) Via(addr string) string { return d.As(User, d.Cluster.password, addr) }

// As is how somebody else reaches the database by an address.
func (d *Database) As(name, password, addr string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(name, password), Host: addr, Path: d.Name, RawQuery: "sslmode=disable"}
	return u.String()
}

// Connect opens a connection that is closed at the end of the test.
func (d *Database) Connect(t testing.TB) *pgx.Conn {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, d.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) }) // the test may have broken it
	return conn
}

// Exec runs statements, without arguments if there are several.
func (d *Database) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, d.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing depends on it
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// process is a program that runs in the background.
type process struct {
	cmd    *exec.Cmd
	output string        // the file of what it prints
	ended  chan struct{} // closed when it has ended
	err    error         // how; to be read when it has ended
}

// run starts a program as the cluster's owner. It gets SIGQUIT when this
// process dies.
func (c *Cluster) run(name string, args ...string) (*process, error) {
	return c.runAt(filepath.Join(c.Bin, name), args...)
}

func (c *Cluster) runAt(path string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), output: c.path(filepath.Base(path) + ".log"), ended: make(chan struct{})}
	out, err := os.OpenFile(p.output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the program has its own
	p.cmd.Dir = c.dir
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Credential: c.owner}
	started := make(chan error)
	go func() {
		defer close(p.ended)
		// The signal comes when the thread dies that started the program, so it
		// has to be kept.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// end sends a signal and waits for the end; its exit status does not matter.
func (p *process) end(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(startLimit):
		return fmt.Errorf("%s does not stop:\n%s", p.cmd.Path, p.log())
	}
}

// log is the end of what the program has printed.
func (p *process) log() string {
	b, err := os.ReadFile(p.output)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-4000):]))
}
