package metadata

import (
	"bytes"
	"errors"
	"io"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// Limits of a document.
const (
	// MaxBytes is the longest document, in bytes: the longest JWK Set that a
	// registration may hold, and room for the rest.
	MaxBytes = registry.MaxJWKS + 64<<10
	// maxDepth is how deep objects and arrays may nest.
	maxDepth = 32
)

// Names of the members that are read, other than those of the tokens.
const (
	memberClientID   = "client_id"
	memberJWKS       = "jwks"
	memberJWKSURI    = "jwks_uri"
	memberSecret     = "client_secret"
	memberExpiresAt  = "client_secret_expires_at"
	memberAuthMethod = "token_endpoint_auth_method"
	memberStatement  = "software_statement"
)

// members are the understood members of a document, as they stand: absent ones
// and those that are null are not in the maps.
type members struct {
	texts     map[string]string
	jwks      []byte
	expiresAt string // the number, as it is written; empty if absent
	statement bool   // there is a software_statement
}

// read walks over the document once. The decoder refuses duplicate names and
// what is not UTF-8. Its errors are *Error.
func read(document []byte) (*members, error) {
	if len(document) > MaxBytes {
		return nil, invalid("", "the document has %d bytes, and at most %d are allowed: leave out what is not about keys and tokens", len(document), MaxBytes)
	}
	r := reader{dec: jsontext.NewDecoder(bytes.NewBuffer(document)), document: document}
	m, err := r.metadata()
	if err == nil {
		err = r.end()
	}
	if err != nil {
		return nil, jsonError(err)
	}
	return m, nil
}

// jsonError puts a decoder's error into words that hold no more of the
// document than a position: its own could repeat a piece of the secret.
func jsonError(err error) error {
	var own *Error
	var syntax *jsontext.SyntacticError
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("", "the JSON ends too early: send the whole document")
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return invalid("", "an object names a member twice, at byte %d: name each once", syntax.ByteOffset)
	case errors.As(err, &syntax):
		return invalid("", "it is not valid JSON in UTF-8, at byte %d: correct it there", syntax.ByteOffset)
	}
	return invalid("", "it cannot be read as JSON: send a JSON object")
}

// reader reads the document token by token, so that no limit is checked after
// the work it should have prevented.
type reader struct {
	dec      *jsontext.Decoder
	document []byte
}

func (r *reader) next() (jsontext.Token, error) {
	token, err := r.dec.ReadToken()
	if err == nil && r.dec.StackDepth() > maxDepth {
		return token, invalid("", "it nests deeper than %d levels: leave out what is not about keys and tokens", maxDepth)
	}
	return token, err
}

// skip passes over one value.
func (r *reader) skip() error {
	depth := r.dec.StackDepth()
	for {
		if _, err := r.next(); err != nil {
			return err
		}
		if r.dec.StackDepth() <= depth {
			return nil
		}
	}
}

// raw returns one value as it stands in the document.
func (r *reader) raw() ([]byte, error) {
	start := r.dec.InputOffset() // after the name
	if err := r.skip(); err != nil {
		return nil, err
	}
	return bytes.Clone(bytes.TrimLeft(r.document[start:r.dec.InputOffset()], ": \t\r\n")), nil
}

// end makes sure that nothing but white space is left.
func (r *reader) end() error {
	_, err := r.dec.ReadToken()
	if err == nil {
		return invalid("", "there is more after the JSON object: send the object alone")
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (r *reader) metadata() (*members, error) {
	if kind := r.dec.PeekKind(); kind != jsontext.KindBeginObject && kind != jsontext.KindInvalid {
		return nil, invalid("", `it is not a JSON object: client metadata look like {"client_id": "…", "jwks_uri": "…"}`)
	}
	if _, err := r.next(); err != nil {
		return nil, err
	}
	m := &members{texts: map[string]string{}}
	for r.dec.PeekKind() != jsontext.KindEndObject {
		name, err := r.next()
		if err != nil {
			return nil, err
		}
		if err := r.member(m, name.String()); err != nil {
			return nil, err
		}
	}
	_, err := r.next()
	return m, err
}

// member reads one member's value.
func (r *reader) member(m *members, name string) error {
	if r.dec.PeekKind() == jsontext.KindNull {
		return r.skip()
	}
	switch name {
	case memberJWKS:
		return r.jwks(m)
	case memberExpiresAt:
		return r.number(m)
	case memberStatement:
		m.statement = true
	case memberClientID, memberJWKSURI, memberSecret, memberAuthMethod:
		return r.text(m, name)
	}
	if isTokenMember(name) {
		return r.text(m, name)
	}
	return r.skip()
}

func (r *reader) text(m *members, name string) error {
	if kind := r.dec.PeekKind(); kind != jsontext.KindString && kind != jsontext.KindInvalid {
		return invalid(name, "it is not a string: make it one, or leave it out")
	}
	token, err := r.next()
	if err != nil {
		return err
	}
	if token.String() == "" {
		return invalid(name, "it is empty: give a value, or leave it out")
	}
	m.texts[name] = token.String()
	return nil
}

func (r *reader) jwks(m *members) error {
	if kind := r.dec.PeekKind(); kind != jsontext.KindBeginObject && kind != jsontext.KindInvalid {
		return invalid(memberJWKS, `it is not a JSON object: a JWK Set looks like {"keys": [...]}`)
	}
	raw, err := r.raw()
	if err != nil {
		return err
	}
	if len(raw) > registry.MaxJWKS {
		return invalid(memberJWKS, "it has %d bytes, and at most %d are allowed: leave out the keys that are not for encryption", len(raw), registry.MaxJWKS)
	}
	m.jwks = raw
	return nil
}

func (r *reader) number(m *members) error {
	if kind := r.dec.PeekKind(); kind != jsontext.KindNumber && kind != jsontext.KindInvalid {
		return invalid(memberExpiresAt, "it is not a number: give seconds since 1970-01-01T00:00:00Z, or 0 for never")
	}
	raw, err := r.raw()
	if err != nil {
		return err
	}
	m.expiresAt = string(raw)
	return nil
}

// seconds reads a number of seconds that is a whole one.
func seconds(text string) (int64, bool) {
	const year10000 = 253402300800
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil && n >= 0 && n < year10000
}
