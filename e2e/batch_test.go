package e2e

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// limited is a caller that issues for the clients many-… alone.
const limited = "spiffe://example.com/limited"

// startMany starts a service for tests of batches and streams. It knows the
// clients many-0 to many-3 and foreign, all with anyKey.
func startMany(t testing.TB) *harness.Service {
	t.Helper()
	s := harness.Start(t, harness.Config{
		Token: shared.token, Algorithms: []kms.Algorithm{kms.ES256, kms.RS256}, CA: shared.ca,
		Grants: []harness.M{
			{"caller": limited, "allow": []string{"issue"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN"}, "clients": []string{"many-*"}},
		},
	})
	admin := s.Caller(t, harness.Admin)
	for _, id := range []string{"many-0", "many-1", "many-2", "many-3", "foreign"} {
		mustRegister(t, admin, withJWKS(id, harness.JWKS(anyKey())))
	}
	return s
}

func TestBatches(t *testing.T) {
	t.Parallel()
	s := startMany(t)
	o := opener(t, s, anyKey(), clientConfig())
	caller := s.Caller(t, limited)

	t.Run("items fail alone and in order", func(t *testing.T) {
		wrong := idToken("many-1")
		wrong.Claims = []byte(`{"sub":"alice","exp":1}`)
		logout := idToken("many-1")
		logout.TokenKind = bullav1.TokenKind_TOKEN_KIND_LOGOUT_TOKEN
		named := idToken("many-2")
		named.Claims = []byte(`{"sub":"bob"}`)
		before := len(s.Audit(t))
		res, err := caller.Tokens.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{
			Items: []*bullav1.SignAndEncryptRequest{idToken("many-1"), idToken("foreign"), wrong, logout, idToken("many-none"), {}, named},
		})
		if err != nil {
			t.Fatal(err)
		}
		want := []struct{ reason, word string }{
			{"", "alice"}, {"CALLER_NOT_ALLOWED", "foreign"}, {"CLAIMS_INVALID", "claims.exp"}, {"CALLER_NOT_ALLOWED", "LOGOUT_TOKEN"},
			{"CLIENT_NOT_REGISTERED", ""}, {"", "client_id"}, {"", "bob"},
		}
		if len(res.GetResults()) != len(want) {
			t.Fatalf("%d results, want %d", len(res.GetResults()), len(want))
		}
		for i, r := range res.GetResults() {
			switch err := status.ErrorProto(r.GetStatus()); {
			case want[i].reason != "":
				mustFail(t, err, want[i].reason, want[i].word)
			case i == 5:
				mustBe(t, err, codes.InvalidArgument, want[i].word)
			default:
				opened, err := o.Open(r.GetReply().GetToken())
				if err != nil {
					t.Fatalf("item %d: %v", i, err)
				}
				if got := claim(t, opened, "sub"); got != want[i].word {
					t.Errorf("item %d is of %v, want %s", i, got, want[i].word)
				}
			}
		}
		// Each of them is on record by itself, as of a batch.
		reasons := make(map[string]int)
		for _, line := range s.Audit(t)[before:] {
			reasons[line.ClientID+" "+line.Outcome+" "+line.Reason]++
			if line.Caller != limited || line.RPC != "/bulla.v1.TokenService/BatchSignAndEncrypt" {
				t.Errorf("on record: %+v", line)
			}
		}
		for _, want := range []string{
			"many-1 issued ", "foreign denied CALLER_NOT_ALLOWED", "many-1 failed CLAIMS_INVALID", "many-1 denied CALLER_NOT_ALLOWED",
			"many-none failed CLIENT_NOT_REGISTERED", "many-2 issued ",
		} {
			if reasons[want] != 1 {
				t.Errorf("on record is %v, want %q once", reasons, want)
			}
		}
		metrics := s.Metrics(t)
		for sample, want := range map[string]float64{
			`bulla_items_total{code="OK",method="BatchSignAndEncrypt",reason=""}`:                                 2,
			`bulla_items_total{code="PermissionDenied",method="BatchSignAndEncrypt",reason="CALLER_NOT_ALLOWED"}`: 2,
			`bulla_items_total{code="InvalidArgument",method="BatchSignAndEncrypt",reason="CLAIMS_INVALID"}`:      1,
			`bulla_items_total{code="InvalidArgument",method="BatchSignAndEncrypt",reason="InvalidArgument"}`:     1,
			`bulla_items_total{code="NotFound",method="BatchSignAndEncrypt",reason="CLIENT_NOT_REGISTERED"}`:      1,
			`bulla_rpcs_total{code="OK",method="BatchSignAndEncrypt",reason=""}`:                                  1,
		} {
			if got := metrics[sample]; got != want {
				t.Errorf("%s is %v, want %v", sample, got, want)
			}
		}
	})

	t.Run("a stranger gets nothing", func(t *testing.T) {
		res, err := s.Caller(t, stranger).Tokens.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{Items: []*bullav1.SignAndEncryptRequest{idToken("many-1"), idToken("many-2")}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range res.GetResults() {
			mustFail(t, status.ErrorProto(r.GetStatus()), "CALLER_UNKNOWN", stranger)
		}
	})

	t.Run("too many are refused as a whole", func(t *testing.T) {
		items := make([]*bullav1.SignAndEncryptRequest, 257)
		for i := range items {
			items[i] = idToken("many-1")
		}
		before := len(s.Audit(t))
		_, err := caller.Tokens.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{Items: items})
		mustBe(t, err, codes.InvalidArgument, "send at most 256 in one batch")
		if after := len(s.Audit(t)); after != before {
			t.Errorf("%d lines on record of a batch that was refused", after-before)
		}
	})

	t.Run("the largest is answered", func(t *testing.T) {
		// 96 items of 64 KiB are two batches, of which each answer is larger than
		// gRPC receives by default.
		items := make([]*bullav1.SignAndEncryptRequest, 96)
		for i := range items {
			items[i] = idToken("many-1")
			head, tail := fmt.Sprintf(`{"sub":"%d","x":"`, i), `"}`
			items[i].Claims = append(append([]byte(head), bytes.Repeat([]byte{'x'}, 64<<10-len(head)-len(tail))...), tail...)
		}
		for i, r := range caller.SignAndEncryptAll(t.Context(), items) {
			if r.Err != nil {
				t.Fatalf("item %d: %v", i, r.Err)
			}
			if i%19 != 0 {
				continue
			}
			opened, err := o.Open(r.Reply.GetToken())
			if err != nil {
				t.Fatal(err)
			}
			if got := claim(t, opened, "sub"); got != fmt.Sprint(i) {
				t.Errorf("item %d is of %v", i, got)
			}
		}
	})

	t.Run("a cancellation stops the work", func(t *testing.T) {
		items := make([]*bullav1.SignAndEncryptRequest, 256)
		for i := range items {
			items[i] = idToken("many-3")
			items[i].SigningAlgorithm = "RS256" // takes its time
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for len(s.AuditOf(t, "many-3")) == 0 && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		_, err := caller.Tokens.BatchSignAndEncrypt(ctx, &bullav1.BatchSignAndEncryptRequest{Items: items})
		mustBe(t, err, codes.Canceled)
		settled := -1
		for lines := len(s.AuditOf(t, "many-3")); lines != settled; lines = len(s.AuditOf(t, "many-3")) {
			settled = lines
			time.Sleep(300 * time.Millisecond)
		}
		if settled >= len(items) {
			t.Errorf("all %d items were begun", settled)
		}
		t.Logf("%d of %d were begun", settled, len(items))
	})
}
