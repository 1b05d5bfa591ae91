package admit

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func newBenched(b *testing.B, places, queue int) *Admission {
	b.Helper()
	a, err := New(Config{Queue: queue, Backends: map[string]Backend{hsm: {InFlight: places}}})
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// BenchmarkFreePlace is what a call pays while nobody waits.
func BenchmarkFreePlace(b *testing.B) {
	a := newBenched(b, 8, 64)
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		leave, err := a.Enter(ctx, hsm, "spiffe://example.com/idp")
		if err != nil {
			b.Fatal(err)
		}
		leave()
	}
}

// BenchmarkContended has more callers than places, who hold them for no time.
func BenchmarkContended(b *testing.B) {
	a := newBenched(b, 1, 1<<20)
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if leave, err := a.Enter(b.Context(), hsm, "spiffe://example.com/idp"); err == nil {
				leave()
			}
		}
	})
}

// BenchmarkTurnedAway is what a call pays that finds the queue full.
func BenchmarkTurnedAway(b *testing.B) {
	for _, callers := range []int{1, 32} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			a := newBenched(b, 1, 64)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			leave, err := a.Enter(ctx, hsm, "0")
			if err != nil {
				b.Fatal(err)
			}
			defer leave()
			for i := range 64 {
				go func() { _, _ = a.Enter(ctx, hsm, fmt.Sprint(i%callers)) }()
			}
			for a.Of(hsm).Queued < 64 {
				time.Sleep(time.Millisecond)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := a.Refuses(ctx, hsm, "0"); err == nil {
					b.Fatal("not turned away")
				}
			}
		})
	}
}
