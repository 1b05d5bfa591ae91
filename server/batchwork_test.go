package server

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/admit"
	"github.com/bulla-project/bulla/server/limit"
	"github.com/bulla-project/bulla/server/seal"
)

// places is a Sealer that so many may be inside of, and counts whom it refused.
type places struct {
	refusal       error
	free, refused atomic.Int32
}

func (p *places) make(_ context.Context, r seal.Request) (*seal.Result, error) {
	defer p.free.Add(1)
	if p.free.Add(-1) < 0 {
		p.refused.Add(1)
		return nil, p.refusal
	}
	time.Sleep(time.Millisecond)
	return &seal.Result{Token: "for." + r.ClientID}, nil
}

// A batch has more workers than there are places. That costs none of its items,
// and nobody waits for a worker that pauses.
func TestABatchAsksForLessWhereItIsTurnedAway(t *testing.T) {
	for _, refusal := range []error{&admit.OverloadedError{RetryAfter: 8 * time.Second}, &limit.ExceededError{What: "too many", RetryAfter: 8 * time.Second}} {
		p := &places{refusal: refusal}
		p.free.Store(2)
		client, seen, _ := serveMany(t, p.make, nil)
		began := time.Now()
		res, err := client.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{Items: askFor(manyClients(200)...)})
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range res.GetResults() {
			if want := "for." + manyClients(200)[i]; r.GetReply().GetToken() != want {
				t.Errorf("item %d: %v, want %s", i, r, want)
			}
		}
		if got := int(p.refused.Load()); got == 0 || got > itemsAtOnce() {
			t.Errorf("%v: %d refusals, want one of each worker at most", refusal, got)
		}
		if took := time.Since(began); took > 7*time.Second {
			t.Errorf("it took %v, as long as a worker that had nothing to do paused", took)
		}
		if len(seen.items) != 200 {
			t.Errorf("%d items counted, want 200", len(seen.items))
		}
	}
}

// What is turned away comes through after the pause, when places are free again.
func TestAnItemThatIsTurnedAwayIsTakenAgain(t *testing.T) {
	p := &places{refusal: &admit.OverloadedError{RetryAfter: 300 * time.Millisecond}}
	client, _, _ := serveMany(t, p.make, nil)
	time.AfterFunc(150*time.Millisecond, func() { p.free.Add(1) })
	res, err := client.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{Items: askFor("a")})
	if err != nil || res.GetResults()[0].GetReply().GetToken() != "for.a" || p.refused.Load() != 1 {
		t.Errorf("got %v, %v after %d refusals; want a token after one", res, err, p.refused.Load())
	}
}

// A batch that gets nothing, or whose time is over before it may ask again, ends
// with what it was told, and has not asked for each of its items.
func TestABatchThatIsOnlyTurnedAwayEnds(t *testing.T) {
	for _, test := range []struct {
		pause, timeout time.Duration
		asked          int // by each worker
	}{
		{100 * time.Millisecond, 10 * time.Second, 2},
		{5 * time.Second, 2 * time.Second, 1},
	} {
		p := &places{refusal: &admit.OverloadedError{RetryAfter: test.pause}}
		client, seen, _ := serveMany(t, p.make, nil)
		ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
		defer cancel()
		began := time.Now()
		res, err := client.BatchSignAndEncrypt(ctx, &bullav1.BatchSignAndEncryptRequest{Items: askFor(manyClients(200)...)})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("pauses of %v: it ended after %v", test.pause, took)
		}
		for i, r := range res.GetResults() {
			st := status.FromProto(r.GetStatus())
			if st.Code() != codes.Unavailable || detail[*errdetails.RetryInfo](st.Details()).GetRetryDelay().AsDuration() != test.pause {
				t.Fatalf("item %d: %v, want Unavailable and a pause of %v", i, r, test.pause)
			}
		}
		if got := int(p.refused.Load()); got > test.asked*itemsAtOnce() {
			t.Errorf("asked %d times, want %d of each worker", got, test.asked)
		}
		if len(seen.items) != 200 {
			t.Errorf("%d items counted, want 200", len(seen.items))
		}
	}
}

func TestAStoppingServerDoesNotWaitForPauses(t *testing.T) {
	p := &places{refusal: &admit.OverloadedError{RetryAfter: 8 * time.Second}}
	client, _, srv := serveMany(t, p.make, nil)
	ended := make(chan error, 1)
	go func() {
		_, err := client.BatchSignAndEncrypt(t.Context(), &bullav1.BatchSignAndEncryptRequest{Items: askFor("a", "b")})
		ended <- err
	}()
	waitFor(t, "refusals", func() bool { return p.refused.Load() == 2 })
	began := time.Now()
	srv.Shutdown(t.Context())
	if err, took := <-ended, time.Since(began); err != nil || took > 5*time.Second {
		t.Errorf("the batch ended with %v after %v, want its answers at once", err, took)
	}
}
