package encrypter

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // its size only: x5t is defined with it.
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxHeaderSize bounds the JSON text of the header that is the same in every
// token, in bytes. It is repeated in each of them and kept for each client, and
// a token of some kilobytes no longer passes through the HTTP headers that
// carry tokens.
const maxHeaderSize = 2048

// header is the part of the protected header that is the same in every token
// of a recipient; see Recipient.
type header struct {
	keyID   string
	encoded string
	rest    string
}

// newHeader encodes the protected header for cfg, whose algorithms are known.
func newHeader(cfg RecipientConfig) (header, error) {
	if !isThumbprint(cfg.X5T, sha1.Size) {
		return header{}, fmt.Errorf("%w: x5t must be the SHA-1 hash of a certificate, 20 bytes in base64url without padding (not of its hexadecimal text)", ErrHeaderValue)
	}
	if !isThumbprint(cfg.X5TS256, sha256.Size) {
		return header{}, fmt.Errorf("%w: x5t#S256 must be the SHA-256 hash of a certificate, 32 bytes in base64url without padding", ErrHeaderValue)
	}
	text := []byte("{")
	for _, member := range []struct{ name, value string }{
		{"alg", string(cfg.Algorithm)},
		{"enc", string(cfg.ContentEncryption)},
		{"cty", "JWT"}, // RFC 7519 section 5.2: always so in a nested JWT
		{"kid", cfg.KeyID},
		{"x5t", cfg.X5T},
		{"x5t#S256", cfg.X5TS256},
		{"iss", cfg.Issuer},
	} {
		if member.value == "" {
			continue
		}
		value, err := jsonString(member.value)
		if err != nil {
			return header{}, fmt.Errorf("%w: %s %w", ErrHeaderValue, member.name, err)
		}
		if len(text) > 1 {
			text = append(text, ',')
		}
		text = fmt.Appendf(text, `"%s":%s`, member.name, value)
	}
	return encodeHeader(text, cfg.KeyID, cfg.Issuer)
}

// headerWith returns the recipient's header with one more member at its end,
// which it must not have yet.
func (r *Recipient) headerWith(name, value string) (header, error) {
	text, err := base64url.DecodeString(r.headerEncoded)
	if err != nil {
		return header{}, fmt.Errorf("decode the header to add to it: %w", err)
	}
	text = append(text, r.headerRest...)
	// Inside a string the quotes would be escaped.
	if value == "" || bytes.Contains(text, fmt.Appendf(nil, `,"%s":`, name)) {
		return header{}, fmt.Errorf("%w: %s can be added once, and not empty", ErrHeaderValue, name)
	}
	encoded, err := jsonString(value)
	if err != nil {
		return header{}, fmt.Errorf("%w: %s %w", ErrHeaderValue, name, err)
	}
	return encodeHeader(fmt.Appendf(text, `,"%s":%s`, name, encoded), r.keyID, value)
}

// encodeHeader encodes the text of a header, which lacks its closing brace.
func encodeHeader(text []byte, keyID, issuer string) (header, error) {
	if len(text) > maxHeaderSize {
		return header{}, fmt.Errorf("%w: the protected header takes %d bytes and may take %d: shorten the key's kid (%d bytes) or the issuer's URL (%d bytes)",
			ErrHeaderValue, len(text), maxHeaderSize, len(keyID), len(issuer))
	}
	ahead := len(text) / 3 * 3
	return header{
		// A key ID is often a piece of a whole key set's text, which must
		// not stay in memory for it.
		keyID:   strings.Clone(keyID),
		encoded: base64url.EncodeToString(text[:ahead]),
		rest:    string(text[ahead:]),
	}, nil
}

// isThumbprint reports whether s is the base64url encoding of a hash of size
// bytes, or empty.
func isThumbprint(s string, size int) bool {
	if s == "" {
		return true
	}
	// The length is compared too, as the decoder skips line breaks.
	thumbprint, err := base64url.DecodeString(s)
	return err == nil && len(thumbprint) == size && len(s) == base64url.EncodedLen(size)
}

// jsonString encodes s as a JSON string.
func jsonString(s string) ([]byte, error) {
	// encoding/json would replace what is not UTF-8, and the header would
	// name another key.
	if !utf8.ValidString(s) {
		return nil, errors.New("is not UTF-8 text")
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
