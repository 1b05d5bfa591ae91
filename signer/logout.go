package signer

// logoutEvent is the member of events that makes a token a logout token, and
// logoutEvents the claim when it is filled in: OpenID Connect Back-Channel
// Logout 1.0, section 2.4.
const (
	logoutEvent  = "http://schemas.openid.net/event/backchannel-logout"
	logoutEvents = `{"` + logoutEvent + `":{}}`
)

// checkLogout holds events and sid against the rules of logout tokens. Events of
// other meanings may stand beside the logout (RFC 8417, section 2).
func checkLogout(claims claimsObject) (wrong violations) {
	if events := claims.raw[claimEvents]; events != nil && events[0] == '{' {
		if value, ok := memberOf(events, logoutEvent); !ok || value[0] != '{' {
			wrong.add(claimEvents.field(), "has no member "+logoutEvent+" that is an object: leave the claim out to have it filled in")
		}
	}
	if claims.has(claimSID) {
		if sid, err := claims.text(claimSID); err != nil || sid == "" {
			wrong.add(claimSID.field(), "must be a JSON string that is not empty")
		}
	}
	return wrong
}
