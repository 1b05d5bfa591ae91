package authz

import "sync/atomic"

// Live is the Policy in force, which can be replaced by another while it is
// asked. Its methods may be called by any number of goroutines at once.
//
// Each of its answers is that of one Policy. Whoever asks more than once and
// wants the same Policy to answer takes it from Now.
type Live struct{ now atomic.Pointer[inForce] }

// inForce is a Policy and the end of its time.
type inForce struct {
	policy   *Policy
	replaced chan struct{} // closed when another Policy has taken its place
}

// NewLive begins with p.
func NewLive(p *Policy) *Live {
	l := &Live{}
	l.now.Store(&inForce{policy: p, replaced: make(chan struct{})})
	return l
}

// Replace has p in force from now on, as a whole: no answer is given by both.
func (l *Live) Replace(p *Policy) {
	old := l.now.Swap(&inForce{policy: p, replaced: make(chan struct{})})
	close(old.replaced)
}

// Now is the Policy in force, and a channel that is closed when it no longer is.
func (l *Live) Now() (policy *Policy, replaced <-chan struct{}) {
	now := l.now.Load()
	return now.policy, now.replaced
}

// Allow is that of the Policy in force.
func (l *Live) Allow(caller string, r Request) error {
	return l.now.Load().policy.Allow(caller, r)
}

// Authorize is that of the Policy in force. The Terms stay those of that Policy.
func (l *Live) Authorize(caller string, r Request) (Terms, error) {
	return l.now.Load().policy.Authorize(caller, r)
}

// AllowSome is that of the Policy in force.
func (l *Live) AllowSome(caller string, permission Permission, issuer string) error {
	return l.now.Load().policy.AllowSome(caller, permission, issuer)
}

// NextClient is that of the Policy in force.
func (l *Live) NextClient(caller string, permission Permission, issuer, from string) (next string, ok bool) {
	return l.now.Load().policy.NextClient(caller, permission, issuer, from)
}
