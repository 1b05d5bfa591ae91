package server

import (
	"context"
	"errors"
	"time"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// Bounds of a batch. What a single item may hold is as for a single call.
const (
	maxBatchItems  = 256
	maxBatchClaims = 3 << 20
)

// errNotBegun: the deadline was so near that the item was not begun. Nothing was
// made; the caller asks for it again.
var errNotBegun = errors.New("not begun before the deadline")

// BatchSignAndEncrypt makes many tokens, some at once, and answers for each.
//
// A caller whose deadline passes gets no answer at all, and would lose the
// tokens that are made by then. So the work ends a little before the deadline,
// and the answer says which items it did not come to. See batch for what becomes
// of items that are turned away.
func (s *tokenService) BatchSignAndEncrypt(ctx context.Context, req *bullav1.BatchSignAndEncryptRequest) (*bullav1.BatchSignAndEncryptResponse, error) {
	items := req.GetItems()
	if err := checkBatch(items); err != nil {
		return nil, err
	}
	working, cancel := timeToAnswer(ctx)
	defer cancel()
	b := newBatch(s, working, items)
	b.run()
	if err := ctx.Err(); err != nil {
		return nil, err // nobody waits for the answer any more
	}
	b.answerTheOthers()
	return &bullav1.BatchSignAndEncryptResponse{Results: b.results}, nil
}

// checkBatch holds a batch against its bounds.
func checkBatch(items []*bullav1.SignAndEncryptRequest) error {
	var c checker
	if len(items) > maxBatchItems {
		c.wrong("items", "are %d: send at most %d in one batch, and the others in further ones", len(items), maxBatchItems)
	}
	claims := 0
	for _, item := range items {
		claims += len(item.GetClaims())
	}
	if claims > maxBatchClaims {
		c.wrong("items", "have %d bytes of claims together: send at most %d in one batch, and the others in further ones", claims, maxBatchClaims)
	}
	return c.err()
}

// The time that is kept for the answer is a tenth of what there is, and a
// quarter of a second at most.
const (
	answerShare = 10
	answerTime  = 250 * time.Millisecond
)

// timeToAnswer is a context that ends a little before ctx.
func timeToAnswer(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/answerShare, answerTime)))
}
