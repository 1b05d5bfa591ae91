package signer

import (
	"iter"
	"slices"
	"time"
)

// Lifetime is the time from iat, or from now where the token has none, to exp;
// zero for a token without exp.
func (p *Payload) Lifetime() time.Duration { return p.lifetime }

// Given yields the name of each claim that the caller gave, unescaped and in
// their order, and whether its value is null. What was filled in is not among
// them.
func (p *Payload) Given() iter.Seq2[string, bool] {
	return func(yield func(name string, null bool) bool) {
		left := p.given
		for quoted, value := range members(p.json) {
			if left == 0 {
				return
			}
			left--
			name, err := textOf(quoted)
			if err != nil {
				name = "" // read has seen that it can be unescaped
			}
			if !yield(name, string(value) == "null") {
				return
			}
		}
	}
}

// Audiences are the values of aud, given or filled in.
func (p *Payload) Audiences() []string {
	raw, ok := memberOf(p.json, claimAUD.name())
	if !ok {
		return nil
	}
	list, _, err := textsOf(raw)
	if err != nil {
		return nil // Prepare has seen that it can be read
	}
	return list
}

// What others may know of the table of kinds, to find out beforehand what can
// never be.

// Expires reports whether tokens of kind k have an exp.
func (k TokenKind) Expires() bool { return kinds[k].expires }

// NamesOthers reports whether aud of tokens of kind k may name others than the
// client.
func (k TokenKind) NamesOthers() bool { r := kinds[k]; return r.shared || !r.clientBound }

// Needs are the claims that a caller has to give for a token of kind k. Of each
// entry one is enough.
func (k TokenKind) Needs() [][]string {
	r := kinds[k]
	var needs [][]string
	for _, c := range r.required {
		needs = append(needs, []string{c.name()})
	}
	if len(r.either) > 0 {
		var either []string
		for _, c := range r.either {
			either = append(either, c.name())
		}
		needs = append(needs, either)
	}
	return needs
}

// Takes reports whether a claim of that name may be in tokens of kind k.
func (k TokenKind) Takes(name string) bool {
	c, known := claimsByName[name]
	if !known {
		folded, ok := foldedClaim([]byte(name))
		r := kinds[k]
		return !ok || !folded.judged() && !r.speaksOf(folded)
	}
	r := kinds[k]
	return !slices.Contains(r.forbidden, c) && (r.hashes || !slices.Contains(hashClaims[:], c))
}

// ClaimSpelt is the claim that the rules know by another spelling of name, in
// upper and lower case; empty if there is none.
func ClaimSpelt(name string) string {
	if c, ok := foldedClaim([]byte(name)); ok && c.name() != name {
		return c.name()
	}
	return ""
}
