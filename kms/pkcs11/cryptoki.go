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
	initialize() error
	finalize() error
	info() (moduleInfo, error)

	slots() ([]uint, error) // those with a token
	tokenInfo(slot uint) (tokenInfo, error)
	canSign(slot, mechanism uint) (bool, error)

	openSession(slot uint) (uint, error) // read-only
	closeSession(session uint) error
	loggedIn(session uint) (bool, error) // as the user
	login(session uint, pin []byte) error
	logout(session uint) error

	find(session uint, template []attribute) ([]uint, error)
	attribute(session, object, kind uint) ([]byte, error)
	sign(session, key uint, m mechanism, input []byte) ([]byte, error)
}

// loader loads the library at path. A library once loaded is never unloaded:
// it may have left threads and exit handlers behind that still need its code.
type loader func(path string) (cryptoki, error)

// attribute is one line of a search template.
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
	ckaLabel              = 0x003
	ckaValue              = 0x011
	ckaCertificateType    = 0x080
	ckaKeyType            = 0x100
	ckaID                 = 0x102
	ckaSign               = 0x108
	ckaModulus            = 0x120
	ckaPublicExponent     = 0x122
	ckaExtractable        = 0x162
	ckaECParams           = 0x180
	ckaECPoint            = 0x181
	ckaAlwaysAuthenticate = 0x202

	ckoCertificate = 1
	ckoPublicKey   = 2
	ckoPrivateKey  = 3

	ckkRSA       = 0x00
	ckkEC        = 0x03
	ckkECEdwards = 0x40

	ckfLoginRequired      = 0x00000004
	ckfUserPINInitialized = 0x00000008
	ckfTokenInitialized   = 0x00000400
	ckfUserPINCountLow    = 0x00010000
	ckfUserPINFinalTry    = 0x00020000
	ckfUserPINLocked      = 0x00040000

	unavailableInformation = ^uint(0)
)

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
