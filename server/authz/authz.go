// Package authz decides what an authenticated caller may do. It holds the
// grants of the configuration, compiled into a Policy that never changes, and
// answers one question: may this caller use this permission on this issuer,
// for this kind of token and this client? A grant that issues tokens may have a
// claim policy, which bounds what these tokens say and how long they live; Terms
// are what is left to be asked of the claims once a request is allowed.
//
// Everything is denied that no grant allows, and grants only ever add up:
// there is no rule that takes away, so the order of grants means nothing and
// a grant can be read on its own. An empty list in a grant stands for "none",
// never for "all".
//
// Creating a client's keys and replacing them are permissions apart, because
// whoever can replace a client's key can read its tokens from then on.
//
// Grants change while the service runs: Live holds the Policy in force, and
// exchanges it for another as a whole. What has begun under one Policy goes on
// under it: a token keeps its Terms, other calls the Policy that Now gave them.
//
// The package also says who a caller is: CallerFrom takes the one identity
// out of a certificate that TLS has verified. Proving that the caller owns the
// certificate, and turning the errors below into statuses, is left to others.
package authz

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Errors of Policy.Authorize and CallerFrom, matched with errors.Is. Their texts
// may be shown to the caller: they repeat what the caller asked and say
// nothing of anybody else's grants.
var (
	// ErrCallerUnknown: no grant names the caller. An operator has to add one
	// for it; trying again does not help.
	ErrCallerUnknown = errors.New("caller unknown")

	// ErrNotAllowed: the caller is known, and none of its grants covers the
	// request. The text names what is missing.
	ErrNotAllowed = errors.New("caller not allowed")
)

// DevelopmentCaller is the caller of every request on a plaintext listener in
// development mode.
const DevelopmentCaller = "development"

// Permission is the name of something a grant can allow.
type Permission string

// The permissions. For each the comment says which calls need it.
const (
	// Issue: signed tokens, encrypted to the client where the client's
	// registration says so.
	Issue Permission = "issue"
	// SignUnencrypted: signed tokens that stay readable although the client
	// has a key.
	SignUnencrypted Permission = "sign_unencrypted"
	// ReadClientKeys: get, list, watch and explain client keys.
	ReadClientKeys Permission = "read_client_keys"
	// CreateClientKey: register a client that has never been registered.
	CreateClientKey Permission = "create_client_key"
	// ReplaceClientKey: change the registration of a client, or register one
	// anew that was deleted.
	ReplaceClientKey Permission = "replace_client_key"
	// GenerateClientKey: have a key pair made for a client and receive its
	// private half.
	GenerateClientKey Permission = "generate_client_key"
	// DeleteClientKey: delete a registration.
	DeleteClientKey Permission = "delete_client_key"
	// RefreshClientKey: have a client's jwks_uri fetched now.
	RefreshClientKey Permission = "refresh_client_key"
	// ReadSigningKeys: the public JWKS, the list of signing keys and the
	// provider metadata.
	ReadSigningKeys Permission = "read_signing_keys"
	// RotateSigningKeys: move an issuer on to its next signing key.
	RotateSigningKeys Permission = "rotate_signing_keys"
	// ReadStatus: the status of a replica, with the issuers that the grant lists.
	ReadStatus Permission = "read_status"
)

// scope says which lists of a grant a permission is measured by.
type scope struct{ kinds, clients bool }

// The order is the order of every list that is shown to people.
var order = []Permission{
	Issue, SignUnencrypted,
	ReadClientKeys, CreateClientKey, ReplaceClientKey, GenerateClientKey, DeleteClientKey, RefreshClientKey,
	ReadSigningKeys, RotateSigningKeys, ReadStatus,
}

var scopes = map[Permission]scope{
	Issue:             {kinds: true, clients: true},
	SignUnencrypted:   {kinds: true, clients: true},
	ReadClientKeys:    {clients: true},
	CreateClientKey:   {clients: true},
	ReplaceClientKey:  {clients: true},
	GenerateClientKey: {clients: true},
	DeleteClientKey:   {clients: true},
	RefreshClientKey:  {clients: true},
	ReadSigningKeys:   {},
	RotateSigningKeys: {},
	ReadStatus:        {},
}

// Permissions returns the names of all permissions.
func Permissions() []Permission { return slices.Clone(order) }

// Known reports whether p is one of Permissions.
func (p Permission) Known() bool { _, ok := scopes[p]; return ok }

// NeedsTokenKinds reports whether a grant of p must list token kinds.
func (p Permission) NeedsTokenKinds() bool { return scopes[p].kinds }

// NeedsClients reports whether a grant of p must list clients.
func (p Permission) NeedsClients() bool { return scopes[p].clients }

// Grant allows one caller some permissions on some issuers. All lists must
// match for a request to be allowed; an empty list matches nothing.
type Grant struct {
	// Caller is the identity as CallerFrom returns it: a URI such as
	// "spiffe://example.com/idp", compared byte for byte, or a DNS name,
	// compared without regard to case. There are no wildcards.
	Caller string
	// Allow lists the permissions.
	Allow []Permission
	// Issuers lists issuer names, each matched exactly.
	Issuers []string
	// TokenKinds lists the token kinds ("ID_TOKEN") that Issue and
	// SignUnencrypted cover. The other permissions do not look at it.
	TokenKinds []string
	// Clients lists client_ids that the permissions cover: exact, or a prefix
	// followed by one "*" at the end; "*" alone covers every client, and also
	// requests that name none. ReadSigningKeys, RotateSigningKeys and
	// ReadStatus do not look at it.
	Clients []string
	// Claims bounds the tokens that Issue and SignUnencrypted give. The other
	// permissions do not look at it. Default: any token.
	Claims *ClaimPolicy
}

// Request is what a caller wants to do.
type Request struct {
	Permission Permission
	// Issuer is the issuer's name.
	Issuer string
	// TokenKind is the token kind's name, for Issue and SignUnencrypted, which
	// are denied without one. Else it is not looked at.
	TokenKind string
	// ClientID is the client's client_id; empty for a token that is bound to
	// no client, which only the client pattern "*" covers.
	ClientID string
}

// Policy is a compiled set of grants. It is immutable and may be used by any
// number of goroutines at once. The zero Policy knows no caller.
type Policy struct {
	callers map[string]rules
	// everything is set for the development policy only: DevelopmentCaller may
	// do anything, nobody else is known.
	everything bool
}

// rules are one caller's grants by what they are looked up by first.
type rules map[target][]rule

type target struct {
	permission Permission
	issuer     string
}

// rule is what is left of a grant once caller, permission and issuer are
// known.
type rule struct {
	scope   scope
	kinds   []string // at most a handful: a linear look is fastest
	clients patterns
	claims  *claimRule // nil for any claims
}

// New compiles grants. The error names the first grant that is wrong: one
// without a caller, with an unknown permission, with a client pattern that has a
// "*" anywhere but at its end, or with a claim policy that is none.
func New(grants []Grant) (*Policy, error) {
	p := &Policy{callers: make(map[string]rules)}
	for i, g := range grants {
		if g.Caller == "" {
			return nil, fmt.Errorf("grant %d has no caller: name the URI or DNS SAN of its client certificate", i)
		}
		for _, c := range g.Clients {
			if err := CheckClientPattern(c); err != nil {
				return nil, fmt.Errorf("grant %d: %w", i, err)
			}
		}
		claims, err := g.Claims.compile()
		if err != nil {
			return nil, fmt.Errorf("grant %d: %w", i, err)
		}
		kinds, clients := slices.Clone(g.TokenKinds), newPatterns(g.Clients)
		caller := Canonical(g.Caller)
		if p.callers[caller] == nil {
			p.callers[caller] = make(rules)
		}
		for _, perm := range g.Allow {
			if !perm.Known() {
				return nil, fmt.Errorf("grant %d: there is no permission %q", i, string(perm))
			}
			r := rule{scope: scopes[perm], kinds: kinds, clients: clients}
			if r.scope.kinds {
				r.claims = claims
			}
			for _, issuer := range g.Issuers {
				t := target{perm, issuer}
				p.callers[caller][t] = append(p.callers[caller][t], r)
			}
		}
	}
	return p, nil
}

// Development returns the policy of a development service, which listens on
// loopback without TLS: DevelopmentCaller may do everything, and nobody else
// is known.
func Development() *Policy { return &Policy{everything: true} }

// Now returns p, which is never replaced: a Policy stands for a Live one where
// grants do not change.
func (p *Policy) Now() (policy *Policy, replaced <-chan struct{}) { return p, nil }

// Allow returns nil if a grant lets caller do r, whatever it asks of the claims.
// Otherwise the error wraps ErrCallerUnknown or ErrNotAllowed. It does not
// allocate unless it denies.
func (p *Policy) Allow(caller string, r Request) error {
	_, err := p.Authorize(caller, r)
	return err
}

// Authorize is Allow for a request that ends in a token: what the grants ask of
// its claims is in the Terms.
func (p *Policy) Authorize(caller string, r Request) (Terms, error) {
	own, all := p.grantsOf(caller)
	if all && r.Permission.Known() {
		return Terms{everything: true}, nil
	}
	if own == nil {
		return Terms{}, unknownCaller(caller)
	}
	rules, covered := own[target{r.Permission, r.Issuer}], false
	for i := range rules {
		if !rules[i].covers(&r) {
			continue
		}
		if rules[i].claims == nil {
			return Terms{free: true, rules: rules, request: r}, nil
		}
		covered = true
	}
	if !covered {
		return Terms{}, notAllowed(r)
	}
	return Terms{rules: rules, request: r}, nil
}

// AllowSome returns nil if a grant gives caller the permission on the issuer
// for at least one client. A call that lists clients is let in by it; each
// entry of its answer must then pass Allow. Errors are those of Allow.
func (p *Policy) AllowSome(caller string, permission Permission, issuer string) error {
	own, all := p.grantsOf(caller)
	if all && permission.Known() {
		return nil
	}
	if own == nil {
		return unknownCaller(caller)
	}
	for _, rule := range own[target{permission, issuer}] {
		if !rule.scope.clients || rule.clients.any() {
			return nil
		}
	}
	return notAllowed(Request{Permission: permission, Issuer: issuer})
}

// NextClient returns the first name at or after from, in byte order, that
// could be a client for which caller has the permission; ok is false if there
// is none. A list seeks by it, and passes over what is not the caller's to see.
func (p *Policy) NextClient(caller string, permission Permission, issuer, from string) (next string, ok bool) {
	own, all := p.grantsOf(caller)
	if all && permission.Known() {
		return from, true
	}
	consider := func(name string) {
		if !ok || name < next {
			next, ok = name, true
		}
	}
	for _, rule := range own[target{permission, issuer}] {
		for client := range rule.clients.exact {
			if client >= from {
				consider(client)
			}
		}
		for _, prefix := range rule.clients.prefixes {
			switch {
			case strings.HasPrefix(from, prefix):
				consider(from)
			case prefix > from:
				consider(prefix)
			}
		}
	}
	return next, ok
}

// SameClients reports whether caller has the permission on the issuer for the
// same clients under both policies. It may miss that two grants come to the same
// that are written differently.
func (p *Policy) SameClients(other *Policy, caller string, permission Permission, issuer string) bool {
	own, all := p.grantsOf(caller)
	others, othersAll := other.grantsOf(caller)
	if all || othersAll {
		return all == othersAll
	}
	t := target{permission, issuer}
	return slices.EqualFunc(own[t], others[t], func(a, b rule) bool {
		return maps.Equal(a.clients.exact, b.clients.exact) && slices.Equal(a.clients.prefixes, b.clients.prefixes)
	})
}

func (p *Policy) grantsOf(caller string) (own rules, all bool) {
	if p.everything {
		return nil, caller == DevelopmentCaller
	}
	return p.callers[caller], false
}

func (r *rule) covers(q *Request) bool {
	if r.scope.kinds && (q.TokenKind == "" || !slices.Contains(r.kinds, q.TokenKind)) {
		return false
	}
	return !r.scope.clients || r.clients.match(q.ClientID)
}

func unknownCaller(caller string) error {
	return fmt.Errorf("%w: no grant names %q; ask the operator of this service for one", ErrCallerUnknown, caller)
}

// notAllowed says what would have had to be granted: exactly what was asked.
func notAllowed(r Request) error {
	var b strings.Builder
	fmt.Fprintf(&b, "permission %q for issuer %q", string(r.Permission), r.Issuer)
	if r.Permission.NeedsTokenKinds() {
		fmt.Fprintf(&b, ", token kind %q", r.TokenKind)
	}
	if r.Permission.NeedsClients() && r.ClientID != "" {
		fmt.Fprintf(&b, ", client %q", r.ClientID)
	}
	return fmt.Errorf("%w: it needs %s; ask the operator of this service for it", ErrNotAllowed, b.String())
}
