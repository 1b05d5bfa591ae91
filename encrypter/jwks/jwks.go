// Package jwks reads the JWK Set (RFC 7517, section 5) of an OAuth client,
// checks every key in it, and chooses the one that tokens are encrypted to.
//
// The document comes from outside, often straight from the network, and what
// is chosen from it decides who can read a token. Hence three promises:
//
//   - A document that shows its owner has lost control of it is refused whole
//     ([ErrRejected]): malformed or oversized JSON, a member named twice, a
//     private or symmetric key among the public ones, two keys that nobody
//     can tell apart. Nothing is chosen from such a set.
//   - A single key that is weak, malformed or not understood only falls out
//     of the choice. It stays in the [Set] with its reason, so that an
//     operator can be told why it was not taken. A key whose "use" is "sig"
//     is never taken.
//   - The choice is one function of the document and the [Want]: the same on
//     every replica, and [Set.Explain] prints the very decision that
//     [Set.Choose] makes.
//
// The package does no I/O and reads no clock: "x5u" is never followed, and a
// certificate's dates are judged only against a time that the caller gives.
// Fetching belongs to package fetch, keeping and refreshing to keycache.
// Certificates are not validated up to a root: "x5c" serves to name the key
// by "x5t#S256", not to trust it.
package jwks

import (
	"crypto"
	"errors"
	"fmt"
	"time"
)

// Errors of this package; match them with errors.Is.
var (
	// ErrRejected: the document is refused as a whole. The text says at which
	// key and what the owner of the set has to change. At a refresh, go on
	// with the last good set.
	ErrRejected = errors.New("JWK Set rejected")

	// ErrNoKey: no key of the set can be used for the wanted algorithm. The
	// text lists why not, key by key. The client has to publish a fitting key
	// or change its registered algorithm.
	ErrNoKey = errors.New("no key in the JWK Set fits")

	// ErrKeyRejected comes together with ErrNoKey when there is a key that
	// would have fitted had it passed the checks: a key too short, say. The
	// client has to replace that key.
	ErrKeyRejected = errors.New("the fitting key was rejected")
)

// Limits bounds what Parse accepts. The zero value of a field means its
// default.
type Limits struct {
	// MaxBytes is the longest document, in bytes. Default 128 KiB.
	MaxBytes int
	// MaxKeys is the largest number of keys in a set, usable or not.
	// Default 100.
	MaxKeys int
	// MaxRSABits is the longest RSA modulus, in bits. Default 4096. The
	// shortest is always 2048.
	MaxRSABits int
	// MaxDepth is how deep objects and arrays may nest. A JWK Set itself
	// needs 4. Default 16.
	MaxDepth int
}

const (
	defaultMaxBytes   = 128 << 10
	defaultMaxKeys    = 100
	defaultMaxRSABits = 4096
	defaultMaxDepth   = 16
)

func (l Limits) withDefaults() Limits {
	if l.MaxBytes == 0 {
		l.MaxBytes = defaultMaxBytes
	}
	if l.MaxKeys == 0 {
		l.MaxKeys = defaultMaxKeys
	}
	if l.MaxRSABits == 0 {
		l.MaxRSABits = defaultMaxRSABits
	}
	if l.MaxDepth == 0 {
		l.MaxDepth = defaultMaxDepth
	}
	return l
}

// State says what became of a key when its set was parsed.
type State int

const (
	// Usable: the key passed all checks.
	Usable State = iota
	// Rejected: the key is malformed, inconsistent or weak.
	Rejected
	// Skipped: the key may be good, but its kty or crv is not one that tokens
	// can be encrypted to here.
	Skipped
)

// String returns the state as one lower-case word.
func (s State) String() string {
	switch s {
	case Usable:
		return "usable"
	case Rejected:
		return "rejected"
	case Skipped:
		return "skipped"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// Key is one key of a set. It is read-only: it may be shared by many
// goroutines and its fields must not be changed.
type Key struct {
	// Index is the key's position in the document's "keys", from 0.
	Index int
	// State is Usable, or Reason says in one line why not and what to do.
	State  State
	Reason string

	// Public is the *rsa.PublicKey or *ecdsa.PublicKey of a Usable key, nil
	// otherwise. An EC point is on its curve.
	Public crypto.PublicKey

	// Type and Curve are the members "kty" and "crv".
	Type, Curve string
	// KeyID is the member "kid"; empty if the key has none.
	KeyID string
	// Use, Algorithm and KeyOps are the members "use", "alg" and "key_ops";
	// empty if absent.
	Use, Algorithm string
	KeyOps         []string

	// Thumbprint is the RFC 7638 SHA-256 thumbprint, base64url. It is empty
	// for a key whose kty or crv is unknown or whose members are malformed.
	Thumbprint string

	// X5TS256 is the base64url SHA-256 of the certificate's DER, computed
	// here from x5c[0]; empty if the key carries no certificate. A Usable
	// key's certificate is for this very public key.
	X5TS256 string
	// NotBefore and NotAfter are the certificate's dates; zero without one.
	NotBefore, NotAfter time.Time

	// Warnings are remarks for the key's owner: each is one line and none of
	// them keeps the key from being used.
	Warnings []string
}

// CertificateError returns nil if the key has no certificate or if at lies
// within the certificate's dates, else an error that says which date it
// misses.
func (k *Key) CertificateError(at time.Time) error {
	switch {
	case k.NotAfter.IsZero():
		return nil
	case at.Before(k.NotBefore):
		return fmt.Errorf("its certificate is not valid before %s: wait, or publish one that is valid now",
			k.NotBefore.UTC().Format(time.RFC3339))
	case at.After(k.NotAfter):
		return fmt.Errorf("its certificate expired at %s: publish a new one, or leave x5c out",
			k.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// String names the key as messages do: its place in the document and its kid.
func (k *Key) String() string { return keyName(k.Index, k.KeyID) }

func (k *Key) reject(format string, args ...any) {
	k.State, k.Reason = Rejected, fmt.Sprintf(format, args...)
}

func (k *Key) skip(format string, args ...any) {
	k.State, k.Reason = Skipped, fmt.Sprintf(format, args...)
}

func (k *Key) warn(format string, args ...any) {
	k.Warnings = append(k.Warnings, fmt.Sprintf(format, args...))
}

// Set is a parsed JWK Set. It is immutable and safe for concurrent use.
type Set struct {
	keys []*Key
}

// Keys returns every key of the document in its order, those that cannot be
// used included. The slice must not be changed.
func (s *Set) Keys() []*Key { return s.keys }
