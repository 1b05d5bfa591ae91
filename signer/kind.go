package signer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// TokenKind is a kind of token, by its name in the API.
type TokenKind string

// The kinds of tokens that can be made.
const (
	// IDToken is OpenID Connect Core 1.0, section 2.
	IDToken TokenKind = "ID_TOKEN"
	// LogoutToken is OpenID Connect Back-Channel Logout 1.0, section 2.4.
	LogoutToken TokenKind = "LOGOUT_TOKEN"
	// UserInfo is a UserInfo response as a JWT: OpenID Connect Core 1.0,
	// section 5.3.2.
	UserInfo TokenKind = "USERINFO"
	// AuthorizationResponse is the JWT of the JWT Secured Authorization
	// Response Mode for OAuth 2.0 (JARM), section 2.1.
	AuthorizationResponse TokenKind = "AUTHORIZATION_RESPONSE"
	// Introspection is a token introspection response as a JWT: RFC 9701,
	// section 5. Its client is the resource server that asked.
	Introspection TokenKind = "INTROSPECTION"
	// AccessToken is RFC 9068.
	AccessToken TokenKind = "ACCESS_TOKEN"
)

// TokenKinds lists all kinds, by name.
func TokenKinds() []TokenKind { return slices.Sorted(maps.Keys(kinds)) }

// Errors about a kind of token.
var (
	// ErrKindUnsupported: this version makes no tokens of the kind asked for.
	// The caller has to ask for another kind; trying again does not help.
	ErrKindUnsupported = errors.New("token kind not supported")

	// ErrSecretKind: tokens of this kind are not for the client alone, so its
	// secret must not sign them: it could forge its own. The caller has to ask
	// for an asymmetric algorithm.
	ErrSecretKind = errors.New("a client's secret cannot sign tokens of this kind")
)

// rules is a row of the table: how tokens of a kind are made.
type rules struct {
	// typ is the JWS header's typ (RFC 7515, section 4.1.9); empty for none.
	typ string
	// filled are the claims added if absent, in this order.
	filled []claim
	// required are the claims the caller must give, and either those of which
	// it must give at least one.
	required, either []claim
	// forbidden are the claims that would make it a token of another kind.
	forbidden []claim
	// clientBound kinds are made for one client, which aud must name.
	clientBound bool
	// shared lets aud of a client-bound kind name others beside the client. azp
	// then says which of them the token was issued to, and is filled in.
	shared bool
	// expires says whether the kind has an exp, and with it a lifetime.
	expires bool
	// lifetime is counted from iat if the request names neither a lifetime nor
	// exp; 0 for the issuer's default. The bounds hold for it too.
	lifetime time.Duration
	// maxLifetime is the longest lifetime, beside the issuer's; 0 for no other.
	maxLifetime time.Duration
	// hashes says whether the kind carries at_hash, c_hash and s_hash. Others
	// must not.
	hashes bool
	// maxSub is the longest sub in bytes; 0 for no limit.
	maxSub int
	// check finds what else is wrong with the claims; nil if the row and the
	// forms of claims say it all. It gets a copy, because a pointer would move
	// every preparation to the heap.
	check func(claimsObject) violations
}

// speaksOf reports whether the row has c in one of its lists.
func (r *rules) speaksOf(c claim) bool {
	for _, list := range [...][]claim{r.filled, r.required, r.either, r.forbidden} {
		if slices.Contains(list, c) {
			return true
		}
	}
	return false
}

// maxSub is the longest sub of OpenID Connect Core 1.0, section 2: 255 ASCII
// characters.
const maxSub = 255

// Lifetimes of kinds that should be short-lived.
const (
	// logoutLifetime is what Back-Channel Logout 1.0, section 2.4, prefers.
	logoutLifetime = 2 * time.Minute
	// responseLifetime is the longest that JARM, section 2.1, recommends. It is
	// that of the authorization code inside (RFC 6749, section 4.1.2): a longer
	// one only helps whoever replays the response.
	responseLifetime = 10 * time.Minute
)

// kinds is the table. A new kind of token is a new row.
//
// A token is encrypted to its client, but the client gets a signed JWT out of it
// that it can show to whom it likes, the other clients of the issuer among them,
// and aud is all that those go by: a client that aud names would take a token for
// its own that another client had asked for. So aud names the client and nobody
// else. Only ID tokens may have other audiences (OpenID Connect Core 1.0, section
// 2), and only because a client can tell by azp that such a token was issued to
// another (section 3.1.3.7, number 5). Since not every client looks, the Payload
// lists them too, for those who know for which clients the caller may issue. The
// other kinds have no claim that a client would look for. Access tokens are not
// bound to a client: their audiences are resource servers, and client_id names the
// client.
//
// All kinds of an issuer are signed with the same keys, and some verifiers look
// at no more than the standard of their own kind tells them to, which often is
// not the typ. So each kind lacks, for certain, something that the verifiers of
// every other kind insist on (RFC 8725, section 3.12):
//
//   - ID tokens need sub and exp. An introspection response has neither, a
//     UserInfo response no exp, an authorization response no sub. A logout
//     token and an access token have both, and differ by their typ; and having
//     no nonce they are refused by every client that sends one (Back-Channel
//     Logout 1.0, section 4.1).
//   - Logout tokens need events (RFC 8417, section 2.2). No other kind has it.
//   - Introspection responses need token_introspection. No other kind has it.
//   - Authorization responses need exp and one of the parameters that a client
//     can act upon: no other kind that expires has one.
//   - Access tokens need their typ, which RFC 9068, section 4, has checked.
//   - UserInfo responses are marked by nothing but sub without exp: OpenID
//     Connect Core 1.0 knows no other rule. They come from the provider's own
//     endpoint; whoever verifies one that came another way must refuse it if
//     it has exp, or a typ that is not JWT.
var kinds = map[TokenKind]rules{
	IDToken: {
		typ:         "JWT",
		filled:      []claim{claimISS, claimAUD, claimIAT, claimEXP},
		required:    []claim{claimSUB},
		forbidden:   []claim{claimEvents, claimTokenIntrospection, claimCode, claimError, claimAccessToken, claimIDToken},
		clientBound: true,
		shared:      true,
		expires:     true,
		hashes:      true,
		maxSub:      maxSub,
	},
	LogoutToken: {
		typ:         "logout+jwt",
		filled:      []claim{claimISS, claimAUD, claimIAT, claimEXP, claimJTI, claimEvents},
		either:      []claim{claimSUB, claimSID},
		forbidden:   []claim{claimNonce, claimTokenIntrospection, claimCode, claimError, claimAccessToken, claimIDToken},
		clientBound: true,
		expires:     true,
		lifetime:    logoutLifetime,
		maxSub:      maxSub,
		check:       checkLogout,
	},
	UserInfo: {
		filled:      []claim{claimISS, claimAUD},
		required:    []claim{claimSUB},
		forbidden:   []claim{claimEXP, claimNonce, claimEvents, claimTokenIntrospection},
		clientBound: true,
		maxSub:      maxSub,
	},
	AuthorizationResponse: {
		filled:      []claim{claimISS, claimAUD, claimEXP},
		forbidden:   []claim{claimSUB, claimEvents, claimTokenIntrospection},
		clientBound: true,
		expires:     true,
		maxLifetime: responseLifetime,
	},
	Introspection: {
		typ:         "token-introspection+jwt",
		filled:      []claim{claimISS, claimAUD, claimIAT},
		required:    []claim{claimTokenIntrospection},
		forbidden:   []claim{claimSUB, claimEXP, claimEvents},
		clientBound: true,
		check:       checkIntrospection,
	},
	AccessToken: {
		typ:       "at+jwt",
		filled:    []claim{claimISS, claimIAT, claimEXP, claimJTI},
		required:  []claim{claimSUB, claimAUD, claimClientID},
		forbidden: []claim{claimNonce, claimEvents, claimTokenIntrospection, claimCode, claimError, claimAccessToken, claimIDToken},
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

// checkAlgorithm returns ErrSecretKind if a client's secret must not sign tokens
// of kind k and alg would have it do so.
func (k TokenKind) checkAlgorithm(alg kms.Algorithm) error {
	if alg.Symmetric() && !k.ClientBound() {
		return fmt.Errorf("%w: %s with %s; ask for an asymmetric algorithm", ErrSecretKind, k, alg)
	}
	return nil
}

// ClientBound reports whether tokens of kind k are made for one client, which
// they name in aud. It is false for an unsupported kind.
func (k TokenKind) ClientBound() bool { return kinds[k].clientBound }

// Type is the typ of the JWS header of tokens of kind k, empty for none.
func (k TokenKind) Type() string { return kinds[k].typ }
