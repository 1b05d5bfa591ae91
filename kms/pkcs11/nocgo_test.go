//go:build !cgo

package pkcs11

import (
	"errors"
	"testing"
)

func TestNewWithoutCgoSaysHowToGetIt(t *testing.T) {
	b, err := New(t.Context(), Config{Module: "/lib/x.so", Token: "bulla", PINFile: "pin"})
	if b != nil || !errors.Is(err, errNoCgo) || !containsAll(err.Error(), "without cgo", "CGO_ENABLED=1", "C compiler") {
		t.Errorf("New: got %v and %v", b, err)
	}
}
