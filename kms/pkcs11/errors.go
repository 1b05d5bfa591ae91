package pkcs11

import (
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/kms"
)

// class says what an error of the module means for the session, the token and
// the caller. Whatever the class, the session that met the error is closed, and
// the error is counted by its name.
//
//	class      token                      call                     caller gets
//	fault      goes on                    not made again           ErrUnavailable
//	stale      goes on; asked if it is    made once more, with a   ErrUnavailable
//	           there if that fails too    new session, and the     if that fails too
//	                                      key found and compared
//	gone       down; module initialized   not made again           ErrUnavailable,
//	           again, at intervals                                 at once while down
//	full       pool one session smaller   made once more, with     ErrThrottled
//	           for a while                another session          if that fails too
//	refused    (of C_Login) down; none    not made again           ErrUnavailable,
//	           until its file changes                              at once while down
//	forbidden  goes on                    not made again           ErrKeyDisabled
//	unfit      goes on                    not made again           ErrKeyMismatch
//
// "Made once more" is bounded by the caller's deadline, and never true of the
// generation of a key: a second call could make a second key.
type class int

const (
	// fault: anything that is not in the table, or has no rule of its own.
	fault class = iota
	// stale: the session, the login or a handle is no longer good, or the
	// module reports a failure that a new session may not meet.
	stale
	// gone: the token or the module is lost.
	gone
	// full: the token has no room for one more session or operation.
	full
	// refused: the PIN was not accepted.
	refused
	// forbidden: the key's attributes do not let it do what it is asked, or the
	// user may not create keys.
	forbidden
	// unfit: the token cannot do this, or not with this key.
	unfit
)

// codes is the one table of what CK_RV values (PKCS#11 v2.40, section 5.1; the
// last ones of v3.0) are called and what is done about them.
var codes = map[ckr]struct {
	name  string
	class class
}{
	// The session is dead.
	0x00B3: {"CKR_SESSION_HANDLE_INVALID", stale},
	0x00B0: {"CKR_SESSION_CLOSED", stale},
	// The handle of the key is: it was deleted, or made anew.
	0x0082: {"CKR_OBJECT_HANDLE_INVALID", stale},
	0x0060: {"CKR_KEY_HANDLE_INVALID", stale},
	0x00F0: {"CKR_UNWRAPPING_KEY_HANDLE_INVALID", stale},
	0x0113: {"CKR_WRAPPING_KEY_HANDLE_INVALID", stale},
	// The login is.
	0x0101: {"CKR_USER_NOT_LOGGED_IN", stale},
	// An operation was left half done on the session.
	0x0090: {"CKR_OPERATION_ACTIVE", stale},
	// What modules say when they do not know, or do not tell.
	0x0005: {"CKR_GENERAL_ERROR", stale},
	0x0006: {"CKR_FUNCTION_FAILED", stale},
	0x0030: {"CKR_DEVICE_ERROR", stale},

	0x0032: {"CKR_DEVICE_REMOVED", gone},
	0x00E0: {"CKR_TOKEN_NOT_PRESENT", gone},
	0x00E1: {"CKR_TOKEN_NOT_RECOGNIZED", gone},
	0x0003: {"CKR_SLOT_ID_INVALID", gone},
	0x0190: {"CKR_CRYPTOKI_NOT_INITIALIZED", gone},

	0x00B1: {"CKR_SESSION_COUNT", full},
	0x0031: {"CKR_DEVICE_MEMORY", full},

	0x00A0: {"CKR_PIN_INCORRECT", refused},
	0x00A1: {"CKR_PIN_INVALID", refused},
	0x00A2: {"CKR_PIN_LEN_RANGE", refused},
	0x00A3: {"CKR_PIN_EXPIRED", refused},
	0x00A4: {"CKR_PIN_LOCKED", refused},

	0x001B: {"CKR_ACTION_PROHIBITED", forbidden},
	0x0068: {"CKR_KEY_FUNCTION_NOT_PERMITTED", forbidden},
	0x00B5: {"CKR_SESSION_READ_ONLY", forbidden},
	0x00E2: {"CKR_TOKEN_WRITE_PROTECTED", forbidden},

	0x0021: {"CKR_DATA_LEN_RANGE", unfit},
	0x0062: {"CKR_KEY_SIZE_RANGE", unfit},
	0x0063: {"CKR_KEY_TYPE_INCONSISTENT", unfit},
	0x0070: {"CKR_MECHANISM_INVALID", unfit},
	0x0071: {"CKR_MECHANISM_PARAM_INVALID", unfit},
	0x00F2: {"CKR_UNWRAPPING_KEY_SIZE_RANGE", unfit},
	0x00F3: {"CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", unfit},
	0x0114: {"CKR_WRAPPING_KEY_SIZE_RANGE", unfit},
	0x0115: {"CKR_WRAPPING_KEY_TYPE_INCONSISTENT", unfit},
	0x0130: {"CKR_DOMAIN_PARAMS_INVALID", unfit},
	0x0140: {"CKR_CURVE_NOT_SUPPORTED", unfit},

	// Only names: no rule of their own.
	0x0001: {"CKR_CANCEL", fault},
	0x0002: {"CKR_HOST_MEMORY", fault},
	0x0007: {"CKR_ARGUMENTS_BAD", fault},
	0x000A: {"CKR_CANT_LOCK", fault},
	0x0010: {"CKR_ATTRIBUTE_READ_ONLY", fault},
	0x0011: {"CKR_ATTRIBUTE_SENSITIVE", fault},
	0x0012: {"CKR_ATTRIBUTE_TYPE_INVALID", fault},
	0x0013: {"CKR_ATTRIBUTE_VALUE_INVALID", fault},
	0x0020: {"CKR_DATA_INVALID", fault},
	0x0040: {"CKR_ENCRYPTED_DATA_INVALID", fault},
	0x0041: {"CKR_ENCRYPTED_DATA_LEN_RANGE", fault},
	0x0050: {"CKR_FUNCTION_CANCELED", fault},
	0x0054: {"CKR_FUNCTION_NOT_SUPPORTED", fault},
	0x0069: {"CKR_KEY_NOT_WRAPPABLE", fault},
	0x006A: {"CKR_KEY_UNEXTRACTABLE", fault},
	0x0091: {"CKR_OPERATION_NOT_INITIALIZED", fault},
	0x00B6: {"CKR_SESSION_READ_ONLY_EXISTS", fault},
	0x00D0: {"CKR_TEMPLATE_INCOMPLETE", fault},
	0x00D1: {"CKR_TEMPLATE_INCONSISTENT", fault},
	0x0100: {"CKR_USER_ALREADY_LOGGED_IN", fault},
	0x0102: {"CKR_USER_PIN_NOT_INITIALIZED", fault},
	0x0104: {"CKR_USER_ANOTHER_ALREADY_LOGGED_IN", fault},
	0x0110: {"CKR_WRAPPED_KEY_INVALID", fault},
	0x0112: {"CKR_WRAPPED_KEY_LEN_RANGE", fault},
	0x0150: {"CKR_BUFFER_TOO_SMALL", fault},
	0x0191: {"CKR_CRYPTOKI_ALREADY_INITIALIZED", fault},
	0x0200: {"CKR_FUNCTION_REJECTED", fault},
}

// sentinels says which error of the contract a class becomes.
var sentinels = map[class]error{
	fault:     kms.ErrUnavailable,
	stale:     kms.ErrUnavailable,
	gone:      kms.ErrUnavailable,
	full:      kms.ErrThrottled,
	refused:   kms.ErrUnavailable,
	forbidden: kms.ErrKeyDisabled,
	unfit:     kms.ErrKeyMismatch,
}

// The codes that are looked at one by one.
const (
	ckrArgumentsBad       ckr = 0x0007
	ckrPINNotInitialized  ckr = 0x0102
	ckrAlreadyLoggedIn    ckr = 0x0100
	ckrNotInitialized     ckr = 0x0190
	ckrAlreadyInitialized ckr = 0x0191
	ckrBufferTooSmall     ckr = 0x0150
	ckrNotSupported       ckr = 0x0054
	ckrReadOnly           ckr = 0x00B5
	ckrWriteProtected     ckr = 0x00E2
)

// ckr is a return value of a Cryptoki function (CK_RV), never CKR_OK.
type ckr uint

// Error is the code's name and number.
func (c ckr) Error() string {
	if row, ok := codes[c]; ok {
		return fmt.Sprintf("%s (0x%X)", row.name, uint(c))
	}
	if c >= 0x80000000 {
		return fmt.Sprintf("vendor error 0x%X", uint(c))
	}
	return fmt.Sprintf("CKR 0x%X", uint(c))
}

// callError is a Cryptoki function that did not answer CKR_OK.
type callError struct {
	function string // such as C_Sign
	code     ckr
}

func (e *callError) Error() string { return e.function + ": " + e.code.Error() }
func (e *callError) Unwrap() error { return e.code }

// goneError says that the token did not answer a probe on a fresh session, so
// that err means more than its code.
type goneError struct{ err error }

func (e *goneError) Error() string { return "the token does not answer: " + e.err.Error() }
func (e *goneError) Unwrap() error { return e.err }

// classOf is the class of err, which is fault for what no module said.
func classOf(err error) class {
	var g *goneError
	if errors.As(err, &g) {
		return gone
	}
	var p *problem
	if errors.As(err, &p) {
		return refused // whatever the code, a login is not made twice
	}
	return codeClass(err)
}

// codeClass is the class of the module's own answer in err, whatever wraps it.
func codeClass(err error) class {
	var c ckr
	if errors.As(err, &c) {
		return codes[c].class
	}
	return fault
}

// contract wraps err in the sentinel of the contract that its class stands
// for, unless it already carries one or is the context's.
func contract(err error) error {
	var c ckr
	if err == nil || !errors.As(err, &c) || carriesSentinel(err) {
		return err
	}
	return fmt.Errorf("%w: %w", sentinels[classOf(err)], err)
}

func carriesSentinel(err error) bool {
	for _, s := range []error{
		kms.ErrUnavailable, kms.ErrThrottled, kms.ErrKeyNotFound,
		kms.ErrKeyDisabled, kms.ErrKeyMismatch, kms.ErrUnwrap, kms.ErrReference,
	} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// problem is why a token could not be brought up: at which stage, what was
// seen, and what an operator can do.
type problem struct {
	stage   string // StepModule, StepToken or StepLogin
	settled bool   // another look at the module's slots does not help
	unsure  bool   // a PIN was sent, and nobody said whether it was wrong
	text    string
	advice  string
	err     error // what the module or the system said, may be nil
}

func (p *problem) Error() string {
	s := p.text
	if p.err != nil {
		s += ": " + p.err.Error()
	}
	if p.advice != "" {
		s += "; " + p.advice
	}
	return s
}

func (p *problem) Unwrap() error { return p.err }

// down is the answer of a token that is not up.
func down(reason error) error {
	if reason == nil {
		return kms.ErrUnavailable
	}
	return fmt.Errorf("%w: %w", kms.ErrUnavailable, reason)
}
