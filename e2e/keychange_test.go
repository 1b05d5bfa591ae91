package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// keyChangeDelay is how long changes wait: long enough for what has to be done
// before, on a busy machine too.
const keyChangeDelay = 4 * time.Second

// delaying has the changes of the first issuer's clients wait.
func delaying(tree harness.M) {
	tree["issuers"].([]harness.M)[0]["key_change_delay"] = keyChangeDelay.String()
}

// followKey issues tokens for a client until some time after its change, and holds
// each against the clock: whoever had his answer before the time has the old key,
// and whoever asked after it the new one. It returns how many of each it has seen.
func followKey(t *testing.T, c *client.Client, clientID, before, after string, at time.Time) (old, changed int) {
	t.Helper()
	for {
		asked := time.Now()
		res, err := c.Tokens.SignAndEncrypt(t.Context(), idToken(clientID))
		answered := time.Now()
		kid := res.GetEncryptionKeyId()
		switch {
		case err != nil && (before != "" || !asked.Before(at)):
			t.Errorf("%s: %v before %v: %v", clientID, at.Sub(asked), at, err)
			return old, changed
		case err != nil:
			f := failureOf(t, err)
			if f.reason != "CLIENT_NOT_REGISTERED" || !strings.Contains(err.Error(), at.UTC().Format(time.RFC3339)) {
				t.Errorf("%s: got %v, want CLIENT_NOT_REGISTERED that says when", clientID, err)
			}
			old++
		case answered.Before(at) && kid != before, !asked.Before(at) && kid != after:
			t.Errorf("%s: a token for the key %s, asked for %v and had %v before the change from %s to %s", clientID, kid, at.Sub(asked), at.Sub(answered), before, after)
			return old, changed
		case answered.Before(at):
			old++
		case !asked.Before(at):
			changed++
		}
		if time.Since(at) > 100*time.Millisecond && changed > 2 {
			return old, changed
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tookEffect waits for the lines of a client that say that a change took effect.
func tookEffect(t *testing.T, s *harness.Service, clientID string, want int) []harness.AuditLine {
	t.Helper()
	var lines []harness.AuditLine
	harness.Eventually(t, func() error {
		lines = slices.DeleteFunc(s.AuditOf(t, clientID), func(l harness.AuditLine) bool { return l.Outcome != "took_effect" })
		if len(lines) < want {
			return fmt.Errorf("%d lines say that a change of %s took effect, want %d", len(lines), clientID, want)
		}
		return nil
	})
	return lines
}

func effectiveAt(t *testing.T, k *bullav1.ClientKey) time.Time {
	t.Helper()
	if k.GetPendingChange() == nil {
		t.Fatalf("no change of %s waits: %v", k.GetClientId(), k)
	}
	return k.GetPendingChange().GetEffectiveAt().AsTime()
}

func TestAKeyChangeWaits(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, shared.host.CA)
	const later = "later"
	s := harness.Start(t, harness.Config{
		Token: shared.token, CA: shared.ca, Host: host, Edit: delaying,
		Issuers: []harness.M{{"name": later, "iss": "https://later.example.com", "signing_keys": harness.SigningKeys("ES256"), "key_change_delay": "1h"}},
	})
	admin := s.Caller(t, harness.Admin)
	deleted := func(id string) {
		t.Helper()
		if _, err := admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: id}); err != nil {
			t.Fatal(err)
		}
	}
	replaced := func(req *bullav1.RegisterClientKeyRequest, revision string) *bullav1.ClientKey {
		t.Helper()
		req.Revision = revision
		return mustRegister(t, admin, req)
	}
	one, two := harness.JWKS(anyKey()), harness.JWKS(otherKey())
	oldURL, newURL := host.Serve("/old", one, time.Hour), host.Serve("/new", two, time.Hour)
	mustRegister(t, admin, withURI("by-url", oldURL))
	for _, id := range []string{"plain", "kept", "dropped", "back"} {
		mustRegister(t, admin, withJWKS(id, one))
	}
	far := withJWKS("far", one)
	far.Issuer = later
	mustRegister(t, admin, far)
	far = withJWKS("far", two)
	far.Issuer = later
	if at := effectiveAt(t, replaced(far, "1")); time.Until(at) < 50*time.Minute {
		t.Errorf("with a delay of an hour it takes effect at %v", at)
	}
	w := startWatcher(t, s, harness.Admin, "-o", "json")

	byURL := effectiveAt(t, replaced(withURI("by-url", newURL), "1"))
	plain := effectiveAt(t, replaced(withJWKS("plain", two), "1"))
	replaced(withJWKS("kept", two), "1")
	if k := replaced(withJWKS("kept", one), "2"); k.GetPendingChange() != nil {
		t.Errorf("taken back: %v", k)
	}
	replaced(withJWKS("dropped", two), "1")
	deleted("dropped")
	deleted("back")
	back := effectiveAt(t, mustRegister(t, admin, withJWKS("back", two)))

	out, err := s.Command(t, slices.Concat([]string{"client", "get", "plain", "--issuer", harness.Issuer}, s.ConnectFlags(s.Leaf(t, harness.Admin)))...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if text := string(out); time.Now().Before(plain) && (!strings.Contains(text, "change waits") || !strings.Contains(text, otherKey().KeyID) || !strings.Contains(text, plain.UTC().Format(time.RFC3339))) {
		t.Errorf("client get does not show what waits:\n%s", text)
	}
	out, err = s.Command(t, slices.Concat([]string{"client", "list", "--issuer", later}, s.ConnectFlags(s.Leaf(t, harness.Admin)))...).Output()
	if err != nil || !strings.Contains(string(out), "changes at 20") {
		t.Errorf("client list does not show what waits: %v\n%s", err, out)
	}

	var all sync.WaitGroup
	for _, c := range []struct {
		id, before string
		at         time.Time
	}{{"plain", anyKey().KeyID, plain}, {"by-url", anyKey().KeyID, byURL}, {"back", "", back}} {
		all.Go(func() {
			old, changed := followKey(t, s.Caller(t, harness.Admin), c.id, c.before, otherKey().KeyID, c.at)
			t.Logf("%s: %d tokens or refusals before, %d tokens after", c.id, old, changed)
		})
	}
	all.Wait()
	if res := mustIssue(t, admin, idToken("kept")); res.GetEncryptionKeyId() != anyKey().KeyID {
		t.Errorf("taken back, and tokens are for %s", res.GetEncryptionKeyId())
	}
	_, err = admin.Tokens.SignAndEncrypt(t.Context(), idToken("dropped"))
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	openWith(t, s, mustIssue(t, admin, idToken("plain")).GetToken(), otherKey().Key, nil)

	// On record when it was asked for, and when it took effect.
	line := tookEffect(t, s, "plain", 1)[0]
	if line.Caller != "" || line.RPC != "" || line.Revision != 3 || !line.EffectiveAt.Equal(plain) || line.Time.Before(plain) || line.KeySource != "jwks" ||
		line.OldThumbprint == line.NewThumbprint || !strings.HasPrefix(line.OldThumbprint, "ID_TOKEN=") || !strings.HasPrefix(line.NewThumbprint, "ID_TOKEN=") {
		t.Errorf("on record of the effect: %+v", line)
	}
	asked := slices.DeleteFunc(s.AuditOf(t, "plain"), func(l harness.AuditLine) bool { return l.Outcome != "changed" || l.Revision != 2 })
	if len(asked) != 1 || asked[0].Caller != harness.Admin || !asked[0].EffectiveAt.Equal(plain) || asked[0].NewThumbprint != line.NewThumbprint || asked[0].OldThumbprint != line.OldThumbprint {
		t.Errorf("on record of the request: %+v", asked)
	}
	if !asked[0].Time.Before(plain) {
		t.Errorf("on record at %v, and in force at %v", asked[0].Time, plain)
	}
	if l := tookEffect(t, s, "back", 1)[0]; l.OldThumbprint != "" || l.Revision != 4 {
		t.Errorf("on record of a client that is back: %+v", l)
	}
	for _, id := range []string{"kept", "dropped"} {
		lines := s.AuditOf(t, id)
		if slices.ContainsFunc(lines, func(l harness.AuditLine) bool { return l.Outcome == "took_effect" }) {
			t.Errorf("%s: on record: %+v", id, lines)
		}
		if !slices.ContainsFunc(lines, func(l harness.AuditLine) bool { return l.DroppedThumbprint == line.NewThumbprint }) {
			t.Errorf("%s: what was dropped is not on record: %+v", id, lines)
		}
	}

	// Told to those who watch, twice. What they see of the change depends on when
	// they come to read; the order does not.
	wantWatched(t, w, map[string][]string{
		"plain":  {anyKey().KeyID + " then " + otherKey().KeyID, otherKey().KeyID},
		"by-url": {anyKey().KeyID + " then " + otherKey().KeyID, otherKey().KeyID},
		"back":   {"NO_USABLE_KEY then " + otherKey().KeyID, otherKey().KeyID},
	})
	w.end(t, syscall.SIGTERM)

	harness.Eventually(t, func() error { // that of the other issuer
		if n := s.Metric(t, "bulla_client_key_changes_pending"); n != 1 {
			return fmt.Errorf("%v changes wait, want 1", n)
		}
		return nil
	})

	// Acknowledged, killed, and in force when it is back.
	third := harness.NewClientKey(t, "P-256", "third")
	at := effectiveAt(t, replaced(withJWKS("plain", harness.JWKS(third)), "3"))
	s.Kill(t)
	time.Sleep(time.Until(at))
	s.Run(t)
	s.WaitReady(t)
	if res := mustIssue(t, s.Caller(t, harness.Admin), idToken("plain")); res.GetEncryptionKeyId() != third.KeyID {
		t.Errorf("after a kill tokens are for %s", res.GetEncryptionKeyId())
	}
	lines := tookEffect(t, s, "plain", 2)
	if l := lines[len(lines)-1]; l.Revision != 5 || !l.EffectiveAt.Equal(at) || l.OldThumbprint != line.NewThumbprint {
		t.Errorf("on record after a kill: %+v", l)
	}
}

// wantWatched reads what a watcher shows until each client has been shown as
// wanted, in that order.
func wantWatched(t *testing.T, w *watcher, want map[string][]string) {
	t.Helper()
	for len(want) > 0 {
		text := nextLine(t, w.lines)
		var doc struct {
			Key struct {
				ID     string `json:"client_id"`
				State  string
				Chosen []struct {
					KeyID string `json:"key_id"`
				} `json:"chosen_keys"`
				Pending *struct {
					At     time.Time `json:"effective_at"`
					Chosen []struct {
						KeyID string `json:"key_id"`
					} `json:"chosen_keys"`
				} `json:"pending_change"`
			} `json:"client_key"`
		}
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		got := strings.TrimPrefix(doc.Key.State, "CLIENT_KEY_STATE_")
		if len(doc.Key.Chosen) > 0 {
			got = doc.Key.Chosen[0].KeyID
		}
		if p := doc.Key.Pending; p != nil {
			got += " then"
			if len(p.Chosen) > 0 {
				got += " " + p.Chosen[0].KeyID
			}
		}
		id := doc.Key.ID
		if len(want[id]) > 0 && got == want[id][0] {
			if want[id] = want[id][1:]; len(want[id]) == 0 {
				delete(want, id)
			}
		}
	}
}

func TestReplicasChangeAKeyTogether(t *testing.T) {
	t.Parallel()
	db := pgtest.Start(t).NewDatabase(t)
	one := newReplica(t, harness.Config{Edit: delaying}, db.DSN())
	two := newReplica(t, harness.Config{Edit: delaying}, db.DSN())
	for _, s := range []*harness.Service{one, two} {
		s.Run(t)
	}
	one.WaitReady(t)
	two.WaitReady(t)
	a, b := one.Caller(t, harness.Admin), two.Caller(t, harness.Admin)
	for _, id := range []string{"both", "kept"} {
		mustRegister(t, a, withJWKS(id, harness.JWKS(anyKey())))
		within(t, harness.Patience, id+" is known", func() error { _, err := b.Tokens.SignAndEncrypt(t.Context(), idToken(id)); return err })
	}
	change := func(c *client.Client, id string, key harness.ClientKey, revision string) *bullav1.ClientKey {
		t.Helper()
		req := withJWKS(id, harness.JWKS(key))
		req.Revision = revision
		return mustRegister(t, c, req)
	}
	change(a, "kept", otherKey(), "1")
	change(b, "kept", anyKey(), "2") // the other one takes it back
	at := effectiveAt(t, change(a, "both", otherKey(), "1"))
	var all sync.WaitGroup
	for _, c := range []*client.Client{a, b} {
		all.Go(func() {
			old, changed := followKey(t, c, "both", anyKey().KeyID, otherKey().KeyID, at)
			t.Logf("%d tokens before, %d after", old, changed)
		})
	}
	all.Wait()
	for i, s := range []*harness.Service{one, two} {
		if l := tookEffect(t, s, "both", 1)[0]; l.Revision != 3 || !l.EffectiveAt.Equal(at) || l.Time.Before(at) {
			t.Errorf("replica %d has on record: %+v", i, l)
		}
		if slices.ContainsFunc(s.AuditOf(t, "kept"), func(l harness.AuditLine) bool { return l.Outcome == "took_effect" }) {
			t.Errorf("replica %d has on record that what was taken back took effect", i)
		}
		res := mustIssue(t, s.Caller(t, harness.Admin), idToken("kept"))
		if res.GetEncryptionKeyId() != anyKey().KeyID {
			t.Errorf("replica %d: what was taken back is in force", i)
		}
	}
}
