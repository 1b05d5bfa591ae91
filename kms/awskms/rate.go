package awskms

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/bulla-project/bulla/kms"
)

// errNoTurn: asking KMS in time would mean asking faster than allowed.
var errNoTurn = fmt.Errorf("%w: the rate limit leaves no turn before the deadline", kms.ErrThrottled)

// newLimiter spreads calls over time and lets a tenth of a second's worth
// through at once.
func newLimiter(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, perSecond/10))
}

// waitTurn waits until KMS may be asked. A caller whose deadline would pass
// before that is told at once, with errNoTurn.
func waitTurn(ctx context.Context, limiter *rate.Limiter) error {
	bounded := ctx
	if deadline, ok := ctx.Deadline(); ok {
		// A turn that leaves no time to use it would be wasted, and while more
		// is asked for than allowed all turns would be such.
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
		defer cancel()
	}
	err := limiter.Wait(bounded)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return errNoTurn
}
