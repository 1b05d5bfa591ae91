//go:build linux

// Package tpmtest makes tokens of tpm2-pkcs11 for tests, on a software TPM of
// the test's own. A TPM is a stand-in for a small real HSM: a signature takes
// it 10 to 15 ms, it has room for 1024 sessions, and knows few algorithms.
//
// Four programs are started, each with files of the test's own, and killed when
// the test ends: swtpm, which is the TPM; a D-Bus daemon, which is nobody's
// session; tpm2-abrmd, which keeps clients from running the TPM out of memory;
// and tpm2_ptool for each change of the token. None of them needs systemd, and
// nothing of a TPM or a bus that the machine has is touched.
//
// The module finds all this by environment variables, so tests that use a token
// cannot run in parallel within one process.
package tpmtest

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// install is what to do on a machine without the programs.
const install = "apt-get install -y libtpm2-pkcs11-1 libtpm2-pkcs11-tools swtpm swtpm-tools libtss2-tcti-swtpm0 libtss2-tcti-tabrmd0 tpm2-abrmd dbus opensc"

// modulePaths are where Linux distributions put tpm2-pkcs11.
var modulePaths = []string{
	"/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1",
	"/usr/lib/aarch64-linux-gnu/libtpm2_pkcs11.so.1",
	"/usr/lib64/pkcs11/libtpm2_pkcs11.so",
	"/usr/lib64/libtpm2_pkcs11.so.1",
}

// resourceManager is by its path because users other than root do not search
// there.
const resourceManager = "/usr/sbin/tpm2-abrmd"

// The PINs of a fresh token.
const (
	PIN   = "123456"
	SOPIN = "87654321"
)

// startLimit is how long each of the programs may take to be there.
const startLimit = 20 * time.Second

// Module returns the path of tpm2-pkcs11, and ends the test with the command
// that installs what is missing.
func Module(t testing.TB) string {
	t.Helper()
	for _, tool := range []string{"swtpm", "swtpm_setup", "dbus-daemon", "dbus-send", resourceManager, "tpm2_ptool", "pkcs11-tool"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed: run `%s`", tool, install)
		}
	}
	for _, p := range modulePaths {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatalf("tpm2-pkcs11 is not installed: run `%s`", install)
	return ""
}

// Token is a token on a software TPM.
type Token struct {
	Module  string // path of the library
	Label   string // of the token
	PINFile string // holds PIN and a line end, mode 0600

	t testing.TB
}

// Start starts a TPM without tokens, and sets the environment by which the
// module and the tools find it for the rest of the test. TPM2_PKCS11_STORE, the
// folder of the tokens, is left to the caller.
func Start(t testing.TB) {
	t.Helper()
	Module(t)
	state := t.TempDir()
	port := startTPM(t, state)
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", startBus(t))
	startResourceManager(t, port)
	t.Setenv("TPM2_PKCS11_TCTI", "tabrmd:bus_type=session")
	t.Setenv("TPM2TOOLS_TCTI", "tabrmd:bus_type=session")
	t.Setenv("TPM2_PKCS11_LOG_LEVEL", "0") // what it logs at 1, Bulla logs too
}

// New starts a TPM and makes a token on it with the given label.
func New(t testing.TB, label string) *Token {
	t.Helper()
	Start(t)
	base := t.TempDir()
	k := &Token{Module: Module(t), Label: label, PINFile: filepath.Join(base, "pin"), t: t}
	if err := os.WriteFile(k.PINFile, []byte(PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TPM2_PKCS11_STORE", base)
	k.run("tpm2_ptool", "init")
	k.run("tpm2_ptool", "addtoken", "--pid", "1", "--label", label, "--sopin", SOPIN, "--userpin", PIN)
	return k
}

// GenerateKey makes a key pair for alg inside the TPM, RSA with 2048 bits. id
// is CKA_ID in hexadecimal.
func (k *Token) GenerateKey(label, id string, alg kms.Algorithm) {
	k.t.Helper()
	kind := map[kms.Algorithm]string{kms.ES256: "EC:prime256v1", kms.ES384: "EC:secp384r1"}[alg]
	if alg.KeyType() == kms.RSA {
		kind = "rsa:2048"
	}
	k.Tool("--keypairgen", "--key-type", kind, "--label", label, "--id", id)
}

// Tool runs pkcs11-tool on the token, logged in as the user, and returns what
// it printed.
func (k *Token) Tool(args ...string) string {
	k.t.Helper()
	return k.run("pkcs11-tool", append([]string{"--module", k.Module, "--token-label", k.Label, "--login", "--pin", PIN}, args...)...)
}

func (k *Token) run(name string, args ...string) string {
	k.t.Helper()
	return run(k.t, name, args...)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// program is one that runs in the background.
type program struct {
	cmd    *exec.Cmd
	ended  chan struct{} // closed when it has ended
	output *bytes.Buffer // what it printed; to be read when it has ended
}

// start starts a program that is killed when the test ends, or its process.
func start(t testing.TB, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{cmd: cmd, ended: make(chan struct{}), output: &bytes.Buffer{}}
	if cmd.Stdout == nil {
		cmd.Stdout = p.output
	}
	cmd.Stderr = p.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // unless it has ended
		<-p.ended
	})
	return p
}

// wait waits until p is ready, and reports false if it ended before.
func wait(t testing.TB, p *program, ready func() bool) bool {
	t.Helper()
	deadline := time.Now().Add(startLimit)
	for !ready() {
		select {
		case <-p.ended:
			return false
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready after %v", p.cmd.Path, startLimit)
		}
	}
	return true
}

// startTPM starts a TPM with its state in a folder, and returns the port of its
// commands. The next port is for its control, which is how clients find it.
func startTPM(t testing.TB, state string) int {
	t.Helper()
	run(t, "swtpm_setup", "--tpm2", "--tpmstate", state, "--overwrite")
	var p *program
	for range 10 { // a port that was free may not be any more
		port := twoPorts(t)
		at := func(port int) string { return "type=tcp,bindaddr=127.0.0.1,port=" + strconv.Itoa(port) }
		p = start(t, exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
			"--server", at(port), "--ctrl", at(port+1), "--flags", "not-need-init,startup-clear"))
		if wait(t, p, func() bool {
			c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+1)))
			if err != nil {
				return false
			}
			_ = c.Close() // of the control port, which may come and go
			return true
		}) {
			return port
		}
	}
	t.Fatalf("swtpm does not start:\n%s", p.output)
	return 0
}

// twoPorts returns the first of two adjacent ports that are free.
func twoPorts(t testing.TB) int {
	t.Helper()
	for range 100 {
		one, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := one.Addr().(*net.TCPAddr).Port
		two, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+1)))
		_ = one.Close() // it served its purpose
		if err == nil {
			_ = two.Close() // likewise
			return port
		}
	}
	t.Fatal("there are no two free ports beside each other")
	return 0
}

// startBus starts a D-Bus daemon and returns its address.
func startBus(t testing.TB) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }() // only read
	cmd := exec.Command("dbus-daemon", "--session", "--nofork", "--print-address=3")
	cmd.ExtraFiles = []*os.File{w}
	p := start(t, cmd)
	_ = w.Close() // the daemon has its own
	address, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		<-p.ended
		t.Fatalf("dbus-daemon does not start:\n%s", p.output)
	}
	return strings.TrimSpace(address)
}

// startResourceManager starts tpm2-abrmd on the TPM and waits until the bus
// knows it.
func startResourceManager(t testing.TB, port int) {
	t.Helper()
	args := []string{"--session", "--tcti", fmt.Sprintf("swtpm:host=127.0.0.1,port=%d", port)}
	if os.Geteuid() == 0 {
		args = append(args, "--allow-root")
	}
	p := start(t, exec.Command(resourceManager, args...))
	if !wait(t, p, func() bool {
		out, err := exec.Command("dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus",
			"org.freedesktop.DBus.NameHasOwner", "string:com.intel.tss2.Tabrmd").Output()
		return err == nil && bytes.Contains(out, []byte("boolean true"))
	}) {
		t.Fatalf("tpm2-abrmd does not start:\n%s", p.output)
	}
}
