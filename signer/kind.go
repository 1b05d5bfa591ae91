package signer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// TokenKind is a kind of token, by its name in the API.
type TokenKind string

// The kinds of tokens that can be made.
const (
	// IDToken is OpenID Connect Core 1.0, section 2.
	IDToken TokenKind = "ID_TOKEN"
	// UserInfo is a UserInfo response as a JWT: OpenID Connect Core 1.0,
	// section 5.3.2.
	UserInfo TokenKind = "USERINFO"
	// AccessToken is RFC 9068.
	AccessToken TokenKind = "ACCESS_TOKEN"
)

// ErrKindUnsupported: this version makes no tokens of the kind asked for. The
// caller has to ask for another kind; trying again does not help.
var ErrKindUnsupported = errors.New("token kind not supported")

// rules is a row of the table: how tokens of a kind are made.
type rules struct {
	// typ is the JWS header's typ (RFC 7515, section 4.1.9); empty for none.
	typ string
	// filled are the claims added if absent, in this order.
	filled []claim
	// required are the claims the caller must give.
	required []claim
	// forbidden are the claims that would make it a token of another kind.
	forbidden []claim
	// clientBound kinds are made for one client, which aud must name.
	clientBound bool
	// expires says whether the kind has an exp, and with it a lifetime.
	expires bool
	// hashes says whether the kind carries at_hash, c_hash and s_hash.
	hashes bool
	// maxSub is the longest sub in bytes; 0 for no limit.
	maxSub int
}

// maxSub is the longest sub of OpenID Connect Core 1.0, section 2: 255 ASCII
// characters.
const maxSub = 255

// kinds is the table. A new kind of token is a new row.
//
// events marks security event tokens (RFC 8417), token_introspection the
// introspection responses of RFC 9701: an ID token with either could be taken
// for a logout token or a response. A logout token has no nonce, which is how
// it differs from an ID token, so no other kind but the ID token carries one.
var kinds = map[TokenKind]rules{
	IDToken: {
		typ:         "JWT",
		filled:      []claim{claimISS, claimAUD, claimIAT, claimEXP},
		required:    []claim{claimSUB},
		forbidden:   []claim{claimEvents, claimTokenIntrospection},
		clientBound: true,
		expires:     true,
		hashes:      true,
		maxSub:      maxSub,
	},
	UserInfo: {
		filled:      []claim{claimISS, claimAUD},
		required:    []claim{claimSUB},
		forbidden:   []claim{claimEXP, claimNonce, claimEvents},
		clientBound: true,
		maxSub:      maxSub,
	},
	AccessToken: {
		typ:       "at+jwt",
		filled:    []claim{claimISS, claimIAT, claimEXP, claimJTI},
		required:  []claim{claimSUB, claimAUD, claimClientID},
		forbidden: []claim{claimNonce, claimEvents},
		expires:   true,
	},
}

// Check returns nil if tokens of kind k can be made, and ErrKindUnsupported
// otherwise.
func (k TokenKind) Check() error {
	if _, ok := kinds[k]; !ok {
		return fmt.Errorf("%w: %q; ask for one of %v", ErrKindUnsupported, string(k), slices.Sorted(maps.Keys(kinds)))
	}
	return nil
}

// ClientBound reports whether tokens of kind k are made for one client, which
// they name in aud. It is false for an unsupported kind.
func (k TokenKind) ClientBound() bool { return kinds[k].clientBound }

// Type is the typ of the JWS header of tokens of kind k, empty for none.
func (k TokenKind) Type() string { return kinds[k].typ }
