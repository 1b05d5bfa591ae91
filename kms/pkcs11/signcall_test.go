//go:build cgo && unix

package pkcs11

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// answers loads testdata/answers.c.
func answers(t *testing.T) cryptoki {
	t.Helper()
	path := filepath.Join(t.TempDir(), "answers.so")
	if out, err := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-o", path, "testdata/answers.c").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	lib, err := loadModule(path)
	if err != nil {
		t.Fatal(err)
	}
	return lib
}

func TestOneCallSignsAsBothWould(t *testing.T) {
	lib := answers(t)
	ecdsa, pss := mechanismOf(kms.ES256), mechanismOf(kms.PS384)
	for _, tt := range []struct {
		name     string
		session  uint
		m        mechanism
		function string
		code     ckr
	}{
		{"InitFails", 1, ecdsa, "C_SignInit", 0x60},
		{"SignFails", 2, ecdsa, "C_Sign", 0x30},
		{"TooLong", 3, ecdsa, "C_Sign", 0x150},
		{"TooLongAndOK", 4, ecdsa, "C_Sign", 0x150},
		{"TooLongRSAAndOK", 4, pss, "C_Sign", 0x150},
	} {
		t.Run(tt.name, func(t *testing.T) {
			signature, err := lib.sign(tt.session, 9, tt.m, []byte("input"))
			var c *callError
			if !errors.As(err, &c) || c.function != tt.function || c.code != tt.code || signature != nil {
				t.Errorf("got %x, %v; want %s: %v", signature, err, tt.function, tt.code)
			}
		})
	}

	// The mechanism and its parameters arrive, and what is to be signed.
	for _, tt := range []struct {
		m    mechanism
		want []uint
	}{
		{ecdsa, []uint{ckmECDSA, 0, 0, 0, 0, 3, 'c'}},
		{pss, []uint{ckmRSAPKCSPSS, 24, 0x260, 3, 48, 3, 'c'}},
	} {
		signature, err := lib.sign(7, 9, tt.m, []byte("abc"))
		if err != nil {
			t.Fatal(err)
		}
		var got []uint
		for part := range slices.Chunk(signature, 8) {
			got = append(got, ulong(part))
		}
		if tt.m.kind == ckmECDSA {
			copy(got[2:5], []uint{0, 0, 0})
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v: the module was asked for %v, want %v", tt.m, got, tt.want)
		}
	}
	if signature, err := lib.sign(5, 9, mechanismOf(kms.EdDSA), nil); err != nil || len(signature) != 0 {
		t.Errorf("nothing to sign: %x, %v", signature, err)
	}
	for m, size := range map[mechanism]int{ecdsa: maxECSignature, pss: maxSignature} {
		if signature, err := lib.sign(6, 9, m, []byte("input")); err != nil || !bytes.Equal(signature, bytes.Repeat([]byte{0xAB}, size)) {
			t.Errorf("%v: a full buffer: %d bytes, %v; want %d", m, len(signature), err, size)
		}
	}
}

func TestLibraryWithoutSignaturesIsNoModule(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "empty.so")
	cmd := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-x", "c", "-o", path, "-")
	cmd.Stdin = bytes.NewReader([]byte("static struct { char v[2]; void *f[68]; } l; unsigned long C_GetFunctionList(void **o) { *o = &l; return 0; }"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	if _, err := loadModule(path); !errors.Is(err, errNotLoaded) {
		t.Errorf("got error %v, want %v", err, errNotLoaded)
	}
}

func TestErrorNamesTheCallThatFailed(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	l := mustLink(t, b)
	lib := l.lib.(*meddler).cryptoki
	s, err := lib.openSession(l.slot)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = lib.sign(s, 0xFFFF, mechanismOf(kms.ES256), make([]byte, 32)); err == nil || !containsAll(err.Error(), "C_SignInit", "HANDLE_INVALID") {
		t.Errorf("with a key that is not there: %v", err)
	}
	if err := lib.closeSession(s); err != nil {
		t.Error(err)
	}
}
