// Package signer makes a signed JWT (RFC 7519, RFC 7515) out of the claims a
// caller hands in and a key that lives in a signing backend or, for a client
// that registered it, the secret that the client shares with the issuer.
//
// It works in two steps, so that nothing is asked of an HSM for a token that
// cannot be issued. Prepare reads the claims strictly, holds them against the
// rules of the kind of token and of the issuer, and adds what the kind wants
// filled in. Sign takes what Prepare made, and nothing else, to a SigningKey
// and verifies the signature before letting go of it.
//
// What it promises:
//
//   - The members of the claims reach the token byte for byte and in order:
//     numbers keep their digits, strings their escapes. Members are only ever
//     added, at the end.
//   - Nothing is silently replaced. A claim that contradicts the issuer, the
//     client, the clock or another claim is refused, with every problem of the
//     request in one answer.
//   - A token of one kind is of no use as one of another to whoever verifies by
//     the standards: the table of kinds says what keeps each apart from the
//     others.
//   - A token for one client is of no use to another: kinds that are bound to a
//     client name nobody else in aud. ID tokens may; their azp then names the
//     client, and Payload.OtherAudiences those for whom the caller must have a
//     permission too, which is for others to decide.
//   - No error holds a claim's value, nor anything of a secret.
//
// Whether the caller may issue, which key and which algorithm are used, and
// what becomes of the signed token are decided by others. The keys of issuers
// over time are the business of signer/keyring.
package signer

import (
	"time"

	"github.com/bulla-project/bulla/kms"
)

// Issuer is what the rules of tokens need to know of an OpenID provider.
type Issuer struct {
	// URL is the value of iss, compared byte for byte.
	URL string
	// DefaultLifetime is counted from iat if the request names neither a
	// lifetime nor exp. Whole seconds.
	DefaultLifetime time.Duration
	// MaxLifetime is the longest time from iat to exp. Whole seconds.
	MaxLifetime time.Duration
}

// Request asks for one token.
type Request struct {
	Kind   TokenKind
	Issuer Issuer
	// ClientID is the client the token is for. Kinds that are bound to a
	// client need it; elsewhere it may be empty.
	ClientID string
	// Claims is a JSON object in UTF-8 of at most MaxClaimsBytes. Prepare
	// neither changes nor keeps it.
	Claims []byte
	// Lifetime is the time from iat to exp, in whole seconds; nil if the
	// request does not say.
	Lifetime *time.Duration

	// AccessToken, Code and State are what an ID token's at_hash, c_hash and
	// s_hash are made of. Empty means absent.
	AccessToken, Code, State string
}

// Payload is a claims set that Prepare has found good and completed: the one
// thing that Sign signs. It does not change and may be signed again.
type Payload struct {
	kind      TokenKind
	algorithm kms.Algorithm
	json      []byte
	id        string
	expires   time.Time
	lifetime  time.Duration
	others    []string
	given     int // how many members of json are the caller's: the first
}

// Kind is the kind of token the payload is for.
func (p *Payload) Kind() TokenKind { return p.kind }

// Algorithm is the JWS algorithm the payload was prepared for; its hash claims
// hold for no other.
func (p *Payload) Algorithm() kms.Algorithm { return p.algorithm }

// JSON is the claims set that will be signed. The caller must not change it.
func (p *Payload) JSON() []byte { return p.json }

// ID is the token's jti, empty if it has none.
func (p *Payload) ID() string { return p.id }

// OtherAudiences are the values of aud beside the client, in their order, for a
// kind that is bound to a client and may have them: ID tokens. It is nil for all
// others. The client can hand the signed token to each of them, so whoever asked
// for it must be allowed to issue for them too. The caller must not change it.
func (p *Payload) OtherAudiences() []string { return p.others }

// ExpiresAt is the token's exp, zero if it has none.
func (p *Payload) ExpiresAt() time.Time { return p.expires }
