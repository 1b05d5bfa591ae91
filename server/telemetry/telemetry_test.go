package telemetry

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/signer"
	"github.com/bulla-project/bulla/signer/keyring"
)

func newMetrics(t *testing.T) (*Metrics, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	m, err := New(reg)
	if err != nil {
		t.Fatal(err)
	}
	return m, reg
}

// samples are the values of a registry, of histograms their counts, by name and
// label values in the order of the labels' names.
func samples(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			switch {
			case m.GetCounter() != nil:
				all[name] = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				all[name] = m.GetGauge().GetValue()
			case m.GetHistogram() != nil:
				all[name] = float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return all
}

func want(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for name, value := range want {
		if there, ok := got[name]; !ok || there != value {
			t.Errorf("%s: got %v (there: %v), want %v", name, there, ok, value)
		}
	}
}

func TestCallsAreCounted(t *testing.T) {
	m, reg := newMetrics(t)
	const method = "/bulla.v1.TokenService/Sign"
	m.Begun(method)
	m.Begun(method)
	m.RPC(method, "Unavailable", "OVERLOADED", time.Second)
	want(t, samples(t, reg), map[string]float64{
		"bulla_rpc_in_flight Sign": 1, "bulla_rpcs_total Unavailable Sign OVERLOADED": 1, "bulla_rpc_seconds Sign": 1,
	})
}

// TestSeriesAreThereFromTheStart: an alert on what rises must see it at 0.
func TestSeriesAreThereFromTheStart(t *testing.T) {
	m, reg := newMetrics(t)
	m.Expect([]string{"main"}, maps.All(map[string]string{"Internal": "SIGNING_FAULT"}))
	if err := m.Build("v1.2.3"); err != nil {
		t.Fatal(err)
	}
	got := samples(t, reg)
	want(t, got, map[string]float64{
		"bulla_rpcs_total OK SignAndEncrypt ":                          0,
		"bulla_rpcs_total OK WatchClientKeys ":                         0,
		"bulla_rpcs_total Internal SignAndEncrypt SIGNING_FAULT":       0,
		"bulla_rpcs_total Internal StreamSignAndEncrypt SIGNING_FAULT": 0,
		"bulla_rpc_in_flight GetJWKS":                                  0,
		"bulla_rpc_seconds GetJWKS":                                    0,
		"bulla_tokens_total main ID_TOKEN":                             0,
		"bulla_tokens_total main ACCESS_TOKEN":                         0,
		"bulla_key_set_fetches_total changed":                          0,
		"bulla_key_set_fetches_total unchanged":                        0,
		"bulla_key_set_fetches_total failed":                           0,
		"bulla_key_set_fetch_seconds":                                  0,
	})
	if _, ok := got["bulla_rpcs_total Internal GetJWKS SIGNING_FAULT"]; ok {
		t.Error("a method that issues nothing has the faults of those that do")
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(name string) bool {
		return strings.HasPrefix(name, "bulla_build_info go1.") && strings.HasSuffix(name, " v1.2.3")
	}) {
		t.Errorf("no build among %v", got)
	}
}

func TestTokensAndStages(t *testing.T) {
	m, reg := newMetrics(t)
	ctx := m.Begin(t.Context())
	m.Stage(ctx, seal.Timing{Stage: seal.StageSign, Backend: "hsm", Algorithm: "ES256", Took: time.Millisecond})
	m.Stage(ctx, seal.Timing{Stage: seal.StageSign, Backend: "hsm", Algorithm: "ES256", Took: 15 * time.Second, Reason: "DeadlineExceeded"})
	m.End(ctx, seal.Ending{Issuer: "main", Kind: signer.IDToken, ClientID: "app", Caller: "caller"})
	m.End(ctx, seal.Ending{Issuer: "main", Kind: signer.IDToken, Reason: "SIGNING_KEY_UNAVAILABLE"})
	m.Fetched(keycache.FetchedNothing, time.Second)
	want(t, samples(t, reg), map[string]float64{
		"bulla_tokens_total main ID_TOKEN": 1, "bulla_stage_seconds ES256 hsm sign": 1, // those that went well
		"bulla_key_set_fetches_total failed": 1, "bulla_key_set_fetch_seconds": 1,
	})
}

// spans notes what it is told.
type spans struct{ told []string }

type marked struct{}

func (s *spans) Begin(ctx context.Context) context.Context {
	s.told = append(s.told, "begin")
	return context.WithValue(ctx, marked{}, true)
}

func (s *spans) Stage(_ context.Context, t seal.Timing) {
	s.told = append(s.told, string(t.Stage)+t.Reason)
}
func (s *spans) End(context.Context, seal.Ending) { s.told = append(s.told, "end") }

func TestSpansAreToldWhatIsMeasured(t *testing.T) {
	m, reg := newMetrics(t)
	s := &spans{}
	both := m.WithSpans(s)
	tracker, ok := both.(seal.Tracker)
	if !ok {
		t.Fatal("tokens are not followed")
	}
	ctx := tracker.Begin(t.Context())
	if ctx.Value(marked{}) == nil {
		t.Error("the context of the span is lost")
	}
	both.Stage(ctx, seal.Timing{Stage: seal.StageWrap, Algorithm: "ECDH-ES"})
	both.Stage(ctx, seal.Timing{Stage: seal.StageEncrypt, Reason: "Internal"})
	tracker.End(ctx, seal.Ending{Issuer: "main", Kind: signer.UserInfo})
	both.Legacy("main", "RSA1_5", "A128GCM")
	if diff := cmp.Diff([]string{"begin", "wrap", "encryptInternal", "end"}, s.told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	want(t, samples(t, reg), map[string]float64{
		"bulla_tokens_total main USERINFO": 1, "bulla_stage_seconds ECDH-ES  wrap": 1, "bulla_legacy_tokens_total RSA1_5 A128GCM main": 1,
	})
}

// rings are key rings as a test wants them.
type rings struct {
	keys      []keyring.KeyInfo
	rotations []keyring.RotationInfo
	err       error
}

func (r *rings) List(string) ([]keyring.KeyInfo, error)           { return r.keys, r.err }
func (r *rings) Rotations(string) ([]keyring.RotationInfo, error) { return r.rotations, r.err }

func TestSigningKeys(t *testing.T) {
	m, reg := newMetrics(t)
	r := &rings{err: errors.New("not read yet")}
	if err := m.SigningKeys(r, []string{"main"}); err != nil {
		t.Fatal(err)
	}
	for name := range samples(t, reg) {
		if strings.HasPrefix(name, "bulla_signing_key") {
			t.Errorf("%s is told before anything is known", name)
		}
	}
	now := time.Now()
	key := func(alg kms.Algorithm, state keyring.State, activated time.Time) keyring.KeyInfo {
		return keyring.KeyInfo{Entry: keyring.Entry{ActivateAt: activated}, Algorithm: alg, State: state}
	}
	due := now.Add(time.Hour)
	*r = rings{
		keys: []keyring.KeyInfo{
			key(kms.ES256, keyring.Active, now.Add(-2*time.Hour)), key(kms.ES256, keyring.Active, now.Add(-time.Hour)),
			key(kms.ES256, keyring.Next, due), key(kms.ES256, keyring.Retired, now.Add(-9*time.Hour)),
			key(kms.RS256, keyring.Next, time.Time{}),
		},
		rotations: []keyring.RotationInfo{{Algorithm: kms.ES256, DueAt: due}, {Algorithm: kms.RS256}},
	}
	got := samples(t, reg)
	want(t, got, map[string]float64{
		"bulla_signing_keys ES256 main active": 2, "bulla_signing_keys ES256 main next": 1,
		"bulla_signing_keys ES256 main retiring": 0, "bulla_signing_keys ES256 main retired": 1,
		"bulla_signing_keys RS256 main active": 0, "bulla_signing_keys RS256 main next": 1,
		"bulla_signing_key_next_rotation_timestamp_seconds ES256 main": float64(due.Unix()),
		"bulla_signing_key_next_rotation_timestamp_seconds RS256 main": 0,
	})
	if age := got["bulla_signing_key_age_seconds ES256 main"]; age < 3600 || age > 3600+60 {
		t.Errorf("the key that signs is %v s old, want an hour", age)
	}
	if _, ok := got["bulla_signing_key_age_seconds RS256 main"]; ok {
		t.Error("a ring without an active key tells its age")
	}
}
