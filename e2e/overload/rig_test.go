package overload

import (
	"os"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/faultymodule"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

var full = os.Getenv("BULLA_SOAK") != ""

const (
	clientID = "overload"
	flooding = "spiffe://example.com/flooding"
	quiet    = "spiffe://example.com/quiet"
)

// rig is a service and what its HSM can do.
type rig struct {
	*harness.Service
	name     string
	sessions int
	each     time.Duration // that a signature takes; 0 for SoftHSM's own time
	goals    goals
}

// goals are what a run is held against.
type goals struct {
	good    float64 // part of the peak that is left in overload, at least
	latency float64 // times the unloaded one at most, at the 99th percentile; 0: it is printed and held against nothing
}

// theGoals are those of the service. Where HSM, refusals and all else share a
// CPU, which is then what there is too little of, less has to be left, since
// refusals are not free, and how long a call takes is up to the scheduler.
var (
	theGoals = goals{.9, 5}
	ofOneCPU = goals{.75, 0}
)

// slow is a service whose HSM takes its time for each signature.
func slow(t *testing.T) *rig {
	t.Helper()
	r := &rig{name: "an HSM that takes its time", sessions: 4, each: 40 * time.Millisecond, goals: theGoals}
	if full {
		r.sessions, r.each = 8, 10*time.Millisecond
	}
	token := harness.NewToken(t, "overload", kms.ES256)
	module := faultymodule.New(t, token.Module)
	r.Service = harness.Start(t, r.config(harness.Config{Token: token, Env: module.Env(), Edit: func(tree harness.M) {
		hsm := tree["backends"].(harness.M)["hsm"].(harness.M)["pkcs11"].(harness.M)
		hsm["module"], hsm["sessions"] = module.Path, r.sessions
	}}))
	module.HangFor("C_Sign", faultymodule.All, r.each)
	r.register(t)
	return r
}

// software is a service with SoftHSM and RSA keys. It has half of the CPUs for
// itself, and the callers the other half; and as many places as CPUs, as the page
// advises for tokens that are software.
func software(t *testing.T) *rig {
	t.Helper()
	cpus := allowed(t)
	if len(cpus) < 2 {
		t.Skip("the service and its callers need a CPU each; run it where there are two")
	}
	mine, theirs := cpus[len(cpus)/2:], cpus[:len(cpus)/2]
	r := &rig{name: "SoftHSM, RS256 with 2048 bits", sessions: len(theirs), goals: ofOneCPU}
	r.Service = harness.New(t, r.config(harness.Config{Token: harness.NewToken(t, "overload", kms.RS256), Algorithms: []kms.Algorithm{kms.RS256}, Edit: func(tree harness.M) {
		tree["admission"] = harness.M{"backends": harness.M{"hsm": harness.M{"in_flight": r.sessions}}}
	}}))
	on(t, theirs, func() { r.Run(t) })
	move(t, mine)
	t.Cleanup(func() { move(t, cpus) })
	r.WaitReady(t)
	r.WaitKeys(t, 1)
	r.register(t)
	return r
}

// config adds the two callers.
func (r *rig) config(cfg harness.Config) harness.Config {
	for _, name := range []string{flooding, quiet} {
		cfg.Grants = append(cfg.Grants, harness.M{
			"caller": name, "allow": []string{"issue"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN"}, "clients": []string{clientID},
		})
	}
	return cfg
}

func (r *rig) register(t *testing.T) {
	t.Helper()
	key := harness.NewClientKey(t, "", "overload")
	_, err := r.Caller(t, harness.Admin).ClientKeys.RegisterClientKey(t.Context(), &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: clientID,
		KeySource: &bullav1.RegisterClientKeyRequest_Jwks{Jwks: harness.JWKS(key)},
		Settings: []*bullav1.ResponseSetting{{
			TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM",
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// lengths are how long the parts of a round take, and how many rounds there are.
type lengths struct {
	rounds                           int
	unloaded, peak, warmUp, overload time.Duration
}

func length() lengths {
	if full {
		return lengths{5, 3 * time.Second, 4 * time.Second, 2 * time.Second, 6 * time.Second}
	}
	return lengths{3, 1500 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond, 2500 * time.Millisecond}
}
