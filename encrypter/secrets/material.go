package secrets

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
)

// Material is what is kept of a client's secret, in the clear. It exists in
// memory only, for as long as it takes to make recipients of it, and prints as
// "[redacted]". Hold it by pointer: of a Material in an unexported struct field,
// fmt would not ask and print all.
type Material struct {
	// Keys are the keys derived from the secret, by their size in bytes.
	Keys map[int][]byte
	// Secret is the secret itself, nil unless a setting signs with it.
	Secret []byte
}

// Empty reports whether there is nothing to keep.
func (m *Material) Empty() bool { return len(m.Keys) == 0 && len(m.Secret) == 0 }

// Equal reports whether m holds the same as o. How long it takes tells nothing
// of the keys or of the secret, its length included.
func (m *Material) Equal(o *Material) bool {
	if len(m.Keys) != len(o.Keys) {
		return false
	}
	same := 1
	for size, key := range m.Keys {
		same &= subtle.ConstantTimeCompare(key, o.Keys[size])
	}
	mine, theirs := sha256.Sum256(m.Secret), sha256.Sum256(o.Secret)
	return same&subtle.ConstantTimeCompare(mine[:], theirs[:]) == 1
}

// covers reports whether m has all of what settings need.
func (m *Material) covers(n needs) bool {
	for size := range n.sizes {
		if len(m.Keys[size]) != size {
			return false
		}
	}
	return len(n.signed) == 0 || len(m.Secret) > 0
}

// wipe overwrites m.
func (m *Material) wipe() {
	for _, key := range m.Keys {
		clear(key)
	}
	clear(m.Secret)
}

const redacted = "[redacted]"

// String returns "[redacted]".
func (m Material) String() string { return redacted }

// Format writes "[redacted]", whatever the verb.
func (m Material) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, redacted) }

// LogValue returns "[redacted]".
func (m Material) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]".
func (m Material) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// The plaintext that is sealed:
//
//	version          1 byte: 1
//	number of keys   1 byte
//	each key         1 byte for its size, then the key; by size
//	the secret       2 bytes for its length, 0 for none, then the secret
//	zeros            up to the next multiple of 512
//
// The padding is there since a sealed form is as long as what is in it, and the
// length of a secret helps to guess it.
const (
	version = 1
	block   = 512
	maxKey  = 64 // bytes of the largest key that any algorithm takes
)

func (m *Material) encode() ([]byte, error) {
	if len(m.Secret) > MaxSecret || len(m.Keys) > maxKey {
		return nil, errors.New("secrets: the material is none of Derive's")
	}
	// As large as it can get, so that no copy of it is left behind in memory.
	b := make([]byte, 0, 4*block)
	b = append(b, version, byte(len(m.Keys))) //nolint:gosec // checked above
	for _, size := range slices.Sorted(maps.Keys(m.Keys)) {
		if size < 1 || size > maxKey || len(m.Keys[size]) != size {
			return nil, errors.New("secrets: the material is none of Derive's")
		}
		b = append(append(b, byte(size)), m.Keys[size]...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Secret))) //nolint:gosec // checked above
	b = append(b, m.Secret...)
	return append(b, make([]byte, (block-len(b)%block)%block)...), nil
}

// errEncoding tells nothing of what is inside.
var errEncoding = errors.New("it is not in the form that this version writes")

// decode reads what encode wrote, and nothing else. The result shares no memory
// with b.
func decode(b []byte) (*Material, error) {
	if len(b) == 0 || len(b)%block != 0 || b[0] != version {
		return nil, errEncoding
	}
	m, last := &Material{}, 0
	count, b := int(b[1]), b[2:]
	for range count {
		if len(b) == 0 {
			return nil, errEncoding
		}
		size := int(b[0])
		if b = b[1:]; size <= last || size > maxKey || len(b) < size {
			return nil, errEncoding
		}
		if m.Keys == nil {
			m.Keys = make(map[int][]byte)
		}
		m.Keys[size] = slices.Clone(b[:size])
		b, last = b[size:], size
	}
	if len(b) < 2 {
		return nil, errEncoding
	}
	length := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; length > MaxSecret || len(b) < length {
		return nil, errEncoding
	}
	if length > 0 {
		m.Secret = slices.Clone(b[:length])
	}
	if padding := b[length:]; len(padding) >= block || slices.ContainsFunc(padding, func(c byte) bool { return c != 0 }) {
		return nil, errEncoding
	}
	return m, nil
}
