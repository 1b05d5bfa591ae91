package awskms

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
)

func TestABurstWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, began := newLimiter(10), time.Now()
		for range 21 {
			if err := waitTurn(t.Context(), limiter); err != nil {
				t.Fatal(err)
			}
		}
		if got := time.Since(began).Round(100 * time.Millisecond); got != 2*time.Second {
			t.Errorf("21 signatures at 10 a second took %v, want 2s", got)
		}
	})
}

func TestACallWithoutTimeForItsTurnIsThrottledAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, began := newLimiter(1), time.Now()
		if err := waitTurn(t.Context(), limiter); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := waitTurn(ctx, limiter); !errors.Is(err, kms.ErrThrottled) {
			t.Errorf("got %v, want ErrThrottled", err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the answer took %v, want none", took)
		}
	})
}

func TestACanceledCallerDoesNotWait(t *testing.T) {
	limiter := newLimiter(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := waitTurn(ctx, limiter); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestNoRateIsNoLimit(t *testing.T) {
	limiter := newLimiter(0)
	for range 10_000 {
		if err := waitTurn(t.Context(), limiter); err != nil {
			t.Fatal(err)
		}
	}
}
