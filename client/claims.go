package client

import (
	"bytes"
	"fmt"
	"math"
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

	now := float64(k.clock().UnixMilli()) / 1e3
	leeway := k.leeway.Seconds()
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

// hasAudience tells if aud, a string or an array of strings, names the audience.
func (c claims) hasAudience(want string) bool {
	if one, ok := stringValue(c["aud"]); ok {
		return one == want
	}
	values, err := arrayValues(c["aud"])
	if err != nil {
		return false
	}
	for _, v := range values {
		if one, ok := stringValue(v); ok && one == want {
			return true
		}
	}
	return false
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
