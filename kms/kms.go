// Package kms is the contract between Bulla and the places where its own keys
// live: a PKCS#11 HSM, AWS KMS, or a software file for development. It holds
// the interfaces, the errors that say what a caller should do, and the table
// of signature algorithms; it imports no backend.
//
// A private or secret key never leaves its backend. A backend is asked for two
// things only: with a signing key, to sign the bytes of a JWS signing input
// (RFC 7515, section 5.1) by one algorithm; with a wrapping key, to encrypt a
// data key and to give it back. What is signed or wrapped, and for whom, is
// decided above.
//
// Every implementation passes the conformance suites in kms/kmstest.
package kms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
)

// Errors of a backend. Each says what its caller should do; implementations
// wrap them with what happened, and callers match them with errors.Is.
var (
	// ErrUnavailable: the backend cannot be reached, is locked, or is being
	// brought back. Nothing is wrong with the request: try again later.
	ErrUnavailable = errors.New("key backend unavailable")

	// ErrThrottled: the backend refuses more work for the moment. Slow down
	// and try again.
	ErrThrottled = errors.New("key backend throttled")

	// ErrKeyNotFound: the backend is healthy and has no such key. Trying again
	// does not help until an operator has put the key in place.
	ErrKeyNotFound = errors.New("key not found")

	// ErrKeyDisabled: the key exists and may not do what it is asked: it is
	// disabled, pending deletion, or without the right to sign or to wrap. Try
	// again after an operator has allowed it, or configured another.
	ErrKeyDisabled = errors.New("key may not be used")

	// ErrKeyMismatch: the key exists but is not of the type, curve or size
	// that its algorithm or its purpose needs, or it is not the key that was
	// there before. An operator has to look.
	ErrKeyMismatch = errors.New("key does not fit")

	// ErrTooLong: the message is longer than the key's backend signs. The key is
	// well: make the message shorter, or sign it with a key that has no such
	// limit. Trying again does not help, and nothing is wrong for an operator
	// to look at.
	ErrTooLong = errors.New("message too long for the key")

	// ErrUnwrap: what is to be unwrapped was not wrapped by this key for this
	// purpose, or was changed since. Do not use it; an operator has to look.
	ErrUnwrap = errors.New("wrapped key does not open")

	// ErrReference: the key reference cannot be read. The configuration is
	// wrong.
	ErrReference = errors.New("key reference invalid")
)

// Key is one private key in a backend, bound to exactly one signature
// algorithm. It may be used by any number of goroutines at once.
type Key interface {
	// Algorithm is the one JWS algorithm this key signs with.
	Algorithm() Algorithm

	// Public is the key's public half: *rsa.PublicKey, *ecdsa.PublicKey or
	// ed25519.PublicKey. It was read when the key was opened and is never a
	// round trip.
	Public() crypto.PublicKey

	// Sign returns the signature of message in the form JWS carries it (RFC
	// 7518, section 3; RFC 8037, section 3.1): for ECDSA r‖s of fixed length.
	// Sign hashes message as the algorithm says, keeps no reference to it, and
	// returns when ctx ends, even if the backend still works. Where others are
	// served first it waits for half of the time that ctx leaves, and then
	// answers ErrThrottled: what is begun too late is lost.
	//
	// Errors wrap ErrUnavailable, ErrThrottled, ErrKeyNotFound, ErrKeyDisabled,
	// ErrKeyMismatch or ErrTooLong, or are the context's. The text of ErrTooLong
	// names no key and no place, so that it may be shown to whoever sent the
	// message.
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// Backend is one configured place of private keys.
type Backend interface {
	// OpenKey finds the key that ref names, in the backend's own notation,
	// reads its public half and binds it to alg. The algorithm is a parameter
	// because a reference cannot say it: one RSA key could sign RS256 or
	// PS256. It returns when ctx ends. Errors are those of Key.Sign
	// without ErrTooLong, and ErrReference.
	OpenKey(ctx context.Context, ref string, alg Algorithm) (Key, error)

	// Check asks the backend for something real and cheap, and returns nil if
	// it answered. It signs nothing.
	Check(ctx context.Context) error

	// Close waits for signatures in flight and lets go of the backend. Keys
	// opened from it answer ErrUnavailable afterwards.
	Close() error
}

// Bounds on the length of what a Wrapper wraps, in bytes.
const (
	MinDataKey = 16
	MaxDataKey = 64
)

// CheckDataKey reports that plaintext has not the length of a data key. That is
// a fault of the program, not of a key or a backend, so the error wraps none of
// the errors above.
func CheckDataKey(plaintext []byte) error {
	if n := len(plaintext); n < MinDataKey || n > MaxDataKey {
		return fmt.Errorf("a data key has %d to %d bytes, this one has %d", MinDataKey, MaxDataKey, n)
	}
	return nil
}

// Wrapper encrypts data keys under one key of a backend, a wrapping key, which
// never leaves it. It may be used by any number of goroutines at once.
//
// Wrapping is authentic: nobody who has not the use of the wrapping key can
// make something that Unwrap takes. That matters as much as secrecy, because a
// data key that an attacker could plant would vouch for his records.
//
// Both methods keep no reference to what they are given and return when ctx
// ends, even if the backend still works. Errors wrap ErrUnavailable,
// ErrThrottled, ErrKeyNotFound, ErrKeyDisabled or ErrKeyMismatch, or are the
// context's; Unwrap adds ErrUnwrap.
type Wrapper interface {
	// Wrap returns plaintext, MinDataKey to MaxDataKey bytes, encrypted and
	// bound to aad (additional authenticated data), which may be empty, may be
	// of any length, and is not in the result. Two wraps of the same plaintext
	// differ. The form of the result is the backend's own and begins with a
	// byte that says how it was made, so that what an older version wrapped
	// can be told apart. For a plaintext of another length the error is that
	// of CheckDataKey.
	Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error)

	// Unwrap returns the plaintext that Wrap was given with the same aad. For
	// anything else than an unchanged result of Wrap by the same key with the
	// same aad it is ErrUnwrap, whatever was changed: the error does not say
	// what, and depends on nothing secret.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

// WrapperOpener is an optional ability of a Backend: to wrap with its keys.
type WrapperOpener interface {
	// OpenWrapper finds the wrapping key that ref names, in the backend's own
	// notation, and sees that it works with something random, so that a key
	// that may not, or cannot, is found at the start. Errors are those of
	// Backend.OpenKey.
	OpenWrapper(ctx context.Context, ref string) (Wrapper, error)
}

// DefaultRSABits is the length in bits of the modulus of an RSA key that is
// created where nothing else is asked for.
const DefaultRSABits = 2048

// KeySpec says which signing key to create.
type KeySpec struct {
	// Algorithm is what the key will sign with. One of Algorithms.
	Algorithm Algorithm
	// RSABits is the length of the modulus of an RSA key: 2048, 3072 or 4096.
	// 0 means DefaultRSABits. It is 0 for other keys.
	RSABits int
}

// Check reports what is wrong with the spec. Errors wrap ErrKeyMismatch.
func (s KeySpec) Check() error {
	if !s.Algorithm.Known() {
		return fmt.Errorf("%w: a signing key of a backend is for one of %v, not %q", ErrKeyMismatch, Algorithms(), string(s.Algorithm))
	}
	switch {
	case s.RSABits == 0:
		return nil
	case s.Algorithm.KeyType() != RSA:
		return fmt.Errorf("%w: a key for %s has no RSA modulus whose length could be chosen", ErrKeyMismatch, s.Algorithm)
	case s.RSABits != 2048 && s.RSABits != 3072 && s.RSABits != 4096:
		return fmt.Errorf("%w: an RSA key of %d bits: create one of 2048, 3072 or 4096", ErrKeyMismatch, s.RSABits)
	}
	return nil
}

// Bits is RSABits with the default filled in, 0 for a key that is not RSA.
func (s KeySpec) Bits() int {
	if s.RSABits == 0 && s.Algorithm.KeyType() == RSA {
		return DefaultRSABits
	}
	return s.RSABits
}

// maxTag bounds a tag: CKA_LABEL, a tag of AWS and a kid all have room for it.
const maxTag = 64

// CheckTag reports that tag cannot mark a key: it has 1 to 64 letters, digits,
// dots, dashes and underscores, which need no quoting anywhere. That is a fault
// of the caller, so the error wraps none of the errors above.
func CheckTag(tag string) error {
	for _, c := range []byte(tag) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return fmt.Errorf("%q cannot mark a key: use letters, digits, dots, dashes and underscores", tag)
		}
	}
	if tag == "" || len(tag) > maxTag {
		return fmt.Errorf("%q cannot mark a key: use 1 to %d characters", tag, maxTag)
	}
	return nil
}

// Creator is an optional ability of a Backend: to make signing keys. Both
// methods may be called by any number of goroutines, return when ctx ends, and
// answer with the errors of Backend.OpenKey.
//
// Nothing makes the creation of a key and its record elsewhere one step. So
// whoever creates a key first writes down the tag, and after a crash looks with
// FindKeys whether the key came to be.
type Creator interface {
	// CreateKey makes a key pair marked with tag and returns its reference.
	// The private half signs and does nothing else; it can be neither read nor
	// taken out, as far as the backend knows how to promise that. CreateKey
	// does not look whether a key of that tag exists: called twice, it makes
	// two. If it returns an error the key may have come to be all the same.
	// A key the backend cannot make is ErrKeyMismatch; one it may not,
	// ErrKeyDisabled.
	CreateKey(ctx context.Context, spec KeySpec, tag string) (ref string, err error)

	// FindKeys returns the references of the signing keys that CreateKey
	// marked with tag, in a stable order, none (and no error) if there are
	// none. Keys that are disabled or about to be deleted may be left out.
	FindKeys(ctx context.Context, tag string) (refs []string, err error)
}

// Distruster is an optional ability of a Key: to be told that a signature it
// returned did not verify, so that whatever made it (a session, a connection)
// is thrown away and not used again.
type Distruster interface {
	Distrust()
}

// ProbePrefix begins every message that is signed only to see whether a key
// works. A probe can never be mistaken for a token: a colon cannot occur in a
// JWS signing input.
const ProbePrefix = "bulla-probe:v1:"

// WrapPrefix begins every message that a wrapping key signs, where a backend
// wraps by means of a signature. Like a probe it can never be mistaken for a
// token, and a signing key that is used for both purposes never makes one of
// these for a token.
const WrapPrefix = "bulla-wrap:v1:"
