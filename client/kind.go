package client

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// TokenKind is a kind of token, by the name that Bulla's API has for it.
type TokenKind string

// The kinds of tokens.
const (
	// AnyKind makes no difference between kinds.
	AnyKind TokenKind = ""
	// IDToken is an ID token (OpenID Connect Core 1.0, section 2).
	IDToken TokenKind = "ID_TOKEN"
	// LogoutToken is a logout token (OpenID Connect Back-Channel Logout 1.0, section 2.4).
	LogoutToken TokenKind = "LOGOUT_TOKEN"
	// UserInfo is a UserInfo response (OpenID Connect Core 1.0, section 5.3.2).
	UserInfo TokenKind = "USERINFO"
	// AuthorizationResponse is a response of JARM (JWT Secured Authorization Response
	// Mode for OAuth 2.0, section 2.1).
	AuthorizationResponse TokenKind = "AUTHORIZATION_RESPONSE"
	// Introspection is an introspection response (RFC 9701, section 5).
	Introspection TokenKind = "INTROSPECTION"
	// AccessToken is an access token (RFC 9068, section 2), for a resource server. It
	// is signed only, so AllowUnencrypted has to be set.
	AccessToken TokenKind = "ACCESS_TOKEN"
)

// TokenKinds lists all kinds but AnyKind.
func TokenKinds() []TokenKind {
	var kinds []TokenKind
	for _, k := range kindTable {
		kinds = append(kinds, k.kind)
	}
	return kinds
}

// kindRules is a row of the table: by what a kind is known, and told from the
// others.
type kindRules struct {
	kind TokenKind
	// typ is the type in the JWS header (RFC 8725, section 3.11). Kinds older than
	// explicit typing have "JWT" or none.
	typ string
	// required lists what must be there, forbidden what belongs to other kinds.
	required, forbidden []string
	// hashes: the kind may have at_hash, c_hash and s_hash. Others must not.
	hashes bool
	// anyAudience: who else is in aud does not matter, because the token is for
	// whatever resource servers it names, and not for a client.
	anyAudience bool
	// more is what else the kind's standard asks for; it may be nil.
	more func(c claims, k claimChecks) error
}

// The table is that of package signer, read from the other side.
var kindTable = []*kindRules{
	{
		kind:      IDToken,
		required:  []string{"iss", "sub", "aud", "exp", "iat"},
		forbidden: []string{"events", "token_introspection", "code", "error", "access_token", "id_token"},
		hashes:    true,
		more:      claims.checkAuthorizedParty,
	},
	{
		kind:      LogoutToken,
		typ:       "logout+jwt",
		required:  []string{"iss", "aud", "iat", "exp", "jti", "events"},
		forbidden: []string{"nonce", "token_introspection", "code", "error", "access_token", "id_token"},
		more:      claims.checkLogout,
	},
	{
		kind:      UserInfo,
		required:  []string{"iss", "sub", "aud"},
		forbidden: []string{"exp", "nonce", "events", "token_introspection"},
	},
	{
		kind:      AuthorizationResponse,
		required:  []string{"iss", "aud", "exp"},
		forbidden: []string{"sub", "events", "token_introspection"},
	},
	{
		kind:      Introspection,
		typ:       "token-introspection+jwt",
		required:  []string{"iss", "aud", "iat", "token_introspection"},
		forbidden: []string{"sub", "exp", "events"},
		more:      claims.checkIntrospection,
	},
	{
		kind:        AccessToken,
		typ:         "at+jwt",
		required:    []string{"iss", "sub", "aud", "exp", "iat", "jti", "client_id"},
		forbidden:   []string{"nonce", "events", "token_introspection", "code", "error", "access_token", "id_token"},
		anyAudience: true,
	},
}

// hashClaims bind an ID token to what was sent beside it.
var hashClaims = []string{"at_hash", "c_hash", "s_hash"}

// judgedClaims are those that mean something in a token of any kind.
var judgedClaims = append([]string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "azp", "nonce", "auth_time", "acr", "amr", "sid", "scope", "client_id", "events", "token_introspection",
}, hashClaims...)

// rules returns the kind's row, nil for AnyKind.
func (k TokenKind) rules() (*kindRules, error) {
	if k == AnyKind {
		return nil, nil
	}
	i := slices.IndexFunc(kindTable, func(r *kindRules) bool { return r.kind == k })
	if i < 0 {
		return nil, fmt.Errorf("OpenConfig.Kind: %s is not a kind of token; choose of %v", quote(string(k)), TokenKinds())
	}
	return kindTable[i], nil
}

// check holds a verified token against the row.
func (r *kindRules) check(h *header, c claims, k claimChecks) error {
	if r == nil {
		return nil
	}
	if !r.hasType(h) {
		return fmt.Errorf("%w: typ in the signature's header is %s, which is not that of kind %s", ErrClaims, quote(h.Type), r.kind)
	}
	for _, name := range r.required {
		if _, ok := c[name]; !ok {
			return fmt.Errorf("%w: %s is missing, which tokens of kind %s have", ErrClaims, name, r.kind)
		}
	}
	if err := r.checkForbidden(c); err != nil {
		return err
	}
	for _, name := range []string{"iss", "sub", "sid", "jti", "client_id"} {
		if v, ok := c[name]; ok {
			if s, ok := stringValue(v); !ok || s == "" {
				return fmt.Errorf("%w: %s is not a string, or empty", ErrClaims, name)
			}
		}
	}
	if _, ok := c.audiences(); !ok {
		return fmt.Errorf("%w: aud is not a string or an array of strings, or one is empty", ErrClaims)
	}
	if k.audience != "" && !r.anyAudience {
		if err := k.checkOthers(c); err != nil {
			return err
		}
	}
	if err := k.checkIssuedAt(c); err != nil {
		return err
	}
	if r.more != nil {
		return r.more(c, k)
	}
	return nil
}

// checkForbidden refuses the claims of other kinds, and all that mean something by
// a name in other letters of the same: whoever reads the claims without minding case,
// as encoding/json does, would take them for what was checked here.
func (r *kindRules) checkForbidden(c claims) error {
	forbidden := r.forbidden
	if !r.hashes {
		forbidden = slices.Concat(forbidden, hashClaims)
	}
	for _, name := range forbidden {
		if _, ok := c[name]; ok {
			return fmt.Errorf("%w: it has %s, so it is not of kind %s", ErrClaims, name, r.kind)
		}
	}
	for _, name := range slices.Concat(judgedClaims, forbidden) {
		if hasFolded(c, name) {
			return fmt.Errorf("%w: it has %s by a name that differs in upper and lower case", ErrClaims, name)
		}
	}
	return nil
}

// hasFolded tells if a name is there in upper and lower case other than its own.
func hasFolded(members map[string]jsontext.Value, name string) bool {
	for other := range members {
		if other != name && strings.EqualFold(other, name) {
			return true
		}
	}
	return false
}

// hasType compares media types as RFC 7515, section 4.1.9, says.
func (r *kindRules) hasType(h *header) bool {
	typ := strings.TrimPrefix(strings.ToLower(h.Type), "application/")
	if r.typ == "" {
		return !h.has("typ") || typ == "jwt"
	}
	return typ == r.typ
}

// checkAuthorizedParty: azp is the client itself, and is there if aud names others,
// too (OpenID Connect Core 1.0, section 3.1.3.7, numbers 4 and 5).
func (c claims) checkAuthorizedParty(k claimChecks) error {
	if k.audience == "" {
		return nil
	}
	azp, ok := c["azp"]
	if !ok {
		if len(c.others(k.audience)) > 0 {
			return fmt.Errorf("%w: azp is missing, and aud names others beside %s", ErrClaims, quote(k.audience))
		}
		return nil
	}
	if s, ok := stringValue(azp); !ok || s != k.audience {
		return fmt.Errorf("%w: azp is not %s", ErrClaims, quote(k.audience))
	}
	return nil
}

// logoutEvent is the event that a logout token tells of (OpenID Connect Back-Channel
// Logout 1.0, section 2.4).
const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// checkLogout applies OpenID Connect Back-Channel Logout 1.0, section 2.6.
func (c claims) checkLogout(claimChecks) error {
	events, err := parseObject(c["events"])
	if err != nil || !isObject(events[logoutEvent]) {
		return fmt.Errorf("%w: events does not tell of a logout", ErrClaims)
	}
	_, sub := c["sub"]
	_, sid := c["sid"]
	if !sub && !sid {
		return fmt.Errorf("%w: sub and sid are both missing, so nobody can be logged out", ErrClaims)
	}
	return nil
}

// checkIntrospection: the response itself is an object (RFC 9701, section 5), which
// says whether the token is active (RFC 7662, section 2.2).
func (c claims) checkIntrospection(claimChecks) error {
	response, err := parseObject(c["token_introspection"])
	if err != nil {
		return fmt.Errorf("%w: token_introspection is not an object", ErrClaims)
	}
	if kind := response["active"].Kind(); kind != 't' && kind != 'f' || hasFolded(response, "active") {
		return fmt.Errorf("%w: token_introspection has no member active that is true or false, or has it by other names too", ErrClaims)
	}
	return nil
}

func isObject(v jsontext.Value) bool { return v.Kind() == '{' }
