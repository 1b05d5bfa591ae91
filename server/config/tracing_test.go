package config

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestCollectorsCAIsLookedFor(t *testing.T) {
	c, dir := provisioned(t)
	c.Tracing.CAFile = filepath.Join(dir, "collector-ca.crt")
	problems, _ := c.CheckFiles()
	if got, want := problems.Error(), "tracing.ca_file: "+c.Tracing.CAFile+" does not exist"; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestKindsOfBackends(t *testing.T) {
	for want, b := range map[string]Backend{"pkcs11": {PKCS11: &PKCS11{}}, "awskms": {AWSKMS: &AWSKMS{}}, "local": {Local: &Local{}}} {
		if got := b.Kind(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
