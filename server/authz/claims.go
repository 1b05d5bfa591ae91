package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ClaimPolicy bounds the tokens that a grant gives. Each field that is zero
// bounds nothing; a list that is there must not be empty. The fields hold
// together: a token must keep to all of them.
type ClaimPolicy struct {
	// MaxLifetime is the longest time from iat to exp, in whole seconds. A grant
	// that has one gives no token without exp, which nothing would ever end.
	// Nothing is shortened to it: a token whose default lifetime is longer is
	// refused, and its caller asks for a lifetime.
	MaxLifetime time.Duration
	// Allow lists the only claims that the caller may give, by their names at the
	// top level. Those that the service fills in need no listing, as long as it
	// is the service that does. Nor do the NeverListed, whoever gives them.
	Allow []string
	// Require lists claims that the caller must give, and not as null.
	Require []string
	// Audiences lists all that aud may name: beside the client in a token that is
	// made for one, and at all in one that is bound to no client, an access token.
	// An entry is exact, or a prefix followed by one "*" at the end. Without it
	// aud of an access token may name anybody; that of other tokens, beside the
	// client, those for whom a grant of the caller would give this token too.
	Audiences []string
}

// neverListed are the claims that Allow does not speak of: what they hold is the
// issuer's, the clock's, or a matter of MaxLifetime and Audiences.
var neverListed = []string{"iss", "aud", "iat", "exp"}

// NeverListed returns the names of the claims that ClaimPolicy.Allow does not
// speak of.
func NeverListed() []string { return slices.Clone(neverListed) }

// claimRule is a compiled ClaimPolicy.
type claimRule struct {
	longest   time.Duration       // 0 for any
	allow     map[string]struct{} // nil for all
	notListed string              // what is wrong with a claim that is not in allow
	require   []string
	audiences *patterns // nil if it does not say
}

func (c *ClaimPolicy) compile() (*claimRule, error) {
	if c == nil || c.MaxLifetime == 0 && c.Allow == nil && c.Require == nil && c.Audiences == nil {
		return nil, nil //nolint:nilnil // what bounds nothing is no rule
	}
	switch {
	case c.MaxLifetime < 0 || c.MaxLifetime%time.Second != 0:
		return nil, fmt.Errorf("max_lifetime %v is no whole number of seconds above zero", c.MaxLifetime)
	case emptyList(c.Allow), emptyList(c.Require), emptyList(c.Audiences):
		return nil, errors.New("a list of the claim policy is empty: leave it out, or fill it")
	case slices.Contains(c.Allow, ""), slices.Contains(c.Require, ""):
		return nil, errors.New("a name of a claim is empty: write one such as \"auth_time\"")
	}
	r := &claimRule{longest: c.MaxLifetime, require: slices.Compact(slices.Sorted(slices.Values(c.Require)))}
	if c.Allow != nil {
		r.notListed = "is not among the claims that this caller may give (" + fewOf(c.Allow) + "): leave it out, or ask the operator for a grant that allows it"
		r.allow = make(map[string]struct{}, len(c.Allow)+len(neverListed))
		for _, name := range slices.Concat(c.Allow, neverListed) {
			r.allow[name] = struct{}{}
		}
	}
	for _, a := range c.Audiences {
		if err := CheckAudiencePattern(a); err != nil {
			return nil, err
		}
	}
	if c.Audiences != nil {
		p := newPatterns(c.Audiences)
		r.audiences = &p
	}
	return r, nil
}

// fewOf lists names, or the first of very many.
func fewOf(names []string) string {
	const few = 20
	if len(names) > few {
		return strings.Join(names[:few], ", ") + fmt.Sprintf(" and %d more", len(names)-few)
	}
	return strings.Join(names, ", ")
}

func emptyList(list []string) bool { return list != nil && len(list) == 0 }
