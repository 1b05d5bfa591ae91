package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/encrypter/keycache"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/signer"
)

// makes is a Sealer of one function.
type makes func(ctx context.Context, r seal.Request) (*seal.Result, error)

func (m makes) SignAndEncrypt(ctx context.Context, r seal.Request) (*seal.Result, error) {
	return m(ctx, r)
}
func (m makes) Sign(ctx context.Context, r seal.Request) (*seal.Result, error) { return m(ctx, r) }

// serveMany runs a Server in development that makes tokens by m.
func serveMany(t *testing.T, m makes, log *slog.Logger) (bullav1.TokenServiceClient, *observer, *Server) {
	t.Helper()
	seen := &observer{}
	conn, srv := serveOn(t, Config{
		Plaintext: true, Issuers: issuer.NewDirectory(), Sealer: m, Authorizer: authz.Development(),
		SigningKeys: noKeys{}, Auditor: &auditor{}, Observer: seen, Watches: noWatches(t), Replica: noReplica(), Logger: log,
	})
	return bullav1.NewTokenServiceClient(conn), seen, srv
}

// forClient makes tokens that name their client, slower for some, so that they
// do not finish in order; the client's name may ask for trouble instead.
func forClient(_ context.Context, r seal.Request) (*seal.Result, error) {
	switch {
	case strings.HasPrefix(r.ClientID, "panic"):
		panic(string(r.Claims))
	case strings.HasPrefix(r.ClientID, "claims"):
		return nil, &signer.ClaimsError{Violations: []signer.Violation{{Field: "claims.exp", Problem: "is past"}}}
	case strings.HasPrefix(r.ClientID, "keys"):
		return nil, &keycache.FetchError{ID: "x", RetryAfter: 7 * time.Second, Err: keycache.ErrUnavailable}
	case strings.HasPrefix(r.ClientID, "foreign"):
		return nil, authz.ErrNotAllowed
	case strings.HasPrefix(r.ClientID, "slow"):
		time.Sleep(50 * time.Millisecond)
	}
	return &seal.Result{Token: "for." + r.ClientID}, nil
}

// askFor is a request for each client.
func askFor(clients ...string) []*bullav1.SignAndEncryptRequest {
	var items []*bullav1.SignAndEncryptRequest
	for _, id := range clients {
		items = append(items, &bullav1.SignAndEncryptRequest{ClientId: id, Claims: []byte(`{"sub":"alice"}`)})
	}
	return items
}

// manyClients are n names.
func manyClients(n int) []string {
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprint("app-", i))
	}
	return ids
}

// troubles are clients, the codes and the reasons of their items.
var troubles = []struct {
	client string
	code   codes.Code
	reason string
}{
	{"slow-1", codes.OK, ""},
	{"claims", codes.InvalidArgument, "CLAIMS_INVALID"},
	{"panic", codes.Internal, ""},
	{"", codes.InvalidArgument, ""},
	{"keys", codes.Unavailable, "CLIENT_KEYS_UNAVAILABLE"},
	{"foreign", codes.PermissionDenied, "CALLER_NOT_ALLOWED"},
	{"app", codes.OK, ""},
}

// wantTrouble holds what item i of troubles got against what it should.
func wantTrouble(t *testing.T, i int, token string, st *status.Status) {
	t.Helper()
	want := troubles[i]
	if st.Code() != want.code {
		t.Errorf("%q: %v, want %s", want.client, st, want.code)
		return
	}
	if want.code == codes.OK {
		if token != "for."+want.client {
			t.Errorf("%q got %q", want.client, token)
		}
		return
	}
	info := detail[*errdetails.ErrorInfo](st.Details())
	if info.GetReason() != want.reason {
		t.Errorf("%q: reason %q, want %q", want.client, info.GetReason(), want.reason)
	}
	violations := detail[*errdetails.BadRequest](st.Details()).GetFieldViolations()
	switch want.client {
	case "claims":
		if len(violations) != 1 || violations[0].GetField() != "claims.exp" {
			t.Errorf("violations %v, want claims.exp", violations)
		}
	case "":
		if len(violations) != 1 || violations[0].GetField() != "client_id" {
			t.Errorf("violations %v, want client_id", violations)
		}
	case "keys":
		if got := detail[*errdetails.RetryInfo](st.Details()).GetRetryDelay().AsDuration(); got != 7*time.Second {
			t.Errorf("RetryInfo of %v, want 7s", got)
		}
	case "panic":
		if st.Message() != unknownText {
			t.Errorf("a panic is told as %q", st.Message())
		}
	}
}

// wantCounted holds what was counted of troubles against what it should.
func wantCounted(t *testing.T, seen *observer) {
	t.Helper()
	seen.mu.Lock()
	defer seen.mu.Unlock()
	slices.Sort(seen.items)
	want := []string{
		"Internal Internal", "InvalidArgument CLAIMS_INVALID", "InvalidArgument InvalidArgument", "OK ", "OK ",
		"PermissionDenied CALLER_NOT_ALLOWED", "Unavailable CLIENT_KEYS_UNAVAILABLE",
	}
	if !slices.Equal(seen.items, want) {
		t.Errorf("items counted %q, want %q", seen.items, want)
	}
	if seen.panics != 1 {
		t.Errorf("%d panics counted, want 1", seen.panics)
	}
}

func TestItemsOfABatchFailAloneAndInOrder(t *testing.T) {
	var log logged
	client, seen, _ := serveMany(t, forClient, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	var ids []string
	for _, one := range troubles {
		ids = append(ids, one.client)
	}
	res, err := client.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{Items: askFor(ids...)})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(res.GetResults()); got != len(troubles) {
		t.Fatalf("%d results, want %d", got, len(troubles))
	}
	for i, r := range res.GetResults() {
		wantTrouble(t, i, r.GetReply().GetToken(), status.FromProto(r.GetStatus()))
	}
	wantCounted(t, seen)
	if got := seen.reasons; len(got) != 1 || got[0] != "OK " {
		t.Errorf("the call itself counted as %q, want OK", got)
	}
	text := log.String()
	if strings.Contains(text, "alice") {
		t.Errorf("the log has claims:\n%s", text)
	}
	for _, want := range []string{"item=1 code=InvalidArgument reason=CLAIMS_INVALID", "item=4 code=Unavailable reason=CLIENT_KEYS_UNAVAILABLE", "batch_test.go"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log has no %q:\n%s", want, text)
		}
	}
}

func TestABatchHasBounds(t *testing.T) {
	var made atomic.Int32
	client, _, _ := serveMany(t, func(_ context.Context, r seal.Request) (*seal.Result, error) {
		made.Add(1)
		return &seal.Result{Token: "for." + r.ClientID}, nil
	}, nil)
	large := func(items, claims int) []*bullav1.SignAndEncryptRequest {
		list := askFor(manyClients(items)...)
		for _, item := range list {
			item.Claims = make([]byte, claims/items)
		}
		return list
	}
	for _, test := range []struct {
		what  string
		items []*bullav1.SignAndEncryptRequest
		words string // of the refusal
	}{
		{"none", nil, ""},
		{"as many as there may be", askFor(manyClients(256)...), ""},
		{"one too many", askFor(manyClients(257)...), "items: are 257: send at most 256"},
		{"as large as it may be", large(48, 3<<20), ""},
		{"too large", append(large(48, 3<<20), &bullav1.SignAndEncryptRequest{ClientId: "app", Claims: []byte("{")}), "3145729 bytes of claims together: send at most 3145728"},
	} {
		made.Store(0)
		res, err := client.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{Items: test.items})
		if test.words == "" {
			if err != nil || len(res.GetResults()) != len(test.items) || int(made.Load()) != len(test.items) {
				t.Errorf("%s: %d results of %d, %d made, %v", test.what, len(res.GetResults()), len(test.items), made.Load(), err)
			}
			continue
		}
		st := status.Convert(err)
		violations := detail[*errdetails.BadRequest](st.Details()).GetFieldViolations()
		if st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), test.words) || len(violations) != 1 || violations[0].GetField() != "items" {
			t.Errorf("%s: %v with %v, want InvalidArgument of items: %q", test.what, err, violations, test.words)
		}
		if made.Load() != 0 {
			t.Errorf("%s: %d tokens were made all the same", test.what, made.Load())
		}
	}
}

// atOnce counts how many are inside.
type atOnce struct{ now, most atomic.Int32 }

func (a *atOnce) enter() (leave func()) {
	n := a.now.Add(1)
	for {
		most := a.most.Load()
		if n <= most || a.most.CompareAndSwap(most, n) {
			return func() { a.now.Add(-1) }
		}
	}
}

func TestABatchMakesSomeTokensAtOnceAndNotAll(t *testing.T) {
	var inside atOnce
	want := int32(itemsAtOnce())
	client, _, _ := serveMany(t, func(ctx context.Context, _ seal.Request) (*seal.Result, error) {
		defer inside.enter()()
		// The first wait until as many are inside as there may be.
		for inside.most.Load() < want && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		return &seal.Result{}, nil
	}, nil)
	if _, err := client.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{Items: askFor(manyClients(200)...)}); err != nil {
		t.Fatal(err)
	}
	if got := inside.most.Load(); got != want {
		t.Errorf("%d at once, want %d", got, want)
	}
	if want < 8 || want > 32 {
		t.Errorf("%d are made at once, want 8 to 32", want)
	}
}

func TestABatchAnswersBeforeItsDeadlineWithWhatThereIs(t *testing.T) {
	var log logged
	client, seen, _ := serveMany(t, func(ctx context.Context, r seal.Request) (*seal.Result, error) {
		if r.ClientID != "app-0" && r.ClientID != "app-1" {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		return &seal.Result{Token: "for." + r.ClientID}, nil
	}, slog.New(slog.NewTextHandler(&log, nil)))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	n := 2 + itemsAtOnce() + 50
	res, err := client.BatchSignAndEncrypt(ctx, &bullav1.BatchSignAndEncryptRequest{Items: askFor(manyClients(n)...)})
	if err != nil {
		t.Fatalf("two tokens are lost: %v", err)
	}
	var whole, begun, not int
	for _, r := range res.GetResults() {
		switch st := status.FromProto(r.GetStatus()); {
		case st.Code() == codes.OK && r.GetReply().GetToken() != "":
			whole++
		case st.Code() == codes.DeadlineExceeded && strings.Contains(st.Message(), "nothing was made"):
			not++
		case st.Code() == codes.DeadlineExceeded:
			begun++
		default:
			t.Errorf("got %v", r)
		}
	}
	if whole != 2 || begun != itemsAtOnce() || not != 50 {
		t.Errorf("%d tokens, %d begun, %d not; want 2, %d, 50", whole, begun, not, itemsAtOnce())
	}
	if got := len(seen.items); got != n {
		t.Errorf("%d items counted, want %d", got, n)
	}
	if text := log.String(); strings.Count(text, "\n") != itemsAtOnce()+1 || !strings.Contains(text, "not_begun=50") {
		t.Errorf("the log should have a line for each that was begun, and one for the others:\n%s", text)
	}
}

func TestACanceledBatchBeginsNothingMore(t *testing.T) {
	var begun atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	client, _, srv := serveMany(t, func(ctx context.Context, _ seal.Request) (*seal.Result, error) {
		if begun.Add(1) == int32(itemsAtOnce()) {
			cancel()
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}, nil)
	_, err := client.BatchSignAndEncrypt(ctx, &bullav1.BatchSignAndEncryptRequest{Items: askFor(manyClients(256)...)})
	if status.Code(err) != codes.Canceled {
		t.Errorf("got %v, want Canceled", err)
	}
	stopped, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	srv.Shutdown(stopped) // waits for the call
	if stopped.Err() != nil {
		t.Error("the call did not end")
	}
	if got := int(begun.Load()); got != itemsAtOnce() {
		t.Errorf("%d items were begun, want %d", got, itemsAtOnce())
	}
}

func TestTheAnswerIsInTimeForAnyDeadline(t *testing.T) {
	for _, left := range []time.Duration{20 * time.Millisecond, time.Second, 15 * time.Second, time.Hour} {
		ctx, cancel := context.WithTimeout(t.Context(), left)
		working, stop := timeToAnswer(ctx)
		until, _ := ctx.Deadline()
		sooner, _ := working.Deadline()
		kept := until.Sub(sooner)
		if most := min(left/answerShare, answerTime); kept <= 0 || kept > most || left >= time.Second && kept < most-10*time.Millisecond {
			t.Errorf("of %v, %v are kept for the answer, want about %v", left, kept, most)
		}
		stop()
		cancel()
	}
	working, stop := timeToAnswer(context.Background())
	stop()
	if _, ok := working.Deadline(); ok || !errors.Is(working.Err(), context.Canceled) {
		t.Errorf("without a deadline: %v", working)
	}
}
