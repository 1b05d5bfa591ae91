// Package awstest starts AWS KMS endpoints that were written by others, for
// tests: the emulators moto and MiniStack, from PyPI, in virtual environments
// that scripts/kms-endpoints.sh makes.
//
// There are two because neither is KMS. MiniStack signs as KMS does: it takes
// MessageType DIGEST at its word, uses a PSS salt as long as the hash, and
// knows disabled keys, so it runs the whole conformance suite. Moto ignores
// MessageType and hashes a digest once more, and salts PSS as long as it can;
// but it speaks the protocol independently, and disagrees with MiniStack
// wherever the API leaves room.
//
// A test that uses this package never skips: if an emulator cannot be had it
// fails, with the command to run.
package awstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// Region is the region that the endpoints are asked to be in.
const Region = "eu-west-1"

// Credentials that no AWS account has. The emulators check none.
const (
	accessKey = "AKIAIOSFODNN7EXAMPLE"
	secretKey = "for-tests-only"
)

// How long an emulator may take to answer first, and to die.
const (
	startLimit = 60 * time.Second
	stopLimit  = 5 * time.Second
)

// Emulator is one of the programs that this package can start.
type Emulator struct {
	name string
	venv string // environment variable with the virtual environment's folder
	main string // Python that runs it; "address" and "port" are set
}

// The emulators.
var (
	MiniStack = Emulator{
		name: "ministack",
		venv: "BULLA_MINISTACK_VENV",
		main: `os.environ.update(BIND_HOST=address, GATEWAY_PORT=port, SERVICES="kms", LOG_LEVEL="WARNING")
sys.argv = ["ministack"]
from ministack.app import main
main()`,
	}
	Moto = Emulator{
		name: "moto",
		venv: "BULLA_MOTO_VENV",
		main: `sys.argv = ["moto_server", "-H", address, "-p", port]
from moto.server import main
main()`,
	}
)

// bootstrap precedes an emulator's main. The test holds the other end of stdin
// for as long as it lives: whichever way it dies, the emulator dies with it.
const bootstrap = `import os, sys, threading
address, port = sys.argv[1], sys.argv[2]
def leave_with_parent():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=leave_with_parent, daemon=True).start()
`

// Server is a running emulator.
type Server struct {
	// Endpoint is its URL.
	Endpoint string
}

// Start runs e until t ends.
func Start(t testing.TB, e Emulator) *Server {
	t.Helper()
	python, err := e.python(t.Context())
	if err != nil {
		t.Fatalf("awstest: %v", err)
	}
	var failures []error
	for range 3 { // the free port may be taken by someone else meanwhile
		s, err := e.start(t, python)
		if err == nil {
			return s
		}
		failures = append(failures, err)
	}
	t.Fatalf("awstest: %s does not start: %v", e.name, errors.Join(failures...))
	return nil
}

// python returns e's interpreter, after running the script that installs it if
// it is not there.
func (e Emulator) python(ctx context.Context) (string, error) {
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	venv := os.Getenv(e.venv)
	if venv == "" {
		venv = filepath.Join(root, ".cache", e.name)
	}
	script := filepath.Join(root, "scripts", "kms-endpoints.sh")
	if out, err := exec.CommandContext(ctx, script, e.name).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s is not installed; run \"%s %s\" with access to PyPI: %w\n%s", e.name, script, e.name, err, out)
	}
	return filepath.Join(venv, "bin", "python"), nil
}

// repositoryRoot is the nearest folder above the working one with a go.mod.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return "", fmt.Errorf("no go.mod above the working directory: %w", err)
		}
		dir = parent
	}
}

// start runs one process and waits until it answers.
func (e Emulator) start(t testing.TB, python string) (*Server, error) {
	address, port, err := freePort()
	if err != nil {
		return nil, err
	}
	home := t.TempDir()
	output := &buffer{}
	cmd := exec.Command(python, "-c", bootstrap+e.main, address, port)
	cmd.Dir = home
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home,
		"AWS_DEFAULT_REGION=" + Region, "AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey,
	}
	cmd.Stdout, cmd.Stderr = output, output
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait() //nolint:errcheck // it is killed: how it ended says nothing
		close(exited)
	}()
	stop := func() {
		lifeline.Close() //nolint:errcheck // the process ends either way
		select {
		case <-exited:
		case <-time.After(stopLimit):
			cmd.Process.Kill() //nolint:errcheck // it may just have ended
			<-exited
		}
	}

	s := &Server{Endpoint: "http://" + net.JoinHostPort(address, port)}
	if err := s.wait(t.Context(), exited); err != nil {
		stop()
		return nil, fmt.Errorf("%w\n%s", err, output)
	}
	t.Cleanup(stop)
	return s, nil
}

// wait returns when the server answers anything.
func (s *Server) wait(ctx context.Context, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			return resp.Body.Close()
		}
		select {
		case <-exited:
			return errors.New("the process ended")
		case <-ctx.Done():
			return fmt.Errorf("no answer within %v: %w", startLimit, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// freePort returns a loopback address that nobody listened on a moment ago.
func freePort() (address, port string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	address, port, err = net.SplitHostPort(l.Addr().String())
	return address, port, errors.Join(err, l.Close())
}

// buffer is what a process wrote.
type buffer struct {
	mu sync.Mutex // guards b: the process may still write while it is read
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Client returns the SDK's own client of s, to make keys with and change them.
func (s *Server) Client() *kms.Client {
	return kms.New(kms.Options{
		Region:       Region,
		BaseEndpoint: aws.String(s.Endpoint),
		Credentials:  credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
		HTTPClient:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
}

// Environment sets, until t ends, the variables with which the SDK's own chain
// finds credentials for an emulator, and nothing else: no configuration of the
// machine, no metadata service.
func Environment(t testing.TB) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID":           accessKey,
		"AWS_SECRET_ACCESS_KEY":       secretKey,
		"AWS_SESSION_TOKEN":           "",
		"AWS_PROFILE":                 "",
		"AWS_REGION":                  "",
		"AWS_DEFAULT_REGION":          "",
		"AWS_CONFIG_FILE":             os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		"AWS_EC2_METADATA_DISABLED":   "true",
	} {
		t.Setenv(name, value)
	}
}
