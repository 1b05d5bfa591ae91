package registry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of a record.
const (
	MaxName      = 255       // bytes of an issuer's name or a client_id
	MaxSettings  = 16        // settings of a client
	MaxJWKS      = 128 << 10 // bytes of a registered JWK Set
	MaxJWKSURI   = 2048      // bytes of a jwks_uri
	MaxPEM       = 16 << 10  // bytes of a public key or certificate in PEM
	MaxSealed    = 4 << 10   // bytes of what is kept of a secret, sealed
	maxAlgorithm = 64        // bytes of a kind, alg or enc
	maxKeyID     = 255       // bytes of a pinned kid
	maxDataKey   = 64        // bytes of a data key's id
)

// ErrInvalid: the record breaks a rule of the registry itself. The error is an
// *InvalidError: correct the field it names.
var ErrInvalid = errors.New("registration invalid")

// InvalidError says which field is wrong, why, and what would be right. Its
// text repeats nothing of the value and may be shown to the caller.
type InvalidError struct {
	// Field is the path of the field by its names in JSON, such as
	// "settings[0].content_encryption".
	Field string
	// Problem says what is wrong with it.
	Problem string
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("%s: %s: %s", ErrInvalid, e.Field, e.Problem)
}

// Unwrap returns ErrInvalid.
func (e *InvalidError) Unwrap() error { return ErrInvalid }

// Validate checks the shape of a record: its limits and the relations between
// its fields. Whether an algorithm is known and allowed, a URL fit to fetch
// and a JWK Set fit to use is for those to say who know. An error is an
// *InvalidError.
func (r *Registration) Validate() error {
	if p := NameProblem(r.Issuer); p != "" {
		return &InvalidError{"issuer", p}
	}
	if p := NameProblem(r.ClientID); p != "" {
		return &InvalidError{"client_id", p}
	}
	if r.Pending != nil {
		if err := r.Pending.validate(r); err != nil {
			return err
		}
	}
	if r.Deleted {
		if len(r.Settings) != 0 || !r.Source.empty() || r.Source.Generated || r.Legacy || r.X5T {
			return &InvalidError{"deleted", "a tombstone has neither a key source nor settings"}
		}
		return nil
	}
	if err := r.Source.validate(); err != nil {
		return err
	}
	if r.Source.empty() && slices.ContainsFunc(r.Settings, func(s Setting) bool { return s.EncryptionAlgorithm != "" }) {
		return &InvalidError{"source", "there is no key source, and a setting encrypts; give a JWK Set, a jwks_uri, a public key in PEM or a client secret"}
	}
	switch n := len(r.Settings); {
	case n == 0:
		return &InvalidError{"settings", "there is none; say for at least one kind of token how it is made"}
	case n > MaxSettings:
		return &InvalidError{"settings", fmt.Sprintf("there are %d; at most %d are allowed", n, MaxSettings)}
	}
	for i, s := range r.Settings {
		field := fmt.Sprintf("settings[%d].", i)
		if slices.ContainsFunc(r.Settings[:i], func(o Setting) bool { return o.Kind == s.Kind }) {
			return &InvalidError{field + "kind", "there is a setting for this kind of token already; give one for each"}
		}
		if err := s.validate(field); err != nil {
			return err
		}
	}
	return nil
}

func (s Source) empty() bool { return !s.hasPublicKeys() && s.Secret == nil }

// hasPublicKeys reports whether there is a source of keys other than the
// client's secret.
func (s Source) hasPublicKeys() bool {
	return len(s.JWKS) != 0 || s.JWKSURI != "" || len(s.PEM) != 0
}

func (s Source) validate() error {
	given := 0
	for _, is := range []bool{len(s.JWKS) != 0, s.JWKSURI != "", len(s.PEM) != 0} {
		if is {
			given++
		}
	}
	switch {
	case given > 1:
		return &InvalidError{"source", "more than one of a JWK Set, a jwks_uri and a public key in PEM are given; give one"}
	case s.Generated && len(s.JWKS) == 0:
		return &InvalidError{"source.generated", "a key that was generated is kept as a JWK Set, and there is none"}
	case len(s.JWKS) > MaxJWKS:
		return &InvalidError{"source.jwks", fmt.Sprintf("the JWK Set has %d bytes; at most %d are allowed", len(s.JWKS), MaxJWKS)}
	case len(s.JWKSURI) > MaxJWKSURI:
		return &InvalidError{"source.jwks_uri", fmt.Sprintf("the URL has %d bytes; at most %d are allowed", len(s.JWKSURI), MaxJWKSURI)}
	case !printable(s.JWKSURI):
		return &InvalidError{"source.jwks_uri", "only printable ASCII may occur in a URL; percent-encode the rest"}
	case len(s.PEM) > MaxPEM:
		return &InvalidError{"source.pem", fmt.Sprintf("the PEM text has %d bytes; at most %d are allowed: give the public key or the one certificate", len(s.PEM), MaxPEM)}
	}
	if s.Secret == nil {
		return nil
	}
	return s.Secret.validate()
}

// The years that an expiry can be of: from the first of Unix time to the last of
// RFC 3339, in which it is stored.
const firstYear, lastYear = 1970, 9999

func (s *Secret) validate() error {
	switch {
	case s.DataKey == "" || len(s.DataKey) > maxDataKey || !printable(s.DataKey) || strings.Contains(s.DataKey, " "):
		return &InvalidError{"source.secret.data_key", fmt.Sprintf("a data key's id has 1 to %d printable ASCII characters and no space", maxDataKey)}
	case len(s.Sealed) == 0:
		return &InvalidError{"source.secret.sealed", "it is empty; leave the secret out where no setting needs it"}
	case len(s.Sealed) > MaxSealed:
		return &InvalidError{"source.secret.sealed", fmt.Sprintf("it has %d bytes; at most %d are allowed", len(s.Sealed), MaxSealed)}
	}
	if y := s.ExpiresAt.UTC().Year(); !s.ExpiresAt.IsZero() && (y < firstYear || y > lastYear) {
		return &InvalidError{"source.secret.expires_at", fmt.Sprintf("it lies outside of the years %d to %d; leave it out for a secret that does not expire", firstYear, lastYear)}
	}
	return nil
}

func (s Setting) validate(field string) error {
	if s.Kind == "" {
		return &InvalidError{field + "kind", "it is empty; name a kind of token, such as ID_TOKEN"}
	}
	if shared := s.Kind.SettingKind(); shared != s.Kind {
		return &InvalidError{field + "kind", fmt.Sprintf("a %s is made as the client's %s is and has no setting of its own; leave it out, and register %s", s.Kind, shared, shared)}
	}
	for _, f := range []struct{ name, value string }{
		{"kind", string(s.Kind)},
		{"signing_algorithm", s.SigningAlgorithm},
		{"encryption_algorithm", s.EncryptionAlgorithm},
		{"content_encryption", s.ContentEncryption},
	} {
		if len(f.value) > maxAlgorithm || !printable(f.value) || strings.Contains(f.value, " ") {
			return &InvalidError{field + f.name, fmt.Sprintf("such a name has at most %d printable ASCII characters and no space", maxAlgorithm)}
		}
	}
	switch {
	case s.EncryptionAlgorithm == "" && s.ContentEncryption != "":
		return &InvalidError{field + "content_encryption", "it is given without encryption_algorithm; give both or neither"}
	case s.EncryptionAlgorithm != "" && s.ContentEncryption == "":
		return &InvalidError{field + "content_encryption", "it is missing; " + DefaultContentEncryption + " is the default that Normalize fills in"}
	case s.EncryptionAlgorithm == "" && s.KeyID != "":
		return &InvalidError{field + "key_id", "it pins an encryption key, but tokens of this kind are not encrypted; give encryption_algorithm or leave it out"}
	case len(s.KeyID) > maxKeyID || !utf8.ValidString(s.KeyID) || strings.ContainsFunc(s.KeyID, unicode.IsControl):
		return &InvalidError{field + "key_id", fmt.Sprintf("a key that is pinned has a kid of at most %d bytes of UTF-8 without control characters", maxKeyID)}
	}
	return nil
}

// NameProblem says why s cannot be the name of an issuer or client, or "".
// A client_id is made of VSCHAR, which are the printable characters of ASCII
// and the space (RFC 6749, appendix A.1).
func NameProblem(s string) string {
	switch {
	case s == "":
		return "it is empty"
	case len(s) > MaxName:
		return fmt.Sprintf("it has %d bytes; at most %d are allowed", len(s), MaxName)
	case !printable(s):
		return "only printable ASCII may occur in it (RFC 6749, appendix A.1)"
	}
	return ""
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < 0x20 || c > 0x7e })
}
