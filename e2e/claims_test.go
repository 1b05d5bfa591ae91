package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// marker is in every value that a request holds below, and must be in no answer.
const marker = "do-not-repeat-me"

func TestBadClaimsAreRefusedWithEachProblem(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("claims", harness.JWKS(anyKey()), setting("ECDH-ES", ""),
		&bullav1.ResponseSetting{TokenKind: kindUserInfo, EncryptionAlgorithm: "ECDH-ES"}))
	now := time.Now().Unix()
	object := func(format string, args ...any) []byte {
		return []byte(`{"sub":"` + marker + `",` + fmt.Sprintf(format, args...) + `}`)
	}
	for _, test := range []struct {
		what   string
		claims []byte
		edit   func(*bullav1.SignAndEncryptRequest)
		field  string
		word   string
	}{
		{"none", nil, nil, "claims", "missing"},
		{"an array", []byte(`["` + marker + `"]`), nil, "claims", "object"},
		{"a string", []byte(`"` + marker + `"`), nil, "claims", "object"},
		{"null", []byte(`null`), nil, "claims", "object"},
		{"half an object", []byte(`{"sub":"` + marker), nil, "claims", "end"},
		{"two objects", []byte(`{"sub":"` + marker + `"}{}`), nil, "claims", "one JSON object"},
		{"no JSON", []byte(`{sub:` + marker + `}`), nil, "claims", "JSON"},
		{"not UTF-8", []byte("{\"sub\":\"" + marker + "\xff\"}"), nil, "claims", "UTF-8"},
		{"a lone surrogate", []byte(`{"sub":"` + marker + `\ud800"}`), nil, "claims", "surrogate"},
		{"a byte order mark", []byte("\xef\xbb\xbf" + `{"sub":"` + marker + `"}`), nil, "claims", "JSON"},
		{"a name twice", object(`"sub":"%s2"`, marker), nil, "claims", "twice"},
		{"a name twice, once escaped", object(`"s\u0075b":"%s2"`, marker), nil, "claims", "twice"},
		{"a name twice, deep inside", object(`"a":[{"b":{"c":1,"c":2}}]`), nil, "claims", "twice"},
		{"more than 64 KiB", object(`"a":"%s"`, strings.Repeat("a", 64<<10)), nil, "claims", "bytes"},
		{"deep nesting", object(`"a":%s%s`, strings.Repeat("[", 40), strings.Repeat("]", 40)), nil, "claims", "32"},
		{"no sub", []byte(`{"name":"` + marker + `"}`), nil, "claims.sub", "missing"},
		{"an empty sub", []byte(`{"sub":""}`), nil, "claims.sub", "empty"},
		{"a sub that is a number", []byte(`{"sub":1}`), nil, "claims.sub", "string"},
		{"a long sub", []byte(`{"sub":"` + strings.Repeat(marker, 20) + `"}`), nil, "claims.sub", "255"},
		{"another iss", object(`"iss":"https://%s.example.com"`, marker), nil, "claims.iss", "issuer"},
		{"another aud", object(`"aud":"%s"`, marker), nil, "claims.aud", "client"},
		{"another aud in a list", object(`"aud":["%s","b"]`, marker), nil, "claims.aud", "client"},
		{"an empty aud", object(`"aud":[]`), nil, "claims.aud", "non-empty"},
		{"another azp", object(`"azp":"%s"`, marker), nil, "claims.azp", "client"},
		{"exp in the past", object(`"exp":%d`, now-10), nil, "claims.exp", "past"},
		{"exp beyond max_lifetime", object(`"exp":%d`, now+7200), nil, "claims.exp", "max_lifetime"},
		{"exp in milliseconds", object(`"exp":%d`, now*1000), nil, "claims.exp", "seconds"},
		{"exp as a string", object(`"exp":"%d"`, now+60), nil, "claims.exp", "number"},
		{"exp with a fraction", object(`"exp":%d.5`, now+60), nil, "claims.exp", "whole"},
		{"exp that disagrees with lifetime", object(`"exp":%d,"iat":%d`, now+60, now), func(r *bullav1.SignAndEncryptRequest) {
			r.Lifetime = durationpb.New(2 * time.Minute)
		}, "claims.exp", "lifetime"},
		{"iat an hour ago", object(`"iat":%d`, now-3600), nil, "claims.iat", "60 seconds"},
		{"nbf after exp", object(`"exp":%d,"nbf":%d`, now+60, now+61), nil, "claims.nbf", "never be valid"},
		{"events", object(`"events":{}`), nil, "claims.events", "leave it out"},
		{"token_introspection", object(`"token_introspection":{}`), nil, "claims.token_introspection", "leave it out"},
		{"a UserInfo response with exp", object(`"exp":%d`, now+60), func(r *bullav1.SignAndEncryptRequest) { r.TokenKind = kindUserInfo }, "claims.exp", "leave it out"},
		{"a UserInfo response with a lifetime", object(`"a":1`), func(r *bullav1.SignAndEncryptRequest) {
			r.TokenKind, r.Lifetime = kindUserInfo, durationpb.New(time.Minute)
		}, "lifetime", "no exp"},
		{"no lifetime at all", object(`"a":1`), func(r *bullav1.SignAndEncryptRequest) { r.Lifetime = durationpb.New(0) }, "lifetime", "longer than zero"},
		{"a lifetime above max_lifetime", object(`"a":1`), func(r *bullav1.SignAndEncryptRequest) { r.Lifetime = durationpb.New(2 * time.Hour) }, "lifetime", "3600"},
		{"another at_hash", object(`"at_hash":"%s"`, marker), func(r *bullav1.SignAndEncryptRequest) { r.AccessToken = marker }, "claims.at_hash", ""},
		{"an access token for UserInfo", object(`"a":1`), func(r *bullav1.SignAndEncryptRequest) {
			r.TokenKind, r.AccessToken = kindUserInfo, marker
		}, "access_token", ""},
	} {
		t.Run(test.what, func(t *testing.T) {
			req := &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: "claims", Claims: test.claims}
			if test.edit != nil {
				test.edit(req)
			}
			_, err := admin.Tokens.SignAndEncrypt(t.Context(), req)
			f := mustFail(t, err, "CLAIMS_INVALID")
			if problem, ok := f.violations[test.field]; !ok || !strings.Contains(problem, test.word) {
				t.Errorf("got %v, want %q at %s", f, test.word, test.field)
			}
			if strings.Contains(f.String(), marker) {
				t.Errorf("the answer repeats a value: %v", f)
			}
		})
	}

	// All that is wrong is said at once.
	_, err := admin.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{
		Issuer: harness.Issuer, ClientId: "claims", Claims: []byte(`{"iss":"https://evil.example.com","aud":"x","exp":1,"nonce":7}`),
	})
	f := mustFail(t, err, "CLAIMS_INVALID")
	for _, field := range []string{"claims.sub", "claims.iss", "claims.aud", "claims.exp", "claims.nonce"} {
		if f.violations[field] == "" {
			t.Errorf("got %v, want %s named too", f, field)
		}
	}
}

func TestRequestsAreRefusedByTheirForm(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	for _, test := range []struct {
		what string
		edit func(*bullav1.SignAndEncryptRequest)
		code codes.Code
		word string
	}{
		{"no client", func(r *bullav1.SignAndEncryptRequest) { r.ClientId = "" }, codes.InvalidArgument, "client_id"},
		{"a long client_id", func(r *bullav1.SignAndEncryptRequest) { r.ClientId = strings.Repeat("c", 256) }, codes.InvalidArgument, "255"},
		{"a client_id that is not ASCII", func(r *bullav1.SignAndEncryptRequest) { r.ClientId = "zoë" }, codes.InvalidArgument, "ASCII"},
		{"a token kind that there is not", func(r *bullav1.SignAndEncryptRequest) { r.TokenKind = 99 }, codes.InvalidArgument, "99"},
		{"a lifetime that is none", func(r *bullav1.SignAndEncryptRequest) { r.Lifetime = &durationpb.Duration{Nanos: -1, Seconds: 1} }, codes.InvalidArgument, "lifetime"},
		{"a message of 5 MB", func(r *bullav1.SignAndEncryptRequest) { r.Claims = make([]byte, 5<<20) }, codes.ResourceExhausted, "larger than max"},
	} {
		t.Run(test.what, func(t *testing.T) {
			req := idToken("claims")
			test.edit(req)
			_, err := admin.Tokens.SignAndEncrypt(t.Context(), req)
			mustBe(t, err, test.code, test.word)
		})
	}
	_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("never-registered"))
	mustFail(t, err, "CLIENT_NOT_REGISTERED", "register its key first")
	for _, issuer := range []string{"nowhere", ""} { // there are two
		req := idToken("claims")
		req.Issuer = issuer
		_, err = admin.Tokens.SignAndEncrypt(t.Context(), req)
		mustFail(t, err, "ISSUER_UNKNOWN")
	}
}

// TestDeadlineEndsACall has a call wait for a host that hangs.
func TestDeadlineEndsACall(t *testing.T) {
	t.Parallel()
	shared.host.Set("/deadline", harness.Answer{Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := shared.Caller(t, harness.Admin).ClientKeys.RegisterClientKey(ctx, withURI("deadline", shared.host.URL("/deadline")))
	mustBe(t, err, codes.DeadlineExceeded)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v, want some 300 ms", took)
	}
	// The service, too, has given the call up.
	harness.Eventually(t, func() error {
		for _, code := range []string{"DeadlineExceeded", "Canceled"} {
			if shared.Metrics(t)[fmt.Sprintf(`bulla_rpcs_total{code=%q,method="RegisterClientKey",reason=%[1]q}`, code)] > 0 {
				return nil
			}
		}
		return fmt.Errorf("the service has not counted the call")
	})
}
