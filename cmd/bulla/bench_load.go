package main

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// load asks for tokens, by a number of callers.
//
// Without a rate it is a closed loop: each caller asks again when it has its
// answer. That measures what the service can do, and not how long callers of
// another kind would wait: a service that pauses is asked for nothing meanwhile.
// With a rate it is an open loop: there is a time at which each call has to begin,
// and it is from then on that its latency counts, also if it began late because
// all callers were still waiting.
type load struct {
	// ask asks for n tokens, and returns how many were made and why the others
	// were not.
	ask     func(ctx context.Context, n int) (made int, failed []error)
	unit    int // tokens of one call
	callers int
	rate    float64       // tokens a second, of all callers; 0 for a closed loop
	lasting time.Duration // 0 for no bound
	count   int           // of tokens; 0 for no bound
	timeout time.Duration // of a call
}

// notReached is how long a caller waits whose call reached no service: it would
// else do nothing but that.
const notReached = 100 * time.Millisecond

// run asks until it has lasted long enough, all are made, or ctx ends; what is
// under way then is waited for, but not after ctx. It returns how many tokens
// were to be asked for and were not, because no caller was free.
func (l *load) run(ctx context.Context, into *record) (notBegun int) {
	began := time.Now()
	into.begin(began)
	var next atomic.Int64
	var running sync.WaitGroup
	for range l.callers {
		running.Go(func() {
			for l.once(ctx, began, &next, into) {
			}
		})
	}
	running.Wait()
	into.end()
	if l.rate == 0 || ctx.Err() != nil {
		return 0
	}
	return max(0, (l.calls()-min(int(next.Load()), l.calls()))*l.unit)
}

// calls is how many calls an open loop has.
func (l *load) calls() int {
	all := int(l.lasting.Seconds() * l.rate / float64(l.unit))
	if byCount := (l.count + l.unit - 1) / l.unit; l.count > 0 && (l.lasting == 0 || byCount < all) {
		all = byCount
	}
	return all
}

// once makes the next call. It returns false if there is none.
func (l *load) once(ctx context.Context, began time.Time, next *atomic.Int64, into *record) bool {
	if ctx.Err() != nil || l.lasting > 0 && time.Since(began) >= l.lasting {
		return false
	}
	i := int(next.Add(1) - 1)
	n := l.unit
	if l.count > 0 {
		n = min(n, l.count-i*l.unit)
	}
	if n <= 0 {
		return false
	}
	start := time.Now()
	if l.rate > 0 {
		if i >= l.calls() {
			return false
		}
		start = began.Add(time.Duration(float64(i) * float64(l.unit) / l.rate * float64(time.Second)))
		if !pause(ctx, time.Until(start)) {
			return false
		}
	}
	limited, cancel := context.WithTimeout(ctx, l.timeout)
	made, failed := l.ask(limited, n)
	cancel()
	if ctx.Err() != nil {
		return false // cut off, and by us
	}
	into.add(start, made, failed)
	return made > 0 || !slices.ContainsFunc(failed, unreached) || pause(ctx, notReached)
}

// pause returns false if ctx ended before it was over.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unreached reports whether an error is of the connection and not of a service.
func unreached(err error) bool {
	return status.Code(err) == codes.Unavailable && reasonOf(err) == ""
}

// reasonOf is the service's reason for an error, empty if it gave none.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// record is what came of a load.
type record struct {
	latencies histogram // of tokens that were made, each that of its call

	mu         sync.Mutex // guards what follows
	failed     int
	failures   map[failureKind]*failures
	from, till time.Time
}

// failureKind is a code and a reason.
type failureKind struct{ Code, Reason string }

// failures are how often a kind was met, and the text of the first.
type failures struct {
	failureKind
	Count   int
	Example string
}

func newRecord() *record { return &record{failures: make(map[failureKind]*failures)} }

func (r *record) begin(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from, r.till = now, now
}

func (r *record) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.till = time.Now()
}

func (r *record) add(start time.Time, made int, failed []error) {
	if made > 0 {
		r.latencies.add(time.Since(start), made)
	}
	if len(failed) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed += len(failed)
	for _, err := range failed {
		kind := failureKind{status.Code(err).String(), reasonOf(err)}
		f := r.failures[kind]
		if f == nil {
			f = &failures{failureKind: kind, Example: status.Convert(err).Message()}
			r.failures[kind] = f
		}
		f.Count++
	}
}

// kinds are the failures, the most frequent first.
func (r *record) kinds() []failures {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []failures
	for _, f := range r.failures {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b failures) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Reason, b.Reason))
	})
	return all
}

func (r *record) failedSoFar() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *record) lasted() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.till.Sub(r.from)
}
