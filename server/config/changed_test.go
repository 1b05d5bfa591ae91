package config

import (
	"slices"
	"strings"
	"testing"
)

func TestChangedNamesTheSectionsThatDiffer(t *testing.T) {
	base := minimal(t)
	parse := func(text string) *Config {
		t.Helper()
		c, err := Parse("bulla.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const grants = "grants:\n  - {caller: x, allow: [read_signing_keys], issuers: [main]}\n"
	withClaims := func(allow string) string {
		return "grants:\n  - {caller: x, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [a], claims: {allow: [" + allow + "]}}\n"
	}
	for _, test := range []struct {
		what, from, to string
		want           []string
	}{
		{"nothing", base, base, nil},
		{"a comment", base, "# so\n" + base, nil},
		{"a default that is written out", base, base + "cache: {memory: 160MiB}\n", nil},
		{"a list that is empty now", base, base + "grants: []\n", nil},
		{"grants", base, base + grants, []string{"grants"}},
		{"a claim policy", base + withClaims("sub"), base + withClaims("sub, acr"), []string{"grants"}},
		{"an issuer and a backend", base, strings.NewReplacer("token: bulla", "token: other", "login.example.com", "login.example.org").Replace(base), []string{"backends", "issuers"}},
		{"several", base, base + grants + "limits: {registrations: 7}\ncache: {memory: 9MiB}\n", []string{"cache", "limits", "grants"}},
	} {
		if got := parse(test.from).Changed(parse(test.to)); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.what, got, test.want)
		}
	}
	c := parse(base + grants)
	if got, want := c.Line("grants[0].caller"), strings.Count(base, "\n")+2; got != want || c.File() != "bulla.yaml" {
		t.Errorf("the grant is in line %d of %s, want %d of bulla.yaml", got, c.File(), want)
	}
	if got := c.Line("issuers[0].profile"); got != 5 {
		t.Errorf("what is not in the file is in line %d, want that of the issuer, 5", got)
	}
}
