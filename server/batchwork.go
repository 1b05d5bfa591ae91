package server

import (
	"context"
	"errors"
	"sync"
	"time"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/admit"
	"github.com/bulla-project/bulla/server/limit"
)

// batch is the work on one batch. Some workers take its items in their order.
//
// How many tokens are asked for at once is our choice and not the caller's. So
// where that is too much, for a backend that is overloaded or for what the caller
// may have under way, it is for us to ask for less: to be refused takes no time,
// and whoever went on to the next item would have all of them refused while the
// first are made. An item that is turned away is put back, and its worker pauses
// for as long as was asked for; the others go on.
type batch struct {
	service *tokenService
	ctx     context.Context //nolint:containedctx // it is the life of the batch
	items   []*bullav1.SignAndEncryptRequest
	// results are written by whoever has taken the item.
	results []*bullav1.BatchSignAndEncryptResult
	all     chan struct{} // closed when each item has its result

	mu      sync.Mutex // guards what follows
	next    int        // the first item that nobody has taken
	back    []int      // those that were put back
	left    int        // items without a result
	refusal error      // the last; nil if nothing was turned away
}

const batchMethod = bullav1.TokenService_BatchSignAndEncrypt_FullMethodName

func newBatch(s *tokenService, ctx context.Context, items []*bullav1.SignAndEncryptRequest) *batch { //nolint:revive // it keeps ctx
	return &batch{
		service: s, ctx: ctx, items: items, results: make([]*bullav1.BatchSignAndEncryptResult, len(items)),
		all: make(chan struct{}), left: len(items),
	}
}

// run works until each item has its result, there is no time left, or nothing but
// refusals come.
func (b *batch) run() {
	var others sync.WaitGroup
	for range min(len(b.items), itemsAtOnce()) - 1 {
		others.Go(b.work)
	}
	b.work()
	others.Wait()
}

func (b *batch) work() {
	pausedAt := -1 // how many items were left when this worker paused last
	for b.ctx.Err() == nil {
		i, ok := b.take()
		if !ok {
			return
		}
		reply, err := b.service.guarded(b.ctx, batchMethod, b.items[i])
		if !turnedAway(err) {
			b.answer(i, reply, err)
			continue
		}
		// A batch that waits takes memory. One that gets nothing at all is for its
		// caller to send again.
		left := b.putBack(i, err)
		if left == pausedAt || !b.pause(err) {
			return
		}
		pausedAt = left
	}
}

// turnedAway reports whether an item was refused since too much is asked for at
// the moment.
func turnedAway(err error) bool {
	return errors.Is(err, admit.ErrOverloaded) || errors.Is(err, limit.ErrExceeded) || errors.Is(err, kms.ErrThrottled)
}

// take takes an item; ok is false if there is none. Those that were put back come
// last: whoever put one back looks again after its pause, unless somebody else
// was sooner.
func (b *batch) take() (i int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i = b.next; i < len(b.items) {
		b.next++
		return i, true
	}
	if len(b.back) == 0 {
		return 0, false
	}
	i, b.back = b.back[0], b.back[1:]
	return i, true
}

// putBack returns how many items have no result.
func (b *batch) putBack(i int, refusal error) (left int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.back, b.refusal = append(b.back, i), refusal
	return b.left
}

func (b *batch) answer(i int, reply *bullav1.SignAndEncryptResponse, err error) {
	if err != nil {
		b.results[i] = failedItem(b.service.itemFailed(b.ctx, batchMethod, i, err))
	} else {
		b.service.server.cfg.Observer.Item(batchMethod, codes.OK.String(), "")
		b.results[i] = &bullav1.BatchSignAndEncryptResult{Result: &bullav1.BatchSignAndEncryptResult_Reply{Reply: reply}}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left--; b.left == 0 {
		close(b.all)
	}
}

func failedItem(st *rpcstatus.Status) *bullav1.BatchSignAndEncryptResult {
	return &bullav1.BatchSignAndEncryptResult{Result: &bullav1.BatchSignAndEncryptResult_Status{Status: st}}
}

// pause waits for as long as a refusal asks for. It returns false if there is
// nothing to do after that: no time, no item, or a service that stops, which
// should not wait for pauses.
func (b *batch) pause(refusal error) bool {
	wait, _ := retryAfter(refusal, statusOf(refusal).Code())
	if deadline, ok := b.ctx.Deadline(); ok && time.Until(deadline) <= wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-b.all:
	case <-b.ctx.Done():
	case <-b.service.streams.stopping:
	}
	return false
}

// answerTheOthers answers for the items that have no result: they were turned
// away, or the work did not come to them. The log has one line for the latter.
func (b *batch) answerTheOthers() {
	refused := make(map[int]bool)
	for _, i := range b.back {
		refused[i] = true
	}
	late := b.ctx.Err() != nil
	count := 0
	for i, r := range b.results {
		switch {
		case r != nil:
		case refused[i], !late:
			b.results[i] = failedItem(b.service.itemFailed(b.ctx, batchMethod, i, b.refusal))
		default:
			count++
			b.service.server.cfg.Observer.Item(batchMethod, codes.DeadlineExceeded.String(), Reason(errNotBegun))
			b.results[i] = failedItem(statusOf(errNotBegun).Proto())
		}
	}
	if count > 0 {
		b.service.server.log.WarnContext(b.ctx, "a batch ran into its deadline", "rpc", batchMethod, "items", len(b.items), "not_begun", count)
	}
}
