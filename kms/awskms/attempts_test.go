package awskms

import (
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
)

func TestAnAttemptLeavesTimeForAnother(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		left time.Duration // 0: no deadline
		last bool
		want time.Duration
	}{
		{0, false, attemptLimit},
		{0, true, attemptLimit},
		{time.Minute, false, attemptLimit},
		{time.Minute, true, attemptLimit},
		{3 * time.Second, false, 1500 * time.Millisecond},
		{3 * time.Second, true, attemptLimit},
		{time.Second, false, 500 * time.Millisecond},
		{2 * leastAttempt, false, leastAttempt},
		{2*leastAttempt - 1, false, attemptLimit}, // the deadline ends it
	} {
		deadline := time.Time{}
		if tt.left != 0 {
			deadline = now.Add(tt.left)
		}
		if got := limitOf(now, deadline, tt.last); got != tt.want {
			t.Errorf("with %v left (last: %v) an attempt may take %v, want %v", tt.left, tt.last, got, tt.want)
		}
	}
}

func TestPausesGrowAndAreSpread(t *testing.T) {
	fault, throttling := errors.New("reset"), &smithy.GenericAPIError{Code: "ThrottlingException"}
	for _, tt := range []struct {
		attempt  int
		err      error
		min, max time.Duration
	}{
		{1, fault, 25 * time.Millisecond, 50 * time.Millisecond},
		{2, fault, 50 * time.Millisecond, 100 * time.Millisecond},
		{1, throttling, 100 * time.Millisecond, 200 * time.Millisecond},
		{2, throttling, 200 * time.Millisecond, 400 * time.Millisecond},
		{1000, throttling, time.Second, 2 * time.Second},
	} {
		r := callRetryer{RetryerV2: retry.NewStandard()}
		seen := map[time.Duration]bool{}
		for range 20 {
			got, err := r.RetryDelay(tt.attempt, tt.err)
			if err != nil || got < tt.min || got > tt.max {
				t.Fatalf("attempt %d, %v: a pause of %v, error %v; want %v to %v", tt.attempt, tt.err, got, err, tt.min, tt.max)
			}
			seen[got] = true
		}
		if len(seen) < 10 {
			t.Errorf("attempt %d: only %d different pauses in 20", tt.attempt, len(seen))
		}
	}
	r := callRetryer{RetryerV2: retry.NewStandard(), deadline: time.Now().Add(20 * time.Millisecond)}
	if _, err := r.RetryDelay(1, throttling); !errors.Is(err, throttling) {
		t.Errorf("with no time for a pause: error %v, want the attempt's own", err)
	}
}

var _ aws.RetryerV2 = callRetryer{}
