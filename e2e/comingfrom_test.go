package e2e

import (
	"slices"
	"strings"
	"testing"
)

// TestComingFromPagesWorkAsWritten runs the commands of each page of
// docs/coming-from after those that the pages start from, and holds what they
// print against what the page shows: above all the headers of the tokens.
func TestComingFromPagesWorkAsWritten(t *testing.T) {
	for product, want := range map[string]struct {
		tokens int      // how many the commands open
		shown  []string // what the page must not stop to show, of what the product's documentation has
	}{
		"fief":      {3, []string{`"alg": "RSA-OAEP-256",`, `"enc": "A256CBC-HS512",`, `"kid": "…"`, `"alg": "RS256",`}},
		"wso2":      {3, []string{`"alg": "RSA1_5",`, `"enc": "A256GCM",`, `"kid": "…",`, `"x5t": "…",`, `"enc": "A128CBC+HS256",`}},
		"curity":    {1, []string{`"alg": "RSA-OAEP",`, `"enc": "A256CBC-HS512",`, `"cty": "JWT",`, `"kid": "-996770274",`, `"x5t#S256": "…"`, "RSA-OAEP A128CBC-HS256,"}},
		"forgerock": {3, []string{`"alg": "A128KW",`, `"alg": "HS256",`, `"typ": "logout+jwt"`, `"alg": "ECDH-ES",`, `"crv": "X25519",`}},
	} {
		t.Run(product, func(t *testing.T) {
			t.Parallel()
			ip := loopback(t)
			commands := texts(pageBlocks(t, firstSteps, ip), "sh")
			commands = commands[:slices.IndexFunc(commands, serves)]
			commands = append(commands, texts(pageBlocks(t, "docs/coming-from/README.md", ip), "sh")...)
			page := pageBlocks(t, "docs/coming-from/"+product+".md", ip)
			out := runAsWritten(t, ip, append(commands, texts(page, "sh")...))

			shown := texts(page, "text")
			checkShown(t, out, shown)
			for _, member := range want.shown {
				if !strings.Contains(strings.Join(shown, ""), member) {
					t.Errorf("the page does not show %s", member)
				}
			}
			if got := strings.Count(out, "signed by the issuer (JWS header):\n"); got != want.tokens {
				t.Errorf("the page's commands opened %d tokens, want %d:\n%s", got, want.tokens, out)
			}
			if strings.Contains(out, "\nFAIL ") {
				t.Errorf("the page's configuration has faults:\n%s", out)
			}
		})
	}
}
