package metadata

import (
	"errors"
	"math"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/bulla-project/bulla/encrypter/internal/strictjson"
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

// read reads the members of a document. Its errors are *Error.
func read(document []byte) (*members, error) {
	if len(document) > MaxBytes {
		return nil, invalid("", "the document has %d bytes, and at most %d are allowed: leave out what is not about keys and tokens", len(document), MaxBytes)
	}
	r := reader{strictjson.NewReader(document, maxDepth)}
	m, err := r.metadata()
	if err == nil {
		err = r.End()
	}
	var own *Error
	switch {
	case err == nil:
		return m, nil
	case errors.As(err, &own):
		return nil, own
	}
	return nil, invalid("", "%s", err)
}

// reader walks over the document once.
type reader struct{ *strictjson.Reader }

func (r reader) metadata() (*members, error) {
	if !r.Is(jsontext.KindBeginObject) {
		return nil, invalid("", `it is not a JSON object: client metadata look like {"client_id": "…", "jwks_uri": "…"}`)
	}
	m := &members{texts: map[string]string{}}
	return m, r.Object(func(name string) error { return r.member(m, name) })
}

// member reads one member's value.
func (r reader) member(m *members, name string) error {
	if r.Is(jsontext.KindNull) {
		return r.Skip()
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
	return r.Skip()
}

func (r reader) text(m *members, name string) error {
	if !r.Is(jsontext.KindString) {
		return invalid(name, "it is not a string: make it one, or leave it out")
	}
	text, err := r.Text()
	switch {
	case err != nil:
		return err
	case text == "" && name == memberSecret: // so do providers write that there is none
		return nil
	case text == "":
		return invalid(name, "it is empty: give a value, or leave it out")
	}
	m.texts[name] = text
	return nil
}

func (r reader) jwks(m *members) error {
	if !r.Is(jsontext.KindBeginObject) {
		return invalid(memberJWKS, `it is not a JSON object: a JWK Set looks like {"keys": [...]}`)
	}
	raw, err := r.Raw()
	if err != nil {
		return err
	}
	if len(raw) > registry.MaxJWKS {
		return invalid(memberJWKS, "it has %d bytes, and at most %d are allowed: leave out the keys that are not for encryption", len(raw), registry.MaxJWKS)
	}
	m.jwks = raw
	return nil
}

func (r reader) number(m *members) error {
	if !r.Is(jsontext.KindNumber) {
		return invalid(memberExpiresAt, "it is not a number: give seconds since 1970-01-01T00:00:00Z, or 0 for never")
	}
	raw, err := r.Raw()
	if err != nil {
		return err
	}
	m.expiresAt = string(raw)
	return nil
}

// seconds reads a number of seconds that is a whole one, however it is written:
// 1.5e9 and 1500000000.0 are. All below the bound are exact in a float64.
func seconds(text string) (int64, bool) {
	const year10000 = 253402300800
	n, err := strconv.ParseFloat(text, 64)
	return int64(n), err == nil && n == math.Trunc(n) && n >= 0 && n < year10000
}
