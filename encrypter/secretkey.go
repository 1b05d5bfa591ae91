package encrypter

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"
)

// SecretKey is a symmetric key that a client shares with the issuer. Given to
// fmt, slog or encoding/json, whatever the verb, or in a value given to them, its
// bytes do not show: with them, guesses at a weak client secret could be tried
// off line.
//
// One thing these methods cannot do: fmt does not call them for what is below
// an unexported struct field, and prints the bytes. Keep none in such a field.
type SecretKey []byte

// redacted is what shows in the place of a secret key. It does not tell the
// key's length.
const redacted = "[secret key]"

// String returns a fixed text.
func (SecretKey) String() string { return redacted }

// GoString returns a fixed text.
func (SecretKey) GoString() string { return redacted }

// Format writes a fixed text, for every verb: %x and %d would not ask String
// or not heed it.
func (SecretKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns a fixed text.
func (SecretKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a fixed text, which is what encoding/json writes.
func (SecretKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Bounds of derived keys, in bytes.
const (
	minSecretSize = 16
	maxSecretSize = sha512.Size
)

// DeriveSecretKey derives a key of size bytes, 16 to 64, from a client secret,
// as client and issuer both do: the left-most bytes of a hash of its UTF-8
// text, SHA-256 for keys up to 256 bits, SHA-384 up to 384 and SHA-512 up to
// 512 (OpenID Connect Core 1.0 section 10.2). [KeyAlgorithm.SecretSize] tells
// the size.
//
// One SHA-2 is no protection for a secret that can be guessed: client secrets
// are to be random, of 32 bytes at least (OpenID Connect Core 1.0 section
// 16.19). Its errors wrap [ErrKeyUnsuitable] and hold nothing of the secret.
func DeriveSecretKey(secret string, size int) (SecretKey, error) {
	if secret == "" {
		return nil, fmt.Errorf("%w: the client secret is empty; symmetric encryption is for clients that have one", ErrKeyUnsuitable)
	}
	if !utf8.ValidString(secret) {
		return nil, fmt.Errorf("%w: the client secret is not UTF-8 text, so that client and issuer could derive different keys from it", ErrKeyUnsuitable)
	}
	if size < minSecretSize || size > maxSecretSize {
		return nil, fmt.Errorf("%w: no key of %d bytes can be derived from a client secret, only of %d to %d", ErrKeyUnsuitable, size, minSecretSize, maxSecretSize)
	}
	switch text := []byte(secret); {
	case size <= sha256.Size:
		sum := sha256.Sum256(text)
		return sum[:size:size], nil
	case size <= sha512.Size384:
		sum := sha512.Sum384(text)
		return sum[:size:size], nil
	default:
		sum := sha512.Sum512(text)
		return sum[:size:size], nil
	}
}
