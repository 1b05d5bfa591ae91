package config

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// provisioned loads the minimal configuration from a folder in which all its
// files are there.
func provisioned(t *testing.T) (c *Config, dir string) {
	t.Helper()
	dir = t.TempDir()
	data, err := os.ReadFile("testdata/good/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	data = []byte(strings.ReplaceAll(string(data), "/usr/lib/softhsm/libsofthsm2.so", "module.so"))
	for _, name := range []string{"server.crt", "server.key", "callers-ca.crt", "pin", "module.so"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err = Parse(filepath.Join(dir, "bulla.yaml"), data)
	if err != nil {
		t.Fatal(err)
	}
	return c, dir
}

func TestCheckFilesIsContentAndLeavesNothingBehind(t *testing.T) {
	c, dir := provisioned(t)
	problems, warnings := c.CheckFiles()
	if len(problems) != 0 || len(warnings) != 0 {
		t.Errorf("got problems %v, warnings %v; want none", problems, warnings)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 5 {
		t.Errorf("after the check the folder holds %v, want the 5 files", entries)
	}
}

func TestCheckFilesNamesLineAndCure(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(dir string) error
		want   string // after the folder is taken out
	}{
		{"missing", func(dir string) error { return os.Remove(filepath.Join(dir, "pin")) },
			"bulla.yaml:3: backends.hsm.pkcs11.pin_file: pin does not exist: create it, or correct the path"},
		{"empty", func(dir string) error { return os.Truncate(filepath.Join(dir, "pin"), 0) },
			"bulla.yaml:3: backends.hsm.pkcs11.pin_file: pin is empty: write it"},
		{"folder for a file", func(dir string) error {
			_ = os.Remove(filepath.Join(dir, "server.crt"))
			return os.Mkdir(filepath.Join(dir, "server.crt"), 0o700)
		}, "bulla.yaml:1: grpc.tls.cert_file: server.crt is no regular file: name a file"},
		{"folder for the store", func(dir string) error { return os.Mkdir(filepath.Join(dir, "bulla.db"), 0o700) },
			"bulla.yaml:1: store.bolt.path: bulla.db is no regular file: name a file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, dir := provisioned(t)
			if err := tc.change(dir); err != nil {
				t.Fatal(err)
			}
			problems, _ := c.CheckFiles()
			if got := strings.ReplaceAll(problems.Error(), dir+"/", ""); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestCheckFilesMissesFolders(t *testing.T) {
	c, dir := provisioned(t)
	c.Audit.Path = filepath.Join(dir, "missing", "audit.log")
	problems, _ := c.CheckFiles()
	if len(problems) != 1 || !strings.Contains(problems.Error(), "missing does not exist") {
		t.Errorf("got %v, want one problem about the folder", problems)
	}
}

func TestCheckFilesWarnsOfSecretsThatAllCanRead(t *testing.T) {
	c, dir := provisioned(t)
	for name, mode := range map[string]os.FileMode{"pin": 0o644, "server.key": 0o640, "server.crt": 0o644} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	problems, warnings := c.CheckFiles()
	if len(problems) != 0 || len(warnings) != 1 || warnings[0].Path != "backends.hsm.pkcs11.pin_file" {
		t.Errorf("got problems %v, warnings %v; want one warning about the PIN", problems, warnings)
	}
}

// withPostgres changes a provisioned configuration to a fleet's.
func withPostgres(t *testing.T, more string) (c *Config, dir string) {
	t.Helper()
	_, dir = provisioned(t)
	data := strings.ReplaceAll(minimal(t), "/usr/lib/softhsm/libsofthsm2.so", "module.so") + "\n" + more
	c, err := Parse(filepath.Join(dir, "bulla.yaml"), []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dsn", "listen-dsn"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("host=/nowhere password=hunter2"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c, dir
}

func TestCheckFilesTreatsConnectionStringsAsSecrets(t *testing.T) {
	c, dir := withPostgres(t, "store: {postgres: {dsn_file: dsn, listen_dsn_file: listen-dsn}}")
	if problems, warnings := c.CheckFiles(); len(problems)+len(warnings) != 0 {
		t.Errorf("got problems %v, warnings %v; want none", problems, warnings)
	}
	for _, name := range []string{"dsn", "listen-dsn"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	problems, warnings := c.CheckFiles()
	if len(problems) != 0 || len(warnings) != 2 || warnings[0].Path != "store.postgres.dsn_file" || warnings[1].Path != "store.postgres.listen_dsn_file" {
		t.Errorf("got problems %v, warnings %v; want warnings of both files", problems, warnings)
	}
	if strings.Contains(warnings.Error(), "hunter2") {
		t.Errorf("a warning has a password: %v", warnings)
	}
	for _, name := range []string{"dsn", "listen-dsn"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if problems, _ := c.CheckFiles(); len(problems) != 2 || !strings.Contains(problems.Error(), "store.postgres.dsn_file: "+dir+"/dsn does not exist") {
		t.Errorf("got %v, want problems about both files", problems)
	}
	if _, err := os.Stat(filepath.Join(dir, "bulla.db")); !os.IsNotExist(err) {
		t.Errorf("a file of a store that is not used was made: %v", err)
	}
}

// A folder that was named has to be right; one that was not is only warned of,
// and only where something would be remembered in it.
func TestCheckFilesTriesTheStateFolder(t *testing.T) {
	c, _ := withPostgres(t, "store: {postgres: {dsn_file: dsn}}\nstate_dir: missing")
	if problems, warnings := c.CheckFiles(); len(problems) != 1 || len(warnings) != 0 || problems[0].Path != "state_dir" || problems[0].Line == 0 {
		t.Errorf("got problems %v, warnings %v; want a problem with state_dir", problems, warnings)
	}
	c, dir := withPostgres(t, "store: {postgres: {dsn_file: dsn}}")
	c.StateDir = filepath.Join(dir, "missing")
	problems, warnings := c.CheckFiles()
	if len(problems) != 0 || len(warnings) != 1 || warnings[0].Path != "state_dir" || !strings.Contains(warnings.Error(), "which PINs a token refused would be forgotten") {
		t.Errorf("got problems %v, warnings %v; want a warning of state_dir", problems, warnings)
	}
	c.Backends = map[string]Backend{"aws": {AWSKMS: &AWSKMS{Region: "eu-west-1"}}}
	if problems, warnings := c.CheckFiles(); len(problems)+len(warnings) != 0 {
		t.Errorf("without a token: got problems %v, warnings %v; want none", problems, warnings)
	}
}

func TestCheckFilesSeesWhatThisUserMayNot(t *testing.T) {
	if os.Geteuid() == 0 {
		asNobody(t) // root may read and write everything
		return
	}
	c, dir := provisioned(t)
	if err := os.WriteFile(c.Audit.Path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "pin"), 0o200); err != nil {
		t.Fatal(err)
	}
	problems, _ := c.CheckFiles()
	if len(problems) != 2 || !strings.Contains(problems.Error(), "pin cannot be read") || !strings.Contains(problems.Error(), "audit.log cannot be written") {
		t.Errorf("got %v, want problems about the PIN and the audit log", problems)
	}
}

// asNobody runs the test once more as a user without rights, in a folder that
// such a user can reach.
func asNobody(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulla-config-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	sample, err := os.ReadFile("testdata/good/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{"test": program, "testdata/good/minimal.yaml": sample} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"TMPDIR=" + os.TempDir()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as another user: %v\n%s", err, out)
	}
}
