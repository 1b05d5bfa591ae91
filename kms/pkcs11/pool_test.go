package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/bulla-project/bulla/kms"
)

func TestCallsWaitForASessionOnlyUpToABound(t *testing.T) {
	for _, tt := range []struct{ sessions, queue int }{{1, 1024}, {16, 1024}, {20, 1280}} {
		t.Run(fmt.Sprint(tt.sessions), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(tt.sessions)
				for range tt.sessions {
					if _, err := p.get(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				var wg sync.WaitGroup
				ctx, stop := context.WithCancel(t.Context())
				got := make(chan *session, tt.queue)
				for range tt.queue {
					wg.Go(func() {
						s, err := p.get(ctx)
						if err == nil {
							got <- s
						} else if !errors.Is(err, context.Canceled) {
							t.Errorf("within the bound: %v", err)
						}
					})
				}
				synctest.Wait()
				for range 3 { // would wait for ever
					_, err := p.get(context.Background())
					wantErr(t, err, kms.ErrThrottled, "too many signatures wait for a session", fmt.Sprint(tt.queue))
				}
				if n := p.waiting.Load(); n != int64(tt.queue) {
					t.Errorf("%d calls wait, want %d", n, tt.queue)
				}

				// A session comes back: one call gets it, and there is room again.
				p.release()
				<-got
				wg.Go(func() {
					if _, err := p.get(ctx); !errors.Is(err, context.Canceled) {
						t.Errorf("with room again: got error %v, want to wait", err)
					}
				})
				synctest.Wait()
				stop()
				wg.Wait()
				if n := p.waiting.Load(); n != 0 {
					t.Errorf("%d calls wait after all have left", n)
				}
			})
		})
	}
}
