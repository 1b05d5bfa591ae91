// Package metadata reads the registration of an OAuth client as an OpenID
// provider receives or stores it, a JSON object of OpenID Connect Dynamic
// Client Registration 1.0 (section 2), and turns it into the settings of a
// registration here. Members come also from JARM (section 3) and from RFC 9701
// (section 6).
//
// A provider can hand over what it has, unchanged. So members that say nothing
// about keys and tokens are passed over, a null or an empty client_secret is as
// good as an absent member (as a member left out of an update is as good as null
// or empty: RFC 7592, section 2.2), and the standards' defaults are filled in.
// What the standards leave no sense to is refused with the member's name: an
// enc without an alg, keys given twice, a symmetric algorithm without a secret
// to share.
//
// The package has no policy: it does not say which algorithms are allowed or
// even known, and takes a legacy one like any other. It does not read the JWK
// Set, fetch the jwks_uri, or look at the clock. All that is for the caller.
// The client's secret passes through, and shows in no error and no printed
// [Client].
package metadata

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// Client is what a client's metadata say about its keys and its tokens. It
// holds the client's secret; printed, logged or marshaled, by itself or in an
// unexported field of something else, it does not show it.
type Client struct {
	// ClientID is the member "client_id", empty if there is none: to compare
	// with the client that the caller means to register.
	ClientID string

	// JWKS is the member "jwks", byte for byte, and JWKSURI is "jwks_uri". At
	// most one of them is set.
	JWKS    []byte
	JWKSURI string

	// SecretExpiresAt says when the secret goes out of use; zero means never,
	// and that there is no secret.
	SecretExpiresAt time.Time

	// secret returns what Secret does. It is a function because fmt prints the
	// strings below an unexported field whatever methods their type has.
	secret func() string

	// Settings has an entry for each kind of token that the metadata set up:
	// always ID_TOKEN, and USERINFO, AUTHORIZATION_RESPONSE and INTROSPECTION
	// where a member of theirs is there. An empty EncryptionAlgorithm means
	// signed only; ContentEncryption has its default filled in.
	Settings []registry.Setting

	// RS256ByDefault has the kinds whose SigningAlgorithm is empty although
	// the standard has a default for the missing member, RS256: whether the
	// issuer has a key for it, and what else to take, is not known here.
	RS256ByDefault []registry.TokenKind

	// Warnings are remarks for whoever registers, each on one line.
	Warnings []string
}

// Secret is the member "client_secret"; empty if there is none, or if the client
// is a public one.
func (c *Client) Secret() string {
	if c.secret == nil {
		return ""
	}
	return c.secret()
}

// String names the client, without its secret.
func (c Client) String() string {
	return fmt.Sprintf("metadata of client %q with %d settings", c.ClientID, len(c.Settings))
}

// Format prints String whatever the verb, since %d or %#v would else go
// through the fields.
func (c Client) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue is String.
func (c Client) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String.
func (c Client) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
