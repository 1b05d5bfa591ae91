package deploy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestVulnerabilitiesAreSkippedOnlyWithoutADatabase runs scripts/vuln.sh on a
// stand-in for govulncheck: what it makes of each way in which that ends. Only a
// database that cannot be had may pass for success.
func TestVulnerabilitiesAreSkippedOnlyWithoutADatabase(t *testing.T) {
	const away = `echo 'govulncheck: fetching vulnerabilities: Get "https://db.example.com/index": no such host' >&2; exit 1`
	for name, tt := range map[string]struct {
		look, work string // what the stand-in does for the first look, and for ./...
		required   string // VULN
		code       int
		says       string
	}{
		"nothing found":                 {"exit 0", "echo No vulnerabilities found.", "", 0, "No vulnerabilities found."},
		"found in the service":          {"exit 0", "echo GO-2026-0001; exit 3", "", 3, "GO-2026-0001"},
		"found in the tool itself only": {"exit 3", "echo No vulnerabilities found.", "", 0, "No vulnerabilities found."},
		"no database":                   {away, "exit 9", "", 0, `SKIPPED, the vulnerability database cannot be had: Get "https://db.example.com/index": no such host`},
		"no database, where there must": {away, "exit 9", "required", 1, "no such host"},
		"another error":                 {"echo 'govulncheck: loading packages: broken' >&2; exit 1", "exit 9", "", 1, "loading packages: broken"},
		"an error at work":              {"exit 0", "echo 'no Go files' >&2; exit 1", "", 1, "no Go files"},
	} {
		tool := filepath.Join(t.TempDir(), "govulncheck")
		script := "#!/bin/sh\ncase $* in\n*-mode=binary*) " + tt.look + " ;;\n'-db https://vuln.example.com ./...') " + tt.work + " ;;\n*) echo \"called with $*\"; exit 8 ;;\nesac\n"
		if err := os.WriteFile(tool, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "../scripts/vuln.sh", tool)
		cmd.Env = append(os.Environ(), "VULN="+tt.required, "VULNDB=https://vuln.example.com")
		out, err := cmd.CombinedOutput()
		code := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != tt.code || !strings.Contains(string(out), tt.says) {
			t.Errorf("%s: exit code %d and %q, want %d and %q", name, code, out, tt.code, tt.says)
		}
	}
}
