// Package softhsmtest makes SoftHSM tokens for tests: a real PKCS#11 module
// with a token folder of the test's own, which is gone when the test ends. All
// work on the token is done by other processes (softhsm2-util, pkcs11-tool),
// as it is in the field, so that the module under test stays the only one in
// the test's process.
//
// SoftHSM finds its tokens by the environment variable SOFTHSM2_CONF when it
// is initialized, so tests that use a token cannot run in parallel within one
// process.
package softhsmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

// install is what to do on a machine without the tools.
const install = "apt-get install -y softhsm2 opensc"

// modulePaths are where Linux distributions put SoftHSM.
var modulePaths = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",
}

// The PINs of a fresh token, which no text has by chance.
const (
	PIN   = "pin-7w3k9r2m"
	SOPIN = "so-pin-4x8v1q6t"
)

// Module returns the path of the SoftHSM library, and ends the test with the
// command that installs it if there is none.
func Module(t testing.TB) string {
	t.Helper()
	for _, tool := range []string{"softhsm2-util", "pkcs11-tool"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed: run `%s`", tool, install)
		}
	}
	for _, p := range modulePaths {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatalf("the SoftHSM module is not installed: run `%s`", install)
	return ""
}

// Token is a SoftHSM token.
type Token struct {
	Module  string // path of the library
	Label   string // of the token
	PINFile string // holds PIN and a line end, mode 0600
	Conf    string // what SOFTHSM2_CONF has to be
	Dir     string // the token folder

	t testing.TB
}

// New makes a token with the given label, and sets SOFTHSM2_CONF for the rest
// of the test.
func New(t testing.TB, label string) *Token {
	t.Helper()
	k := Prepare(t, label)
	k.Init()
	return k
}

// Prepare is New without the token: there is a configuration and an empty
// token folder. Init makes the token.
func Prepare(t testing.TB, label string) *Token {
	t.Helper()
	base := t.TempDir()
	k := &Token{
		Module: Module(t), Label: label, t: t,
		PINFile: filepath.Join(base, "pin"), Conf: filepath.Join(base, "softhsm2.conf"), Dir: filepath.Join(base, "tokens"),
	}
	if err := os.Mkdir(k.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", k.Dir)
	if err := os.WriteFile(k.Conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	k.SetPIN(PIN)
	t.Setenv("SOFTHSM2_CONF", k.Conf)
	return k
}

// SetPIN writes pin into the PIN file; it does not change the token.
func (k *Token) SetPIN(pin string) {
	k.t.Helper()
	if err := os.WriteFile(k.PINFile, []byte(pin+"\n"), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// Init makes the token in a free slot. It gets a new serial number each time.
func (k *Token) Init() { k.t.Helper(); k.InitAs(k.Label) }

// InitAs makes one more token, with another label and the same PINs.
func (k *Token) InitAs(label string) {
	k.t.Helper()
	k.run("softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SOPIN)
}

// Delete deletes the token and all that is on it.
func (k *Token) Delete() {
	k.t.Helper()
	k.run("softhsm2-util", "--delete-token", "--token", k.Label)
}

// TakeAway makes the token's files unreachable for everybody until the
// returned function is called.
func (k *Token) TakeAway() (bringBack func()) {
	k.t.Helper()
	away := k.Dir + ".away"
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			k.t.Fatal(err)
		}
	}
	move(k.Dir, away)
	if err := os.Mkdir(k.Dir, 0o700); err != nil {
		k.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(k.Dir); err != nil {
			k.t.Fatal(err)
		}
		move(away, k.Dir)
	}
}

// keyTypes are pkcs11-tool's names of key types.
var keyTypes = map[kms.Algorithm]string{
	kms.ES256: "EC:prime256v1", kms.ES384: "EC:secp384r1", kms.ES512: "EC:secp521r1",
	kms.EdDSA: "EC:edwards25519", kms.Ed25519: "EC:edwards25519",
}

// GenerateKey makes a key pair for alg inside the token, RSA with 2048 bits.
// id is CKA_ID in hexadecimal.
func (k *Token) GenerateKey(label, id string, alg kms.Algorithm) {
	k.t.Helper()
	kind := keyTypes[alg]
	if alg.KeyType() == kms.RSA {
		kind = "rsa:2048"
	}
	k.GenerateKeyOfType(label, id, kind)
}

// GenerateKeyOfType is GenerateKey with the key type in pkcs11-tool's words,
// such as "rsa:1024" or "EC:secp256k1".
func (k *Token) GenerateKeyOfType(label, id, kind string) {
	k.t.Helper()
	k.Tool("--keypairgen", "--key-type", kind, "--label", label, "--id", id)
}

// GenerateWrappingKey makes an AES key of 256 bits inside the token, sensitive,
// not extractable, and allowed to encrypt, decrypt, wrap and unwrap. id is
// CKA_ID in hexadecimal.
func (k *Token) GenerateWrappingKey(label, id string) {
	k.t.Helper()
	k.GenerateSecret("AES:32", label, id, "--sensitive", "--usage-decrypt", "--usage-wrap")
}

// GenerateSecret makes a secret key of a type in pkcs11-tool's words, such as
// "AES:16" or "GENERIC:32", with further arguments that set its attributes.
func (k *Token) GenerateSecret(kind, label, id string, attributes ...string) {
	k.t.Helper()
	k.Tool(append([]string{"--keygen", "--key-type", kind, "--label", label, "--id", id}, attributes...)...)
}

// ImportSecret puts an AES key on the token, with further arguments for
// pkcs11-tool that set its attributes.
func (k *Token) ImportSecret(label, id string, key []byte, attributes ...string) {
	k.t.Helper()
	file := filepath.Join(k.t.TempDir(), "secret")
	if err := os.WriteFile(file, key, 0o600); err != nil {
		k.t.Fatal(err)
	}
	kind := fmt.Sprintf("AES:%d", len(key))
	k.Tool(append([]string{"--write-object", file, "--type", "secrkey", "--key-type", kind, "--label", label, "--id", id}, attributes...)...)
}

// NewKey makes a key pair for alg in memory, RSA with 2048 bits, to be given
// to ImportKey as often as wanted.
func NewKey(t testing.TB, alg kms.Algorithm) crypto.Signer {
	t.Helper()
	var k crypto.Signer
	var err error
	switch alg.KeyType() {
	case kms.RSA:
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	case kms.EC:
		k, err = ecdsa.GenerateKey(alg.Curve(), rand.Reader)
	default:
		_, k, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// ImportKey puts a key pair on the token. id is CKA_ID in hexadecimal.
func (k *Token) ImportKey(label, id string, key crypto.Signer) {
	k.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		k.t.Fatal(err)
	}
	file := filepath.Join(k.t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		k.t.Fatal(err)
	}
	k.run("softhsm2-util", "--import", file, "--token", k.Label, "--label", label, "--id", id, "--pin", PIN)
}

// DeleteKey deletes both halves of the key pair with the given label.
func (k *Token) DeleteKey(label string) {
	k.t.Helper()
	k.DeleteObject("privkey", label)
	k.DeleteObject("pubkey", label)
}

// DeleteObject deletes one object: a "privkey", "pubkey", "cert" or "secrkey".
func (k *Token) DeleteObject(kind, label string) {
	k.t.Helper()
	k.Tool("--delete-object", "--type", kind, "--label", label)
}

// Tool runs pkcs11-tool on the token, logged in as the user, and returns what
// it printed.
func (k *Token) Tool(args ...string) string {
	k.t.Helper()
	return k.run("pkcs11-tool", append([]string{"--module", k.Module, "--token-label", k.Label, "--login", "--pin", PIN}, args...)...)
}

// ChangePIN changes the user PIN on the token from PIN to pin; it does not write
// it into the PIN file, and Tool goes on with PIN.
func (k *Token) ChangePIN(pin string) {
	k.t.Helper()
	k.Tool("--change-pin", "--new-pin", pin)
}

// PINCountLow reports that the token remembers a wrong PIN since the last good
// one, as another process sees it.
func (k *Token) PINCountLow() bool {
	k.t.Helper()
	return strings.Contains(k.run("pkcs11-tool", "--module", k.Module, "--list-token-slots"), "user PIN count low")
}

// Serial is the token's serial number.
func (k *Token) Serial() string {
	k.t.Helper()
	out := k.run("softhsm2-util", "--show-slots")
	var serial string
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch strings.TrimSpace(name) {
		case "Serial number":
			serial = strings.TrimSpace(value)
		case "Label":
			if strings.TrimSpace(value) == k.Label {
				return serial
			}
		}
	}
	k.t.Fatalf("no token %q in:\n%s", k.Label, out)
	return ""
}

// Env is the environment that another process needs to see the token.
func (k *Token) Env() []string { return append(os.Environ(), "SOFTHSM2_CONF="+k.Conf) }

func (k *Token) run(name string, args ...string) string {
	k.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = k.Env()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		k.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String()
}
