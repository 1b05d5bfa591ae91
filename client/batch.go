package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// Bounds of what is sent in one batch. The service's are these for items and
// claims; maxBatchBytes leaves room in its 4 MiB for a message.
const (
	maxBatchItems  = 256
	maxBatchClaims = 3 << 20
	maxBatchBytes  = 4<<20 - 64<<10
	// batchesAtOnce is how many batches of one list are under way: while one is
	// answered another is worked on.
	batchesAtOnce = 2
)

// Result is the answer for one item of a list: either is set.
type Result struct {
	// Reply is the token and how it was made.
	Reply *bullav1.SignAndEncryptResponse
	// Err is a status with the same details as that of a single call.
	Err error
}

// SignAndEncryptAll makes the tokens of a list of any length, in batches, and
// returns a result for each item in the order of the list.
//
// Items that fail in a way that passes are asked for again as often as
// Config.Attempts says, after the pause that the service asks for, while ctx
// lasts; so are those that the service did not come to before a deadline that is
// not ctx's. An item whose answer was lost may be made twice.
//
// When ctx ends, what was made by then is returned; the other items have its
// error.
func (c *Client) SignAndEncryptAll(ctx context.Context, items []*bullav1.SignAndEncryptRequest) []Result {
	results := make([]Result, len(items))
	todo := make([]int, len(items)) // indices of items
	for i := range todo {
		todo[i] = i
	}
	for attempt := 1; len(todo) > 0; {
		c.batches(ctx, items, todo, results)
		again, wait, progress := c.repeats.again(attempt, results, todo)
		if len(again) == 0 || !sleep(ctx, wait) {
			break
		}
		// What the service did not come to has not failed: that goes on for as long
		// as it brings tokens.
		if !progress {
			attempt++
		}
		todo = again
	}
	return results
}

// batches asks once for each item of todo, and writes its result.
func (c *Client) batches(ctx context.Context, items []*bullav1.SignAndEncryptRequest, todo []int, results []Result) {
	var running sync.WaitGroup
	room := make(chan struct{}, batchesAtOnce)
	for len(todo) > 0 {
		n := fitting(items, todo)
		batch := todo[:n]
		todo = todo[n:]
		room <- struct{}{} // a batch ends with ctx at the latest
		running.Go(func() {
			c.batch(ctx, items, batch, results)
			<-room
		})
	}
	running.Wait()
}

// fitting is how many items of todo fit into one batch, one at least.
func fitting(items []*bullav1.SignAndEncryptRequest, todo []int) int {
	claims, bytes := 0, 0
	for n, i := range todo {
		claims += len(items[i].GetClaims())
		bytes += proto.Size(items[i]) + 8 // and what frames it
		if n == maxBatchItems || n > 0 && (claims > maxBatchClaims || bytes > maxBatchBytes) {
			return n
		}
	}
	return len(todo)
}

func (c *Client) batch(ctx context.Context, items []*bullav1.SignAndEncryptRequest, batch []int, results []Result) {
	req := &bullav1.BatchSignAndEncryptRequest{Items: make([]*bullav1.SignAndEncryptRequest, len(batch))}
	for n, i := range batch {
		req.Items[n] = items[i]
	}
	res, err := c.Tokens.BatchSignAndEncrypt(ctx, req)
	if err == nil && len(res.GetResults()) != len(batch) {
		err = status.Errorf(codes.Internal, "the service answered %d items of %d", len(res.GetResults()), len(batch))
	}
	for n, i := range batch {
		switch {
		case err != nil:
			results[i] = Result{Err: &batchError{err}}
		case res.GetResults()[n].GetReply() != nil:
			results[i] = Result{Reply: res.GetResults()[n].GetReply()}
		default:
			results[i] = Result{Err: itemError(res.GetResults()[n].GetStatus())}
		}
	}
}

// batchError is an error of the batch as a whole, which was made again by itself
// where that helps.
type batchError struct{ err error }

func (e *batchError) Error() string              { return e.err.Error() }
func (e *batchError) Unwrap() error              { return e.err }
func (e *batchError) GRPCStatus() *status.Status { return status.Convert(e.err) }

// again is which items of todo are to be asked for after attempt, and the pause
// before that. progress says that none of them failed but for a lack of time, and
// that the others brought tokens.
func (r repeats) again(attempt int, results []Result, todo []int) (again []int, wait time.Duration, progress bool) {
	tokens, failures := false, false
	for _, i := range todo {
		err := results[i].Err
		var whole *batchError
		late := status.Code(err) == codes.DeadlineExceeded
		switch {
		case err == nil:
			tokens = true
			continue
		case errors.As(err, &whole):
			continue
		case late && r.attempts > 1:
			again = append(again, i)
			continue
		case attempt >= r.attempts || !passing(err):
			continue
		}
		pause, ok := pauseAfter(attempt, err, nil)
		if !ok {
			continue
		}
		failures = true
		wait, again = max(wait, pause), append(again, i)
	}
	if !tokens && !failures {
		return nil, 0, false // time alone does not help
	}
	return again, wait, tokens && !failures
}
