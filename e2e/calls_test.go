package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// sub is the claims of a token that says nothing but its subject.
var sub = []byte(`{"sub":"alice"}`)

// idToken asks for an ID token.
func idToken(clientID string) *bullav1.SignAndEncryptRequest {
	return &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: clientID, Claims: sub}
}

// setting is how ID tokens are made.
func setting(alg, enc string) *bullav1.ResponseSetting {
	return &bullav1.ResponseSetting{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: alg, ContentEncryption: enc}
}

// withJWKS registers a JWK Set with the given settings, ECDH-ES for ID tokens if
// there are none.
func withJWKS(clientID string, jwks []byte, settings ...*bullav1.ResponseSetting) *bullav1.RegisterClientKeyRequest {
	return &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: clientID, Settings: orECDH(settings),
		KeySource: &bullav1.RegisterClientKeyRequest_Jwks{Jwks: jwks},
	}
}

// withURI is withJWKS for a jwks_uri.
func withURI(clientID, uri string, settings ...*bullav1.ResponseSetting) *bullav1.RegisterClientKeyRequest {
	return &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: clientID, Settings: orECDH(settings),
		KeySource: &bullav1.RegisterClientKeyRequest_JwksUri{JwksUri: uri},
	}
}

func orECDH(settings []*bullav1.ResponseSetting) []*bullav1.ResponseSetting {
	if len(settings) == 0 {
		return []*bullav1.ResponseSetting{setting("ECDH-ES", "A128GCM")}
	}
	return settings
}

// mustRegister registers a client.
func mustRegister(t testing.TB, c *client.Client, req *bullav1.RegisterClientKeyRequest) *bullav1.ClientKey {
	t.Helper()
	res, err := c.ClientKeys.RegisterClientKey(t.Context(), req)
	if err != nil {
		t.Fatalf("register %s: %v", req.GetClientId(), err)
	}
	return res.GetClientKey()
}

// mustIssue issues a token.
func mustIssue(t testing.TB, c *client.Client, req *bullav1.SignAndEncryptRequest) *bullav1.SignAndEncryptResponse {
	t.Helper()
	res, err := c.Tokens.SignAndEncrypt(t.Context(), req)
	if err != nil {
		t.Fatalf("issue for %s: %v", req.GetClientId(), err)
	}
	return res
}

// clientKeys are P-256 keys, made once: a test that needs any key takes one of
// these.
var clientKeys = sync.OnceValue(func() []harness.ClientKey {
	var keys []harness.ClientKey
	t := harness.NewStandalone("keys")
	defer t.Close()
	for i := range 2 {
		keys = append(keys, harness.NewClientKey(t, "P-256", "client-"+strconv.Itoa(i)))
	}
	return keys
})

func anyKey() harness.ClientKey   { return clientKeys()[0] }
func otherKey() harness.ClientKey { return clientKeys()[1] }

var rsaKey = sync.OnceValue(func() harness.ClientKey {
	t := harness.NewStandalone("keys")
	defer t.Close()
	return harness.NewClientKey(t, "", "client-rsa")
})

// opener opens tokens of a service's issuer with the client's key.
func opener(t testing.TB, s *harness.Service, key harness.ClientKey, cfg client.OpenConfig) *client.Opener {
	t.Helper()
	var err error
	if key.Key != nil {
		if cfg.Keys, err = client.ParseKeys(key.PrivateJWK()); err != nil {
			t.Fatal(err)
		}
	}
	if cfg.Signers, err = client.ParseSigners(signers(t, s)); err != nil {
		t.Fatal(err)
	}
	o, err := client.NewOpener(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// signers is the JWK Set of the service's issuer, as verifiers fetch it.
func signers(t testing.TB, s *harness.Service) []byte {
	t.Helper()
	code, _, doc := s.Get(t, s.HTTP, "/jwks/"+harness.Issuer)
	if code != 200 {
		t.Fatalf("jwks: %d %s", code, doc)
	}
	return []byte(doc)
}

// open opens a token as the client would.
func open(t testing.TB, s *harness.Service, key harness.ClientKey, token string) *client.Token {
	t.Helper()
	opened, err := opener(t, s, key, clientConfig()).Open(token)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return opened
}

// claim is a member of an opened token's claims.
func claim(t testing.TB, token *client.Token, name string) any {
	t.Helper()
	var claims map[string]any
	if err := json.Unmarshal(token.Claims, &claims); err != nil {
		t.Fatal(err)
	}
	return claims[name]
}

// failure is all that a caller learns of a failed call.
type failure struct {
	code       codes.Code
	reason     string
	text       string
	violations map[string]string
	retry      time.Duration // of RetryInfo; 0 for none
}

func (f failure) String() string {
	return fmt.Sprintf("%s %s: %s (violations %v, retry %v)", f.code, f.reason, f.text, f.violations, f.retry)
}

// errorf is fmt.Errorf, by a short name for conditions that are waited for.
func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

func failureOf(t testing.TB, err error) failure {
	t.Helper()
	st, ok := status.FromError(err)
	if !ok {
		t.Fatalf("%v is no status", err)
	}
	f := failure{code: st.Code(), text: st.Message(), violations: map[string]string{}}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() != "bulla" {
				t.Errorf("ErrorInfo has the domain %q, want bulla", d.GetDomain())
			}
			f.reason = d.GetReason()
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				f.violations[v.GetField()] = v.GetDescription()
			}
		case *errdetails.RetryInfo:
			f.retry = d.GetRetryDelay().AsDuration()
		default:
			t.Errorf("unexpected detail %T", d)
		}
	}
	return f
}

// codeOf is the gRPC code of each reason, as proto/bulla/v1/error_reason.proto
// says.
var codeOf = map[string]codes.Code{
	"ISSUER_UNKNOWN": codes.NotFound, "CLIENT_NOT_REGISTERED": codes.NotFound,
	"CLIENT_ALREADY_REGISTERED": codes.AlreadyExists,
	"CLAIMS_INVALID":            codes.InvalidArgument, "KEY_REJECTED": codes.InvalidArgument, "URI_REJECTED": codes.InvalidArgument, "ALGORITHM_NOT_ALLOWED": codes.InvalidArgument,
	"CLIENT_KEY_UNUSABLE": codes.FailedPrecondition, "CLIENT_KEYS_EXPIRED": codes.FailedPrecondition, "ENCRYPTION_REQUIRED": codes.FailedPrecondition, "KEY_SOURCE_NOT_REFRESHABLE": codes.FailedPrecondition, "NO_NEXT_SIGNING_KEY": codes.FailedPrecondition,
	"CLIENT_KEYS_UNAVAILABLE": codes.Unavailable, "SIGNING_KEY_UNAVAILABLE": codes.Unavailable, "REGISTRY_UNAVAILABLE": codes.Unavailable, "AUDIT_UNAVAILABLE": codes.Unavailable,
	"REFRESH_LIMITED":   codes.ResourceExhausted,
	"QUOTA_EXCEEDED":    codes.ResourceExhausted,
	"REVISION_MISMATCH": codes.Aborted,
	"CALLER_UNKNOWN":    codes.Unauthenticated, "CALLER_NOT_ALLOWED": codes.PermissionDenied, "CLAIMS_NOT_ALLOWED": codes.PermissionDenied,
}

// mustFail holds an error against a reason, with the code and the RetryInfo that
// belong to it, and with words that its text or its violations must have.
func mustFail(t testing.TB, err error, reason string, words ...string) failure {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want %s", reason)
	}
	f := failureOf(t, err)
	want, known := codeOf[reason]
	if !known {
		t.Fatalf("the test asks for the unknown reason %q", reason)
	}
	if f.code != want || f.reason != reason {
		t.Fatalf("got %v, want %s with %s", f, want, reason)
	}
	retriable := want == codes.Unavailable || want == codes.ResourceExhausted
	if got := f.retry > 0; got != retriable {
		t.Errorf("got %v, want RetryInfo: %v", f, retriable)
	}
	mustHaveWords(t, f, words...)
	return f
}

// mustBe holds an error without a reason of ours against its code.
func mustBe(t testing.TB, err error, code codes.Code, words ...string) failure {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want %s", code)
	}
	f := failureOf(t, err)
	if f.code != code || f.reason != "" {
		t.Fatalf("got %v, want %s and no reason", f, code)
	}
	mustHaveWords(t, f, words...)
	return f
}

func mustHaveWords(t testing.TB, f failure, words ...string) {
	t.Helper()
	all := f.String()
	for _, w := range words {
		if !strings.Contains(all, w) {
			t.Errorf("got %v, want %q in it", f, w)
		}
	}
}

// trailer returns the trailer of a failed call.
func trailer(t testing.TB, call func(context.Context, ...grpc.CallOption) error) metadata.MD {
	t.Helper()
	var md metadata.MD
	if err := call(t.Context(), grpc.Trailer(&md)); err == nil {
		t.Fatal("got no error")
	}
	return md
}

// mustHavePushback checks the trailer that goes with RetryInfo (gRFC A6).
func mustHavePushback(t testing.TB, md metadata.MD) {
	t.Helper()
	values := md.Get("grpc-retry-pushback-ms")
	if len(values) != 1 {
		t.Fatalf("got the trailer %v, want one grpc-retry-pushback-ms", md)
	}
	if ms, err := strconv.Atoi(values[0]); err != nil || ms <= 0 {
		t.Errorf("got the pushback %q, want milliseconds", values[0])
	}
}

// reasons of audit lines, in order.
func outcomes(lines []harness.AuditLine) []string {
	var out []string
	for _, l := range lines {
		out = append(out, strings.TrimSuffix(l.Outcome+" "+l.Reason, " "))
	}
	return out
}

func mustHaveOutcomes(t testing.TB, lines []harness.AuditLine, want ...string) {
	t.Helper()
	if got := outcomes(lines); !slices.Equal(got, want) {
		t.Errorf("got the audit lines %q, want %q", got, want)
	}
}

// clientConfig is an OpenConfig that checks the issuer.
func clientConfig() client.OpenConfig { return client.OpenConfig{Issuer: harness.IssuerURL} }
