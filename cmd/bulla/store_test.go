package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/store/bolt"
)

func TestAConnectionStringIsOneLineOfItsFile(t *testing.T) {
	dir := t.TempDir()
	const dsn = "host=/run/postgresql user=bulla password='a b'"
	for content, want := range map[string]string{
		dsn: dsn, dsn + "\n": dsn, dsn + "\r\n": dsn, " " + dsn: " " + dsn,
		"": "", "\n": "", dsn + "\n\n": "", dsn + "\n" + dsn: "", "host=\x00": "", strings.Repeat("x", maxDSN+1): "",
		strings.Repeat("x", maxDSN): strings.Repeat("x", maxDSN),
	} {
		path := filepath.Join(dir, "dsn")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readDSN(path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.60q: got %.60q, %v", content, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "password") {
			t.Errorf("%.60q: the error shows what is in the file: %v", content, err)
		}
	}
	if _, err := readDSN(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: got %v", err)
	}
}

// Who starts a second replica on a file hears what to do in its place.
func TestASecondProcessOnAFileIsToldOfPostgres(t *testing.T) {
	cfg := &config.Config{Store: config.Store{Bolt: config.Bolt{Path: filepath.Join(t.TempDir(), "bulla.db")}}}
	use := storeUse{keys: datakeytest.Config(datakeytest.NewWrapper()), existing: true}
	if _, err := openStore(t.Context(), cfg, use); err == nil || !strings.Contains(err.Error(), "there is no store at "+cfg.Store.Bolt.Path) {
		t.Errorf("a file that is not there: got %v", err)
	}
	use.existing = false
	first, err := openStore(t.Context(), cfg, use)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if first.shared || first.database != nil {
		t.Error("a file is said to be shared")
	}
	if _, err := openStore(t.Context(), cfg, use); !errors.Is(err, bolt.ErrInUse) || !strings.Contains(err.Error(), "store.postgres") {
		t.Errorf("a second process: got %v", err)
	}
}
