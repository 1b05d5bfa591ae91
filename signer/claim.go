package signer

// claim is a claim that the rules know by name. What they do not know passes
// untouched.
type claim uint8

const (
	// RFC 7519, section 4.1.
	claimISS claim = iota
	claimSUB
	claimAUD
	claimEXP
	claimNBF
	claimIAT
	claimJTI
	// OpenID Connect Core 1.0, sections 2 and 3.3.2.11; s_hash is of FAPI 1.0
	// Advanced, section 5.1.1.
	claimAZP
	claimNonce
	claimAuthTime
	claimACR
	claimAMR
	claimATHash
	claimCHash
	claimSHash
	// OpenID Connect Back-Channel Logout 1.0, section 2.4.
	claimSID
	// RFC 8693, sections 4.2 and 4.3.
	claimScope
	claimClientID
	// RFC 8417, section 2.2, and RFC 9701, section 5.
	claimEvents
	claimTokenIntrospection
	// The parameters without which an authorization response says nothing: RFC
	// 6749, sections 4.1.2, 4.1.2.1 and 4.2.2, and OpenID Connect Core 1.0,
	// section 3.2.2.5.
	claimCode
	claimError
	claimAccessToken
	claimIDToken

	claimCount
)

// form is the JSON shape a claim must have.
type form uint8

const (
	formText   form = iota // a string
	formTexts              // an array of strings
	formOneOr              // a string or a non-empty array of strings
	formDate               // NumericDate: a number of seconds
	formObject             // an object
	formAny                // not looked at
)

// claimTable has name and form of each claim.
var claimTable = [claimCount]struct {
	name string
	form form
}{
	claimISS:                {"iss", formText},
	claimSUB:                {"sub", formText},
	claimAUD:                {"aud", formOneOr},
	claimEXP:                {"exp", formDate},
	claimNBF:                {"nbf", formDate},
	claimIAT:                {"iat", formDate},
	claimJTI:                {"jti", formText},
	claimAZP:                {"azp", formText},
	claimNonce:              {"nonce", formText},
	claimAuthTime:           {"auth_time", formDate},
	claimACR:                {"acr", formText},
	claimAMR:                {"amr", formTexts},
	claimATHash:             {"at_hash", formText},
	claimCHash:              {"c_hash", formText},
	claimSHash:              {"s_hash", formText},
	claimSID:                {"sid", formAny}, // as those below
	claimScope:              {"scope", formText},
	claimClientID:           {"client_id", formText},
	claimEvents:             {"events", formObject},
	claimTokenIntrospection: {"token_introspection", formObject},
	claimCode:               {"code", formAny}, // in a UserInfo response it may be anything
	claimError:              {"error", formAny},
	claimAccessToken:        {"access_token", formAny},
	claimIDToken:            {"id_token", formAny},
}

// claimsByName finds a claim by its unescaped name.
var claimsByName = func() map[string]claim {
	m := make(map[string]claim, claimCount)
	for c, row := range claimTable {
		m[row.name] = claim(c)
	}
	return m
}()

func (c claim) name() string { return claimTable[c].name }

// judged reports whether the value of a claim is looked at in tokens of every
// kind. Those that are not matter only to kinds whose row speaks of them.
func (c claim) judged() bool {
	switch c {
	case claimCode, claimError, claimAccessToken, claimIDToken:
		return false
	}
	return true
}

// field is the claim's place in a Violation.
func (c claim) field() string { return "claims." + c.name() }
