package awskms

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"

	"github.com/bulla-project/bulla/kms"
)

// newLimiter spreads signatures over time and lets a tenth of a second's worth
// through at once.
func newLimiter(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, perSecond/10))
}

// waitTurn waits until a signature may be asked for. A caller whose deadline
// would pass before that is told at once.
func waitTurn(ctx context.Context, limiter *rate.Limiter) error {
	err := limiter.Wait(ctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("%w: the configured rate leaves no turn before the deadline", kms.ErrThrottled)
}
