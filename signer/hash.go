package signer

import (
	"encoding/base64"
	"unicode/utf8"

	"github.com/bulla-project/bulla/kms"
)

// hashClaims are the claims that bind an ID token to what was sent beside it.
var hashClaims = [...]claim{claimATHash, claimCHash, claimSHash}

// hashClaim is the value of at_hash, c_hash or s_hash for an ID token signed
// with alg: base64url of the left half of the hash of value's octets, by alg's
// hash function (OpenID Connect Core 1.0, sections 3.1.3.6 and 3.3.2.11; FAPI
// 1.0 Advanced, section 5.1.1).
func hashClaim(alg kms.Algorithm, value string) string {
	sum := alg.Digest([]byte(value))
	return base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2])
}

// input is a request field that a hash claim is made of.
type input struct {
	field string
	value string
	claim claim
}

func (p *preparation) inputs() [len(hashClaims)]input {
	return [...]input{
		{"access_token", p.req.AccessToken, claimATHash},
		{"code", p.req.Code, claimCHash},
		{"state", p.req.State, claimSHash},
	}
}

// checkInputs refuses inputs of hash claims where they have no use, and such
// as have no ASCII octets to hash (RFC 6749, appendix A, allows no others).
func (p *preparation) checkInputs() {
	for _, in := range p.inputs() {
		switch {
		case in.value == "":
		case !p.rules.hashes:
			p.wrong.add(in.field, "does not apply: only a token of kind "+string(IDToken)+" has "+in.claim.name())
		case !printableASCII(in.value):
			p.wrong.add(in.field, "holds characters other than printable ASCII (RFC 6749, appendix A)")
		}
	}
}

// checkHashes computes the hash claims and compares those given. A hash claim
// without its input cannot be checked and passes as it is. In a kind that has
// none a hash claim could only serve to make it look like an ID token.
func (p *preparation) checkHashes() {
	for _, in := range p.inputs() {
		if !p.rules.hashes {
			if p.claims.has(in.claim) {
				p.wrongClaim(in.claim, "does not belong in a token of kind "+string(p.req.Kind)+": leave it out")
			}
			continue
		}
		if in.value == "" {
			continue
		}
		want := hashClaim(p.alg, in.value)
		if p.good(in.claim) {
			if got, err := p.claims.text(in.claim); err != nil || got != want {
				p.wrongClaim(in.claim, "is not the hash of the request's "+in.field+" for "+string(p.alg)+": leave it out to have it filled in")
			}
			continue
		}
		p.hashes[in.claim] = want
	}
}

func printableASCII(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

func validText(s string) bool { return utf8.ValidString(s) }
