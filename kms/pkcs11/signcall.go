//go:build cgo && unix

package pkcs11

// A signature is two calls, C_SignInit and C_Sign. github.com/miekg/pkcs11
// makes three of them, because it asks C_Sign for the length first, which a
// token on a network answers over the network, and allocates in C. Here the two
// are one crossing into C, with a buffer that has room for any signature of the
// mechanism.
//
// The declarations are what is needed of pkcs11.h (PKCS#11 v2.40): the function
// list is two bytes of version, then the functions in the order of pkcs11f.h.
// On these systems its structures are not packed.

/*
#cgo linux freebsd darwin solaris LDFLAGS: -ldl
#cgo noescape bulla_sign
#cgo nocallback bulla_sign

#include <dlfcn.h>
#include <stdlib.h>

typedef unsigned long bulla_ulong; // CK_ULONG

typedef struct {
	bulla_ulong kind;
	void *parameter;
	bulla_ulong size;
} bulla_mechanism; // CK_MECHANISM

typedef struct {
	bulla_ulong hash, mgf, salt;
} bulla_pss; // CK_RSA_PKCS_PSS_PARAMS

typedef bulla_ulong (*bulla_sign_init_function)(bulla_ulong session, bulla_mechanism *mechanism, bulla_ulong key);
typedef bulla_ulong (*bulla_sign_function)(bulla_ulong session, unsigned char *data, bulla_ulong size,
	unsigned char *signature, bulla_ulong *signature_size);

// Places in the function list, C_Initialize being 0.
enum { bulla_at_sign_init = 42, bulla_at_sign = 43 };

typedef struct {
	unsigned char major, minor;
	void (*function[bulla_at_sign + 1])(void); // and more
} bulla_list; // CK_FUNCTION_LIST

// bulla_functions is the function list of the library at path, which is loaded
// already and gets one more reference that is never given back. NULL if it
// cannot be had.
static bulla_list *bulla_functions(const char *path) {
	void *library = dlopen(path, RTLD_LAZY);
	if (library == NULL)
		return NULL;
	bulla_ulong (*get)(bulla_list **) = (bulla_ulong (*)(bulla_list **))dlsym(library, "C_GetFunctionList");
	bulla_list *list = NULL;
	if (get == NULL || get(&list) != 0 || list == NULL)
		return NULL;
	if (list->function[bulla_at_sign_init] == NULL || list->function[bulla_at_sign] == NULL)
		return NULL;
	return list;
}

typedef struct {
	bulla_ulong code;   // CK_RV, of C_SignInit if that failed, else of C_Sign
	bulla_ulong size;   // of the signature, as C_Sign says
	bulla_ulong called;  // 1 if C_Sign was called
} bulla_result;

static bulla_result bulla_sign(bulla_list *list, bulla_ulong session, bulla_ulong key,
	bulla_ulong kind, bulla_ulong hash, bulla_ulong mgf, bulla_ulong salt,
	unsigned char *data, bulla_ulong size, unsigned char *signature, bulla_ulong room) {
	bulla_pss pss = {hash, mgf, salt};
	bulla_mechanism mechanism = {kind, NULL, 0};
	if (hash != 0) {
		mechanism.parameter = &pss;
		mechanism.size = sizeof pss;
	}
	bulla_result r = {0, room, 0};
	r.code = ((bulla_sign_init_function)list->function[bulla_at_sign_init])(session, &mechanism, key);
	if (r.code != 0)
		return r;
	r.called = 1;
	r.code = ((bulla_sign_function)list->function[bulla_at_sign])(session, data, size, signature, &r.size);
	return r;
}
*/
import "C"

import (
	"unsafe"

	p11 "github.com/miekg/pkcs11"
)

// signCall makes signatures with one module.
type signCall struct{ list *C.bulla_list }

// newSignCall finds the functions of the library at path, which the binding
// has loaded.
func newSignCall(path string, _ *p11.Ctx) (signCall, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	list := C.bulla_functions(name)
	if list == nil {
		return signCall{}, errNotLoaded
	}
	return signCall{list}, nil
}

// sign is cryptoki's. The buffer of the signature is of this call alone, so that
// one that never returns harms nobody.
func (c signCall) sign(session, key uint, m mechanism, input []byte) ([]byte, error) {
	room := maxECSignature
	if m.kind == ckmRSAPKCS || m.kind == ckmRSAPKCSPSS {
		room = maxSignature
	}
	signature := make([]byte, room)
	data := unsafe.SliceData(input)
	if len(input) == 0 {
		data = &signature[0] // some modules refuse NULL for nothing
	}
	r := C.bulla_sign(c.list, C.bulla_ulong(session), C.bulla_ulong(key),
		C.bulla_ulong(m.kind), C.bulla_ulong(m.pssHash), C.bulla_ulong(m.pssMGF), C.bulla_ulong(m.pssSalt),
		(*C.uchar)(data), C.bulla_ulong(len(input)), (*C.uchar)(&signature[0]), C.bulla_ulong(room))
	switch {
	case r.code != 0 && r.called == 0:
		return nil, &callError{"C_SignInit", ckr(r.code)}
	case r.code != 0:
		return nil, &callError{"C_Sign", ckr(r.code)}
	case r.size > C.bulla_ulong(room):
		return nil, &callError{"C_Sign", ckrBufferTooSmall} // which it should have said itself
	}
	return signature[:r.size:r.size], nil
}
