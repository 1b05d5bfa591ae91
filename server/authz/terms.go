package authz

import (
	"fmt"
	"iter"
	"slices"
	"time"
)

// Terms are what the grants of a caller ask of the claims of a token that it may
// have otherwise. They are part of one Policy and never change. The zero Terms
// are met by no claims.
type Terms struct {
	everything bool   // as in development
	free       bool   // a grant without a claim policy covers the request
	rules      []rule // the caller's, for this permission and issuer
	request    Request
}

// Claims is what a claim policy looks at in a token.
type Claims struct {
	// Lifetime is the time from iat to exp; 0 for a token without exp.
	Lifetime time.Duration
	// Given yields the name of each claim that the caller gave, and whether it is
	// null.
	Given iter.Seq2[string, bool]
	// Others are the values of aud beside the client, of a token that is made for
	// one.
	Others []string
	// Audiences are the values of aud of a token that is bound to no client.
	Audiences []string
}

// Free reports whether nothing is asked of the claims but that aud names nobody
// beside the client.
func (t *Terms) Free() bool { return t.free || t.everything }

// Check returns nil if a grant that covers the request has a claim policy that
// the claims keep to, and aud names nobody whom the caller may not issue for.
// Otherwise the error is a *ClaimsError: what is wrong by the grant that comes
// nearest.
func (t *Terms) Check(c Claims) error {
	if t.everything {
		return nil
	}
	look := looking{Terms: t, claims: &c, kept: make([]answer, len(t.rules))}
	var least *violations
	for i := range t.rules {
		if !t.rules[i].covers(&t.request) {
			continue
		}
		wrong := look.by(i)
		if wrong.count == 0 {
			return nil
		}
		if least == nil || wrong.count < least.count {
			least = wrong
		}
	}
	if least == nil {
		return notAllowed(t.request) // these are no Terms that Authorize gave
	}
	return least.err()
}

// looking is one Check under way.
type looking struct {
	*Terms
	claims *Claims
	kept   []answer // by each rule, once somebody has asked
}

type answer uint8

const (
	unasked answer = iota
	yes
	no
)

// keeps reports whether the claims, but for aud, keep to a rule.
func (l *looking) keeps(i int) bool {
	if l.kept[i] == unasked {
		l.kept[i] = no
		if l.rules[i].claims.keptBy(l.claims) {
			l.kept[i] = yes
		}
	}
	return l.kept[i] == yes
}

// by is what is wrong by a rule that covers the request.
func (l *looking) by(i int) *violations {
	wrong := &violations{}
	r := l.rules[i].claims
	if !l.keeps(i) {
		r.violations(l.claims, wrong)
	}
	if r != nil && r.audiences != nil {
		for _, audience := range slices.Concat(l.claims.Others, l.claims.Audiences) {
			if !r.audiences.match(audience) {
				wrong.add("claims.aud", "names parties that this caller may not issue such tokens for: leave them out, or ask the operator for a grant that lists them")
				break
			}
		}
	} else if !l.coversAll(l.claims.Others) {
		wrong.add("claims.aud", "names parties beside the client that this caller may not issue for: leave them out, or ask the operator for a grant that covers them")
	}
	return wrong
}

// coversAll reports whether the caller could have had the token made for any of
// other clients, with the same claims. Else what one grant refuses could be had
// of another: by naming the one's clients in aud of a token for the other's.
func (l *looking) coversAll(clients []string) bool {
	asked := l.request
	for _, asked.ClientID = range clients {
		covered := false
		for i := range l.rules {
			if l.rules[i].covers(&asked) && l.keeps(i) {
				covered = true
				break
			}
		}
		if !covered {
			return false
		}
	}
	return true
}

// keptBy reports whether there are no violations, but for aud.
func (r *claimRule) keptBy(c *Claims) bool {
	if r == nil {
		return true
	}
	if r.longest > 0 && (c.Lifetime == 0 || c.Lifetime > r.longest) {
		return false
	}
	found := 0
	for name, null := range c.Given {
		if r.allow != nil {
			if _, ok := r.allow[name]; !ok {
				return false
			}
		}
		if !null && slices.Contains(r.require, name) {
			found++
		}
	}
	return found == len(r.require)
}

// violations adds what is wrong, but for aud.
func (r *claimRule) violations(c *Claims, wrong *violations) {
	missing, expGiven := slices.Clone(r.require), false
	for name, null := range c.Given {
		expGiven = expGiven || name == "exp"
		if _, ok := r.allow[name]; r.allow != nil && !ok {
			wrong.add(claimField(name), r.notListed)
		}
		if !null {
			missing = slices.DeleteFunc(missing, func(m string) bool { return m == name })
		}
	}
	for _, name := range missing {
		wrong.add(claimField(name), "is missing, or null: this caller must give it")
	}
	switch field := "lifetime"; {
	case r.longest == 0:
	case c.Lifetime == 0:
		wrong.add("token_kind", "is of tokens that have no exp, and this caller may only have such that end: ask the operator for a grant without max_lifetime")
	case c.Lifetime > r.longest:
		if expGiven {
			field = "claims.exp"
		}
		wrong.add(field, fmt.Sprintf("would be longer than this caller's tokens may live: ask for at most %d seconds", int64(r.longest/time.Second)))
	}
}
