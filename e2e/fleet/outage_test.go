package fleet

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// TestReplicaWithoutAFeedServesForAWhileAndThenRefuses cuts one replica of two
// off from PostgreSQL, by a network that swallows everything and by one that
// breaks every connection.
func TestReplicaWithoutAFeedServesForAWhileAndThenRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		cut  func(*pgtest.Proxy, bool)
	}{
		{"NothingGetsThrough", func(p *pgtest.Proxy, on bool) { p.BlackHole(on) }},
		{"ConnectionsBreak", func(p *pgtest.Proxy, on bool) {
			p.Refuse(on)
			p.Cut()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			inParallel(t)
			const maxLag = 4 * time.Second
			proxy := pgtest.NewProxy(t, shared.cluster.Addr())
			f := newFleet(t, setup{via: map[int]string{1: proxy.Addr()}, store: harness.M{"max_lag": maxLag.String()}})
			names := keys{t: t}
			before, after := names.next(), names.next()
			registered := mustRegister(t, f.on(0), withJWKS("cut", before))
			for i := range f.replicas {
				if mustIssue(t, f.on(i), "cut", before.KeyID).GetRegistryStale() {
					t.Errorf("replica %d is flagged as out of touch", i)
				}
			}

			hear(t, f, "cut", before.KeyID)
			test.cut(proxy, true)
			cut := time.Now()
			req := withJWKS("cut", after)
			req.Revision = registered.GetRevision()
			mustRegister(t, f.on(0), req)
			mustIssue(t, f.on(0), "cut", after.KeyID)

			// Whoever is cut off goes on for max_lag, as it cannot know better,
			// and says so before.
			var flagged, refused time.Duration
			for refused == 0 {
				asked := time.Now()
				res, err := f.on(1).Tokens.SignAndEncrypt(t.Context(), ask("cut"))
				switch at := asked.Sub(cut); {
				case err == nil && at > maxLag+allowed(inForce):
					t.Fatalf("a token %v after the cut, of a replica that may be %v behind", at, maxLag)
				case err == nil && res.GetRegistryStale():
					if flagged == 0 {
						flagged = at
					}
				case err == nil && flagged > 0:
					t.Errorf("%v after the cut a token is not flagged any more", at)
				case err != nil:
					mustBeUnavailable(t, "without a feed", err)
					refused = at
				}
				time.Sleep(10 * time.Millisecond)
			}
			if flagged == 0 {
				t.Error("no token was flagged")
			}
			if refused < maxLag-allowed(inForce) {
				t.Errorf("refused after %v, and may serve for %v", refused, maxLag)
			}
			if code, body := f.readyz(t, 1); code != http.StatusOK || !strings.Contains(body, "degraded") {
				t.Errorf("/readyz of the replica that is cut off: %d %s, want 200 and that it is degraded", code, body)
			}
			for range 20 {
				if res := mustIssue(t, f.on(0), "cut", after.KeyID); res.GetRegistryStale() {
					t.Error("the other replica is flagged as out of touch")
				}
			}

			test.cut(proxy, false)
			mended := time.Now()
			again := until(t, mended, allowed(wellAgain), "served again", func() error {
				res, err := f.on(1).Tokens.SignAndEncrypt(t.Context(), ask("cut"))
				if err == nil && res.GetEncryptionKeyId() != after.KeyID {
					t.Fatalf("served again, to %s, which was replaced", res.GetEncryptionKeyId())
				}
				if err == nil && res.GetRegistryStale() {
					err = fmt.Errorf("flagged")
				}
				return err
			})
			t.Logf("max_lag %v: flagged after %v, refused after %v, served again %v after the network was back",
				maxLag, flagged.Round(10*time.Millisecond), refused.Round(10*time.Millisecond), again.Round(10*time.Millisecond))
		})
	}
}

// hear waits until all replicas have heard of a client's registration, within a
// second: the one that made it too. Each then looks at the client once more, which
// it cannot while there is nobody to ask.
func hear(t *testing.T, f *fleet, clientID, keyID string) {
	t.Helper()
	time.Sleep(1500 * time.Millisecond)
	for i := range f.replicas {
		mustIssue(t, f.on(i), clientID, keyID)
	}
}

// TestReplicaStartsWithPostgreSQLDown restarts a replica when there is no
// PostgreSQL to ask.
func TestReplicaStartsWithPostgreSQLDown(t *testing.T) {
	inParallel(t)
	cluster := pgtest.Start(t)
	f := newFleet(t, setup{cluster: cluster})
	key := harness.NewClientKey(t, "P-256", "cold")
	mustRegister(t, f.on(0), withJWKS("cold", key))
	mustIssue(t, f.on(0), "cold", key.KeyID)
	hear(t, f, "cold", key.KeyID)
	if err := cluster.Stop(); err != nil {
		t.Fatal(err)
	}
	f.replicas[1].Kill(t)
	f.replicas[1].Run(t)
	f.replicas[1].WaitLive(t)
	f.redial(t, 1)
	for range 20 {
		_, err := f.on(1).Tokens.SignAndEncrypt(t.Context(), ask("cold"))
		if got := reasonOf(err); status.Code(err) != codes.Unavailable || retryOf(err) <= 0 || got != registryUnavailable && got != "SIGNING_KEY_UNAVAILABLE" {
			t.Fatalf("a token without a store: %v (%s, retry %v), want to be told to try again", err, got, retryOf(err))
		}
		mustIssue(t, f.on(0), "cold", key.KeyID) // the other one has it in memory
		time.Sleep(50 * time.Millisecond)
	}
	_, err := f.on(1).ClientKeys.RegisterClientKey(t.Context(), withJWKS("new", key))
	mustBeUnavailable(t, "a registration without a store", err)
	if err := cluster.Start(); err != nil {
		t.Fatal(err)
	}
	up := time.Now()
	took := until(t, up, allowed(wellAgain), "the replica that was started without PostgreSQL serves", func() error { return f.encryptedTo(1, ask("cold"), key.KeyID) })
	ready := until(t, up, allowed(wellAgain), "it is ready", func() error {
		if code, body := f.readyz(t, 1); code != http.StatusOK || strings.Contains(body, "degraded") {
			return fmt.Errorf("/readyz: %d %s", code, body)
		}
		return nil
	})
	mustRegister(t, f.on(1), withJWKS("new", key))
	t.Logf("started with PostgreSQL down: first token %v after PostgreSQL was back, not degraded after %v", took.Round(time.Millisecond), ready.Round(time.Millisecond))
}

// TestNewRingIsSeenByTheOtherReplica rotates a signing key on one replica.
func TestNewRingIsSeenByTheOtherReplica(t *testing.T) {
	inParallel(t)
	token := harness.NewToken(t, "fleet-rotation", "ES256")
	f := newFleet(t, setup{token: token, edit: func(tree harness.M) {
		tree["issuers"].([]harness.M)[0]["rotation"] = harness.M{"create": "auto"}
	}})
	key := harness.NewClientKey(t, "P-256", "rotation")
	mustRegister(t, f.on(0), withJWKS("rotation", key))
	first := mustIssue(t, f.on(1), "rotation", key.KeyID).GetSigningKeyId()

	states := func(i int) map[string]bullav1.SigningKeyState {
		res, err := f.on(i).SigningKeys.ListSigningKeys(t.Context(), &bullav1.ListSigningKeysRequest{Issuer: harness.Issuer})
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]bullav1.SigningKeyState{}
		for _, k := range res.GetSigningKeys() {
			all[k.GetKeyId()] = k.GetState()
		}
		return all
	}
	rotate := func(emergency bool) (second string, acknowledged time.Time) {
		res, err := f.on(0).SigningKeys.RotateSigningKey(t.Context(), &bullav1.RotateSigningKeyRequest{Issuer: harness.Issuer, Algorithm: "ES256", Emergency: emergency})
		if err != nil {
			t.Fatalf("rotate: %v", err)
		}
		for _, k := range res.GetSigningKeys() {
			if k.GetKeyId() != first {
				second = k.GetKeyId()
			}
		}
		return second, time.Now()
	}
	second, acknowledged := rotate(false)
	listed := until(t, acknowledged, allowed(wellAgain), "the other replica knows the new key", func() error {
		if got := states(1); got[second] != bullav1.SigningKeyState_SIGNING_KEY_STATE_NEXT || got[first] != bullav1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE {
			return fmt.Errorf("it has %v, want %s next", got, second)
		}
		return nil
	})
	published := until(t, acknowledged, allowed(wellAgain), "the other replica publishes the new key", func() error {
		if doc := string(f.signers(t, 1)); !strings.Contains(doc, second) || !strings.Contains(doc, first) {
			return fmt.Errorf("%s", doc)
		}
		return nil
	})
	if kid := mustIssue(t, f.on(1), "rotation", key.KeyID).GetSigningKeyId(); kid != first {
		t.Errorf("the other replica signs with %s, which verifiers may not know yet", kid)
	}
	_, acknowledged = rotate(true)
	switched := until(t, acknowledged, allowed(wellAgain), "the other replica signs with the new key", func() error {
		if kid := mustIssue(t, f.on(1), "rotation", key.KeyID).GetSigningKeyId(); kid != second {
			return fmt.Errorf("it signs with %s, want %s", kid, second)
		}
		return nil
	})
	t.Logf("a rotation on one replica is known to the other after %v and published there after %v; an emergency is followed after %v",
		listed.Round(time.Millisecond), published.Round(time.Millisecond), switched.Round(time.Millisecond))
}
