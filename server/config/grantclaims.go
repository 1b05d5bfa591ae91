package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/signer"
)

// claims checks the claim policy of a grant, and that there is a token of each of
// its kinds that keeps to it. issues says that the grant gives tokens; else
// nothing is said of kinds.
func (v *validator) claims(path string, g Grant, issues bool) {
	c := g.Claims
	if !v.within(path) {
		v.add(path, "it bounds nothing", "write max_lifetime, allow, require or audiences, or remove it")
		return
	}
	v.claimNames(join(path, "allow"), c.Allow)
	v.claimNames(join(path, "require"), c.Require)
	for i, name := range c.Allow {
		if slices.Contains(authz.NeverListed(), name) {
			v.add(index(join(path, "allow"), i), quote(name)+" may always be given: Bulla holds it to the issuer, the client and the clock", "remove it; max_lifetime bounds exp, and audiences bounds aud")
		}
	}
	for i, name := range c.Require {
		if name != "" && signer.ClaimSpelt(name) == "" && !c.listed(name) {
			v.add(index(join(path, "require"), i), quote(name)+" is not in allow, so that it cannot be given", "list it there, or require it no more")
		}
	}
	for i, a := range c.Audiences {
		if err := authz.CheckAudiencePattern(a); err != nil {
			v.add(index(join(path, "audiences"), i), quote(a)+" is no audience", `write one as it stands in aud, a prefix with one "*" at its end, or "*"`)
		}
	}
	v.notEmpty(join(path, "audiences"), c.Audiences)
	noRepeats(v, join(path, "audiences"), c.Audiences)
	if issues {
		v.claimKinds(path, g)
	}
	v.claimLifetime(join(path, "max_lifetime"), g)
}

// within reports whether the file has any of the fields of Claims at path, good or
// bad.
func (v *validator) within(path string) bool {
	for _, name := range fieldNames(reflect.TypeFor[Claims]()) {
		if v.given(join(path, name)) {
			return true
		}
	}
	for p := range v.bad {
		if strings.HasPrefix(p, path+".") {
			return true
		}
	}
	return false
}

// claimNames checks a list of names of claims.
func (v *validator) claimNames(path string, names []string) {
	v.notEmpty(path, names)
	for i, name := range names {
		switch spelt := signer.ClaimSpelt(name); {
		case name == "":
			v.add(index(path, i), "the name of a claim is empty", `write one such as "auth_time"`)
		case spelt != "":
			v.add(index(path, i), fmt.Sprintf("there is no claim %s", quote(name)), fmt.Sprintf("did you mean %s?", quote(spelt)))
		}
	}
	noRepeats(v, path, names)
}

func (v *validator) notEmpty(path string, list []string) {
	if list != nil && len(list) == 0 {
		v.add(path, "the list is empty, so that no token would do", "fill it, or remove it for no bound")
	}
}

// claimLifetime checks max_lifetime against what the issuers of the grant allow.
func (v *validator) claimLifetime(path string, g Grant) {
	if !v.given(path) {
		return
	}
	longest := g.Claims.MaxLifetime
	if !v.atLeast(path, longest, time.Second) {
		return
	}
	if longest%time.Second != 0 {
		v.add(path, fmt.Sprintf("%v is no whole number of seconds, and tokens know no other", longest), "write one")
	}
	allowed, found := time.Duration(0), false
	for _, is := range v.c.Issuers {
		if slices.Contains(g.Issuers, is.Name) {
			allowed, found = max(allowed, is.MaxLifetime), true
		}
	}
	if found && longest > allowed {
		v.add(path, fmt.Sprintf("%v is above the max_lifetime of the issuers of this grant, %v, so that it bounds nothing", longest, allowed), "write a shorter one, or remove it")
	}
}

// claimKinds notes kinds of which no token keeps to the policy, and lists that
// mean nothing to any of the kinds.
func (v *validator) claimKinds(path string, g Grant) {
	c := g.Claims
	names, known := false, true
	for i, name := range g.TokenKinds {
		kind := signer.TokenKind(name)
		if kind.Check() != nil {
			known = false
			continue // that has been said
		}
		names = names || kind.NamesOthers()
		if problem, advice := never(kind, c); problem != "" {
			v.add(index(join(parent(path), "token_kinds"), i), problem, advice)
		}
	}
	if known && len(g.TokenKinds) > 0 && len(c.Audiences) > 0 && !names {
		v.add(join(path, "audiences"), "tokens of these kinds name nobody but the client in aud", "remove it")
	}
	taken := func(name string) bool {
		return slices.ContainsFunc(g.TokenKinds, func(k string) bool { return signer.TokenKind(k).Takes(name) })
	}
	for i, name := range c.Allow {
		if known && len(g.TokenKinds) > 0 && name != "" && signer.ClaimSpelt(name) == "" && !taken(name) {
			v.add(index(join(path, "allow"), i), fmt.Sprintf("tokens of these kinds never hold %s", quote(name)), "remove it")
		}
	}
}

// never says why no token of a kind keeps to a policy; empty if some do.
func never(kind signer.TokenKind, c *Claims) (problem, advice string) {
	if c.MaxLifetime > 0 && !kind.Expires() {
		return fmt.Sprintf("tokens of kind %s have no exp, so that with max_lifetime the grant never gives one", kind), "give this kind a grant of its own, without max_lifetime"
	}
	for _, name := range c.Require {
		if signer.ClaimSpelt(name) == "" && !kind.Takes(name) {
			return fmt.Sprintf("tokens of kind %s never hold %s, which claims.require asks for", kind, quote(name)), "give this kind a grant of its own"
		}
	}
	var missing []string
	for _, either := range kind.Needs() {
		if len(c.Allow) > 0 && !slices.ContainsFunc(either, c.listed) {
			missing = append(missing, strings.Join(either, " or "))
		}
	}
	if len(missing) == 0 {
		return "", ""
	}
	return fmt.Sprintf("every token of kind %s needs %s, which claims.allow does not list", kind, strings.Join(missing, " and ")), "list it there, or give this kind a grant of its own"
}

// listed reports whether a claim may be given.
func (c *Claims) listed(name string) bool {
	return c.Allow == nil || slices.Contains(c.Allow, name) || slices.Contains(authz.NeverListed(), name)
}
