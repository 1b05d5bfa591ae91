package pkcs11

import (
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/bulla-project/bulla/kms"
)

// maxReference bounds a key reference, in bytes.
const maxReference = 1024

// Reference names a signing or a wrapping key. It is read from text by ParseReference.
type Reference struct {
	want wanted
}

// String is the reference in its short form, in a fixed order.
func (r Reference) String() string {
	var parts []string
	for _, a := range [][2]string{
		{"token", r.want.token}, {"serial", r.want.serial},
		{"manufacturer", r.want.manufacturer}, {"model", r.want.model},
	} {
		if a[1] != "" {
			parts = append(parts, a[0]+"="+escape(a[1]))
		}
	}
	parts = append(parts, r.want.String())
	for name, class := range classNames {
		if class == r.want.class {
			parts = append(parts, "type="+name)
		}
	}
	return strings.Join(parts, ";")
}

// classNames are the types of objects that a reference may say (RFC 7512,
// section 2.3, pk11-type) with their CKO_….
var classNames = map[string]uint{"private": ckoPrivateKey, "secret-key": ckoSecretKey}

// forbiddenAttributes are those of RFC 7512 that a key reference may not have,
// with what to do instead.
var forbiddenAttributes = map[string]string{
	"pin-value":            "a PIN does not belong into a reference; put it into a file and name it in the backend's pin_file",
	"pin-source":           "the PIN's file is named once, in the backend's pin_file",
	"module-path":          "the module is named once, in the backend's module",
	"module-name":          "the module is named once, in the backend's module",
	"slot-id":              "slot numbers change from start to start; name the token by its label or serial",
	"slot-description":     "slots change from start to start; name the token by its label or serial",
	"slot-manufacturer":    "slots change from start to start; name the token by its label or serial",
	"library-description":  "the module is named once, in the backend's module",
	"library-manufacturer": "the module is named once, in the backend's module",
	"library-version":      "the module is named once, in the backend's module",
}

// ParseReference reads a key reference: a PKCS#11 URI (RFC 7512), or the same
// attributes without the scheme:
//
//	object=login-es256
//	id=%01%02
//	object=login-es256;id=%01
//	pkcs11:token=bulla;object=login-es256;type=private
//	object=wrap-1;type=secret-key
//
// object is CKA_LABEL and id is CKA_ID; at least one is needed, and together
// they have to fit exactly one key. token, serial, manufacturer and model are
// allowed and must be those of the backend's token. type may be private, or
// secret-key for a wrapping key; a wrapping key without a type may be either.
// Everything else is refused. Errors wrap kms.ErrReference, say what to do, and
// never repeat the value of an attribute that may be a secret.
func ParseReference(text string) (Reference, error) {
	fail := func(format string, a ...any) (Reference, error) {
		return Reference{}, fmt.Errorf("%w: "+format, append([]any{kms.ErrReference}, a...)...)
	}
	if len(text) > maxReference {
		return fail("longer than %d bytes", maxReference)
	}
	body := text
	if scheme, rest, ok := strings.Cut(text, ":"); ok && strings.EqualFold(scheme, "pkcs11") {
		body = rest
	}
	path, query, hasQuery := strings.Cut(body, "?")
	if hasQuery {
		for _, part := range strings.Split(query, "&") {
			name, _, _ := strings.Cut(part, "=")
			if advice, ok := forbiddenAttributes[name]; ok {
				return fail("attribute %s is not allowed here: %s", name, advice)
			}
		}
		return fail("it has a query (the part after \"?\"), and a key reference has none")
	}
	if path == "" {
		return fail("it names no key: write object=LABEL, id=%%01, or both joined by \";\"")
	}

	var r Reference
	seen := map[string]bool{}
	for _, part := range strings.Split(path, ";") {
		name, raw, ok := strings.Cut(part, "=")
		if !ok || name == "" {
			return fail("attribute %d has no \"name=value\" form: write object=LABEL, id=%%01, or both joined by \";\"", len(seen)+1)
		}
		if advice, ok := forbiddenAttributes[name]; ok {
			return fail("attribute %s is not allowed here: %s", name, advice)
		}
		if seen[name] {
			return fail("attribute %s occurs twice", clip(name))
		}
		seen[name] = true
		value, err := unescape(raw)
		if err != nil {
			return fail("attribute %s: %w", clip(name), err)
		}
		if value == "" {
			return fail("attribute %s is empty: give it a value or leave it out", clip(name))
		}
		if name != "id" && !utf8.ValidString(value) {
			return fail("attribute %s is not UTF-8", clip(name))
		}
		switch name {
		case "object":
			r.want.label, r.want.byLabel = value, true
		case "id":
			r.want.id, r.want.byID = value, true
		case "token":
			r.want.token = value
		case "serial":
			r.want.serial = value
		case "manufacturer":
			r.want.manufacturer = value
		case "model":
			r.want.model = value
		case "type":
			class, ok := classNames[value]
			if !ok {
				return fail("type is %q: a signing key is type=private, a wrapping key type=secret-key or type=private", clip(value))
			}
			r.want.class = class
		default:
			return fail("attribute %q is unknown: a reference may have object, id, token, serial, manufacturer, model and type", clip(name))
		}
	}
	if !r.want.byLabel && !r.want.byID {
		return fail("it names no key: add object=LABEL, id=%%01, or both")
	}
	return r, nil
}

// clip keeps what a message repeats of its input short.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// plain reports whether RFC 7512 (section 2.3, pk11-path-res-avail and
// unreserved) lets c stand for itself in a value.
func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("-._~:[]@!$'()*+,=&", c) >= 0
}

// unescape decodes the percent-encoding of a value. Nothing else is special:
// "+" is a plus sign.
func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			if i+2 >= len(s) {
				return "", fmt.Errorf("\"%%\" at byte %d is not followed by two hexadecimal digits", i)
			}
			decoded, err := hex.DecodeString(s[i+1 : i+3])
			if err != nil {
				return "", fmt.Errorf("\"%%\" at byte %d is not followed by two hexadecimal digits", i)
			}
			b.Write(decoded)
			i += 2
		case plain(c):
			b.WriteByte(c)
		default:
			return "", fmt.Errorf("byte 0x%02X at %d has to be written %%%02X", c, i, c)
		}
	}
	return b.String(), nil
}

// escape percent-encodes what cannot stand for itself.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

// escapeAll percent-encodes every byte, as is the custom for id.
func escapeAll(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}
