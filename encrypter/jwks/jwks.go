// Package jwks reads the public keys of an OAuth client, a JWK Set (RFC 7517,
// section 5) or a PEM text, checks every key, and chooses the one that tokens
// are encrypted to.
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
// For a client that has no keys of its own, [Generate] makes a pair.
//
// The package does no I/O and reads no clock: "x5u" is never followed, and a
// certificate's dates are judged only against a time that the caller gives.
// Fetching belongs to package fetch, keeping and refreshing to keycache.
// Certificates are not validated up to a root: a certificate serves to name
// the key by "x5t#S256", not to trust it.
package jwks

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Errors of this package; match them with errors.Is.
var (
	// ErrRejected: the document is refused as a whole. The text says at which
	// key and what the owner of the set has to change. At a refresh, go on
	// with the last good set.
	ErrRejected = errors.New("key document rejected")

	// ErrNoKey: no key of the set can be used for the wanted algorithm. The
	// text lists why not, key by key. The client has to publish a fitting key
	// or change its registered algorithm.
	ErrNoKey = errors.New("no client key fits")

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
	// shortest is always encrypter.MinRSABits.
	MaxRSABits int
	// MaxDepth is how deep JSON objects and arrays may nest. A JWK Set itself
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
	// Usable: the key passed the checks that are made of every key.
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

	// Public is the *rsa.PublicKey, *ecdsa.PublicKey, *ecdh.PublicKey (X25519)
	// or encrypter.X448PublicKey of a Usable key, nil otherwise. An EC point is
	// on its curve; an X25519 or X448 one is not of low order.
	Public crypto.PublicKey

	// Type and Curve are the members "kty" and "crv". This and the following
	// members are left out here if they are too long, which rejects the key.
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

	// X5TS256 and X5T are the base64url SHA-256 and SHA-1 of the certificate's
	// DER, computed here; empty if the key carries no certificate. A Usable
	// key's certificate is for this very public key.
	X5TS256, X5T string
	// NotBefore and NotAfter are the certificate's dates; zero without one. A
	// certificate may have the zero time as a date too.
	NotBefore, NotAfter time.Time

	// Warnings are remarks for the key's owner: each is one line and none of
	// them keeps the key from being used. WarningsAt adds those that depend on
	// the time.
	Warnings []string

	// pem says that the key was not in a JWK Set, which changes how it is
	// spoken of.
	pem bool

	// primeModulus tells whether the modulus of a Usable RSA key is a prime,
	// with which anybody can decrypt; nil for other keys. The answer takes
	// milliseconds the first time, so only a key that is about to be chosen for
	// a client that registers is asked.
	primeModulus func() bool
}

// CertificateError returns nil if the key has no certificate or if at lies
// within the certificate's dates, else an error that says which date it
// misses.
func (k *Key) CertificateError(at time.Time) error {
	switch {
	case k.X5TS256 == "":
		return nil
	case at.Before(k.NotBefore):
		return fmt.Errorf("its certificate is not valid before %s: wait, or %s", date(k.NotBefore), k.otherCertificate())
	case at.After(k.NotAfter):
		return fmt.Errorf("its certificate expired at %s: %s", date(k.NotAfter), k.otherCertificate())
	}
	return nil
}

// certificateNotice is how long before its end a certificate is worth a
// warning: time enough to have a new one issued and published.
const certificateNotice = 30 * 24 * time.Hour

// WarningsAt returns Warnings and what there is to say at that time about the
// key's certificate: that it is outside its dates, or has less than 30 days
// left.
func (k *Key) WarningsAt(at time.Time) []string {
	err, left := k.CertificateError(at), k.NotAfter.Sub(at)
	switch {
	case err != nil:
		return append(slices.Clone(k.Warnings), err.Error())
	case k.X5TS256 != "" && left < certificateNotice:
		return append(slices.Clone(k.Warnings), fmt.Sprintf("its certificate expires at %s, in %d days: %s",
			date(k.NotAfter), left/(24*time.Hour), k.otherCertificate()))
	}
	return k.Warnings
}

// otherCertificate says what can be done about a certificate's dates.
func (k *Key) otherCertificate() string {
	if k.pem {
		return "register a new one, or the public key alone"
	}
	return "publish a new one, or leave x5c out"
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// String names the key as messages do: its place in the document and its kid.
func (k *Key) String() string {
	if k.pem {
		return "the PEM key"
	}
	return keyName(k.Index, k.KeyID)
}

func (k *Key) reject(format string, args ...any) {
	k.State, k.Reason = Rejected, fmt.Sprintf(format, args...)
}

func (k *Key) skip(format string, args ...any) {
	k.State, k.Reason = Skipped, fmt.Sprintf(format, args...)
}

func (k *Key) warn(format string, args ...any) {
	k.Warnings = append(k.Warnings, fmt.Sprintf(format, args...))
}

// Set is what was parsed from one document. It is immutable and safe for concurrent use.
type Set struct {
	keys []*Key
}

// Keys returns every key of the document in its order, those that cannot be
// used included. The slice must not be changed.
func (s *Set) Keys() []*Key { return s.keys }
