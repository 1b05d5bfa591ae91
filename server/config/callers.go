package config

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// GrantsSHA256 is a hash of the grants as they are meant, and not as they are
// written: the same for two files that say the same in the same order. By it one
// can tell which grants a service has in force.
func (c *Config) GrantsSHA256() [sha256.Size]byte {
	type claims struct {
		MaxLifetime string   `json:"max_lifetime,omitempty"`
		Allow       []string `json:"allow,omitempty"`
		Require     []string `json:"require,omitempty"`
		Audiences   []string `json:"audiences,omitempty"`
	}
	type grant struct {
		Caller     string   `json:"caller"`
		Allow      []string `json:"allow"`
		Issuers    []string `json:"issuers"`
		TokenKinds []string `json:"token_kinds,omitempty"`
		Clients    []string `json:"clients,omitempty"`
		Claims     *claims  `json:"claims,omitempty"`
	}
	list := make([]grant, len(c.Grants))
	for i, g := range c.Grants {
		list[i] = grant{Caller: g.Caller, Allow: texts(g.Allow), Issuers: g.Issuers, TokenKinds: g.TokenKinds, Clients: g.Clients}
		if p := g.Claims; p != nil {
			list[i].Claims = &claims{Allow: p.Allow, Require: p.Require, Audiences: p.Audiences}
			if p.MaxLifetime != 0 {
				list[i].Claims.MaxLifetime = p.MaxLifetime.String()
			}
		}
	}
	doc, err := json.Marshal(list)
	if err != nil {
		panic(fmt.Sprintf("config: grants cannot be written: %v", err)) // they are texts and lists of texts
	}
	return sha256.Sum256(doc)
}

// CallersLike returns the callers of grants that may be meant by a name that is
// none of them: but for upper and lower case, a trailing slash, the part before
// the path, or a slip.
func (c *Config) CallersLike(name string) []string {
	var like []string
	for _, g := range c.Grants {
		if !slices.Contains(like, g.Caller) && alike(g.Caller, name) {
			like = append(like, g.Caller)
		}
	}
	return like
}

func alike(caller, name string) bool {
	a, b := bare(caller), bare(name)
	switch {
	case b == "":
		return false
	case a == b, strings.HasSuffix(a, "/"+b), strings.HasSuffix(b, "/"+a):
		return true
	}
	return len(b) > 4 && distance(a, b) <= 2
}

// bare is what is left of a caller's name without what is easily mistaken.
func bare(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	if _, rest, ok := strings.Cut(name, "://"); ok {
		name = rest
	}
	return strings.Trim(name, "/.")
}
