//go:build cgo

package pkcs11

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/nsstest"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// symlink makes a symbolic link to the module at path.
func symlink(t testing.TB, path string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "module.so")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestOneModuleIsInitializedInOneWay(t *testing.T) {
	one, two := nsstest.New(t), nsstest.New(t)
	one.GenerateKey("first", "01", kms.ES256)
	two.GenerateKey("second", "02", kms.ES256)
	modules := NewModules()
	first, second := nssConfig(one), nssConfig(two)
	first.Modules, second.Modules = modules, modules

	b, err := New(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	refused := func(what string, cfg Config) {
		t.Helper()
		if b, err := New(t.Context(), cfg); err == nil {
			b.Close()
			t.Errorf("%s: no error", what)
		} else if !strings.Contains(err.Error(), "init_reserved") {
			t.Errorf("%s: %v, want one about init_reserved", what, err)
		}
	}
	refused("another database", second)
	empty := second
	empty.InitReserved = ""
	refused("none", empty)
	linked := second
	linked.Module = symlink(t, second.Module)
	refused("another path of the same module", linked)

	// Whoever is alone decides.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b, err = New(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.OpenKey(t.Context(), "object=first", kms.ES256); !errors.Is(err, kms.ErrKeyNotFound) {
		t.Errorf("a key of the database before: %v, want %v", err, kms.ErrKeyNotFound)
	}
	if k, err := b.OpenKey(t.Context(), "object=second", kms.ES256); err != nil {
		t.Error(err)
	} else if err := signs(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// A path that leads nowhere when the backends are opened may turn out to lead
// to the module of another.
func TestOneModuleIsInitializedInOneWayAlsoWhenFoundLater(t *testing.T) {
	db := nsstest.New(t)
	modules := NewModules()
	cfg := nssConfig(db)
	cfg.Modules = modules
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	later := cfg
	later.Module = filepath.Join(t.TempDir(), "module.so")
	later.InitReserved += "readOnly"
	b2, err := New(t.Context(), later)
	if err != nil {
		t.Fatal(err)
	}
	defer b2.Close()
	if err := os.Symlink(db.Module, later.Module); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second backend's reason", func() error {
		if err := b2.Check(t.Context()); !errors.Is(err, kms.ErrUnavailable) || !errors.Is(err, errReserved) {
			return fmt.Errorf("%w, want one about init_reserved", err)
		}
		return nil
	})
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("the first backend: %v", err)
	}
}

func TestModuleThatRefusesItsParametersSaysWhatToEdit(t *testing.T) {
	db := nsstest.New(t)
	hsm := softhsmtest.New(t, "reserved")
	none := nssConfig(db)
	none.InitReserved = ""
	wrong := nssConfig(db)
	wrong.InitReserved = "configDir='sql:" + filepath.Join(db.Dir, "nowhere") + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags=readOnly"
	unwanted := config(hsm)
	unwanted.InitReserved = "configDir='x'"
	for name, tt := range map[string]struct {
		cfg  Config
		step string
		want string
	}{
		"NSSWithout":       {none, StepModule, "needs init_reserved"},
		"NSSOfNoDatabase":  {wrong, StepModule, "see that init_reserved is right"},
		"SoftHSMWantsNone": {unwanted, StepModule, "most modules want it empty"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := New(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for _, s := range b.Diagnose(t.Context(), nil) {
				if s.Outcome == Failed && (s.Name != tt.step || !strings.Contains(s.Advice, tt.want)) {
					t.Errorf("%s failed: %s; advice %q, want step %s and %q", s.Name, s.Detail, s.Advice, tt.step, tt.want)
				} else if s.Name == tt.step && s.Outcome != Failed {
					t.Errorf("%s: %s", s.Name, s.Outcome)
				}
			}
		})
	}
}

func TestNULInParametersIsRefused(t *testing.T) {
	_, err := New(t.Context(), Config{Module: "/m.so", Token: "t", PINFile: "pin", InitReserved: "a\x00b", RetryAfter: time.Second})
	if err == nil || !strings.Contains(err.Error(), "init_reserved has a NUL byte") {
		t.Errorf("got %v", err)
	}
}

func TestDatabaseIsOpenedAgainAfterItsPasswordWasPutRight(t *testing.T) {
	db := nsstest.New(t)
	db.GenerateKey("key", "01", kms.ES256)
	lib := &meddler{}
	if err := os.WriteFile(db.PINFile, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := opener(nssConfig(db), lib)(t)
	defer b.Close()
	for range 5 {
		if err := b.Check(t.Context()); !errors.Is(err, kms.ErrUnavailable) {
			t.Fatalf("Check with a wrong PIN: %v", err)
		}
		time.Sleep(25 * time.Millisecond) // until the next attempt is due
	}
	if n := lib.logins.Load(); n != 1 {
		t.Errorf("%d logins with a wrong PIN, want 1", n)
	}
	if err := os.WriteFile(db.PINFile, []byte(nsstest.PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the right PIN", func() error { return b.Check(t.Context()) })
}
