package e2e

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
)

// TestFirstStepsWorkAsWritten runs the shell blocks of docs/first-steps.md from an
// empty folder, in their order and in one shell, with the built binary on the
// PATH. Two things differ from what a reader does: the service runs in the
// background, and on an address of the test's own.
func TestFirstStepsWorkAsWritten(t *testing.T) {
	page, err := os.ReadFile("../docs/first-steps.md")
	if err != nil {
		t.Fatal(err)
	}
	ip := loopback(t)
	blocks := shellBlocks(strings.ReplaceAll(string(page), "127.0.0.1", ip))
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.Symlink(harness.Binary(t), filepath.Join(bin, "bulla")); err != nil {
		t.Fatal(err)
	}

	script, served := "set -eu\n", false
	for _, block := range blocks {
		if strings.HasPrefix(block, "bulla serve ") {
			served = true
			script += `trap 'kill $service; wait $service' EXIT` + "\n" + strings.TrimSpace(block) + " >serve.log 2>&1 & service=$!\n" +
				"until " + filepath.Join(bin, "ready") + "; do sleep 0.1; kill -0 $service; done\n"
			continue
		}
		script += block
	}
	if !served {
		t.Fatal("the page has no block with bulla serve")
	}
	// Ready, where the reader would look at the log.
	ready := "#!/bin/sh\nexec bulla key list --timeout 1s --addr " + ip + ":8443 --tls-ca ca.crt --tls-cert idp.crt --tls-key idp.key >/dev/null 2>&1\n"
	if err := os.WriteFile(filepath.Join(bin, "ready"), []byte(ready), 0o700); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"), "SOFTHSM2_CONF=/nonexistent")
	// The service too ends with a script that takes too long.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "serve.log")) // there may be none
		t.Fatalf("%v\n%s\nservice:\n%s", err, out, log)
	}
	for _, want := range []string{
		"bulla.yaml: ok: 1 issuer, 1 backend, 3 grants\n",
		"a signature with ES256 verifies\n", // the doctor
		"state     READY\n",
		`"alg": "ECDH-ES+A128KW"`, `"alg": "ES256"`, `"sub": "alice"`, `"aud": "app-1"`,
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("got no %q from the page's commands, but:\n%s", want, out)
		}
	}
	for _, unwanted := range []string{"\nwarn ", "\nFAIL "} {
		if bytes.Contains(out, []byte(unwanted)) {
			t.Errorf("the page's configuration has findings:\n%s", out)
		}
	}
}

// TestReadmeConfigurationIsGood holds the README's example against the parser.
func TestReadmeConfigurationIsGood(t *testing.T) {
	page, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "```yaml\n")
	if !found {
		t.Fatal("README.md has no yaml block")
	}
	config, _, _ := strings.Cut(rest, "```")
	file := filepath.Join(t.TempDir(), "bulla.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), harness.Binary(t), "config", "check", file).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// shellBlocks returns the text of a page's blocks that are marked as sh.
func shellBlocks(page string) []string {
	var blocks []string
	for _, rest := range strings.Split(page, "```sh\n")[1:] {
		block, _, _ := strings.Cut(rest, "```")
		blocks = append(blocks, block)
	}
	return blocks
}

// loopback is an IP address on which the page's ports are free.
func loopback(t *testing.T) string {
	t.Helper()
	for last := byte(1); last < 255; last++ {
		ip := net.IPv4(127, 83, 61, last).String()
		free := true
		for _, port := range []string{"8443", "8080", "9090"} {
			l, err := net.Listen("tcp", net.JoinHostPort(ip, port))
			if err != nil {
				free = false
				break
			}
			_ = l.Close() // it served its purpose
		}
		if free {
			return ip
		}
	}
	t.Fatal("the ports of the page are in use on every address tried")
	return ""
}
