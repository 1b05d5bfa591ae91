package e2e

import (
	"context"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
)

// A block is fenced text of a page: commands if it is marked as sh, what
// commands print if it is marked as text.
type block struct{ language, text string }

// pageBlocks reads the blocks of a page of the documentation, with ip in place of
// the address that the page listens on.
func pageBlocks(t *testing.T, file, ip string) []block {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []block
	inside := false
	for line := range strings.Lines(strings.ReplaceAll(string(page), "127.0.0.1", ip)) {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && !inside:
			blocks = append(blocks, block{language: strings.TrimSpace(fence)})
			inside = true
		case isFence:
			inside = false
		case inside:
			blocks[len(blocks)-1].text += line
		}
	}
	if inside || len(blocks) == 0 {
		t.Fatalf("%s has no blocks, or one without an end", file)
	}
	return blocks
}

// texts are the blocks of one language.
func texts(blocks []block, language string) []string {
	var found []string
	for _, b := range blocks {
		if b.language == language {
			found = append(found, b.text)
		}
	}
	return found
}

// serves says whether a block of commands is the one that starts the service.
func serves(commands string) bool { return strings.HasPrefix(commands, "bulla serve ") }

// runAsWritten runs blocks of commands in their order and in one shell, from an
// empty folder, with the built binary on the PATH, and returns all that they
// print. Two things differ from what a reader does: the service runs in the
// background, and on ip. One of the blocks must start it.
func runAsWritten(t *testing.T, ip string, commands []string) string {
	t.Helper()
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.Symlink(harness.Binary(t), filepath.Join(bin, "bulla")); err != nil {
		t.Fatal(err)
	}
	// Ready, where the reader would look at the log.
	ready := "#!/bin/sh\nexec bulla key list --timeout 1s --addr " + ip + ":8443 --tls-ca ca.crt --tls-cert idp.crt --tls-key idp.key >/dev/null 2>&1\n"
	if err := os.WriteFile(filepath.Join(bin, "ready"), []byte(ready), 0o700); err != nil {
		t.Fatal(err)
	}

	script, started := "set -eu\n", false
	for _, block := range commands {
		if serves(block) {
			started = true
			script += `trap 'kill $service; wait $service' EXIT` + "\n" + strings.TrimSpace(block) + " >serve.log 2>&1 & service=$!\n" +
				"until " + filepath.Join(bin, "ready") + "; do sleep 0.1; kill -0 $service; done\n"
			continue
		}
		script += block
	}
	if !started {
		t.Fatal("no block starts the service")
	}

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
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
	return string(out)
}

// checkShown holds what a page shows against what its commands printed: the
// lines of each text, whole and together, in the page's order. "…" on the page
// stands for what differs from run to run, within a line.
func checkShown(t *testing.T, out string, shown []string) {
	t.Helper()
	rest := out
	for _, text := range shown {
		pattern := "(?m)^" + strings.ReplaceAll(regexp.QuoteMeta(text), "…", `[^\n]+`)
		at := regexp.MustCompile(pattern).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("the page shows:\n%s\nbut its commands print, after what it shows before:\n%s\nof all this:\n%s", text, rest, out)
		}
		rest = rest[at[1]:]
	}
}

// loopback is an IP address on which the pages' ports are free.
func loopback(t *testing.T) string {
	t.Helper()
	for range 100 {
		// At random, for tests that run beside each other.
		var b [2]byte
		if _, err := rand.Read(b[:]); err != nil {
			t.Fatal(err)
		}
		ip := net.IPv4(127, 83, b[0], b[1]|1).String()
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
