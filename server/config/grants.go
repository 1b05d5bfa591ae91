package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/server/authz"
)

// tokenKinds are the names a grant may use.
var tokenKinds = []string{"ID_TOKEN", "LOGOUT_TOKEN", "USERINFO", "AUTHORIZATION_RESPONSE", "INTROSPECTION", "ACCESS_TOKEN"}

// grants checks who may do what. A grant that names what there is not, or that
// can never be used, is a mistake that nobody would notice later: it denies.
func (v *validator) grants() {
	c := v.c
	var issuers []string
	allNamed := !v.bad["issuers"]
	for i, is := range c.Issuers {
		issuers = append(issuers, is.Name)
		allNamed = allNamed && is.Name != "" && !v.bad[index("issuers", i)]
	}
	for i, g := range c.Grants {
		path := index("grants", i)
		v.caller(join(path, "caller"), g.Caller)
		if len(g.Allow) == 0 {
			v.add(join(path, "allow"), "the grant allows nothing", "write one or more of: "+strings.Join(texts(authz.Permissions()), ", "))
		}
		kinds, clients, known := false, false, true
		for j, p := range g.Allow {
			known = v.oneOf(index(join(path, "allow"), j), string(p), texts(authz.Permissions())...) && known
			kinds, clients = kinds || p.NeedsTokenKinds(), clients || p.NeedsClients()
		}
		noRepeats(v, join(path, "allow"), g.Allow)

		if len(g.Issuers) == 0 {
			v.add(join(path, "issuers"), "the grant covers no issuer", "write one or more of: "+strings.Join(issuers, ", "))
		}
		for j, name := range g.Issuers {
			if allNamed && !slices.Contains(issuers, name) {
				v.add(index(join(path, "issuers"), j), fmt.Sprintf("there is no issuer %s", quote(name)), suggest(name, issuers))
			}
		}
		noRepeats(v, join(path, "issuers"), g.Issuers)

		for j, k := range g.TokenKinds {
			v.oneOf(index(join(path, "token_kinds"), j), k, tokenKinds...)
		}
		noRepeats(v, join(path, "token_kinds"), g.TokenKinds)
		for j, p := range g.Clients {
			at, prefix := index(join(path, "clients"), j), strings.TrimSuffix(p, "*")
			if err := authz.CheckClientPattern(p); err != nil {
				v.add(at, quote(p)+" is no client pattern", `write a client_id, a prefix with one "*" at its end, or "*"`)
			} else if problem := registry.NameProblem(prefix); prefix != "" && problem != "" {
				v.add(at, "no client_id can be so: "+problem, `write a client_id, a prefix with one "*" at its end, or "*"`)
			}
		}
		noRepeats(v, join(path, "clients"), g.Clients)
		if g.Claims != nil {
			v.claims(join(path, "claims"), g, known && len(g.Allow) > 0 && kinds)
			if known && len(g.Allow) > 0 && !kinds {
				v.add(join(path, "claims"), "the permissions of this grant give no tokens", "remove it")
			}
		}
		if len(g.Allow) > 0 && known {
			v.scope(join(path, "token_kinds"), "token kind", len(g.TokenKinds), kinds, "write one or more of: "+strings.Join(tokenKinds, ", "))
			v.scope(join(path, "clients"), "client", len(g.Clients), clients, `write client_ids, prefixes such as "app-*", or ["*"] for all`)
		}
	}
}

// scope notes a list that is missing from a grant, or that has no effect in it.
func (v *validator) scope(path, what string, n int, needed bool, advice string) {
	switch {
	case needed && n == 0:
		v.add(path, "the grant covers no "+what, advice)
	case !needed && v.given(path):
		v.add(path, "the permissions of this grant are not limited by "+what, "remove it")
	}
}

func (v *validator) caller(path, caller string) {
	const advice = `write the URI SAN ("spiffe://example.com/idp") or the DNS SAN ("idp.example.com") of the caller's certificate`
	if !v.required(path, caller, advice) {
		return
	}
	err := authz.CheckCaller(caller)
	switch {
	case err == nil:
	case strings.Contains(caller, "*"):
		v.add(path, "callers are matched as a whole, without wildcards", "write one grant for each caller")
	default:
		v.add(path, quote(caller)+" is the identity of no certificate: "+err.Error(), advice)
	}
}
