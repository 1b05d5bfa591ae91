package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestClaimPolicyOfAGrantHolds: a gateway may only have short tokens with a few
// claims, for a few APIs, whichever call it makes. Each refusal names what is
// wrong, and is on record as a denial.
func TestClaimPolicyOfAGrantHolds(t *testing.T) {
	t.Parallel()
	const gateway = "spiffe://example.com/gateway"
	policy := harness.M{"max_lifetime": "60s", "allow": []string{"sub", "client_id", "auth_time"}, "require": []string{"auth_time"}, "audiences": []string{"https://api.example.com/*"}}
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Grants: []harness.M{
		{"caller": gateway, "allow": []string{"issue", "sign_unencrypted"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN", "ACCESS_TOKEN"}, "clients": []string{"*"}, "claims": policy},
		// For one client it may have more.
		{"caller": gateway, "allow": []string{"issue"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN"}, "clients": []string{"free"}},
	}})
	admin, caller := s.Caller(t, harness.Admin), s.Caller(t, gateway)
	for _, id := range []string{"bound", "free"} {
		mustRegister(t, admin, withJWKS(id, harness.JWKS(anyKey())))
	}
	long, short := durationpb.New(time.Minute+time.Second), durationpb.New(time.Minute)
	encrypted := func(c *client.Client, id, claims string, lifetime *durationpb.Duration) (string, error) {
		res, err := c.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: id, Claims: []byte(claims), Lifetime: lifetime})
		return res.GetToken(), err
	}
	signed := func(c *client.Client, id, claims string, lifetime *durationpb.Duration) (string, error) {
		res, err := c.Tokens.Sign(t.Context(), &bullav1.SignRequest{Issuer: harness.Issuer, ClientId: id, Claims: []byte(claims), Lifetime: lifetime, AllowUnencrypted: true})
		return res.GetToken(), err
	}
	access := func(c *client.Client, _, claims string, lifetime *durationpb.Duration) (string, error) {
		res, err := c.Tokens.Sign(t.Context(), &bullav1.SignRequest{Issuer: harness.Issuer, TokenKind: bullav1.TokenKind_TOKEN_KIND_ACCESS_TOKEN, Claims: []byte(claims), Lifetime: lifetime})
		return res.GetToken(), err
	}
	refusals := func(clientID string) int {
		n := 0
		for _, l := range s.AuditOf(t, clientID) {
			if l.Outcome == "denied" && l.Reason == "CLAIMS_NOT_ALLOWED" && l.Caller == gateway && l.TokenSHA256 == "" {
				n++
			}
		}
		return n
	}
	for _, test := range []struct {
		what     string
		call     func(*client.Client, string, string, *durationpb.Duration) (string, error)
		client   string
		claims   string
		lifetime *durationpb.Duration
		fields   []string // that are wrong; none: it is issued
	}{
		{"as it may be", encrypted, "bound", `{"sub":"zoe","auth_time":1700000000}`, short, nil},
		{"with an audience", encrypted, "bound", `{"sub":"zoe","auth_time":1700000000,"aud":["bound","https://api.example.com/1"]}`, short, nil},
		{"the default lifetime", encrypted, "bound", `{"sub":"zoe","auth_time":1700000000}`, nil, []string{"lifetime"}},
		{"a long lifetime", encrypted, "bound", `{"sub":"zoe","auth_time":1700000000}`, long, []string{"lifetime"}},
		{"another claim", encrypted, "bound", `{"sub":"zoe","auth_time":1700000000,"em\u0061il":"zoe@example.org"}`, short, []string{"claims.email"}},
		{"a claim too few", encrypted, "bound", `{"sub":"zoe"}`, short, []string{"claims.auth_time"}},
		{"another audience", encrypted, "bound", `{"sub":"zoe","auth_time":1700000000,"aud":["bound","https://other.example.org"]}`, short, []string{"claims.aud"}},
		{"a client in aud", encrypted, "bound", `{"sub":"zoe","auth_time":1700000000,"aud":["bound","free"]}`, short, []string{"claims.aud"}},
		{"all wrong", encrypted, "bound", `{"sub":"zoe","email":"zoe@example.org"}`, nil, []string{"claims.auth_time", "claims.email", "lifetime"}},
		{"by the other grant", encrypted, "free", `{"sub":"zoe","email":"zoe@example.org"}`, nil, nil},
		{"signed only", signed, "bound", `{"sub":"zoe","auth_time":1700000000}`, short, nil},
		{"signed only, another claim", signed, "free", `{"sub":"zoe","auth_time":1700000000,"email":"zoe@example.org"}`, short, []string{"claims.email"}},
		{"an access token", access, "", `{"sub":"zoe","auth_time":1700000000,"client_id":"bound","aud":"https://api.example.com/1"}`, short, nil},
		{"an access token for others", access, "", `{"sub":"zoe","auth_time":1700000000,"client_id":"bound","aud":"https://other.example.org"}`, short, []string{"claims.aud"}},
		{"an access token that lives long", access, "", `{"sub":"zoe","auth_time":1700000000,"client_id":"bound","aud":"https://api.example.com/1"}`, long, []string{"lifetime"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			before := refusals(test.client)
			token, err := test.call(caller, test.client, test.claims, test.lifetime)
			refused := refusals(test.client) - before
			if _, free := test.call(admin, test.client, test.claims, test.lifetime); free != nil {
				t.Errorf("who has no claim policy: %v", free)
			}
			if test.fields == nil {
				if err != nil || token == "" {
					t.Errorf("got %q, %v", token, err)
				}
				return
			}
			f := mustFail(t, err, "CLAIMS_NOT_ALLOWED")
			var fields []string
			for field := range f.violations {
				fields = append(fields, field)
			}
			slices.Sort(fields)
			if !slices.Equal(fields, test.fields) {
				t.Errorf("got %v, want violations of %q", f, test.fields)
			}
			for _, value := range []string{"zoe", "example.org", "1700000000"} {
				if strings.Contains(f.String(), value) {
					t.Errorf("the refusal tells a value, %q: %v", value, f)
				}
			}
			if refused != 1 {
				t.Errorf("%d denials are on record, want 1", refused)
			}
		})
	}
	for _, value := range []string{"zoe", "example.org"} {
		if strings.Contains(s.Log(), value) || strings.Contains(string(s.RawAudit(t)), value) {
			t.Errorf("the log or the audit log has %q", value)
		}
	}
}
