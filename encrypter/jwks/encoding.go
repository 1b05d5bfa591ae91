package jwks

import (
	"encoding/base64"
	"errors"
	"strings"
)

// strictBase64URL is base64url as RFC 7515, section 2 has it: no padding, and
// no stray bits in the last character.
func strictBase64URL() *base64.Encoding { return base64.RawURLEncoding.Strict() }

// decodeMember decodes the base64url value of a member that must be there and
// not be empty.
func decodeMember(m members, name string) ([]byte, error) {
	text, ok := m.texts[name]
	if !ok {
		return nil, errors.New("it has no member " + quote(name) + ": add it")
	}
	raw, err := decodeStrict(strictBase64URL(), text)
	if err != nil {
		return nil, errors.New("its member " + quote(name) + " is not base64url without padding (RFC 7515, section 2): encode it so")
	}
	if len(raw) == 0 {
		return nil, errors.New("its member " + quote(name) + " is empty: publish the whole key")
	}
	return raw, nil
}

// decodeStrict decodes text, in which the encoding alone would pass over line
// breaks.
func decodeStrict(encoding *base64.Encoding, text string) ([]byte, error) {
	if i := strings.IndexAny(text, "\r\n"); i >= 0 {
		return nil, base64.CorruptInputError(i)
	}
	return encoding.DecodeString(text)
}

func encode(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }
