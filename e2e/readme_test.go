package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/e2e/harness"
)

const firstSteps = "docs/first-steps.md"

// TestFirstStepsWorkAsWritten runs the commands of docs/first-steps.md.
func TestFirstStepsWorkAsWritten(t *testing.T) {
	ip := loopback(t)
	out := runAsWritten(t, ip, texts(pageBlocks(t, firstSteps, ip), "sh"))
	for _, want := range []string{
		"bulla.yaml: ok: 1 issuer, 1 backend, 3 grants\n",
		"a signature with ES256 verifies\n", // the doctor
		"state     READY\n",
		`"alg": "ECDH-ES+A128KW"`, `"alg": "ES256"`, `"sub": "alice"`, `"aud": "app-1"`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("got no %q from the page's commands, but:\n%s", want, out)
		}
	}
	for _, unwanted := range []string{"\nwarn ", "\nFAIL "} {
		if strings.Contains(out, unwanted) {
			t.Errorf("the page's configuration has findings:\n%s", out)
		}
	}
}

// TestReadmeConfigurationIsGood holds the README's example against the parser.
func TestReadmeConfigurationIsGood(t *testing.T) {
	configs := texts(pageBlocks(t, "README.md", "127.0.0.1"), "yaml")
	if len(configs) != 1 {
		t.Fatalf("README.md has %d yaml blocks, want 1", len(configs))
	}
	file := filepath.Join(t.TempDir(), "bulla.yaml")
	if err := os.WriteFile(file, []byte(configs[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), harness.Binary(t), "config", "check", file).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
