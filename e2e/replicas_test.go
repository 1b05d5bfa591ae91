package e2e

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// newReplica makes a service on a database, which has a state_dir of its own.
func newReplica(t testing.TB, cfg harness.Config, dsn string) *harness.Service {
	t.Helper()
	cfg.CA = shared.ca
	if cfg.Token == nil {
		cfg.Token = shared.token
	}
	s := harness.New(t, cfg)
	onPostgres(t, s, dsn)
	return s
}

// within waits for what has to be so soon after now.
func within(t testing.TB, limit time.Duration, what string, so func() error) {
	t.Helper()
	begun := time.Now()
	var err error
	for time.Since(begun) < limit {
		if err = so(); err == nil {
			t.Logf("%s: after %v", what, time.Since(begun).Round(time.Millisecond))
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%s: not within %v: %v", what, limit, err)
}

func TestReplicasHearOfEachOthersChanges(t *testing.T) {
	t.Parallel()
	db := pgtest.Start(t).NewDatabase(t)
	token := harness.NewToken(t, "e2e-replicas", kms.ES256, kms.RS256)
	one := newReplica(t, harness.Config{Token: token, Edit: rotating("auto")}, db.DSN())
	two := newReplica(t, harness.Config{Token: token, Edit: rotating("auto")}, db.DSN())
	for _, s := range []*harness.Service{one, two} { // both make the tables, and the data key
		s.Run(t)
	}
	one.WaitReady(t)
	two.WaitReady(t)
	a, b := one.Caller(t, harness.Admin), two.Caller(t, harness.Admin)
	if first, second := signingKey(t, one), signingKey(t, two); first != second {
		t.Fatalf("two replicas sign with %s and %s", first, second)
	}

	// A second, as is promised, and a bit for the machine that tests.
	const soon = 1500 * time.Millisecond
	_, err := b.Tokens.SignAndEncrypt(t.Context(), idToken("both")) // known as unknown
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	registered := mustRegister(t, a, withJWKS("both", harness.JWKS(anyKey())))
	within(t, soon, "a registration", func() error {
		_, err := b.Tokens.SignAndEncrypt(t.Context(), idToken("both"))
		return err
	})
	openWith(t, two, mustIssue(t, b, idToken("both")).GetToken(), anyKey().Key, nil)
	replacement := withJWKS("both", harness.JWKS(otherKey()))
	replacement.Revision = registered.GetRevision()
	mustRegister(t, a, replacement)
	within(t, soon, "another key", func() error {
		res, err := b.Tokens.SignAndEncrypt(t.Context(), idToken("both"))
		if err == nil && res.GetEncryptionKeyId() != otherKey().KeyID {
			return errorf("the token is for the key %s", res.GetEncryptionKeyId())
		}
		return err
	})
	if _, err := a.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: "both"}); err != nil {
		t.Fatal(err)
	}
	within(t, soon, "a deletion", func() error {
		if _, err := b.Tokens.SignAndEncrypt(t.Context(), idToken("both")); err == nil {
			return errorf("the client is still served")
		}
		return nil
	})
	_, err = b.Tokens.SignAndEncrypt(t.Context(), idToken("both"))
	mustFail(t, err, "CLIENT_NOT_REGISTERED")

	// The key that was stolen is gone from both, by the notice and not by the
	// ten seconds after which rings are read anyway.
	before := signingKey(t, one)
	mustRotate(t, a, true)
	within(t, soon, "an emergency", func() error {
		if kids := published(t, two); slices.Contains(kids, before) {
			return errorf("%s is still published", before)
		}
		return nil
	})
	if signingKey(t, two) == before {
		t.Errorf("the other replica still signs with the key that was stolen, %s", before)
	}

	for _, s := range []*harness.Service{one, two} {
		metrics := s.Metrics(t)
		for name, want := range map[string]float64{
			"bulla_store_up": 1, "bulla_store_listening": 1, "bulla_store_tampered_rows_total": 0, "bulla_store_connections_limit": 8,
		} {
			if got, ok := metrics[name]; !ok || got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		if lag := metrics["bulla_store_lag_seconds"]; lag > 2 {
			t.Errorf("bulla_store_lag_seconds is %v", lag)
		}
		if files, err := filepath.Glob(filepath.Join(s.Dir, "*.db")); err != nil || len(files) > 0 {
			t.Errorf("a file was made as a store: %v, %v", files, err)
		}
	}
}

func TestAReplicaWithoutItsDatabaseIsReadyAndSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	cluster := pgtest.Start(t)
	dsn := cluster.NewDatabase(t).DSN()
	s := newReplica(t, harness.Config{}, dsn)
	s.Run(t)
	s.WaitReady(t)
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("warm", harness.JWKS(anyKey())))
	mustRegister(t, admin, withJWKS("cold", harness.JWKS(anyKey())))
	mustIssue(t, admin, idToken("warm"))
	ready := func(want string) func() error {
		return func() error {
			code, _, body := s.Get(t, s.Ops, "/readyz")
			if code != http.StatusOK {
				t.Fatalf("/readyz: %d %s", code, body)
			}
			if !strings.HasPrefix(body, want) {
				return errorf("/readyz: %q, want %q", body, want)
			}
			return nil
		}
	}
	within(t, time.Second, "ready", ready("ok\n"))
	if got := s.Metrics(t)[`bulla_client_keys{state="READY"}`]; got < 1 {
		t.Errorf("%v clients are READY in memory, want one at least", got)
	}

	if err := cluster.Stop(); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "degraded", ready("ok, but degraded: the store cannot be used since 20"))
	mustIssue(t, admin, idToken("warm"))
	_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("cold-too"))
	mustFail(t, err, "REGISTRY_UNAVAILABLE")
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS("new", harness.JWKS(anyKey())))
	mustFail(t, err, "REGISTRY_UNAVAILABLE")
	if up := s.Metrics(t)["bulla_store_up"]; up != 0 {
		t.Errorf("bulla_store_up is %v", up)
	}
	out, err := s.Command(t, "doctor", "--config", s.ConfigFile, "-o", "json").Output()
	if err == nil {
		t.Error("the doctor is content without the database")
	}
	var findings []struct{ Check, Outcome, Detail string }
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatal(err)
	}
	for check, want := range map[string]string{"store": "FAIL", "running": "warn"} {
		if !slices.ContainsFunc(findings, func(f struct{ Check, Outcome, Detail string }) bool { return f.Check == check && f.Outcome == want }) {
			t.Errorf("the doctor has no %s of %s: %s", want, check, out)
		}
	}

	// The start of a replica does not wait for the database.
	late := newReplica(t, harness.Config{}, dsn)
	late.Run(t)
	late.WaitLive(t)
	if err := cluster.Start(); err != nil {
		t.Fatal(err)
	}
	late.WaitReady(t)
	within(t, 5*time.Second, "healed", ready("ok\n"))
	within(t, harness.Patience, "healed from the start", func() error {
		_, err := late.Caller(t, harness.Admin).Tokens.SignAndEncrypt(t.Context(), idToken("cold"))
		return err
	})
}
