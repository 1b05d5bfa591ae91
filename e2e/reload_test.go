package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// Callers of the tests of reloads.
const (
	steady = "spiffe://example.com/steady" // has its grant all the time
	moved  = "spiffe://example.com/moved"  // has it now and then
)

func issueGrant(caller string, claims harness.M) harness.M {
	g := harness.M{"caller": caller, "allow": []string{"issue"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN"}, "clients": []string{"*"}}
	if claims != nil {
		g["claims"] = claims
	}
	return g
}

// hangUp sends SIGHUP and waits until the configuration has been read, with the
// given result.
func hangUp(t *testing.T, s *harness.Service, result string) {
	t.Helper()
	sample := `bulla_config_reloads_total{result="` + result + `"}`
	before := s.Metric(t, sample)
	s.Signal(t, syscall.SIGHUP)
	harness.Eventually(t, func() error {
		if got := s.Metric(t, sample); got != before+1 {
			return errorf("%s is %v, want %v\n%s", sample, got, before+1, s.Log())
		}
		return nil
	})
}

// TestGrantsChangeBySIGHUPUnderLoad: with calls in flight all the time, of which
// none fails, grants come and go; a file that is wrong changes nothing at all.
func TestGrantsChangeBySIGHUPUnderLoad(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Grants: []harness.M{issueGrant(steady, nil)}})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("reloaded", harness.JWKS(anyKey())))
	grants := func(list ...harness.M) {
		s.Reconfigure(t, func(tree harness.M) { tree["grants"] = append([]harness.M{tree["grants"].([]harness.M)[0]}, list...) })
	}
	mover := s.Caller(t, moved)
	try := func(claims string) error {
		req := idToken("reloaded")
		req.Claims = []byte(claims)
		_, err := mover.Tokens.SignAndEncrypt(t.Context(), req)
		return err
	}
	mustFail(t, try(`{"sub":"a"}`), "CALLER_UNKNOWN")

	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var calls atomic.Int64
	for range 4 {
		c := s.Caller(t, steady)
		load.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.Tokens.SignAndEncrypt(t.Context(), idToken("reloaded")); err != nil {
					t.Errorf("a call while grants change: %v", err)
					return
				}
				calls.Add(1)
			}
		})
	}
	defer load.Wait()
	defer cancel()

	for range 5 {
		grants(issueGrant(steady, nil), issueGrant(moved, nil))
		hangUp(t, s, "ok")
		if err := try(`{"sub":"a"}`); err != nil {
			t.Fatalf("a grant that has come: %v", err)
		}
		grants(issueGrant(moved, harness.M{"allow": []string{"sub"}}), issueGrant(steady, nil))
		hangUp(t, s, "ok")
		if err := try(`{"sub":"a"}`); err != nil {
			t.Fatalf("a grant with a claim policy: %v", err)
		}
		mustFail(t, try(`{"sub":"a","acr":"1"}`), "CLAIMS_NOT_ALLOWED", "claims.acr")
		grants(issueGrant(steady, nil))
		hangUp(t, s, "ok")
		mustFail(t, try(`{"sub":"a"}`), "CALLER_UNKNOWN")
	}

	// What is wrong anywhere in the file changes nothing, and is said.
	good, err := os.ReadFile(s.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	grants(issueGrant(moved, nil), harness.M{"caller": moved, "allow": []string{"isue"}, "issuers": []string{harness.Issuer}})
	hangUp(t, s, "refused")
	line := s.WaitLog(t, "configuration not reloaded")
	for _, want := range []string{"grants[2].allow[0]", "did you mean", "bulla.yaml:", `"level":"ERROR"`} {
		if !strings.Contains(line, want) {
			t.Errorf("the log says %s, want %s in it", line, want)
		}
	}
	if err := os.WriteFile(s.ConfigFile, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	hangUp(t, s, "refused")
	if err := os.Remove(s.ConfigFile); err != nil {
		t.Fatal(err)
	}
	hangUp(t, s, "refused")
	mustFail(t, try(`{"sub":"a"}`), "CALLER_UNKNOWN")

	// What is read only at a start is named, and the grants beside it are taken.
	s.Reconfigure(t, func(tree harness.M) { tree["cache"] = harness.M{"memory": "64MiB"} })
	grants(issueGrant(steady, nil), issueGrant(moved, nil))
	hangUp(t, s, "ok")
	if err := try(`{"sub":"a"}`); err != nil {
		t.Errorf("a grant beside what needs a restart: %v", err)
	}
	if line := s.WaitLog(t, "need a restart"); !strings.Contains(line, `["cache"]`) {
		t.Errorf("the log says %s, want the section cache", line)
	}

	cancel()
	load.Wait()
	if n := calls.Load(); n < 20 {
		t.Errorf("%d calls were made all the while: no load", n)
	}
	// Each change of grants is on record, with the hash that explain prints.
	var hashes []string
	for _, l := range s.Audit(t) {
		if l.GrantsSHA256 != "" {
			if l.Outcome != "changed" || l.KeySource != "configuration" {
				t.Errorf("on record: %+v", l)
			}
			hashes = append(hashes, l.GrantsSHA256)
		}
	}
	if len(hashes) != 16 {
		t.Errorf("%d changes of grants are on record, want 16", len(hashes))
	}
	out, err := s.Command(t, "config", "explain", "--config", s.ConfigFile, "--caller", moved).CombinedOutput()
	if err != nil || !strings.Contains(string(out), hashes[len(hashes)-1]) {
		t.Errorf("explain: %v, %s; want the hash on record %s", err, out, hashes[len(hashes)-1])
	}
	if at := s.Metric(t, "bulla_config_last_reload_timestamp_seconds"); at < 1e9 {
		t.Errorf("the last reload was at %v", at)
	}
}

// TestAWatchEndsWhenItsGrantIsTakenAway: a call that stays open is no way around
// grants that have changed.
func TestAWatchEndsWhenItsGrantIsTakenAway(t *testing.T) {
	t.Parallel()
	reads := harness.M{"caller": moved, "allow": []string{"read_client_keys"}, "issuers": []string{harness.Issuer}, "clients": []string{"*"}}
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Grants: []harness.M{reads}})
	watch := func(c *client.Client) bullav1.ClientKeyService_WatchClientKeysClient {
		t.Helper()
		stream, err := c.ClientKeys.WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{Issuer: harness.Issuer})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	admin := s.Caller(t, harness.Admin)
	ends, stays := watch(s.Caller(t, moved)), watch(admin)
	s.Reconfigure(t, func(tree harness.M) {
		tree["grants"] = []harness.M{tree["grants"].([]harness.M)[0], issueGrant(moved, nil)}
	})
	hangUp(t, s, "ok")
	_, err := ends.Recv()
	mustFail(t, err, "CALLER_NOT_ALLOWED", "read_client_keys")
	mustRegister(t, admin, withJWKS("seen", harness.JWKS(anyKey())))
	if res, err := stays.Recv(); err != nil || res.GetClientKey().GetClientId() != "seen" {
		t.Errorf("a watch whose grant has stayed: got %v, %v", res, err)
	}
	lines := s.Audit(t)
	if l := lines[len(lines)-2]; l.Outcome != "denied" || l.Reason != "CALLER_NOT_ALLOWED" || l.Caller != moved || !strings.HasSuffix(l.RPC, "WatchClientKeys") {
		t.Errorf("on record: %+v, want the end of the watch", l)
	}
}

// TestExplainEndsWithAnErrorForWhomNoGrantNames: with what may be meant.
func TestExplainEndsWithAnErrorForWhomNoGrantNames(t *testing.T) {
	t.Parallel()
	run := func(caller string) (string, int) {
		out, err := shared.Command(t, "config", "explain", "--config", shared.ConfigFile, "--caller", caller).CombinedOutput()
		exit := 0
		if failed, ok := errors.AsType[interface {
			error
			ExitCode() int
		}](err); ok {
			exit = failed.ExitCode()
		}
		return string(out), exit
	}
	if out, exit := run(idp); exit != 0 || !strings.Contains(out, "ID_TOKEN, USERINFO") {
		t.Errorf("a caller with grants: exit code %d, %s", exit, out)
	}
	if out, exit := run(strings.ToUpper(idp) + "/"); exit != 1 || !strings.Contains(out, `did you mean "`+idp+`"?`) {
		t.Errorf("one with none: exit code %d, %s", exit, out)
	}
}
