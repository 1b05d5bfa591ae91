//go:build cgo

package pkcs11

// #include <stdlib.h>
import "C"

import "unsafe"

// reserved holds the text that C_Initialize is given in C memory, where the
// garbage collector neither moves nor frees it: nothing says how long a module
// may read it, and one that keeps the pointer reads it until it is unloaded,
// which no module is (see loader). So it is never freed. It is a few bytes for
// each text that a module was ever initialized with, and that is one for as
// long as the configuration does not change.
type reserved struct {
	texts map[string]unsafe.Pointer
}

// pointer is text with a NUL byte at its end in C memory; nil for "".
func (r *reserved) pointer(text string) unsafe.Pointer {
	if text == "" {
		return nil
	}
	p, ok := r.texts[text]
	if !ok {
		if r.texts == nil {
			r.texts = map[string]unsafe.Pointer{}
		}
		p = unsafe.Pointer(C.CString(text))
		r.texts[text] = p
	}
	return p
}
