package client

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// maxHeader bounds a protected header, in decoded bytes. The largest sane one
// carries a certificate chain.
const maxHeader = 16 << 10

// Header is a protected JOSE header whose token has been decrypted or verified.
type Header struct {
	Algorithm         string // alg
	ContentEncryption string // enc; empty in a JWS
	KeyID             string // kid
	Type              string // typ
	ContentType       string // cty
	// JSON is the header as the token has it, for all other parameters.
	JSON []byte
}

// header is a Header while it is still a stranger's word.
type header struct {
	Header
	members map[string]jsontext.Value
}

// has tells if the header has a parameter of this name, whatever its value.
func (h *header) has(name string) bool {
	_, ok := h.members[name]
	return ok
}

// splitCompact cuts a compact serialization into its parts and decodes each. Every
// part must be canonical base64url without padding (RFC 7515, section 2).
//
// go-jose overlooks line breaks and unused bits that are not zero, which
// would make many texts of one token; so this stands before it.
func splitCompact(token string, want int) ([][]byte, error) {
	// Counted first: a token of dots alone would be split into much more than it is.
	if n := strings.Count(token, ".") + 1; n != want {
		return nil, fmt.Errorf("%w: it has %d parts, not %d", ErrMalformed, n, want)
	}
	parts := strings.Split(token, ".")
	decoded := make([][]byte, len(parts))
	for i, part := range parts {
		raw, err := decodeBase64(part)
		if err != nil {
			return nil, fmt.Errorf("%w: part %d of %d is not canonical base64url", ErrMalformed, i+1, want)
		}
		decoded[i] = raw
	}
	return decoded, nil
}

func decodeBase64(s string) ([]byte, error) {
	// Go's decoder skips line breaks even when strict.
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		return nil, base64.CorruptInputError(i)
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// parseHeader reads a decoded protected header: a JSON object without duplicate
// names (RFC 7515, section 4) whose well-known parameters are strings.
func parseHeader(raw []byte) (*header, error) {
	if len(raw) > maxHeader {
		return nil, fmt.Errorf("%w: its header has %d bytes, more than %d", ErrMalformed, len(raw), maxHeader)
	}
	members, err := parseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: its header is not a JSON object with distinct names", ErrMalformed)
	}
	h := &header{members: members}
	h.JSON = raw
	for _, p := range []struct {
		name string
		into *string
	}{
		{"alg", &h.Algorithm},
		{"enc", &h.ContentEncryption},
		{"kid", &h.KeyID},
		{"typ", &h.Type},
		{"cty", &h.ContentType},
	} {
		value, ok := members[p.name]
		if !ok {
			continue
		}
		s, ok := stringValue(value)
		if !ok {
			return nil, fmt.Errorf("%w: header parameter %s is not a string", ErrMalformed, p.name)
		}
		*p.into = s
	}
	if h.Algorithm == "" {
		return nil, fmt.Errorf("%w: its header has no alg", ErrMalformed)
	}
	return h, nil
}

// refuseExtensions refuses what would change how the token is to be read. The
// only extension that libraries know, b64 (RFC 7797), is forbidden in JWTs; crit
// therefore can only name what is not understood here (RFC 7515, section 4.1.11).
func (h *header) refuseExtensions() error {
	for _, name := range []string{"crit", "b64"} {
		if h.has(name) {
			return fmt.Errorf("%w: header parameter %s is not supported", ErrNotAllowed, name)
		}
	}
	return nil
}

// parseObject reads one JSON object, strictly: UTF-8, no duplicate names at any
// depth, nothing after it.
func parseObject(raw []byte) (map[string]jsontext.Value, error) {
	d := jsontext.NewDecoder(bytes.NewReader(raw))
	if k := d.PeekKind(); k != '{' {
		return nil, errors.New("not a JSON object")
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	members := map[string]jsontext.Value{}
	for d.PeekKind() != '}' {
		token, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		name := token.String() // before the next read, which reuses the token's memory
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		members[name] = value.Clone()
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON object")
	}
	return members, nil
}

// stringValue returns the string that a JSON value is.
func stringValue(v jsontext.Value) (string, bool) {
	if v.Kind() != '"' {
		return "", false
	}
	raw, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return "", false
	}
	return string(raw), true
}

// quote makes a stranger's text fit for an error message: printable, and short.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return strconv.QuoteToASCII(s[:limit]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
