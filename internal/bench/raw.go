//go:build linux && cgo

package main

/*
#cgo LDFLAGS: -ldl
#cgo noescape bench_sign
#cgo nocallback bench_sign

#include <dlfcn.h>
#include <stdlib.h>

typedef struct {
	unsigned long kind;
	void *parameter;
	unsigned long size;
} bench_mechanism; // CK_MECHANISM

// The beginning of CK_FUNCTION_LIST (PKCS#11 v2.40).
typedef struct {
	unsigned char version[2];
	void *before[42];
	unsigned long (*sign_init)(unsigned long session, bench_mechanism *, unsigned long key);
	unsigned long (*sign)(unsigned long session, unsigned char *, unsigned long, unsigned char *, unsigned long *);
} bench_list;

static bench_list *bench_functions(const char *path) {
	bench_list *list = NULL;
	void *library = dlopen(path, RTLD_LAZY);
	unsigned long (*get)(bench_list **) = library ? (unsigned long (*)(bench_list **))dlsym(library, "C_GetFunctionList") : NULL;
	return get != NULL && get(&list) == 0 ? list : NULL;
}

// bench_sign returns the length of the signature, or the error below zero.
static long bench_sign(bench_list *list, unsigned long session, unsigned long kind, unsigned long key,
	unsigned char *data, unsigned long size, unsigned char *signature, unsigned long room) {
	bench_mechanism mechanism = {kind, NULL, 0};
	unsigned long code = list->sign_init(session, &mechanism, key);
	if (code == 0)
		code = list->sign(session, data, size, signature, &room);
	return code == 0 ? (long)room : -(long)code;
}
*/
import "C"

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"unsafe"

	p11 "github.com/miekg/pkcs11"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// rawKey is a signing key of the token, used as plainly as PKCS#11 can be: no
// check, no recovery, no bound. A signature is C_SignInit and C_Sign in one
// crossing into C: what a program in C would do.
type rawKey struct {
	module    *p11.Ctx
	functions *C.bench_list
	slot      uint
	login     p11.SessionHandle
	object    p11.ObjectHandle
	mechanism uint
	prefix    string // of what is signed
}

// rawSession is one session, for one caller at a time.
type rawSession struct {
	key       *rawKey
	handle    p11.SessionHandle
	input     []byte
	signature [512]byte
}

// sha256Info is the DER encoding of DigestInfo for SHA-256 (RFC 8017, section
// 9.2, note 1).
const sha256Info = "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"

// openRaw finds the token's key for alg, ES256 or RS256. It initializes the
// module and logs in unless the process has.
func openRaw(token *softhsmtest.Token, alg kms.Algorithm) (*rawKey, error) {
	k := &rawKey{module: p11.New(token.Module)}
	if k.module == nil {
		return nil, fmt.Errorf("the module %s cannot be loaded", token.Module)
	}
	path := C.CString(token.Module)
	defer C.free(unsafe.Pointer(path))
	if k.functions = C.bench_functions(path); k.functions == nil {
		return nil, fmt.Errorf("the module %s has no list of functions", token.Module)
	}
	switch alg {
	case kms.ES256:
		k.mechanism = p11.CKM_ECDSA
	case kms.RS256:
		k.mechanism, k.prefix = p11.CKM_RSA_PKCS, sha256Info
	default:
		return nil, fmt.Errorf("no raw signature is known for %s", alg)
	}
	if err := k.module.Initialize(); err != nil && !errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return nil, fmt.Errorf("C_Initialize: %w", err)
	}
	slots, err := k.module.GetSlotList(true)
	if err != nil {
		return nil, fmt.Errorf("C_GetSlotList: %w", err)
	}
	found := false
	for _, slot := range slots {
		if info, err := k.module.GetTokenInfo(slot); err == nil && strings.TrimRight(info.Label, " \x00") == token.Label {
			k.slot, found = slot, true
		}
	}
	if !found {
		return nil, fmt.Errorf("the module has no token %q", token.Label)
	}
	if k.login, err = k.module.OpenSession(k.slot, p11.CKF_SERIAL_SESSION); err != nil {
		return nil, fmt.Errorf("C_OpenSession: %w", err)
	}
	pin, err := os.ReadFile(token.PINFile)
	if err != nil {
		return nil, err
	}
	err = k.module.Login(k.login, p11.CKU_USER, strings.TrimSpace(string(pin)))
	if err != nil && !errors.Is(err, p11.Error(p11.CKR_USER_ALREADY_LOGGED_IN)) {
		return nil, fmt.Errorf("C_Login: %w", err)
	}
	return k, k.find(harness.KeyLabel(alg))
}

func (k *rawKey) find(label string) error {
	err := k.module.FindObjectsInit(k.login, []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY), p11.NewAttribute(p11.CKA_LABEL, label),
	})
	if err != nil {
		return fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	objects, _, err := k.module.FindObjects(k.login, 2)
	if err != nil {
		return fmt.Errorf("C_FindObjects: %w", err)
	}
	if err := k.module.FindObjectsFinal(k.login); err != nil {
		return fmt.Errorf("C_FindObjectsFinal: %w", err)
	}
	if len(objects) != 1 {
		return fmt.Errorf("the token has %d private keys with the label %q, want 1", len(objects), label)
	}
	k.object = objects[0]
	return nil
}

// session opens one more session.
func (k *rawKey) session() (*rawSession, error) {
	h, err := k.module.OpenSession(k.slot, p11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("C_OpenSession: %w", err)
	}
	return &rawSession{key: k, handle: h}, nil
}

// sign hashes and signs message. The signature is good until the next one.
func (s *rawSession) sign(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	s.input = append(append(s.input[:0], s.key.prefix...), digest[:]...)
	n := C.bench_sign(s.key.functions, C.ulong(s.handle), C.ulong(s.key.mechanism), C.ulong(s.key.object),
		(*C.uchar)(&s.input[0]), C.ulong(len(s.input)), (*C.uchar)(&s.signature[0]), C.ulong(len(s.signature)))
	if n < 0 {
		return nil, fmt.Errorf("C_SignInit or C_Sign: CKR 0x%X", -n)
	}
	return s.signature[:n], nil
}

// unboundedKey is a kms.Key on as many sessions as there are signatures in
// flight, which are kept for the next ones.
type unboundedKey struct {
	raw       *rawKey
	algorithm kms.Algorithm
	publicKey crypto.PublicKey

	mu   sync.Mutex
	idle []*rawSession // guarded by mu
}

func (k *unboundedKey) Algorithm() kms.Algorithm { return k.algorithm }

func (k *unboundedKey) Public() crypto.PublicKey { return k.publicKey }

func (k *unboundedKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	s, err := k.take()
	if err != nil {
		return nil, err
	}
	signature, err := s.sign(message)
	if err != nil {
		return nil, err // and let go of the session
	}
	signature = bytes.Clone(signature)
	k.mu.Lock()
	k.idle = append(k.idle, s)
	k.mu.Unlock()
	return signature, nil
}

func (k *unboundedKey) take() (*rawSession, error) {
	k.mu.Lock()
	if n := len(k.idle); n > 0 {
		s := k.idle[n-1]
		k.idle = k.idle[:n-1]
		k.mu.Unlock()
		return s, nil
	}
	k.mu.Unlock()
	return k.raw.session()
}
