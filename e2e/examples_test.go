package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// exampleFolder is a copy of examples/ with what its page asks for, and the
// installed packages where the page's commands put them.
func exampleFolder(t *testing.T, s *harness.Service) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "examples")
	for _, sub := range []string{"python", "node", "java"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(root, "examples", sub, "*.*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%v, %d files", err, len(files))
		}
		for _, f := range files {
			if text, err := os.ReadFile(f); err != nil {
				t.Fatal(err)
			} else if err := os.WriteFile(filepath.Join(dir, sub, filepath.Base(f)), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	jars, err := filepath.Glob(filepath.Join(root, ".cache/interop/java/lib/nimbus-jose-jwt-*.jar"))
	if err != nil || len(jars) != 1 {
		t.Fatalf("%v, %d jars of Nimbus: scripts/install.sh test downloads it", err, len(jars))
	}
	idp := s.Leaf(t, harness.Admin)
	for name, target := range map[string]string{
		"../proto":            filepath.Join(root, "proto"),
		"venv":                filepath.Join(root, ".cache/examples/venv"),
		"node/node_modules":   filepath.Join(root, "examples/node/node_modules"),
		"nimbus-jose-jwt.jar": jars[0],
		"ca.crt":              s.CA.File,
		"idp.crt":             idp.CertFile,
		"idp.key":             idp.KeyFile,
	} {
		if _, err := os.Stat(target); err != nil {
			t.Fatalf("%v: scripts/install.sh test installs it", err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestExamples runs the commands of examples/README.md as they are written, but
// for those that install, and then what goes wrong.
func TestExamples(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: func(tree harness.M) {
		tree["http"] = harness.M{"listen": tree["http"].(harness.M)["listen"]} // without TLS, as on loopback
	}})
	admin := s.Caller(t, harness.Admin)
	key := rsaKey()
	wrapped := setting("RSA-OAEP-256", "A256GCM")
	for _, client := range []string{"app-1", "app-2"} {
		req := withJWKS(client, harness.JWKS(key))
		req.Settings = []*bullav1.ResponseSetting{wrapped}
		mustRegister(t, admin, req)
	}
	dir := exampleFolder(t, s)
	if err := os.WriteFile(filepath.Join(dir, "private.jwk"), key.PrivateJWK(), 0o600); err != nil {
		t.Fatal(err)
	}
	ip, _, _ := strings.Cut(s.GRPC, ":")
	run := func(commands string) (stdout, stderr string, err error) {
		var out, bad bytes.Buffer
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", commands)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &bad
		err = cmd.Run()
		return out.String(), bad.String(), err
	}

	blocks := texts(pageBlocks(t, "examples/README.md", ip), "sh")
	blocks = slices.DeleteFunc(blocks, func(b string) bool {
		return strings.Contains(b, "-m venv") || strings.Contains(b, "npm ci")
	})
	opened := 0
	for _, block := range blocks {
		out, bad, err := run(onAddress(block, ip))
		if err != nil {
			t.Fatalf("%v\n%s%s%s", err, block, out, bad)
		}
		if !strings.Contains(block, "token.jwt") {
			continue
		}
		var claims struct {
			Sub, Iss string
			Aud      any
		}
		if err := json.Unmarshal([]byte(out), &claims); err != nil || claims.Sub != "alice" || claims.Iss != harness.IssuerURL {
			t.Errorf("%s printed %s (%v)", block, out, err)
		}
		opened++
	}
	if opened != 3 {
		t.Errorf("%d languages opened a token", opened)
	}

	python := "venv/bin/python python/issue.py --addr " + s.GRPC + " --tls-ca ca.crt --tls-cert idp.crt --tls-key idp.key --client "
	node := "node node/issue.mjs --addr " + s.GRPC + " --tls-ca ca.crt --tls-cert idp.crt --tls-key idp.key --client "
	for _, issue := range []string{python, node} {
		for _, c := range []struct{ claims, client, reason string }{
			{`{"sub":"alice"}`, "nobody", "CLIENT_NOT_REGISTERED: "},
			{`{"sub":`, "app-1", "CLAIMS_INVALID: "},
		} {
			out, bad, err := run("echo '" + c.claims + "' | " + issue + c.client)
			var exit *exec.ExitError
			// Node.js itself says something first of a server that is called by its address.
			if !errors.As(err, &exit) || !strings.Contains("\n"+bad, "\n"+c.reason) || out != "" {
				t.Errorf("%s: %v\n%s%s", issue+c.client, err, out, bad)
			}
		}
	}

	// What must not open: a token for another client of the same key, one that was
	// changed, and one that was cut.
	if _, bad, err := run("echo '{\"sub\":\"alice\"}' | " + python + "app-2 > other.jwt; sed 's/\\.[A-Za-z0-9_-]*$/.AAAAAAAAAAAAAAAAAAAAAA/' token.jwt > changed.jwt; cut -d. -f1-4 token.jwt > cut.jwt"); err != nil {
		t.Fatalf("%v\n%s", err, bad)
	}
	for _, open := range []string{
		"venv/bin/python python/open.py --key private.jwk --jwks signers.json --iss " + harness.IssuerURL + " --client app-1",
		"node node/open.mjs --key private.jwk --jwks signers.json --iss " + harness.IssuerURL + " --client app-1",
		"java -cp nimbus-jose-jwt.jar java/OpenToken.java private.jwk signers.json " + harness.IssuerURL + " app-1",
	} {
		for _, file := range []string{"other.jwt", "changed.jwt", "cut.jwt"} {
			if out, _, err := run(open + " < " + file); err == nil || out != "" {
				t.Errorf("%s opens %s: %s", open, file, out)
			}
		}
	}
}

// onAddress has the commands call the service of the test.
func onAddress(commands, ip string) string {
	for _, program := range []string{"issue.py", "issue.mjs"} {
		commands = strings.ReplaceAll(commands, program+" ", program+" --addr "+ip+":8443 ")
	}
	return commands
}
