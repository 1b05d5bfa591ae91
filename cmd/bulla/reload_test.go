package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/telemetry"
)

// reloadYAML is a configuration but for its grants.
const reloadYAML = `grpc: {tls: {cert_file: server.crt, key_file: server.key, client_ca_file: ca.crt}}
backends:
  hsm: {pkcs11: {module: /usr/lib/softhsm/libsofthsm2.so, token: bulla, pin_file: pin}}
wrapping: {backend: hsm, key: "object=wrap-1"}
issuers:
  - {name: main, iss: "https://login.example.com", signing_keys: [{algorithm: ES256, keys: ["hsm:object=login-es256"]}]}
`

// Grants of one caller each.
const (
	grantsOne = "grants:\n  - {caller: one, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [\"*\"]}\n"
	grantsTwo = "grants:\n  - {caller: two, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [\"*\"]}\n"
)

// auditLines is an audit log that can fail.
type auditLines struct {
	events []audit.Event
	err    error
}

func (a *auditLines) Record(_ context.Context, e audit.Event) error {
	if a.err == nil {
		a.events = append(a.events, e)
	}
	return a.err
}

// reloading is a service as far as reloads go.
type reloading struct {
	*reload
	live  *authz.Live
	lines auditLines
	out   bytes.Buffer
	file  string
	other []string // what the second section had in force
}

func startReloading(t *testing.T, text string) *reloading {
	t.Helper()
	r := &reloading{file: filepath.Join(t.TempDir(), "bulla.yaml")}
	r.write(t, text)
	cfg, err := config.Load(r.file)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := newPolicy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.live = authz.NewLive(policy)
	// A second section, which can refuse what the file says of it.
	limits := &swap{section: "limits", prepare: func(next *config.Config) (func(), error) {
		if next.Limits.Registrations == 13 {
			return nil, errors.New("not thirteen")
		}
		return func() { r.other = append(r.other, "applied") }, nil
	}}
	r.reload = newReload(cfg, &r.lines, slog.New(slog.NewTextHandler(&r.out, nil)), swapGrants(cfg, r.live), limits)
	return r
}

func (r *reloading) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// allowed are those of some callers that may issue.
func (r *reloading) allowed() string {
	var names []string
	for _, caller := range []string{"one", "two", authz.DevelopmentCaller} {
		if r.live.Allow(caller, authz.Request{Permission: authz.Issue, Issuer: "main", TokenKind: "ID_TOKEN", ClientID: "app"}) == nil {
			names = append(names, caller)
		}
	}
	return strings.Join(names, " ")
}

// TestAReloadIsAllOrNothing reads files that are good, and files with something
// wrong in the grants, elsewhere, or only for a process that runs.
func TestAReloadIsAllOrNothing(t *testing.T) {
	developing := "development: true\n" + strings.Replace(reloadYAML, "grpc: {tls: {cert_file: server.crt, key_file: server.key, client_ca_file: ca.crt}}\n", "", 1)
	second := strings.Replace(reloadYAML, "issuers:\n", "issuers:\n  - {name: second, iss: \"https://second.example.com\", signing_keys: [{algorithm: ES256, keys: [\"hsm:object=second\"]}]}\n", 1)
	for _, test := range []struct {
		what    string
		file    string // empty: it is gone
		fails   bool   // the audit log
		allowed string // who may issue after it
		records int    // audit lines
		refused bool
		log     string // what the log has
	}{
		{"other grants", reloadYAML + grantsTwo, false, "two", 1, false, "changed=[grants]"},
		{"no grants", reloadYAML, false, "", 1, false, "changed=[grants]"},
		{"the same in other words", "# hello\n" + reloadYAML + grantsOne, false, "one", 0, false, "changed=[]"},
		{"what needs a restart", strings.Replace(reloadYAML, "bulla, pin", "other, pin", 1) + "cache: {memory: 9MiB}\n" + grantsTwo, false, "two", 1, false, "sections=\"[backends cache]\""},
		{"two sections", reloadYAML + grantsTwo + "limits: {registrations: 7}\n", false, "two", 1, false, `changed="[grants limits]"`},
		{"another section cannot be prepared", reloadYAML + grantsTwo + "limits: {registrations: 13}\n", false, "one", 0, true, "not thirteen"},
		{"a grant that is wrong", reloadYAML + grantsTwo + "  - {caller: three, allow: [isue], issuers: [main]}\n", false, "one", 0, true, "bulla.yaml:9: grants[1].allow[0]: there is no"},
		{"another section that is wrong", reloadYAML + grantsTwo + "audit: {sync: never}\n", false, "one", 0, true, "audit.sync"},
		{"no YAML", reloadYAML + grantsTwo + "}\n", false, "one", 0, true, "not YAML"},
		{"half of it", (reloadYAML + grantsTwo)[:300], false, "one", 0, true, "bulla.yaml:"},
		{"no file", "", false, "one", 0, true, "cannot be read"},
		{"an issuer that does not run", second + strings.Replace(grantsTwo, "[main]", "[main, second]", 1), false, "one", 0, true, `grants[0].issuers[1]: this process was started without the issuer \"second\"`},
		{"an issuer that does not run, and no grant for it", second + grantsTwo, false, "two", 1, false, "sections=[issuers]"},
		{"development without TLS", developing + grantsTwo, false, "one", 0, true, "callers are known by certificates"},
		{"a change that cannot be put on record", reloadYAML + grantsTwo, true, "one", 0, true, "put on record"},
	} {
		t.Run(test.what, func(t *testing.T) {
			r := startReloading(t, reloadYAML+grantsOne)
			if test.file == "" {
				if err := os.Remove(r.file); err != nil {
					t.Fatal(err)
				}
			} else {
				r.write(t, test.file)
			}
			if test.fails {
				r.lines.err = audit.ErrUnavailable
			}
			r.again(t.Context())
			if got := r.allowed(); got != test.allowed {
				t.Errorf("%q may issue, want %q", got, test.allowed)
			}
			if got := len(r.lines.events); got != test.records {
				t.Errorf("%d changes on record, want %d", got, test.records)
			}
			if (r.refused.Load() == 1) != test.refused || r.refused.Load()+r.taken.Load() != 1 {
				t.Errorf("refused %d, taken %d; want refused %v", r.refused.Load(), r.taken.Load(), test.refused)
			}
			if test.refused && len(r.other) > 0 {
				t.Error("another section was swapped by a file that was refused")
			}
			if out := r.out.String(); !strings.Contains(out, test.log) || strings.Contains(out, "nothing has changed") != test.refused {
				t.Errorf("the log has no %s, or says the wrong thing:\n%s", test.log, out)
			}
			// A good file after it is taken all the same.
			r.lines.err = nil
			r.write(t, reloadYAML+strings.Replace(grantsTwo, "two", "one", 1)+"  - {caller: two, allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: [app]}\n")
			r.again(t.Context())
			if got := r.allowed(); got != "one two" {
				t.Errorf("then %q may issue, want one and two", got)
			}
		})
	}
}

// TestAChangeOfGrantsIsOnRecord: with the hash that "config explain" prints.
func TestAChangeOfGrantsIsOnRecord(t *testing.T) {
	r := startReloading(t, reloadYAML+grantsOne)
	for _, grants := range []string{grantsTwo, grantsTwo, grantsOne} {
		r.write(t, reloadYAML+grants)
		r.again(t.Context())
	}
	var got []string
	for _, e := range r.lines.events {
		if e.Outcome != audit.Changed || e.KeySource != "configuration" || e.Caller != "" {
			t.Errorf("on record: %+v", e)
		}
		got = append(got, hashOfEvent(e))
	}
	want := []string{explained(t, reloadYAML+grantsTwo, "two").GrantsSHA256, explained(t, reloadYAML+grantsOne, "one").GrantsSHA256}
	if !slices.Equal(got, want) {
		t.Errorf("on record %q, want %q", got, want)
	}
}

func TestInDevelopmentWithoutTLSGrantsAreNotSwapped(t *testing.T) {
	const text = "development: true\nbackends: {dev: {local: {path: keys.json}}}\nwrapping: {backend: dev, key: \"kid=w\"}\n" +
		"issuers: [{name: main, iss: \"http://127.0.0.1\", signing_keys: [{algorithm: ES256, keys: [\"dev:kid=k\"]}]}]\n"
	r := startReloading(t, text)
	r.write(t, text+grantsOne)
	r.again(t.Context())
	if got := r.allowed(); got != authz.DevelopmentCaller || len(r.lines.events) != 0 {
		t.Errorf("%q may issue, %d lines on record; want the development caller and none", got, len(r.lines.events))
	}
}

func TestReloadsAreCounted(t *testing.T) {
	r := startReloading(t, reloadYAML+grantsOne)
	reg := prometheus.NewRegistry()
	m, err := telemetry.New(reg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.register(m); err != nil {
		t.Fatal(err)
	}
	r.again(t.Context())
	r.write(t, "}")
	r.again(t.Context())
	r.again(t.Context())
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, sample := range f.GetMetric() {
			name := f.GetName()
			for _, l := range sample.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			got[name] = sample.GetCounter().GetValue() + sample.GetGauge().GetValue()
		}
	}
	if got["bulla_config_reloads_total result=ok"] != 1 || got["bulla_config_reloads_total result=refused"] != 2 {
		t.Errorf("got %v, want 1 ok and 2 refused", got)
	}
	if at := got["bulla_config_last_reload_timestamp_seconds"]; time.Since(time.Unix(int64(at), 0)).Abs() > time.Minute {
		t.Errorf("the last reload was at %v", at)
	}
}
