package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// demoToken is the label of the token. The keys on it are called demo-es256,
// demo-rs256 and demo-wrap.
const demoToken = "bulla-demo"

// softHSMPatterns are where distributions put the module.
var softHSMPatterns = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/*/softhsm/libsofthsm2.so",
	"/usr/lib64/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
	"/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// findSoftHSM returns the path of the module, or what to install.
func findSoftHSM() (string, error) {
	const advice = `run "sudo apt-get install -y --no-install-recommends softhsm2 opensc"`
	if _, err := exec.LookPath("pkcs11-tool"); err != nil {
		return "", errors.New("pkcs11-tool, which makes the keys on the token, is not installed: " + advice)
	}
	for _, pattern := range softHSMPatterns {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return found[0], nil
		}
	}
	return "", errors.New("SoftHSM is not installed: " + advice)
}

// makeToken makes the token with random PINs and lets it generate its keys.
// The PINs reach pkcs11-tool by its environment, which only this user can
// read, and stand on no command line. The security officer's PIN is kept
// nowhere: this token will not be set up a second time.
func (f *demoFolder) makeToken(ctx context.Context, module string) error {
	if err := os.Mkdir(f.file("tokens"), 0o700); err != nil {
		return err
	}
	pin, officer := rand.Text(), rand.Text()
	if err := f.write("pin", []byte(pin+"\n")); err != nil {
		return err
	}
	env := append(os.Environ(), "SOFTHSM2_CONF="+f.file("softhsm2.conf"), "BULLA_PIN="+pin, "BULLA_SO_PIN="+officer)
	login := []string{"--token-label", demoToken, "--login", "--pin", "env:BULLA_PIN"}
	generate := func(kind, label, id string) []string {
		return append([]string{"--keypairgen", "--key-type", kind, "--label", label, "--id", id, "--usage-sign", "--sensitive"}, login...)
	}
	for _, args := range [][]string{
		{"--slot-index", "0", "--init-token", "--label", demoToken, "--so-pin", "env:BULLA_SO_PIN"},
		{"--token-label", demoToken, "--init-pin", "--login", "--login-type", "so", "--so-pin", "env:BULLA_SO_PIN", "--new-pin", "env:BULLA_PIN"},
		generate("EC:prime256v1", "demo-es256", "01"),
		generate("rsa:2048", "demo-rs256", "02"),
		append([]string{"--keygen", "--key-type", "AES:32", "--label", "demo-wrap", "--id", "03", "--sensitive"}, login...),
	} {
		cmd := exec.CommandContext(ctx, "pkcs11-tool", append([]string{"--module", module}, args...)...)
		cmd.Env = env
		// With the lock in its hands, a tool that outlives us keeps the next
		// run from a token that it still writes to.
		cmd.ExtraFiles = []*os.File{f.lock}
		if out, err := cmd.CombinedOutput(); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("pkcs11-tool %s: %w: %s", args[len(args)-1], err, bytes.TrimSpace(out))
		}
	}
	return nil
}
