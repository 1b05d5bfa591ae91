package limit

import (
	"errors"
	"time"
)

// ErrExceeded: the caller asks for more than it may. The error is an
// *ExceededError, whose text is fit for callers. Try again later.
var ErrExceeded = errors.New("quota exceeded")

// ExceededError is ErrExceeded with the time to wait.
type ExceededError struct {
	// What says which limit it is.
	What string
	// RetryAfter is how long not to try again: a second at least.
	RetryAfter time.Duration
}

func (e *ExceededError) Error() string {
	return ErrExceeded.Error() + ": " + e.What + ": try again later, and slow down"
}

func (e *ExceededError) Unwrap() error { return ErrExceeded }
