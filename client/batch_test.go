package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// BatchSignAndEncrypt makes each token by r.makes, after r.call has let it.
func (r *replica) BatchSignAndEncrypt(ctx context.Context, req *bullav1.BatchSignAndEncryptRequest) (*bullav1.BatchSignAndEncryptResponse, error) {
	if err := r.call(ctx); err != nil {
		return nil, err
	}
	res := &bullav1.BatchSignAndEncryptResponse{}
	for _, item := range req.GetItems() {
		one := &bullav1.BatchSignAndEncryptResult{}
		if reply, err := r.makes(ctx, item); err != nil {
			one.Result = &bullav1.BatchSignAndEncryptResult_Status{Status: status.Convert(err).Proto()}
		} else if reply != nil {
			one.Result = &bullav1.BatchSignAndEncryptResult_Reply{Reply: reply}
		}
		res.Results = append(res.Results, one)
	}
	return res, nil
}

// tokenFor makes a token that names its client.
func tokenFor(_ context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
	return &bullav1.SignAndEncryptResponse{Token: "for." + req.GetClientId()}, nil
}

func list(n, claims int) []*bullav1.SignAndEncryptRequest {
	var items []*bullav1.SignAndEncryptRequest
	for i := range n {
		items = append(items, &bullav1.SignAndEncryptRequest{ClientId: fmt.Sprint("app-", i), Claims: make([]byte, claims)})
	}
	return items
}

// wantAll holds results against those that all items should have.
func wantAll(t *testing.T, items []*bullav1.SignAndEncryptRequest, results []Result) {
	t.Helper()
	if len(results) != len(items) {
		t.Fatalf("%d results, want %d", len(results), len(items))
	}
	for i, r := range results {
		if r.Err != nil || r.Reply.GetToken() != "for."+items[i].GetClientId() {
			t.Errorf("item %d: %v, %v", i, r.Reply, r.Err)
		}
	}
}

func TestALongListIsSentInBatches(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what         string
		items, claim int
		calls        int32
	}{
		{"none", 0, 0, 0},
		{"one", 1, 10, 1},
		{"as many as fit", 256, 10, 1},
		{"one more", 257, 10, 2},
		{"by their claims", 100, 64 << 10, 3}, // 48 fit
	} {
		t.Run(test.what, func(t *testing.T) {
			r := newReplica(t)
			r.makes = tokenFor
			c := dialTo(t, Config{}, r)
			items := list(test.items, test.claim)
			wantAll(t, items, c.SignAndEncryptAll(t.Context(), items))
			if got := r.calls.Load(); got != test.calls {
				t.Errorf("%d batches, want %d", got, test.calls)
			}
		})
	}
}

func TestItemsThatFailForNowAreAskedForAgain(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	var mu sync.Mutex // guards asked
	asked := make(map[string]int)
	r.makes = func(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		asked[req.GetClientId()]++
		switch n := asked[req.GetClientId()]; {
		case req.GetClientId() == "app-1" && n <= 2:
			return nil, failed(t, codes.Unavailable, "bulla", "OVERLOADED", 20*time.Millisecond)
		case req.GetClientId() == "app-2":
			return nil, failed(t, codes.InvalidArgument, "bulla", "CLAIMS_INVALID", -1)
		case req.GetClientId() == "app-3":
			return nil, failed(t, codes.ResourceExhausted, "bulla", "QUOTA_EXCEEDED", 10*time.Millisecond)
		case req.GetClientId() == "app-4" && n == 1:
			return nil, status.Error(codes.DeadlineExceeded, "not begun")
		}
		return tokenFor(ctx, req)
	}
	c := dialTo(t, Config{}, r)
	items := list(6, 10)
	results := c.SignAndEncryptAll(t.Context(), items)
	for i, want := range []int{1, 3, 1, 4, 2, 1} {
		if got := asked[fmt.Sprint("app-", i)]; got != want {
			t.Errorf("item %d was asked for %d times, want %d", i, got, want)
		}
	}
	if got := reasonOf(results[2].Err); got != "CLAIMS_INVALID" {
		t.Errorf("item 2: %v", results[2].Err)
	}
	if got := reasonOf(results[3].Err); got != "QUOTA_EXCEEDED" {
		t.Errorf("item 3: %v", results[3].Err)
	}
	items, results = slices.Delete(items, 2, 4), slices.Delete(results, 2, 4)
	wantAll(t, items, results)
}

func TestWhatAServiceDoesNotComeToIsAskedForWhileThatHelps(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	var last int32
	r.makes = func(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		if n := r.calls.Load(); n > last { // the first of each batch
			last = n
			return tokenFor(ctx, req)
		}
		return nil, status.Error(codes.DeadlineExceeded, "not begun")
	}
	c := dialTo(t, Config{}, r)
	items := list(2*maxAttempts, 10)
	wantAll(t, items, c.SignAndEncryptAll(t.Context(), items))
	if got := int(r.calls.Load()); got != len(items) {
		t.Errorf("%d batches, want %d", got, len(items))
	}
	last = 1 << 30
	calls := r.calls.Load()
	for i, one := range c.SignAndEncryptAll(t.Context(), items) {
		if status.Code(one.Err) != codes.DeadlineExceeded {
			t.Errorf("item %d: %v, %v, want DeadlineExceeded", i, one.Reply, one.Err)
		}
	}
	if got := r.calls.Load() - calls; got != 1 {
		t.Errorf("%d batches that brought nothing, want 1", got)
	}
}

func TestAListEndsWithItsContext(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	r.makes = func(context.Context, *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		return nil, failed(t, codes.Unavailable, "bulla", "OVERLOADED", 5*time.Second)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	began := time.Now()
	results := dialTo(t, Config{}, r).SignAndEncryptAll(ctx, list(3, 10))
	for i, one := range results {
		if reasonOf(one.Err) != "OVERLOADED" {
			t.Errorf("item %d: %v, want why it failed", i, one.Err)
		}
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it waited %v for a pause beyond its deadline", took)
	}
	cancel()
	for i, one := range dialTo(t, Config{}, r).SignAndEncryptAll(ctx, list(300, 10)) {
		if code := status.Code(one.Err); code != codes.Canceled && code != codes.DeadlineExceeded {
			t.Errorf("item %d: %v", i, one.Err)
		}
	}
}

func TestAServiceThatForgetsItemsIsAnError(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	r.makes = func(context.Context, *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		return nil, nil
	}
	for _, one := range dialTo(t, Config{}, r).SignAndEncryptAll(t.Context(), list(2, 10)) {
		if one.Reply.GetToken() == "" && one.Err == nil {
			t.Error("a result with neither a token nor an error")
		}
	}
	r.makes = func(_ context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
		return &bullav1.SignAndEncryptResponse{Token: strings.Repeat("t", 5<<20/2)}, nil
	}
	for _, one := range dialTo(t, Config{}, r).SignAndEncryptAll(t.Context(), list(2, 10)) {
		if one.Err != nil {
			t.Errorf("an answer of 5 MiB was not received: %v", one.Err)
		}
	}
}
