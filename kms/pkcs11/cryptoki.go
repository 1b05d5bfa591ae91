package pkcs11

import (
	"encoding/binary"
	"errors"
	"unsafe"
)

// errNoCgo is New's answer in a binary that cannot load modules.
var errNoCgo = errors.New("pkcs11: this binary was built without cgo, which PKCS#11 modules need: " +
	"build it with CGO_ENABLED=1 and a C compiler (apt-get install gcc; CGO_ENABLED=1 go build ./cmd/bulla), or use another kind of backend")

// errNotLoaded: dlopen failed, or the library has no C_GetFunctionList.
var errNotLoaded = errors.New("not a PKCS#11 library, or one that it needs is missing")

// cryptoki is the part of a PKCS#11 module that this package uses, in plain
// types. Every method is one call into C that may block for as long as the
// module likes. Failures of the module are *callError.
//
// The callers keep what PKCS#11 asks for: no session in two calls at once, and
// initialize and finalize only while nothing else runs.
type cryptoki interface {
	initialize(reserved string) error // what pReserved points to; "" is NULL
	finalize() error
	info() (moduleInfo, error)

	slots() ([]uint, error) // those with a token
	tokenInfo(slot uint) (tokenInfo, error)
	mechanismFlags(slot, mechanism uint) (uint, error) // CKF_…; 0 if the slot has it not

	openSession(slot uint) (uint, error)  // read-only
	openWritable(slot uint) (uint, error) // read/write
	closeSession(session uint) error
	loggedIn(session uint) (bool, error) // as the user
	login(session uint, pin []byte) error
	logout(session uint) error

	find(session uint, template []attribute) ([]uint, error)
	attribute(session, object, kind uint) ([]byte, error)
	// sign is C_SignInit and C_Sign. It fails with CKR_BUFFER_TOO_SMALL if the
	// signature is longer than any of the mechanism can be.
	sign(session, key uint, m mechanism, input []byte) ([]byte, error)

	// encryptGCM and decryptGCM are CKM_AES_GCM with a tag of 128 bits at the
	// end of the ciphertext. used is the IV that the module says it took: some
	// take one of their own.
	encryptGCM(session, key uint, iv, aad, plaintext []byte) (ciphertext, used []byte, err error)
	decryptGCM(session, key uint, iv, aad, ciphertext []byte) ([]byte, error)

	generateKeyPair(session, mechanism uint, public, private []attribute) (publicKey, privateKey uint, err error)
	createObject(session uint, template []attribute) (uint, error)
	destroyObject(session, object uint) error
	wrapKey(session, mechanism, wrapping, object uint) ([]byte, error)
	unwrapKey(session, mechanism, unwrapping uint, wrapped []byte, template []attribute) (uint, error)
}

// loader loads the library at path. A library once loaded is never unloaded:
// it may have left threads and exit handlers behind that still need its code.
type loader func(path string) (cryptoki, error)

// attribute is one line of a template, of a search or of a new object.
type attribute struct {
	kind  uint // CKA_…
	ulong bool // value is number, else bytes
	num   uint
	bytes []byte
}

// moduleInfo is CK_INFO, as far as it is shown.
type moduleInfo struct {
	manufacturer, description, version string
}

// tokenInfo is CK_TOKEN_INFO, as far as it is used. Texts are trimmed of
// blanks and of the NULs that some modules pad with.
type tokenInfo struct {
	label, serial, manufacturer, model string
	flags                              uint
	maxSessions                        uint // 0 and unavailableInformation: no limit known
}

// Names from pkcs11t.h (PKCS#11 v2.40 with errata; the EdDSA ones from v3.0).
const (
	ckaClass              = 0x000
	ckaToken              = 0x001
	ckaPrivate            = 0x002
	ckaLabel              = 0x003
	ckaValue              = 0x011
	ckaCertificateType    = 0x080
	ckaCheckValue         = 0x090
	ckaKeyType            = 0x100
	ckaID                 = 0x102
	ckaSensitive          = 0x103
	ckaEncrypt            = 0x104
	ckaDecrypt            = 0x105
	ckaWrap               = 0x106
	ckaUnwrap             = 0x107
	ckaSign               = 0x108
	ckaSignRecover        = 0x109
	ckaDerive             = 0x10C
	ckaModulus            = 0x120
	ckaModulusBits        = 0x121
	ckaPublicExponent     = 0x122
	ckaValueLen           = 0x161
	ckaExtractable        = 0x162
	ckaLocal              = 0x163
	ckaNeverExtractable   = 0x164
	ckaAlwaysSensitive    = 0x165
	ckaECParams           = 0x180
	ckaECPoint            = 0x181
	ckaAlwaysAuthenticate = 0x202

	ckoCertificate = 1
	ckoPublicKey   = 2
	ckoPrivateKey  = 3
	ckoSecretKey   = 4

	ckkRSA           = 0x00
	ckkEC            = 0x03
	ckkGenericSecret = 0x10
	ckkAES           = 0x1F
	ckkECEdwards     = 0x40

	// Of a mechanism.
	ckfEncrypt = 0x00000100
	ckfDecrypt = 0x00000200
	ckfSign    = 0x00000800
	ckfWrap    = 0x00020000
	ckfUnwrap  = 0x00040000

	ckfGenerateKeyPair = 0x00010000

	// Of a token.
	ckfLoginRequired      = 0x00000004
	ckfUserPINInitialized = 0x00000008
	ckfTokenInitialized   = 0x00000400
	ckfUserPINCountLow    = 0x00010000
	ckfUserPINFinalTry    = 0x00020000
	ckfUserPINLocked      = 0x00040000

	unavailableInformation = ^uint(0)
)

// boolean is an attribute of type CK_BBOOL.
func boolean(kind uint, value bool) attribute {
	if value {
		return attribute{kind: kind, bytes: []byte{1}}
	}
	return attribute{kind: kind, bytes: []byte{0}}
}

// ulong reads a CK_ULONG attribute, which is in the machine's own byte order
// and size; unavailableInformation if it is anything else.
func ulong(b []byte) uint {
	switch {
	case len(b) != int(unsafe.Sizeof(uint(0))):
		return unavailableInformation
	case len(b) == 4:
		return uint(binary.NativeEndian.Uint32(b))
	default:
		return uint(binary.NativeEndian.Uint64(b))
	}
}
