package signer

import "strings"

// introspectionActive is the one member that an introspection response must have:
// RFC 7662, section 2.2.
const introspectionActive = "active"

// checkIntrospection holds token_introspection against the rules of introspection
// responses (RFC 9701, section 5).
func checkIntrospection(claims claimsObject) (wrong violations) {
	response := claims.raw[claimTokenIntrospection]
	if response == nil || response[0] != '{' {
		return nil
	}
	active, ok := memberOf(response, introspectionActive)
	if !ok || string(active) != "true" && string(active) != "false" {
		wrong.add(claimTokenIntrospection.field(), "has no member active that is true or false (RFC 7662, section 2.2)")
	}
	for quoted := range members(response) {
		// As for claims: some readers would take it for active.
		name, err := textOf(quoted)
		if err == nil && name != introspectionActive && strings.EqualFold(name, introspectionActive) {
			wrong.add(claimTokenIntrospection.field(), "has a member that differs from active in upper and lower case only: rename it, or leave it out")
		}
	}
	return wrong
}
