package seal

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/signer"
)

// TestClaimPolicyHoldsForEveryWayToAToken: what a grant asks of the claims, it
// asks of encrypted, signed and unbound tokens alike, before any key is asked to
// sign, and what it refuses is on record as denied.
func TestClaimPolicyHoldsForEveryWayToAToken(t *testing.T) {
	policy := &authz.ClaimPolicy{MaxLifetime: 30 * time.Second, Allow: []string{"sub", "client_id", "auth_time"}, Audiences: []string{"https://api/*"}}
	encrypted := (*Sealer).SignAndEncrypt
	signed := (*Sealer).Sign
	for _, test := range []struct {
		what   string
		call   func(*Sealer, context.Context, Request) (*Result, error)
		edit   func(*Request)
		fields []string // of what is wrong; none: a token
	}{
		{"encrypted", encrypted, func(r *Request) { r.Claims = []byte(`{"sub":"alice","auth_time":1700000000}`) }, nil},
		{"encrypted, the default lifetime", encrypted, func(r *Request) { r.Lifetime = nil }, []string{"lifetime"}},
		{"encrypted, another claim", encrypted, func(r *Request) { r.Claims = []byte(`{"sub":"alice","email":"a@example.com"}`) }, []string{"claims.email"}},
		{"encrypted, an audience", encrypted, func(r *Request) { r.Claims = []byte(`{"sub":"alice","aud":["app","https://api/1"]}`) }, nil},
		{"encrypted, another audience", encrypted, func(r *Request) { r.Claims = []byte(`{"sub":"alice","aud":["app","https://other/1"]}`) }, []string{"claims.aud"}},
		{"signed", signed, func(r *Request) { r.AllowUnencrypted = true }, nil},
		{"signed, another claim", signed, func(r *Request) {
			r.AllowUnencrypted, r.Claims = true, []byte(`{"sub":"alice","email":"a@example.com"}`)
		}, []string{"claims.email"}},
		{"unbound", signed, func(r *Request) {
			r.Kind, r.ClientID, r.Claims = signer.AccessToken, "", []byte(`{"sub":"alice","aud":"https://api/1","client_id":"app"}`)
		}, nil},
		{"unbound, another audience", signed, func(r *Request) {
			r.Kind, r.ClientID, r.Claims = signer.AccessToken, "", []byte(`{"sub":"alice","aud":["https://api/1","https://other"],"client_id":"app"}`)
		}, []string{"claims.aud"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			w, s := newWorld(t)
			w.allow(t, grant(policy, "*"))
			req := request()
			short := 30 * time.Second
			req.Lifetime = &short
			test.edit(&req)
			result, err := test.call(s, t.Context(), req)
			if test.fields == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wrong, ok := errors.AsType[*authz.ClaimsError](err)
			if !ok || result != nil {
				t.Fatalf("got %v, %v, want a *authz.ClaimsError", result, err)
			}
			var fields []string
			for _, v := range wrong.Violations {
				fields = append(fields, v.Field)
			}
			if !slices.Equal(fields, test.fields) {
				t.Errorf("got %q, want %q: %v", fields, test.fields, err)
			}
			for _, value := range []string{"alice", "example.com", "other"} {
				if strings.Contains(err.Error(), value) {
					t.Errorf("the error holds a value, %q: %v", value, err)
				}
			}
			if slices.Contains(w.steps, "sign") || w.events[0].Outcome != audit.Denied {
				t.Errorf("steps %v, on record as %s; want no signature, and denied", w.steps, w.events[0].Outcome)
			}
		})
	}
}

// swapping replaces the policy while a token is on its way.
type swapping struct {
	*world
	live *authz.Live
	next *authz.Policy
}

func (s swapping) Authorize(caller string, r authz.Request) (authz.Terms, error) {
	return s.live.Authorize(caller, r)
}

func (s swapping) Recipient(ctx context.Context, issuer, clientID string, kind registry.TokenKind) (keycache.Recipient, error) {
	s.live.Replace(s.next)
	return s.world.Recipient(ctx, issuer, clientID, kind)
}

// TestATokenKeepsThePolicyItBeganWith: no token is made by half of one policy and
// half of another.
func TestATokenKeepsThePolicyItBeganWith(t *testing.T) {
	w, s := newWorld(t)
	strict := &authz.ClaimPolicy{Allow: []string{"nothing"}}
	w.allow(t, grant(strict, "*"))
	narrow := w.policy
	w.allow(t, grant(nil, "*"))
	wide := w.policy
	swap := swapping{world: w, live: authz.NewLive(wide), next: narrow}
	s.cfg.Authorizer, s.cfg.Recipients = swap, swap
	req := request()
	req.Claims = []byte(`{"sub":"alice","aud":["app","friend"]}`)
	if _, err := s.SignAndEncrypt(t.Context(), req); err != nil {
		t.Errorf("began before the change: %v", err)
	}
	if _, err := s.SignAndEncrypt(t.Context(), req); !errors.Is(err, authz.ErrClaimsNotAllowed) {
		t.Errorf("began after the change: got %v, want ErrClaimsNotAllowed", err)
	}
	swap.live.Replace(&authz.Policy{})
	if _, err := s.SignAndEncrypt(t.Context(), req); !errors.Is(err, authz.ErrCallerUnknown) {
		t.Errorf("began without a grant: got %v, want ErrCallerUnknown", err)
	}
}

// prepared is a token as allowClaims gets it.
func prepared(tb testing.TB, policy *authz.ClaimPolicy) (*token, *signer.Payload) {
	tb.Helper()
	p, err := authz.New([]authz.Grant{grant(policy, "*")})
	if err != nil {
		tb.Fatal(err)
	}
	tok := &token{Request: request()}
	if tok.terms, err = p.Authorize("caller", authz.Request{Permission: authz.Issue, Issuer: "main", TokenKind: "ID_TOKEN", ClientID: "app"}); err != nil {
		tb.Fatal(err)
	}
	payload, err := signer.Prepare(signer.Request{
		Kind: signer.IDToken, Issuer: signer.Issuer{URL: "https://login.example.com", DefaultLifetime: time.Minute, MaxLifetime: time.Hour}, ClientID: "app",
		Claims: []byte(`{"sub":"248289761001","nonce":"n-0S6_WzA2Mj","auth_time":1311280969,"acr":"urn:mace:incommon:iap:silver","amr":["pwd","otp"],"name":"Jane Doe",` +
			`"given_name":"Jane","family_name":"Doe","email":"janedoe@example.com","email_verified":true,"locale":"en-GB","groups":["admin","staff","board"]}`),
	}, kms.ES256, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return tok, payload
}

func TestNoClaimPolicyCostsNothing(t *testing.T) {
	tok, payload := prepared(t, nil)
	if n := testing.AllocsPerRun(100, func() {
		if allowClaims(tok, payload) != nil {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("without a claim policy %v allocations are made, want none", n)
	}
}

func BenchmarkAllowClaims(b *testing.B) {
	for name, policy := range map[string]*authz.ClaimPolicy{
		"none": nil,
		"all": {
			MaxLifetime: time.Minute, Require: []string{"auth_time"}, Audiences: []string{"https://api/*"},
			Allow: []string{"sub", "nonce", "auth_time", "acr", "amr", "name", "given_name", "family_name", "email", "email_verified", "locale", "groups"},
		},
	} {
		b.Run(name, func(b *testing.B) {
			tok, payload := prepared(b, policy)
			b.ReportAllocs()
			for b.Loop() {
				if err := allowClaims(tok, payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
