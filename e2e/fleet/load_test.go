package fleet

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

const (
	callers  = 32
	deadline = 10 * time.Second // of a request, with all its attempts
)

// flaggedAfter is how soon replies are flagged with registry_stale when a replica
// is out of touch.
const flaggedAfter = 3 * time.Second

// pause is what a caller waits between two requests: what is tested is not how
// many tokens two cores can make.
func pause() time.Duration {
	if harness.RaceEnabled {
		return 200 * time.Millisecond
	}
	return 25 * time.Millisecond
}

// request is one that has ended, with all its attempts.
type request struct {
	client     *known
	start, end time.Time
	reason     string // why it brought no token
	excused    bool   // it could not have brought one, or not another one
	wrong      error  // what is wrong with the token, but for late ones
	late       error  // made for a key, or a client, that was gone
	stale      bool   // flagged with registry_stale
}

// attempt is one attempt of a request that failed.
type attempt struct {
	start, end time.Time
	call       *call
	replica    string // its address, empty if there was none to send it to
	reason     string
	err        error
	excused    bool // it had to
}

// load is callers that ask all replicas in turn for tokens of all clients,
// each on connections of its own, with the retries of package client.
type load struct {
	stop    context.CancelFunc
	callers sync.WaitGroup
	outages *outages

	mu       sync.Mutex // guards what follows
	clients  []*known
	ended    []request
	attempts []attempt
}

func startLoad(t *testing.T, f *fleet, o *outages, clients []*known) *load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &load{stop: stop, clients: clients, outages: o}
	for range callers {
		c, err := client.Dial(client.Config{
			Address: f.addresses(), CAFile: shared.ca.File, CertFile: f.leaf.CertFile, KeyFile: f.leaf.KeyFile,
			Options: []grpc.DialOption{grpc.WithStatsHandler(watcher{l})},
		})
		if err != nil {
			t.Fatal(err)
		}
		l.callers.Go(func() {
			defer func() { _ = c.Close() }() // nothing is lost by its errors
			l.call(ctx, c)
		})
	}
	t.Cleanup(l.end)
	return l
}

// end stops the callers.
func (l *load) end() {
	l.stop()
	l.callers.Wait()
}

func (l *load) call(ctx context.Context, c *client.Client) {
	for ctx.Err() == nil {
		k := l.pick()
		q := request{client: k, start: time.Now()}
		// It is not cut short at the end.
		tries := &call{client: k}
		bounded, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), callKey{}, tries), deadline)
		res, err := c.Tokens.SignAndEncrypt(bounded, ask(k.id))
		cancel()
		q.end = time.Now()
		if err != nil {
			q.reason = reasonOf(err)
			q.excused = tries.excused()
		} else {
			q.stale = res.GetRegistryStale()
			q.wrong = k.check(q.start, res)
			if late := (*lateError)(nil); errors.As(q.wrong, &late) {
				q.wrong, q.late = nil, late
				// A replica cannot hear what was acknowledged when PostgreSQL went
				// away, and says so with its tokens when it has heard nothing for a
				// while.
				o, ok := l.outages.during(q.start, q.end)
				q.excused = ok && late.gone.After(o.began.Add(-inForce)) && (q.stale || q.start.Before(o.began.Add(flaggedAfter)))
			}
		}
		l.mu.Lock()
		l.ended = append(l.ended, q)
		l.mu.Unlock()
		select {
		case <-time.After(pause()):
		case <-ctx.Done():
		}
	}
}

// excused reports whether an attempt had to fail: its client was not there; or
// PostgreSQL was away, and the replica has not been asked for the client since it
// was changed, so that it may not use what it has, and cannot read what it should
// have.
func (l *load) excused(a *attempt) bool {
	switch a.reason {
	case notRegistered:
		return a.call.client.mayBeUnknown(a.start)
	case registryUnavailable:
		_, ok := l.outages.during(a.start, a.end)
		return ok && !a.call.client.warmOn(a.replica)
	}
	return false
}

// call is a request on its way.
type call struct {
	client *known

	mu   sync.Mutex // guards last
	last attempt    // that failed
}

// excused reports whether a request that failed had to: its last attempt did.
// Those before it are judged by themselves.
func (c *call) excused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.excused
}

func (l *load) pick() *known {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clients[rand.IntN(len(l.clients))]
}

func (l *load) add(k *known) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients = append(l.clients, k)
}

func (l *load) remove(k *known) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, c := range l.clients {
		if c == k {
			l.clients[i] = l.clients[len(l.clients)-1]
			l.clients = l.clients[:len(l.clients)-1]
			return
		}
	}
}

// between is what ended after from, and not after to.
func (l *load) between(from, to time.Time) (requests []request, attempts []attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.ended {
		if q.end.After(from) && !q.end.After(to) {
			requests = append(requests, q)
		}
	}
	for _, a := range l.attempts {
		if a.end.After(from) && !a.end.After(to) {
			attempts = append(attempts, a)
		}
	}
	return requests, attempts
}

// watcher sees each attempt of a request, which package client hides.
type watcher struct{ load *load }

// attemptKey and callKey are those of an attempt and its request in a context.
type (
	attemptKey struct{}
	callKey    struct{}
)

// TagRPC implements stats.Handler.
func (watcher) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok || info.FullMethodName != bullav1.TokenService_SignAndEncrypt_FullMethodName {
		return ctx
	}
	return context.WithValue(ctx, attemptKey{}, &attempt{start: time.Now(), call: c})
}

// HandleRPC implements stats.Handler. Those of one attempt come one after the
// other.
func (w watcher) HandleRPC(ctx context.Context, s stats.RPCStats) {
	a, ok := ctx.Value(attemptKey{}).(*attempt)
	if !ok {
		return
	}
	switch s := s.(type) {
	case *stats.OutHeader:
		a.replica = s.RemoteAddr.String()
	case *stats.End:
		if s.Error == nil {
			a.call.client.servedBy(a.replica, a.start)
			return
		}
		a.end, a.reason, a.err = s.EndTime, reasonOf(s.Error), s.Error
		a.excused = w.load.excused(a)
		a.call.mu.Lock()
		a.call.last = *a
		a.call.mu.Unlock()
		w.load.mu.Lock()
		defer w.load.mu.Unlock()
		w.load.attempts = append(w.load.attempts, *a)
	}
}

// TagConn implements stats.Handler.
func (watcher) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (watcher) HandleConn(context.Context, stats.ConnStats) {}

// outage is a time when something was away.
type outage struct {
	began, over time.Time // over is zero while it lasts
	replica     string    // the address of the replica that was away; empty if it was PostgreSQL
}

// outages are those of a run.
type outages struct {
	mu  sync.Mutex // guards all
	all []*outage
}

// begin notes that something goes away, before it does; the result notes that
// all is well again.
func (o *outages) begin(replica string) (over func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	one := &outage{began: time.Now(), replica: replica}
	o.all = append(o.all, one)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		one.over = time.Now()
	}
}

func (o *outages) find(from, to time.Time, is func(*outage) bool) (outage, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, one := range o.all {
		if is(one) && one.began.Before(to) && (one.over.IsZero() || one.over.After(from)) {
			return *one, true
		}
	}
	return outage{}, false
}

// during is the outage of PostgreSQL between two moments.
func (o *outages) during(from, to time.Time) (outage, bool) {
	return o.find(from, to, func(one *outage) bool { return one.replica == "" })
}

// calm reports whether nothing was away between two moments.
func (o *outages) calm(from, to time.Time) bool {
	_, any := o.find(from, to, func(*outage) bool { return true })
	return !any
}
