//go:build cgo

package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
	"github.com/bulla-project/bulla/server/config"
)

// newTokenSite is a set-up with a SoftHSM token, all good. The token's keys
// are called ec and rsa.
func newTokenSite(t *testing.T, token *softhsmtest.Token) *site {
	t.Helper()
	s := newSite(t)
	s.hsm(token.Module, token.Label, token.PINFile)
	s.Keys = `{algorithm: ES256, keys: ["hsm:object=ec"]}, {algorithm: RS256, keys: ["pkcs11:object=rsa"]}`
	s.Wrapping = `{backend: hsm, key: "object=wrap"}`
	return s
}

func (s *site) hsm(module, token, pinFile string) {
	s.Backends = fmt.Sprintf("hsm: {pkcs11: {module: %q, token: %q, pin_file: %s}}", module, token, pinFile)
}

func newToken(t *testing.T) *softhsmtest.Token {
	t.Helper()
	token := softhsmtest.New(t, "bulla")
	token.GenerateKey("ec", "01", kms.ES256)
	token.GenerateKey("rsa", "02", kms.RS256)
	token.GenerateWrappingKey("wrap", "03")
	return token
}

func TestDoctorOnAToken(t *testing.T) {
	token := newToken(t)
	token.GenerateSecret("AES:32", "clear", "11", "--extractable", "--usage-decrypt", "--usage-wrap")
	token.GenerateSecret("AES:32", "taken", "12", "--sensitive", "--extractable", "--usage-decrypt", "--usage-wrap")
	token.GenerateKey("ec-2", "14", kms.ES256)
	token.GenerateKey("rsa-2", "15", kms.RS256)
	notLooked := "warn key hsm:object=ec, pkcs11:object=rsa, hsm:object=wrap not looked at"
	tests := map[string]struct {
		spoil func(t *testing.T, s *site)
		want  []string
	}{
		"all good": {
			func(*testing.T, *site) {},
			[]string{
				"ok config 1 issuer, 1 backend, 2 grants", "ok files", "ok tls", "ok module SoftHSM", `ok token "bulla"`, "ok login",
				"ok key hsm:object=ec", "ok mechanism CKM_ECDSA", "ok probe ES256",
				"ok key pkcs11:object=rsa", "ok mechanism CKM_RSA_PKCS", "ok probe RS256",
				"ok wrapping hsm:object=wrap: AES key of 256 bits", "ok mechanism hsm:object=wrap: CKM_AES_GCM", "ok probe hsm:object=wrap: a random data key was wrapped and unwrapped",
				"ok store", "ok audit", "ok fetch", "ok grants", "3 listener free",
			},
		},
		"missing module": {
			func(_ *testing.T, s *site) { s.hsm("/nowhere/softhsm2.so", token.Label, token.PINFile) },
			[]string{"FAIL file pkcs11.module", "FAIL module there is no module at /nowhere/softhsm2.so", notLooked},
		},
		"a module that is none": {
			func(_ *testing.T, s *site) {
				s.write("module.so", []byte("no library"))
				s.hsm(s.path("module.so"), token.Label, token.PINFile)
			},
			[]string{"FAIL module cannot be loaded", notLooked},
		},
		"missing token": {
			func(_ *testing.T, s *site) { s.hsm(token.Module, "other", token.PINFile) },
			[]string{"ok module", `FAIL token has no token "other": it has "bulla"`, `FAIL token softhsm2-util --init-token --free --label "other"`, notLooked},
		},
		"missing PIN file": {
			func(_ *testing.T, s *site) { s.hsm(token.Module, token.Label, "nothing") },
			[]string{"FAIL file pin_file", "ok token", "FAIL login PIN cannot be read", notLooked},
		},
		"PIN file that others can read": {
			func(t *testing.T, s *site) {
				s.write("pin", []byte(softhsmtest.PIN))
				chmod(t, s.path("pin"), 0o644)
				s.hsm(token.Module, token.Label, "pin")
			},
			[]string{"warn file pin_file", "warn login chmod 600", "2 probe verifies"},
		},
		"missing key": {
			func(_ *testing.T, s *site) { s.Keys = `{algorithm: ES256, keys: ["hsm:object=nobody"]}` },
			[]string{"ok login", "FAIL key hsm:object=nobody"},
		},
		"key of another type": {
			func(_ *testing.T, s *site) { s.Keys = `{algorithm: RS256, keys: ["hsm:object=ec"]}` },
			[]string{"ok login", "FAIL key hsm:object=ec"},
		},
		"key on another curve": {
			func(_ *testing.T, s *site) { s.Keys = `{algorithm: ES384, keys: ["hsm:object=ec"]}` },
			[]string{"ok key", "FAIL probe ES384 needs curve P-384", "FAIL probe an algorithm that fits the key"},
		},
		"one key pair in two places": {
			func(_ *testing.T, s *site) { s.Keys = `{algorithm: ES256, keys: ["hsm:object=ec", "hsm:id=%01"]}` },
			[]string{"2 probe ES256", "ok locations 2 of 2 hold the same key pair"},
		},
		"two key pairs for one": {
			func(_ *testing.T, s *site) {
				s.key("keys.json", kms.ES256, "ec")
				s.More = "development: true"
				s.Backends += "\n  dev: {local: {path: keys.json}}"
				s.Keys = `{algorithm: ES256, keys: ["hsm:object=ec", "dev:kid=ec"]}`
			},
			[]string{developing, "2 probe ES256", "FAIL locations hsm:object=ec and dev:kid=ec hold different key pairs"},
		},
		"missing wrapping key": {
			func(_ *testing.T, s *site) { s.Wrapping = `{backend: hsm, key: "object=nobody"}` },
			[]string{
				"2 probe verifies", `FAIL wrapping hsm:object=nobody: key not found: token "bulla" has no AES key`,
				"FAIL wrapping correct wrapping.key, or make the key: pkcs11-tool --module " + token.Module + " --token-label bulla --login --keygen --key-type AES:32 --sensitive --usage-decrypt --usage-wrap --label nobody --id 01",
			},
		},
		"wrapping key that everybody can read": {
			func(_ *testing.T, s *site) { s.Wrapping = `{backend: hsm, key: "object=clear"}` },
			[]string{"2 probe verifies", "FAIL wrapping in the clear", "FAIL wrapping make one for it and name that in wrapping.key: pkcs11-tool"},
		},
		"wrapping key that may be taken away": {
			func(_ *testing.T, s *site) { s.Wrapping = `{backend: hsm, key: "object=taken"}` },
			[]string{"warn wrapping CKA_EXTRACTABLE", "3 probe"},
		},
		"wrapping key of another type": {
			func(_ *testing.T, s *site) { s.Wrapping = `{backend: hsm, key: "object=ec-2"}` },
			[]string{"2 probe verifies", "FAIL wrapping AES key, or an RSA private key", "FAIL wrapping pkcs11-tool"},
		},
		"RSA key that wraps": {
			func(_ *testing.T, s *site) { s.Wrapping = `{backend: hsm, key: "object=rsa-2"}` },
			[]string{"ok wrapping hsm:object=rsa-2: RSA", "ok probe hsm:object=rsa-2: a random data key"},
		},
		"former wrapping keys": {
			func(_ *testing.T, s *site) {
				s.Wrapping = `{backend: hsm, key: "object=wrap", former: ["hsm:object=rsa-2", "hsm:object=gone"]}`
			},
			[]string{"ok probe hsm:object=wrap", "ok probe hsm:object=rsa-2", "FAIL wrapping hsm:object=gone", "FAIL wrapping a new key does not help"},
		},
		"address of another machine": {
			func(_ *testing.T, s *site) { s.GRPC = "192.0.2.1:8443" },
			[]string{"FAIL listener grpc.listen 192.0.2.1:8443: no interface"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newTokenSite(t, token)
			test.spoil(t, s)
			d := s.doctor()
			d.wants(test.want...)
			d.keepsSecrets(softhsmtest.PIN)
		})
	}
}

func (d *diagnosis) keepsSecrets(pin string) {
	d.t.Helper()
	if strings.Contains(d.text, pin) || strings.Contains(d.text, "PRIVATE KEY-----") {
		d.t.Errorf("a secret is in the output:\n%s", d.text)
	}
}

// shim stands before SoftHSM: it writes a byte to the file SHIM_LOGINS at each
// C_Login, and hangs in what SHIM_HANG names.
const shim = `
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define CK_PTR *
#define CK_DEFINE_FUNCTION(r, n) r n
#define CK_DECLARE_FUNCTION(r, n) r n
#define CK_DECLARE_FUNCTION_POINTER(r, n) r (* n)
#define CK_CALLBACK_FUNCTION(r, n) r (* n)
#define NULL_PTR 0
#include "pkcs11.h"

static CK_FUNCTION_LIST mine;
static CK_FUNCTION_LIST_PTR real;

static void hang(const char *in) {
	const char *where = getenv("SHIM_HANG");
	if (where && !strcmp(where, in)) for (;;) pause();
}

static CK_RV login(CK_SESSION_HANDLE s, CK_USER_TYPE u, CK_UTF8CHAR_PTR pin, CK_ULONG n) {
	const char *file = getenv("SHIM_LOGINS");
	if (file) {
		FILE *f = fopen(file, "a");
		fputc('x', f);
		fclose(f);
	}
	hang("C_Login");
	return real->C_Login(s, u, pin, n);
}

static CK_RV sign(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR m) {
	hang("C_Sign");
	return real->C_Sign(s, in, n, out, m);
}

static CK_RV encrypt(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR m) {
	hang("C_Encrypt");
	return real->C_Encrypt(s, in, n, out, m);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	hang("C_GetFunctionList");
	void *lib = dlopen(SOFTHSM, RTLD_NOW);
	CK_C_GetFunctionList get = (CK_C_GetFunctionList)dlsym(lib, "C_GetFunctionList");
	CK_RV rv = get(&real);
	if (rv != CKR_OK) return rv;
	mine = *real;
	mine.C_Login = login;
	mine.C_Sign = sign;
	mine.C_Encrypt = encrypt;
	*list = &mine;
	return CKR_OK;
}
`

// buildShim compiles the shim and returns its path.
func buildShim(t *testing.T, token *softhsmtest.Token) string {
	t.Helper()
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	module := filepath.Join(t.TempDir(), "shim.so")
	cmd := exec.Command("cc", "-shared", "-fPIC", "-x", "c", "-", "-o", module, "-ldl",
		"-I", string(bytes.TrimSpace(headers)), fmt.Sprintf("-DSOFTHSM=%q", token.Module))
	cmd.Stdin = strings.NewReader(shim)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	return module
}

func TestDoctorSendsAWrongPINOnce(t *testing.T) {
	token := newToken(t)
	s := newTokenSite(t, token)
	logins := s.path("logins")
	t.Setenv("SHIM_LOGINS", logins)
	module := buildShim(t, token)
	// The token does not mind a wrong PIN by itself: what keeps the doctor from
	// more is its own memory, and the record that it leaves for the next process.
	const wrong = "wrong-pin-7"
	s.write("pin", []byte(wrong+"\n"))
	s.hsm(module, token.Label, "pin, insist_on_login: true")
	s.Keys = `{algorithm: ES256, keys: ["hsm:object=ec"]}, {algorithm: RS256, keys: ["hsm:object=rsa"]}`
	d := s.doctor()
	d.wants("ok token", `FAIL login hsm: token "bulla" refused the PIN in `, `FAIL login write the right PIN`,
		"warn key hsm:object=ec, hsm:object=rsa, hsm:object=wrap not looked at")
	d.keepsSecrets(wrong)
	wantLogins(t, logins, 1)

	d = s.doctor()
	d.wants("ok token", `FAIL login hsm: the PIN in `, `FAIL login was refused by token "bulla" on `,
		"warn key hsm:object=ec, hsm:object=rsa, hsm:object=wrap not looked at")
	d.keepsSecrets(wrong)
	wantLogins(t, logins, 1)

	// A second backend on the token is no reason for a second try.
	s.Backends += strings.Replace("\n  "+s.Backends, "hsm:", "twin:", 1)
	s.Keys = `{algorithm: ES256, keys: ["hsm:object=ec"]}, {algorithm: RS256, keys: ["hsm:object=rsa", "twin:object=rsa"]}`
	d = s.doctor()
	d.wants("FAIL login hsm: ", "FAIL login twin: ",
		"warn key hsm:object=ec, hsm:object=rsa, hsm:object=wrap not looked at", "warn key twin:object=rsa", "warn locations 0 of 2")
	d.keepsSecrets(wrong)
	wantLogins(t, logins, 1)

	// Without the record the token knows, and now nobody insists.
	if err := os.Remove(s.path("pkcs11-refused.json")); err != nil {
		t.Error(err)
	}
	s.Backends = strings.ReplaceAll(s.Backends, ", insist_on_login: true", "")
	d = s.doctor()
	d.wants("FAIL login hsm", "FAIL login twin", "FAIL login USER_PIN_COUNT_LOW",
		"warn key hsm:object=ec", "warn key twin:object=rsa", "warn locations 0 of 2")
	wantLogins(t, logins, 1)
}

func TestDoctorSendsAWrongPINOnceToATokenWithTwoNames(t *testing.T) {
	token := newToken(t)
	s := newTokenSite(t, token)
	logins := s.path("logins")
	t.Setenv("SHIM_LOGINS", logins)
	module := buildShim(t, token)
	s.write("pin", []byte("wrong-pin-7\n"))
	s.Backends = fmt.Sprintf(`hsm: {pkcs11: {module: %q, token: %q, pin_file: pin, insist_on_login: true}}
  twin: {pkcs11: {module: %q, serial: %q, pin_file: pin, insist_on_login: true}}`, module, token.Label, module, token.Serial())
	s.Keys = `{algorithm: ES256, keys: ["hsm:object=ec", "twin:object=ec"]}`
	d := s.doctor()
	if d.code != 1 || count(d.all, failed) != 2 || !strings.Contains(d.text, "names it differently") {
		t.Errorf("got exit code %d and\n%s\nwant one refused login and one backend too many", d.code, d.text)
	}
	wantLogins(t, logins, 1)
}

func wantLogins(t *testing.T, file string, want int) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) != want {
		t.Errorf("got %d logins, want %d", len(data), want)
	}
}

func TestDoctorSaysAtWhichStepAModuleHangs(t *testing.T) {
	token := newToken(t)
	module := buildShim(t, token)
	var wg sync.WaitGroup
	for in, want := range map[string][]string{
		"C_GetFunctionList": {"FAIL module hsm: no answer within", "warn key hsm:object=ec, pkcs11:object=rsa, hsm:object=wrap not looked at"},
		"C_Login":           {"FAIL login hsm: no answer within", "warn key hsm:object=ec, pkcs11:object=rsa, hsm:object=wrap not looked at"},
		"C_Sign":            {"ok login", "ok key hsm:object=ec", "ok mechanism", "FAIL probe hsm:object=ec: no answer within", "warn key pkcs11:object=rsa, hsm:object=wrap not looked at"},
		"C_Encrypt":         {"2 probe verifies", "ok wrapping hsm:object=wrap", "FAIL probe hsm:object=wrap: no answer within"},
	} {
		// Side by side: their time is spent waiting. Each at a site of its own, as
		// at one they would wait for the login that hangs.
		s := newTokenSite(t, token)
		s.hsm(module, token.Label, token.PINFile)
		file := s.config()
		wg.Go(func() {
			const timeout = 8 * time.Second
			start := time.Now()
			d := runDoctorWith(t, []string{"SHIM_HANG=" + in}, file, "-o", "json", "--timeout", timeout.String())
			if took := time.Since(start); took > timeout+2*time.Second {
				t.Errorf("%s: got an end after %v, want it within %v", in, took, timeout)
			}
			d.wants(append(want, "ok store", "3 listener free")...)
		})
	}
	wg.Wait()
}

func TestDoctorDoesNotDisturbARunningServiceOnItsToken(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("while it signs", func(t *testing.T) { // the service ends with it
		token := newToken(t)
		s := newTokenSite(t, token)
		serveSite(t, s)
		before := metrics(t, s)
		s.doctor().wants(append(beside, "ok login", "2 probe verifies")...)
		if after := metrics(t, s); after != before {
			t.Errorf("the service counts %q, and %q after the doctor", before, after)
		}
		if n := findService(t.Context(), config.Ops{Listen: s.Ops}); n.trouble != "" {
			t.Errorf("the service is not ready after the doctor: %s", n.trouble)
		}
	})
}

// metrics are the service's counts of what the doctor could disturb.
func metrics(t *testing.T, s *site) string {
	t.Helper()
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + s.Ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		for _, name := range []string{"bulla_pkcs11_up", "bulla_pkcs11_logins_total", "bulla_pkcs11_renewals_total", "bulla_pkcs11_restarts_total", "bulla_issuer_signs", "bulla_audit_failures_total"} {
			if strings.HasPrefix(line, name) {
				lines = append(lines, line)
			}
		}
	}
	if len(lines) != 6 {
		t.Fatalf("got the metrics %q, want six", lines)
	}
	return strings.Join(lines, "")
}
