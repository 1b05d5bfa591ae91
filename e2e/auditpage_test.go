package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/e2e/harness"
)

const auditPage = "docs/audit.md"

// TestAuditPageWorksAsWritten runs the commands of docs/audit.md: those before
// the service is started in the midst of the first steps, the others behind
// them.
func TestAuditPageWorksAsWritten(t *testing.T) {
	t.Parallel()
	ip := loopback(t)
	steps, page := texts(pageBlocks(t, firstSteps, ip), "sh"), pageBlocks(t, auditPage, ip)
	start := slices.IndexFunc(steps, serves)
	verify := texts(page, "sh verify")
	if len(verify) == 0 {
		t.Fatal("the page verifies nothing")
	}
	out := runAsWritten(t, ip, slices.Concat(steps[:start], texts(page, "sh"), steps[start:], verify))
	checkShown(t, out, texts(page, "text"))
	for _, want := range []string{"ok   hsm: probe hsm:object=audit-1: a signature with ES256 verifies", "ok: every line that a checkpoint covers is as it was written"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("the page's commands do not print %q, but:\n%s", want, out)
		}
	}
	if strings.Contains(out, "\nFAIL ") {
		t.Errorf("the page's commands find faults:\n%s", out)
	}
}

// TestAuditPageConfigurationIsGood holds the page's settings against the parser,
// with the README's example around them.
func TestAuditPageConfigurationIsGood(t *testing.T) {
	t.Parallel()
	settings := texts(pageBlocks(t, auditPage, "127.0.0.1"), "yaml")
	if len(settings) != 1 {
		t.Fatalf("the page has %d yaml blocks, want 1", len(settings))
	}
	file := filepath.Join(t.TempDir(), "bulla.yaml")
	whole := texts(pageBlocks(t, "README.md", "127.0.0.1"), "yaml")[0] + settings[0]
	if err := os.WriteFile(file, []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), harness.Binary(t), "config", "check", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
