package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms/pkcs11/tpmtest"
)

const pkcs11Page = "docs/backends/pkcs11.md"

// TestPKCS11PageWorksAsWritten runs the commands of docs/backends/pkcs11.md for
// the modules that are in every run.
func TestPKCS11PageWorksAsWritten(t *testing.T) {
	for module, want := range map[string][]string{
		"softhsm": {"ES256", "ES384", "ES512", "EdDSA", "RS256", "ES256", "ES256"},
		"nss":     {"ES256", "ES384", "ES512", "RS256"},
	} {
		t.Run(module, func(t *testing.T) {
			t.Parallel()
			mustDoctor(t, runPage(t, module), want)
		})
	}
}

// TestSoakPKCS11PageWorksAsWrittenOnTPM runs those for a TPM.
func TestSoakPKCS11PageWorksAsWrittenOnTPM(t *testing.T) {
	if os.Getenv("BULLA_SOAK") != "1" {
		t.Skip("it needs a software TPM; `make soak` runs it, or BULLA_SOAK=1")
	}
	tpmtest.Start(t)
	mustDoctor(t, runPage(t, "tpm"), []string{"ES256", "ES384", "PS256"})
}

// mustDoctor wants that the doctor found nothing to say, and had a signature of
// each algorithm.
func mustDoctor(t *testing.T, out string, algorithms []string) {
	t.Helper()
	var signed []string
	for _, m := range regexp.MustCompile(`a signature with (\w+) verifies`).FindAllStringSubmatch(out, -1) {
		signed = append(signed, m[1])
	}
	if got, want := strings.Join(signed, " "), strings.Join(algorithms, " "); got != want {
		t.Errorf("signatures with %s, want %s:\n%s", got, want, out)
	}
	for _, unwanted := range []string{"\nwarn ", "\nFAIL "} {
		if strings.Contains(out, unwanted) {
			t.Errorf("the doctor has findings:\n%s", out)
		}
	}
}

// runPage runs the page's commands for one module, after those of the first
// steps that they go on from, and returns what the page's print.
func runPage(t *testing.T, module string) string {
	t.Helper()
	ip := loopback(t)
	script := "set -eu\nexec 3>&1 >/dev/null\n"
	for _, block := range texts(pageBlocks(t, firstSteps, ip), "sh") {
		if serves(block) {
			break
		}
		script += block
	}
	script += "exec >&3\n"
	for _, b := range pageBlocks(t, pkcs11Page, ip) {
		if b.language == "sh all" || b.language == "sh "+module {
			script += b.text
		}
	}
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.Symlink(harness.Binary(t), filepath.Join(bin, "bulla")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"), "SOFTHSM2_CONF=/nonexistent")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestPKCS11PageConfigurationsAreGood holds the page's settings against the
// parser, with the rest of the README's example around them.
func TestPKCS11PageConfigurationsAreGood(t *testing.T) {
	rest := texts(pageBlocks(t, "README.md", "127.0.0.1"), "yaml")[0]
	rest = regexp.MustCompile(`(?ms)^(backends|issuers):.*?(^\w|\z)`).ReplaceAllString(rest, "$2")
	rest = regexp.MustCompile(`(?m)^wrapping:.*\n`).ReplaceAllString(rest, "")
	settings := texts(pageBlocks(t, pkcs11Page, "127.0.0.1"), "yaml")
	if len(settings) == 0 {
		t.Fatal("the page shows no settings")
	}
	for _, text := range settings {
		file := filepath.Join(t.TempDir(), "bulla.yaml")
		if err := os.WriteFile(file, []byte(rest+text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), harness.Binary(t), "config", "check", file).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s\n%s", err, out, rest+text)
		}
	}
}
