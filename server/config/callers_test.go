package config

import (
	"slices"
	"testing"
)

func TestGrantsHaveTheSameHashHoweverTheyAreWritten(t *testing.T) {
	hash := func(grants string) [32]byte {
		t.Helper()
		c, err := Parse("bulla.yaml", []byte(minimal(t)+"grants:\n"+grants))
		if err != nil {
			t.Fatal(err)
		}
		return c.GrantsSHA256()
	}
	const one = "  - {caller: x, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [a, b], claims: {max_lifetime: 120s, allow: [sub]}}\n"
	same := "  # the same\n  - clients:\n    - a\n    - \"b\"\n    caller: x\n    allow: [issue]\n    issuers: [main]\n    token_kinds: [ID_TOKEN]\n    claims: {allow: [sub], max_lifetime: 2m}\n"
	if hash(one) != hash(same) {
		t.Error("the same grants have two hashes")
	}
	seen := map[[32]byte]string{hash(one): one}
	for _, other := range []string{
		"  - {caller: y, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [a, b], claims: {max_lifetime: 120s, allow: [sub]}}\n",
		"  - {caller: x, allow: [sign_unencrypted], issuers: [main], token_kinds: [ID_TOKEN], clients: [a, b], claims: {max_lifetime: 120s, allow: [sub]}}\n",
		"  - {caller: x, allow: [issue], issuers: [main], token_kinds: [USERINFO], clients: [a, b], claims: {allow: [sub]}}\n",
		"  - {caller: x, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [\"a,b\"], claims: {max_lifetime: 120s, allow: [sub]}}\n",
		"  - {caller: x, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [a, b], claims: {max_lifetime: 121s, allow: [sub]}}\n",
		"  - {caller: x, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [a, b], claims: {max_lifetime: 120s, require: [sub]}}\n",
		"  - {caller: x, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [a, b], claims: {max_lifetime: 120s, audiences: [sub]}}\n",
		"  - {caller: x, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [a, b]}\n",
		one + "  - {caller: y, allow: [read_signing_keys], issuers: [main]}\n",
	} {
		h := hash(other)
		if first, ok := seen[h]; ok {
			t.Errorf("one hash for\n%s and\n%s", first, other)
		}
		seen[h] = other
	}
}

func TestCallersLike(t *testing.T) {
	c := &Config{Grants: []Grant{
		{Caller: "spiffe://example.com/idp"}, {Caller: "spiffe://example.com/idp"}, {Caller: "registrar.example.com"}, {Caller: "spiffe://example.com/ns/prod/sa/gateway"},
	}}
	for name, want := range map[string][]string{
		"spiffe://Example.com/IDP":                {"spiffe://example.com/idp"},
		"spiffe://example.com/idp/":               {"spiffe://example.com/idp"},
		"https://example.com/idp":                 {"spiffe://example.com/idp"},
		"example.com/idp":                         {"spiffe://example.com/idp"},
		"idp":                                     {"spiffe://example.com/idp"},
		"spiffe://example.com/ipd":                {"spiffe://example.com/idp"},
		"registrar.example.com.":                  {"registrar.example.com"},
		"registar.example.com":                    {"registrar.example.com"},
		"spiffe://cluster.local/registrar":        nil,
		"prod/sa/gateway":                         {"spiffe://example.com/ns/prod/sa/gateway"},
		"spiffe://example.com/ns/test/sa/gateway": nil,
		"": nil, "/": nil, "com": nil, "x": nil,
	} {
		if got := c.CallersLike(name); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
