package client

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// claims are the members of a verified payload.
type claims map[string]jsontext.Value

func parseClaims(payload []byte) (claims, error) {
	members, err := parseObject(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: the payload is not a JSON object with distinct names", ErrClaims)
	}
	return members, nil
}

// agreeWith checks claims that the JWE header repeats: they must be the same there
// (RFC 7519, section 5.3).
func (c claims) agreeWith(h *header) error {
	for _, name := range []string{"iss", "sub", "aud"} {
		outside, ok := h.members[name]
		if !ok {
			continue
		}
		inside, ok := c[name]
		if !ok || !equalJSON(outside, inside) {
			return fmt.Errorf("%w: the JWE header has another %s than the claims", ErrClaims, name)
		}
	}
	return nil
}

func equalJSON(a, b jsontext.Value) bool {
	a, b = a.Clone(), b.Clone()
	return a.Canonicalize() == nil && b.Canonicalize() == nil && bytes.Equal(a, b)
}

// claimChecks are the parts of OpenConfig that concern claims.
type claimChecks struct {
	issuer, audience            string
	trusted                     []string // audiences, for kinds
	requireExpiry, allowExpired bool
	clock                       func() time.Time
	leeway                      time.Duration
}

// check applies RFC 7519, section 4.1, as far as the configuration asks for it.
func (k claimChecks) check(c claims) error {
	if k.issuer != "" {
		if iss, ok := stringValue(c["iss"]); !ok || iss != k.issuer {
			return fmt.Errorf("%w: iss is missing or not %s", ErrClaims, quote(k.issuer))
		}
	}
	if k.audience != "" && !c.hasAudience(k.audience) {
		return fmt.Errorf("%w: aud is missing or does not name %s", ErrClaims, quote(k.audience))
	}

	now, leeway := k.now(), k.leeway.Seconds()
	exp, ok, err := c.numericDate("exp")
	switch {
	case err != nil:
		return err
	case !ok && k.requireExpiry:
		return fmt.Errorf("%w: exp is missing", ErrClaims)
	case ok && !k.allowExpired && now-leeway >= exp:
		return ErrExpired
	}
	nbf, ok, err := c.numericDate("nbf")
	switch {
	case err != nil:
		return err
	case ok && now+leeway < nbf:
		return fmt.Errorf("%w: nbf lies in the future; compare this machine's clock with the issuer's", ErrClaims)
	}
	return nil
}

// now is the time in seconds since 1970.
func (k claimChecks) now() float64 { return float64(k.clock().UnixMilli()) / 1e3 }

// checkIssuedAt refuses an iat, where there is one, that is no time or in the future.
func (k claimChecks) checkIssuedAt(c claims) error {
	iat, ok, err := c.numericDate("iat")
	switch {
	case err != nil:
		return err
	case ok && k.now()+k.leeway.Seconds() < iat:
		return fmt.Errorf("%w: iat lies in the future; compare this machine's clock with the issuer's", ErrClaims)
	}
	return nil
}

// checkOthers refuses audiences beside the expected one that are not trusted.
func (k claimChecks) checkOthers(c claims) error {
	for _, other := range c.others(k.audience) {
		if !slices.Contains(k.trusted, other) {
			return fmt.Errorf("%w: aud names others beside %s, which are not in OpenConfig.TrustedAudiences", ErrClaims, quote(k.audience))
		}
	}
	return nil
}

// audiences returns the values of aud, a string or an array of strings (RFC 7519,
// section 4.1.3); ok is false if it is neither, empty, or has an empty one.
func (c claims) audiences() (list []string, ok bool) {
	values := []jsontext.Value{c["aud"]}
	if c["aud"].Kind() == '[' {
		var err error
		if values, err = arrayValues(c["aud"]); err != nil {
			return nil, false
		}
	}
	for _, v := range values {
		one, ok := stringValue(v)
		if !ok || one == "" {
			return nil, false
		}
		list = append(list, one)
	}
	return list, len(list) > 0
}

func (c claims) hasAudience(want string) bool {
	list, ok := c.audiences()
	return ok && slices.Contains(list, want)
}

// others returns the audiences beside one.
func (c claims) others(audience string) []string {
	list, _ := c.audiences()
	return slices.DeleteFunc(list, func(one string) bool { return one == audience })
}

// numericDate returns a claim in seconds since 1970, and whether it is there.
func (c claims) numericDate(name string) (float64, bool, error) {
	v, ok := c[name]
	if !ok {
		return 0, false, nil
	}
	seconds, err := strconv.ParseFloat(string(v), 64)
	if v.Kind() != '0' || err != nil || math.IsInf(seconds, 0) {
		return 0, false, fmt.Errorf("%w: %s is not a number of seconds", ErrClaims, name)
	}
	return seconds, true, nil
}
