package e2e

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// rotate asks for a new key of the issuer.
func rotate(emergency bool) *bullav1.RotateSigningKeyRequest {
	return &bullav1.RotateSigningKeyRequest{Issuer: harness.Issuer, Algorithm: "ES256", Emergency: emergency}
}

func mustRotate(t testing.TB, c *client.Client, emergency bool) *bullav1.RotateSigningKeyResponse {
	t.Helper()
	res, err := c.SigningKeys.RotateSigningKey(t.Context(), rotate(emergency))
	if err != nil {
		t.Fatalf("rotate: %v", err)
	}
	return res
}

// keysByState are the kids of a ring.
func keysByState(keys []*bullav1.SigningKey) map[bullav1.SigningKeyState][]string {
	kids := make(map[bullav1.SigningKeyState][]string)
	for _, k := range keys {
		kids[k.GetState()] = append(kids[k.GetState()], k.GetKeyId())
	}
	return kids
}

// The states by short names.
const (
	next    = bullav1.SigningKeyState_SIGNING_KEY_STATE_NEXT
	active  = bullav1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE
	retired = bullav1.SigningKeyState_SIGNING_KEY_STATE_RETIRED
)

// published are the kids of the JWK Set as a verifier fetches it.
func published(t testing.TB, s *harness.Service) []string {
	t.Helper()
	code, _, body := s.Get(t, s.HTTP, "/jwks/main")
	if code != http.StatusOK {
		t.Fatalf("/jwks/main: %d %s", code, body)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(body), &set); err != nil {
		t.Fatal(err)
	}
	var kids []string
	for _, k := range set.Keys {
		if k.Use != "sig" || k.Algorithm != "ES256" || !k.IsPublic() {
			t.Errorf("published: use %q, alg %q, public %t", k.Use, k.Algorithm, k.IsPublic())
		}
		kids = append(kids, k.KeyID)
	}
	return kids
}

// rotating edits the configuration of an issuer.
func rotating(create string) func(harness.M) {
	return func(tree harness.M) {
		tree["issuers"].([]harness.M)[0]["rotation"] = harness.M{"create": create}
	}
}

// TestRotationMakesAKeyAndChangesToIt goes through a rotation whose key is made
// in the token, and brings it forward as one would whose key was stolen.
func TestRotationMakesAKeyAndChangesToIt(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-rotation", kms.ES256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca, Edit: rotating("auto")})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("rotation", harness.JWKS(anyKey())))
	first := mustIssue(t, admin, idToken("rotation")).GetSigningKeyId()

	began := time.Now()
	ring := mustRotate(t, admin, false)
	kids := keysByState(ring.GetSigningKeys())
	if len(kids[next]) != 1 || !slices.Equal(kids[active], []string{first}) || len(ring.GetSigningKeys()) != 2 || len(ring.GetBreaks()) != 0 {
		t.Fatalf("after a rotation: %v, breaks %q; want %s active and one next", ring.GetSigningKeys(), ring.GetBreaks(), first)
	}
	second := kids[next][0]
	for _, k := range ring.GetSigningKeys() {
		// jwks_max_age 10m, twice max_lag 15m, and a minute.
		const lead = 41 * time.Minute
		switch k.GetKeyId() {
		case second:
			if after := k.GetActivateAt().AsTime().Sub(began); after < lead-2*time.Second || after > lead+time.Minute {
				t.Errorf("the new key signs %v after the rotation, want %v", after, lead)
			}
		case first:
			if after := k.GetRemoveAt().AsTime().Sub(k.GetRetireAt().AsTime()); after < time.Hour {
				t.Errorf("the old key is published for %v after it stops signing, and tokens live an hour", after)
			}
		}
	}
	harness.Eventually(t, func() error { // from the next full second on
		if got := published(t, s); !slices.Contains(got, first) || !slices.Contains(got, second) {
			return errorf("published: %v, want %s and %s", got, first, second)
		}
		return nil
	})
	if kid := mustIssue(t, admin, idToken("rotation")).GetSigningKeyId(); kid != first {
		t.Errorf("a token is signed by %s while verifiers may know only %s", kid, first)
	}
	again := mustRotate(t, admin, false)
	if got := keysByState(again.GetSigningKeys()); !slices.Equal(got[next], []string{second}) || len(again.GetSigningKeys()) != 2 {
		t.Errorf("a second rotation under way: %v, want what the first one did", again.GetSigningKeys())
	}

	// What the token has of the new key, as another program sees it.
	objects := token.Tool("--list-objects", "--type", "privkey")
	if n := strings.Count(objects, "Private Key Object"); n != 2 {
		t.Errorf("the token has %d private keys, want 2:\n%s", n, objects)
	}
	if strings.Count(objects, "never extractable") != 2 || strings.Count(objects, "sensitive") < 2 {
		t.Errorf("a key that could leave the token:\n%s", objects)
	}
	_, made, _ := strings.Cut(objects, "bulla-")
	if usage := strings.TrimSpace(between(made, "Usage:", "\n")); usage != "sign" {
		t.Errorf("the new key may %q, want sign and nothing else:\n%s", usage, objects)
	}

	s.Kill(t)
	s.Run(t)
	s.WaitReady(t)
	stolen := mustRotate(t, admin, true)
	if len(stolen.GetBreaks()) == 0 {
		t.Error("an emergency does not say what it breaks")
	}
	if got := keysByState(stolen.GetSigningKeys()); !slices.Equal(got[active], []string{second}) || !slices.Equal(got[retired], []string{first}) {
		t.Errorf("after an emergency: %v, want %s active and %s retired", stolen.GetSigningKeys(), second, first)
	}
	if got := published(t, s); !slices.Equal(got, []string{second}) {
		t.Errorf("published after an emergency: %v, want %s alone", got, second)
	}
	res := mustIssue(t, admin, idToken("rotation"))
	if res.GetSigningKeyId() != second {
		t.Errorf("after an emergency a token is signed by %s, want %s", res.GetSigningKeyId(), second)
	}
	open(t, s, anyKey(), res.GetToken())

	lines := s.Audit(t)
	last := lines[len(lines)-2] // the token came after it
	if last.Outcome != "changed" || last.Permission != "rotate_signing_keys" || last.OldThumbprint != first || last.NewThumbprint != second || last.Settings != "emergency" {
		t.Errorf("on record of the emergency: %+v", last)
	}
}

// between is what stands in text after one mark and before the next.
func between(text, from, to string) string {
	_, text, _ = strings.Cut(text, from)
	text, _, _ = strings.Cut(text, to)
	return text
}

// TestRotationTakesAKeyTheOperatorHasListed is the way of an HSM in which Bulla
// may make no keys.
func TestRotationTakesAKeyTheOperatorHasListed(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-listed", kms.ES256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca, Grants: []harness.M{
		{"caller": registrar, "allow": []string{"read_signing_keys"}, "issuers": []string{harness.Issuer}},
	}})
	admin := s.Caller(t, harness.Admin)
	_, err := admin.SigningKeys.RotateSigningKey(t.Context(), rotate(false))
	mustFail(t, err, "NO_NEXT_SIGNING_KEY", "list a new one")
	_, err = s.Caller(t, registrar).SigningKeys.RotateSigningKey(t.Context(), rotate(true))
	mustFail(t, err, "CALLER_NOT_ALLOWED")
	_, err = admin.SigningKeys.RotateSigningKey(t.Context(), &bullav1.RotateSigningKeyRequest{Algorithm: "ES384"})
	mustFail(t, err, "ALGORITHM_NOT_ALLOWED")
	_, err = admin.SigningKeys.RotateSigningKey(t.Context(), &bullav1.RotateSigningKeyRequest{Algorithm: "HS256"})
	if f := failureOf(t, err); f.code != codes.InvalidArgument || f.violations["algorithm"] == "" {
		t.Errorf("a symmetric algorithm: %+v, want a violation of the field", f)
	}

	create := func(label string) *string {
		cmd := s.Command(t, "key", "create", "--config", s.ConfigFile, "--backend", "hsm", "--algorithm", "ES256", "--label", label, "-o", "json")
		out, err := cmd.Output()
		if err != nil {
			return nil
		}
		var made struct{ Algorithm, Location string }
		if err := json.Unmarshal(out, &made); err != nil || made.Algorithm != "ES256" {
			t.Fatalf("key create printed %s (%v)", out, err)
		}
		return &made.Location
	}
	location := create("login-2")
	if location == nil || !strings.HasPrefix(*location, "hsm:object=login-2;id=") {
		t.Fatalf("key create beside the running service: %v", location)
	}
	if create("login-2") != nil {
		t.Error("a second key of the same label was made")
	}
	s.Terminate(t)
	s.Reconfigure(t, func(tree harness.M) {
		issuer := tree["issuers"].([]harness.M)[0]
		issuer["signing_keys"] = append(issuer["signing_keys"].([]harness.M), harness.M{"algorithm": "ES256", "keys": []string{*location}})
	})
	s.Run(t)
	s.WaitReady(t)
	var joined []string
	harness.Eventually(t, func() error {
		res, err := admin.SigningKeys.ListSigningKeys(t.Context(), &bullav1.ListSigningKeysRequest{})
		if err != nil {
			return err
		}
		if joined = keysByState(res.GetSigningKeys())[next]; len(joined) != 1 {
			return errorf("%d keys wait, want one", len(joined))
		}
		return nil
	})
	harness.Eventually(t, func() error {
		if got := published(t, s); len(got) != 2 || !slices.Contains(got, joined[0]) {
			return errorf("published: %v, want the key that waits too", got)
		}
		return nil
	})
	for _, k := range mustRotate(t, admin, false).GetSigningKeys() {
		if k.GetState() == next && (k.GetKeyId() != joined[0] || k.GetActivateAt() == nil) {
			t.Errorf("after the rotation %v is next, want %s with the time it begins to sign", k, joined[0])
		}
	}
}

// TestPublicKeysNeedNoHSM starts a service, takes its token away, and starts it
// again: verifiers go on.
func TestPublicKeysNeedNoHSM(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-jwks", kms.ES256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	want := published(t, s)
	bringBack := token.TakeAway()
	defer bringBack()
	for _, restart := range []bool{false, true} {
		if restart {
			s.Kill(t)
			s.Run(t)
			s.WaitLive(t)
		}
		harness.Eventually(t, func() error {
			if code, _, _ := s.Get(t, s.HTTP, "/jwks/main"); code != http.StatusOK {
				return errorf("/jwks/main: %d", code)
			}
			return nil
		})
		if got := published(t, s); !slices.Equal(got, want) {
			t.Errorf("published with the HSM down (restarted %t): %v, want %v", restart, got, want)
		}
		res, err := admin.SigningKeys.GetJWKS(t.Context(), &bullav1.GetJWKSRequest{})
		if err != nil {
			t.Fatalf("GetJWKS with the HSM down (restarted %t): %v", restart, err)
		}
		if age := time.Since(res.GetAsOf().AsTime()); age < 0 || age > time.Minute {
			t.Errorf("GetJWKS says that its data is %v old", age)
		}
	}
}
