package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// exposure is what "systemd-analyze security" may find of bulla.service at most,
// of 10. What is left is that it has a network, Unix sockets and the system's
// root folder. (Versions of systemd weigh differently: 1.1 with 252.)
const exposure = 1.2

// drain is how long the service lets calls in flight end (cmd/bulla/serve.go).
const drain = 15 * time.Second

const unitFile = "systemd/bulla.service"

// unit are the settings of a unit, each with its values in order.
func unit(t *testing.T, file string) map[string][]string {
	t.Helper()
	settings := map[string][]string{}
	for line := range strings.Lines(string(read(t, file))) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			settings[name] = append(settings[name], value)
		}
	}
	return settings
}

// analyze runs systemd-analyze without a running systemd, with the folder units
// in place of the system's.
func analyze(t *testing.T, units string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Fatal("systemd-analyze is not installed: run `apt-get install -y --no-install-recommends systemd`")
	}
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+units+":", "SYSTEMD_COLORS=0", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// exposed is the level of exposure that systemd finds of a unit.
func exposed(t *testing.T, text string) float64 {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "bulla.service")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := analyze(t, dir, "security", "--offline=true", "--no-pager", file)
	level := regexp.MustCompile(`Overall exposure level for bulla\.service: ([0-9.]+)`).FindStringSubmatch(out)
	if level == nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	x, err := strconv.ParseFloat(level[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	if x > exposure {
		t.Logf("what is open:\n%s", strings.Join(regexp.MustCompile(`(?m)^✗.*$`).FindAllString(out, -1), "\n"))
	}
	return x
}

func TestTheSystemdUnitIsHardened(t *testing.T) {
	text := string(read(t, unitFile))
	if got := exposed(t, text); got > exposure {
		t.Errorf("systemd finds an exposure of %.1f, want %.1f at most", got, exposure)
	}
	// And would find it if it were not.
	for _, setting := range []string{"CapabilityBoundingSet=", "SystemCallFilter=@system-service"} {
		weaker := strings.Replace(text, "\n"+setting+"\n", "\n", 1)
		if weaker == text {
			t.Errorf("the unit has no line %s", setting)
		} else if got := exposed(t, weaker); got <= exposure {
			t.Errorf("without %s systemd finds an exposure of %.1f, which would pass", setting, got)
		}
	}
}

// TestTheSystemdUnitIsUnderstood: systemd knows every setting, of the unit and of
// what can be added to it.
func TestTheSystemdUnitIsUnderstood(t *testing.T) {
	binary := first.get(t).binary
	verify := func(change func(string) string) string {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "bulla.service.d"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"bulla.service", "bulla.service.d/credentials.conf"} {
			// verify looks for the program, which is not installed here.
			text := strings.ReplaceAll(string(read(t, filepath.Join("systemd", name))), "/usr/local/bin/bulla", binary)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(change(text)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := analyze(t, dir, "verify", "--man=no", filepath.Join(dir, "bulla.service"))
		if err != nil && out == "" {
			out = err.Error()
		}
		return out
	}
	if out := verify(func(s string) string { return s }); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	for _, bad := range []struct{ from, to string }{{"PrivateTmp=", "PrivateTemp="}, {"LoadCredential=pin:", "LoadCredential=p/n:"}, {"TimeoutStopSec=30", "TimeoutStopSec=soon"}} {
		if out := verify(func(s string) string { return strings.ReplaceAll(s, bad.from, bad.to) }); out == "" {
			t.Errorf("systemd-analyze verify has nothing against %s", bad.to)
		}
	}
}

// TestTheSystemdUnitFitsTheService: folders, times and names are those of the
// service and of the examples.
func TestTheSystemdUnitFitsTheService(t *testing.T) {
	u := unit(t, unitFile)
	for name, want := range map[string]string{
		"User": "bulla", "ExecStart": "/usr/local/bin/bulla serve --config /etc/bulla/bulla.yaml",
		"ExecReload": "/bin/kill -HUP $MAINPID", "ProtectSystem": "strict", "MemoryDenyWriteExecute": "yes", "LimitCORE": "0",
	} {
		if got := strings.Join(u[name], ";"); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	seconds, err := strconv.Atoi(strings.Join(u["TimeoutStopSec"], ";"))
	if err != nil || time.Duration(seconds)*time.Second < drain+5*time.Second {
		t.Errorf("TimeoutStopSec=%v: calls in flight may take %v to end", u["TimeoutStopSec"], drain)
	}
	folders := []string{"/var/lib/" + u["StateDirectory"][0], "/var/log/" + u["LogsDirectory"][0]}
	for _, example := range []string{"examples/one-machine.yaml", "examples/fleet.yaml"} {
		paths := regexp.MustCompile(`/var/[^ ,}\n]+`).FindAllString(string(read(t, example)), -1)
		if len(paths) < 2 {
			t.Errorf("%s writes to %v only", example, paths)
		}
		for _, p := range paths {
			if !slices.ContainsFunc(folders, func(f string) bool { return p == f || strings.HasPrefix(p, f+"/") }) {
				t.Errorf("%s writes to %s, and the unit lets it write to %v", example, p, folders)
			}
		}
	}
}
