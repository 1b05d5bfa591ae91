package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/server/audit"
)

func hashOfEvent(e audit.Event) string { return hex.EncodeToString(e.GrantsSHA256[:]) }

// runExplain runs "config explain" on a configuration.
func runExplain(t *testing.T, text, caller string, args ...string) (out string, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "bulla.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	cmd := rootCommand()
	cmd.SetOut(&printed)
	cmd.SetArgs(append([]string{"config", "explain", "--config", file, "--caller", caller}, args...))
	err = cmd.ExecuteContext(t.Context())
	return strings.ReplaceAll(printed.String(), filepath.Dir(file)+"/", ""), err
}

// explained is what -o json says of a caller.
func explained(t *testing.T, text, caller string) explanation {
	t.Helper()
	out, err := runExplain(t, text, caller, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var e explanation
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return e
}

const explainYAML = reloadYAML + `  - {name: second, iss: "https://second.example.com", default_lifetime: 1m, signing_keys: [{algorithm: ES256, keys: ["hsm:object=second"]}]}
grants:
  - {caller: "spiffe://example.com/idp", allow: [issue, read_client_keys, read_signing_keys], issuers: [main, second], token_kinds: [ID_TOKEN, ACCESS_TOKEN], clients: ["app-*", portal], claims: {max_lifetime: 90s, allow: [sub, client_id], require: [sub], audiences: ["https://api/*"]}}
  - {caller: "spiffe://example.com/idp", allow: [sign_unencrypted], issuers: [second], token_kinds: [USERINFO], clients: ["*"]}
  - {caller: Registrar.example.com, allow: [create_client_key], issuers: [main], clients: ["*"]}
`

func TestExplainSaysWhatACallerMayDo(t *testing.T) {
	out, err := runExplain(t, explainYAML, "spiffe://example.com/idp")
	if err != nil {
		t.Fatal(err)
	}
	shown, hash, ok := strings.Cut(out, "grants  sha256 ")
	if !ok || len(strings.TrimSpace(hash)) != 64 {
		t.Errorf("there is no hash of the grants: %s", out)
	}
	const want = `caller  spiffe://example.com/idp

issuer  main (https://login.example.com)

  may          issue
  token kinds  ID_TOKEN, ACCESS_TOKEN
  clients      app-*, portal
  lifetime     at most 1m30s; a request must ask for one, as the default is 5m
  claims       only sub, client_id, and as always iss, aud, iat, exp
  must give    sub
  aud          only https://api/*, beside the client that the token is for
  granted in   bulla.yaml:9

  may         read_client_keys
  clients     app-*, portal
  granted in  bulla.yaml:9

  may         read_signing_keys
  granted in  bulla.yaml:9

issuer  second (https://second.example.com)

  may          issue
  token kinds  ID_TOKEN, ACCESS_TOKEN
  clients      app-*, portal
  lifetime     at most 1m30s
  claims       only sub, client_id, and as always iss, aud, iat, exp
  must give    sub
  aud          only https://api/*, beside the client that the token is for
  granted in   bulla.yaml:9

  may         read_client_keys
  clients     app-*, portal
  granted in  bulla.yaml:9

  may         read_signing_keys
  granted in  bulla.yaml:9

  may          sign_unencrypted
  token kinds  USERINFO
  clients      all
  granted in   bulla.yaml:10

limit   100 registrations a second, on each replica
limit   20 first fetches a second, on each replica
`
	if diff := cmp.Diff(want, shown); diff != "" {
		t.Errorf("explained (-want +got):\n%s", diff)
	}
	e := explained(t, explainYAML, "spiffe://example.com/idp")
	if len(e.Issuers) != 2 || len(e.Issuers[0].Grants) != 3 || len(e.Issuers[1].Grants) != 4 || e.Issuers[0].Grants[0].Claims.MaxLifetimeSeconds != 90 ||
		!e.Issuers[0].Grants[0].Claims.MustAsk || e.Issuers[1].Grants[0].Claims.MustAsk || e.Issuers[1].Grants[3].Grant != "grants[1]" || len(e.Limits) != 2 {
		t.Errorf("as JSON: %+v", e)
	}
	if e := explained(t, explainYAML, "registrar.EXAMPLE.com"); e.Caller != "Registrar.example.com" || len(e.Issuers) != 1 {
		t.Errorf("a DNS name in another case: %+v", e)
	}
}

func TestExplainKnowsWhomItDoesNotKnow(t *testing.T) {
	for caller, want := range map[string][]string{
		"spiffe://example.com/IDP":  {"no grant of", `did you mean "spiffe://example.com/idp"?`, "named by the URI SAN"},
		"spiffe://example.com/idp/": {"did you mean", "no certificate names a caller so", "segment"},
		"idp":                       {`did you mean "spiffe://example.com/idp"?`},
		"registar.example.com":      {`did you mean "Registrar.example.com"?`},
		"somebody.else":             {"no grant of", "DNS SAN"},
		"*":                         {"wildcards"},
		"":                          {"--caller is missing", "spiffe://"},
	} {
		for _, format := range []string{"text", "json"} {
			out, err := runExplain(t, explainYAML, caller, "-o", format)
			if err == nil || out != "" {
				t.Errorf("%q as %s: got %v and %q, want an error alone", caller, format, err, out)
				continue
			}
			for _, w := range want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q: got %v, want %q in it", caller, err, w)
				}
			}
			if caller == "somebody.else" && strings.Contains(err.Error(), "did you mean") {
				t.Errorf("%q: %v", caller, err)
			}
		}
	}
	if _, err := runExplain(t, explainYAML+"}", "idp"); err == nil || !strings.Contains(err.Error(), "not YAML") {
		t.Errorf("a broken file: got %v", err)
	}
}

func TestExplainOfADevelopmentWithoutTLS(t *testing.T) {
	const text = "development: true\nbackends: {dev: {local: {path: keys.json}}}\nwrapping: {backend: dev, key: \"kid=w\"}\n" +
		"issuers: [{name: main, iss: \"http://127.0.0.1\", signing_keys: [{algorithm: ES256, keys: [\"dev:kid=k\"]}]}]\n" + grantsOne
	if out, err := runExplain(t, text, "development"); err != nil || !strings.Contains(out, "everything") {
		t.Errorf("the development caller: got %q, %v", out, err)
	}
	if out, err := runExplain(t, text, "one"); err == nil || !strings.Contains(err.Error(), `the only caller is "development"`) {
		t.Errorf("a grant that is not used: got %q, %v", out, err)
	}
}
