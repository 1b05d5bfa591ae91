package keycache

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// keySizeError is ErrKeySize with the lengths and the bounds.
type keySizeError struct {
	bits        []int // of the keys that would fit, each length once
	least, most int   // most is 0 for no bound of the issuer's own
}

func (e *keySizeError) Error() string {
	lengths := make([]string, len(e.bits))
	for i, bits := range e.bits {
		lengths[i] = fmt.Sprintf("an RSA key of %d bits", bits)
	}
	allowed := fmt.Sprintf("%d bits or more", e.least)
	if e.most != 0 {
		allowed = fmt.Sprintf("%d to %d bits", e.least, e.most)
	}
	return fmt.Sprintf("%v: %s; allowed here: %s", ErrKeySize, strings.Join(lengths, ", "), allowed)
}

// Unwrap returns the sentinels that the error stands for: those of a
// *jwks.NoKeyError too.
func (e *keySizeError) Unwrap() []error {
	return []error{ErrKeySize, jwks.ErrNoKey, jwks.ErrKeyRejected}
}

// sized returns the error of a choice as a *keySizeError if the issuer's bounds
// are all that keeps a key from being chosen, and as it is otherwise.
func sized(err error) error {
	var none *jwks.NoKeyError
	if !errors.As(err, &none) {
		return err
	}
	want := none.Want
	e := &keySizeError{least: max(want.MinRSABits, encrypter.MinRSABits), most: want.MaxRSABits}
	for _, v := range none.Verdicts {
		if v.Outcome != jwks.Unusable {
			continue
		}
		// A key that fails a check of its own has no Public.
		key, ok := v.Key.Public.(*rsa.PublicKey)
		if !ok {
			return err
		}
		bits := key.N.BitLen()
		if bits >= want.MinRSABits && (want.MaxRSABits == 0 || bits <= want.MaxRSABits) {
			return err
		}
		if !slices.Contains(e.bits, bits) {
			e.bits = append(e.bits, bits)
		}
	}
	if len(e.bits) == 0 {
		return err
	}
	return e
}
