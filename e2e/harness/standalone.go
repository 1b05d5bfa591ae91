package harness

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
)

// Standalone is a testing.TB for what outlives a test, or is none: what a
// TestMain shares between tests, or a program that measures. Fatal ends the
// process after the clean-up. Only the methods below may be called, from one
// goroutine.
type Standalone struct {
	testing.TB // nil: it is here for the method that seals the interface

	name     string
	ctx      context.Context //nolint:containedctx // it is what Context returns
	cancel   context.CancelFunc
	once     sync.Once
	cleanups []func()
	failed   bool
}

var _ testing.TB = (*Standalone)(nil)

// NewStandalone returns a Standalone. Close it at the end.
func NewStandalone(name string) *Standalone {
	s := &Standalone{name: name}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close runs the clean-ups, the last first.
func (s *Standalone) Close() {
	s.once.Do(func() {
		s.cancel()
		for i := len(s.cleanups) - 1; i >= 0; i-- {
			s.cleanups[i]()
		}
	})
}

// Name is what NewStandalone was given.
func (s *Standalone) Name() string { return s.name }

// Helper does nothing.
func (s *Standalone) Helper() {}

// Context ends with Close.
func (s *Standalone) Context() context.Context { return s.ctx }

// Cleanup has f called by Close.
func (s *Standalone) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

// TempDir makes a folder that is gone after Close.
func (s *Standalone) TempDir() string {
	dir, err := os.MkdirTemp("", "bulla-e2e-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) }) // a temporary folder
	return dir
}

// Setenv sets a variable until Close.
func (s *Standalone) Setenv(key, value string) {
	before, was := os.LookupEnv(key)
	if err := os.Setenv(key, value); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if was {
			_ = os.Setenv(key, before) // it worked before
		} else {
			_ = os.Unsetenv(key)
		}
	})
}

// Log prints to the standard error.
func (s *Standalone) Log(args ...any) { fmt.Fprintln(os.Stderr, args...) }

// Logf prints to the standard error.
func (s *Standalone) Logf(format string, args ...any) { s.Log(fmt.Sprintf(format, args...)) }

// Error is Log; Failed remembers it.
func (s *Standalone) Error(args ...any) { s.failed = true; s.Log(args...) }

// Errorf is Logf; Failed remembers it.
func (s *Standalone) Errorf(format string, args ...any) { s.Error(fmt.Sprintf(format, args...)) }

// Failed reports whether there was an Error.
func (s *Standalone) Failed() bool { return s.failed }

// Fatal cleans up and ends the process.
func (s *Standalone) Fatal(args ...any) {
	s.Error(args...)
	s.Close()
	os.Exit(1)
}

// Fatalf cleans up and ends the process.
func (s *Standalone) Fatalf(format string, args ...any) { s.Fatal(fmt.Sprintf(format, args...)) }
