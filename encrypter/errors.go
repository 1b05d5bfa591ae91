package encrypter

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of this package. They are wrapped with what is wrong and what to do
// about it; match them with errors.Is.
var (
	// ErrUnknownAlgorithm: the alg or enc is none that this package
	// implements. Choose one of [KeyAlgorithms] and [ContentEncryptions].
	ErrUnknownAlgorithm = errors.New("unknown encryption algorithm")

	// ErrPair: the alg and the enc are known, but do not go together. Choose
	// another enc.
	ErrPair = errors.New("encryption algorithms do not go together")

	// ErrKeyUnsuitable: the key is of the wrong type or curve for the
	// algorithm, too small, too large, or not a valid key at all. Trying
	// again cannot help: get another key from the client, or agree on another
	// algorithm with it.
	ErrKeyUnsuitable = errors.New("unsuitable encryption key")

	// ErrHeaderValue: a key ID, certificate thumbprint or issuer cannot stand
	// in the protected header. Correct the registration or the client's key
	// set.
	ErrHeaderValue = errors.New("unusable header value")

	// ErrNotSigned: what was to be encrypted is not a JWS in the compact
	// serialization, so that the header's promise of a nested JWT would be
	// false. It is a mistake in the calling program: sign first.
	ErrNotSigned = errors.New("not a signed token")
)

func unknownKeyAlgorithm(a KeyAlgorithm) error {
	return fmt.Errorf("%w: alg %q; use one of %s", ErrUnknownAlgorithm, string(a), join(KeyAlgorithms()))
}

func unknownContentEncryption(e ContentEncryption) error {
	return fmt.Errorf("%w: enc %q; use one of %s", ErrUnknownAlgorithm, string(e), join(ContentEncryptions()))
}

// join lists names for people.
func join[T ~string](names []T) string {
	s := make([]string, len(names))
	for i, n := range names {
		s[i] = string(n)
	}
	return strings.Join(s, ", ")
}
