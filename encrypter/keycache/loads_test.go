package keycache

import (
	"strings"
	"sync"
	"testing"
)

// TestAPanicInALookFailsTheLook has it on a goroutine that nobody else guards.
func TestAPanicInALookFailsTheLook(t *testing.T) {
	var l loads[string, int]
	var running sync.WaitGroup
	start := func(f func()) bool { running.Go(f); return true }
	_, err := l.do(t.Context(), "app", start, func() (int, error) { panic("what a client registered") })
	if err == nil || strings.Contains(err.Error(), "registered") || !strings.Contains(err.Error(), "loads_test.go") {
		t.Errorf("got %v, want the stack and not the value", err)
	}
	if got, err := l.do(t.Context(), "app", start, func() (int, error) { return 7, nil }); got != 7 || err != nil {
		t.Errorf("the next look: %d, %v", got, err)
	}
	running.Wait()
}
