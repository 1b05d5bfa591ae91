package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestDemo runs the built command as a user does, one at a time: they share
// the default ports.
func TestDemo(t *testing.T) {
	t.Parallel()
	bulla := filepath.Join(t.TempDir(), "bulla")
	if out, err := exec.Command("go", "build", "-o", bulla, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, test := range []struct {
		name string
		run  func(*demoRun)
	}{
		{"RunsTwiceAndKeepsItsSecrets", demoRunsTwiceAndKeepsItsSecrets},
		{"WorksAfterBeingKilled", demoWorksAfterBeingKilled},
		{"PrintsCommandsThatWork", demoPrintsCommandsThatWork},
		{"StopsWhenInterrupted", demoStopsWhenInterrupted},
		{"TakesOtherPortsWhereItsOwnAreInUse", demoTakesOtherPortsWhereItsOwnAreInUse},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(newDemoRun(t, bulla)) })
	}
}

// demoRun is a demo in a working directory of its own, called as bin/bulla.
type demoRun struct {
	*testing.T
	dir string
	env []string
}

func newDemoRun(t *testing.T, built string) *demoRun {
	t.Helper()
	// A space in the path has to be no trouble for SoftHSM, YAML and shells.
	dir := filepath.Join(t.TempDir(), "a checkout")
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(built, filepath.Join(dir, "bin/bulla")); err != nil {
		t.Fatal(err)
	}
	return &demoRun{T: t, dir: dir, env: os.Environ()}
}

func (r *demoRun) command(args ...string) *exec.Cmd {
	cmd := exec.Command("bin/bulla", append([]string{"demo"}, args...)...)
	cmd.Dir, cmd.Env = r.dir, r.env
	return cmd
}

// once runs the demo to its end and returns what it printed.
func (r *demoRun) once() string {
	r.Helper()
	out, err := r.command("--once").CombinedOutput()
	if err != nil {
		r.Fatalf("demo --once: %v\n%s\nits log:\n%s", err, out, r.read("service.log"))
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if got := lines[len(lines)-1]; got != "demo: ok" {
		r.Fatalf("last line: got %q, want %q; all:\n%s", got, "demo: ok", out)
	}
	return string(out)
}

func (r *demoRun) file(name string) string { return filepath.Join(r.dir, ".bulla/demo", name) }

func (r *demoRun) read(name string) string {
	data, err := os.ReadFile(r.file(name))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// start runs the demo in the background; what it prints grows in the buffer.
func (r *demoRun) start(args ...string) (*exec.Cmd, *safeBuffer) {
	r.Helper()
	cmd, out := r.command(args...), new(safeBuffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, out
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			t.Fatalf("waited 30 s for: %s", what)
		}
	}
}

// safeBuffer is a buffer that one goroutine writes while another reads.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func demoRunsTwiceAndKeepsItsSecrets(t *demoRun) {
	arguments := filepath.Join(t.TempDir(), "arguments")
	t.env = append(t.env, recordingTool(t.T, arguments))
	first := t.once()
	pin := strings.TrimSpace(t.read("pin"))
	second := t.once()

	if got := strings.TrimSpace(t.read("pin")); got != pin || !strings.Contains(second, "from the last run") {
		t.Errorf("the second run did not use what the first had made:\n%s", second)
	}
	for what, want := range map[string]string{
		"JWE header": `"alg":"RSA-OAEP-256"`, "enc": `"enc":"A256GCM"`, "JWS header": `"alg":"ES256"`, "claims": `"sub": "alice"`, "aud": `"aud": "demo-app"`,
	} {
		if !strings.Contains(first, want) {
			t.Errorf("%s: %s is not in the output:\n%s", what, want, first)
		}
	}

	calls, err := os.ReadFile(arguments)
	if err != nil || bytes.Count(calls, []byte("--keypairgen")) != 2 {
		t.Fatalf("the tool's arguments: got\n%s%v\nwant two generated keys", calls, err)
	}
	if len(pin) < 20 {
		t.Fatalf("PIN: got %d characters, want 20 or more", len(pin))
	}
	secrets := map[string]string{"PIN": pin}
	var jwk struct{ D, P string }
	if err := json.Unmarshal([]byte(t.read("rp.jwk")), &jwk); err != nil || jwk.D == "" || jwk.P == "" {
		t.Fatalf("rp.jwk is no private RSA key: %v", err)
	}
	secrets["d of the client's key"], secrets["p of the client's key"] = jwk.D, jwk.P
	for name, secret := range secrets {
		for place, text := range map[string]string{
			"the output": first + second, "arguments of pkcs11-tool": string(calls),
			"service.log": t.read("service.log"), "audit.log": t.read("audit.log"), "bulla.yaml": t.read("bulla.yaml"),
		} {
			if strings.Contains(text, secret) {
				t.Errorf("%s stands in %s", name, place)
			}
		}
	}

	if err := filepath.WalkDir(t.file("."), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: got mode %v, want none for others", path, info.Mode())
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// recordingTool puts before the real pkcs11-tool one that appends its
// arguments to a file. It returns the PATH to use.
func recordingTool(t *testing.T, file string) (path string) {
	t.Helper()
	tool, err := exec.LookPath("pkcs11-tool")
	if err != nil {
		t.Fatal("pkcs11-tool is not installed: run `apt-get install -y softhsm2 opensc`")
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nprintf '%%s\\n' \"$*\" >>%s\nexec %s \"$@\"\n", quoteShell(file), quoteShell(tool))
	if err := os.WriteFile(filepath.Join(dir, "pkcs11-tool"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

func demoWorksAfterBeingKilled(r *demoRun) {
	for _, at := range []struct{ name, file string }{
		{"before the token", "softhsm2.conf"},
		{"within the token", "tokens/*/*.object"},
		{"among the certificates", "server.crt"},
		{"before the service", "bulla.yaml"},
		{"after the store", "bulla.db"},
	} {
		r.Run(at.name, func(t *testing.T) {
			r := &demoRun{T: t, dir: r.dir, env: r.env}
			// Each from nothing, but as a user would: not by hand.
			if err := os.RemoveAll(r.file(".")); err != nil {
				t.Fatal(err)
			}
			cmd, _ := r.start()
			until(t, at.file, func() bool {
				found, err := filepath.Glob(r.file(at.file))
				return err == nil && len(found) > 0
			})
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			r.once()
		})
	}
}

func demoPrintsCommandsThatWork(t *demoRun) {
	cmd, out := t.start()
	until(t.T, "the last command", func() bool { return strings.Contains(out.String(), "audit.log\n\n") })

	commands := printedCommands(out.String())
	if len(commands) < 5 {
		t.Fatalf("got %d commands from:\n%s", len(commands), out.String())
	}
	for comment, want := range map[string]string{
		"a token, and what its client sees of it": `"sub": "bob"`,
		"the clients":                                   "READY",
		"the signing keys":                              "ES256",
		"what verifiers fetch, and the metrics":         "bulla_issuer_signs",
		"who did what":                                  "spiffe://demo.bulla/",
		"is everything right behind the configuration?": "hsm: probe",
	} {
		command, ok := commands[comment]
		if !ok {
			t.Errorf("there is no command for %q in:\n%s", comment, out.String())
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		sh := exec.CommandContext(ctx, "sh", "-c", command)
		sh.Dir = t.dir
		got, err := sh.CombinedOutput()
		cancel()
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s\n%v; want %s in:\n%s", command, err, want, got)
		}
	}

	second, err := t.command("--once").CombinedOutput()
	if err == nil || !strings.Contains(string(second), "another demo runs in .bulla/demo: stop it") {
		t.Errorf("a second demo: got %v\n%s", err, second)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: got %v, want exit 0\n%s", err, out.String())
	}
}

// printedCommands are the commands that the demo proposes, by the comment
// above each, as a user would select them.
func printedCommands(out string) map[string]string {
	commands := make(map[string]string)
	comment := ""
	for line := range strings.Lines(out) {
		switch text, ok := strings.CutPrefix(strings.TrimSpace(line), "# "); {
		case ok:
			comment = text
		case text == "":
			comment = ""
		case comment != "":
			commands[comment] += line
		}
	}
	return commands
}

func demoStopsWhenInterrupted(t *demoRun) {
	cmd, out := t.start()
	until(t.T, "the token", func() bool { _, err := os.Stat(t.file("tokens")); return err == nil })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("got %v, want a word about it:\n%s", err, out.String())
	}
	t.once()
}

func demoTakesOtherPortsWhereItsOwnAreInUse(t *demoRun) {
	t.once()
	for _, port := range []int{8443, 8080, 9090, 9443} {
		lis, err := listenNear(t.Context(), port)
		if err != nil {
			t.Fatal(err)
		}
		defer lis.Close()
	}
	// The jwks_uri of the registered client changes with its port.
	out := t.once()
	for _, port := range []string{":8443", ":8080", ":9090", ":9443"} {
		if strings.Contains(out, port) {
			t.Errorf("port %s is in use by another, and in:\n%s", port, out)
		}
	}
}

// demoFolderForTest is a folder as a first run left it, and its module.
func demoFolderForTest(t *testing.T) (f *demoFolder, module string) {
	t.Helper()
	module, err := findSoftHSM()
	if err != nil {
		t.Fatal(err)
	}
	if f, err = openDemoFolder(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if lacks, err := f.provision(t.Context(), module); err != nil || lacks != "new" {
		t.Fatalf("first time: got %q, %v", lacks, err)
	}
	return f, module
}

func TestDemoMakesAnewWhatIsNotWhole(t *testing.T) {
	t.Parallel()
	f, module := demoFolderForTest(t)
	pin := func() string {
		data, err := os.ReadFile(f.file("pin"))
		if err != nil {
			return ""
		}
		return string(data)
	}
	for _, c := range []struct {
		name, want string
		damage     func() error
	}{
		{"nothing", "", func() error { return nil }},
		{"pin missing", "pin was missing", func() error { return os.Remove(f.file("pin")) }},
		{"key cut short", "idp.key was missing", func() error { return os.Truncate(f.file("idp.key"), 0) }},
		{"token gone", "tokens was missing", func() error { return os.RemoveAll(f.file("tokens")) }},
		{"CA unreadable", "expire", func() error { return f.write("ca.crt", []byte("nothing\n")) }},
		{"another layout", "did not come to its end", func() error { return f.write(demoStamp, []byte("0\n")) }},
		{"no stamp", "did not come to its end", func() error { return os.Remove(f.file(demoStamp)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := pin()
			if err := errors.Join(c.damage(), f.write("bulla.db", []byte("of the old keys"))); err != nil {
				t.Fatal(err)
			}
			lacks, err := f.provision(t.Context(), module)
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" {
				if lacks != "" || pin() != before || !f.exists("bulla.db") {
					t.Errorf("a whole folder was made anew: %q", lacks)
				}
				return
			}
			if !strings.Contains(lacks, c.want) {
				t.Errorf("lacks: got %q, want %q", lacks, c.want)
			}
			if pin() == before || f.exists("bulla.db") {
				t.Error("old and new were mixed")
			}
			if left := f.lacks(); left != "" {
				t.Errorf("still lacking: %s", left)
			}
		})
	}
}

func TestDemoLeavesFoldersOfOthersAlone(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "pin")
	if err := os.WriteFile(precious, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := openDemoFolder(t.Context(), dir)
	if err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("got %v, want a refusal that speaks of --dir", err)
	}
	if data, err := os.ReadFile(precious); err != nil || string(data) != "mine" {
		t.Errorf("the file there: got %q, %v", data, err)
	}
}

func TestDemoWithoutSoftHSMSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := findSoftHSM()
	if err == nil || !strings.Contains(err.Error(), "apt-get install -y --no-install-recommends softhsm2 opensc") {
		t.Errorf("got %v, want the command that installs it", err)
	}
}

func TestQuoteShell(t *testing.T) {
	for _, word := range []string{"", "bin/bulla", "a b", "it's", "$HOME", "a;b", "é", "*", "~", "-x", "'", "a\nb"} {
		out, err := exec.Command("sh", "-c", "printf %s "+quoteShell(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q as %s: sh reads %q, %v", word, quoteShell(word), out, err)
		}
	}
	if got := quoteShell("bin/bulla"); got != "bin/bulla" {
		t.Errorf("got %s, want no quotes where none are needed", got)
	}
}
