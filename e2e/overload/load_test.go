package overload

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// deadline is that of each call. It is what callers use, and much longer than
// anybody should wait.
const deadline = 5 * time.Second

// caller is a caller and its connections. It does not try again by itself.
type caller struct {
	conns []*client.Client
	req   *bullav1.SignAndEncryptRequest

	mu    sync.Mutex
	calls []call // guarded by mu: those that have ended
}

// call is one that has ended.
type call struct {
	start, end time.Time
	reason     string        // why there is no token; "" if there is one
	pause      time.Duration // that RetryInfo asks for
}

func dial(t testing.TB, s *harness.Service, name string, connections int) *caller {
	t.Helper()
	leaf := s.Leaf(t, name)
	c := &caller{req: &bullav1.SignAndEncryptRequest{
		Issuer: harness.Issuer, ClientId: clientID,
		Claims: []byte(`{"sub":"alice","nonce":"n-0S6_WzA2Mj","acr":"urn:mace:incommon:iap:silver","email":"alice@example.com","name":"Alice Example"}`),
	}}
	for range connections {
		c.conns = append(c.conns, s.CallerWith(t, leaf))
	}
	return c
}

// ask asks for a token, by the nth connection.
func (c *caller) ask(ctx context.Context, n int) call {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	one := call{start: time.Now()}
	_, err := c.conns[n%len(c.conns)].Tokens.SignAndEncrypt(ctx, c.req)
	one.end = time.Now()
	if err != nil {
		st := status.Convert(err)
		one.reason = st.Code().String()
		for _, d := range st.Details() {
			switch d := d.(type) {
			case *errdetails.ErrorInfo:
				one.reason = d.GetReason()
			case *errdetails.RetryInfo:
				one.pause = d.GetRetryDelay().AsDuration()
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, one)
	return one
}

// closed has workers who ask again when they have an answer, after a pause, and
// after a longer one if it was none.
func (c *caller) closed(ctx context.Context, workers int, length, pause, refused time.Duration) {
	var all sync.WaitGroup
	until := time.Now().Add(length)
	for w := range workers {
		all.Go(func() {
			for time.Now().Before(until) && ctx.Err() == nil {
				wait := pause
				if c.ask(ctx, w).reason != "" {
					wait = refused
				}
				time.Sleep(wait)
			}
		})
	}
	all.Wait()
}

// open asks at a rate, whatever becomes of the calls.
func (c *caller) open(ctx context.Context, rate float64, length time.Duration) {
	var all sync.WaitGroup
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for sent := 0; time.Since(began) < length && ctx.Err() == nil; <-tick.C {
		for due := int(rate * time.Since(began).Seconds()); sent < due; sent++ {
			n := sent
			all.Go(func() { c.ask(ctx, n) })
		}
	}
	all.Wait()
}

// window is what became of the calls in a time.
type window struct {
	asked   int             // calls that began in it
	took    []time.Duration // by those of them that brought a token, sorted
	refused map[string]int  // those that did not, by reason
	told    []time.Duration // that refusals took, sorted
	pauses  []time.Duration // that they asked for, sorted
	rate    float64         // tokens that came in it, a second
}

func (c *caller) between(from, to time.Time) *window {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &window{refused: map[string]int{}}
	tokens := 0
	for _, one := range c.calls {
		if one.reason == "" && one.end.After(from) && !one.end.After(to) {
			tokens++
		}
		if one.start.Before(from) || !one.start.Before(to) {
			continue
		}
		w.asked++
		if one.reason == "" {
			w.took = append(w.took, one.end.Sub(one.start))
			continue
		}
		w.refused[one.reason]++
		w.told = append(w.told, one.end.Sub(one.start))
		w.pauses = append(w.pauses, one.pause)
	}
	w.rate = float64(tokens) / to.Sub(from).Seconds()
	slices.Sort(w.took)
	slices.Sort(w.told)
	slices.Sort(w.pauses)
	return w
}

// at is a quantile of sorted times.
func at(sorted []time.Duration, part float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(part*float64(len(sorted)-1))]
}
