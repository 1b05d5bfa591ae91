// Package kms is the contract between Bulla and the places where private
// signing keys live: a PKCS#11 HSM, AWS KMS, or a software file for
// development. It holds the interfaces, the errors that say what a caller
// should do, and the table of signature algorithms; it imports no backend.
//
// A private key never leaves its backend. A backend is asked for one thing
// only: to sign the bytes of a JWS signing input (RFC 7515, section 5.1) with
// one key and one algorithm. What is signed, and for whom, is decided above.
//
// Every implementation passes the conformance suite in kms/kmstest.
package kms

import (
	"context"
	"crypto"
	"errors"
)

// Errors of a backend. Each says what its caller should do; implementations
// wrap them with what happened, and callers match them with errors.Is.
var (
	// ErrUnavailable: the backend cannot be reached, is locked, or is being
	// brought back. Nothing is wrong with the request: try again later.
	ErrUnavailable = errors.New("signing backend unavailable")

	// ErrThrottled: the backend refuses more work for the moment. Slow down
	// and try again.
	ErrThrottled = errors.New("signing backend throttled")

	// ErrKeyNotFound: the backend is healthy and has no such key. Trying again
	// does not help until an operator has put the key in place.
	ErrKeyNotFound = errors.New("signing key not found")

	// ErrKeyDisabled: the key exists and may not sign: disabled, pending
	// deletion, or without the right to sign.
	ErrKeyDisabled = errors.New("signing key may not sign")

	// ErrKeyMismatch: the key exists but is not of the type, curve or size
	// that its algorithm needs, or it is not the key that was there before.
	// An operator has to look.
	ErrKeyMismatch = errors.New("signing key does not fit")

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
	// returns when ctx ends, even if the backend still works.
	//
	// Errors wrap ErrUnavailable, ErrThrottled, ErrKeyNotFound, ErrKeyDisabled
	// or ErrKeyMismatch, or are the context's.
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// Backend is one configured place of private keys.
type Backend interface {
	// OpenKey finds the key that ref names, in the backend's own notation,
	// reads its public half and binds it to alg. The algorithm is a parameter
	// because a reference cannot say it: one RSA key could sign RS256 or
	// PS256. It returns when ctx ends. Errors are those of Key.Sign, and
	// ErrReference.
	OpenKey(ctx context.Context, ref string, alg Algorithm) (Key, error)

	// Check asks the backend for something real and cheap, and returns nil if
	// it answered. It signs nothing.
	Check(ctx context.Context) error

	// Close waits for signatures in flight and lets go of the backend. Keys
	// opened from it answer ErrUnavailable afterwards.
	Close() error
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
