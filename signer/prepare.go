package signer

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/bulla-project/bulla/kms"
)

// clockTolerance is how far the caller's clock may be from ours, in seconds.
const clockTolerance = 60

// Prepare checks a request against the rules of its kind and completes its
// claims, for a token that will be signed with alg at about now. It asks
// nothing of any key.
//
// Errors are ErrKindUnsupported, ErrSecretKind, a *ClaimsError (matching
// ErrClaims) that holds everything that is wrong with the request, and one for
// an algorithm that kms does not know.
func Prepare(req Request, alg kms.Algorithm, now time.Time) (*Payload, error) {
	if err := req.Kind.Check(); err != nil {
		return nil, err
	}
	if !alg.Known() && !alg.Symmetric() {
		return nil, fmt.Errorf("cannot prepare a token for the unknown signing algorithm %q", string(alg))
	}
	if err := req.Kind.checkAlgorithm(alg); err != nil {
		return nil, err
	}
	p := preparation{req: &req, rules: kinds[req.Kind], alg: alg, now: now.Unix()}
	if err := p.claims.read(req.Claims); err != nil {
		p.wrong.add("claims", err.Error())
		p.checkInputs()
		return nil, p.wrong.err()
	}
	p.checkForms()
	p.checkPresence()
	p.checkEither()
	p.checkSpelling()
	p.checkParties()
	p.checkSubject()
	p.checkTimes()
	p.checkInputs()
	p.checkHashes()
	p.checkID()
	if p.rules.check != nil {
		p.wrong = append(p.wrong, p.rules.check(p.claims)...)
	}
	if err := p.wrong.err(); err != nil {
		return nil, err
	}
	return p.complete()
}

// preparation is one Prepare under way.
type preparation struct {
	req    *Request
	rules  rules
	alg    kms.Algorithm
	now    int64 // seconds
	claims claimsObject
	wrong  violations

	// bad marks claims of a wrong form, which later checks leave alone.
	bad [claimCount]bool
	// dates holds the good NumericDates, 0 if absent.
	dates [claimCount]int64
	// exp is the token's exp in seconds, given or filled; 0 for none. iat is what
	// its lifetime is counted from: the given iat, or now.
	exp, iat int64
	// hashes holds the hash claims to fill; empty for none.
	hashes [claimCount]string
	// id is the token's jti.
	id string
	// others are the audiences beside the client, of a kind that may have them.
	others []string
}

// good reports whether a claim is present and has the right form.
func (p *preparation) good(c claim) bool { return p.claims.has(c) && !p.bad[c] }

func (p *preparation) wrongClaim(c claim, problem string) { p.wrong.add(c.field(), problem) }

// checkForms holds the known claims against their JSON types. Those that are
// forbidden are left to checkPresence.
func (p *preparation) checkForms() {
	for c := range claimCount {
		if !p.claims.has(c) || slices.Contains(p.rules.forbidden, c) {
			continue
		}
		problem := ""
		switch claimTable[c].form {
		case formText:
			if p.claims.raw[c][0] != '"' {
				problem = "must be a JSON string"
			}
		case formOneOr:
			list, _, err := p.claims.texts(c)
			if err != nil || len(list) == 0 || slices.Contains(list, "") {
				problem = "must be a JSON string or a non-empty array of them, none of them empty"
			}
		case formTexts:
			if _, isArray, err := p.claims.texts(c); err != nil || !isArray {
				problem = "must be a JSON array of strings"
			}
		case formDate:
			p.dates[c], problem = p.claims.date(c)
		case formObject:
			if p.claims.raw[c][0] != '{' {
				problem = "must be a JSON object"
			}
		case formAny:
		}
		if problem != "" {
			p.bad[c] = true
			p.wrongClaim(c, problem)
		}
	}
}

// checkPresence holds the claims against the kind's row of the table.
func (p *preparation) checkPresence() {
	for _, c := range p.rules.required {
		if !p.claims.has(c) {
			p.wrongClaim(c, "is missing: every "+string(p.req.Kind)+" needs it")
		}
	}
	for _, c := range p.rules.forbidden {
		if p.claims.has(c) {
			p.bad[c] = true
			p.wrongClaim(c, "does not belong in a token of kind "+string(p.req.Kind)+": leave it out")
		}
	}
}

// checkEither wants one of the claims of which the kind needs at least one.
func (p *preparation) checkEither() {
	either := p.rules.either
	if len(either) == 0 || slices.ContainsFunc(either, p.claims.has) {
		return
	}
	p.wrongClaim(either[0], "is missing, and so is "+either[1].name()+": every "+string(p.req.Kind)+" needs one of them")
}

// checkSpelling refuses members whose names differ only in upper and lower case
// from those that are judged here, in any kind or by the kind's row. To RFC 7519,
// section 4, they are other claims; to a reader that folds case they are the same,
// so that what is forbidden would come in, and what was checked would be replaced.
func (p *preparation) checkSpelling() {
	for c, folded := range p.claims.folded {
		if c := claim(c); folded && (c.judged() || p.rules.speaksOf(c)) {
			p.wrongClaim(c, "is there by a name that differs in upper and lower case, which some readers take for the same: rename that member, or leave it out")
		}
	}
}

// checkParties holds iss, aud, azp and client_id against the issuer and the
// client of the request.
func (p *preparation) checkParties() {
	if p.good(claimISS) {
		if iss, err := p.claims.text(claimISS); err != nil || iss != p.req.Issuer.URL {
			p.wrongClaim(claimISS, "is not the URL of the issuer that was asked for: leave it out to have it filled in, or ask another issuer")
		}
	}
	if p.rules.clientBound {
		if p.req.ClientID == "" {
			p.wrong.add("client_id", "is missing: a token of kind "+string(p.req.Kind)+" is made for one client")
			return
		}
		p.checkAudience()
	}
	// The party the token is issued to is the one it is encrypted to: a client
	// that finds another in azp must refuse the token (OpenID Connect Core 1.0,
	// section 3.1.3.7). Of access tokens client_id says it, and many resource
	// servers go by azp.
	p.checkIsClient(claimAZP)
	p.checkIsClient(claimClientID)
	if !validText(p.req.ClientID) {
		p.wrong.add("client_id", "is not valid UTF-8")
	}
}

// checkAudience wants aud to name the client, and beside it others only if the
// kind may have them.
func (p *preparation) checkAudience() {
	if !p.good(claimAUD) {
		return
	}
	list, _, err := p.claims.texts(claimAUD)
	switch {
	case err != nil || !slices.Contains(list, p.req.ClientID):
		p.wrongClaim(claimAUD, "does not name the client the token is for: leave it out to have it filled in, or include the request's client_id")
	case p.rules.shared:
		for _, audience := range list {
			if audience != p.req.ClientID {
				p.others = append(p.others, audience)
			}
		}
	case len(list) > 1:
		p.wrongClaim(claimAUD, "names more than the client: a token of kind "+string(p.req.Kind)+" is for the request's client_id alone")
	}
}

// checkIsClient wants a claim that names a client to name the request's.
func (p *preparation) checkIsClient(c claim) {
	if !p.good(c) || p.req.ClientID == "" {
		return
	}
	if id, err := p.claims.text(c); err != nil || id != p.req.ClientID {
		p.wrongClaim(c, "names another client than the request's client_id: make them the same, or leave it out if the kind allows")
	}
}

func (p *preparation) checkSubject() {
	if !p.good(claimSUB) {
		return
	}
	switch sub, err := p.claims.text(claimSUB); {
	case err != nil || sub == "":
		p.wrongClaim(claimSUB, "is empty: name the subject")
	case p.rules.maxSub > 0 && len(sub) > p.rules.maxSub:
		p.wrongClaim(claimSUB, fmt.Sprintf("is longer than %d bytes (OpenID Connect Core 1.0, section 2)", p.rules.maxSub))
	}
}

// checkTimes holds iat, exp, nbf and the lifetime against the clock, the
// issuer and each other, and finds the token's exp.
func (p *preparation) checkTimes() {
	iat := p.now
	if given := p.dates[claimIAT]; given != 0 {
		if given < p.now-clockTolerance || given > p.now+clockTolerance {
			p.wrongClaim(claimIAT, fmt.Sprintf("is more than %d seconds from now: leave it out to have it filled in, or set the clock right", clockTolerance))
		} else {
			iat = given
		}
	}
	p.iat = iat
	if !p.rules.expires {
		if p.req.Lifetime != nil {
			p.wrong.add("lifetime", "does not apply: a token of kind "+string(p.req.Kind)+" has no exp")
		}
		return
	}
	lifetime, ok := p.lifetime()
	switch {
	case p.claims.has(claimEXP):
		p.checkExpiry(iat, lifetime)
	case ok:
		if p.exp = iat + lifetime; p.exp <= p.now {
			p.wrong.add("lifetime", "is over already when counted from the given iat: ask for a longer one, or leave iat out")
		}
	}
	if nbf := p.dates[claimNBF]; nbf != 0 && p.exp != 0 && nbf >= p.exp {
		p.wrongClaim(claimNBF, "is not before exp: the token would never be valid")
	}
}

// lifetime is the request's lifetime in seconds, or the default of the kind or
// the issuer. It reports whether it is good; if not, the violation has been
// noted.
func (p *preparation) lifetime() (seconds int64, ok bool) {
	longest, _ := p.longest()
	d := min(cmp.Or(p.rules.lifetime, p.req.Issuer.DefaultLifetime), longest)
	if p.req.Lifetime != nil {
		d = *p.req.Lifetime
	}
	switch {
	case p.claims.has(claimEXP) && p.req.Lifetime == nil:
		return 0, true // exp alone decides
	case d <= 0:
		p.wrong.add("lifetime", "must be longer than zero: leave it out to have the issuer's default")
	case d%time.Second != 0:
		p.wrong.add("lifetime", "must be whole seconds: JWT times are counted in seconds")
	case d > longest:
		p.wrong.add("lifetime", "is above "+p.maxLifetime())
	default:
		return int64(d / time.Second), true
	}
	return 0, false
}

// longest is the longest lifetime that a token may have, and who says so.
func (p *preparation) longest() (d time.Duration, bound string) {
	d, bound = p.req.Issuer.MaxLifetime, "the issuer's max_lifetime"
	if own := p.rules.maxLifetime; own > 0 && own < d {
		d, bound = own, "the longest lifetime of a token of kind "+string(p.req.Kind)
	}
	return d, bound
}

func (p *preparation) maxLifetime() string {
	d, bound := p.longest()
	return fmt.Sprintf("%s: ask for at most %d seconds", bound, int64(d/time.Second))
}

// checkExpiry holds a given exp against iat and the requested lifetime, which
// is 0 if there is none.
func (p *preparation) checkExpiry(iat, lifetime int64) {
	exp := p.dates[claimEXP]
	if exp == 0 {
		return // not of the right form
	}
	// A caller that leaves iat to us has counted from its own clock.
	tolerance := int64(clockTolerance)
	if p.dates[claimIAT] != 0 {
		tolerance = 0
	}
	p.exp = exp
	got := exp - iat
	longest, _ := p.longest()
	switch {
	case exp <= p.now:
		p.wrongClaim(claimEXP, "is in the past: leave it out to have it filled in, or set the clock right")
	case got <= 0:
		p.wrongClaim(claimEXP, "is not after iat")
	case got > int64(longest/time.Second):
		p.wrongClaim(claimEXP, "is further from iat than "+p.maxLifetime())
	case lifetime != 0 && (got < lifetime-tolerance || got > lifetime+tolerance):
		p.wrongClaim(claimEXP, "disagrees with the requested lifetime: send one of the two, or make exp = iat + lifetime")
	}
}

// checkID takes a given jti, or makes one if the kind wants one.
func (p *preparation) checkID() {
	if p.good(claimJTI) {
		id, err := p.claims.text(claimJTI)
		if err != nil || id == "" {
			p.wrongClaim(claimJTI, "is empty: leave it out to have it filled in where the kind wants one")
		}
		p.id = id
	} else if slices.Contains(p.rules.filled, claimJTI) {
		p.id = rand.Text()
	}
}

// complete adds the claims that the kind wants and the caller left out. The
// caller's own members stay as they are, before the added ones.
func (p *preparation) complete() (*Payload, error) {
	object := p.claims.object
	out := make([]byte, 0, len(object)+len(p.req.Issuer.URL)+2*len(p.req.ClientID)+maxFilled)
	out = append(out, object[:len(object)-1]...)
	first := p.claims.count == 0
	member := func(c claim) {
		if !first {
			out = append(out, ',')
		}
		first = false
		out = append(out, '"')
		out = append(out, c.name()...)
		out = append(out, '"', ':')
	}
	text := func(c claim, value string) (err error) {
		member(c)
		if out, err = jsontext.AppendQuote(out, value); err != nil {
			return fmt.Errorf("fill in %s: the value to fill in is not valid UTF-8", c.name())
		}
		return nil
	}
	number := func(c claim, n int64) {
		member(c)
		out = strconv.AppendInt(out, n, 10)
	}
	for _, c := range p.rules.filled {
		if p.claims.has(c) {
			continue
		}
		var err error
		switch c {
		case claimISS:
			err = text(c, p.req.Issuer.URL)
		case claimAUD:
			err = text(c, p.req.ClientID)
		case claimIAT:
			number(c, p.now)
		case claimEXP:
			number(c, p.exp)
		case claimJTI:
			err = text(c, p.id)
		case claimEvents:
			member(c)
			out = append(out, logoutEvents...)
		default:
			err = fmt.Errorf("no rule how to fill in %s", c.name())
		}
		if err != nil {
			return nil, err
		}
	}
	if len(p.others) > 0 && !p.claims.has(claimAZP) {
		if err := text(claimAZP, p.req.ClientID); err != nil {
			return nil, err
		}
	}
	for _, c := range hashClaims {
		if p.hashes[c] != "" && !p.claims.has(c) {
			if err := text(c, p.hashes[c]); err != nil {
				return nil, err
			}
		}
	}
	out = append(out, '}')
	payload := &Payload{kind: p.req.Kind, algorithm: p.alg, json: out, id: p.id, others: p.others, given: p.claims.count}
	if p.rules.expires {
		payload.expires = time.Unix(p.exp, 0).UTC()
		payload.lifetime = time.Duration(p.exp-p.iat) * time.Second
	}
	return payload, nil
}

// maxFilled is room for the names and punctuation of all filled members, two
// times, a jti, the event of a logout token and three hash claims. A guess too low
// costs one allocation.
const maxFilled = 256
