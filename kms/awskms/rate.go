package awskms

import (
	"context"
	"fmt"

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
	err := limiter.Wait(ctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return errNoTurn
}
