//go:build cgo

// Package nsstest makes NSS databases for tests: NSS softokn, the module of
// Firefox and of many servers, with a database of the test's own, which is gone
// when the test ends. It is a second vendor's module beside SoftHSM, with
// habits of its own: it takes parameters in pReserved, gives every token the
// same serial number, and has no limit of sessions.
//
// The database is made by NSS's certutil. What certutil cannot do is done by
// way of PKCS#11: keys with labels, and AES keys that are not extractable. A
// process initializes a module once, so that has to be over before the module
// under test is opened in the same process.
package nsstest

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	p11 "github.com/miekg/pkcs11"

	"github.com/bulla-project/bulla/kms"
)

// #include <stdlib.h>
import "C"

// install is what to do on a machine without NSS.
const install = "apt-get install -y libnss3 libnss3-tools"

// modulePaths are where Linux distributions put NSS.
var modulePaths = []string{
	"/usr/lib/x86_64-linux-gnu/libsoftokn3.so",
	"/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
	"/usr/lib/x86_64-linux-gnu/nss/libsoftokn3.so",
	"/usr/lib/aarch64-linux-gnu/nss/libsoftokn3.so",
	"/usr/lib64/libsoftokn3.so",
	"/usr/lib/libsoftokn3.so",
}

const (
	// PIN is the user PIN of a fresh database, which NSS calls its password.
	PIN = "correct-horse-1"
	// Token is the label of the token of every NSS database.
	Token = "NSS Certificate DB"
)

// iterations names the environment variable that bounds how often NSS hashes the
// PIN (PBKDF2) to protect one attribute of a key. It does that again for most
// signatures, ten thousand times by default: with an RSA key, 60 ms of them.
const iterations = "NSS_MAX_MP_PBE_ITERATION_COUNT"

// Module returns the path of NSS softokn, and ends the test with the command
// that installs it if there is none.
func Module(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("certutil"); err != nil {
		t.Fatalf("certutil is not installed: run `%s`", install)
	}
	for _, p := range modulePaths {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatalf("NSS softokn is not installed: run `%s`", install)
	return ""
}

// Database is an NSS database.
type Database struct {
	Module  string // path of the library
	Dir     string // the database's folder
	PINFile string // holds PIN and a line end, mode 0600

	t testing.TB
}

// New makes a database without keys.
func New(t testing.TB) *Database {
	t.Helper()
	base := t.TempDir()
	d := &Database{Module: Module(t), Dir: filepath.Join(base, "db"), PINFile: filepath.Join(base, "pin"), t: t}
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.PINFile, []byte(PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(iterations, "1")
	d.Certutil("-N")
	return d
}

// InitReserved is what C_Initialize needs in pReserved to open the database.
func (d *Database) InitReserved() string {
	return "configDir='sql:" + d.Dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
}

// Certutil runs NSS's certutil on the database and returns what it printed.
func (d *Database) Certutil(command string, args ...string) string {
	d.t.Helper()
	cmd := exec.Command("certutil", append([]string{command, "-d", "sql:" + d.Dir, "-f", d.PINFile}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		d.t.Fatalf("certutil %s: %v\n%s", command, err, out.String())
	}
	return out.String()
}

// curves are the CKA_EC_PARAMS of what NSS signs with.
var curves = map[kms.Algorithm]asn1.ObjectIdentifier{
	kms.ES256: {1, 2, 840, 10045, 3, 1, 7}, kms.ES384: {1, 3, 132, 0, 34}, kms.ES512: {1, 3, 132, 0, 35},
}

// GenerateKey makes a key pair for alg inside the database, sensitive and not
// extractable, RSA with 2048 bits. id is CKA_ID in hexadecimal. NSS has no
// Ed25519.
func (d *Database) GenerateKey(label, id string, alg kms.Algorithm) {
	d.t.Helper()
	mechanism := uint(p11.CKM_RSA_PKCS_KEY_PAIR_GEN)
	public := append(named(label, id), p11.NewAttribute(p11.CKA_VERIFY, true), p11.NewAttribute(p11.CKA_PRIVATE, false))
	if alg.KeyType() == kms.RSA {
		public = append(public, p11.NewAttribute(p11.CKA_MODULUS_BITS, 2048), p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	} else {
		mechanism = p11.CKM_EC_KEY_PAIR_GEN
		params, err := asn1.Marshal(curves[alg])
		if err != nil {
			d.t.Fatalf("nsstest: no key for %s: %v", alg, err)
		}
		public = append(public, p11.NewAttribute(p11.CKA_EC_PARAMS, params))
	}
	private := append(named(label, id), secret(true, false)...)
	private = append(private, p11.NewAttribute(p11.CKA_SIGN, true))
	d.use(func(c *p11.Ctx, s p11.SessionHandle) error {
		_, _, err := c.GenerateKeyPair(s, []*p11.Mechanism{p11.NewMechanism(mechanism, nil)}, public, private)
		return err
	})
}

// GenerateSecret makes an AES key of the given length inside the database. id
// is CKA_ID in hexadecimal. If useful is set it may encrypt, decrypt, wrap and
// unwrap.
func (d *Database) GenerateSecret(label, id string, bytes int, sensitive, extractable, useful bool) {
	d.t.Helper()
	template := append(named(label, id), secret(sensitive, extractable)...)
	template = append(template, p11.NewAttribute(p11.CKA_VALUE_LEN, bytes),
		p11.NewAttribute(p11.CKA_ENCRYPT, useful), p11.NewAttribute(p11.CKA_DECRYPT, useful),
		p11.NewAttribute(p11.CKA_WRAP, useful), p11.NewAttribute(p11.CKA_UNWRAP, useful))
	d.use(func(c *p11.Ctx, s p11.SessionHandle) error {
		_, err := c.GenerateKey(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)}, template)
		return err
	})
}

// GenerateWrappingKey makes an AES key of 256 bits inside the database,
// sensitive, not extractable, and allowed to encrypt, decrypt, wrap and unwrap.
func (d *Database) GenerateWrappingKey(label, id string) {
	d.t.Helper()
	d.GenerateSecret(label, id, 32, true, false, true)
}

// named are the attributes by which an object is found.
func named(label, id string) []*p11.Attribute {
	raw, err := hex.DecodeString(id)
	if err != nil {
		panic(fmt.Sprintf("nsstest: id %q is not hexadecimal", id))
	}
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_TOKEN, true), p11.NewAttribute(p11.CKA_LABEL, label), p11.NewAttribute(p11.CKA_ID, raw),
	}
}

// secret are the attributes that protect an object.
func secret(sensitive, extractable bool) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_PRIVATE, true), p11.NewAttribute(p11.CKA_SENSITIVE, sensitive), p11.NewAttribute(p11.CKA_EXTRACTABLE, extractable),
	}
}

// use runs do on the database, logged in. The module must not be in use.
func (d *Database) use(do func(*p11.Ctx, p11.SessionHandle) error) {
	d.t.Helper()
	c := p11.New(d.Module)
	if c == nil {
		d.t.Fatalf("%s cannot be loaded", d.Module)
	}
	text := C.CString(d.InitReserved())
	defer C.free(unsafe.Pointer(text)) // NSS parses it into copies of its own
	step := func(what string, err error) {
		d.t.Helper()
		if err != nil {
			d.t.Fatalf("NSS: %s: %v", what, err)
		}
	}
	step("initialize (is the module in use in this process?)", c.Initialize(p11.InitializeWithReserved(unsafe.Pointer(text))))
	defer func() { step("finalize", c.Finalize()) }()
	slots, err := c.GetSlotList(true)
	step("list the slots", err)
	for _, slot := range slots {
		info, err := c.GetTokenInfo(slot)
		step("look at a token", err)
		if info.Label != Token {
			continue
		}
		s, err := c.OpenSession(slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
		step("open a session", err)
		step("log in", c.Login(s, p11.CKU_USER, PIN))
		step("make a key", do(c, s))
		return
	}
	d.t.Fatalf("NSS has no token %q", Token)
}
