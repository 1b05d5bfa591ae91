package signer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/kms"
)

const (
	testISS    = "https://login.example.com"
	testClient = "s6BhdRkqt3"
)

var testNow = time.Date(2026, 3, 1, 12, 0, 0, 500_000_000, time.UTC)

// sec is a NumericDate some seconds from testNow.
func sec(d int64) string { return fmt.Sprint(testNow.Unix() + d) }

func ptr[T any](v T) *T { return &v }

// request is an ID token request that is good if its claims are.
func request(kind TokenKind, claims string) Request {
	return Request{
		Kind:     kind,
		Issuer:   Issuer{URL: testISS, DefaultLifetime: 5 * time.Minute, MaxLifetime: time.Hour},
		ClientID: testClient,
		Claims:   []byte(claims),
	}
}

func mustPrepare(tb testing.TB, req Request, alg kms.Algorithm) *Payload {
	tb.Helper()
	p, err := Prepare(req, alg, testNow)
	if err != nil {
		tb.Fatalf("Prepare(%s): %v", req.Claims, err)
	}
	return p
}

// fieldsOf are the fields of the violations in err.
func fieldsOf(tb testing.TB, err error) []string {
	tb.Helper()
	ce, ok := errors.AsType[*ClaimsError](err)
	if !ok {
		tb.Fatalf("error = %v (%T), want a *ClaimsError", err, err)
	}
	if !errors.Is(err, ErrClaims) {
		tb.Errorf("error %v does not match ErrClaims", err)
	}
	var fields []string
	for _, v := range ce.Violations {
		if v.Problem == "" {
			tb.Errorf("violation of %s says nothing", v.Field)
		}
		fields = append(fields, v.Field)
	}
	return fields
}

func TestAbsentClaimsAreFilledInAfterTheCallersOwn(t *testing.T) {
	tests := []struct {
		name string
		req  Request
		want string // JTI stands for a made-up jti
	}{
		{"id token", request(IDToken, `{"sub":"a"}`),
			`{"sub":"a","iss":"` + testISS + `","aud":"` + testClient + `","iat":` + sec(0) + `,"exp":` + sec(300) + `}`},
		{"id token with everything given",
			request(IDToken, `{"exp":`+sec(60)+`,"iat":`+sec(-1)+`,"aud":["x","`+testClient+`"],"iss":"`+testISS+`","sub":"a","azp":"`+testClient+`"}`),
			`{"exp":` + sec(60) + `,"iat":` + sec(-1) + `,"aud":["x","` + testClient + `"],"iss":"` + testISS + `","sub":"a","azp":"` + testClient + `"}`},
		{"id token for others too", request(IDToken, `{"sub":"a","aud":["`+testClient+`","x"]}`),
			`{"sub":"a","aud":["` + testClient + `","x"],"iss":"` + testISS + `","iat":` + sec(0) + `,"exp":` + sec(300) + `,"azp":"` + testClient + `"}`},
		{"id token for the client in an array", request(IDToken, `{"sub":"a","aud":["`+testClient+`","`+testClient+`"]}`),
			`{"sub":"a","aud":["` + testClient + `","` + testClient + `"],"iss":"` + testISS + `","iat":` + sec(0) + `,"exp":` + sec(300) + `}`},
		{"userinfo for the client in an array", request(UserInfo, `{"sub":"a","aud":["`+testClient+`"]}`),
			`{"sub":"a","aud":["` + testClient + `"],"iss":"` + testISS + `"}`},
		{"access token for several resource servers", request(AccessToken, `{"sub":"a","aud":["api","`+testClient+`"],"client_id":"`+testClient+`","jti":"j"}`),
			`{"sub":"a","aud":["api","` + testClient + `"],"client_id":"` + testClient + `","jti":"j","iss":"` + testISS + `","iat":` + sec(0) + `,"exp":` + sec(300) + `}`},
		{"exp is counted from a given iat", request(IDToken, `{"sub":"a","iat":`+sec(-30)+`}`),
			`{"sub":"a","iat":` + sec(-30) + `,"iss":"` + testISS + `","aud":"` + testClient + `","exp":` + sec(270) + `}`},
		{"userinfo has no times", request(UserInfo, `{"sub":"a","updated_at":1.50}`),
			`{"sub":"a","updated_at":1.50,"iss":"` + testISS + `","aud":"` + testClient + `"}`},
		{"access token", request(AccessToken, `{"sub":"a","aud":"api","client_id":"`+testClient+`"}`),
			`{"sub":"a","aud":"api","client_id":"` + testClient + `","iss":"` + testISS + `","iat":` + sec(0) + `,"exp":` + sec(300) + `,"jti":"JTI"}`},
		{"logout token", request(LogoutToken, `{"sub":"a"}`),
			`{"sub":"a","iss":"` + testISS + `","aud":"` + testClient + `","iat":` + sec(0) + `,"exp":` + sec(120) + `,"jti":"JTI","events":{"http://schemas.openid.net/event/backchannel-logout":{}}}`},
		{"logout token of a session, with events of its own", request(LogoutToken, `{"events":{"x":1,"http:\/\/schemas.openid.net/event/backchannel-logout": {"a":[ ]} },"sid":"s","jti":"mine"}`),
			`{"events":{"x":1,"http:\/\/schemas.openid.net/event/backchannel-logout": {"a":[ ]} },"sid":"s","jti":"mine","iss":"` + testISS + `","aud":"` + testClient + `","iat":` + sec(0) + `,"exp":` + sec(120) + `}`},
		{"authorization response", request(AuthorizationResponse, `{"code":"c","state":"s"}`),
			`{"code":"c","state":"s","iss":"` + testISS + `","aud":"` + testClient + `","exp":` + sec(300) + `}`},
		{"authorization response without any parameter", request(AuthorizationResponse, `{}`),
			`{"iss":"` + testISS + `","aud":"` + testClient + `","exp":` + sec(300) + `}`},
		{"introspection response", request(Introspection, `{"token_introspection":{"active":true,"sub":"a","exp":1}}`),
			`{"token_introspection":{"active":true,"sub":"a","exp":1},"iss":"` + testISS + `","aud":"` + testClient + `","iat":` + sec(0) + `}`},
		{"numbers, escapes, order and inner space survive", request(IDToken, " \n{ \"z\" : 1.00e+2 ,\"sub\":\"\\u0061\\/\",\"big\":12345678901234567890123 , \"a\":{\"y\":[ ]}\t}\r\n"),
			"{ \"z\" : 1.00e+2 ,\"sub\":\"\\u0061\\/\",\"big\":12345678901234567890123 , \"a\":{\"y\":[ ]}\t,\"iss\":\"" + testISS + `","aud":"` + testClient + `","iat":` + sec(0) + `,"exp":` + sec(300) + `}`},
		{"escaped names are the claims they mean", request(IDToken, `{"sub":"a","\u0069ss":"`+testISS+`","a\u0075d":"`+testClient+`"}`),
			`{"sub":"a","\u0069ss":"` + testISS + `","a\u0075d":"` + testClient + `","iat":` + sec(0) + `,"exp":` + sec(300) + `}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := bytes.Clone(tt.req.Claims)
			p := mustPrepare(t, tt.req, kms.ES256)
			want := strings.ReplaceAll(tt.want, "JTI", p.ID())
			if diff := cmp.Diff(want, string(p.JSON())); diff != "" {
				t.Errorf("payload (-want +got):\n%s", diff)
			}
			if !bytes.Equal(before, tt.req.Claims) {
				t.Errorf("the caller's bytes were changed to %s", tt.req.Claims)
			}
			if !json.Valid(p.JSON()) {
				t.Errorf("payload is not JSON: %s", p.JSON())
			}
		})
	}
}

func TestPayloadTellsExpiryAndID(t *testing.T) {
	req := request(AccessToken, `{"sub":"a","aud":["api"],"client_id":"c"}`)
	req.ClientID = ""
	first, second := mustPrepare(t, req, kms.RS256), mustPrepare(t, req, kms.RS256)
	if len(first.ID()) < 22 || first.ID() == second.ID() {
		t.Errorf("jti %q and %q, want two of at least 128 random bits", first.ID(), second.ID())
	}
	if got, want := first.ExpiresAt(), testNow.Truncate(time.Second).Add(5*time.Minute); !got.Equal(want) {
		t.Errorf("ExpiresAt = %v, want %v", got, want)
	}
	req.Claims = []byte(`{"sub":"a","aud":["api"],"client_id":"c","jti":"mine"}`)
	if got := mustPrepare(t, req, kms.RS256).ID(); got != "mine" {
		t.Errorf("ID = %q, want the given jti", got)
	}
	ui := mustPrepare(t, request(UserInfo, `{"sub":"a"}`), kms.RS256)
	if !ui.ExpiresAt().IsZero() || ui.ID() != "" {
		t.Errorf("userinfo has exp %v and jti %q, want neither", ui.ExpiresAt(), ui.ID())
	}
	if ui.Kind() != UserInfo || ui.Algorithm() != kms.RS256 {
		t.Errorf("payload is %s for %s", ui.Kind(), ui.Algorithm())
	}
}

// Whoever else may take the token for its own is told to those who know for whom the
// caller may issue.
func TestPayloadTellsTheAudiencesBesideTheClient(t *testing.T) {
	for _, test := range []struct {
		kind TokenKind
		aud  string
		want []string
	}{
		{IDToken, ``, nil},
		{IDToken, `,"aud":"` + testClient + `"`, nil},
		{IDToken, `,"aud":["` + testClient + `"]`, nil},
		{IDToken, `,"aud":["x","` + testClient + `","\u0078y","x"]`, []string{"x", "xy", "x"}},
		{IDToken, `,"a\u0075d":["` + testClient + `","` + strings.ToUpper(testClient) + `"]`, []string{strings.ToUpper(testClient)}},
		{UserInfo, `,"aud":["` + testClient + `"]`, nil},
		{AccessToken, `,"aud":["api","x"],"client_id":"` + testClient + `"`, nil},
	} {
		got := mustPrepare(t, request(test.kind, `{"sub":"a"`+test.aud+`}`), kms.ES256).OtherAudiences()
		if !slices.Equal(got, test.want) || (got == nil) != (test.want == nil) {
			t.Errorf("%s%s: got %q, want %q", test.kind, test.aud, got, test.want)
		}
	}
}

func TestLifetimeDecidesExp(t *testing.T) {
	tests := []struct {
		name     string
		claims   string
		lifetime time.Duration
		want     int64 // exp from now
	}{
		{"lifetime alone", `{"sub":"a"}`, time.Minute, 60},
		{"the maximum", `{"sub":"a"}`, time.Hour, 3600},
		{"lifetime and iat", `{"sub":"a","iat":` + sec(10) + `}`, time.Minute, 70},
		{"lifetime, iat and exp agree", `{"sub":"a","iat":` + sec(10) + `,"exp":` + sec(70) + `}`, time.Minute, 70},
		{"without iat the caller's clock may be off", `{"sub":"a","exp":` + sec(660) + `}`, 10 * time.Minute, 660},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := request(IDToken, tt.claims)
			req.Lifetime = &tt.lifetime
			p := mustPrepare(t, req, kms.ES256)
			if got := p.ExpiresAt().Unix() - testNow.Unix(); got != tt.want {
				t.Errorf("exp is %d s from now, want %d", got, tt.want)
			}
		})
	}
}

func TestSomeKindsHaveLifetimesOfTheirOwn(t *testing.T) {
	tests := []struct {
		name           string
		kind           TokenKind
		fallback, most time.Duration // the issuer's
		lifetime, exp  int64         // 0 for none
		want           int64         // exp from now
	}{
		{name: "logout tokens live two minutes", kind: LogoutToken, fallback: 5 * time.Minute, most: time.Hour, want: 120},
		{name: "and no shorter where others do", kind: LogoutToken, fallback: time.Minute, most: time.Hour, want: 120},
		{name: "but no longer than anything may", kind: LogoutToken, fallback: time.Minute, most: 90 * time.Second, want: 90},
		{name: "unless the caller wants more", kind: LogoutToken, fallback: time.Minute, most: time.Hour, lifetime: 3600, want: 3600},
		{name: "or says when", kind: LogoutToken, fallback: time.Minute, most: time.Hour, exp: 1800, want: 1800},
		{name: "authorization responses have the issuer's default", kind: AuthorizationResponse, fallback: 5 * time.Minute, most: time.Hour, want: 300},
		{name: "within ten minutes", kind: AuthorizationResponse, fallback: 30 * time.Minute, most: time.Hour, want: 600},
		{name: "which can be asked for", kind: AuthorizationResponse, fallback: time.Minute, most: time.Hour, lifetime: 600, want: 600},
		{name: "or named", kind: AuthorizationResponse, fallback: time.Minute, most: time.Hour, exp: 600, want: 600},
		{name: "and no longer than anything may", kind: AuthorizationResponse, fallback: time.Minute, most: time.Minute, want: 60},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			claims := kindClaims[tt.kind]
			if tt.exp != 0 {
				claims = strings.TrimSuffix(claims, "}") + `,"exp":` + sec(tt.exp) + "}"
			}
			req := request(tt.kind, claims)
			req.Issuer.DefaultLifetime, req.Issuer.MaxLifetime = tt.fallback, tt.most
			if tt.lifetime != 0 {
				req.Lifetime = ptr(time.Duration(tt.lifetime) * time.Second)
			}
			if got := mustPrepare(t, req, kms.ES256).ExpiresAt().Unix() - testNow.Unix(); got != tt.want {
				t.Errorf("exp is %d s from now, want %d", got, tt.want)
			}
		})
	}
	req := request(LogoutToken, kindClaims[LogoutToken])
	req.Lifetime = ptr(time.Hour + time.Second)
	if _, err := Prepare(req, kms.ES256, testNow); !errors.Is(err, ErrClaims) {
		t.Errorf("a logout token above max_lifetime: %v, want ErrClaims", err)
	}
}

func TestContradictionsAreRefused(t *testing.T) {
	const at = `"at_hash":"77QmUPtjPfzWtF2AnpK9RQ"`
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	tests := []struct {
		name   string
		kind   TokenKind
		claims string
		change func(*Request)
		want   []string
	}{
		// The object as a whole.
		{"nothing", IDToken, ``, nil, []string{"claims"}},
		{"an array", IDToken, `[{"sub":"a"}]`, nil, []string{"claims"}},
		{"a string", IDToken, `"sub"`, nil, []string{"claims"}},
		{"null", IDToken, `null`, nil, []string{"claims"}},
		{"cut off", IDToken, `{"sub":"a"`, nil, []string{"claims"}},
		{"only space", IDToken, "  ", nil, []string{"claims"}},
		{"a second object", IDToken, `{"sub":"a"}{"sub":"b"}`, nil, []string{"claims"}},
		{"rubbish behind", IDToken, `{"sub":"a"} x`, nil, []string{"claims"}},
		{"a comma too many", IDToken, `{"sub":"a",}`, nil, []string{"claims"}},
		{"a byte order mark", IDToken, "\ufeff" + `{"sub":"a"}`, nil, []string{"claims"}},
		{"not UTF-8", IDToken, `{"sub":"a","name":"` + "\xff" + `"}`, nil, []string{"claims"}},
		{"not UTF-8 in a name", IDToken, `{"sub":"a","` + "\xc3\x28" + `":1}`, nil, []string{"claims"}},
		{"a surrogate in UTF-8", IDToken, `{"sub":"a","name":"` + "\xed\xa0\x80" + `"}`, nil, []string{"claims"}},
		{"a lone high surrogate", IDToken, `{"sub":"a","name":"\ud800"}`, nil, []string{"claims"}},
		{"a lone low surrogate in a name", IDToken, `{"sub":"a","\udc00":1}`, nil, []string{"claims"}},
		{"surrogates in the wrong order", IDToken, `{"sub":"a","n":["\udc00\ud800"]}`, nil, []string{"claims"}},
		{"the same name twice", IDToken, `{"sub":"a","sub":"a"}`, nil, []string{"claims"}},
		{"the same name twice, once escaped", IDToken, `{"sub":"a","s\u0075b":"a"}`, nil, []string{"claims"}},
		{"the same name twice, deep", IDToken, `{"sub":"a","x":[{"y":{"z":1,"z":2}}]}`, nil, []string{"claims"}},
		{"33 levels", IDToken, `{"sub":"a","x":` + deep(32) + `}`, nil, []string{"claims"}},
		{"33 levels of objects", IDToken, `{"sub":"a","x":` + strings.Repeat(`{"\"[":`, 32) + `1` + strings.Repeat(`}`, 32) + `}`, nil, []string{"claims"}},
		{"20000 levels", IDToken, `{"sub":"a","x":` + deep(20000) + `}`, nil, []string{"claims"}},
		{"over 64 KiB", IDToken, `{"sub":"a","x":"` + strings.Repeat("x", MaxClaimsBytes) + `"}`, nil, []string{"claims"}},
		{"NaN", IDToken, `{"sub":"a","x":NaN}`, nil, []string{"claims"}},
		{"a leading zero", IDToken, `{"sub":"a","x":01}`, nil, []string{"claims"}},
		{"a comment", IDToken, `{"sub":"a"/**/}`, nil, []string{"claims"}},
		{"a control character", IDToken, "{\"sub\":\"a\nb\"}", nil, []string{"claims"}},

		// The parties.
		{"another issuer", IDToken, `{"sub":"a","iss":"https://login.example.com/"}`, nil, []string{"claims.iss"}},
		{"iss as a list", IDToken, `{"sub":"a","iss":["` + testISS + `"]}`, nil, []string{"claims.iss"}},
		{"iss null", IDToken, `{"sub":"a","iss":null}`, nil, []string{"claims.iss"}},
		{"another audience", IDToken, `{"sub":"a","aud":"other"}`, nil, []string{"claims.aud"}},
		{"audiences without the client", IDToken, `{"sub":"a","aud":["x","y"]}`, nil, []string{"claims.aud"}},
		{"no audience in the list", IDToken, `{"sub":"a","aud":[]}`, nil, []string{"claims.aud"}},
		{"an empty audience", IDToken, `{"sub":"a","aud":["` + testClient + `",""]}`, nil, []string{"claims.aud"}},
		{"a number as audience", IDToken, `{"sub":"a","aud":["` + testClient + `",1]}`, nil, []string{"claims.aud"}},
		{"aud as an object", IDToken, `{"sub":"a","aud":{}}`, nil, []string{"claims.aud"}},
		{"userinfo for another audience", UserInfo, `{"sub":"a","aud":"other"}`, nil, []string{"claims.aud"}},
		{"userinfo for another audience too", UserInfo, `{"sub":"a","aud":["` + testClient + `","victim"]}`, nil, []string{"claims.aud"}},
		{"a logout token for another audience too", LogoutToken, `{"sub":"a","aud":["victim","` + testClient + `"]}`, nil, []string{"claims.aud"}},
		{"an authorization response for another audience too", AuthorizationResponse, `{"code":"c","aud":["` + testClient + `","victim"]}`, nil, []string{"claims.aud"}},
		{"an introspection for another audience too", Introspection, `{"token_introspection":{"active":true},"aud":["` + testClient + `","victim"]}`, nil, []string{"claims.aud"}},
		{"another audience too, with azp", UserInfo, `{"sub":"a","azp":"` + testClient + `","aud":["` + testClient + `","victim"]}`, nil, []string{"claims.aud"}},
		{"an audience twice", UserInfo, `{"sub":"a","aud":["` + testClient + `","` + testClient + `"]}`, nil, []string{"claims.aud"}},
		{"an access token issued to another party", AccessToken, `{"sub":"a","aud":"api","client_id":"` + testClient + `","azp":"other"}`, nil, []string{"claims.azp"}},
		{"issued to another party", IDToken, `{"sub":"a","azp":"other","aud":["other","` + testClient + `"]}`, nil, []string{"claims.azp"}},
		{"client_id of another", IDToken, `{"sub":"a","client_id":"other"}`, nil, []string{"claims.client_id"}},
		{"no client", IDToken, `{"sub":"a"}`, func(r *Request) { r.ClientID = "" }, []string{"client_id"}},
		{"a client that is not text", IDToken, `{"sub":"a"}`, func(r *Request) { r.ClientID = "\xff" }, []string{"client_id"}},
		{"access token of another client", AccessToken, `{"sub":"a","aud":"api","client_id":"other"}`, nil, []string{"claims.client_id"}},

		// The subject.
		{"no sub", IDToken, `{}`, nil, []string{"claims.sub"}},
		{"an empty sub", IDToken, `{"sub":""}`, nil, []string{"claims.sub"}},
		{"a long sub", IDToken, `{"sub":"` + strings.Repeat("s", 256) + `"}`, nil, []string{"claims.sub"}},
		{"sub as a number", IDToken, `{"sub":1}`, nil, []string{"claims.sub"}},
		{"userinfo without sub", UserInfo, `{}`, nil, []string{"claims.sub"}},

		// The times.
		{"exp in the past", IDToken, `{"sub":"a","exp":` + sec(0) + `}`, nil, []string{"claims.exp"}},
		{"exp this very second", IDToken, `{"sub":"a","iat":` + sec(-30) + `,"exp":` + sec(0) + `}`, nil, []string{"claims.exp"}},
		{"exp not after iat", IDToken, `{"sub":"a","iat":` + sec(30) + `,"exp":` + sec(30) + `}`, nil, []string{"claims.exp"}},
		{"exp beyond the maximum", IDToken, `{"sub":"a","exp":` + sec(3601) + `}`, nil, []string{"claims.exp"}},
		{"exp beyond the maximum from iat", IDToken, `{"sub":"a","iat":` + sec(-1) + `,"exp":` + sec(3600) + `}`, nil, []string{"claims.exp"}},
		{"exp disagrees with lifetime", IDToken, `{"sub":"a","exp":` + sec(361) + `}`, func(r *Request) { r.Lifetime = ptr(5 * time.Minute) }, []string{"claims.exp"}},
		{"exp disagrees with lifetime by a second from iat", IDToken, `{"sub":"a","iat":` + sec(0) + `,"exp":` + sec(301) + `}`, func(r *Request) { r.Lifetime = ptr(5 * time.Minute) }, []string{"claims.exp"}},
		{"exp as a string", IDToken, `{"sub":"a","exp":"` + sec(60) + `"}`, nil, []string{"claims.exp"}},
		{"exp with a fraction", IDToken, `{"sub":"a","exp":` + sec(60) + `.0}`, nil, []string{"claims.exp"}},
		{"exp with an exponent", IDToken, `{"sub":"a","exp":1.9e9}`, nil, []string{"claims.exp"}},
		{"exp below zero", IDToken, `{"sub":"a","exp":-1}`, nil, []string{"claims.exp"}},
		{"exp of zero", IDToken, `{"sub":"a","exp":0}`, nil, []string{"claims.exp"}},
		{"exp in milliseconds", IDToken, `{"sub":"a","exp":` + sec(60) + `000}`, nil, []string{"claims.exp"}},
		{"exp beyond 64 bits", IDToken, `{"sub":"a","exp":99999999999999999999}`, nil, []string{"claims.exp"}},
		{"iat too early", IDToken, `{"sub":"a","iat":` + sec(-61) + `}`, nil, []string{"claims.iat"}},
		{"iat too late", IDToken, `{"sub":"a","iat":` + sec(61) + `}`, nil, []string{"claims.iat"}},
		{"iat too late in userinfo", UserInfo, `{"sub":"a","iat":` + sec(61) + `}`, nil, []string{"claims.iat"}},
		{"iat as true", IDToken, `{"sub":"a","iat":true}`, nil, []string{"claims.iat"}},
		{"never valid", IDToken, `{"sub":"a","nbf":` + sec(300) + `}`, nil, []string{"claims.nbf"}},
		{"auth_time as a string", IDToken, `{"sub":"a","auth_time":"x"}`, nil, []string{"claims.auth_time"}},
		{"lifetime above the maximum", IDToken, `{"sub":"a"}`, func(r *Request) { r.Lifetime = ptr(time.Hour + time.Second) }, []string{"lifetime"}},
		{"lifetime of zero", IDToken, `{"sub":"a"}`, func(r *Request) { r.Lifetime = ptr(time.Duration(0)) }, []string{"lifetime"}},
		{"lifetime below zero", IDToken, `{"sub":"a"}`, func(r *Request) { r.Lifetime = ptr(-time.Second) }, []string{"lifetime"}},
		{"lifetime with a fraction", IDToken, `{"sub":"a"}`, func(r *Request) { r.Lifetime = ptr(1500 * time.Millisecond) }, []string{"lifetime"}},
		{"over before it is signed", IDToken, `{"sub":"a","iat":` + sec(-50) + `}`, func(r *Request) { r.Lifetime = ptr(50 * time.Second) }, []string{"lifetime"}},
		{"lifetime of userinfo", UserInfo, `{"sub":"a"}`, func(r *Request) { r.Lifetime = ptr(time.Minute) }, []string{"lifetime"}},

		// The table.
		{"exp in userinfo", UserInfo, `{"sub":"a","exp":` + sec(60) + `}`, nil, []string{"claims.exp"}},
		{"nonce in userinfo", UserInfo, `{"sub":"a","nonce":"n"}`, nil, []string{"claims.nonce"}},
		{"events in userinfo", UserInfo, `{"sub":"a","events":{}}`, nil, []string{"claims.events"}},
		{"events in an ID token", IDToken, `{"sub":"a","events":{}}`, nil, []string{"claims.events"}},
		{"an introspection in an ID token", IDToken, `{"sub":"a","token_introspection":{}}`, nil, []string{"claims.token_introspection"}},
		{"nonce and events in an access token", AccessToken, `{"sub":"a","aud":"api","client_id":"` + testClient + `","nonce":"n","events":null}`, nil, []string{"claims.nonce", "claims.events"}},
		{"an empty access token", AccessToken, `{}`, nil, []string{"claims.sub", "claims.aud", "claims.client_id"}},

		{"nonce in a logout token", LogoutToken, `{"sub":"a","nonce":null}`, nil, []string{"claims.nonce"}},
		{"a logout token of nobody", LogoutToken, `{}`, nil, []string{"claims.sub"}},
		{"a logout token of an empty session", LogoutToken, `{"sid":""}`, nil, []string{"claims.sid"}},
		{"a logout token of no session", LogoutToken, `{"sub":"a","sid":null}`, nil, []string{"claims.sid"}},
		{"a logout token of an empty sub", LogoutToken, `{"sub":"","sid":"s"}`, nil, []string{"claims.sub"}},
		{"a logout token of a long sub", LogoutToken, `{"sub":"` + strings.Repeat("s", 256) + `"}`, nil, []string{"claims.sub"}},
		{"a logout token for another audience", LogoutToken, `{"sub":"a","aud":"other"}`, nil, []string{"claims.aud"}},
		{"events without the logout", LogoutToken, `{"sub":"a","events":{}}`, nil, []string{"claims.events"}},
		{"events with another", LogoutToken, `{"sub":"a","events":{"http://schemas.openid.net/event/backchannel-logout/":{}}}`, nil, []string{"claims.events"}},
		{"events with the logout inside", LogoutToken, `{"sub":"a","events":{"x":{"http://schemas.openid.net/event/backchannel-logout":{}}}}`, nil, []string{"claims.events"}},
		{"a logout event that is no object", LogoutToken, `{"sub":"a","events":{"http://schemas.openid.net/event/backchannel-logout":[]}}`, nil, []string{"claims.events"}},
		{"events that are a list", LogoutToken, `{"sub":"a","events":["http://schemas.openid.net/event/backchannel-logout"]}`, nil, []string{"claims.events"}},
		{"events null", LogoutToken, `{"sub":"a","events":null}`, nil, []string{"claims.events"}},
		{"a hash in a logout token", LogoutToken, `{"sub":"a",` + at + `}`, nil, []string{"claims.at_hash"}},
		{"sub and events in an authorization response", AuthorizationResponse, `{"code":"c","sub":"a","events":{}}`, nil, []string{"claims.sub", "claims.events"}},
		{"a sub of the wrong form is told of once", AuthorizationResponse, `{"code":"c","sub":1}`, nil, []string{"claims.sub"}},
		{"an authorization response for another", AuthorizationResponse, `{"code":"c","aud":["other"]}`, nil, []string{"claims.aud"}},
		{"an authorization response beyond ten minutes", AuthorizationResponse, `{"code":"c","exp":` + sec(601) + `}`, nil, []string{"claims.exp"}},
		{"a long-lived authorization response", AuthorizationResponse, `{"code":"c"}`, func(r *Request) { r.Lifetime = ptr(601 * time.Second) }, []string{"lifetime"}},
		{"no introspection", Introspection, `{"active":true}`, nil, []string{"claims.token_introspection"}},
		{"an introspection that is null", Introspection, `{"token_introspection":null}`, nil, []string{"claims.token_introspection"}},
		{"an introspection that is a list", Introspection, `{"token_introspection":[]}`, nil, []string{"claims.token_introspection"}},
		{"an introspection beside what belongs inside", Introspection, `{"token_introspection":{"active":true},"sub":"a","exp":` + sec(60) + `}`, nil, []string{"claims.sub", "claims.exp"}},
		{"an introspection without active", Introspection, `{"token_introspection":{"sub":"a"}}`, nil, []string{"claims.token_introspection"}},
		{"an introspection whose active is text", Introspection, `{"token_introspection":{"active":"true"}}`, nil, []string{"claims.token_introspection"}},
		{"an introspection whose active is null", Introspection, `{"token_introspection":{"active":null}}`, nil, []string{"claims.token_introspection"}},
		{"an introspection whose active is inside", Introspection, `{"token_introspection":{"a":{"active":true}}}`, nil, []string{"claims.token_introspection"}},
		{"an introspection that is active by another case", Introspection, `{"token_introspection":{"active":false,"\u0041ctive":true}}`, nil, []string{"claims.token_introspection"}},
		{"an introspection with events", Introspection, `{"token_introspection":{"active":false},"events":{}}`, nil, []string{"claims.events"}},
		{"introspections in others", UserInfo, `{"sub":"a","token_introspection":{}}`, nil, []string{"claims.token_introspection"}},
		{"lifetime of an introspection", Introspection, `{"token_introspection":{"active":true}}`, func(r *Request) { r.Lifetime = ptr(time.Minute) }, []string{"lifetime"}},
		{"an introspection for nobody", Introspection, `{"token_introspection":{"active":true}}`, func(r *Request) { r.ClientID = "" }, []string{"client_id"}},
		{"an authorization code in an ID token", IDToken, `{"sub":"a","code":"c","error":"e","access_token":"t","id_token":"t"}`, nil, []string{"claims.code", "claims.error", "claims.access_token", "claims.id_token"}},
		{"a hash in a UserInfo response", UserInfo, `{"sub":"a",` + at + `}`, nil, []string{"claims.at_hash"}},

		// Names that some readers take for others.
		{"EXP in userinfo", UserInfo, `{"sub":"a","EXP":` + sec(60) + `}`, nil, []string{"claims.exp"}},
		{"Events in an ID token", IDToken, `{"sub":"a","Events":{}}`, nil, []string{"claims.events"}},
		{"events with a long s", IDToken, `{"sub":"a","event\u017f":{}}`, nil, []string{"claims.events"}},
		{"Azp in an ID token", IDToken, `{"sub":"a","Azp":"evil"}`, nil, []string{"claims.azp"}},
		{"Azp beside azp", IDToken, `{"sub":"a","azp":"` + testClient + `","a\u005ap":"evil"}`, nil, []string{"claims.azp"}},
		{"Client_ID in UserInfo", UserInfo, `{"sub":"a","Client_ID":"evil"}`, nil, []string{"claims.client_id"}},
		{"Nbf in an ID token", IDToken, `{"sub":"a","Nbf":` + sec(99999) + `}`, nil, []string{"claims.nbf"}},
		{"Iat in UserInfo", UserInfo, `{"sub":"a","IAT":1}`, nil, []string{"claims.iat"}},
		{"hashes in capitals", IDToken, `{"sub":"a","AT_HASH":"x","C_Hash":"x","\u017f_hash":"x"}`, nil, []string{"claims.at_hash", "claims.c_hash", "claims.s_hash"}},
		{"hashes in capitals where there are none", UserInfo, `{"sub":"a","At_hash":"x"}`, nil, []string{"claims.at_hash"}},
		{"Aud and Iss", LogoutToken, `{"sub":"a","Aud":"victim","iSS":"x"}`, nil, []string{"claims.iss", "claims.aud"}},
		{"Jti and Sid", IDToken, `{"sub":"a","Jti":"x","Sid":"x"}`, nil, []string{"claims.jti", "claims.sid"}},
		{"Nonce in an authorization response", AuthorizationResponse, `{"code":"c","Nonce":"n"}`, nil, []string{"claims.nonce"}},
		{"a second sub", IDToken, `{"sub":"a","Sub":"b"}`, nil, []string{"claims.sub"}},
		{"a second exp", AccessToken, `{"sub":"a","aud":"api","client_id":"` + testClient + `","exp":` + sec(60) + `,"Exp":` + sec(99999) + `}`, nil, []string{"claims.exp"}},

		// Other known claims.
		{"an empty jti", AccessToken, `{"sub":"a","aud":"api","client_id":"` + testClient + `","jti":""}`, nil, []string{"claims.jti"}},
		{"jti as a number", AccessToken, `{"sub":"a","aud":"api","client_id":"` + testClient + `","jti":7}`, nil, []string{"claims.jti"}},
		{"amr as a string", IDToken, `{"sub":"a","amr":"pwd"}`, nil, []string{"claims.amr"}},
		{"nonce as a number", IDToken, `{"sub":"a","nonce":1}`, nil, []string{"claims.nonce"}},

		// Hash claims.
		{"at_hash of another token", IDToken, `{"sub":"a",` + at + `}`, func(r *Request) { r.AccessToken = "other" }, []string{"claims.at_hash"}},
		{"c_hash of another code", IDToken, `{"sub":"a","c_hash":""}`, func(r *Request) { r.Code = "other" }, []string{"claims.c_hash"}},
		{"s_hash of another state", IDToken, `{"sub":"a","s_hash":"77QmUPtjPfzWtF2AnpK9RQ"}`, func(r *Request) { r.State = "other" }, []string{"claims.s_hash"}},
		{"at_hash as an object", IDToken, `{"sub":"a","at_hash":{}}`, nil, []string{"claims.at_hash"}},
		{"a code that is not ASCII", IDToken, `{"sub":"a"}`, func(r *Request) { r.Code = "é" }, []string{"code"}},
		{"inputs of hashes beside userinfo", UserInfo, `{"sub":"a"}`, func(r *Request) { r.AccessToken, r.Code, r.State = "a", "c", "s" }, []string{"access_token", "code", "state"}},

		// All at once.
		{"everything", IDToken, `{"iss":"x","aud":"y","exp":1,"iat":2,"events":1,"nonce":false}`, func(r *Request) { r.State = "\n" },
			[]string{"claims.nonce", "claims.sub", "claims.events", "claims.iss", "claims.aud", "claims.iat", "claims.exp", "state"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := request(tt.kind, tt.claims)
			if tt.change != nil {
				tt.change(&req)
			}
			p, err := Prepare(req, kms.RS256, testNow)
			if err == nil {
				t.Fatalf("accepted as %s", p.JSON())
			}
			if diff := cmp.Diff(tt.want, fieldsOf(t, err)); diff != "" {
				t.Errorf("violated fields (-want +got):\n%s%v", diff, err)
			}
		})
	}
}

func TestBoundsAreInclusive(t *testing.T) {
	for name, claims := range map[string]string{
		"32 levels":        `{"sub":"a","x":` + strings.Repeat(`[`, 31) + strings.Repeat(`]`, 31) + `}`,
		"brackets in text": `{"sub":"a","x":["` + strings.Repeat(`[{\"`, 100) + `"]}`,
		"64 KiB":           `{"sub":"a","x":"` + strings.Repeat("x", MaxClaimsBytes-len(`{"sub":"a","x":""}`)) + `"}`,
		"sub of 255":       `{"sub":"` + strings.Repeat("s", 255) + `"}`,
		"iat 60 s ago":     `{"sub":"a","iat":` + sec(-60) + `}`,
		"iat in 60 s":      `{"sub":"a","iat":` + sec(60) + `}`,
		"max_lifetime":     `{"sub":"a","exp":` + sec(3600) + `}`,
		"paired surrogate": `{"sub":"\ud83d\ude00"}`,
		"azp and aud":      `{"sub":"a","azp":"` + testClient + `","aud":["api","` + testClient + `"]}`,
	} {
		t.Run(name, func(t *testing.T) { mustPrepare(t, request(IDToken, claims), kms.ES256) })
	}
}

// Names that matter to some kinds only are free in the others, in any case.
func TestNamesThatNobodyJudgesAreFree(t *testing.T) {
	mustPrepare(t, request(UserInfo, `{"sub":"a","CODE":"c","Error":"e","Email":"a","subject":"b"}`), kms.ES256)
}

func TestErrorsNeverHoldAValue(t *testing.T) {
	const secret = "hunter2"
	for _, claims := range []string{
		`{"sub":1,"iss":"hunter2","aud":"hunter2","azp":"hunter2","client_id":"hunter2","nonce":["hunter2"],"amr":"hunter2"}`,
		`{"sub":"a","at_hash":"hunter2"}`,
		`{"hunter2":1,"hunter2":2}`,
		`{"sub":"hunter2` + "\xff" + `"}`,
		`{"sub":"hunter2\ud800"}`,
		`{"x":{"hunter2":[hunter2]}}`,
		`hunter2`,
	} {
		req := request(IDToken, claims)
		req.AccessToken, req.Code = "token-hunter2", "hunter2é"
		_, err := Prepare(req, kms.ES256, testNow)
		if err == nil {
			t.Errorf("%s was accepted", claims)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error of %q holds the value: %v", claims, err)
		}
	}
}

func TestUnknownKindsAndAlgorithmsAreRefused(t *testing.T) {
	for _, kind := range []TokenKind{"", "LOGOUT", "TOKEN_KIND_UNSPECIFIED", "id_token"} {
		if _, err := Prepare(request(kind, `{"sub":"a"}`), kms.ES256, testNow); !errors.Is(err, ErrKindUnsupported) {
			t.Errorf("kind %q: error = %v, want ErrKindUnsupported", kind, err)
		}
		if kind.ClientBound() {
			t.Errorf("kind %q is client-bound", kind)
		}
	}
	for _, alg := range []kms.Algorithm{"", "none", "HS1", "hs256", "ES256K"} {
		if _, err := Prepare(request(IDToken, `{"sub":"a"}`), alg, testNow); err == nil {
			t.Errorf("algorithm %q was accepted", alg)
		}
	}
}

// The values are those of OpenID Connect Core 1.0, appendices A.3, A.4 and
// A.6, and for SHA-384 and SHA-512 those of issue 1125 of the OpenID Connect
// working group.
func TestHashClaimsArePublishedOnes(t *testing.T) {
	const (
		coreToken = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"
		coreCode  = "Qcb0Orv1zh30vL1MPRsbm-diHiMwcLyZvn1arpZv-Jxf_11jnpEX3Tgfvk"
		wgToken   = "YmJiZTAwYmYtMzgyOC00NzhkLTkyOTItNjJjNDM3MGYzOWIy9sFhvH8K_x8UIHj1osisS57f5DduL"
	)
	tests := []struct {
		alg                kms.Algorithm
		token, code, state string
		want               map[string]string
	}{
		{kms.RS256, coreToken, "", "", map[string]string{"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}},
		{kms.RS256, "", coreCode, "", map[string]string{"c_hash": "LDktKdoQak3Pk0cnXxCltA"}},
		{kms.RS256, coreToken, coreCode, "", map[string]string{"at_hash": "77QmUPtjPfzWtF2AnpK9RQ", "c_hash": "LDktKdoQak3Pk0cnXxCltA"}},
		{kms.ES256, "", "", coreCode, map[string]string{"s_hash": "LDktKdoQak3Pk0cnXxCltA"}},
		{kms.PS256, wgToken, "", "", map[string]string{"at_hash": "xsZZrUssMXjL3FBlzoSh2g"}},
		{kms.PS384, wgToken, "", "", map[string]string{"at_hash": "adt46pcdiB-l6eTNifgoVM-5AIJAxq84"}},
		{kms.ES384, wgToken, "", "", map[string]string{"at_hash": "adt46pcdiB-l6eTNifgoVM-5AIJAxq84"}},
		{kms.PS512, wgToken, "", "", map[string]string{"at_hash": "p2LHG4H-8pYDc0hyVOo3iIHvZJUqe9tbj3jESOuXbkY"}},
		{kms.ES512, wgToken, "", "", map[string]string{"at_hash": "p2LHG4H-8pYDc0hyVOo3iIHvZJUqe9tbj3jESOuXbkY"}},
		{kms.EdDSA, wgToken, "", "", map[string]string{"at_hash": "p2LHG4H-8pYDc0hyVOo3iIHvZJUqe9tbj3jESOuXbkY"}},
		{kms.Ed25519, wgToken, "", "", map[string]string{"at_hash": "p2LHG4H-8pYDc0hyVOo3iIHvZJUqe9tbj3jESOuXbkY"}},
	}
	for _, tt := range tests {
		req := request(IDToken, `{"sub":"a"}`)
		req.AccessToken, req.Code, req.State = tt.token, tt.code, tt.state
		got := map[string]string{}
		var all map[string]any
		if err := json.Unmarshal(mustPrepare(t, req, tt.alg).JSON(), &all); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"at_hash", "c_hash", "s_hash"} {
			if v, ok := all[name].(string); ok {
				got[name] = v
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: hash claims (-want +got):\n%s", tt.alg, diff)
		}

		// Given and right is accepted, and not added again.
		claims, _ := json.Marshal(map[string]string{"sub": "a", "at_hash": hashClaim(tt.alg, "t")})
		req = request(IDToken, string(claims))
		req.AccessToken = "t"
		if n := bytes.Count(mustPrepare(t, req, tt.alg).JSON(), []byte("at_hash")); n != 1 {
			t.Errorf("%s: at_hash stands %d times in the token", tt.alg, n)
		}
	}
}

func TestEveryRowOfTheTableCanBeFilled(t *testing.T) {
	for kind, row := range kinds {
		if slices.Contains(row.filled, claimEXP) != row.expires {
			t.Errorf("%s: expires is %v and filled says otherwise", kind, row.expires)
		}
		for _, c := range row.required {
			if slices.Contains(row.forbidden, c) || slices.Contains(row.filled, c) {
				t.Errorf("%s: %s is required and also filled or forbidden", kind, c.name())
			}
		}
		if len(row.either) == 1 {
			t.Errorf("%s: a choice of one claim is no choice", kind)
		}
		// Nothing the table fills may lack a rule in complete.
		p := preparation{req: &Request{Kind: kind, ClientID: "c"}, rules: row, claims: claimsObject{object: []byte("{}")}}
		if _, err := p.complete(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func FuzzPrepare(f *testing.F) {
	for _, claims := range []string{
		`{"sub":"a"}`, `{}`, `{"sub":"a","x":[1,{"y":"\ud83d\ude00"}]}`, ` { "sub" : "\u0061" , "n" : 1e400 } `,
		`{"sub":"a","aud":["` + testClient + `"],"exp":` + sec(60) + `,"amr":["pwd"]}`,
		`{"sub":"a","sub":"b"}`, `{"sub":"a","x":"\ud800"}`, "{\"sub\":\"\xff\"}", `[[[[`, `{"a":{"a":{"a":{}}}}`,
		`{"s\u0075b":"a","client_id":"` + testClient + `","aud":"x","jti":"j"}`,
		`{"sub":"a","aud":["` + testClient + `","x"]}`, `{"sub":"a","aud":["` + testClient + `","x"],"azp":"` + testClient + `"}`,
	} {
		for i := range 6 {
			f.Add([]byte(claims), byte(i))
		}
	}
	kindOf := [...]TokenKind{IDToken, UserInfo, AccessToken, LogoutToken, AuthorizationResponse, Introspection}
	f.Fuzz(func(t *testing.T, claims []byte, n byte) {
		kind := kindOf[int(n)%len(kindOf)]
		req := request(kind, string(claims))
		p, err := Prepare(req, kms.ES256, testNow)
		if err != nil {
			fieldsOf(t, err)
			return
		}
		// encoding/json reads the token, and sees every member of the claims
		// with the bytes it had there.
		var in, out map[string]json.RawMessage
		if err := json.Unmarshal(claims, &in); err != nil {
			t.Fatalf("accepted, and encoding/json refuses the claims: %v", err)
		}
		if err := json.Unmarshal(p.JSON(), &out); err != nil {
			t.Fatalf("encoding/json refuses the payload %q: %v", p.JSON(), err)
		}
		for name, value := range in {
			if !bytes.Equal(out[name], value) {
				t.Errorf("member %q was %q and became %q", name, value, out[name])
			}
		}
		if want := len(in) + missing(kind, in); len(out) != want {
			t.Errorf("the payload has %d members, want %d", len(out), want)
		}
		if trimmed := bytes.TrimRight(bytes.TrimSpace(claims), "}"); !bytes.HasPrefix(p.JSON(), trimmed) {
			t.Errorf("the payload %q does not begin with the claims %q", p.JSON(), trimmed)
		}
		var iss string
		if err := json.Unmarshal(out["iss"], &iss); err != nil || iss != testISS {
			t.Errorf("iss is %q", out["iss"])
		}
	})
}

// missing counts the claims that the kind fills and in lacks, by a list that
// is not the table's.
func missing(kind TokenKind, in map[string]json.RawMessage) (n int) {
	for _, name := range map[TokenKind][]string{
		IDToken:               {"iss", "aud", "iat", "exp"},
		LogoutToken:           {"iss", "aud", "iat", "exp", "jti", "events"},
		UserInfo:              {"iss", "aud"},
		AuthorizationResponse: {"iss", "aud", "exp"},
		Introspection:         {"iss", "aud", "iat"},
		AccessToken:           {"iss", "iat", "exp", "jti"},
	}[kind] {
		if _, ok := in[name]; !ok {
			n++
		}
	}
	var audiences []string
	if json.Unmarshal(in["aud"], &audiences) == nil && kind == IDToken && in["azp"] == nil &&
		slices.ContainsFunc(audiences, func(a string) bool { return a != testClient }) {
		n++
	}
	return n
}
