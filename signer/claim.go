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
	// RFC 8693, sections 4.2 and 4.3.
	claimScope
	claimClientID
	// RFC 8417, section 2.2, and RFC 9701, section 5.
	claimEvents
	claimTokenIntrospection

	claimCount
)

// form is the JSON shape a claim must have.
type form uint8

const (
	formText  form = iota // a string
	formTexts             // an array of strings
	formOneOr             // a string or a non-empty array of strings
	formDate              // NumericDate: a number of seconds
	formAny               // not looked at
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
	claimScope:              {"scope", formText},
	claimClientID:           {"client_id", formText},
	claimEvents:             {"events", formAny},
	claimTokenIntrospection: {"token_introspection", formAny},
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

// field is the claim's place in a Violation.
func (c claim) field() string { return "claims." + c.name() }
