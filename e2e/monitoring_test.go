package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

const (
	alertsFile    = "../deploy/prometheus/alerts.yaml"
	dashboardFile = "../deploy/grafana/bulla.json"
	runbooks      = "../deploy/runbooks"
)

// alertRule is a rule of alertsFile.
type alertRule struct {
	Alert       string
	Expr        string
	Labels      map[string]string
	Annotations map[string]string
}

func readAlerts(t *testing.T) []alertRule {
	t.Helper()
	text, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []alertRule } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var rules []alertRule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules
}

func TestAlertsFireWhenTheyShould(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"check", "rules", "alerts.yaml"},
		{"test", "rules", "alerts_test.yaml"},
	} {
		cmd := exec.CommandContext(t.Context(), "promtool", args...)
		cmd.Dir = filepath.Dir(alertsFile)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(alertsFile), "alerts_test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name string `yaml:"alertname"`
				Want []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal(text, &tests); err != nil {
		t.Fatal(err)
	}
	fires := make(map[string]bool)
	for _, group := range tests.Tests {
		for _, a := range group.Alerts {
			fires[a.Name] = fires[a.Name] || len(a.Want) > 0
		}
	}
	for _, r := range readAlerts(t) {
		if !fires[r.Alert] {
			t.Errorf("no test has %s fire", r.Alert)
		}
	}
}

func TestEveryAlertHasARunbook(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(runbooks + "/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %d runbooks", err, len(files))
	}
	var want []string
	for _, r := range readAlerts(t) {
		page := filepath.Join(runbooks, r.Alert+".md")
		want = append(want, page)
		if got := r.Annotations["runbook_url"]; got != "https://github.com/bulla-project/bulla/blob/main/deploy/runbooks/"+r.Alert+".md" {
			t.Errorf("%s: its runbook_url is %q", r.Alert, got)
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, part := range []string{"# " + r.Alert + "\n", "\n**Who notices**", "\n## Where to look\n", "\n## What to do\n"} {
			if !strings.Contains(string(text), part) {
				t.Errorf("%s lacks %q", page, part)
			}
		}
	}
	for _, f := range files {
		if !slices.Contains(want, f) {
			t.Errorf("%s belongs to no alert", f)
		}
	}
}

// query is what a panel asks.
type query struct{ panel, expr string }

// readDashboard returns the queries of all panels.
func readDashboard(t *testing.T) []query {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			ID                       int
			Type, Title, Description string
			GridPos                  struct{ X, Y, W, H int }
			Targets                  []struct {
				RefID      string
				Expr       string
				Datasource struct{ Type, UID string }
			}
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	var all []query
	ids := make(map[int]bool)
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d %q: its id, title or place is wrong", p.ID, p.Title)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q says nothing of itself, or asks nothing", p.Title)
		}
		for _, q := range p.Targets {
			if q.Datasource.UID != "${datasource}" {
				t.Errorf("panel %q asks %q", p.Title, q.Datasource.UID)
			}
			all = append(all, query{p.Title, q.Expr})
		}
	}
	return all
}

// mayBeEmpty are queries that have no answer where all is well: what they count
// has not happened, or is not configured.
var mayBeEmpty = []string{
	"_next_rotation_timestamp_seconds{", // no rotation is planned in the test
	"bulla_audit_last_checkpoint_timestamp_seconds{",
	"bulla_key_set_fetch_seconds_bucket{",
}

// appearWithUse are metrics whose labels are not known before.
var appearWithUse = []string{"bulla_legacy_tokens_total"}

// TestDashboardAndAlertsOnPrometheus has a real Prometheus watch a service under
// load, and asks it everything that the dashboard and the alerts ask.
func TestDashboardAndAlertsOnPrometheus(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("app", harness.JWKS(anyKey())))
	nobody := s.Caller(t, stranger)
	api := startPrometheus(t, s)

	traffic := func() {
		for range 20 {
			mustIssue(t, admin, idToken("app"))
			_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("nobody"))
			mustFail(t, err, "CLIENT_NOT_REGISTERED")
		}
		_, err := nobody.Tokens.SignAndEncrypt(t.Context(), idToken("app"))
		mustFail(t, err, "CALLER_UNKNOWN")
		res, err := admin.Tokens.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{
			Items: []*bullav1.SignAndEncryptRequest{idToken("app"), idToken("nobody")},
		})
		if err != nil || len(res.GetResults()) != 2 {
			t.Fatalf("%v, %v", res, err)
		}
	}
	traffic()
	harness.Eventually(t, func() error { // rates need two looks with something between them
		traffic()
		found, err := api.ask(`sum(rate(bulla_tokens_total[10s])) > 0`)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return errors.New("Prometheus has seen no tokens yet")
		}
		return nil
	})

	names := metricNames(t, s)
	known := func(of, expr string) {
		for _, name := range regexp.MustCompile(`\bbulla_[a-z0-9_]+`).FindAllString(expr, -1) {
			family := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
			if !names[name] && !names[family] && !slices.Contains(appearWithUse, name) {
				t.Errorf("%s asks for %s, which the service does not have", of, name)
			}
		}
	}
	variables := strings.NewReplacer("$job", "bulla", "$instance", ".*", "$__rate_interval", "10s")
	for _, q := range readDashboard(t) {
		known("panel "+q.panel, q.expr)
		found, err := api.ask(variables.Replace(q.expr))
		if err != nil {
			t.Errorf("panel %q: %v", q.panel, err)
			continue
		}
		if optional := slices.ContainsFunc(mayBeEmpty, func(part string) bool { return strings.Contains(q.expr, part) }); len(found) == 0 && !optional {
			t.Errorf("panel %q: %s has no answer", q.panel, q.expr)
		}
	}
	for _, r := range readAlerts(t) {
		known("alert "+r.Alert, r.Expr)
	}
	harness.Eventually(t, func() error { return api.rulesAreWell() })
}

// metricNames are the families that the service has at /metrics.
func metricNames(t *testing.T, s *harness.Service) map[string]bool {
	t.Helper()
	_, _, body := s.Get(t, s.Ops, "/metrics")
	names := make(map[string]bool)
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, _, _ := strings.Cut(rest, " ")
			names[name] = true
		}
	}
	return names
}

// prometheus is a running Prometheus.
type prometheus struct{ address string }

// startPrometheus runs Prometheus with the alerts, watching a service.
func startPrometheus(t *testing.T, s *harness.Service) *prometheus {
	t.Helper()
	rules, err := filepath.Abs(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yaml")
	doc, err := yaml.Marshal(harness.M{
		"global":     harness.M{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files": []string{rules},
		"scrape_configs": []harness.M{{
			"job_name": "bulla", "static_configs": []harness.M{{"targets": []string{s.Ops}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(s.Ops)
	if err != nil {
		t.Fatal(err)
	}
	p := &prometheus{address: net.JoinHostPort(host, "9099")} // the address is the service's alone
	cmd := exec.CommandContext(t.Context(), "prometheus",
		"--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+p.address, "--log.level=warn")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = harness.Patience
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: scripts/install.sh test installs it", err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // it was told to end
		if t.Failed() {
			t.Logf("Prometheus said:\n%s", output.String())
		}
	})
	harness.Eventually(t, func() error {
		_, err := p.ask(`up`)
		return err
	})
	return p
}

// get asks the API of Prometheus.
func (p *prometheus) get(path string, data any) error {
	res, err := http.Get("http://" + p.address + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
	if err != nil {
		return err
	}
	answer := struct {
		Status, Error string
		Warnings      []string
		Data          any
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %w: %s", res.Status, err, body)
	}
	if answer.Status != "success" || len(answer.Warnings) > 0 {
		return fmt.Errorf("%s %s %v", answer.Status, answer.Error, answer.Warnings)
	}
	return nil
}

// ask makes an instant query and returns its samples.
func (p *prometheus) ask(expr string) ([]json.RawMessage, error) {
	var data struct{ Result []json.RawMessage }
	if err := p.get("/api/v1/query?query="+url.QueryEscape(expr), &data); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	return data.Result, nil
}

// rulesAreWell wants all alerts to have been evaluated, and none to fire: the
// service is well.
func (p *prometheus) rulesAreWell() error {
	var data struct {
		Groups []struct {
			Rules []struct {
				Name, Health, LastError, State string
			}
		}
	}
	if err := p.get("/api/v1/rules?type=alert", &data); err != nil {
		return err
	}
	n := 0
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			n++
			if r.Health != "ok" || r.State == "firing" {
				return fmt.Errorf("%s: %s %s %s", r.Name, r.State, r.Health, r.LastError)
			}
		}
	}
	if n == 0 {
		return errors.New("no alert is loaded")
	}
	return nil
}
